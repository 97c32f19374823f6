//! The routes, and what all of them have in common: who asks, whether there is room, how it is told.

mod body;
mod events;
mod inference;
mod jobs;
mod listing;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH};
use axum::http::request::Parts as Head;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use ebb_queue::{Clock, Error, ErrorKind, Job, JobId};
use ebb_telemetry::{SpanContext, Traces};
use futures::StreamExt;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::admission::{Admission, Permit};
use crate::ids::Ids;
use crate::keys::{Key, Keys, Tenant};
use crate::local::is_local;
use crate::memory::{Held, Memory};
use crate::metrics::Metrics;
use crate::models::{Model, Models};
use crate::openai::{Refused, Route};
use crate::refusal::{IsShown, OwnLimit, Refusal};
use crate::trace::{Call, hand_on};
use crate::waiting::Waiting;
use crate::wanted::Canceller;

/// How long a broker has to answer one call.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a gateway is made of.
#[derive(Debug)]
pub struct Parts {
    /// What requests may name, with queues that are open or will be.
    pub models: Models,
    /// Who may ask; everybody when missing.
    pub keys: Option<watch::Receiver<Arc<Keys>>>,
    /// Without keys: whether only programs of this machine may ask, and no page of another site.
    pub is_local: bool,
    /// Makes the ids of jobs.
    pub ids: Ids,
    /// Cancels what is not wanted any more.
    pub canceller: Canceller,
    /// How much is taken.
    pub limits: Limits,
    /// What the time is taken from.
    pub clock: Arc<dyn Clock>,
    /// What is counted.
    pub metrics: Metrics,
    /// Where spans go.
    pub traces: Traces,
    /// Whoever still waits when this is cancelled is told that the gateway ends.
    pub closing: CancellationToken,
}

/// How much is taken.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Requests that are answered at once.
    pub max_in_flight: usize,
    /// Bytes of a body.
    pub max_body: usize,
    /// Bytes of bodies, of pieces and of answers that all requests hold.
    pub memory: usize,
    /// Inputs of a request.
    pub max_inputs: usize,
    /// How often a stream that has nothing to say sends a comment.
    pub keep_alive: Duration,
}

/// What all requests share.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) parts: Parts,
    admission: Admission,
    memory: Memory,
    /// When the gateway was started, in Unix seconds.
    pub(crate) since: i64,
}

/// What a request asks for: closed, for labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Embeddings,
    Embed,
    ChatCompletions,
    Completions,
    Rerank,
    BareRerank,
    Classify,
    Predict,
    Models,
    Jobs,
    Job,
    Cancel,
    Events,
    Other,
}

impl Endpoint {
    /// As metrics have it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Embeddings => "embeddings",
            Self::Embed => "embed",
            Self::ChatCompletions => "chat_completions",
            Self::Completions => "completions",
            Self::Rerank | Self::BareRerank => "rerank",
            Self::Classify | Self::Predict => "classify",
            Self::Models => "models",
            Self::Jobs => "jobs",
            Self::Job => "job",
            Self::Cancel => "cancel",
            Self::Events => "events",
            Self::Other => "other",
        }
    }

    /// As spans have it.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Embeddings => "/v1/embeddings",
            Self::Embed => "/embed",
            Self::ChatCompletions => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Rerank => "/v1/rerank",
            Self::BareRerank => "/rerank",
            Self::Classify => "/v1/classify",
            Self::Predict => "/predict",
            Self::Models => "/v1/models",
            Self::Jobs => "/v1/jobs",
            Self::Job | Self::Cancel => "/v1/jobs/{id}",
            Self::Events => "/v1/jobs/{id}/events",
            Self::Other => "other",
        }
    }
}

/// A request that was let in.
pub(crate) struct Visit {
    pub(crate) site: Arc<Site>,
    pub(crate) endpoint: Endpoint,
    pub(crate) key: Option<Arc<Key>>,
    pub(crate) permit: Permit,
    pub(crate) begun: Instant,
    /// Memory for its body, and later for its answers.
    pub(crate) held: Held,
    pub(crate) headers: HeaderMap,
    /// What stands behind the question mark.
    query: Option<String>,
    span: Option<SpanContext>,
}

