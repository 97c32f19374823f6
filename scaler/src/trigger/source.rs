//! What a trigger looks at: a queue of Ebb, or a stream that others laid out.

use ebb_queue::{Address, Foreign, QueueUrl, Reader, Source};

use super::TriggerError;
use super::given::{Entry, Given};
use super::options::{
    ACTIVATION_JOBS, ACTIVATION_PRIORITY, ACTIVATION_WAIT, CONSUMER, GROUP, JOBS_PER_REPLICA, MODE,
    Options, QUEUE, SLO_PRIORITY, STREAM, option,
};

/// Keys of KEDA's own scalers of streams that mean the same here; for a stream of others only, since
/// whoever writes them moves from there.
const AS_WITH_KEDA: [(&str, &str); 4] = [
    ("lagThreshold", JOBS_PER_REPLICA),
    ("lagCount", JOBS_PER_REPLICA),
    ("activationLagThreshold", ACTIVATION_JOBS),
    ("activationLagCount", ACTIVATION_JOBS),
];

/// Our name of a key without its suffix, if it is one of a trigger on a stream of others.
pub(crate) fn as_with_keda(name: &str) -> Option<&'static str> {
    AS_WITH_KEDA.iter().find(|(other, _)| *other == name).map(|(_, ours)| *ours)
}

/// Whether a trigger on a stream of others has a use for one of these defaults: nobody tells the
/// priority or the cost of a job that is not Ebb's.
pub(crate) fn serves_foreign(key: &str, defaults: &Options) -> bool {
    match (key, &*defaults[key]) {
        (QUEUE | SLO_PRIORITY | ACTIVATION_PRIORITY, _) | (MODE, "cost") => false,
        // A wait of jobs of low priority.
        (ACTIVATION_WAIT, wait) => wait != "never" && !defaults.contains_key(SLO_PRIORITY),
        _ => option(key).is_none_or(|option| option.modes != ["cost"]),
    }
}

/// Reads what a trigger looks at on a broker.
pub(super) fn source(given: &Given<'_>, broker: &QueueUrl) -> Result<Source, TriggerError> {
    let Some(stream) = given.get(STREAM) else {
        if let Some(reader) = [CONSUMER, GROUP].iter().find_map(|key| given.get(key)) {
            return Err(TriggerError(format!(
                "{} says nothing without {STREAM}, the stream that it reads; a queue of Ebb is \
                 named by {QUEUE} alone",
                reader.key
            )));
        }
        return queue(given, broker);
    };
    if let Some(queue) = given.get(QUEUE) {
        return Err(TriggerError(format!(
            "{} and {} are both given; keep {QUEUE} for a queue of Ebb, or {STREAM} for a stream \
             that others laid out",
            queue.key, stream.key
        )));
    }
    let Some(kind) = Reader::on(&broker.address) else { return Err(untold(stream, broker)) };
    let (own, other, broker) = match kind {
        Reader::Consumer => (CONSUMER, GROUP, "NATS"),
        Reader::Group => (GROUP, CONSUMER, "Redis"),
    };
    if let Some(stray) = given.get(other) {
        let key = stray.key;
        return Err(TriggerError(format!(
            "{key} says nothing on {broker}, which the profile leads to; use {own}"
        )));
    }
    let reader = given.get(own).ok_or_else(|| {
        TriggerError(format!(
            "{own} is missing: beside {} it names the reader whose jobs count; KEDA leaves out a \
             FromEnv that it finds nothing for",
            stream.key
        ))
    })?;
    let name = |entry: Entry<'_>| match kind {
        // Whoever puts a URL here is told so without the URL.
        _ if entry.value.contains("://") => Err(TriggerError(format!(
            "the value of {} is not valid: use its name, and no URL",
            entry.key
        ))),
        _ if kind.takes(entry.value) => Ok(entry.value.to_owned()),
        Reader::Consumer => Err(entry.invalid("use its name, 1 to 255 letters without . * > / \\")),
        Reader::Group => Err(entry.invalid("use its name, 1 to 255 letters")),
    };
    refuse_untold(given)?;
    Ok(Source::Foreign(Foreign { stream: name(stream)?, reader: name(reader)? }))
}

