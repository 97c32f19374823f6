//! From `scalerMetadata` to a [`Trigger`]. Pure: the same metadata is always the same trigger.
//!
//! The keys are in [`OPTIONS`]. Each may also be written with the suffix `FromEnv`: KEDA then looks
//! the value up in the environment of the scale target, and leaves the key away without a word
//! where it finds none.

mod given;
mod options;
mod source;

use std::fmt;
use std::time::Duration;

use ebb_queue::{Foreign, Priority, QueueUrl, Source};

use given::Given;
pub(crate) use given::{FROM_ENV, leaves_time};
pub(crate) use options::{
    ACTIVATION_WAIT, CONSUMER, GROUP, KEDA_KEYS, MODE, Options, PRIORITIES, PROFILE, QUEUE, SLO,
    SLO_PRIORITY, STREAM, WAITED_BESIDE, option,
};
pub use options::{OPTIONS, TriggerOption};
pub(crate) use source::{as_with_keda, serves_foreign};

/// What one trigger of one ScaledObject or ScaledJob asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Trigger {
    /// What is looked at.
    pub source: Source,
    /// The connection profile that says on which broker; none for the scaler's own.
    pub profile: Option<String>,
    /// What the metric is.
    pub mode: Mode,
    /// What counts until it was learned.
    pub priors: Priors,
    /// When a pool at zero wakes, and how long it stays up.
    pub activation: Activation,
    /// What ready jobs of low priority count for.
    pub low: Low,
}

/// What the metric is, and what one replica is to have of it. The formulas are in
/// [`decide`](crate::decide).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mode {
    /// Jobs that are ready or in flight, less what draining workers hold.
    Jobs {
        /// Jobs for one replica, above zero.
        per_replica: f64,
    },
    /// Jobs that are ready: for a ScaledJob with the strategy `accurate`.
    Waiting {
        /// Jobs for one replica, above zero.
        per_replica: f64,
    },
    /// Seconds that one replica would need for all jobs that are there.
    Drain {
        /// How long the replicas may take together, above zero.
        within: Duration,
    },
    /// Replicas that keep an objective.
    Slo {
        /// From publication to the end of a job, above zero.
        within: Duration,
        /// How busy replicas are to be with what arrives steadily, above zero and at most one.
        utilization: f64,
    },
    /// The sum of the cost hints of what is ready or in flight.
    Cost {
        /// Cost for one replica, above zero.
        per_replica: f64,
        /// The least that a job counts on average.
        per_job: f64,
    },
}

/// What counts until workers have shown better.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Priors {
    /// Jobs that a replica runs at once, above zero.
    pub slots: f64,
    /// How long a job takes, above zero.
    pub service: Duration,
    /// How long a replica takes from nothing to readiness.
    pub cold_start: Duration,
    /// The least that a cold start counts, whatever workers report: they cannot know what passed
    /// before their process. Zero where no cold start was given.
    pub least_cold_start: Duration,
}

/// When a pool at zero wakes, and how long it stays up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Activation {
    /// It wakes when more jobs than this are ready.
    pub jobs: u64,
    /// It wakes when a job has been ready this long: the bound of all that the rest holds back.
    pub wait: Duration,
    /// Jobs below this priority do not count for `jobs`.
    pub priority: Priority,
    /// It stays active this long after the last work.
    pub linger: Duration,
}

/// What ready jobs of low priority count for. Of other priorities none is ever left out: where a
/// broker cannot tell the priority of a job, it says normal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Low {
    /// For the same as all others.
    Counts,
    /// For no objective, and not for [`Activation::wait`].
    LeftOut {
        /// One wakes a pool when it has been ready this long; none for never.
        wait: Option<Duration>,
    },
}

/// What is wrong with the metadata, and what to write instead. Never shows a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("scalerMetadata: {0}")]
pub struct TriggerError(String);

impl TriggerError {
    /// The same without saying where the option stood.
    pub(crate) fn words(&self) -> &str {
        &self.0
    }
}

/// No model is faster, and nothing is divided by less.
const SHORTEST: Duration = Duration::from_micros(1);
/// Without an `activationWait`, or where that is for jobs of low priority alone.
const LONGEST_HELD: Duration = Duration::from_secs(300);
/// Nothing that runs on Kubernetes reacts faster.
const SHORTEST_OBJECTIVE: Duration = Duration::from_millis(1);
/// As long as the name of a queue may be.
const LONGEST_SLUG: usize = 64;

