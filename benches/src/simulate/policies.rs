//! The policies by name, and the settings in which each is tried.

use ebb::autoscaler::scaledjob::Strategy;

use super::keda::{Counts, Keda, Object, QueueLength};
use super::kpa::Kpa;
use super::oracle;
use super::ours::Ours;
use super::outage::Outage;
use super::outcome::Outcome;
use super::scaledjob::ScaledJob;
use super::trace::Trace;
use super::world::{self, Bed, Policy, Settings};

/// A policy, or a family of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Choice {
    /// The cheapest of the schedules that one who knows all arrivals tried
    Oracle,
    /// Our mode `slo`, told the objective, what a full batch takes, and that up to two batches may
    /// wait for half the objective before they wake a pool at zero
    Slo,
    /// The same, but the first job wakes the pool
    SloPrompt,
    /// Our mode `drain`, told half the objective and what a full batch takes
    Drain,
    /// Our mode `cost`, the cost of a job being its seconds, half an objective of it to a replica
    Cost,
    /// Our mode `jobs`, with two batches to a replica
    Jobs,
    /// Our mode `waiting`, with two batches to a replica
    Waiting,
    /// The modes `slo` and `jobs` with KEDA's fallback; only with --outage-s it is another thing
    Fallback,
    /// KEDA's ScaledJob under its strategies default, accurate and eager, on our modes `jobs` and
    /// `waiting`
    ScaledJob,
    /// KEDA's built-in queue length of what is ready or unacknowledged, at several lengths
    Unacked,
    /// KEDA's built-in queue length of what is ready, at several lengths
    Ready,
    /// Knative's pod autoscaler at its defaults
    Kpa,
}

const ALL: [Choice; 12] = [
    Choice::Oracle,
    Choice::Slo,
    Choice::SloPrompt,
    Choice::Drain,
    Choice::Cost,
    Choice::Jobs,
    Choice::Waiting,
    Choice::Fallback,
    Choice::ScaledJob,
    Choice::Unacked,
    Choice::Ready,
    Choice::Kpa,
];

/// Jobs per replica at which the built-in scalers are tried.
const LENGTHS: [u32; 9] = [1, 2, 5, 10, 16, 25, 50, 100, 200];

/// KEDA's strategies for a ScaledJob.
const STRATEGIES: [(&str, Strategy); 3] =
    [("default", Strategy::Default), ("accurate", Strategy::Accurate), ("eager", Strategy::Eager)];

/// Runs a trace under each policy; all of them where none is chosen.
///
/// # Errors
/// When our scaler does not take the metadata.
pub(crate) fn replay(
    choices: &[Choice],
    settings: Settings,
    trace: &Trace,
    share: f64,
) -> anyhow::Result<Vec<(String, Outcome)>> {
    let all: Vec<Choice> = ALL.into_iter().filter(|choice| choice.differs(&settings)).collect();
    let choices = if choices.is_empty() { &all[..] } else { choices };
    let outage = settings.outage(trace);
    let mut outcomes = Vec::new();
    for choice in choices {
        if *choice == Choice::Oracle {
            outcomes.push(("oracle".to_owned(), oracle::run(settings, trace, share)));
            continue;
        }
        for (name, mut policy) in choice.policies(&settings, outage)? {
            outcomes.push((name, world::run(settings, trace, &mut *policy)));
        }
    }
    Ok(outcomes)
}

/// A policy by its name.
type Named = (String, Box<dyn Policy>);

impl Choice {
    /// A fallback that nothing calls for is what is there without it.
    fn differs(self, settings: &Settings) -> bool {
        self != Self::Fallback || !settings.outage_length.is_zero()
    }

