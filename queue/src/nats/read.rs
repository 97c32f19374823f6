//! What lies in the streams. On a cluster only from whoever leads: a replica may be behind, and what
//! is decided by an old answer loses jobs.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::RawMessage;
use async_nats::{HeaderMap, Message, StatusCode};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::api::{Api, Found};
use super::awake::Glance;
use crate::{Error, ErrorKind, Result, Timestamp};

/// Replicas that heard nothing for four seconds may elect another leader; one that was followed more
/// lately than this is still the only one.
pub(super) const FOLLOWED: Duration = Duration::from_secs(3);

/// A message as a stream keeps it.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub(super) subject: String,
    pub(super) seq: u64,
    pub(super) at: Timestamp,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// The answer of whoever leads.
#[derive(Deserialize)]
struct Raw {
    message: RawMessage,
}

/// A stream, as far as we look.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct StreamInfo {
    pub(super) config: Value,
    pub(super) created: Timestamp,
    pub(super) state: StreamState,
    #[serde(default)]
    pub(super) ts: Option<Timestamp>,
    #[serde(default)]
    pub(super) total: u64,
    #[serde(default)]
    pub(super) cluster: Keepers,
}

/// What lies in a stream.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct StreamState {
    pub(super) messages: u64,
    pub(super) first_seq: u64,
    pub(super) last_seq: u64,
    #[serde(default)]
    pub(super) subjects: Option<BTreeMap<String, u64>>,
}

/// The servers that keep a stream, as the one sees them that answered.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Keepers {
    #[serde(default)]
    pub(super) leader: String,
    #[serde(default)]
    replicas: Vec<Keeper>,
}

/// One beside the leader.
#[derive(Debug, Clone, Deserialize)]
struct Keeper {
    /// Nanoseconds since it was heard; 0 where it never was.
    #[serde(default)]
    active: u64,
}

impl StreamInfo {
    /// Who leads it (nobody where one server is alone), and what changes with each message that comes or
    /// goes.
    pub(super) fn glance(&self) -> Glance {
        let StreamState { messages, first_seq, last_seq, .. } = self.state;
        Glance { leader: self.cluster.leader.clone(), state: [messages, first_seq, last_seq] }
    }

    fn is_sure(&self) -> bool {
        self.cluster.are_sure(self.config["num_replicas"].as_u64().unwrap_or(1))
    }
}

impl Keepers {
    /// Whether what so many servers keep stands as it was told. While there is no leader any replica
    /// answers, and one that was held up or cut off takes itself for the leader for some seconds: what
    /// was stored since is unknown to both.
    pub(super) fn are_sure(&self, n_servers: u64) -> bool {
        let is_near = |one: &&Keeper| (1..FOLLOWED.as_nanos()).contains(&u128::from(one.active));
        let n_near = 1 + self.replicas.iter().filter(is_near).count() as u64;
        n_servers == 1 || (!self.leader.is_empty() && 2 * n_near > n_servers)
    }

    /// How many servers they are, as far as whoever answered knows.
    pub(super) fn n_known(&self) -> u64 {
        1 + self.replicas.len() as u64
    }
}

impl Api {
    /// The last message on a subject.
    pub(super) async fn last(&self, stream: &str, subject: &str) -> Found<Kept> {
        self.get(stream, &json!({ "last_by_subj": subject })).await
    }

    /// The message of this number.
    pub(super) async fn at(&self, stream: &str, seq: u64) -> Found<Kept> {
        self.get(stream, &json!({ "seq": seq })).await
    }

    /// The first message from this number on whose subject fits.
    pub(super) async fn next(&self, stream: &str, seq: u64, subject: &str) -> Found<Kept> {
        self.get(stream, &json!({ "seq": seq, "next_by_subj": subject })).await
    }

    async fn get(&self, stream: &str, request: &Value) -> Found<Kept> {
        match self.replicas {
            1 => self.get_from_any(stream, request).await,
            _ => self.get_from_leader(stream, request).await,
        }
    }

    /// Where one server keeps the stream: this way costs it less.
    async fn get_from_any(&self, stream: &str, request: &Value) -> Found<Kept> {
        let subject = format!("$JS.API.DIRECT.GET.{stream}");
        let message = self.ask(&subject, None, request.to_string().into()).await?;
        match message.status {
            None => Ok(Some(kept(message)?)),
            Some(StatusCode::NOT_FOUND) => Ok(None),
            Some(status) => {
                let words = format!("{subject} was answered with {status}");
                Err(Error::new(ErrorKind::Internal, words))
            }
        }
    }