impl Trigger {
    /// Reads the metadata of a trigger; `broker` says where queues are, and which is the default.
    ///
    /// # Errors
    /// A key that is not known, given twice, with a value that cannot be right or of no use in the
    /// mode.
    pub fn parse<'a>(
        metadata: impl IntoIterator<Item = (&'a str, &'a str)>,
        broker: &QueueUrl,
    ) -> Result<Self, TriggerError> {
        let given = Given::collect(metadata)?;
        let source = source::source(&given, broker)?;
        let (mode, priors) = (mode(&given)?, priors(&given)?);
        let (activation, low) = activation(&given, mode)?;
        let profile = profile(&given)?;
        let trigger = Self { source, profile, mode, priors, activation, low }.timely(&given)?;
        if let Mode::Slo { within, .. } = trigger.mode
            && let Some(service) = given.get(options::SERVICE)
            && trigger.priors.service > within
        {
            let slo = options::SLO;
            return Err(service.invalid(&format!("a job that takes longer than {slo} is late")));
        }
        Ok(trigger)
    }

    /// The same with a wait that leaves time for the objective, if that is for what is held back.
    fn timely(mut self, given: &Given<'_>) -> Result<Self, TriggerError> {
        let Mode::Slo { within, .. } = self.mode else { return Ok(self) };
        let Some(holding) = self.activation.holding(self.low) else { return Ok(self) };
        let beside_cold_start = |time: Duration| time.saturating_sub(self.priors.least_cold_start);
        let (wait, given) = (self.activation.wait, given.get(options::ACTIVATION_WAIT));
        let is_given = given.is_some_and(|given| given.wait().is_ok_and(|wait| wait.is_some()));
        let most = match given {
            Some(given) if wait >= within && self.low == Low::Counts => {
                let (slo, of) = (options::SLO, options::SLO_PRIORITY);
                return Err(given.invalid(&format!(
                    "use less than {slo}, since a job that {holding} holds back as long is late \
                     before the pool wakes; {of} normal lets those of low priority wait longer"
                )));
            }
            Some(_) if is_given && wait < within => beside_cold_start(within),
            // The mode plans with 0.9 of the objective.
            _ => beside_cold_start(within * 9 / 10).min(within / 2),
        };
        self.activation.wait = wait.min(most);
        Ok(self)
    }

    /// The one metric of this trigger: of `a-z 0-9 -`, and another for each mode, source and
    /// profile.
    #[must_use]
    pub fn metric_name(&self) -> String {
        let (mode, name) = (self.mode, self.source.to_string());
        // KEDA's names have an end; what a long one loses is in the number behind it.
        let slug: String = name.bytes().take(LONGEST_SLUG).map(slug_of).collect();
        match (&self.source, &self.profile) {
            (Source::Queue(_), None) if slug == name => format!("ebb-{mode}-{slug}"),
            // `a.b`, `a_b` and `A-b` would be one name otherwise.
            (Source::Queue(_), None) => format!("ebb-{mode}-{slug}-{:08x}", fnv(&name)),
            // A queue of the same name elsewhere is another one. No name has a slash.
            (Source::Queue(_), Some(profile)) => {
                format!("ebb-{mode}-{slug}-{:08x}", fnv(&format!("{profile}/{name}")))
            }
            (Source::Foreign(Foreign { stream, reader }), profile) => {
                let profile = profile.as_deref().unwrap_or_default();
                let all = format!("{profile}/{stream}\n{reader}");
                format!("ebb-{mode}-{slug}-{:08x}", fnv(&all))
            }
        }
    }

    /// What a person is to know who reads what the value is made of.
    pub(crate) fn note(&self) -> Option<&'static str> {
        let is_foreign = matches!(self.source, Source::Foreign(_));
        let is_paced = matches!(self.mode, Mode::Drain { .. } | Mode::Slo { .. });
        (is_foreign && is_paced).then_some(
            "serviceSeconds and slotsPerReplica count as they are given, since workers that are not \
             Ebb's report nothing",
        )
    }

    /// What among its options has less effect than it says, with the cause and the remedy. Shows no
    /// value.
    pub(crate) fn warning(&self) -> Option<String> {
        let Mode::Slo { within, .. } = self.mode else { return None };
        let (wait, cold_start) = (self.activation.wait, self.priors.least_cold_start);
        let holding = self.activation.holding(self.low).filter(|_| !cold_start.is_zero())?;
        let (slo, cold, asked) = (options::SLO, options::COLD_START, options::ACTIVATION_WAIT);
        if wait.is_zero() && cold_start >= within * 9 / 10 {
            return Some(format!(
                "{holding} has no effect: {slo} leaves no time to wait beside {cold}; raise {slo}, \
                 or leave {holding} away"
            ));
        }
        (wait >= within.saturating_sub(cold_start)).then(|| {
            format!(
                "{asked} counts for no more than {slo} less {cold}, and a job that {holding} holds \
                 back as long is late; use less"
            )
        })
    }

    /// The value of the metric that one replica is to have.
    #[must_use]
    pub fn target(&self) -> f64 {
        match self.mode {
            Mode::Jobs { per_replica }
            | Mode::Waiting { per_replica }
            | Mode::Cost { per_replica, .. } => per_replica,
            Mode::Drain { within } => within.as_secs_f64(),
            Mode::Slo { .. } => 1.0,
        }
    }
}

