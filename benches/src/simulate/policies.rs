//! The policies by name, and the settings in which each is tried.

use super::keda::{Counts, Keda, Object, QueueLength};
use super::kpa::Kpa;
use super::oracle;
use super::ours::Ours;
use super::outcome::Outcome;
use super::trace::Trace;
use super::world::{self, Policy, Settings};

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
    /// KEDA's built-in queue length of what is ready or unacknowledged, at several lengths
    Unacked,
    /// KEDA's built-in queue length of what is ready, at several lengths
    Ready,
    /// Knative's pod autoscaler at its defaults
    Kpa,
}

const ALL: [Choice; 9] = [
    Choice::Oracle,
    Choice::Slo,
    Choice::SloPrompt,
    Choice::Drain,
    Choice::Cost,
    Choice::Jobs,
    Choice::Unacked,
    Choice::Ready,
    Choice::Kpa,
];

/// Jobs per replica at which the built-in scalers are tried.
const LENGTHS: [u32; 9] = [1, 2, 5, 10, 16, 25, 50, 100, 200];

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
    let choices = if choices.is_empty() { &ALL[..] } else { choices };
    let mut outcomes = Vec::new();
    for choice in choices {
        if *choice == Choice::Oracle {
            outcomes.push(("oracle".to_owned(), oracle::run(settings, trace, share)));
            continue;
        }
        for (name, mut policy) in choice.policies(&settings)? {
            outcomes.push((name, world::run(settings, trace, &mut *policy)));
        }
    }
    Ok(outcomes)
}

/// A policy by its name.
type Named = (String, Box<dyn Policy>);

impl Choice {
    fn policies(self, settings: &Settings) -> anyhow::Result<Vec<Named>> {
        let slots = settings.slots;
        let objective = settings.objective.as_secs();
        let half = (settings.objective / 2).as_secs_f64().to_string();
        match self {
            Self::Oracle => Ok(Vec::new()),
            Self::Slo | Self::SloPrompt => {
                let mut options = vec![("mode", "slo".to_owned())];
                options.push(("sloSeconds", objective.to_string()));
                options.extend(priors(settings));
                if self == Self::SloPrompt {
                    return ours("slo-prompt", &options, settings);
                }
                options.push(("activationJobs", (2 * slots).to_string()));
                options.push(("activationWait", half));
                ours("slo", &options, settings)
            }
            Self::Drain => {
                let mut options = vec![("mode", "drain".to_owned()), ("drainSeconds", half)];
                options.extend(priors(settings));
                ours("drain", &options, settings)
            }
            Self::Cost => {
                let per_job = ("costPerJob", "0.001".to_owned());
                let mode = ("mode", "cost".to_owned());
                ours("cost", &[mode, ("costPerReplica", half), per_job], settings)
            }
            Self::Jobs => {
                let per_replica = ("jobsPerReplica", (2 * slots).to_string());
                ours("jobs", &[("mode", "jobs".to_owned()), per_replica], settings)
            }
            Self::Unacked => Ok(lengths("unacked", Counts::Unacked, settings)),
            Self::Ready => Ok(lengths("ready", Counts::Ready, settings)),
            Self::Kpa => Ok(vec![("kpa".to_owned(), Box::new(Kpa::default()))]),
        }
    }
}

/// What an operator knows of a model before the first job: how many are a batch, and what a batch
/// of jobs of a second takes.
fn priors(settings: &Settings) -> [(&'static str, String); 2] {
    let batch = settings.overhead + settings.slots as f64;
    [("slotsPerReplica", settings.slots.to_string()), ("serviceSeconds", batch.to_string())]
}

/// Our scaler with these options, in each ScaledObject.
fn ours(name: &str, options: &[(&str, String)], settings: &Settings) -> anyhow::Result<Vec<Named>> {
    let mut policies: Vec<Named> = Vec::new();
    for object in Object::ALL {
        let policy = Keda::new(Ours::new(options)?, object, settings);
        policies.push((format!("{name}{}", object.mark()), Box::new(policy)));
    }
    Ok(policies)
}

/// A built-in scaler at each length in each ScaledObject.
fn lengths(name: &str, counts: Counts, settings: &Settings) -> Vec<Named> {
    let mut policies: Vec<Named> = Vec::new();
    for object in Object::ALL {
        for length in LENGTHS {
            let scaler = QueueLength { length: f64::from(length), counts };
            let policy = Keda::new(scaler, object, settings);
            policies.push((format!("{name}-{length}{}", object.mark()), Box::new(policy)));
        }
    }
    policies
}
