//! The streams and consumers of a queue: made where they are missing, and read back, since a
//! server leaves out silently what it does not know.

use std::time::Duration;

use serde_json::{Value, json};

use super::api::{Api, ConsumerInfo, in_order};
use super::names::{LANES, Names};
use super::read::StreamInfo;
use crate::{Behavior, Error, ErrorKind, Missing, Result, STATUS_TTL, Timestamp};

/// Ids are remembered on the server at most this long: each costs it memory.
pub(super) const LONGEST_WINDOW: Duration = Duration::from_secs(120);

/// What a queue is to be.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub(super) names: &'a Names,
    pub(super) behavior: &'a Behavior,
    pub(super) replicas: u8,
    pub(super) missing: Missing,
}

/// How long an id is remembered after its publication.
pub(super) fn window(behavior: &Behavior) -> Duration {
    behavior.key_ttl.clamp(Duration::from_secs(1), LONGEST_WINDOW)
}

impl Wanted<'_> {
    /// Makes what is missing, compares what is there, and says since when there is the stream of the jobs.
    pub(super) async fn ensure(&self, api: &Api) -> Result<Timestamp> {
        // All at once: on a cluster each of them elects a leader.
        let streams = self.streams();
        let made = streams.iter().map(async |(stream, config)| {
            let info = self.stream(api, stream, config).await?;
            compare("stream", stream, config, &info.config)?;
            Ok(info.created)
        });
        // The first of them has the jobs, whose numbers begin anew when it is made anew.
        let created = in_order(made.collect()).await?.into_iter().next();
        let made = LANES.iter().map(async |lane| {
            let config = self.consumer_config(lane.consumer(), &self.names.filters(*lane));
            let info = self.consumer(api, lane.consumer(), &config).await?;
            let name = format!("{}/{}", self.names.jobs, lane.consumer());
            compare("consumer", &name, &config, &info.config)
        });
        in_order(made.collect()).await?;
        Ok(created.unwrap_or(Timestamp::MAX))
    }

    async fn stream(&self, api: &Api, stream: &str, config: &Value) -> Result<StreamInfo> {
        if let Some(info) = api.stream(stream).await? {
            return Ok(info);
        }
        self.may_create("stream", stream)?;
        let made = api.call::<StreamInfo>(&format!("STREAM.CREATE.{stream}"), config).await;
        match made {
            Ok(Some(info)) => Ok(info),
            // Somebody else may have been faster, in another way.
            made => match api.stream(stream).await? {
                Some(info) => Ok(info),
                None => Err(made.err().unwrap_or_else(|| self.not_made("stream", stream))),
            },
        }
    }

    async fn consumer(&self, api: &Api, name: &str, config: &Value) -> Result<ConsumerInfo> {
        let stream = &self.names.jobs;
        if let Some(info) = api.consumer(stream, name).await? {
            return Ok(info);
        }
        self.may_create("consumer", name)?;
        let request = json!({ "stream_name": stream, "config": config, "action": "create" });
        let what = format!("CONSUMER.CREATE.{stream}.{name}");
        match api.call::<ConsumerInfo>(&what, &request).await {
            Ok(Some(info)) => Ok(info),
            made => match api.consumer(stream, name).await? {
                Some(info) => Ok(info),
                None => Err(made.err().unwrap_or_else(|| self.not_made("consumer", name))),
            },
        }
    }

    fn may_create(&self, what: &str, name: &str) -> Result<()> {
        match self.missing {
            Missing::Create => Ok(()),
            Missing::Refuse => {
                let words = format!(
                    "there is no queue {} on its NATS server ({what} {name} is missing); make it \
                     by `ebb queue init`",
                    self.names.queue
                );
                Err(Error::new(ErrorKind::Invalid, words).of_no_queue())
            }
        }
    }

    fn not_made(&self, what: &str, name: &str) -> Error {
        // In a cluster whoever is asked may not have heard yet of what was made a moment ago.
        let kind = match self.replicas {
            0 | 1 => ErrorKind::Internal,
            _ => ErrorKind::Unavailable,
        };
        Error::new(kind, format!("the NATS server did not make {what} {name}"))
    }

    fn streams(&self) -> [(&str, Value); 6] {
        let Self { names, behavior, replicas, .. } = self;
        let stream = |name: &str, subjects: Vec<String>, own: Value| {
            let mut config = json!({
                "name": name,
                "subjects": subjects,
                "retention": "limits",
                "storage": "file",
                "discard": "old",
                "max_msgs": -1,
                "max_bytes": -1,
                "max_age": 0,
                "max_msgs_per_subject": 1,
                "num_replicas": replicas,
                "allow_direct": true,
            });
            for (key, value) in own.as_object().into_iter().flatten() {
                config[key] = value.clone();
            }
            config
        };
        let mut jobs: Vec<_> = LANES.iter().flat_map(|lane| names.filters(*lane)).collect();
        jobs.push(names.subject("jobs.later.*.*"));
        let job_window = nanos(window(behavior));
        let work = json!({
            "retention": "workqueue",
            "discard": "new",
            "max_msgs_per_subject": -1,
            "duplicate_window": job_window,
        });
        let aged = |age: Duration| {
            let short = age.min(LONGEST_WINDOW);
            json!({ "max_age": nanos(age), "duplicate_window": nanos(short) })
        };
        let dead = json!({ "duplicate_window": job_window });
        let status = json!({
            "storage": "memory",
            "max_age": nanos(STATUS_TTL),
            "duplicate_window": nanos(STATUS_TTL),
        });
        let results = vec![names.subject("results.*"), names.subject("chunks.*.*.*")];
        let notes = behavior.lease.saturating_mul(10).max(Duration::from_secs(3600));
        [
            (&names.jobs, stream(&names.jobs, jobs, work)),
            (&names.dead, stream(&names.dead, vec![names.subject("dead.*")], dead)),
            (&names.results, stream(&names.results, results, aged(behavior.result_ttl))),
            (
                &names.keys,
                stream(&names.keys, vec![names.subject("keys.*")], aged(behavior.key_ttl)),
            ),
            (&names.notes, stream(&names.notes, vec![names.subject("notes.*.*")], aged(notes))),
            (&names.status, stream(&names.status, vec![names.subject("status.*")], status)),
        ]
        .map(|(name, config)| (name.as_str(), config))
    }

    fn consumer_config(&self, name: &str, filters: &[String]) -> Value {
        let mut config = json!({
            "name": name,
            "durable_name": name,
            "deliver_policy": "all",
            "ack_policy": "explicit",
            "ack_wait": nanos(self.behavior.lease),
            "max_deliver": -1,
            "max_ack_pending": -1,
            "replay_policy": "instant",
        });
        match filters {
            [filter] => config["filter_subject"] = json!(filter),
            filters => config["filter_subjects"] = json!(filters),
        }
        config
    }
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX).min(i64::MAX.cast_unsigned())
}

