//! The world in virtual time: a queue, pods that take batches from it, and a policy that says how
//! many pods there should be. No clock in here; all chance is in the trace and the seed.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use super::outage::{Away, Outage};
use super::outcome::{Outcome, Sample};
use super::pods::{JobIndex, Pod, victim};
use super::trace::Trace;

/// What is the same for every policy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Settings {
    /// From the start of a pod to its first job.
    pub(crate) cold_start: Duration,
    /// Seconds that a batch takes beside the sum of its jobs' seconds.
    pub(crate) overhead: f64,
    /// Jobs in a batch at most. As many are held for the next one.
    pub(crate) slots: usize,
    /// How long a pod may finish what it runs after it was told to end.
    pub(crate) grace: Duration,
    /// Pods at most.
    pub(crate) max_replicas: u32,
    /// A job that ends later than this after it came is late.
    pub(crate) objective: Duration,
    /// `cooldownPeriod` and the `scaleDown` window of the brisk ScaledObject.
    pub(crate) cooldown: Duration,
    pub(crate) window: Duration,
    /// How long KEDA gets no answer, once in the trace, because of whom.
    pub(crate) outage_length: Duration,
    pub(crate) away: Away,
    /// Replicas that stand in then, where a policy has a fallback.
    pub(crate) fallback_replicas: u32,
    /// Draws the phases of polls and syncs, and when the outage is.
    pub(crate) seed: u64,
}

impl Settings {
    /// The outage of a trace, if there is one.
    pub(crate) fn outage(&self, trace: &Trace) -> Option<Outage> {
        let outage = || Outage::draw(self.away, self.outage_length, self.seed, trace);
        (!self.outage_length.is_zero()).then(outage)
    }
}

/// What all policies of a run on a trace have in common.
#[derive(Clone, Copy)]
pub(crate) struct Bed<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) outage: Option<Outage>,
}

/// Who says how many pods there should be.
pub(crate) trait Policy {
    /// Something arrived: how many there should be now.
    fn arrived(&mut self, view: &View<'_>) -> u32;
    /// A second has passed.
    fn second(&mut self, view: &View<'_>) -> u32;
    /// Whether a pod that finds nothing to do ends by itself, instead of being told to.
    fn pods_end_by_themselves(&self) -> bool {
        false
    }
}

/// What a policy may look at.
pub(crate) struct View<'a> {
    pub(crate) now: Duration,
    pub(crate) settings: &'a Settings,
    /// Jobs that nobody holds.
    pub(crate) ready: usize,
    /// The same by priority, the highest first.
    pub(crate) by_priority: [usize; 3],
    /// Jobs that pods hold.
    pub(crate) in_flight: usize,
    /// When the oldest ready job came.
    pub(crate) oldest: Option<Duration>,
    /// Device seconds of the jobs that are ready or in flight, batches not considered.
    pub(crate) cost: f64,
    /// All that have not ended.
    pub(crate) pods: &'a [Pod],
    /// Pods asked for.
    pub(crate) wanted: u32,
}

impl View<'_> {
    /// Pods that are ready and here to stay.
    pub(crate) fn ready_pods(&self) -> u32 {
        let ready = |pod: &&Pod| pod.draining.is_none() && pod.is_ready(self.now);
        self.pods.iter().filter(ready).count() as u32
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Done { pod: usize },
    Ready,
    GraceOver { pod: usize },
    Arrival(JobIndex),
    Second,
}

struct World<'a> {
    settings: Settings,
    trace: &'a Trace,
    now: Duration,
    events: BinaryHeap<Reverse<(Duration, u64, Event)>>,
    n_events: u64,
    lanes: [VecDeque<JobIndex>; 3],
    cost: f64,
    pods: Vec<Pod>,
    wanted: u32,
    n_done: usize,
    outcome: Outcome,
}

/// How long after the last arrival a policy may take to do what is left.
const PATIENCE: Duration = Duration::from_secs(2 * 3600);
const SECOND: Duration = Duration::from_secs(1);

