//! `/v1/jobs`: a job as it is, over HTTP, and its result.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::header::{CONTENT_TYPE, LOCATION, RETRY_AFTER};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use ebb_queue::{Cancelled, JSON, JobId, JobResult, JobState, Outcome, header};
use serde::Serialize;
use tokio::time::timeout;

use super::inference::location;
use super::listing::json;
use super::{Endpoint, Site, Visit, guarded};
use crate::envelope::Envelope;
use crate::models::Model;
use crate::openai::Refused;
use crate::refusal::{EBB_ID, Names, Refusal};
use crate::waiting::{End, n_bytes};

/// The longest that a question waits; whoever wants to wait longer asks again.
pub(super) const LONGEST: Duration = Duration::from_secs(600);

/// How long a last look may take behind that: a broker that hangs holds nobody up.
const LAST_LOOK: Duration = Duration::from_secs(1);

const EBB_OUTCOME: HeaderName = HeaderName::from_static("ebb-outcome");
const EBB_KIND: HeaderName = HeaderName::from_static(header::KIND);
const EBB_ATTEMPT: HeaderName = HeaderName::from_static("ebb-attempt");

/// Where a job is.
#[derive(Debug, Serialize)]
struct Told<'a> {
    id: &'a JobId,
    state: &'static str,
}

/// That a job was cancelled.
#[derive(Debug, Serialize)]
struct Undone<'a> {
    id: &'a JobId,
    state: &'static str,
    /// Where it was: `waiting`, `running`, or `marked` where the broker cannot tell.
    was: &'static str,
}

/// A job that a caller may see.
pub(super) struct Seen {
    pub(super) model: Arc<Model>,
    pub(super) found: Found,
}

/// What there is of it.
pub(super) enum Found {
    /// It has ended.
    Ended(End),
    /// None yet, and where the job is, as far as its broker can tell.
    State(Option<JobState>),
}

impl Found {
    /// Whether there is nothing to wait for: a dead letter without a result gets none, and what is done
    /// had one.
    fn is_over(&self) -> bool {
        matches!(self, Self::Ended(_) | Self::State(Some(JobState::Done | JobState::Dead)))
    }
}

pub(super) fn routes() -> axum::Router<Arc<Site>> {
    let publish = |State(site): State<Arc<Site>>, request: Request| {
        guarded(site, Endpoint::Jobs, request, publish)
    };
    let result = |State(site): State<Arc<Site>>,
                  id: Result<Path<String>, PathRejection>,
                  request: Request| {
        guarded(site, Endpoint::Job, request, move |visit, _| result(visit, named(id)))
    };
    let cancel = |State(site): State<Arc<Site>>,
                  id: Result<Path<String>, PathRejection>,
                  request: Request| {
        guarded(site, Endpoint::Cancel, request, move |visit, _| cancel(visit, named(id)))
    };
    axum::Router::new()
        .route("/v1/jobs", post(publish))
        .route("/v1/jobs/{id}", get(result).delete(cancel))
}

/// The id in a path; what is no text is none that anybody has.
pub(super) fn named(id: Result<Path<String>, PathRejection>) -> String {
    id.map(|Path(id)| id).unwrap_or_default()
}

async fn publish(mut visit: Visit, body: Body) -> Result<Response, Refusal> {
    let body = visit.read(body).await?;
    let now = visit.site.parts.clock.now();
    let envelope = Envelope::read(&visit.headers, visit.key.as_deref(), now)?;
    let model = choose(&mut visit, &envelope)?;
    let content_type = visit.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let job = envelope.job((&visit.site.parts.ids, &model), 0, (content_type, body))?;
    let id = job.id.clone();
    let placed = visit.publish(&model, vec![job]).await;
    let placed = placed.map_err(|refusal| refusal.of_doubtful(&[id], Names::Gateway))?;
    let Some(placed) = placed.into_iter().next() else { return Err(Refusal::unknown_job()) };
    let state = if placed.is_new {
        JobState::Waiting
    } else {
        let state = visit.called("state", model.queue()?.state(&placed.id)).await?;
        state.unwrap_or(JobState::Unknown)
    };
    Ok(waiting(&placed.id, state.word()))
}

