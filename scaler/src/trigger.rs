//! From `scalerMetadata` to a [`Trigger`]. Pure: the same metadata is always the same trigger.
//!
//! | key | value | default |
//! |---|---|---|
//! | `queue` | a queue on the scaler's broker | the one that the scaler was started with |
//! | `mode` | `jobs` (ready and in flight) or `waiting` (ready only) | `jobs` |
//! | `jobsPerReplica` | jobs that one replica is to have, 0.001 or more | 10 |
//! | `activationJobs` | wakes from zero when more jobs than this are ready | 0 |
//!
//! Each key may also be written with the suffix `FromEnv`: KEDA then looks the value up in the
//! environment of the scale target, and leaves the key away without a word where it finds none.

use std::collections::BTreeMap;
use std::fmt;

use ebb_queue::QueueUrl;

/// What one trigger of one ScaledObject or ScaledJob asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Trigger {
    /// The queue that is looked at.
    pub queue: String,
    /// What is counted.
    pub mode: Mode,
    /// Jobs that one replica is to have: the target of the metric, always above zero.
    pub jobs_per_replica: f64,
    /// A pool at zero wakes when more jobs than this are ready.
    pub activation_jobs: u64,
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Ready and in flight, less what draining workers hold.
    Jobs,
    /// Ready only: for a ScaledJob with the strategy `accurate`.
    Waiting,
}

/// What is wrong with the metadata, and what to write instead. Never shows a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("scalerMetadata: {0}")]
pub struct TriggerError(String);

const QUEUE: &str = "queue";
const MODE: &str = "mode";
const JOBS_PER_REPLICA: &str = "jobsPerReplica";
const ACTIVATION_JOBS: &str = "activationJobs";
const KEYS: [&str; 4] = [QUEUE, MODE, JOBS_PER_REPLICA, ACTIVATION_JOBS];

/// Keys with which KEDA itself finds us; it passes them on.
const KEDA_KEYS: [&str; 6] =
    ["scalerAddress", "enableTLS", "unsafeSsl", "caCert", "tlsClientCert", "tlsClientKey"];

/// Modes that later versions have.
const LATER_MODES: [&str; 3] = ["drain", "slo", "cost"];

const FROM_ENV: &str = "FromEnv";
const DEFAULT_JOBS_PER_REPLICA: f64 = 10.0;

/// KEDA writes targets with three decimals, and Kubernetes refuses a target of zero.
const SMALLEST_TARGET: f64 = 0.001;
const LARGEST_TARGET: f64 = 1e9;

impl Trigger {
    /// Reads the metadata of a trigger; `broker` says where queues are, and which is the default.
    ///
    /// # Errors
    /// A key that is not known, given twice or with a value that cannot be right.
    pub fn parse<'a>(
        metadata: impl IntoIterator<Item = (&'a str, &'a str)>,
        broker: &QueueUrl,
    ) -> Result<Self, TriggerError> {
        let given = Given::collect(metadata)?;
        Ok(Self {
            queue: given.queue(broker)?,
            mode: given.mode()?,
            jobs_per_replica: given.jobs_per_replica()?,
            activation_jobs: given.activation_jobs()?,
        })
    }

    /// The one metric of this trigger: of `a-z 0-9 -`, and another for each mode and queue.
    #[must_use]
    pub fn metric_name(&self) -> String {
        let slug: String = self.queue.bytes().map(slug_of).collect();
        if slug == self.queue {
            return format!("ebb-{}-{slug}", self.mode);
        }
        // `a.b`, `a_b` and `A-b` would be one name otherwise.
        format!("ebb-{}-{slug}-{:08x}", self.mode, fnv(&self.queue))
    }

    /// The value of the metric that one replica is to have.
    #[must_use]
    pub fn target(&self) -> f64 {
        self.jobs_per_replica
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Jobs => "jobs",
            Self::Waiting => "waiting",
        })
    }
}

/// The values for our own keys, by the plain name of the key.
struct Given<'a>(BTreeMap<&'static str, Entry<'a>>);

#[derive(Clone, Copy)]
struct Entry<'a> {
    /// As it was written, with or without the suffix.
    key: &'a str,
    value: &'a str,
}

