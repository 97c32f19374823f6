//! What the server tells of a consumer and of its stream, to whoever may ask for one or for both.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::super::api::Api;
use super::super::awake::Glance;
use super::super::read::Keepers;
use crate::source::Foreign;
use crate::{Error, ErrorKind, Result, Timestamp};

/// The server tells what it refuses apart from the request, at once; the client needs a moment more.
pub(super) const MOMENT: Duration = Duration::from_millis(10);

/// A consumer as the server tells of it.
#[derive(Debug, Deserialize)]
pub(super) struct Told {
    pub(super) config: Config,
    /// When it was made.
    #[serde(default)]
    pub(super) created: String,
    pub(super) delivered: Delivered,
    #[serde(default)]
    pub(super) num_pending: u64,
    #[serde(default)]
    pub(super) num_ack_pending: u64,
    #[serde(default)]
    pub(super) ts: Option<Timestamp>,
    #[serde(default)]
    pub(super) cluster: Keepers,
}

#[derive(Debug, PartialEq, Deserialize)]
pub(super) struct Config {
    #[serde(default)]
    pub(super) ack_policy: String,
    #[serde(default)]
    pub(super) filter_subject: String,
    #[serde(default)]
    pub(super) filter_subjects: Vec<String>,
    /// 0 where it is kept by as many servers as its stream.
    #[serde(default)]
    pub(super) num_replicas: u64,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(super) struct Delivered {
    pub(super) consumer_seq: u64,
    pub(super) stream_seq: u64,
}

impl Config {
    pub(super) fn filters(&self) -> Vec<&str> {
        let one = Some(&*self.filter_subject).filter(|filter| !filter.is_empty());
        one.into_iter().chain(self.filter_subjects.iter().map(String::as_str)).collect()
    }
}

impl Told {
    /// How many servers keep it; who may look at the consumer need not be allowed to look at its stream.
    pub(super) fn n_servers(&self) -> u64 {
        self.config.num_replicas.max(self.cluster.n_known())
    }

    /// Who leads it, and what changes with whatever is stored for it, handed out or acknowledged.
    pub(super) fn glance(&self) -> Glance {
        let state = [self.delivered.stream_seq, self.num_pending, self.num_ack_pending];
        Glance { leader: self.cluster.leader.clone(), state }
    }

    /// Whether there is nothing to do, as the one tells it that answered.
    pub(super) fn is_empty(&self) -> bool {
        self.num_pending + self.num_ack_pending == 0
    }
}

/// A consumer that is there, and tells what is in flight.
pub(super) async fn consumer(api: &Api, foreign: &Foreign) -> Result<Told> {
    let Foreign { stream, reader } = foreign;
    let what = format!("CONSUMER.INFO.{stream}.{reader}");
    let told: Option<Told> = heard(api, &what, api.call(&what, &json!({}))).await?;
    if let Some(told) = told {
        if !told.cluster.are_sure(told.n_servers()) {
            let words = format!(
                "the consumer {reader} of the stream {stream} has no leader that a majority of its \
                 NATS servers follows"
            );
            return Err(Error::new(ErrorKind::Unavailable, words));
        }
        if told.config.ack_policy == "none" {
            let words = format!(
                "consumer: {reader} of stream {stream} has the ack_policy none: nobody tells what \
                 its workers hold, so a busy pool would be taken for an idle one; make it with \
                 explicit"
            );
            return Err(Error::new(ErrorKind::Invalid, words));
        }
        return Ok(told);
    }
    let words = match self::stream(api, foreign).await {
        Ok(None) => format!(
            "stream: JetStream has no stream {stream:?} in the account of the scaler; correct the \
             name in the trigger, or the account in the profile, or make the stream"
        ),
        Err(error) if error.kind() != ErrorKind::Denied => return Err(error),
        Ok(Some(_)) | Err(_) => format!(
            "consumer: the stream {stream:?} of JetStream has no consumer {reader:?}; correct the \
             name in the trigger, or make a durable consumer of that name (the scaler makes none)"
        ),
    };
    Err(Error::new(ErrorKind::Missing, words))
}

/// How the stream is set, where there is one.
pub(super) async fn stream(api: &Api, foreign: &Foreign) -> Result<Option<Value>> {
    let what = format!("STREAM.INFO.{}", foreign.stream);
    Ok(heard(api, &what, api.stream(&foreign.stream)).await?.map(|info| info.config))
}

/// What is answered; or at once that it may not be asked, which is told apart from the answer that
/// would be waited for.
pub(super) async fn heard<T>(
    api: &Api,
    what: &str,
    asked: impl Future<Output = Result<T>>,
) -> Result<T> {
    let begin = Instant::now();
    let refused = async {
        loop {
            sleep(MOMENT).await;
            if let Some(words) = api.refusal.since(begin).filter(|words| words.contains(what)) {
                return words;
            }
        }
    };
    tokio::select! {
        answer = asked => answer,
        words = refused => {
            let words = format!("the NATS server refused to be asked: {words}");
            Err(Error::new(ErrorKind::Denied, words))
        }
    }
}
