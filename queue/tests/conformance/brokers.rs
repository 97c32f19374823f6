//! The brokers that are held to the promises, each with a time that the suite can move or awaits.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use ebb_queue::memory::MemoryQueue;
use ebb_queue::{
    Behavior, Clock, ErrorKind, Missing, OpenOptions, Queue, QueueUrl, Results, SystemClock,
    Timestamp, TokioClock, open,
};
use tokio::time::Instant;

use crate::fixture::Fixture;
use crate::mail::{Mailbox, mailbox};
use crate::plain::Plain;

pub struct Memory {
    clock: TokioClock,
    queue: Mutex<Option<MemoryQueue>>,
}

impl Memory {
    pub fn new(clock: TokioClock) -> Self {
        Self { clock, queue: Mutex::default() }
    }

    fn open(&self, behavior: &Behavior) -> MemoryQueue {
        let options = OpenOptions {
            worker: "one".to_owned(),
            clock: Arc::new(self.clock),
            ..OpenOptions::default()
        };
        MemoryQueue::new(behavior, options)
    }
}

#[async_trait]
impl Fixture for Memory {
    fn kind(&self) -> &'static str {
        "memory"
    }

    async fn fresh_with(&self, behavior: Behavior) -> Queue {
        let queue = self.open(&behavior);
        *self.queue.lock().unwrap() = Some(queue.clone());
        Arc::new(queue)
    }

    async fn again(&self, worker: &str) -> Queue {
        let queue = self.queue.lock().unwrap();
        Arc::new(queue.as_ref().expect("a queue was made").as_worker(worker))
    }

    async fn named(&self, _name: &str, _missing: Missing) -> Option<ebb_queue::Result<Queue>> {
        None
    }

    async fn mailbox(&self) -> Option<Mailbox> {
        None
    }

    async fn plain(&self) -> Option<Plain> {
        None
    }

    async fn beside(&self) -> Queue {
        Arc::new(self.open(&self.behavior()))
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    async fn pass(&self, span: Duration) {
        tokio::time::sleep(span).await;
    }
}

/// A broker behind a URL: a file or a server.
pub struct Served {
    kind: &'static str,
    time: Time,
    /// The last queue that was opened fresh.
    url: Mutex<QueueUrl>,
    results: Option<QueueUrl>,
}

/// How time passes for a broker.
pub enum Time {
    /// It goes by the clock of its handle, which is set forward.
    Ahead(Arc<AheadClock>),
    /// It has its own, so the promises wait.
    Real {
        /// Short.
        behavior: Behavior,
        /// How late a count may be.
        lag: Duration,
    },
}

impl Time {
    pub fn ahead() -> Self {
        Self::Ahead(Arc::default())
    }
}

/// The wall clock, set forward by milliseconds.
#[derive(Debug, Default)]
pub struct AheadClock(AtomicI64);

impl Clock for AheadClock {
    fn now(&self) -> Timestamp {
        Timestamp::now() + Duration::from_millis(self.0.load(Ordering::SeqCst).cast_unsigned())
    }
}

impl Served {
    pub fn new(kind: &'static str, url: QueueUrl, time: Time) -> Self {
        Self { kind, time, url: Mutex::new(url), results: None }
    }

    /// The same, with the answers in another place.
    pub fn with_results(self, url: QueueUrl) -> Self {
        Self { results: Some(url), ..self }
    }

    async fn open(
        &self,
        url: &QueueUrl,
        worker: &str,
        missing: Missing,
    ) -> ebb_queue::Result<Queue> {
        let clock: Arc<dyn Clock> = match &self.time {
            Time::Ahead(clock) => clock.clone(),
            Time::Real { .. } => Arc::new(SystemClock),
        };
        let mut options =
            OpenOptions { worker: worker.to_owned(), clock, missing, ..OpenOptions::default() };
        // A new queue is a dozen things to make, on three servers that each wait for their disk.
        options.connect_timeout = Duration::from_secs(60);
        if let Some(results) = &self.results {
            let behavior = url.behavior.clone();
            let results = QueueUrl { behavior, ..results.with_queue(&url.queue)? };
            options.results = Some(Results(open(&results, options.clone()).await?));
        }
        open(url, options).await
    }

    /// The same, asked again while a broker with a lag says that it cannot: one that makes many
    /// queues at once may refuse one of them for the moment.
    async fn opened(
        &self,
        url: &QueueUrl,
        worker: &str,
        missing: Missing,
    ) -> ebb_queue::Result<Queue> {
        let end = Instant::now() + self.lag();
        loop {
            let opened = self.open(url, worker, missing).await;
            let cannot = opened.as_ref().is_err_and(|error| error.kind() == ErrorKind::Unavailable);
            if !cannot || Instant::now() >= end {
                return opened;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

#[async_trait]
impl Fixture for Served {
    fn kind(&self) -> &'static str {
        self.kind
    }

    fn behavior(&self) -> Behavior {
        match &self.time {
            Time::Ahead(_) => crate::fixture::behavior(),
            Time::Real { behavior, .. } => behavior.clone(),
        }
    }

    async fn fresh_with(&self, behavior: Behavior) -> Queue {
        let name = unused_name();
        let url = {
            let mut url = self.url.lock().unwrap();
            *url = QueueUrl { behavior, ..url.with_queue(&name).unwrap() };
            url.clone()
        };
        self.opened(&url, "one", Missing::Create).await.unwrap()
    }

    async fn again(&self, worker: &str) -> Queue {
        let url = self.url.lock().unwrap().clone();
        self.opened(&url, worker, Missing::Create).await.unwrap()
    }

    async fn named(&self, name: &str, missing: Missing) -> Option<ebb_queue::Result<Queue>> {
        let url = self.url.lock().unwrap().with_queue(name).unwrap();
        let url = QueueUrl { behavior: self.behavior(), ..url };
        Some(self.opened(&url, "one", missing).await)
    }

    async fn mailbox(&self) -> Option<Mailbox> {
        let url = self.url.lock().unwrap().clone();
        Some(mailbox(&url).await)
    }

    async fn plain(&self) -> Option<Plain> {
        let url = self.url.lock().unwrap().clone();
        Plain::connect(&url).await
    }

    async fn beside(&self) -> Queue {
        let url = self.url.lock().unwrap().with_queue(&unused_name()).unwrap();
        self.opened(&url, "one", Missing::Create).await.unwrap()
    }

    fn now(&self) -> Timestamp {
        match &self.time {
            Time::Ahead(clock) => clock.now(),
            Time::Real { .. } => Timestamp::now(),
        }
    }

    async fn pass(&self, span: Duration) {
        match &self.time {
            Time::Ahead(clock) => {
                let millis = i64::try_from(span.as_millis()).unwrap();
                clock.0.fetch_add(millis, Ordering::SeqCst);
            }
            Time::Real { .. } => tokio::time::sleep(span).await,
        }
    }

    fn lag(&self) -> Duration {
        match &self.time {
            Time::Ahead(_) => Duration::ZERO,
            Time::Real { lag, .. } => *lag,
        }
    }
}

/// A name that no queue of this process has.
pub fn unused_name() -> String {
    static N_NAMES: AtomicU64 = AtomicU64::new(0);
    format!("queue-{}", N_NAMES.fetch_add(1, Ordering::SeqCst))
}
