//! JetStream's own requests: publish, delete, pull, acknowledge, and the errors they answer with.

use std::time::Duration;

use async_nats::{Client, HeaderMap, Message, RequestErrorKind, StatusCode, Subject};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task::unconstrained;
use tokio::time::Instant;

use super::connect::Refusal;
use super::entry::EXPECTED_LAST;
use crate::{Error, ErrorKind, Result};

/// No stream of that name.
const NO_STREAM: u32 = 10059;
/// No consumer of that name.
const NO_CONSUMER: u32 = 10014;
/// Somebody else wrote to the subject since we looked.
const MOVED_ON: u32 = 10071;
/// The last message has another id, or what is asked for is no rollup.
const NOT_SO: [u32; 2] = [10070, 10111];
/// No message of that number.
const NO_MESSAGE: [u32; 3] = [10037, 10043, 10057];
/// The stream has as much as it may.
const FULL: [u32; 4] = [10002, 10047, 10077, 10023];
/// The stream, or NATS, takes no message or no headers of that size.
const TOO_LARGE: [u32; 2] = [10054, 10097];
/// JetStream is switched off, here or for our account.
const SWITCHED_OFF: [u32; 2] = [10076, 10039];
/// A cluster stores the same id, or something else on the same subject, at this moment.
const IN_FLIGHT: [u32; 2] = [10158, 10164];
/// More replicas than servers: one alone, and a cluster that has too few of them up.
const ALONE: u32 = 10074;
const TOO_FEW: u32 = 10005;
/// Who answered leads no more, or has too much to do.
const BUSY: [u32; 2] = [10009, 10167];
/// How often, and how long after, what is in flight is sent again.
const TRIES_IN_FLIGHT: u32 = 50;
/// The same of what may be believed to be on its way and never come, while others wait.
const TRIES_TO_FOLLOW: u32 = 25;
const MOMENT: Duration = Duration::from_millis(20);

/// A connection with the words of JetStream.
#[derive(Debug, Clone)]
pub(super) struct Api {
    pub(super) client: Client,
    pub(super) refusal: Refusal,
    /// How many servers keep each stream.
    pub(super) replicas: u8,
}

/// What became of a publication.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct PubAck {
    pub(super) seq: u64,
    #[serde(default)]
    pub(super) duplicate: bool,
}

/// A consumer, as far as we look.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct ConsumerInfo {
    pub(super) config: Value,
    pub(super) delivered: Delivered,
    /// Messages that it was not handed yet.
    #[serde(default)]
    pub(super) num_pending: u64,
}

/// How far a consumer has come.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Delivered {
    pub(super) stream_seq: u64,
}

#[derive(Debug, Deserialize)]
struct Refused {
    #[serde(default)]
    code: u32,
    #[serde(default)]
    err_code: u32,
    #[serde(default)]
    description: String,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Answer<T> {
    Refused { error: Refused },
    Given(T),
}

/// Answered from JetStream with `None` where what was asked for is not there.
pub(super) type Found<T> = Result<Option<T>>;

impl Api {
    /// Sends one request and waits for its answer.
    pub(super) async fn ask(
        &self,
        subject: &str,
        headers: Option<HeaderMap>,
        body: Bytes,
    ) -> Result<Message> {
        let begin = Instant::now();
        let mut request = async_nats::Request::new().payload(body);
        if let Some(headers) = headers {
            request = request.headers(headers);
        }
        self.client.send_request(subject.to_owned(), request).await.map_err(|error| {
            if let Some(words) = self.refusal.of(subject, begin) {
                let words = format!("the NATS server refused {subject}: {words}");
                return Error::new(ErrorKind::Denied, words).caused_by(error);
            }
            let (kind, words) = match error.kind() {
                RequestErrorKind::TimedOut => (ErrorKind::Unavailable, "does not answer"),
                RequestErrorKind::NoResponders => {
                    let words = "has nobody who answers; is JetStream enabled there, and, on a \
                                 cluster, is the majority of its servers up?";
                    (ErrorKind::Unavailable, words)
                }
                RequestErrorKind::MaxPayloadExceeded => {
                    (ErrorKind::Invalid, "takes no message of that size (max_payload)")
                }
                RequestErrorKind::InvalidSubject => (ErrorKind::Internal, "has no such subject"),
                RequestErrorKind::Other => (ErrorKind::Unavailable, "cannot be asked"),
            };
            Error::new(kind, format!("the NATS server {words}: {subject}")).caused_by(error)
        })
    }

