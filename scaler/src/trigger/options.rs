//! Every option of a trigger: the one table from which parsing, errors and the page
//! `docs/scaler.md` come.

use std::collections::BTreeMap;

/// Options of a trigger, as they would stand in its metadata.
pub(crate) type Options = BTreeMap<String, String>;

/// An option of a trigger.
#[derive(Debug, Clone, Copy)]
pub struct TriggerOption {
    /// As it is written in the metadata; `FromEnv` may follow.
    pub key: &'static str,
    /// What it takes, and in which unit.
    pub value: &'static str,
    /// What counts without it, as it would be written; none where it must or may be left away.
    pub default: Option<&'static str>,
    /// The modes that use it; empty for all.
    pub modes: &'static [&'static str],
    /// What it does.
    pub meaning: &'static str,
}

pub(crate) const QUEUE: &str = "queue";
pub(crate) const STREAM: &str = "stream";
pub(crate) const CONSUMER: &str = "consumer";
pub(crate) const GROUP: &str = "consumerGroup";
pub(crate) const PROFILE: &str = "profile";
pub(crate) const MODE: &str = "mode";
pub(super) const JOBS_PER_REPLICA: &str = "jobsPerReplica";
pub(super) const DRAIN: &str = "drainSeconds";
pub(crate) const SLO: &str = "sloSeconds";
pub(crate) const SLO_PRIORITY: &str = "sloPriority";
pub(super) const UTILIZATION: &str = "utilization";
pub(super) const COST_PER_REPLICA: &str = "costPerReplica";
pub(super) const COST_PER_JOB: &str = "costPerJob";
pub(super) const SLOTS: &str = "slotsPerReplica";
pub(super) const SERVICE: &str = "serviceSeconds";
pub(super) const COLD_START: &str = "coldStartSeconds";
pub(super) const ACTIVATION_JOBS: &str = "activationJobs";
pub(crate) const ACTIVATION_WAIT: &str = "activationWait";
pub(super) const ACTIVATION_PRIORITY: &str = "activationPriority";
pub(super) const LINGER: &str = "linger";

/// Those that take a priority.
pub(crate) const PRIORITIES: [&str; 2] = [SLO_PRIORITY, ACTIVATION_PRIORITY];

/// Those by which an [`ACTIVATION_WAIT`] is right or wrong.
pub(crate) const WAITED_BESIDE: [&str; 5] =
    [MODE, SLO, SLO_PRIORITY, ACTIVATION_JOBS, ACTIVATION_PRIORITY];

const SPAN: &str = "seconds, or a span such as 90s or 5m";

