//! What is known of each queue and profile, read when the metrics page is.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ebb_queue::{Phase, Source};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, IntGaugeVec, Opts};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::explain::{Demand, Explain};
use crate::learn::{Arrivals, Learned};
use crate::metrics::int_gauge;
use crate::place::Place;
use crate::profiles::Profiles;
use crate::readiness::{Standing, standings};
use crate::snapshot::oldest;
use crate::trigger::Low;
use crate::view::{Look, View};
use crate::watch::Observers;

/// Reads the views of the observers when it is scraped, so that a retired queue leaves no trace.
pub(crate) struct QueueFigures {
    observers: Observers,
    profiles: watch::Receiver<Arc<Profiles>>,
    explain: Explain,
    /// Triggers that were not asked for as long are of the past.
    keep: Duration,
    gauges: Mutex<Gauges>,
    descs: Vec<Desc>,
}

pub(crate) struct Gauges {
    profile_up: IntGaugeVec,
    depth: IntGaugeVec,
    workers: IntGaugeVec,
    oldest: GaugeVec,
    age: GaugeVec,
    up: IntGaugeVec,
    warnings: IntGaugeVec,
    lessons: Lessons,
    demands: Demands,
}

impl Gauges {
    pub(crate) fn new() -> prometheus::Result<Self> {
        let (depth, age) = ("scaler_queue_depth", "scaler_snapshot_age_seconds");
        let phase = &["profile", "queue", "phase"];
        let place = &["profile", "queue"];
        Ok(Self {
            profile_up: int_gauge(
                "scaler_profile_up",
                "1 while a queue of the profile is known, or its broker answers that there is none, 0 \
                 when neither.",
                &["profile"],
            )?,
            depth: int_gauge(depth, "Jobs, as last seen.", &["profile", "queue", "state"])?,
            workers: int_gauge("scaler_queue_workers", "Workers that report.", phase)?,
            oldest: GaugeVec::new(
                Opts::new(
                    "scaler_queue_oldest_seconds",
                    "How long the oldest ready job has waited.",
                ),
                place,
            )?,
            age: GaugeVec::new(Opts::new(age, "Age of the last look at a queue."), place)?,
            up: int_gauge(
                "scaler_broker_up",
                "1 when the last look was answered, also that there is no such queue.",
                place,
            )?,
            warnings: int_gauge(
                "scaler_broker_warnings",
                "Settings of the broker that are weaker than the promises, and `no_push` where arrivals \
                 at a foreign stream are looked for once a second.",
                &["profile", "queue", "code"],
            )?,
            lessons: Lessons::new()?,
            demands: Demands::new()?,
        })
    }

    pub(crate) fn each(&self) -> impl Iterator<Item = &dyn Collector> {
        let seen: [&dyn Collector; 7] = [
            &self.profile_up,
            &self.depth,
            &self.workers,
            &self.oldest,
            &self.age,
            &self.up,
            &self.warnings,
        ];
        seen.into_iter().chain(self.lessons.each()).chain(self.demands.each())
    }

    fn reset(&self) {
        self.profile_up.reset();
        self.depth.reset();
        self.workers.reset();
        self.oldest.reset();
        self.age.reset();
        self.up.reset();
        self.warnings.reset();
        self.lessons.reset();
        self.demands.reset();
    }

    fn show(&self, place: &Place, view: &View, now: Instant) {
        let (profile, queue) = (&*place.profile, &*place.source.to_string());
        self.up.with_label_values(&[profile, queue]).set(view.answers().into());
        for warning in view.warnings.iter() {
            self.warnings.with_label_values(&[profile, queue, warning.code]).set(1);
        }
        let Some(look) = &view.look else { return };
        let age = now.saturating_duration_since(look.at);
        self.age.with_label_values(&[profile, queue]).set(age.as_secs_f64());
        if let Some(oldest) = oldest_by_now(look, Low::Counts, now) {
            self.oldest.with_label_values(&[profile, queue]).set(oldest);
        }
        self.lessons.set(place, &look.snapshot.learned);
        let depth = &look.snapshot.depth;
        let mut states = vec![("ready", depth.ready), ("in_flight", depth.in_flight)];
        let is_ours = matches!(place.source, Source::Queue(_));
        if is_ours {
            states.extend([("delayed", depth.delayed), ("dead", depth.dead)]);
        }
        for (state, n_jobs) in states {
            let n_jobs = i64::try_from(n_jobs).unwrap_or(i64::MAX);
            self.depth.with_label_values(&[profile, queue, state]).set(n_jobs);
        }
        // Of workers that are not Ebb's nothing is known, and that is not that there are none.
        let phases: &[_] = if is_ours { &["starting", "idle", "busy", "draining"] } else { &[] };
        for phase in phases {
            self.workers.with_label_values(&[profile, queue, phase]).set(0);
        }
        for worker in &look.snapshot.workers {
            let phase = phase_name(worker.phase);
            self.workers.with_label_values(&[profile, queue, phase]).inc();
        }
    }
}

/// For how many seconds the oldest ready job has waited by now, see [`oldest`].
fn oldest_by_now(look: &Look, low: Low, now: Instant) -> Option<f64> {
    let age = now.saturating_duration_since(look.at);
    let waited = oldest(&look.snapshot, low, look.snapshot.depth.as_of + age)?;
    Some(waited.as_secs_f64())
}

/// What triggers ask for.
struct Demands {
    objective: GaugeVec,
    oldest: GaugeVec,
    replicas: GaugeVec,
}

