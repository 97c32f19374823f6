//! One observer per profile and source, however many triggers name it, and what it last saw.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use ebb_queue::QueueUrl;
use ebb_telemetry::Traces;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::ScalerArgs;
use crate::metrics::Metrics;
use crate::observe::Observer;
use crate::place::Place;
use crate::profiles::{Profile, Profiles};
use crate::shared::{Entry, Limits, Shared};
use crate::site::Connect;
use crate::view::{Unknown, View};

/// From the first question about a queue on, its first look is waited for so long. KEDA gives
/// GetMetricSpec, GetMetrics and IsActive 3 s together where the HPA asks, and who asks again after an
/// error is answered at once. What is new on RabbitMQ has heard who holds its jobs after 1.2 s, and a
/// NATS cluster is believed after 1 s that it has none; the rest is for the connection.
const FIRST_LOOK: Duration = Duration::from_millis(2250);

/// The observers of all queues; clones share them. Each runs from the first question about its
/// queue until nobody has asked for a while.
#[derive(Clone)]
pub(crate) struct Observers(Arc<Shared>);

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
        let (queues, tasks) = (Mutex::default(), TaskTracker::new());
        Self(Arc::new(Shared { connect, limits, metrics, traces, profiles, stop, queues, tasks }))
    }

    /// What is known of a queue, kept up to date; starts its observer where there is none, which
    /// then counts for the namespace that asks.
    pub(crate) fn watch(
        &self,
        place: &Place,
        namespace: &str,
    ) -> Result<watch::Receiver<View>, Unknown> {
        Ok(self.ask(place, namespace)?.0)
    }

    /// The same, with since when it is watched.
    fn ask(
        &self,
        place: &Place,
        namespace: &str,
    ) -> Result<(watch::Receiver<View>, Instant), Unknown> {
        let shared = &self.0;
        let mut queues = shared.lock();
        if shared.stop.is_cancelled() {
            return Err(Unknown::Stopping);
        }
        let running = queues.get_mut(place).filter(|entry| !entry.observer.is_finished());
        if let Some(entry) = running {
            entry.asked = Instant::now();
            return Ok((entry.view.subscribe(), entry.since));
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
        let mut observer = Observer::new(place, Arc::clone(shared), view.clone());
        let (stop, profiles) = (shared.stop.clone(), shared.profiles.clone());
        let of = place.clone();
        let observer = shared.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = attend(&mut observer, of, profiles) => {}
            }
            observer.leave();
        });
        let (now, namespace) = (Instant::now(), namespace.to_owned());
        queues.insert(place.clone(), Entry { namespace, view, since: now, asked: now, observer });
        Ok((receiver, now))
    }

    /// What is known of a queue now; waits a little for the first look, and for no other. A part of it
    /// will do that suffices.
    pub(crate) async fn view(
        &self,
        place: &Place,
        namespace: &str,
        suffices: impl Fn(&View) -> bool,
    ) -> Result<View, Unknown> {
        let (mut receiver, since) = self.ask(place, namespace)?;
        let is_enough =
            |view: &View| view.look.is_some() || view.failed.is_some() || suffices(view);
        // Should time run out or the observer end, the view itself says that nothing is known.
        drop(timeout_at(since + FIRST_LOOK, receiver.wait_for(is_enough)).await);
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

    /// Waits until all observers have ended and left their brokers; they do when `stop` is cancelled.
    pub(crate) async fn join(&self) {
        let entries: Vec<Entry> = self.0.lock().drain().map(|(_, entry)| entry).collect();
        for entry in entries {
            if let Err(error) = entry.observer.await {
                tracing::error!(%error, "observer of a queue failed");
            }
        }
        // Nothing is begun after `stop`; what was retired before may still be leaving.
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}

/// Observes a queue where its profile says it is, and where it is then, whenever that changes.
/// What was seen last counts on while it is not too old; what was learned of arrivals and waiting
/// does not where the address is another, and does where only a secret is. Ends with the profile.
async fn attend(
    observer: &mut Observer,
    place: Place,
    mut profiles: watch::Receiver<Arc<Profiles>>,
) {
    let mut before: Option<QueueUrl> = None;
    loop {
        let now = Arc::clone(&profiles.borrow_and_update());
        let Some((profile, url)) = now.url(&place) else { return observer.dismiss() };
        if before.replace(url.clone()).is_some_and(|before| before != url) {
            observer.move_on();
        }
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