impl<'a> Given<'a> {
    fn collect(
        metadata: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, TriggerError> {
        // Sorted, so that of several mistakes the same one is always told.
        let sorted: BTreeMap<&str, &str> = metadata.into_iter().collect();
        let mut given: BTreeMap<&'static str, Entry<'a>> = BTreeMap::new();
        for (key, value) in sorted {
            let name = key.strip_suffix(FROM_ENV).unwrap_or(key);
            if KEDA_KEYS.contains(&name) {
                continue;
            }
            let name = *KEYS.iter().find(|known| **known == name).ok_or_else(|| unknown(key))?;
            // A value from a file or a Secret often ends with a line break.
            let entry = Entry { key, value: value.trim() };
            if let Some(first) = given.insert(name, entry) {
                let both = format!("{} and {key} are both given; keep one of them", first.key);
                return Err(TriggerError(both));
            }
        }
        Ok(Self(given))
    }

    fn queue(&self, broker: &QueueUrl) -> Result<String, TriggerError> {
        let Some(entry) = self.0.get(QUEUE) else { return Ok(broker.queue.clone()) };
        match broker.with_queue(entry.value) {
            Ok(url) => Ok(url.queue),
            Err(_) => Err(entry.invalid("use the name of a queue, 1 to 64 of a-z A-Z 0-9 . _ -")),
        }
    }

    fn mode(&self) -> Result<Mode, TriggerError> {
        let Some(entry) = self.0.get(MODE) else { return Ok(Mode::Jobs) };
        match entry.value {
            "jobs" => Ok(Mode::Jobs),
            "waiting" => Ok(Mode::Waiting),
            later if LATER_MODES.contains(&later) => {
                let words = format!("this version has no mode {later} yet; use jobs or waiting");
                Err(entry.invalid(&words))
            }
            _ => Err(entry.invalid("use jobs or waiting")),
        }
    }

    fn jobs_per_replica(&self) -> Result<f64, TriggerError> {
        let Some(entry) = self.0.get(JOBS_PER_REPLICA) else {
            return Ok(DEFAULT_JOBS_PER_REPLICA);
        };
        let number = entry.value.parse().ok();
        number
            .filter(|number| (SMALLEST_TARGET..=LARGEST_TARGET).contains(number))
            .ok_or_else(|| entry.invalid("use a number of jobs from 0.001 to 1000000000"))
    }

    fn activation_jobs(&self) -> Result<u64, TriggerError> {
        let Some(entry) = self.0.get(ACTIVATION_JOBS) else { return Ok(0) };
        entry.value.parse().map_err(|_| entry.invalid("use a whole number of jobs, 0 or more"))
    }
}

impl Entry<'_> {
    fn invalid(self, remedy: &str) -> TriggerError {
        // What came out of an environment may be a secret that was named by mistake.
        if self.key.ends_with(FROM_ENV) {
            return TriggerError(format!("the value of {} is not valid: {remedy}", self.key));
        }
        let shown: String = self.value.chars().take(32).collect();
        TriggerError(format!("{}: {shown:?} is not valid: {remedy}", self.key))
    }
}

fn unknown(key: &str) -> TriggerError {
    let shown: String = key.chars().take(64).collect();
    let name = shown.strip_suffix(FROM_ENV).unwrap_or(&shown);
    let distance = |known: &str| edits(&name.to_lowercase(), &known.to_lowercase());
    let all = || KEYS.iter().chain(&KEDA_KEYS);
    let nearest = all().min_by_key(|known| distance(known)).expect("the list is not empty");
    // Too far away to have been meant.
    if distance(nearest) > nearest.len() / 2 {
        let keys = KEYS.join(", ");
        return TriggerError(format!("key {shown:?} is not known; the keys are {keys}"));
    }
    TriggerError(format!("key {shown:?} is not known; use {nearest}"))
}