/// All options, in the order in which they are documented.
pub const OPTIONS: [TriggerOption; 20] = [
    TriggerOption {
        key: QUEUE,
        value: "the name of a queue",
        default: None,
        modes: &[],
        meaning: "the queue to look at; without it the one that the profile or the scaler names",
    },
    TriggerOption {
        key: STREAM,
        value: "the name of a stream",
        default: None,
        modes: &[],
        meaning: "in place of `queue`: a stream of JetStream or Redis that Ebb did not lay out, and \
                  whose workers are not Ebb's; see below",
    },
    TriggerOption {
        key: CONSUMER,
        value: "the name of a consumer",
        default: None,
        modes: &[],
        meaning: "on NATS, beside `stream`: the durable consumer that the workers read",
    },
    TriggerOption {
        key: GROUP,
        value: "the name of a consumer group",
        default: None,
        modes: &[],
        meaning: "on Redis, beside `stream`: the consumer group that the workers read",
    },
    TriggerOption {
        key: PROFILE,
        value: "the name of a connection profile",
        default: None,
        modes: &[],
        meaning: "the broker to look at; without it the one that the scaler was started with",
    },
    TriggerOption {
        key: MODE,
        value: "`jobs`, `waiting`, `drain`, `slo` or `cost`",
        default: Some("jobs"),
        modes: &[],
        meaning: "what the metric is",
    },
    TriggerOption {
        key: JOBS_PER_REPLICA,
        value: "jobs, 0.001 to 1000000000",
        default: Some("10"),
        modes: &["jobs", "waiting"],
        meaning: "the target: jobs that one replica is to have",
    },
    TriggerOption {
        key: DRAIN,
        value: SPAN,
        default: Some("60"),
        modes: &["drain"],
        meaning: "the target: how long the replicas may take for all that is there",
    },
    TriggerOption {
        key: SLO,
        value: SPAN,
        default: None,
        modes: &["slo"],
        meaning: "the objective, without a default: from publication to the end of a job",
    },
    TriggerOption {
        key: SLO_PRIORITY,
        value: "`low` or `normal`",
        default: Some("low"),
        modes: &["slo"],
        meaning: "the objective holds for jobs of this priority and above; with `normal`, ready \
                  jobs of low priority ask for no replica, and wake a pool only by an \
                  `activationWait` or `activationPriority` that is given",
    },
    TriggerOption {
        key: UTILIZATION,
        value: "a share, 0.1 to 1",
        default: Some("1"),
        modes: &["slo"],
        meaning: "how busy replicas may be with what arrives steadily; less keeps some in reserve",
    },
    TriggerOption {
        key: COST_PER_REPLICA,
        value: "cost, in the unit of `ebb-cost`, 0.001 to 1000000000",
        default: None,
        modes: &["cost"],
        meaning: "the target, without a default: cost that one replica is to have",
    },
    TriggerOption {
        key: COST_PER_JOB,
        value: "cost, in the unit of `ebb-cost`, 0.001 to 1000000000",
        default: Some("1"),
        modes: &["cost"],
        meaning: "the least that jobs count on average, and what they count where the broker \
                  does not sum the hints",
    },
    TriggerOption {
        key: SLOTS,
        value: "jobs, 0.001 to 1000000000",
        default: Some("1"),
        modes: &["drain", "slo"],
        meaning: "jobs that a replica runs at once, until a worker has reported",
    },
    TriggerOption {
        key: SERVICE,
        value: SPAN,
        default: Some("1"),
        modes: &[],
        meaning: "how long a job takes, until jobs were completed",
    },
    TriggerOption {
        key: COLD_START,
        value: SPAN,
        default: Some("30"),
        modes: &[],
        meaning: "how long a replica takes from nothing to readiness, with the node and the image: \
                  no less is planned with where this is given, since workers report only what \
                  passes from their process on; without it, their reports count once there is one",
    },
    TriggerOption {
        key: ACTIVATION_JOBS,
        value: "jobs, a whole number",
        default: Some("0"),
        modes: &[],
        meaning: "a pool at zero wakes when more jobs than this are ready",
    },
    TriggerOption {
        key: ACTIVATION_WAIT,
        value: "seconds, or a span such as 90s or 5m, or `never`",
        default: Some("5m"),
        modes: &[],
        meaning: "a pool at zero wakes when the oldest ready job has waited this long, whatever \
                  its priority: the bound of what the other activation options hold back; with them \
                  in mode `slo` `min(activationWait, sloSeconds - coldStartSeconds)` counts, and \
                  without it `min(5m, sloSeconds / 2, 0.9 * sloSeconds - coldStartSeconds)`, where \
                  a `coldStartSeconds` that is not given is 0; with `sloPriority` `normal` it counts \
                  as given for jobs of low priority, and without it they never wake a pool; `never` \
                  takes from them alone, beside `sloPriority` `normal` or, in other modes, an \
                  `activationPriority` above `low`",
    },
    TriggerOption {
        key: ACTIVATION_PRIORITY,
        value: "`low`, `normal` or `high`",
        default: Some("low"),
        modes: &[],
        meaning: "jobs below this priority do not count for `activationJobs`; a job of high \
                  priority wakes always, and a job whose priority the broker does not tell is \
                  normal; with `sloPriority` `normal` the default is `normal`",
    },
    TriggerOption {
        key: LINGER,
        value: SPAN,
        default: Some("0"),
        modes: &[],
        meaning: "the pool stays active this long after the last work; KEDA's cooldownPeriod \
                  comes on top",
    },
];