/// Refuses what nobody tells of the jobs of others.
fn refuse_untold(given: &Given<'_>) -> Result<(), TriggerError> {
    if let Some(mode) = given.get(MODE).filter(|mode| mode.value == "cost") {
        return Err(TriggerError(format!(
            "{}: mode cost adds up the ebb-cost of jobs, which a stream that Ebb did not lay out \
             does not tell; use jobs, waiting, drain or slo",
            mode.key
        )));
    }
    let stray = [SLO_PRIORITY, ACTIVATION_PRIORITY].iter().find_map(|key| given.get(key));
    stray.map_or(Ok(()), |stray| {
        Err(TriggerError(format!(
            "{} says nothing beside {STREAM}: a stream that Ebb did not lay out tells no priorities; \
             leave it away",
            stray.key
        )))
    })
}

fn queue(given: &Given<'_>, broker: &QueueUrl) -> Result<Source, TriggerError> {
    let Some(entry) = given.get(QUEUE) else { return Ok(Source::Queue(broker.queue.clone())) };
    match broker.with_queue(entry.value) {
        Ok(url) => Ok(Source::Queue(url.queue)),
        Err(_) => Err(entry.invalid("use the name of a queue, 1 to 64 of a-z A-Z 0-9 . _ -")),
    }
}