impl Demands {
    fn new() -> prometheus::Result<Self> {
        let place = &["profile", "queue"];
        let objective = Opts::new(
            "scaler_queue_objective_seconds",
            "The shortest sloSeconds of the triggers on a queue.",
        );
        let oldest = Opts::new(
            "scaler_queue_objective_oldest_seconds",
            "How long the oldest ready job that a sloSeconds is for has waited.",
        );
        let replicas = Opts::new(
            "scaler_queue_wanted_replicas",
            "Replicas that follow from what KEDA was told last, before its limits.",
        );
        Ok(Self {
            objective: GaugeVec::new(objective, place)?,
            oldest: GaugeVec::new(oldest, place)?,
            replicas: GaugeVec::new(replicas, place)?,
        })
    }

    fn each(&self) -> [&dyn Collector; 3] {
        [&self.objective, &self.oldest, &self.replicas]
    }

    fn reset(&self) {
        self.objective.reset();
        self.oldest.reset();
        self.replicas.reset();
    }

    fn set(&self, place: &Place, demand: &Demand, look: Option<&Look>, now: Instant) {
        let (profile, queue) = (&*place.profile, &*place.source.to_string());
        let oldest = demand.low.zip(look).and_then(|(low, look)| oldest_by_now(look, low, now));
        let figures = [
            (&self.objective, demand.objective),
            (&self.oldest, oldest),
            (&self.replicas, demand.replicas),
        ];
        for (gauge, figure) in figures {
            if let Some(figure) = figure {
                gauge.with_label_values(&[profile, queue]).set(figure);
            }
        }
    }
}

/// A phase as a label.
pub(crate) fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Starting => "starting",
        Phase::Idle => "idle",
        Phase::Busy => "busy",
        Phase::Draining => "draining",
    }
}

/// What the learner says.
struct Lessons {
    arrivals: GaugeVec,
    throughput: GaugeVec,
    service: GaugeVec,
    cold_start: GaugeVec,
    slots: GaugeVec,
}

impl Lessons {
    fn new() -> prometheus::Result<Self> {
        let gauge = |what: &str, help: &str, labels: &[&str]| {
            GaugeVec::new(Opts::new(format!("scaler_queue_{what}"), help), labels)
        };
        let place = &["profile", "queue"];
        Ok(Self {
            arrivals: gauge(
                "arrivals_per_second",
                "Jobs that arrive.",
                &["profile", "queue", "over"],
            )?,
            throughput: gauge(
                "throughput_per_second",
                "Jobs that a loaded replica completes, as learned.",
                place,
            )?,
            service: gauge(
                "service_seconds",
                "From receiving a job to settling it, as learned.",
                place,
            )?,
            cold_start: gauge(
                "cold_start_seconds",
                "From the start of a worker to its readiness, as learned.",
                place,
            )?,
            slots: gauge("replica_slots", "Jobs that a replica runs at once, as learned.", place)?,
        })
    }

    fn each(&self) -> [&dyn Collector; 5] {
        [&self.arrivals, &self.throughput, &self.service, &self.cold_start, &self.slots]
    }

    fn reset(&self) {
        for gauge in [&self.throughput, &self.service, &self.cold_start, &self.slots] {
            gauge.reset();
        }
        self.arrivals.reset();
    }

    fn set(&self, place: &Place, learned: &Learned) {
        let (profile, queue) = (&*place.profile, &*place.source.to_string());
        let Arrivals { fast, slow } = learned.arrivals;
        self.arrivals.with_label_values(&[profile, queue, "seconds"]).set(fast);
        self.arrivals.with_label_values(&[profile, queue, "minutes"]).set(slow);
        let loaded = learned.throughput.seen().filter(|seconds| *seconds > 0.0);
        let throughput = loaded.or(learned.fitted).map(f64::recip);
        let figures = [
            (&self.throughput, throughput.filter(|rate| rate.is_finite())),
            (&self.service, learned.service.seen()),
            (&self.cold_start, learned.cold_start),
            (&self.slots, learned.slots),
        ];
        for (gauge, figure) in figures {
            if let Some(figure) = figure {
                gauge.with_label_values(&[profile, queue]).set(figure);
            }
        }
    }
}

impl QueueFigures {
    pub(crate) fn new(
        observers: Observers,
        profiles: watch::Receiver<Arc<Profiles>>,
        explain: Explain,
        keep: Duration,
    ) -> prometheus::Result<Self> {
        let gauges = Gauges::new()?;
        let descs = gauges.each().flat_map(Collector::desc).cloned().collect();
        Ok(Self { observers, profiles, explain, keep, gauges: Mutex::new(gauges), descs })
    }
}

impl Collector for QueueFigures {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let gauges = self.gauges.lock().unwrap_or_else(PoisonError::into_inner);
        gauges.reset();
        let (now, views) = (Instant::now(), self.observers.views());
        let profiles = Arc::clone(&self.profiles.borrow());
        let standings = standings(&profiles, &views, now, self.observers.max_age());
        for (name, standing) in standings {
            // Of one that nobody asks for, nothing can be said.
            let up = match standing {
                Standing::Unwatched | Standing::Waiting => continue,
                Standing::Up { .. } => 1,
                Standing::Down(_) => 0,
            };
            gauges.profile_up.with_label_values(&[&*name]).set(up);
        }
        let demands = self.explain.demands(self.keep);
        for (place, _, view) in &views {
            gauges.show(place, view, now);
            if let Some(demand) = demands.get(place) {
                gauges.demands.set(place, demand, view.look.as_ref(), now);
            }
        }
        gauges.each().flat_map(Collector::collect).collect()
    }
}