    fn policies(self, settings: &Settings, outage: Option<Outage>) -> anyhow::Result<Vec<Named>> {
        let bed = Bed { settings, outage };
        let slots = settings.slots;
        let half = (settings.objective / 2).as_secs_f64().to_string();
        match self {
            Self::Oracle => Ok(Vec::new()),
            Self::Slo => bed.ours("slo", &patient(settings), None),
            Self::SloPrompt => bed.ours("slo-prompt", &slo(settings), None),
            Self::Drain => {
                let mut options = vec![("mode", "drain".to_owned()), ("drainSeconds", half)];
                options.extend(priors(settings));
                bed.ours("drain", &options, None)
            }
            Self::Cost => {
                let per_job = ("costPerJob", "0.001".to_owned());
                let mode = ("mode", "cost".to_owned());
                bed.ours("cost", &[mode, ("costPerReplica", half), per_job], None)
            }
            Self::Jobs => bed.ours("jobs", &count("jobs", slots), None),
            Self::Waiting => bed.ours("waiting", &count("waiting", slots), None),
            Self::Fallback => {
                let replicas = Some(settings.fallback_replicas);
                let mut policies = bed.ours("slo-fallback", &patient(settings), replicas)?;
                policies.extend(bed.ours("jobs-fallback", &count("jobs", slots), replicas)?);
                Ok(policies)
            }
            Self::ScaledJob => bed.scaled_jobs(),
            Self::Unacked => Ok(bed.lengths("unacked", Counts::Unacked)),
            Self::Ready => Ok(bed.lengths("ready", Counts::Ready)),
            Self::Kpa => Ok(vec![("kpa".to_owned(), Box::new(Kpa::default()))]),
        }
    }
}

/// Options of a scaler of ours.
type Options = Vec<(&'static str, String)>;

/// Mode `slo`, told the objective and what a full batch takes.
fn slo(settings: &Settings) -> Options {
    let mut options = vec![("mode", "slo".to_owned())];
    options.push(("sloSeconds", settings.objective.as_secs().to_string()));
    options.extend(priors(settings));
    options
}

/// The same, but a few jobs wait for half the objective before they wake a pool at zero.
fn patient(settings: &Settings) -> Options {
    let mut options = slo(settings);
    options.push(("activationJobs", (2 * settings.slots).to_string()));
    options.push(("activationWait", (settings.objective / 2).as_secs_f64().to_string()));
    options
}

/// A mode that counts jobs, two batches of them to a replica.
fn count(mode: &str, slots: usize) -> Options {
    vec![("mode", mode.to_owned()), ("jobsPerReplica", (2 * slots).to_string())]
}

/// What an operator knows of a model before the first job: how many are a batch, and what a batch
/// of jobs of a second takes.
fn priors(settings: &Settings) -> [(&'static str, String); 2] {
    let batch = settings.overhead + settings.slots as f64;
    [("slotsPerReplica", settings.slots.to_string()), ("serviceSeconds", batch.to_string())]
}

impl Bed<'_> {
    /// Our scaler with these options, in each ScaledObject.
    fn ours(
        self,
        name: &str,
        options: &[(&str, String)],
        fallback: Option<u32>,
    ) -> anyhow::Result<Vec<Named>> {
        let mut policies: Vec<Named> = Vec::new();
        for object in Object::ALL {
            let scaler = Ours::new(options)?;
            let policy = Keda::new(scaler, object, fallback, self);
            policies.push((format!("{name}{}", object.mark()), Box::new(policy)));
        }
        Ok(policies)
    }

    /// Each strategy on each mode, polled often and as seldom as by default.
    fn scaled_jobs(self) -> anyhow::Result<Vec<Named>> {
        let mut policies: Vec<Named> = Vec::new();
        for (name, strategy) in STRATEGIES {
            for mode in ["jobs", "waiting"] {
                for object in Object::ALL {
                    let scaler = Ours::new(&count(mode, self.settings.slots))?;
                    let policy = ScaledJob::new(scaler, strategy, object, self);
                    let name = format!("scaledjob-{name}-{mode}{}", object.mark());
                    policies.push((name, Box::new(policy)));
                }
            }
        }
        Ok(policies)
    }

    /// A built-in scaler at each length in each ScaledObject.
    fn lengths(self, name: &str, counts: Counts) -> Vec<Named> {
        let mut policies: Vec<Named> = Vec::new();
        for object in Object::ALL {
            for length in LENGTHS {
                let scaler = QueueLength { length: f64::from(length), counts };
                let policy = Keda::new(scaler, object, None, self);
                policies.push((format!("{name}-{length}{}", object.mark()), Box::new(policy)));
            }
        }
        policies
    }
}
