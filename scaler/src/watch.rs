//! One observer per profile and source, however many triggers name it, and what it last saw.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ebb_queue::{ErrorKind, Timestamp, Warning};
use ebb_telemetry::Traces;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::ScalerArgs;
use crate::decision::Snapshot;
use crate::metrics::Metrics;
use crate::observe::{Connect, Observer};
use crate::profiles::{Place, Profile, Profiles};
use crate::trace::LookSpan;

/// KEDA gives GetMetricSpec, GetMetrics and IsActive 3 s together: two waits must fit easily.
const FIRST_WAIT: Duration = Duration::from_millis(750);

/// The observers of all queues; clones share them. Each runs from the first question about its
/// queue until nobody has asked for a while.
#[derive(Clone)]
pub(crate) struct Observers(Arc<Shared>);

/// What the observers share.
pub(crate) struct Shared {
    pub(crate) connect: Arc<dyn Connect>,
    pub(crate) limits: Limits,
    pub(crate) metrics: Metrics,
    pub(crate) traces: Traces,
    profiles: watch::Receiver<Arc<Profiles>>,
    stop: CancellationToken,
    queues: Mutex<HashMap<Place, Entry>>,
}

/// How long things last, and how many there are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) max_age: Duration,
    pub(crate) refresh: Duration,
    keep: Duration,
    max_queues: usize,
    max_queues_per_namespace: usize,
}

struct Entry {
    /// The namespace that asked first.
    namespace: String,
    view: watch::Sender<View>,
    since: Instant,
    asked: Instant,
    observer: JoinHandle<()>,
}

/// What is known of a queue.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// The last good look.
    pub(crate) look: Option<Look>,
    /// Why there is no newer one.
    pub(crate) failed: Option<ErrorKind>,
    /// What is missing on the broker, in words for whoever wrote the trigger.
    pub(crate) missing: Option<Arc<str>>,
    /// Settings of the broker that are weaker than the promises.
    pub(crate) warnings: Arc<[Warning]>,
}

/// A snapshot, and when it was taken.
#[derive(Debug, Clone)]
pub(crate) struct Look {
    pub(crate) snapshot: Arc<Snapshot>,
    /// By our clock, when the broker was asked.
    pub(crate) at: Instant,
    /// Its span, when traces are on.
    pub(crate) span: Option<LookSpan>,
}

/// Why nothing can be said about a queue. It is never said that there is nothing in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unknown {
    /// The first look is still under way.
    #[error("the broker has not been seen yet; ask again")]
    NotYet,
    /// The first look failed. Its kind and nothing else: KEDA's log is not ours to fill.
    #[error("the broker was never reached ({0}); see the scaler's log")]
    Never(ErrorKind),
    /// The last good look is too old.
    #[error("the broker was last seen {} s ago; see the scaler's log", .0.as_secs())]
    TooOld(Duration),
    /// What the trigger names is not there.
    #[error("{0}")]
    Missing(Arc<str>),
    /// No observer can be started.
    #[error("{0} queues are watched already; raise --max-queues or name fewer in triggers")]
    TooManyQueues(usize),
    /// No observer can be started for this namespace.
    #[error(
        "{0} queues are watched for this namespace already; raise --max-queues-per-namespace or \
         name fewer in its triggers"
    )]
    TooManyOfNamespace(usize),
    /// The scaler ends.
    #[error("the scaler is shutting down")]
    Stopping,
}

impl View {
    /// Whether the last look was answered.
    pub(crate) fn answers(&self) -> bool {
        self.look.is_some() && self.failed.is_none()
    }

    /// The last good look and the broker's time now, if that look still counts.
    pub(crate) fn known(
        &self,
        now: Instant,
        max_age: Duration,
    ) -> Result<(&Snapshot, Timestamp), Unknown> {
        let missing = self.missing.clone().map(Unknown::Missing);
        let Some(look) = &self.look else {
            if let Some(missing) = missing {
                return Err(missing);
            }
            return Err(self.failed.map_or(Unknown::NotYet, Unknown::Never));
        };
        let age = now.saturating_duration_since(look.at);
        if age > max_age {
            return Err(missing.unwrap_or(Unknown::TooOld(age)));
        }
        Ok((&look.snapshot, look.snapshot.depth.as_of + age))
    }
}

impl Observers {
    pub(crate) fn new(
        connect: Arc<dyn Connect>,
        profiles: watch::Receiver<Arc<Profiles>>,
        args: &ScalerArgs,
        (metrics, traces): (Metrics, Traces),
        stop: CancellationToken,
    ) -> Self {
        let limits = Limits {
            max_age: args.max_age,
            refresh: args.refresh,
            keep: args.keep,
            max_queues: args.max_queues,
            max_queues_per_namespace: args.max_queues_per_namespace,
        };
        let queues = Mutex::default();
        Self(Arc::new(Shared { connect, limits, metrics, traces, profiles, stop, queues }))
    }