/// The routes of a gateway.
pub fn router(parts: Parts) -> Router {
    let admission = Admission::new(parts.limits.max_in_flight, parts.metrics.in_flight.clone());
    let since = parts.clock.now().as_second();
    let memory = Memory::new(parts.limits.memory, parts.metrics.held.clone());
    let site = Arc::new(Site { parts, admission, memory, since });
    let infer = |endpoint: Endpoint, route: Route| {
        post(move |State(site): State<Arc<Site>>, request: Request| {
            guarded(site, endpoint, request, move |visit, body| {
                inference::answer(visit, body, route)
            })
        })
    };
    Router::new()
        .route("/v1/embeddings", infer(Endpoint::Embeddings, Route::Embeddings))
        .route("/v1/chat/completions", infer(Endpoint::ChatCompletions, Route::ChatCompletions))
        .route("/v1/completions", infer(Endpoint::Completions, Route::Completions))
        .route("/v1/rerank", infer(Endpoint::Rerank, Route::Rerank))
        .route("/v1/classify", infer(Endpoint::Classify, Route::Classify))
        // Where clients of text-embeddings-inference look.
        .route("/embed", infer(Endpoint::Embed, Route::Embed))
        .route("/rerank", infer(Endpoint::BareRerank, Route::Rerank))
        .route("/predict", infer(Endpoint::Predict, Route::Classify))
        .merge(listing::routes())
        .merge(jobs::routes())
        .merge(events::routes())
        .fallback(nowhere)
        .method_not_allowed_fallback(not_so)
        .with_state(site)
}

async fn nowhere(State(site): State<Arc<Site>>, request: Request) -> Response {
    let words = "there is nothing here; the routes are /v1/embeddings, /v1/chat/completions, /v1/completions, \
                 /v1/rerank, /v1/classify, /v1/models, /v1/jobs, /embed, /rerank and /predict";
    refuse(&site, request, Refused::new(404, "not_found", words)).await
}

async fn not_so(State(site): State<Arc<Site>>, request: Request) -> Response {
    let words = format!("{} is not for {}", request.method(), request.uri().path());
    refuse(&site, request, Refused::new(405, "method_not_allowed", words)).await
}

async fn refuse(site: &Site, request: Request, refused: Refused) -> Response {
    let (head, body) = request.into_parts();
    let call = call(site, Endpoint::Other, &head);
    body::hear_out(&head.headers, body).await;
    told(call, Err(refused.into()))
}

fn call(site: &Site, endpoint: Endpoint, head: &Head) -> Call {
    Call::begin((&site.parts.traces, &site.parts.metrics), endpoint, &head.headers)
}

/// Lets a request in or not, and notes how it was answered.
pub(crate) async fn guarded<F, A>(
    site: Arc<Site>,
    endpoint: Endpoint,
    request: Request,
    answer: F,
) -> Response
where
    F: FnOnce(Visit, Body) -> A + Send,
    A: Future<Output = Result<Response, Refusal>> + Send,
{
    let (mut head, body) = request.into_parts();
    let call = call(&site, endpoint, &head);
    let answered = match let_in(&site, &call, &mut head) {
        Ok(visit) => answer(visit, body).await,
        Err(refusal) => {
            body::hear_out(&head.headers, body).await;
            Err(refusal)
        }
    };
    told(call, answered)
}

fn told(call: Call, answered: Result<Response, Refusal>) -> Response {
    let response = answered.unwrap_or_else(IntoResponse::into_response);
    let status = response.status().as_u16();
    call.end(status, response.extensions().get::<OwnLimit>().is_some());
    response
}

/// Takes the headers of a request that is let in.
fn let_in(site: &Arc<Site>, call: &Call, head: &mut Head) -> Result<Visit, Refusal> {
    let key = match &site.parts.keys {
        None if site.parts.is_local && !is_local(&head.headers) => return Err(Refusal::foreign()),
        None => None,
        Some(keys) => {
            let shown = head.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
            let shown = shown.and_then(bearer).ok_or(Refusal::unknown_key(IsShown::No))?;
            let found = keys.borrow().find(shown).cloned();
            Some(found.ok_or(Refusal::unknown_key(IsShown::Yes))?)
        }
    };
    let begun = Instant::now();
    let permit = site.admission.admit(key.as_deref(), begun)?;
    Ok(Visit {
        site: Arc::clone(site),
        endpoint: call.endpoint,
        held: site.memory.nothing(key.clone()),
        key,
        permit,
        begun,
        headers: std::mem::take(&mut head.headers),
        query: head.uri.query().map(str::to_owned),
        span: call.context(),
    })
}