/// By `?queue=` and by `ebb-model`, both where both are given; where there is only one, that.
fn choose(visit: &mut Visit, envelope: &Envelope) -> Result<Arc<Model>, Refusal> {
    let models = &visit.site.parts.models;
    let key = visit.key.as_deref();
    let name = match (visit.asked("queue"), &envelope.model) {
        (Some(queue), Some(name)) => {
            let model = models.find(name, key)?;
            if model.queue_name() != queue {
                return Err(Refusal::wrong("queue", "queue is not that of the model in ebb-model"));
            }
            name.clone()
        }
        (Some(queue), None) => {
            let mut found = models.on_queue(&queue, key).map(|model| model.plan.name.clone());
            match (found.next(), found.next()) {
                (Some(only), None) => only,
                (Some(_), Some(_)) => return Err(Refusal::no_model()),
                (None, _) => {
                    let words = "queue is not that of a model that you may use";
                    return Err(Refusal::wrong("queue", words));
                }
            }
        }
        (None, name) => visit.name_or_only(name.clone())?,
    };
    visit.enter(&name)
}

async fn result(visit: Visit, id: String) -> Result<Response, Refusal> {
    let (id, seen) = visit.see(&id).await?;
    let wait = match visit.asked("wait") {
        None => Duration::ZERO,
        Some(text) => read_wait(&text)?,
    };
    let state = match seen.found {
        Found::State(state) if !wait.is_zero() && !seen.found.is_over() => state,
        _ => return visit.found(id, seen).await,
    };
    let waiting = visit.waiting(&seen.model, None)?;
    let closing = visit.site.parts.closing.clone();
    // It may be elsewhere by then.
    let last_look = async {
        tokio::time::sleep(wait).await;
        timeout(LAST_LOOK, visit.see(id.as_str())).await
    };
    tokio::select! { biased;
        end = waiting.end(id.clone()) => match end {
            Ok(end) => visit.ended(id, end),
            Err(error) => Err(visit.lost(error).of(&[id])),
        },
        () = closing.cancelled() => Err(Refusal::ending(&[id])),
        seen = last_look => match seen {
            Ok(Ok((id, seen))) => visit.found(id, seen).await,
            // The time of the client is over, whatever its broker does.
            _ => Ok(self::waiting(&id, state.unwrap_or(JobState::Unknown).word())),
        },
    }
}

/// Nobody wants the answer of a job any more.
async fn cancel(visit: Visit, id: String) -> Result<Response, Refusal> {
    let (id, seen) = visit.see(&id).await?;
    match visit.called("cancel", seen.model.queue()?.cancel(&id)).await? {
        Cancelled::Unknown => Err(Refusal::unknown_job()),
        Cancelled::Ended => {
            let refused = Refused::new(409, "job_ended", "the job has ended; it stays as it is");
            Err(Refusal::from(refused).of(&[id]))
        }
        was @ (Cancelled::Waiting | Cancelled::Running | Cancelled::Marked) => {
            visit.site.parts.metrics.cancelled.inc();
            Ok(json(&Undone { id: &id, state: "cancelled", was: was.word() }))
        }
    }
}

fn read_wait(text: &str) -> Result<Duration, Refusal> {
    let seconds = || Some(Duration::from_secs(text.parse().ok()?));
    let span = ebb_queue::read_span(text).or_else(seconds);
    let words = "wait is seconds, or a time with a unit, such as 30s";
    Ok(span.ok_or_else(|| Refusal::wrong("wait", words))?.min(LONGEST))
}

impl Visit {
    /// Finds a job that the caller may see, by the text of an id.
    ///
    /// # Errors
    /// When there is none, or it is of another tenant: both are the same to who asks.
    pub(super) async fn see(&self, id: &str) -> Result<(JobId, Seen), Refusal> {
        let id: JobId = id.parse().map_err(|_| Refusal::unknown_job())?;
        let (models, key) = (&self.site.parts.models, self.key.as_deref());
        let ids = &self.site.parts.ids;
        let is_own = |model: &&Arc<Model>| ids.is_of(&id, self.tenant(), &model.plan.name);
        let own: Vec<_> = models.allowed(key).filter(is_own).cloned().collect();
        let is_own = !own.is_empty();
        // Without keys anybody may see what other producers have published, too.
        let others = || models.allowed(key).filter(|_| key.is_none()).cloned().collect();
        let candidates: Vec<_> = if is_own { own } else { others() };
        let mut refusal = Refusal::unknown_job();
        for model in candidates {
            match self.look(&model, &id, is_own).await {
                Ok(Some(found)) => return Ok((id, Seen { model, found })),
                Ok(None) => {}
                // It may be on another queue.
                Err(error) => refusal = error,
            }
        }
        Err(refusal)
    }

    /// What there is of a job on the queue of a model.
    async fn look(
        &self,
        model: &Model,
        id: &JobId,
        is_own: bool,
    ) -> Result<Option<Found>, Refusal> {
        let queue = model.queue()?;
        if let Some(result) = self.called("get", queue.get(id)).await? {
            return Ok(Some(Found::Ended(result.into())));
        }
        let state = self.called("state", queue.state(id)).await?;
        if may_have_ended(state)
            && let Some(result) = self.called("get", queue.get(id)).await?
        {
            return Ok(Some(Found::Ended(result.into())));
        }
        // Where the broker cannot tell, an id that was given out for the model is believed.
        let is_there = state.map_or(is_own, |state| state != JobState::Unknown);
        Ok(is_there.then_some(Found::State(state)))
    }