    /// What is known of a queue, kept up to date; starts its observer where there is none, which
    /// then counts for the namespace that asks.
    pub(crate) fn watch(
        &self,
        place: &Place,
        namespace: &str,
    ) -> Result<watch::Receiver<View>, Unknown> {
        let shared = &self.0;
        let mut queues = shared.lock();
        if shared.stop.is_cancelled() {
            return Err(Unknown::Stopping);
        }
        let running = queues.get_mut(place).filter(|entry| !entry.observer.is_finished());
        if let Some(entry) = running {
            entry.asked = Instant::now();
            return Ok(entry.view.subscribe());
        }
        // One that has ended, by a bug of ours, is replaced below, and takes nobody's room.
        queues.retain(|_, entry| !entry.observer.is_finished());
        if queues.len() >= shared.limits.max_queues {
            return Err(Unknown::TooManyQueues(queues.len()));
        }
        let of_namespace = queues.values().filter(|entry| entry.namespace == namespace).count();
        if of_namespace >= shared.limits.max_queues_per_namespace {
            return Err(Unknown::TooManyOfNamespace(of_namespace));
        }
        let (view, receiver) = watch::channel(View::default());
        let observer = Observer::new(place, Arc::clone(shared), view.clone());
        let (stop, profiles) = (shared.stop.clone(), shared.profiles.clone());
        let of = place.clone();
        let observer = tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = attend(observer, of, profiles) => {}
            }
        });
        let (now, namespace) = (Instant::now(), namespace.to_owned());
        queues.insert(place.clone(), Entry { namespace, view, since: now, asked: now, observer });
        Ok(receiver)
    }

    /// What is known of a queue now; waits a little for the first look, and for no other.
    pub(crate) async fn view(&self, place: &Place, namespace: &str) -> Result<View, Unknown> {
        let mut receiver = self.watch(place, namespace)?;
        let looked = receiver.wait_for(|view| view.look.is_some() || view.failed.is_some());
        // Should time run out or the observer end, the view itself says that nothing is known.
        drop(tokio::time::timeout(FIRST_WAIT, looked).await);
        let view = receiver.borrow().clone();
        Ok(view)
    }

    /// What is known of all queues that are watched, and since when they are.
    pub(crate) fn views(&self) -> Vec<(Place, Instant, View)> {
        let queues = self.0.lock();
        let view = |(place, entry): (&Place, &Entry)| {
            (place.clone(), entry.since, entry.view.borrow().clone())
        };
        queues.iter().map(view).collect()
    }

    /// What is known of a queue, if it is watched; this counts as no question about it.
    pub(crate) fn peek(&self, place: &Place) -> Option<View> {
        Some(self.0.lock().get(place)?.view.borrow().clone())
    }

    /// Where spans go.
    pub(crate) fn traces(&self) -> &Traces {
        &self.0.traces
    }

    /// How old a look may be.
    pub(crate) fn max_age(&self) -> Duration {
        self.0.limits.max_age
    }

    /// Waits until all observers have ended; they do when `stop` is cancelled.
    pub(crate) async fn join(&self) {
        let entries: Vec<Entry> = self.0.lock().drain().map(|(_, entry)| entry).collect();
        for entry in entries {
            if let Err(error) = entry.observer.await {
                tracing::error!(%error, "observer of a queue failed");
            }
        }
    }
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

    fn lock(&self) -> MutexGuard<'_, HashMap<Place, Entry>> {
        // Each change of the map is a single step, so it is whole even if its holder panicked.
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Observes a queue where its profile says it is, and where it is then, whenever that changes.
/// What was seen last counts on while it is not too old. Ends with the profile.
async fn attend(
    mut observer: Observer,
    place: Place,
    mut profiles: watch::Receiver<Arc<Profiles>>,
) {
    loop {
        let now = Arc::clone(&profiles.borrow_and_update());
        let Some((profile, url)) = now.url(&place) else { return observer.dismiss() };
        tokio::select! {
            () = observer.run(&url) => return,
            () = moved(&mut profiles, profile) => {
                tracing::info!(profile = %place.profile, queue = %place.source, "profile changed");
            }
        }
    }
}

/// Returns when a profile leads elsewhere, or by other credentials, or is gone.
async fn moved(profiles: &mut watch::Receiver<Arc<Profiles>>, profile: &Arc<Profile>) {
    let leads_as_before = |now: &Arc<Profiles>| {
        let now = now.by_name.get(&*profile.name);
        now.is_some_and(|now| now.url == profile.url && now.files == profile.files)
    };
    if profiles.wait_for(|now| !leads_as_before(now)).await.is_err() {
        // Nobody can change it any more.
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use ebb_queue::{Depth, ErrorKind, Timestamp};
    use tokio::time::Instant;

    use super::{Look, Unknown, View};
    use crate::decision::Snapshot;
    use crate::learn::Learned;

    #[test]
    fn a_look_counts_until_it_is_too_old_and_nothing_is_ever_guessed() {
        let max_age = Duration::from_secs(15);
        let at = Instant::now();
        let failed = Some(ErrorKind::Unavailable);
        let nothing = View::default();
        assert_eq!(nothing.known(at, max_age).unwrap_err(), Unknown::NotYet);
        let never = View { failed, ..View::default() };
        let told = never.known(at, max_age).unwrap_err();
        assert_eq!(told, Unknown::Never(ErrorKind::Unavailable));

        let depth = Depth::empty(Timestamp::UNIX_EPOCH);
        let snapshot =
            Arc::new(Snapshot { depth, workers: Vec::new(), learned: Learned::default() });
        let view =
            View { look: Some(Look { snapshot, at, span: None }), failed, ..View::default() };
        let (_, now) = view.known(at + max_age, max_age).unwrap();
        assert_eq!(now, Timestamp::UNIX_EPOCH + max_age);
        let later = max_age + Duration::from_millis(1);
        assert_eq!(view.known(at + later, max_age).unwrap_err(), Unknown::TooOld(later));
    }
}