impl Activation {
    /// The option that holds jobs back which are not left out, if any does.
    fn holding(&self, low: Low) -> Option<&'static str> {
        match self {
            Self { jobs: 1.., .. } => Some(options::ACTIVATION_JOBS),
            Self { priority: Priority::Low, .. } => None,
            Self { priority: Priority::Normal, .. } if low != Low::Counts => None,
            _ => Some(options::ACTIVATION_PRIORITY),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Jobs { .. } => "jobs",
            Self::Waiting { .. } => "waiting",
            Self::Drain { .. } => "drain",
            Self::Slo { .. } => "slo",
            Self::Cost { .. } => "cost",
        })
    }
}

fn profile(given: &Given<'_>) -> Result<Option<String>, TriggerError> {
    let Some(entry) = given.get(options::PROFILE) else { return Ok(None) };
    if is_name(entry.value) {
        return Ok(Some(entry.value.to_owned()));
    }
    // Whoever puts a URL here is told how to do it, without the URL.
    let remedy = "use the name of a profile of the scaler, 1 to 64 of a-z A-Z 0-9 . _ -";
    Err(TriggerError(format!("the value of {} is not valid: {remedy}", entry.key)))
}

/// Whether a connection profile or a queue may have this name.
pub(crate) fn is_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    name.bytes().all(fits) && (1..=64).contains(&name.len())
}

fn mode(given: &Given<'_>) -> Result<Mode, TriggerError> {
    let entry = given.entry(options::MODE)?;
    let number = |key| given.entry(key)?.number();
    let (mode, target) = match entry.value {
        "jobs" | "waiting" => {
            let per_replica = number(options::JOBS_PER_REPLICA);
            let waiting = entry.value == "waiting";
            let mode = per_replica.map(|per_replica| {
                if waiting { Mode::Waiting { per_replica } } else { Mode::Jobs { per_replica } }
            });
            (mode, options::JOBS_PER_REPLICA)
        }
        "drain" => {
            let within = given.entry(options::DRAIN)?.span(SHORTEST_OBJECTIVE);
            (within.map(|within| Mode::Drain { within }), options::DRAIN)
        }
        "slo" => (slo(given), options::SLO),
        "cost" => {
            let per_replica = number(options::COST_PER_REPLICA);
            let mode = per_replica.and_then(|per_replica| {
                Ok(Mode::Cost { per_replica, per_job: number(options::COST_PER_JOB)? })
            });
            (mode, options::COST_PER_REPLICA)
        }
        _ => return Err(entry.invalid("use jobs, waiting, drain, slo or cost")),
    };
    // First: `jobsPerReplica` in mode `slo` explains why `sloSeconds` is missing.
    given.refuse_others(entry.value, target)?;
    mode
}

fn slo(given: &Given<'_>) -> Result<Mode, TriggerError> {
    Ok(Mode::Slo {
        within: given.entry(options::SLO)?.span(SHORTEST_OBJECTIVE)?,
        utilization: given.entry(options::UTILIZATION)?.share()?,
    })
}

fn priors(given: &Given<'_>) -> Result<Priors, TriggerError> {
    let cold_start = given.entry(options::COLD_START)?.span(Duration::ZERO)?;
    let is_given = given.get(options::COLD_START).is_some();
    Ok(Priors {
        slots: given.entry(options::SLOTS)?.number()?,
        service: given.entry(options::SERVICE)?.span(SHORTEST)?,
        cold_start,
        least_cold_start: if is_given { cold_start } else { Duration::ZERO },
    })
}

fn activation(given: &Given<'_>, mode: Mode) -> Result<(Activation, Low), TriggerError> {
    let (asked, leaves_out) = (given.entry(options::ACTIVATION_WAIT)?, leaves_out(given)?);
    let priority = match given.get(options::ACTIVATION_PRIORITY) {
        None if leaves_out => Priority::Normal,
        _ => given.entry(options::ACTIVATION_PRIORITY)?.priority()?,
    };
    let activation = Activation {
        jobs: given.entry(options::ACTIVATION_JOBS)?.whole()?,
        wait: asked.wait()?.unwrap_or(LONGEST_HELD),
        priority,
        linger: given.entry(options::LINGER)?.span(Duration::ZERO)?,
    };
    let is_given = given.get(options::ACTIVATION_WAIT).is_some();
    let low = match (mode, asked.wait()?) {
        (Mode::Slo { .. }, wait) if leaves_out => Low::LeftOut { wait: wait.filter(|_| is_given) },
        (_, Some(_)) => Low::Counts,
        (Mode::Slo { .. }, None) => {
            let (slo, of) = (options::SLO, options::SLO_PRIORITY);
            return Err(asked.invalid(&format!(
                "use less than {slo}, which holds for jobs of all priorities; {of} normal leaves \
                 those of low priority out"
            )));
        }
        (_, None) if priority == Priority::Low => {
            let of = options::ACTIVATION_PRIORITY;
            let remedy = format!("it is for jobs of low priority; use {of} normal, or a span");
            return Err(asked.invalid(&remedy));
        }
        (_, None) => Low::LeftOut { wait: None },
    };
    Ok((activation, low))
}

