//! A policy that knows all arrivals. No clock in here.
//!
//! It plans in a simpler world, and then runs its plans in the one of everybody else. There, work
//! is a fluid in slots of some seconds: jobs are served in the order of arrival, each ready pod
//! serves so much in a slot, a job must be served within so long after the slot it came in, and a
//! start costs a cold start. For that world [`plan`] finds the cheapest schedule of all, by dynamic
//! programming over pods and backlog (a test compares it with a search through all schedules).
//!
//! The real one has batches that are not full and jobs that are not fluid, so the plan is made
//! with several speeds and several times to serve a job in, and what is called the oracle is the
//! cheapest of those schedules that reaches the objective when it is run (or, if none does, the one
//! that comes closest). So it is what a clairvoyant can do, and not a bound: a cleverer one may be
//! cheaper still. The bound that holds for everybody is [`least_gpu_seconds`].

use std::time::Duration;

use super::outcome::Outcome;
use super::trace::Trace;
use super::world::{self, Policy, Settings, View};

/// Backlog is counted in this part of what a pod serves in a slot.
const PARTS: usize = 4;

/// Speeds of a pod, as shares of that with full batches.
const SPEEDS: [f64; 4] = [1.0, 0.85, 0.7, 0.5];

/// Times in which a job must be served, as shares of the objective.
const TIMES: [f64; 5] = [1.15, 1.0, 0.8, 0.6, 0.35];

/// A simpler world: what comes, and what it costs to serve it.
#[derive(Debug, Clone, PartialEq)]
struct Fluid {
    /// Work that has come by the end of each slot, from the start, in parts.
    come: Vec<usize>,
    /// Slots after its own in which work must be served.
    patience: usize,
    max_pods: usize,
    /// What a pod costs for a slot, and what a start costs.
    slot: f64,
    start: f64,
}

/// Device time that no policy can do without: all jobs in full batches, and one start.
pub(crate) fn least_gpu_seconds(trace: &Trace, settings: &Settings) -> f64 {
    let jobs: f64 = trace.arrivals.iter().map(|arrival| arrival.service).sum();
    let batches = trace.arrivals.len().div_ceil(settings.slots);
    jobs + batches as f64 * settings.overhead + settings.cold_start.as_secs_f64()
}

/// Runs the trace under the cheapest plan that reaches the share of jobs within the objective.
pub(crate) fn run(settings: Settings, trace: &Trace, share: f64) -> Outcome {
    let mut best: Option<Outcome> = None;
    for speed in SPEEDS {
        for time in TIMES {
            let Some(mut schedule) = Schedule::make(&settings, trace, speed, time) else {
                continue;
            };
            let outcome = world::run(settings, trace, &mut schedule);
            if best.as_ref().is_none_or(|best| is_better(&outcome, best, share)) {
                best = Some(outcome);
            }
        }
    }
    best.unwrap_or_else(|| world::run(settings, trace, &mut Schedule::full(&settings, trace)))
}

fn is_better(one: &Outcome, other: &Outcome, share: f64) -> bool {
    match (one.attainment() >= share, other.attainment() >= share) {
        (true, true) => one.gpu_seconds() < other.gpu_seconds(),
        (false, false) => one.attainment() > other.attainment(),
        (reaches, _) => reaches,
    }
}

/// How many pods there are to be in each slot.
struct Schedule {
    slot: Duration,
    /// Asked for, a cold start ahead.
    pods: Vec<u32>,
}

