//! What a handle says and hears: statuses, arrivals, replies, and what the server is.

use std::time::Duration;

use async_nats::{HeaderMap, HeaderValue};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;

use super::api::in_order;
use super::bell::Bell;
use super::names::{check_reply_to, token};
use super::{LIMITS, NatsQueue, version};
use crate::{Error, ErrorKind, Info, JobResult, Result, Warning, WorkerStatus, header};

/// So often a listener looks whether the connection was lost meanwhile.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// What is heard within this time is told as one.
const HUSH: Duration = Duration::from_millis(5);
/// A server that waits for the disk tells subscribers before the stream has the job: whoever looks
/// at once may see nothing, so it is told again after each of these.
const ECHOES: [Duration; 3] =
    [Duration::from_millis(15), Duration::from_millis(60), Duration::from_millis(240)];

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
        let mut bell = self.listen(&subjects).await?;
        let mut n_losses = self.shared.link.n_losses();
        let told = async_stream::stream! {
            let mut echoes = [].iter();
            loop {
                let link = &queue.shared.link;
                let echo = echoes.next();
                let is_heard = bell.rings_within(*echo.unwrap_or(&HEARTBEAT)).await;
                if !is_heard && echo.is_some() {
                    yield ();
                    continue;
                }
                if !is_heard && (link.n_losses() == n_losses || !link.is_up()) {
                    continue;
                }
                yield ();
                tokio::time::sleep(HUSH).await;
                n_losses = queue.shared.link.n_losses();
                bell = queue.listen_again(&subjects).await;
                // What came while nobody listened, and during an outage.
                yield ();
                echoes = ECHOES.iter();
            }
        };
        Ok(told.boxed())
    }

    /// Listens from now on, also to what others publish on other connections.
    async fn listen(&self, subjects: &[String]) -> Result<Bell> {
        let shared = &*self.shared;
        let bell = Bell::arm(&shared.api.client, subjects).await?;
        // The server answers in turn: it has read the subscription when it answers this.
        shared.api.stream(&shared.names.status).await?;
        Ok(bell)
    }

    /// The same, once there is somebody who answers: a cluster may be about to elect a leader.
    async fn listen_again(&self, subjects: &[String]) -> Bell {
        loop {
            match self.listen(subjects).await {
                Ok(bell) => return bell,
                Err(error) => tracing::debug!(%error, "not heard"),
            }
            tokio::time::sleep(HEARTBEAT).await;
        }
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