/// Whether an objective is not for jobs of low priority.
fn leaves_out(given: &Given<'_>) -> Result<bool, TriggerError> {
    let entry = given.entry(options::SLO_PRIORITY)?;
    match entry.priority() {
        Ok(Priority::Low) => Ok(false),
        Ok(Priority::Normal) => Ok(true),
        // What a broker cannot tell is normal, and would be left out.
        _ => Err(entry.invalid("use low or normal")),
    }
}

fn slug_of(byte: u8) -> char {
    match byte {
        b'a'..=b'z' | b'0'..=b'9' | b'-' => byte as char,
        b'A'..=b'Z' => byte.to_ascii_lowercase() as char,
        _ => '-',
    }
}

/// FNV-1a: short, and the same in every version of us.
fn fnv(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ebb_queue::{ByPriority, Priority, Source};
    use proptest::prelude::{
        ProptestConfig, any, prop_assert, prop_assert_eq, prop_oneof, proptest,
    };
    use proptest::strategy::{Just, Strategy};

    use super::{Activation, CONSUMER, GROUP, Low, Mode, OPTIONS, Priors, STREAM, Trigger};
    use crate::decision::decide;
    use crate::kit::{NOW, queue};

    fn parse(metadata: &[(&str, &str)]) -> Result<Trigger, String> {
        let broker = ebb_queue::QueueUrl::sqlite("/data/ebb.db");
        Trigger::parse(metadata.iter().copied(), &broker).map_err(|error| error.to_string())
    }

    fn defaults() -> Trigger {
        Trigger {
            source: Source::Queue("jobs".into()),
            profile: None,
            mode: Mode::Jobs { per_replica: 10.0 },
            priors: Priors {
                slots: 1.0,
                service: Duration::from_secs(1),
                cold_start: Duration::from_secs(30),
                least_cold_start: Duration::ZERO,
            },
            activation: Activation {
                jobs: 0,
                wait: Duration::from_secs(300),
                priority: Priority::Low,
                linger: Duration::ZERO,
            },
            low: Low::Counts,
        }
    }

    #[test]
    fn without_metadata_a_trigger_watches_the_default_queue() {
        let trigger = parse(&[("scalerAddress", "ebb:6000"), ("enableTLS", "true")]).unwrap();
        assert_eq!(trigger, defaults());
        assert_eq!(trigger.metric_name(), "ebb-jobs-jobs");
    }

    /// A value for each key, in all modes that use it.
    fn value(key: &str, mode: &str) -> &'static str {
        match key {
            "queue" => "Night.runs",
            "profile" => "eu-west",
            "mode" => match mode {
                "waiting" => "waiting",
                "drain" => "drain",
                "slo" => "slo",
                "cost" => "cost",
                _ => "jobs",
            },
            "jobsPerReplica" => "2.5",
            "drainSeconds" => "1m30s",
            "sloSeconds" => "45.5",
            "utilization" => "0.7",
            "costPerReplica" => "4096",
            "costPerJob" => "100",
            "slotsPerReplica" => "8",
            "serviceSeconds" => "250ms",
            "coldStartSeconds" => "12",
            "activationJobs" => "7",
            "activationWait" if mode == "slo" => "20s",
            "activationWait" => "10m",
            "sloPriority" | "activationPriority" => "normal",
            "linger" => "90s",
            _ => panic!("{key} has no value here"),
        }
    }

    #[test]
    fn each_key_is_taken_plain_and_from_the_environment() {
        let seconds = Duration::from_secs;
        let modes = [
            ("jobs", Mode::Jobs { per_replica: 2.5 }),
            ("waiting", Mode::Waiting { per_replica: 2.5 }),
            ("drain", Mode::Drain { within: seconds(90) }),
            ("slo", Mode::Slo { within: Duration::from_millis(45_500), utilization: 0.7 }),
            ("cost", Mode::Cost { per_replica: 4096.0, per_job: 100.0 }),
        ];
        for (name, mode) in modes {
            // Those of a stream of others have tests of their own.
            let is_own = |key: &str| ![STREAM, CONSUMER, GROUP].contains(&key);
            let options = OPTIONS.iter().filter(|one| one.applies_to(name) && is_own(one.key));
            let keys: Vec<&str> = options.map(|option| option.key).collect();
            let slots = if keys.contains(&"slotsPerReplica") { 8.0 } else { 1.0 };
            let expected = Trigger {
                source: Source::Queue("Night.runs".into()),
                profile: Some("eu-west".into()),
                mode,
                priors: Priors {
                    slots,
                    service: Duration::from_millis(250),
                    cold_start: seconds(12),
                    least_cold_start: seconds(12),
                },
                activation: Activation {
                    jobs: 7,
                    wait: seconds(if name == "slo" { 20 } else { 600 }),
                    priority: Priority::Normal,
                    linger: seconds(90),
                },
                low: match mode {
                    Mode::Slo { .. } => Low::LeftOut { wait: Some(seconds(20)) },
                    _ => Low::Counts,
                },
            };
            let plain: Vec<_> = keys.iter().map(|key| (*key, value(key, name))).collect();
            assert_eq!(parse(&plain).as_ref(), Ok(&expected));
            let lines =
                |key: &&str| (format!("{key}FromEnv"), format!(" {}\r\n", value(key, name)));
            let lines: Vec<_> = keys.iter().map(lines).collect();
            let given: Vec<_> = lines.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
            assert_eq!(parse(&given), Ok(expected));
        }
    }

    #[track_caller]
    fn assert_mistakes(cases: &[(&[(&str, &str)], &str)]) {
        for (metadata, expected) in cases {
            let expected = format!("scalerMetadata: {expected}");
            assert_eq!(parse(metadata), Err(expected), "{metadata:?}");
        }
    }

    #[test]
    fn a_key_that_is_not_known_is_told_with_the_nearest_one() {
        assert_mistakes(&[
            (&[("jobPerReplica", "5")], "key \"jobPerReplica\" is not known; use jobsPerReplica"),
            (&[("Queue", "a")], "key \"Queue\" is not known; use queue"),
            (&[("modesFromEnv", "a")], "key \"modesFromEnv\" is not known; use mode"),
            (&[("lagThreshold", "5")], "key \"lagThreshold\" is not known; use jobsPerReplica"),
            (&[("queueNameFromEnv", "a")], "key \"queueNameFromEnv\" is not known; use queue"),
            (
                &[("bootstrapServers", "a")],
                "key \"bootstrapServers\" is not known; the keys are queue, stream, \
                 consumer, consumerGroup, profile, mode, jobsPerReplica, drainSeconds, \
                 sloSeconds, sloPriority, utilization, costPerReplica, costPerJob, slotsPerReplica, serviceSeconds, coldStartSeconds, \
                 activationJobs, activationWait, activationPriority, linger",
            ),
            (
                &[("queue", "a"), ("queueFromEnv", "b")],
                "queue and queueFromEnv are both given; keep one of them",
            ),
        ]);
    }

    #[test]
    fn a_key_that_says_nothing_in_the_mode_is_told_with_the_one_that_does() {
        assert_mistakes(&[
            (
                &[("mode", "slo")],
                "sloSeconds is missing; KEDA leaves out a FromEnv that it finds nothing for",
            ),
            (
                &[("mode", "slo"), ("jobsPerReplica", "5")],
                "jobsPerReplica says nothing in mode slo; use sloSeconds, or mode jobs or waiting",
            ),
            (
                &[("drainSecondsFromEnv", "5")],
                "drainSecondsFromEnv says nothing in mode jobs; use jobsPerReplica, or mode drain",
            ),
            (
                &[("mode", "slo"), ("sloSeconds", "1s"), ("serviceSeconds", "2")],
                "serviceSeconds: \"2\" is not valid: a job that takes longer than sloSeconds is late",
            ),
        ]);
    }

    #[test]
    fn an_objective_is_not_spent_on_waiting_for_more_jobs() {
        let slo = |rest: &[(&'static str, &'static str)]| {
            let objective = [("mode", "slo"), ("sloSeconds", "60")];
            parse(&objective.iter().chain(rest).copied().collect::<Vec<_>>())
        };
        let wait = |rest: &[_]| slo(rest).unwrap().activation.wait;
        let (jobs, high) = (("activationJobs", "8"), ("activationPriority", "high"));
        assert_eq!(wait(&[jobs]), Duration::from_secs(30));
        assert_eq!(wait(&[high]), Duration::from_secs(30));
        assert_eq!(wait(&[jobs, ("activationWait", "59.9")]), Duration::from_millis(59_900));
        // Nothing is held back, so nothing is late.
        assert_eq!(wait(&[("activationWait", "5m")]), Duration::from_secs(300));
        let told = |key, shown: &str| {
            Err(format!(
                "scalerMetadata: {shown} is not valid: use less than sloSeconds, since a job that \
                 {key} holds back as long is late before the pool wakes; sloPriority normal lets \
                 those of low priority wait longer"
            ))
        };
        let minute = ("activationWait", "1m");
        assert_eq!(slo(&[jobs, minute]), told("activationJobs", "activationWait: \"1m\""));
        assert_eq!(slo(&[high, minute]), told("activationPriority", "activationWait: \"1m\""));
        let secret = ("activationWaitFromEnv", "2m");
        let shown = "the value of activationWaitFromEnv";
        assert_eq!(slo(&[jobs, secret]), told("activationJobs", shown));
        assert_eq!(slo(&[jobs, high, minute]), told("activationJobs", "activationWait: \"1m\""));
    }

    #[test]
    fn an_objective_is_not_spent_on_waiting_when_a_cold_start_comes_on_top() {
        let slo = |cold: &'static str, rest: &[(&'static str, &'static str)]| {
            let given = [("mode", "slo"), ("sloSeconds", "100"), ("activationJobs", "8")];
            let cold = ("coldStartSeconds", cold);
            parse(&given.iter().chain([&cold]).chain(rest).copied().collect::<Vec<_>>()).unwrap()
        };
        let late = "activationWait counts for no more than sloSeconds less coldStartSeconds, and a \
                    job that activationJobs holds back as long is late; use less";
        let none = "activationJobs has no effect: sloSeconds leaves no time to wait beside \
                    coldStartSeconds; raise sloSeconds, or leave activationJobs away";
        // Half the objective, and no more than a tenth of it from being late.
        let defaults = [("0", 50), ("30", 50), ("40", 50), ("60", 30), ("89", 1), ("90", 0)];
        for (cold, expected) in defaults.into_iter().chain([("99", 0), ("100", 0), ("150", 0)]) {
            let trigger = slo(cold, &[]);
            assert_eq!(trigger.activation.wait, Duration::from_secs(expected), "{cold}");
            let told = (expected == 0).then_some(none);
            assert_eq!(trigger.warning().as_deref(), told, "{cold}");
        }
        // What can be kept counts as it is given, and the rest as far as it can.
        for (cold, given, expected, told) in [
            ("0", "99", 99, None),
            ("60", "39", 39, None),
            ("60", "40", 40, Some(late)),
            ("60", "99", 40, Some(late)),
            ("99", "5", 1, Some(late)),
            ("100", "5", 0, Some(none)),
            ("100", "99", 0, Some(none)),
            ("5", "0", 0, None),
        ] {
            let trigger = slo(cold, &[("activationWait", given)]);
            let case = format!("{given} beside {cold}");
            assert_eq!(trigger.activation.wait, Duration::from_secs(expected), "{case}");
            assert_eq!(trigger.warning().as_deref(), told, "{case}");
        }
        // Nothing is held back, so nothing is late.
        let given = [("mode", "slo"), ("sloSeconds", "100"), ("coldStartSeconds", "60")];
        let none = parse(&[&given[..], &[("activationWait", "5m")]].concat()).unwrap();
        assert_eq!((none.activation.wait, none.warning()), (Duration::from_secs(300), None));
        let high = [("activationPriority", "high"), ("activationWait", "50")];
        let told = parse(&[&given[..], &high].concat()).unwrap().warning().unwrap();
        assert_eq!(told, late.replace("Jobs", "Priority"));
    }

    #[test]
    fn an_objective_that_is_not_for_jobs_of_low_priority_lets_them_wait() {
        let parsed = |rest: &[(&'static str, &'static str)]| {
            let given = [("mode", "slo"), ("sloSeconds", "2m"), ("sloPriority", "normal")];
            let trigger = parse(&[&given[..], rest].concat()).unwrap();
            let Activation { wait, priority, .. } = trigger.activation;
            assert_eq!(trigger.warning(), None, "{rest:?}");
            (wait.as_secs(), priority, trigger.low)
        };
        let left_out = |wait: Option<u64>| Low::LeftOut { wait: wait.map(Duration::from_secs) };
        let (normal, jobs) = (Priority::Normal, ("activationJobs", "8"));
        let wait = |text| ("activationWait", text);
        assert_eq!(parsed(&[]), (300, normal, left_out(None)));
        assert_eq!(parsed(&[wait("never")]), (300, normal, left_out(None)));
        assert_eq!(parsed(&[wait("12h")]).2, left_out(Some(43_200)));
        // The others are held back no longer than without it.
        assert_eq!(parsed(&[jobs]), (60, normal, left_out(None)));
        for (given, held) in [("never", None), ("12h", Some(43_200)), ("2m", Some(120))] {
            assert_eq!(parsed(&[jobs, wait(given)]), (60, normal, left_out(held)));
        }
        assert_eq!(parsed(&[jobs, wait("90s")]), (90, normal, left_out(Some(90))));
        let low = ("activationPriority", "low");
        assert_eq!(parsed(&[low]), (300, Priority::Low, left_out(None)));
        let high = ("activationPriority", "high");
        assert_eq!(parsed(&[high, wait("24h")]), (60, Priority::High, left_out(Some(86_400))));
        // In other modes, only where the priority holds any back.
        let never = [("activationPriority", "normal"), wait("never")];
        let trigger = parse(&never).unwrap();
        assert_eq!((trigger.activation.wait.as_secs(), trigger.low), (300, left_out(None)));
        assert_mistakes(&[
            (
                &[wait("never")],
                "activationWait: \"never\" is not valid: it is for jobs of low priority; use \
                 activationPriority normal, or a span",
            ),
            (
                &[("mode", "slo"), ("sloSeconds", "60"), never[0], never[1]],
                "activationWait: \"never\" is not valid: use less than sloSeconds, which holds \
                 for jobs of all priorities; sloPriority normal leaves those of low priority out",
            ),
            (
                &[("mode", "slo"), ("sloSeconds", "60"), ("sloPriority", "high")],
                "sloPriority: \"high\" is not valid: use low or normal",
            ),
            (
                &[("sloPriority", "normal")],
                "sloPriority says nothing in mode jobs; use jobsPerReplica, or mode slo",
            ),
        ]);
    }

    #[test]
    fn a_value_that_cannot_be_right_is_told_with_its_remedy() {
        let span = "use seconds, or a span such as 90s or 5m, from";
        assert_mistakes(&[
            (
                &[("queue", "a b")],
                "queue: \"a b\" is not valid: use the name of a queue, 1 to 64 of a-z A-Z 0-9 . _ -",
            ),
            (
                &[("profile", "nats://me:hunter2@broker")],
                "the value of profile is not valid: \
                 use the name of a profile of the scaler, 1 to 64 of a-z A-Z 0-9 . _ -",
            ),
            (
                &[("mode", "Jobs")],
                "mode: \"Jobs\" is not valid: use jobs, waiting, drain, slo or cost",
            ),
            (
                &[("jobsPerReplica", "0")],
                "jobsPerReplica: \"0\" is not valid: use a number from 0.001 to 1000000000",
            ),
            (
                &[("jobsPerReplica", "NaN")],
                "jobsPerReplica: \"NaN\" is not valid: use a number from 0.001 to 1000000000",
            ),
            (
                &[("activationJobs", "-1")],
                "activationJobs: \"-1\" is not valid: use a whole number of jobs, 0 or more",
            ),
            (
                &[("activationPriority", "urgent")],
                "activationPriority: \"urgent\" is not valid: use low, normal or high",
            ),
            (&[("linger", "-1")], &format!("linger: \"-1\" is not valid: {span} 0s to 1d")),
            (&[("linger", "2d")], &format!("linger: \"2d\" is not valid: {span} 0s to 1d")),
            (
                &[("mode", "drain"), ("drainSeconds", "inf")],
                &format!("drainSeconds: \"inf\" is not valid: {span} 1ms to 1d"),
            ),
        ]);
    }

    #[test]
    fn the_longest_span_is_a_day_however_it_is_written() {
        for text in ["1d", "24h", "23h 60m", "86400"] {
            let linger = parse(&[("linger", text)]).map(|trigger| trigger.activation.linger);
            assert_eq!(linger, Ok(Duration::from_secs(86_400)), "{text}");
        }
    }

    #[test]
    fn what_came_from_an_environment_is_never_shown() {
        for option in OPTIONS {
            let suffixed = format!("{}FromEnv", option.key);
            let mode = option.modes.first().unwrap_or(&"jobs");
            let mut metadata = vec![(suffixed.as_str(), "hunter two!")];
            if option.key != "mode" {
                metadata.push(("mode", mode));
            }
            if option.key != "sloSeconds" && *mode == "slo" {
                metadata.push(("sloSeconds", "60"));
            }
            if option.key != "costPerReplica" && *mode == "cost" {
                metadata.push(("costPerReplica", "1"));
            }
            let told = parse(&metadata).unwrap_err();
            assert!(!told.contains("hunter"), "{told}");
            assert!(told.contains(option.key), "{told}");
        }
        let told = parse(&[("password", "hunter2")]).unwrap_err();
        assert!(!told.contains("hunter"), "{told}");
    }

    #[test]
    fn what_differs_in_queue_profile_or_mode_has_a_metric_of_its_own() {
        let name = |given: &[(&str, &str)]| parse(given).unwrap().metric_name();
        let mut names: Vec<_> =
            ["a-b", "a.b", "a_b", "A-b"].map(|queue| name(&[("queue", queue)])).into();
        for (profile, queue) in [("x", "a-b"), ("X", "a-b"), ("x", "a.b"), ("x-a", "b")] {
            names.push(name(&[("profile", profile), ("queue", queue)]));
        }
        names.push(name(&[("mode", "waiting"), ("queue", "a-b")]));
        names.push(name(&[("mode", "drain"), ("queue", "a-b")]));
        names.push(name(&[("mode", "slo"), ("sloSeconds", "9"), ("queue", "a-b")]));
        names.push(name(&[("mode", "cost"), ("costPerReplica", "9"), ("queue", "a-b")]));
        let distinct: std::collections::HashSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), names.len(), "{names:?}");
    }

    fn keys() -> impl Strategy<Value = String> {
        let known = || proptest::sample::select(OPTIONS.map(|option| option.key).to_vec());
        prop_oneof![
            known().prop_map(str::to_owned),
            known().prop_map(|key| format!("{key}FromEnv")),
            Just("scalerAddress".to_owned()),
            any::<String>(),
        ]
    }

    fn modes() -> impl Strategy<Value = &'static str> {
        proptest::sample::select(vec!["jobs", "waiting", "drain", "slo", "cost"])
    }

    fn values() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<f64>().prop_map(|number| number.to_string()),
            any::<u64>().prop_map(|number| number.to_string()),
            (0..100u64).prop_map(|seconds| format!("{seconds}s")),
            "[a-zA-Z0-9._-]{1,64}",
            modes().prop_map(str::to_owned),
            any::<String>(),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_metadata_can_make_a_trigger_that_kubernetes_refuses(
            mut metadata in proptest::collection::hash_map(keys(), values(), 0..5),
            mode in modes(),
        ) {
            metadata.entry("mode".to_owned()).or_insert(mode.to_owned());
            let pairs: Vec<_> = metadata.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
            if let Ok(trigger) = parse(&pairs) {
                let name = trigger.metric_name();
                let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
                prop_assert!(name.bytes().all(fits) && name.len() < 100, "{}", name);
                prop_assert!(trigger.target().is_finite() && trigger.target() >= 0.001);
            }
        }

        #[test]
        fn no_job_is_held_back_for_as_long_as_its_objective(
            objective in 1..86_400_000u64,
            jobs in 0..20u64,
            wait in proptest::option::of(0..86_400_000u64),
            priority in proptest::sample::select(vec!["low", "normal", "high"]),
            cold_start in proptest::option::of(0..86_400_000u64),
        ) {
            let millis = |millis: u64| format!("{millis}ms");
            let (text, jobs) = (millis(objective), jobs.to_string());
            let (is_too_long, wait) = (wait.is_some_and(|wait| wait >= objective), wait.map(millis));
            let cold = cold_start.map(millis);
            let mut given = vec![("mode", "slo"), ("sloSeconds", text.as_str())];
            given.extend([("activationJobs", jobs.as_str()), ("activationPriority", priority)]);
            given.extend(wait.as_deref().map(|wait| ("activationWait", wait)));
            given.extend(cold.as_deref().map(|cold| ("coldStartSeconds", cold)));
            given.push(("serviceSeconds", "1ms"));
            match parse(&given) {
                Ok(trigger) => {
                    // One job, of a priority that does not count where any does not.
                    let mut snapshot = queue(1, 0, &[]);
                    snapshot.depth.ready_by_priority = Some(ByPriority { low: 1, ..Default::default() });
                    let left = objective.saturating_sub(cold_start.unwrap_or_default());
                    let late = NOW + Duration::from_millis(left);
                    prop_assert!(decide(&snapshot, &trigger, late).active, "{:?}", trigger);
                    let before = late - Duration::from_nanos(1);
                    let is_told = trigger.warning().is_some();
                    prop_assert!(is_told || decide(&snapshot, &trigger, before).active, "{:?}", trigger);
                }
                Err(told) => {
                    let named = told.contains("activationWait") && told.contains("sloSeconds");
                    prop_assert!(is_too_long && named, "{}", told);
                }
            }
        }

        #[test]
        fn beside_a_longer_cold_start_no_job_waits_longer(
            objective in 2..10_000u64,
            wait in proptest::option::of(0..10_000u64),
            cold_starts in (0..12_000u64, 0..12_000u64),
        ) {
            let millis = |millis: u64| format!("{millis}ms");
            let (text, wait) = (millis(objective), wait.map(|wait| millis(wait % objective)));
            let held = |cold_start: u64| {
                let cold = millis(cold_start);
                let mut given = vec![("mode", "slo"), ("sloSeconds", text.as_str())];
                given.extend([("activationJobs", "3"), ("serviceSeconds", "1ms")]);
                given.extend(wait.as_deref().map(|wait| ("activationWait", wait)));
                given.push(("coldStartSeconds", &cold));
                parse(&given).map(|trigger| trigger.activation.wait)
            };
            let (shorter, longer) = (cold_starts.0.min(cold_starts.1), cold_starts.0.max(cold_starts.1));
            prop_assert!(held(longer).unwrap() <= held(shorter).unwrap());
        }

        #[test]
        fn what_is_written_is_what_is_meant(
            queue in "[a-zA-Z0-9._-]{1,64}",
            figure in 0.001..1e9,
            millis in 1..86_400_000u64,
            jobs in any::<u64>(),
        ) {
            let span = Duration::from_millis(millis);
            let activation = Activation { jobs, wait: span, linger: span, ..defaults().activation };
            let jobs = Trigger {
                source: Source::Queue(queue.clone()),
                mode: Mode::Jobs { per_replica: figure },
                activation,
                ..defaults()
            };
            let (seconds, words) = (span.as_secs_f64().to_string(), format!("{millis}ms"));
            let (figure, n_jobs) = (figure.to_string(), activation.jobs.to_string());
            let written = [
                ("queue", queue.as_str()),
                ("activationJobs", &n_jobs),
                ("activationWait", &words),
                ("linger", &seconds),
            ];
            let with = |rest: &[(&'static str, &str)]| {
                parse(&written.iter().chain(rest).copied().collect::<Vec<_>>())
            };
            prop_assert_eq!(with(&[("jobsPerReplica", &figure)]), Ok(jobs.clone()));
            let drain = Trigger { mode: Mode::Drain { within: span }, ..jobs.clone() };
            let given = [("mode", "drain"), ("drainSeconds", words.as_str())];
            prop_assert_eq!(with(&given), Ok(drain));
        }
    }
}