impl Schedule {
    /// None where even all pods could not serve everything in time.
    fn make(settings: &Settings, trace: &Trace, speed: f64, time: f64) -> Option<Self> {
        // As fine as the table of a long trace allows.
        let slot = if trace.end() > 8000.0 { 10.0 } else { 5.0 };
        let overhead = settings.overhead / settings.slots as f64;
        let n_slots = (trace.end() / slot) as usize + 2;
        let mut work = vec![0.0; n_slots];
        for arrival in &trace.arrivals {
            work[(arrival.at / slot) as usize] += (arrival.service + overhead) / speed;
        }
        let patience = settings.objective.as_secs_f64() * time / slot;
        let fluid = Fluid {
            come: cumulative(&work, slot / PARTS as f64),
            patience: (patience as usize).max(1) - 1,
            max_pods: settings.max_replicas as usize,
            slot,
            start: settings.cold_start.as_secs_f64(),
        };
        let ready = plan(&fluid)?;
        let lead = (settings.cold_start.as_secs_f64() / slot).ceil() as usize;
        let ahead = |k: usize| ready[k..(k + lead + 1).min(ready.len())].iter().max().copied();
        let pods = (0..ready.len()).map(|k| ahead(k).unwrap_or(0) as u32).collect();
        Some(Self { slot: Duration::from_secs_f64(slot), pods })
    }

    fn full(settings: &Settings, trace: &Trace) -> Self {
        let slot = Duration::from_secs(10);
        Self { slot, pods: vec![settings.max_replicas; (trace.end() / 10.0) as usize + 1] }
    }
}

impl Policy for Schedule {
    fn arrived(&mut self, view: &View<'_>) -> u32 {
        view.wanted
    }

    fn second(&mut self, view: &View<'_>) -> u32 {
        let slot = (view.now.as_secs() / self.slot.as_secs()) as usize;
        let left = view.ready + view.in_flight > 0;
        match self.pods.get(slot) {
            // Where the plan has nothing left to do and this world has, one pod stays.
            Some(0) if left => view.wanted.min(1),
            Some(pods) => *pods,
            None => u32::from(left),
        }
    }
}

/// Sums in whole parts, so that the error never adds up.
fn cumulative(work: &[f64], part: f64) -> Vec<usize> {
    let mut sum = 0.0;
    let sums = work.iter().map(|work| {
        sum += work;
        (sum / part).ceil() as usize
    });
    sums.collect()
}

/// The cost of the best way to a state, and the pods and the backlog it comes from.
#[derive(Debug, Clone, Copy)]
struct Best {
    cost: f64,
    from: (u16, u32),
}

const UNREACHED: Best = Best { cost: f64::INFINITY, from: (0, 0) };

/// The cheapest number of ready pods in each slot, until all work is served; none where it cannot
/// be served in time.
fn plan(fluid: &Fluid) -> Option<Vec<usize>> {
    let states = fluid.max_pods + 1;
    let n_slots = fluid.come.len() + fluid.patience;
    let mut now = vec![vec![UNREACHED; 1]; states];
    now[0][0].cost = 0.0;
    let mut ways = Vec::with_capacity(n_slots);
    for k in 0..n_slots {
        now = fluid.served(k, &started(&now, fluid.start));
        let from = |row: &Vec<Best>| row.iter().map(|best| best.from).collect::<Vec<_>>();
        ways.push(now.iter().map(from).collect::<Vec<_>>());
    }
    let ends = (0..states).filter(|pods| now[*pods].first().is_some_and(|b| b.cost.is_finite()));
    let mut pods = ends.min_by(|a, b| now[*a][0].cost.total_cmp(&now[*b][0].cost))?;
    let mut backlog = 0;
    let mut plan = vec![0; n_slots];
    for k in (0..n_slots).rev() {
        plan[k] = pods;
        let from = ways[k][pods][backlog];
        (pods, backlog) = (from.0 as usize, from.1 as usize);
    }
    Some(plan)
}

/// The cheapest way to have each number of pods at each backlog, by starting or stopping some.
fn started(now: &[Vec<Best>], start: f64) -> Vec<Vec<(f64, u16)>> {
    let mut reached: Vec<Vec<(f64, u16)>> = now
        .iter()
        .enumerate()
        .map(|(pods, row)| row.iter().map(|best| (best.cost, pods as u16)).collect())
        .collect();
    for pods in 1..reached.len() {
        for backlog in 0..reached[pods].len() {
            let (cost, from) = reached[pods - 1][backlog];
            if cost + start < reached[pods][backlog].0 {
                reached[pods][backlog] = (cost + start, from);
            }
        }
    }
    for pods in (1..reached.len()).rev() {
        for backlog in 0..reached[pods].len() {
            let (cost, from) = reached[pods][backlog];
            if cost < reached[pods - 1][backlog].0 {
                reached[pods - 1][backlog] = (cost, from);
            }
        }
    }
    reached
}