    async fn ask_for<T: DeserializeOwned>(
        &self,
        subject: &str,
        headers: Option<HeaderMap>,
        body: Bytes,
    ) -> Result<Result<T, Refused>> {
        let message = self.ask(subject, headers, body).await?;
        match serde_json::from_slice(&message.payload) {
            Ok(Answer::Given(given)) => Ok(Ok(given)),
            Ok(Answer::Refused { error }) => Ok(Err(error)),
            Err(error) => {
                let words = format!("the answer to {subject} cannot be read; is it JetStream's?");
                Err(Error::new(ErrorKind::Incompatible, words).caused_by(error))
            }
        }
    }

    /// Asks the API of JetStream; `None` where the thing is missing.
    pub(super) async fn call<T: DeserializeOwned>(&self, what: &str, request: &Value) -> Found<T> {
        let subject = format!("$JS.API.{what}");
        match self.ask_for(&subject, None, request.to_string().into()).await? {
            Ok(given) => Ok(Some(given)),
            Err(refused) if is_missing(&refused) => Ok(None),
            Err(refused) => Err(refused.into_error(&subject)),
        }
    }

    /// Stores a message, once it is on the server's disk as far as that goes.
    pub(super) async fn publish(
        &self,
        subject: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<PubAck> {
        let stored = self.store(subject, headers, body).await?;
        stored.map_err(|refused| refused.into_error(subject))
    }

    /// The same of what may be stored by this id already; none where the server refuses it, or takes it for
    /// being on its way and it does not come: an older cluster does so of what it refused once.
    pub(super) async fn follow(
        &self,
        subject: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Found<PubAck> {
        match self.try_store(TRIES_TO_FOLLOW, subject, headers, body).await? {
            Some(Ok(ack)) => Ok(Some(ack)),
            Some(Err(refused)) => {
                let error = refused.into_error(subject);
                match error.kind() {
                    ErrorKind::Unavailable | ErrorKind::Denied => Err(error),
                    _ => {
                        tracing::debug!(%error, "not stored anew");
                        Ok(None)
                    }
                }
            }
            None => Ok(None),
        }
    }

    /// Under which number the server knows a message by this id, if it has not forgotten it; stores
    /// nothing.
    pub(super) async fn known(&self, subject: &str, id: &str) -> Found<u64> {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", id);
        // Whether the id is known is looked at first, and then these, which are not so. The first, which no
        // server knows, a cluster refuses before it takes the id for one that is on its way, unless it is an
        // older one.
        headers.insert("Nats-Rollup", "ebb: nothing");
        headers.insert("Nats-Expected-Last-Msg-Id", "ebb: no message");
        match self.store(subject, headers, Bytes::new()).await? {
            Ok(ack) if ack.duplicate => Ok(Some(ack.seq)),
            Ok(_) => {
                let words = "the NATS server stores what it was told to store in no case";
                Err(Error::new(ErrorKind::Incompatible, words))
            }
            Err(refused) if NOT_SO.contains(&refused.err_code) => Ok(None),
            Err(refused) => Err(refused.into_error(subject)),
        }
    }

    /// Stores a message unless the last one on its subject is another than this, 0 for none.
    pub(super) async fn swap(
        &self,
        subject: &str,
        mut headers: HeaderMap,
        body: Bytes,
        last: u64,
    ) -> Found<u64> {
        headers.insert(EXPECTED_LAST, last.to_string());
        match self.store(subject, headers, body).await? {
            Ok(ack) => Ok(Some(ack.seq)),
            Err(refused) if refused.err_code == MOVED_ON => Ok(None),
            Err(refused) => Err(refused.into_error(subject)),
        }
    }

    async fn store(
        &self,
        subject: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Result<PubAck, Refused>> {
        let stored = self.try_store(TRIES_IN_FLIGHT, subject, headers, body).await?;
        stored.ok_or_else(|| {
            let words = format!("the NATS server stores the same at this moment: {subject}");
            Error::new(ErrorKind::Unavailable, words)
        })
    }

    /// None where the same was on its way each time.
    async fn try_store(
        &self,
        tries: u32,
        subject: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Found<Result<PubAck, Refused>> {
        for _ in 0..tries {
            match self.ask_for::<PubAck>(subject, Some(headers.clone()), body.clone()).await? {
                // Older clusters take an id for known once it is on its way, which may be in vain.
                Ok(ack) if ack.duplicate && ack.seq == 0 => {}
                Err(refused) if IN_FLIGHT.contains(&refused.err_code) => {}
                stored => return Ok(Some(stored)),
            }
            tokio::time::sleep(MOMENT).await;
        }
        Ok(None)
    }

    /// Sends without waiting; for what is told again before long.
    pub(super) async fn tell(&self, subject: &str, body: Bytes) {
        if let Err(error) = self.client.publish(subject.to_owned(), body).await {
            tracing::debug!(%error, subject, "not told");
        }
    }

    /// Deletes a message; false when it was gone.
    pub(super) async fn delete(&self, stream: &str, seq: u64) -> Result<bool> {
        let request = json!({ "seq": seq, "no_erase": true });
        let deleted: Option<Value> =
            self.call(&format!("STREAM.MSG.DELETE.{stream}"), &request).await?;
        Ok(deleted.is_some())
    }

    /// Deletes what fits: by subject, by number, or all.
    pub(super) async fn purge(&self, stream: &str, which: &Value) -> Result<()> {
        let _: Option<Value> = self.call(&format!("STREAM.PURGE.{stream}"), which).await?;
        Ok(())
    }

    pub(super) async fn consumer(&self, stream: &str, name: &str) -> Found<ConsumerInfo> {
        self.call(&format!("CONSUMER.INFO.{stream}.{name}"), &json!({})).await
    }

    /// Takes what a consumer has ready, at most so many.
    pub(super) async fn pull(
        &self,
        stream: &str,
        consumer: &str,
        max: usize,
    ) -> Result<Vec<Message>> {
        let inbox = Subject::from(self.client.new_inbox());
        let gone = |error: String| Error::new(ErrorKind::Unavailable, error);
        let mut answers = self
            .client
            .subscribe(inbox.clone())
            .await
            .map_err(|error| gone(format!("cannot subscribe: {error}")))?;
        let request = json!({ "batch": max, "no_wait": true }).to_string();
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}");
        let begin = Instant::now();
        let sent = self.client.publish_with_reply(subject.clone(), inbox, request.into()).await;
        sent.map_err(|error| gone(format!("cannot ask for jobs: {error}")))?;
        let mut messages = Vec::new();
        while messages.len() < max {
            let next = tokio::time::timeout(PULL_ANSWER, answers.next()).await;
            let Ok(Some(message)) = next else {
                if !messages.is_empty() {
                    break;
                }
                if let Some(words) = self.refusal.of(&subject, begin) {
                    let words = format!("the NATS server refused {subject}: {words}");
                    return Err(Error::new(ErrorKind::Denied, words));
                }
                return Err(gone(format!("the NATS server does not answer: {subject}")));
            };
            match message.status {
                None => messages.push(message),
                Some(StatusCode::NOT_FOUND | StatusCode::TIMEOUT) => break,
                Some(_) if !messages.is_empty() => break,
                Some(status) => {
                    let words = format!("{subject} was answered with {status}");
                    return Err(gone(words));
                }
            }
        }
        Ok(messages)
    }

    /// Acknowledges a delivery in one of JetStream's ways, and waits until that is known.
    pub(super) async fn ack(&self, reply: &str, way: impl Into<Bytes>) -> Result<()> {
        self.ask(reply, None, way.into()).await.map(drop)
    }
}

/// Requests on their way at the same time.
const AT_ONCE: usize = 256;

/// Sends requests one after the other without waiting between them, and waits for all answers.
pub(super) async fn in_order<T>(requests: Vec<impl Future<Output = Result<T>>>) -> Result<Vec<T>> {
    // The runtime has a task pause after some operations; the request in which that falls would be
    // sent after those behind it.
    unconstrained(stream::iter(requests).buffered(AT_ONCE).try_collect()).await
}

/// A pull answers at once; this long only where the server is gone.
const PULL_ANSWER: Duration = Duration::from_secs(3);

impl Refused {
    fn into_error(self, subject: &str) -> Error {
        let Self { code, err_code, description } = self;
        let (kind, remedy) = match err_code {
            _ if FULL.contains(&err_code) => (ErrorKind::Full, "; make room, or raise its limits"),
            _ if SWITCHED_OFF.contains(&err_code) => {
                (ErrorKind::Denied, "; enable JetStream there, for our account too")
            }
            _ if TOO_LARGE.contains(&err_code) => {
                (ErrorKind::Invalid, "; send less, or raise max_msg_size of the stream")
            }
            ALONE => (ErrorKind::Invalid, "; option replicas above 1 needs a cluster"),
            TOO_FEW => (
                ErrorKind::Unavailable,
                "; fewer servers than option replicas asks for are there: start them, or give less",
            ),
            _ if code == 503 || BUSY.contains(&err_code) => (ErrorKind::Unavailable, ""),
            _ => (ErrorKind::Internal, ""),
        };
        let words =
            format!("the NATS server refused {subject}: {description} ({err_code}){remedy}");
        Error::new(kind, words)
    }
}

fn is_missing(refused: &Refused) -> bool {
    let missing = [NO_STREAM, NO_CONSUMER];
    missing.contains(&refused.err_code) || NO_MESSAGE.contains(&refused.err_code)
}
