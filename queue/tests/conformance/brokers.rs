//! The brokers that are held to the promises, each with a clock that the suite can move.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use ebb_queue::memory::MemoryQueue;
use ebb_queue::{Behavior, Clock, OpenOptions, Queue, QueueUrl, Timestamp, TokioClock, open};

use crate::fixture::Fixture;

/// No promise takes this long; one that does is broken.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs a promise on the memory broker under paused time.
pub fn on_memory(promise: impl AsyncFnOnce(&dyn Fixture)) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().start_paused(true).build().unwrap().block_on(async {
        let clock = TokioClock::starting_at("2030-01-31T12:00:00Z".parse().unwrap());
        let memory = Memory { clock, queue: Mutex::default() };
        // Paused time runs ahead when nobody moves, so the limit is far away.
        tokio::time::timeout(LIMIT * 60, promise(&memory)).await.expect("the promise is kept");
    });
}

/// Runs a promise on a SQLite file in real time, with a clock that can be set forward.
pub fn on_sqlite(promise: impl AsyncFnOnce(&dyn Fixture)) {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(2).enable_all().build().unwrap().block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let url = QueueUrl::sqlite(folder.path().join("queue.db"));
        let sqlite =
            Sqlite { clock: Arc::default(), url: Mutex::new(url), n_queues: AtomicI64::new(0) };
        tokio::time::timeout(LIMIT, promise(&sqlite)).await.expect("the promise is kept");
    });
}

struct Memory {
    clock: TokioClock,
    queue: Mutex<Option<MemoryQueue>>,
}

impl Memory {
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
    async fn fresh_with(&self, behavior: Behavior) -> Queue {
        let queue = self.open(&behavior);
        *self.queue.lock().unwrap() = Some(queue.clone());
        Arc::new(queue)
    }

    async fn again(&self, worker: &str) -> Queue {
        let queue = self.queue.lock().unwrap();
        Arc::new(queue.as_ref().expect("a queue was made").as_worker(worker))
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

struct Sqlite {
    clock: Arc<AheadClock>,
    url: Mutex<QueueUrl>,
    n_queues: AtomicI64,
}

/// The wall clock, set forward by milliseconds.
#[derive(Debug, Default)]
struct AheadClock(AtomicI64);

impl Clock for AheadClock {
    fn now(&self) -> Timestamp {
        Timestamp::now() + Duration::from_millis(self.0.load(Ordering::SeqCst).cast_unsigned())
    }
}

impl Sqlite {
    async fn open(&self, url: QueueUrl, worker: &str) -> Queue {
        let options = OpenOptions {
            worker: worker.to_owned(),
            clock: self.clock.clone(),
            ..OpenOptions::default()
        };
        open(&url, options).await.unwrap()
    }
}

#[async_trait]
impl Fixture for Sqlite {
    async fn fresh_with(&self, behavior: Behavior) -> Queue {
        let name = format!("queue-{}", self.n_queues.fetch_add(1, Ordering::SeqCst));
        let url = {
            let mut url = self.url.lock().unwrap();
            *url = QueueUrl { behavior, ..url.with_queue(&name).unwrap() };
            url.clone()
        };
        self.open(url, "one").await
    }

    async fn again(&self, worker: &str) -> Queue {
        let url = self.url.lock().unwrap().clone();
        self.open(url, worker).await
    }

    async fn beside(&self) -> Queue {
        let url = self.url.lock().unwrap().with_queue("beside").unwrap();
        self.open(url, "one").await
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    async fn pass(&self, span: Duration) {
        let millis = i64::try_from(span.as_millis()).unwrap();
        self.clock.0.fetch_add(millis, Ordering::SeqCst);
    }
}