/// Why nothing that others laid out can be looked at on this broker.
fn untold(stream: Entry<'_>, broker: &QueueUrl) -> TriggerError {
    let why = match broker.address {
        Address::Amqp(_) => {
            "RabbitMQ, which does not tell over AMQP what consumers hold: a busy pool would be taken \
             for an idle one"
        }
        _ => "the embedded queue, where nobody but Ebb lays out anything",
    };
    let key = stream.key;
    TriggerError(format!("{key}: the profile leads to {why}; use {QUEUE}, for a queue of Ebb"))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use ebb_queue::{Foreign, Source};

    use super::super::{Mode, Trigger};

    const NATS: &str = "nats://broker";
    const REDIS: &str = "redis://broker";

    fn parse(broker: &str, metadata: &[(&str, &str)]) -> Result<Trigger, String> {
        let broker = broker.parse().unwrap();
        Trigger::parse(metadata.iter().copied(), &broker).map_err(|error| error.to_string())
    }

    fn foreign(stream: &str, reader: &str) -> Source {
        Source::Foreign(Foreign { stream: stream.into(), reader: reader.into() })
    }

    #[test]
    fn a_trigger_of_kedas_own_scalers_is_taken_with_its_keys() {
        let nats = [("stream", "work"), ("consumer", "embedder"), ("lagThreshold", "4")];
        let trigger = parse(NATS, &[&nats[..], &[("activationLagThreshold", "2")]].concat());
        let trigger = trigger.unwrap();
        assert_eq!(trigger.source, foreign("work", "embedder"));
        assert_eq!(trigger.mode, Mode::Jobs { per_replica: 4.0 });
        assert_eq!(trigger.activation.jobs, 2);
        let redis = [
            ("streamFromEnv", "work:{eu}\n"),
            ("consumerGroup", "a group"),
            ("lagCount", "3"),
            ("activationLagCountFromEnv", "1"),
        ];
        let trigger = parse(REDIS, &redis).unwrap();
        assert_eq!(trigger.source, foreign("work:{eu}", "a group"));
        assert_eq!((trigger.target(), trigger.activation.jobs), (3.0, 1));
        // Of a queue they are a mistake as before.
        let told = parse(NATS, &[("queue", "a"), ("lagThreshold", "4")]).unwrap_err();
        assert!(told.contains("use jobsPerReplica"), "{told}");
        let twice = [nats[0], nats[1], nats[2], ("jobsPerReplica", "5")];
        let told = parse(NATS, &twice).unwrap_err();
        assert!(told.contains("jobsPerReplica and lagThreshold are both given"), "{told}");
    }

    /// A broker, what a trigger says of it, and what it is told.
    type Mistake = (&'static str, &'static [(&'static str, &'static str)], &'static str);

    #[test]
    fn what_cannot_be_meant_is_told_with_the_right_key() {
        let cases: [Mistake; 12] = [
            (NATS, &[("stream", "s"), ("queue", "q")], "queue and stream are both given"),
            (NATS, &[("consumer", "c")], "consumer says nothing without stream"),
            (REDIS, &[("consumerGroupFromEnv", "g")], "consumerGroupFromEnv says nothing without"),
            (NATS, &[("stream", "s")], "consumer is missing: beside stream"),
            (REDIS, &[("streamFromEnv", "s")], "consumerGroup is missing: beside streamFromEnv"),
            (
                NATS,
                &[("stream", "s"), ("consumerGroup", "g")],
                "consumerGroup says nothing on NATS, which the profile leads to; use consumer",
            ),
            (
                REDIS,
                &[("stream", "s"), ("consumer", "c")],
                "consumer says nothing on Redis, which the profile leads to; use consumerGroup",
            ),
            (
                "amqp://broker",
                &[("stream", "s"), ("consumer", "c")],
                "stream: the profile leads to RabbitMQ, which does not tell over AMQP what",
            ),
            ("sqlite:q.db", &[("stream", "s")], "stream: the profile leads to the embedded queue"),
            (
                NATS,
                &[("stream", "a.b"), ("consumer", "c")],
                "stream: \"a.b\" is not valid: use its name, 1 to 255 letters without . * > / \\",
            ),
            (
                NATS,
                &[("stream", "s"), ("consumer", "c"), ("mode", "cost")],
                "mode: mode cost adds up the ebb-cost of jobs",
            ),
            (
                REDIS,
                &[("stream", "s"), ("consumerGroup", "g"), ("activationPriority", "high")],
                "activationPriority says nothing beside stream",
            ),
        ];
        for (broker, metadata, expected) in cases {
            let told = parse(broker, metadata).unwrap_err();
            assert!(told.contains(expected), "{metadata:?}: {told}");
        }
        let url = [("stream", "redis://:hunter2@there"), ("consumerGroup", "g")];
        let told = parse(REDIS, &url).unwrap_err();
        assert!(told.contains("stream") && !told.contains("hunter"), "{told}");
        let hidden = [("streamFromEnv", "hunter.two"), ("consumer", "c")];
        let told = parse(NATS, &hidden).unwrap_err();
        assert!(told.contains("streamFromEnv") && !told.contains("hunter"), "{told}");
    }

    #[test]
    fn each_reader_of_each_stream_has_a_metric_of_its_own_and_one_that_kubernetes_takes() {
        let long = "x".repeat(255);
        let name = |broker: &str, stream: &str, reader: &str, rest: &[(&str, &str)]| {
            let key = if broker == NATS { "consumer" } else { "consumerGroup" };
            let given = [("stream", stream), (key, reader)];
            parse(broker, &[&given, rest].concat()).unwrap().metric_name()
        };
        let names = [
            name(NATS, "work", "a", &[]),
            name(NATS, "work", "b", &[]),
            name(NATS, "work", "a", &[("mode", "waiting")]),
            name(NATS, "work", "a", &[("profile", "night")]),
            name(REDIS, "work/a", "b", &[]),
            name(REDIS, "work", "a/b", &[]),
            name(REDIS, &long, &long, &[]),
            name(REDIS, &long, "x", &[]),
            parse(NATS, &[("queue", "work-a")]).unwrap().metric_name(),
        ];
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        for name in &names {
            assert!(name.bytes().all(fits) && name.len() < 100, "{name}");
        }
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len(), "{names:?}");
    }

    #[test]
    fn what_is_not_known_of_the_workers_of_others_is_told_beside_the_value() {
        let note = |metadata: &[(&str, &str)]| {
            let given = [("stream", "s"), ("consumer", "c")];
            parse(NATS, &[&given, metadata].concat()).unwrap().note()
        };
        assert_eq!(note(&[]), None);
        assert!(note(&[("mode", "drain")]).unwrap().contains("serviceSeconds"));
        assert!(note(&[("mode", "slo"), ("sloSeconds", "60")]).is_some());
        assert_eq!(parse(NATS, &[("mode", "drain")]).unwrap().note(), None);
    }
}
