//! What a handle says and hears: statuses, arrivals, replies, and what the server is.

use std::time::Duration;

use async_nats::{HeaderMap, HeaderValue};
use async_stream::stream;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::time::timeout;

use super::api::in_order;
use super::bell::{self, Bell, HUSH};
use super::names::{check_reply_to, token};
use super::{LIMITS, NatsQueue};
use crate::{Error, ErrorKind, Info, JobId, JobResult, Result, Warning, WorkerStatus, header};

/// So often a listener looks whether the connection was lost meanwhile.
const HEARTBEAT: Duration = Duration::from_millis(500);

impl NatsQueue {
    pub(super) async fn alive(&self) -> Result<Vec<WorkerStatus>> {
        let shared = &*self.shared;
        let stream = &shared.names.status;
        let info = shared.api.subjects(stream, &shared.names.subject("status.*")).await?;
        let subjects = info.and_then(|info| info.state.subjects).unwrap_or_default();
        let looks = subjects.keys().map(|subject| shared.api.last(stream, subject)).collect();
        let kept = in_order(looks).await?;
        // One of a newer version is not worth hiding the others for.
        Ok(kept.iter().flatten().filter_map(|kept| WorkerStatus::decode(&kept.body).ok()).collect())
    }

    pub(super) async fn say(&self, status: &WorkerStatus) -> Result<()> {
        let shared = &*self.shared;
        let subject = shared.names.subject(&format!("status.{}", token(&status.id)));
        let stored = shared.api.publish(&subject, HeaderMap::new(), status.encode().into());
        stored.await?;
        let before = {
            let mut phases =
                shared.phases.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            phases.insert(status.id.clone(), status.phase)
        };
        if before != Some(status.phase) {
            shared.api.tell(&shared.names.subject("phase"), Bytes::new()).await;
        }
        Ok(())
    }

    pub(super) async fn hear(&self) -> Result<BoxStream<'static, ()>> {
        let queue = self.clone();
        let mut subjects = self.job_subjects().to_vec();
        subjects.push(self.shared.names.subject("phase"));
        let first = self.listen(&subjects).await?;
        let link = self.shared.link.clone();
        let listen = move || {
            let (queue, subjects) = (queue.clone(), subjects.clone());
            async move { queue.listen(&subjects).await }
        };
        let told = bell::told(first, link, HUSH, |_| false, listen);
        let queue = self.clone();
        // Whoever listens looks now and then.
        let keep = async move { queue.shared.awake.keep(|| queue.glance()).await };
        Ok(told.take_until(keep).boxed())
    }

    pub(super) async fn hear_of_cancelled(&self) -> Result<BoxStream<'static, JobId>> {
        let (api, mut n_losses) = (&self.shared.api, self.shared.link.n_losses());
        let subscribed = api.client.subscribe(self.shared.names.subject("cancelled")).await;
        let mut told = subscribed.map_err(|error| {
            Error::new(ErrorKind::Unavailable, format!("cannot subscribe: {error}"))
        })?;
        // The server answers in turn: it has read the subscription when it answers this.
        api.stream(&self.shared.names.status).await?;
        let queue = self.clone();
        let ids = stream! {
            loop {
                let heard = timeout(HEARTBEAT, told.next()).await;
                let link = &queue.shared.link;
                // Read once: of a loss between two looks nobody would be told.
                let n_by_now = link.n_losses();
                if n_by_now != n_losses && link.is_up() {
                    n_losses = n_by_now;
                    queue.look_anew();
                    // Any of them may have been cancelled meanwhile.
                    for id in queue.shared.leases.jobs() {
                        yield id;
                    }
                }
                let Ok(heard) = heard else { continue };
                let Some(told) = heard else { break };
                queue.look_anew();
                if let Some(id) = std::str::from_utf8(&told.payload).ok().and_then(|id| id.parse().ok()) {
                    yield id;
                }
            }
        };
        Ok(ids.boxed())
    }

    /// Listens from now on, also to what others publish on other connections.
    async fn listen(&self, subjects: &[String]) -> Result<Bell> {
        let shared = &*self.shared;
        let bell = Bell::arm(&shared.api.client, subjects).await?;
        // The server answers in turn: it has read the subscription when it answers this.
        shared.api.stream(&shared.names.status).await?;
        Ok(bell)
    }

    pub(super) async fn send(
        &self,
        to: &str,
        result: &JobResult,
        traceparent: Option<&str>,
    ) -> Result<()> {
        check_reply_to(to)?;
        let (content_type, body) = result.reply_body();
        let mut headers = HeaderMap::new();
        headers.insert(header::ID, result.id.as_str());
        headers.insert(header::ATTEMPT, result.attempt.to_string());
        headers.insert(header::OUTCOME, result.outcome.word());
        if let Some(kind) = result.outcome.failure_kind() {
            headers.insert(header::KIND, kind.word());
        }
        if let Some(queue) = &result.queue {
            headers.insert(header::QUEUE, queue.as_str());
        }
        if let Ok(content_type) = content_type.parse::<HeaderValue>() {
            headers.insert(header::CONTENT_TYPE, content_type);
        }
        if let Some(Ok(traceparent)) = traceparent.map(str::parse::<HeaderValue>) {
            headers.insert(header::TRACEPARENT, traceparent);
        }
        let client = &self.shared.api.client;
        let sent = client.publish_with_headers(to.to_owned(), headers, body).await;
        sent.map_err(|error| {
            let words = format!("{}: cannot reply to {to:?}", header::REPLY_TO);
            Error::new(ErrorKind::Invalid, words).caused_by(error)
        })?;
        // The server answers in turn: it has read the reply when it answers this.
        self.shared.api.stream(&self.shared.names.status).await.map(drop)
    }

    pub(super) async fn describe(&self) -> Result<Info> {
        let shared = &*self.shared;
        let server = shared.api.client.server_info();
        let mut warnings = Vec::new();
        let mut warn = |code, text: String| warnings.push(Warning { code, text });
        if version(&server.version).is_none_or(|version| version < (2, 10, 23)) {
            let text =
                format!("NATS {} is older than 2.10.23, the oldest supported", server.version);
            warn("old_server", text);
        }
        if shared.replicas < 3 {
            warn(
                "power_loss",
                "one server keeps the jobs, and by default writes them to the disk only every two \
                 minutes: what was accepted since is lost with its power; set `sync_interval: \
                 always` on the server (JetStream does not tell whether it is), or replicas=3"
                    .to_owned(),
            );
            warn(
                "one_replica",
                "while its server is down, the queue is; set replicas=3 on a cluster".to_owned(),
            );
        }
        Ok(Info {
            broker: "nats",
            version: format!("NATS {}", server.version),
            max_body: Some(self.longest() as u64),
            warnings,
            limits: LIMITS,
        })
    }
}

/// The three numbers of a version.
pub(super) fn version(text: &str) -> Option<(u32, u32, u32)> {
    let mut numbers = text.split(['.', '-', '+']).map(str::parse);
    let mut next = || numbers.next()?.ok();
    Some((next()?, next()?, next()?))
}
