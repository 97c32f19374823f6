//! KEDA's calls while looks take their time, with a clock that stands still.

use std::num::NonZeroUsize;

use async_trait::async_trait;
use ebb_queue::memory::MemoryQueue;
use ebb_queue::{
    Backlog, Behavior, Broker, Clock, Depth, Info, Job, Link, OpenOptions, Phase, QueueUrl, Result,
    Source, Timestamp, TokioClock, WorkerStatus,
};
use ebb_telemetry::Traces;
use futures::StreamExt;
use futures::stream::BoxStream;
use prometheus::Registry;
use tokio::time::sleep;

use super::*;
use crate::kit::worker;
use crate::site::Connect;

/// How long a look takes.
#[derive(Debug, Clone, Copy)]
struct Takes {
    /// To count the jobs, where some are ready.
    count: Duration,
    /// How much longer it waits and looks again before it says that there are none, as a cluster does.
    doubt: Duration,
    /// To hear the workers.
    hear: Duration,
    /// To let go of who leaves.
    leave: Duration,
}

/// As what is new on RabbitMQ: others have been heard only when all of them must have spoken.
const UNHEARD: Takes = Takes { count: ms(200), doubt: ms(1000), hear: ms(1200), leave: ms(800) };
/// As a NATS cluster, whose leader is believed only after a while.
const CLUSTER: Takes = Takes { count: ms(10), doubt: ms(1000), hear: ms(10), leave: ms(0) };

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A queue in memory whose looks take their time.
#[derive(Clone)]
struct Slow {
    queue: MemoryQueue,
    takes: Takes,
    /// How many have left in order.
    left: watch::Sender<usize>,
}

#[async_trait]
impl Connect for Slow {
    async fn connect(&self, _: &QueueUrl, _: &Source) -> Result<Arc<dyn Backlog>> {
        Ok(Arc::new(self.clone()))
    }
}

#[async_trait]
impl Backlog for Slow {
    async fn depth(&self) -> Result<Depth> {
        sleep(self.takes.count).await;
        let depth = self.queue.depth().await?;
        if depth.ready > 0 {
            return Ok(depth);
        }
        sleep(self.takes.doubt).await;
        Ok(Depth { waited: self.takes.doubt, ..self.queue.depth().await? })
    }

    async fn workers(&self) -> Result<Vec<WorkerStatus>> {
        sleep(self.takes.hear).await;
        self.queue.workers().await
    }

    async fn arrivals(&self) -> Result<BoxStream<'static, ()>> {
        self.queue.arrivals().await
    }

    async fn info(&self) -> Result<Info> {
        self.queue.info().await
    }

    fn link(&self) -> &Link {
        self.queue.link()
    }

    async fn close(&self) -> Result<()> {
        sleep(self.takes.leave).await;
        self.left.send_modify(|n_left| *n_left += 1);
        Ok(())
    }
}

/// A scaler on such a queue that nobody has asked anything yet, and when it was made.
struct Fresh {
    service: Service,
    queue: MemoryQueue,
    clock: TokioClock,
    since: Instant,
    stop: CancellationToken,
    left: watch::Receiver<usize>,
    _profiles: watch::Sender<Arc<Profiles>>,
}

impl Fresh {
    fn new(takes: Takes) -> Self {
        Self::with(takes, &ScalerArgs::default())
    }

    fn with(takes: Takes, args: &ScalerArgs) -> Self {
        let clock = TokioClock::starting_at(Timestamp::UNIX_EPOCH);
        let options = OpenOptions { clock: Arc::new(clock), ..OpenOptions::default() };
        let queue = MemoryQueue::new(&Behavior::default(), options);
        let only = Profiles::single(QueueUrl::sqlite("/nowhere"));
        let (told, profiles) = watch::channel(Arc::new(only));
        let metrics = Metrics::register(&Registry::new()).unwrap();
        let outlets = (metrics.clone(), Traces::default());
        let (leaving, left) = watch::channel(0);
        let slow = Arc::new(Slow { queue: queue.clone(), takes, left: leaving });
        let stop = CancellationToken::new();
        let observers = Observers::new(slow, profiles.clone(), args, outlets, stop.clone());
        let service = Service::new(profiles, observers, Explain::default(), metrics, args);
        Self { service, queue, clock, since: Instant::now(), stop, left, _profiles: told }
    }

    /// Ends the observers, and how long that takes.
    async fn end(&self) -> Duration {
        let begun = Instant::now();
        self.stop.cancel();
        self.service.observers.join().await;
        begun.elapsed()
    }