impl Fluid {
    /// A slot of work: what has come is served as far as the pods can, and no more may be left than
    /// what came within the patience.
    fn served(&self, k: usize, reached: &[Vec<(f64, u16)>]) -> Vec<Vec<Best>> {
        let come = |k: usize| self.come.get(k).or(self.come.last()).copied().unwrap_or(0);
        let before = if k == 0 { 0 } else { come(k - 1) };
        let new = come(k) - before;
        let due = k.checked_sub(self.patience).map_or(0, come);
        let most = come(k) - due;
        let row = |(pods, reached): (usize, &Vec<(f64, u16)>)| {
            let mut row = vec![UNREACHED; most + 1];
            for (backlog, (cost, from)) in reached.iter().enumerate() {
                let left = (backlog + new).saturating_sub(pods * PARTS);
                let cost = cost + pods as f64 * self.slot;
                if left <= most && cost < row[left].cost {
                    row[left] = Best { cost, from: (*from, backlog as u32) };
                }
            }
            row
        };
        reached.iter().enumerate().map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::pods::hash;

    /// The cheapest of all schedules, by trying each; and what it costs.
    fn search(fluid: &Fluid, k: usize, pods: usize, served: usize) -> f64 {
        let n_slots = fluid.come.len() + fluid.patience;
        let come = |k: usize| fluid.come.get(k).or(fluid.come.last()).copied().unwrap();
        if k == n_slots {
            return if served == come(k) { 0.0 } else { f64::INFINITY };
        }
        let costs = (0..=fluid.max_pods).map(|next| {
            let served = (served + next * PARTS).min(come(k));
            let due = k.checked_sub(fluid.patience).map_or(0, come);
            if served < due {
                return f64::INFINITY;
            }
            let starts = next.saturating_sub(pods) as f64 * fluid.start;
            starts + next as f64 * fluid.slot + search(fluid, k + 1, next, served)
        });
        costs.fold(f64::INFINITY, f64::min)
    }

    fn cost(fluid: &Fluid, plan: &[usize]) -> f64 {
        let before = std::iter::once(&0).chain(plan);
        let starts = plan.iter().zip(before).map(|(pods, before)| pods.saturating_sub(*before));
        starts.sum::<usize>() as f64 * fluid.start + plan.iter().sum::<usize>() as f64 * fluid.slot
    }

    #[test]
    fn the_plan_is_the_cheapest_of_all_schedules() {
        for seed in 0..40 {
            let mut draws = (0u64..).map(|n| hash(seed * 1000 + n));
            let mut draw = |n: u64| (draws.next().expect("there is no end") % n) as usize;
            let mut sum = 0;
            let come = (0..5).map(|_| {
                sum += if draw(2) == 0 { 0 } else { draw(14) };
                sum
            });
            let come = come.collect();
            let (patience, max_pods) = (draw(3), 1 + draw(3));
            let fluid = Fluid { come, patience, max_pods, slot: 5.0, start: draw(25) as f64 };
            let best = search(&fluid, 0, 0, 0);
            match plan(&fluid) {
                Some(plan) => assert_eq!(cost(&fluid, &plan), best, "{fluid:?}: {plan:?}"),
                None => assert!(best.is_infinite(), "{fluid:?}"),
            }
        }
    }

    #[test]
    fn sums_are_rounded_up_and_never_drift() {
        assert_eq!(cumulative(&[0.1, 0.1, 2.8, 0.0], 1.0), [1, 1, 3, 3]);
    }
}