/// The key in `Bearer KEY`; the word is in any case.
fn bearer(value: &str) -> Option<&str> {
    let (scheme, key) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

impl Visit {
    pub(crate) fn tenant(&self) -> Option<&Tenant> {
        self.key.as_deref().map(|key| &key.tenant)
    }

    /// The value of a key in the query.
    pub(crate) fn asked(&self, key: &str) -> Option<String> {
        let query = self.query.as_deref()?.as_bytes();
        let mut pairs = url::form_urlencoded::parse(query);
        pairs.find_map(|(name, value)| (name == key).then(|| value.into_owned()))
    }

    /// The name of a model that the client says, or that of the only one there is for it.
    ///
    /// # Errors
    /// When there are several.
    pub(crate) fn name_or_only(&self, name: Option<String>) -> Result<String, Refusal> {
        let mut allowed = self.site.parts.models.allowed(self.key.as_deref());
        match (name, allowed.next(), allowed.next()) {
            (Some(name), ..) => Ok(name),
            (None, Some(only), None) => Ok(only.plan.name.clone()),
            (None, ..) => Err(Refusal::no_model()),
        }
    }

    /// The model of this name, in whose room the request is from now on.
    pub(crate) fn enter(&mut self, asked: &str) -> Result<Arc<Model>, Refusal> {
        let model = self.site.parts.models.find(asked, self.key.as_deref())?;
        self.permit.enter(&model.plan.name, model.plan.max_in_flight)?;
        Ok(Arc::clone(model))
    }

    /// A response for which the request keeps its place and its memory until the client has taken it, or
    /// has gone: an answer takes as much room while a client is slow to read it.
    pub(crate) fn keeps(self, response: Response) -> Response {
        let (mut head, body) = response.into_parts();
        // A stream does not tell its length.
        let length = body.size_hint().exact();
        head.headers.extend(length.map(|n_bytes| (CONTENT_LENGTH, n_bytes.into())));
        let parts = body.into_data_stream().map(move |part| {
            let _kept = &self;
            part
        });
        Response::from_parts(head, Body::from_stream(parts))
    }

    /// Puts jobs on the queue of a model, all or none as far as its broker has that.
    pub(crate) async fn publish(
        &self,
        model: &Model,
        mut jobs: Vec<Job>,
    ) -> Result<Vec<Placed>, Refusal> {
        let queue = model.queue()?;
        jobs.iter_mut().for_each(|job| hand_on(job, self.span.as_ref()));
        let placed = self.called("publish", queue.publish(jobs)).await?;
        let placed: Vec<Placed> = placed
            .into_iter()
            .map(|placed| Placed { id: placed.id, is_new: !placed.duplicate })
            .collect();
        let n_new = placed.iter().filter(|placed| placed.is_new).count();
        self.site.parts.metrics.published.inc_by(n_new as u64);
        Ok(placed)
    }

    /// Who waits for jobs of a model, of which these were there before.
    pub(crate) fn waiting(
        &self,
        model: &Arc<Model>,
        met: impl IntoIterator<Item = JobId>,
    ) -> Result<Waiting, Refusal> {
        let queue = Arc::clone(model.queue()?);
        Ok(Waiting::new((Arc::clone(model), queue), met, &self.site.parts.metrics))
    }

    /// What a broker says to a call, which it does in time, or while there still is a gateway.
    pub(crate) async fn called<T>(
        &self,
        call: &'static str,
        answer: impl Future<Output = ebb_queue::Result<T>>,
    ) -> Result<T, Refusal> {
        let answer = tokio::select! { biased;
            answer = answer => answer,
            () = self.site.parts.closing.cancelled() => return Err(Refusal::ending(&[])),
            () = sleep(PATIENCE) => {
                let words = format!("no answer within {} s", PATIENCE.as_secs());
                Err(Error::new(ErrorKind::Unavailable, words))
            }
        };
        answer.map_err(|error| self.failed(call, error))
    }

    /// Why nothing more is heard of a job: its follower has counted it.
    pub(crate) fn lost(&self, error: Error) -> Refusal {
        warn!(call = "follow", %error, kind = %error.kind(), "the broker failed");
        error.into()
    }

    /// Notes that a broker failed, or refused what a client asked of it.
    fn failed(&self, call: &'static str, error: Error) -> Refusal {
        let kind = error.kind();
        self.site.parts.metrics.failed(call, &error);
        if error.is_answer() {
            debug!(call, %error, %kind, "the broker refused a call");
        } else {
            warn!(call, %error, %kind, "the broker failed");
        }
        error.into()
    }
}

/// A job on its queue.
#[derive(Debug, Clone)]
pub(crate) struct Placed {
    pub(crate) id: JobId,
    /// It was not there before.
    pub(crate) is_new: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_stands_behind_the_word_bearer() {
        for (value, key) in [
            ("Bearer abc", Some("abc")),
            ("bearer  abc ", Some("abc")),
            ("Basic abc", None),
            ("abc", None),
            ("", None),
        ] {
            assert_eq!(bearer(value), key, "{value:?}");
        }
    }
}