    /// What there is of a job, and where it is while there is nothing.
    async fn found(self, id: JobId, seen: Seen) -> Result<Response, Refusal> {
        match seen.found {
            Found::Ended(end) => self.ended(id, end),
            Found::State(state) => at(&seen.model, id, state).await,
        }
    }

    /// How a job has ended; its answer counts among what all requests hold until the client has taken it.
    fn ended(mut self, id: JobId, end: End) -> Result<Response, Refusal> {
        let result = match end {
            End::Result(result) => result,
            End::Elsewhere => return Err(Refusal::from(Refused::elsewhere()).of(&[id])),
            End::Gone => return Err(Refusal::gone(&id)),
        };
        match self.held.grow_to(n_bytes(&result)) {
            Ok(()) => Ok(self.keeps(answered(result))),
            Err(full) => Err(Refusal::from(full).of(&[result.id])),
        }
    }
}

/// Whether a job that had no result a moment ago may have one by now: not all brokers can tell, and some
/// know nothing more of a job that has ended.
fn may_have_ended(state: Option<JobState>) -> bool {
    !matches!(state, Some(JobState::Waiting | JobState::Delayed | JobState::Running))
}

/// A job that has no result, and where it is.
async fn at(model: &Model, id: JobId, state: Option<JobState>) -> Result<Response, Refusal> {
    match state {
        Some(JobState::Done) => Err(Refusal::gone(&id)),
        // Its result is forgotten by now, or was never stored: its letter says the same.
        Some(JobState::Dead) => model.letter(&id).await.map(answered).ok_or_else(|| {
            let words = "the job is among the dead letters, and nobody runs it";
            Refusal::from(Refused::new(422, "job_failed", words)).of(&[id])
        }),
        state => Ok(waiting(&id, state.unwrap_or(JobState::Unknown).word())),
    }
}

/// The job has a result.
fn answered(result: JobResult) -> Response {
    let JobResult { id, attempt, outcome, .. } = result;
    let kind = outcome.failure_kind();
    let (mut response, word) = match outcome {
        Outcome::Completed { content_type, body } => {
            let of = HeaderValue::from_str(&content_type);
            let of = of.unwrap_or(HeaderValue::from_static("application/octet-stream"));
            (([(CONTENT_TYPE, of)], body).into_response(), "completed")
        }
        // Of the job, and not of this request: to ask again would change nothing.
        Outcome::Failed(failure) => {
            let refused = Refused { status: 422, ..Refused::failed(&failure) };
            (Refusal::from(refused).into_response(), "failed")
        }
        Outcome::Cancelled => {
            let refused = Refused::new(410, "job_cancelled", "the job was cancelled");
            (Refusal::from(refused).into_response(), "cancelled")
        }
    };
    let headers = response.headers_mut();
    headers.extend(HeaderValue::from_str(id.as_str()).ok().map(|id| (EBB_ID, id)));
    headers.insert(EBB_OUTCOME, HeaderValue::from_static(word));
    headers.extend(kind.map(|kind| (EBB_KIND, HeaderValue::from_static(kind.word()))));
    headers.insert(EBB_ATTEMPT, attempt.into());
    response
}

fn waiting(id: &JobId, state: &'static str) -> Response {
    let mut response = (StatusCode::ACCEPTED, json(&Told { id, state })).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
    headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    headers.extend(HeaderValue::from_str(id.as_str()).ok().map(|id| (EBB_ID, id)));
    headers.extend(location(id).map(|at| (LOCATION, at)));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_of_what_does_not_wait_or_run_is_looked_for_again() {
        for state in [JobState::Waiting, JobState::Delayed, JobState::Running] {
            assert!(!may_have_ended(Some(state)), "{state:?}");
        }
        for state in [None, Some(JobState::Unknown), Some(JobState::Done), Some(JobState::Dead)] {
            assert!(may_have_ended(state), "{state:?}");
        }
    }

    #[test]
    fn a_wait_is_a_time_or_seconds_and_no_longer_than_the_longest() {
        for (text, seconds) in [("30s", 30), ("1m", 60), ("5", 5), ("1d", 600)] {
            assert_eq!(read_wait(text).unwrap(), Duration::from_secs(seconds), "{text}");
        }
        assert_eq!(read_wait("soon").unwrap_err().refused.param.as_deref(), Some("wait"));
    }
}