/// Keys with which KEDA itself finds us; it passes them on.
pub(crate) const KEDA_KEYS: [&str; 6] =
    ["scalerAddress", "enableTLS", "unsafeSsl", "caCert", "tlsClientCert", "tlsClientKey"];

/// Keys of KEDA's built-in scalers, and ours that do the same.
pub(super) const ELSEWHERE: [(&str, &str); 26] = [
    ("value", JOBS_PER_REPLICA),
    ("queueLength", JOBS_PER_REPLICA),
    ("listLength", JOBS_PER_REPLICA),
    ("lagThreshold", JOBS_PER_REPLICA),
    ("lagCount", JOBS_PER_REPLICA),
    ("pendingEntriesCount", JOBS_PER_REPLICA),
    ("streamLength", JOBS_PER_REPLICA),
    ("targetSize", JOBS_PER_REPLICA),
    ("messageCount", JOBS_PER_REPLICA),
    ("activationValue", ACTIVATION_JOBS),
    ("activationLagThreshold", ACTIVATION_JOBS),
    ("activationLagCount", ACTIVATION_JOBS),
    ("activationListLength", ACTIVATION_JOBS),
    ("activationQueueLength", ACTIVATION_JOBS),
    ("activationThreshold", ACTIVATION_JOBS),
    ("queueName", QUEUE),
    ("streamName", QUEUE),
    ("listName", QUEUE),
    ("host", PROFILE),
    ("address", PROFILE),
    ("addresses", PROFILE),
    ("natsServerMonitoringEndpoint", PROFILE),
    ("useHttps", PROFILE),
    ("account", PROFILE),
    ("accountID", PROFILE),
    ("databaseIndex", PROFILE),
];

/// The option with this key.
pub(crate) fn option(key: &str) -> Option<&'static TriggerOption> {
    OPTIONS.iter().find(|option| option.key == key)
}

impl TriggerOption {
    /// Whether the mode uses it.
    pub(crate) fn applies_to(&self, mode: &str) -> bool {
        self.modes.is_empty() || self.modes.contains(&mode)
    }

    /// A row of the table on the page.
    #[must_use]
    pub fn row(&self) -> String {
        let Self { key, value, default, modes, meaning } = self;
        let default = default.map_or("-".to_owned(), |default| format!("`{default}`"));
        let modes = match modes {
            [] => "all".to_owned(),
            modes => modes.iter().map(|mode| format!("`{mode}`")).collect::<Vec<_>>().join(", "),
        };
        format!("| `{key}` | {value} | {default} | {modes} | {meaning} |")
    }
}

#[cfg(test)]
mod tests {
    use super::{ELSEWHERE, KEDA_KEYS, OPTIONS, option};

    #[test]
    fn the_page_has_the_table_of_the_code() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/scaler.md");
        let page = std::fs::read_to_string(page).unwrap();
        let rows: Vec<String> = OPTIONS.iter().map(super::TriggerOption::row).collect();
        let is_option = |line: &&str| {
            line.strip_prefix("| `").and_then(|line| line.split_once('`')).is_some_and(
                // The table of modes has other rows.
                |(key, rest)| option(key).is_some() || rest.matches('|').count() == 5,
            )
        };
        let written: Vec<&str> = page.lines().filter(is_option).collect();
        let expected = rows.join("\n");
        assert_eq!(written, rows, "docs/scaler.md is to have these rows:\n{expected}");
    }

    #[test]
    fn keys_of_others_are_not_ours_and_lead_to_ours() {
        for (other, ours) in ELSEWHERE {
            assert!(option(ours).is_some(), "{ours}");
            assert!(option(other).is_none() && !KEDA_KEYS.contains(&other), "{other}");
        }
    }
}
