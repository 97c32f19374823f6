//! What the observers of all queues share, the list of them included.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ebb_telemetry::Traces;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::metrics::Metrics;
use crate::place::Place;
use crate::profiles::Profiles;
use crate::site::Connect;
use crate::view::View;

/// What the observers share.
pub(crate) struct Shared {
    pub(crate) connect: Arc<dyn Connect>,
    pub(crate) limits: Limits,
    pub(crate) metrics: Metrics,
    pub(crate) traces: Traces,
    pub(crate) profiles: watch::Receiver<Arc<Profiles>>,
    pub(crate) stop: CancellationToken,
    pub(crate) queues: Mutex<HashMap<Place, Entry>>,
    /// The observers and their farewells, also of queues that are in the list no more.
    pub(crate) tasks: TaskTracker,
}

/// How long things last, and how many there are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) max_age: Duration,
    pub(crate) refresh: Duration,
    pub(crate) keep: Duration,
    pub(crate) max_queues: usize,
    pub(crate) max_queues_per_namespace: usize,
}

/// A queue that is watched.
pub(crate) struct Entry {
    /// The namespace that asked first.
    pub(crate) namespace: String,
    pub(crate) view: watch::Sender<View>,
    pub(crate) since: Instant,
    pub(crate) asked: Instant,
    pub(crate) observer: JoinHandle<()>,
}

impl Shared {
    /// Forgets a queue that nobody has asked about for a while; true when it did.
    pub(crate) fn retire(&self, place: &Place) -> bool {
        let mut queues = self.lock();
        let unused = queues.get(place).is_none_or(|entry| {
            entry.view.receiver_count() == 0 && entry.asked.elapsed() > self.limits.keep
        });
        if unused {
            queues.remove(place);
        }
        unused
    }

    /// Forgets a queue, whoever watches it.
    pub(crate) fn forget(&self, place: &Place) {
        self.lock().remove(place);
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, HashMap<Place, Entry>> {
        // Each change of the map is a single step, so it is whole even if its holder panicked.
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