    async fn get_from_leader(&self, stream: &str, request: &Value) -> Found<Kept> {
        let got: Option<Raw> = self.call(&format!("STREAM.MSG.GET.{stream}"), request).await?;
        got.map(|raw| kept_raw(raw.message)).transpose()
    }

    /// A stream; an error where nobody knows how it stands.
    pub(super) async fn stream(&self, stream: &str) -> Found<StreamInfo> {
        self.look(stream, &json!({})).await
    }

    /// A stream with the number of messages on each subject that fits.
    pub(super) async fn subjects(&self, stream: &str, filter: &str) -> Found<StreamInfo> {
        let Some(mut info) = self.look(stream, &json!({ "subjects_filter": filter })).await? else {
            return Ok(None);
        };
        let mut subjects = info.state.subjects.take().unwrap_or_default();
        while (subjects.len() as u64) < info.total {
            let request = json!({ "subjects_filter": filter, "offset": subjects.len() });
            let page = self.look(stream, &request).await?;
            let more = page.and_then(|page| page.state.subjects).unwrap_or_default();
            if more.is_empty() {
                break;
            }
            subjects.extend(more);
        }
        info.state.subjects = Some(subjects);
        Ok(Some(info))
    }

    async fn look(&self, stream: &str, request: &Value) -> Found<StreamInfo> {
        let info: Option<StreamInfo> = self.call(&format!("STREAM.INFO.{stream}"), request).await?;
        match info {
            Some(info) if !info.is_sure() => {
                let words = format!(
                    "the stream {stream} has no leader that a majority of its NATS servers follows"
                );
                Err(Error::new(ErrorKind::Unavailable, words))
            }
            info => Ok(info),
        }
    }
}

fn kept(message: Message) -> Result<Kept> {
    let headers = message.headers.unwrap_or_default();
    let text = |name: &str| headers.get(name).map(|value| value.as_str().to_owned());
    let read = || {
        let seq = text("Nats-Sequence")?.parse().ok()?;
        Some((seq, text("Nats-Time-Stamp")?.parse().ok()?))
    };
    let (seq, at) = read().ok_or_else(|| {
        Error::new(ErrorKind::Incompatible, "a stored message came without its number")
    })?;
    let subject = text("Nats-Subject").unwrap_or_default();
    Ok(Kept { subject, seq, at, headers, body: message.payload })
}

fn kept_raw(raw: RawMessage) -> Result<Kept> {
    let wrong = || Error::new(ErrorKind::Incompatible, "a stored message cannot be read");
    let message = StreamMessage::try_from(raw).map_err(|error| wrong().caused_by(error))?;
    let nanos = message.time.unix_timestamp_nanos();
    let at = Timestamp::from_nanosecond(nanos).map_err(|error| wrong().caused_by(error))?;
    Ok(Kept {
        subject: message.subject.to_string(),
        seq: message.sequence,
        at,
        headers: message.headers,
        body: message.payload,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_leader_that_is_followed_knows_how_a_stream_stands() {
        const NEAR: u64 = 900_000_000;
        const FAR: u64 = 3_100_000_000;
        for (n_servers, leader, active, is_sure) in [
            (1, "", &[][..], true),
            (3, "n1", &[NEAR, NEAR], true),
            (3, "n1", &[NEAR, FAR], true),
            (5, "n1", &[NEAR, NEAR, FAR, FAR], true),
            // Any replica answers where nobody leads.
            (3, "", &[NEAR, NEAR], false),
            // Held up or cut off: others may have elected another.
            (3, "n1", &[FAR, FAR], false),
            (5, "n1", &[NEAR, FAR, FAR, FAR], false),
            // Never heard.
            (3, "n1", &[0, 0], false),
            (3, "n1", &[], false),
        ] {
            let replicas: Vec<_> =
                active.iter().map(|active| json!({ "active": active })).collect();
            let info = json!({
                "config": { "num_replicas": n_servers },
                "created": "2030-01-31T12:00:00Z",
                "state": { "messages": 0, "first_seq": 0, "last_seq": 0 },
                "cluster": { "name": "c", "leader": leader, "replicas": replicas },
            });
            let info: StreamInfo = serde_json::from_value(info).unwrap();
            assert_eq!(info.is_sure(), is_sure, "{n_servers} {leader} {active:?}");
        }
    }
}