/// Letters to insert, delete or replace until `a` is `b`.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(left != *right);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
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
    use proptest::prelude::{
        ProptestConfig, any, prop_assert, prop_assert_eq, prop_oneof, proptest,
    };
    use proptest::strategy::{Just, Strategy};

    use super::{KEYS, Mode, Trigger};

    fn parse(metadata: &[(&str, &str)]) -> Result<Trigger, String> {
        let broker = ebb_queue::QueueUrl::sqlite("/data/ebb.db");
        Trigger::parse(metadata.iter().copied(), &broker).map_err(|error| error.to_string())
    }

    #[test]
    fn without_metadata_a_trigger_watches_the_default_queue() {
        let trigger = parse(&[("scalerAddress", "ebb:6000"), ("enableTLS", "true")]).unwrap();
        let expected = Trigger {
            queue: "jobs".into(),
            mode: Mode::Jobs,
            jobs_per_replica: 10.0,
            activation_jobs: 0,
        };
        assert_eq!(trigger, expected);
        assert_eq!(trigger.metric_name(), "ebb-jobs-jobs");
    }

    #[test]
    fn each_key_is_taken_plain_and_from_the_environment() {
        let expected = Trigger {
            queue: "Night.runs".into(),
            mode: Mode::Waiting,
            jobs_per_replica: 2.5,
            activation_jobs: 7,
        };
        let values = ["Night.runs", "waiting", "2.5", "7"];
        let plain: Vec<_> = KEYS.into_iter().zip(values).collect();
        assert_eq!(parse(&plain).as_ref(), Ok(&expected));
        let suffixed: Vec<_> = KEYS.iter().map(|key| format!("{key}FromEnv")).collect();
        let lines = ["Night.runs\n", " waiting", "2.5 ", "7\r\n"];
        let given: Vec<_> = suffixed.iter().map(String::as_str).zip(lines).collect();
        assert_eq!(parse(&given), Ok(expected));
    }

    #[test]
    fn a_mistake_is_told_with_its_remedy() {
        let cases: &[(&[(&str, &str)], &str)] = &[
            (&[("jobPerReplica", "5")], "key \"jobPerReplica\" is not known; use jobsPerReplica"),
            (&[("Queue", "a")], "key \"Queue\" is not known; use queue"),
            (&[("modesFromEnv", "a")], "key \"modesFromEnv\" is not known; use mode"),
            (
                &[("bootstrapServers", "a")],
                "key \"bootstrapServers\" is not known; \
                 the keys are queue, mode, jobsPerReplica, activationJobs",
            ),
            (
                &[("queue", "a"), ("queueFromEnv", "b")],
                "queue and queueFromEnv are both given; keep one of them",
            ),
            (
                &[("queue", "a b")],
                "queue: \"a b\" is not valid: use the name of a queue, 1 to 64 of a-z A-Z 0-9 . _ -",
            ),
            (&[("mode", "Jobs")], "mode: \"Jobs\" is not valid: use jobs or waiting"),
            (
                &[("mode", "slo")],
                "mode: \"slo\" is not valid: this version has no mode slo yet; use jobs or waiting",
            ),
            (
                &[("jobsPerReplica", "0")],
                "jobsPerReplica: \"0\" is not valid: use a number of jobs from 0.001 to 1000000000",
            ),
            (
                &[("jobsPerReplica", "NaN")],
                "jobsPerReplica: \"NaN\" is not valid: \
                 use a number of jobs from 0.001 to 1000000000",
            ),
            (
                &[("activationJobs", "-1")],
                "activationJobs: \"-1\" is not valid: use a whole number of jobs, 0 or more",
            ),
        ];
        for (metadata, expected) in cases {
            let expected = format!("scalerMetadata: {expected}");
            assert_eq!(parse(metadata), Err(expected), "{metadata:?}");
        }
    }

    #[test]
    fn what_came_from_an_environment_is_never_shown() {
        for key in KEYS {
            let told = parse(&[(&format!("{key}FromEnv"), "hunter two!")]).unwrap_err();
            assert!(!told.contains("hunter"), "{told}");
            assert!(told.contains(key), "{told}");
        }
        let told = parse(&[("password", "hunter2")]).unwrap_err();
        assert!(!told.contains("hunter"), "{told}");
    }

    #[test]
    fn queues_that_differ_in_odd_letters_have_metrics_of_their_own() {
        let name = |queue| parse(&[("queue", queue)]).unwrap().metric_name();
        let names = ["a-b", "a.b", "a_b", "A-b"].map(name);
        let distinct: std::collections::HashSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), names.len(), "{names:?}");
    }

    fn keys() -> impl Strategy<Value = String> {
        prop_oneof![
            proptest::sample::select(KEYS.to_vec()).prop_map(str::to_owned),
            proptest::sample::select(KEYS.to_vec()).prop_map(|key| format!("{key}FromEnv")),
            Just("scalerAddress".to_owned()),
            any::<String>(),
        ]
    }

    fn values() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<f64>().prop_map(|number| number.to_string()),
            any::<u64>().prop_map(|number| number.to_string()),
            "[a-zA-Z0-9._-]{1,64}",
            Just("jobs".to_owned()),
            Just("waiting".to_owned()),
            any::<String>(),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_metadata_can_make_a_trigger_that_kubernetes_refuses(
            metadata in proptest::collection::hash_map(keys(), values(), 0..5),
        ) {
            let pairs: Vec<_> = metadata.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
            if let Ok(trigger) = parse(&pairs) {
                let name = trigger.metric_name();
                let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
                prop_assert!(name.bytes().all(fits) && name.len() < 100, "{}", name);
                prop_assert!(trigger.target().is_finite() && trigger.target() >= 0.001);
            }
        }

        #[test]
        fn what_is_written_is_what_is_meant(
            queue in "[a-zA-Z0-9._-]{1,64}",
            waiting in any::<bool>(),
            jobs_per_replica in 0.001..1e9,
            activation_jobs in any::<u64>(),
        ) {
            let mode = if waiting { Mode::Waiting } else { Mode::Jobs };
            let trigger = Trigger { queue, mode, jobs_per_replica, activation_jobs };
            let written = [
                ("queue", trigger.queue.clone()),
                ("mode", trigger.mode.to_string()),
                ("jobsPerReplica", trigger.jobs_per_replica.to_string()),
                ("activationJobs", trigger.activation_jobs.to_string()),
            ];
            let pairs: Vec<_> = written.iter().map(|(k, v)| (*k, v.as_str())).collect();
            prop_assert_eq!(parse(&pairs), Ok(trigger));
        }
    }
}