    async fn publish(&self, n_jobs: usize, delay: Duration) {
        let now = self.clock.now();
        let delayed = |mut job: Job| {
            job.headers.not_before = (!delay.is_zero()).then(|| now + delay);
            job
        };
        let jobs = (0..n_jobs).map(|_| delayed(Job::new("{}", now))).collect();
        self.queue.publish(jobs).await.unwrap();
    }

    async fn value(&self, object: &ScaledObjectRef) -> Result<f64, Status> {
        let specs = self.service.get_metric_spec(Request::new(object.clone())).await?;
        let request = GetMetricsRequest {
            scaled_object_ref: Some(object.clone()),
            metric_name: specs.into_inner().metric_specs[0].metric_name.clone(),
        };
        let answer = self.service.get_metrics(Request::new(request)).await?;
        Ok(answer.into_inner().metric_values[0].metric_value_float)
    }

    async fn is_active(&self, object: &ScaledObjectRef) -> Result<bool, Status> {
        Ok(self.service.is_active(Request::new(object.clone())).await?.into_inner().result)
    }

    /// What a stream says next, and when.
    async fn says(&self, stream: &mut Answers<IsActiveResponse>) -> (bool, Duration) {
        let said = stream.next().await.unwrap().unwrap().result;
        (said, self.after())
    }

    /// How long ago it was made, as exactly as timers are.
    fn after(&self) -> Duration {
        ms(self.since.elapsed().as_millis().try_into().unwrap())
    }
}

fn object(options: &[(&str, &str)]) -> ScaledObjectRef {
    let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    let (name, namespace) = ("encoder".to_owned(), "ml".to_owned());
    ScaledObjectRef { name, namespace, scaler_metadata: options.collect() }
}

/// A timer is late by a millisecond at most.
#[track_caller]
fn assert_at(seen: Duration, expected: Duration) {
    assert!((expected..=expected + ms(3)).contains(&seen), "{seen:?} is not {expected:?}");
}

#[tokio::test(start_paused = true)]
async fn the_first_poll_waits_for_the_slowest_look_and_no_longer() {
    for takes in [UNHEARD, CLUSTER] {
        let fresh = Fresh::new(takes);
        let object = object(&[]);
        assert_eq!(fresh.value(&object).await.unwrap(), 0.0);
        assert_at(fresh.after(), takes.count + takes.doubt);
        assert!(!fresh.is_active(&object).await.unwrap());
        assert_at(fresh.after(), takes.count + takes.doubt);
    }
}

#[tokio::test(start_paused = true)]
async fn that_jobs_wait_is_told_as_soon_as_they_are_counted() {
    let fresh = Fresh::new(UNHEARD);
    fresh.publish(3, Duration::ZERO).await;
    let object = object(&[]);
    assert!(fresh.is_active(&object).await.unwrap());
    assert_at(fresh.after(), UNHEARD.count);
    let mut stream = fresh.service.stream_is_active(Request::new(object)).await.unwrap();
    let (said, at) = fresh.says(stream.get_mut()).await;
    assert!(said);
    assert_at(at, UNHEARD.count);
}

#[tokio::test(start_paused = true)]
async fn how_many_replicas_are_wanted_is_told_when_all_who_hold_jobs_were_heard() {
    let fresh = Fresh::new(UNHEARD);
    fresh.publish(3, Duration::ZERO).await;
    // The broker does not say what is held; it was held up, and says it late.
    fresh.queue.report(&worker(Phase::Busy, 40)).await.unwrap();
    assert_eq!(fresh.value(&object(&[])).await.unwrap(), 43.0);
    assert_at(fresh.after(), UNHEARD.hear);
}

#[tokio::test(start_paused = true)]
async fn what_depends_on_workers_is_told_when_they_were_heard() {
    let fresh = Fresh::new(UNHEARD);
    fresh.publish(3, Duration::ZERO).await;
    fresh.queue.report(&worker(Phase::Idle, 0)).await.unwrap();
    // Too few to wake a pool, and enough to keep up the one that is there.
    let few = object(&[("activationJobs", "5")]);
    let stream = fresh.service.stream_is_active(Request::new(few.clone())).await.unwrap();
    let mut stream = stream.into_inner();
    let call = async { (fresh.is_active(&few).await.unwrap(), fresh.after()) };
    for (active, at) in [call.await, fresh.says(&mut stream).await] {
        assert!(active);
        assert_at(at, UNHEARD.hear);
    }

    // Its value is of what workers say of their pace, and its activity is not.
    let fresh = Fresh::new(UNHEARD);
    fresh.publish(3, Duration::ZERO).await;
    let objective = object(&[("mode", "slo"), ("sloSeconds", "60")]);
    assert!(fresh.is_active(&objective).await.unwrap());
    assert_at(fresh.after(), UNHEARD.count);
    assert!(fresh.value(&objective).await.unwrap() > 0.0);
    assert_at(fresh.after(), UNHEARD.hear);
    // Of what is held by others nobody knows how much a worker that drains takes with it.
    let fresh = Fresh::new(UNHEARD);
    fresh.publish(3, Duration::ZERO).await;
    fresh.queue.receive(NonZeroUsize::MIN, Duration::ZERO).await.unwrap();
    assert_eq!(fresh.value(&object(&[])).await.unwrap(), 3.0);
    assert_at(fresh.after(), UNHEARD.hear);
}