/// Runs a trace under a policy until all jobs are done and the pool is gone.
pub(crate) fn run(settings: Settings, trace: &Trace, policy: &mut dyn Policy) -> Outcome {
    let mut world = World {
        settings,
        trace,
        now: Duration::ZERO,
        events: BinaryHeap::new(),
        n_events: 0,
        lanes: Default::default(),
        cost: 0.0,
        pods: Vec::new(),
        wanted: 0,
        n_done: 0,
        outcome: Outcome::new(trace, settings.objective),
    };
    world.schedule(Duration::ZERO, Event::Second);
    world.schedule(world.arrival(0), Event::Arrival(0));
    let limit = Duration::from_secs_f64(trace.end()) + PATIENCE;
    while let Some(Reverse((at, _, event))) = world.events.pop() {
        world.now = at;
        let over = world.n_done == trace.arrivals.len() && world.pods.is_empty();
        if over || at > limit {
            break;
        }
        world.happen(event, policy);
    }
    world.end()
}

impl World<'_> {
    fn happen(&mut self, event: Event, policy: &mut dyn Policy) {
        match event {
            Event::Arrival(job) => {
                self.put(job);
                if job + 1 < self.trace.arrivals.len() {
                    self.schedule(self.arrival(job + 1), Event::Arrival(job + 1));
                }
                self.dispatch();
                let wanted = policy.arrived(&self.view());
                self.scale(wanted);
            }
            Event::Second => {
                let wanted = policy.second(&self.view());
                self.scale(wanted);
                self.sample();
                self.schedule(self.now + SECOND, Event::Second);
            }
            Event::Ready => {}
            Event::Done { pod } => self.done(pod),
            Event::GraceOver { pod } => self.kill(pod),
        }
        self.dispatch();
        if policy.pods_end_by_themselves() {
            self.retire();
        }
    }

    /// Ends the pods that found nothing to do.
    fn retire(&mut self) {
        while let Some(place) = self.pods.iter().position(|pod| pod.is_free(self.now)) {
            self.finish(place);
            self.wanted = self.wanted.saturating_sub(1);
        }
    }

    fn schedule(&mut self, at: Duration, event: Event) {
        self.n_events += 1;
        self.events.push(Reverse((at, self.n_events, event)));
    }

    fn arrival(&self, job: JobIndex) -> Duration {
        let arrival = self.trace.arrivals.get(job);
        Duration::from_secs_f64(arrival.map_or(0.0, |arrival| arrival.at))
    }

    fn lane(&mut self, job: JobIndex) -> &mut VecDeque<JobIndex> {
        &mut self.lanes[self.trace.arrivals[job].priority as usize]
    }

    fn put(&mut self, job: JobIndex) {
        self.cost += self.trace.arrivals[job].service;
        self.lane(job).push_back(job);
    }

    /// Puts back what a pod held, in its old order, before all others of its priority.
    fn give_back(&mut self, jobs: Vec<JobIndex>) {
        for job in jobs.into_iter().rev() {
            self.lane(job).push_front(job);
        }
    }

    fn n_ready(&self) -> usize {
        self.lanes.iter().map(VecDeque::len).sum()
    }

    fn take(&mut self, n: usize) -> Vec<JobIndex> {
        let mut jobs = Vec::new();
        for lane in &mut self.lanes {
            let room = (n - jobs.len()).min(lane.len());
            jobs.extend(lane.drain(..room));
        }
        jobs
    }

    /// Gives work to free pods, the one that has been idle for longest first, and then lets the
    /// busy ones hold their next batch.
    fn dispatch(&mut self) {
        while self.n_ready() > 0 {
            let free = self.pods.iter().enumerate().filter(|(_, pod)| pod.is_free(self.now));
            let Some((place, _)) = free.min_by_key(|(_, pod)| (pod.idle, pod.number)) else {
                break;
            };
            let jobs = self.take(self.settings.slots);
            self.begin(place, jobs);
        }
        for place in 0..self.pods.len() {
            let pod = &self.pods[place];
            let room = self.settings.slots - pod.held.len();
            if !pod.running.is_empty() && pod.draining.is_none() && room > 0 {
                let jobs = self.take(room);
                self.pods[place].held.extend(jobs);
            }
        }
    }

    fn begin(&mut self, place: usize, jobs: Vec<JobIndex>) {
        let work: f64 = jobs.iter().map(|job| self.trace.arrivals[*job].service).sum();
        let time = Duration::from_secs_f64(self.settings.overhead + work);
        for job in &jobs {
            self.outcome.begun(*job, self.now);
        }
        let pod = &mut self.pods[place];
        pod.running = jobs;
        pod.since = self.now;
        pod.batches += 1;
        let number = pod.number;
        self.schedule(self.now + time, Event::Done { pod: number });
    }

    fn place(&self, number: usize) -> Option<usize> {
        self.pods.iter().position(|pod| pod.number == number)
    }

    fn done(&mut self, number: usize) {
        // A batch of a pod that was killed ends nowhere.
        let Some(place) = self.place(number) else { return };
        let pod = &mut self.pods[place];
        let jobs = std::mem::take(&mut pod.running);
        pod.completed += jobs.len() as u64;
        pod.device += self.now - pod.since;
        pod.idle = self.now;
        let next = std::mem::take(&mut pod.held);
        let draining = pod.draining.is_some();
        self.n_done += jobs.len();
        for job in jobs {
            self.cost -= self.trace.arrivals[job].service;
            self.outcome.done(job, self.now);
        }
        if draining {
            self.finish(place);
        } else if !next.is_empty() {
            let mut jobs = next;
            jobs.extend(self.take(self.settings.slots - jobs.len()));
            self.begin(place, jobs);
        }
    }

    /// The grace is over: what runs is given back and has to be done again.
    fn kill(&mut self, number: usize) {
        if let Some(place) = self.place(number) {
            let jobs = std::mem::take(&mut self.pods[place].running);
            self.outcome.n_killed += jobs.len();
            self.give_back(jobs);
            self.finish(place);
        }
    }

    fn finish(&mut self, place: usize) {
        let pod = self.pods.remove(place);
        self.outcome.ended(self.now - pod.started);
    }

    fn scale(&mut self, wanted: u32) {
        self.wanted = wanted.min(self.settings.max_replicas);
        let staying = |pods: &[Pod]| pods.iter().filter(|pod| pod.draining.is_none()).count();
        for _ in staying(&self.pods)..self.wanted as usize {
            let ready = self.now + self.settings.cold_start;
            self.pods.push(Pod::start(self.outcome.n_starts, self.now, ready));
            self.outcome.n_starts += 1;
            self.schedule(ready, Event::Ready);
        }
        while staying(&self.pods) > self.wanted as usize {
            let Some(place) = victim(&self.pods, self.now) else { break };
            self.drain(place);
        }
    }

    fn drain(&mut self, place: usize) {
        let held = std::mem::take(&mut self.pods[place].held);
        self.give_back(held);
        if self.pods[place].running.is_empty() {
            self.finish(place);
        } else {
            let pod = &mut self.pods[place];
            pod.draining = Some(self.now);
            let number = pod.number;
            self.schedule(self.now + self.settings.grace, Event::GraceOver { pod: number });
        }
    }

    fn view(&self) -> View<'_> {
        let oldest = self.lanes.iter().filter_map(|lane| lane.front()).min();
        View {
            now: self.now,
            settings: &self.settings,
            ready: self.n_ready(),
            by_priority: self.lanes.each_ref().map(VecDeque::len),
            in_flight: self.pods.iter().map(Pod::in_flight).sum(),
            oldest: oldest.map(|job| self.arrival(*job)),
            cost: self.cost.max(0.0),
            pods: &self.pods,
            wanted: self.wanted,
        }
    }

    fn sample(&mut self) {
        let sample = Sample {
            at: self.now.as_secs(),
            pods: self.pods.len() as u32,
            ready: self.n_ready() as u32,
        };
        self.outcome.sample(sample);
    }

    fn end(mut self) -> Outcome {
        while !self.pods.is_empty() {
            self.finish(0);
        }
        self.outcome.close(self.now);
        self.outcome
    }
}

#[cfg(test)]
mod tests;