/// Says by which fields what is there differs from what was asked for.
fn compare(what: &str, name: &str, wanted: &Value, found: &Value) -> Result<()> {
    let mut differs = Vec::new();
    for (key, value) in wanted.as_object().into_iter().flatten() {
        let known = found.get(key).unwrap_or(&Value::Null);
        if known == value || (known.is_null() && is_nothing(value)) {
            continue;
        }
        let because = match &**key {
            "ack_wait" => " (option lease)",
            "num_replicas" => " (option replicas)",
            "max_age" => " (option result_ttl or key_ttl)",
            "duplicate_window" => " (option key_ttl)",
            _ => "",
        };
        differs.push(format!("{key}{because} is {known} where {value} is wanted"));
    }
    if differs.is_empty() {
        return Ok(());
    }
    let words = format!(
        "the {what} {name} on the NATS server does not fit: {}; give the options it was made with, \
         change it by the nats tool, or delete it and make it anew by `ebb queue init` (a server \
         older than 2.10 leaves out silently what it does not know)",
        differs.join(", ")
    );
    Err(Error::new(ErrorKind::Incompatible, words))
}

fn is_nothing(value: &Value) -> bool {
    value.is_null() || *value == json!(0) || *value == json!(false) || *value == json!([])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_left_out_is_named() {
        let wanted = json!({ "filter_subjects": ["a", "b"], "ack_wait": 5, "max_age": 0 });
        assert!(compare("consumer", "x", &wanted, &wanted).is_ok());
        let less = json!({ "ack_wait": 7 });
        let error = compare("consumer", "x", &wanted, &less).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Incompatible);
        let words = error.to_string();
        assert!(words.contains("filter_subjects is null"), "{words}");
        assert!(words.contains("ack_wait (option lease) is 7 where 5 is wanted"), "{words}");
        assert!(!words.contains("max_age"), "{words}");
    }
}