#[tokio::test(start_paused = true)]
async fn a_look_that_takes_too_long_keeps_a_poll_and_its_repetition_no_longer_than_keda_waits() {
    let fresh = Fresh::new(Takes { hear: ms(4500), ..UNHEARD });
    let object = object(&[]);
    for _ in 0..2 {
        let told = fresh.value(&object).await.unwrap_err();
        assert_eq!(told.code(), Code::Unavailable);
        assert!(told.message().contains("ask again"), "{told}");
    }
    assert!(fresh.is_active(&object).await.is_err());
    assert!(fresh.after() < Duration::from_secs(3), "{:?}", fresh.after());
    sleep(ms(4500)).await;
    assert_eq!(fresh.value(&object).await.unwrap(), 0.0);
}

#[tokio::test(start_paused = true)]
async fn a_look_that_waited_is_true_of_when_it_asked_last() {
    let fresh = Fresh::new(CLUSTER);
    let delay = ms(1500);
    fresh.publish(1, delay).await;
    let object = object(&[]);
    let stream = fresh.service.stream_is_active(Request::new(object.clone())).await.unwrap();
    let mut stream = stream.into_inner();
    // Due at once by a clock that is ahead by what the look waited.
    assert_eq!(fresh.value(&object).await.unwrap(), 0.0);
    assert_at(fresh.after(), CLUSTER.count + CLUSTER.doubt);
    let (said, at) = fresh.says(&mut stream).await;
    // When within an answer it was true nobody knows.
    assert!(said && (delay - CLUSTER.count..=delay + ms(3)).contains(&at), "{at:?}");
    assert_eq!(fresh.value(&object).await.unwrap(), 1.0);
}

#[tokio::test(start_paused = true)]
async fn a_stream_goes_on_where_looks_are_so_slow_that_nothing_is_known_in_between() {
    let args = ScalerArgs { max_age: ms(6000), ..ScalerArgs::default() };
    let fresh = Fresh::with(Takes { count: ms(4900), doubt: ms(0), ..CLUSTER }, &args);
    fresh.publish(1, Duration::ZERO).await;
    fresh.queue.receive(NonZeroUsize::MIN, Duration::ZERO).await.unwrap();
    let stream = fresh.service.stream_is_active(Request::new(object(&[]))).await.unwrap();
    let mut stream = stream.into_inner();
    // Nobody reports, so it is repeated, and each heartbeat at last; all looks are alike.
    let mut n_said = 0;
    while fresh.after() < Duration::from_secs(60) {
        let next = tokio::time::timeout(Duration::from_secs(40), fresh.says(&mut stream)).await;
        assert!(next.expect("it is told again").0);
        n_said += 1;
    }
    assert!(n_said >= 3, "{n_said}");
}

#[tokio::test(start_paused = true)]
async fn who_ends_waits_for_the_farewell_of_a_queue_that_was_retired_a_moment_ago() {
    let args = ScalerArgs { keep: ms(100), ..ScalerArgs::default() };
    let fresh = Fresh::with(UNHEARD, &args);
    assert!(!fresh.is_active(&object(&[])).await.unwrap());
    while !fresh.service.observers.views().is_empty() {
        sleep(ms(1)).await;
    }
    assert_eq!(*fresh.left.borrow(), 0);
    let took = fresh.end().await;
    assert_eq!(*fresh.left.borrow(), 1);
    assert!(took <= UNHEARD.leave, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_never_lets_go_holds_up_who_ends_for_two_seconds() {
    let args = ScalerArgs { keep: ms(100), ..ScalerArgs::default() };
    for is_retired in [false, true] {
        let fresh = Fresh::with(Takes { leave: Duration::MAX, ..CLUSTER }, &args);
        assert!(!fresh.is_active(&object(&[])).await.unwrap());
        while is_retired && !fresh.service.observers.views().is_empty() {
            sleep(ms(1)).await;
        }
        let took = fresh.end().await;
        assert!((ms(1998)..=ms(2003)).contains(&took), "{took:?} {is_retired}");
        assert_eq!(*fresh.left.borrow(), 0);
    }
}
