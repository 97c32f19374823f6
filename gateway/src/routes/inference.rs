//! OpenAI's routes, and those like them: a request is one job or several, and its answer theirs.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, LOCATION};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use ebb_queue::{JSON, Job, JobId, Outcome};
use futures::StreamExt;
use serde::Serialize;
use tokio::time::{Instant, sleep_until};

use super::listing::json;
use super::{Site, Visit};
use crate::envelope::Envelope;
use crate::following::{Following, Step};
use crate::models::Model;
use crate::openai::{self, About, Answer, Bounds, Ended, Route};
use crate::prefer::Preference;
use crate::refusal::{EBB_ID, Refusal, ids_header};
use crate::sse;
use crate::waiting::{End, News};
use crate::wanted::Wanted;

/// Tells that the client has got what it preferred.
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// A request whose jobs are on their queue.
struct Asked {
    visit: Visit,
    model: Arc<Model>,
    ids: Vec<JobId>,
    wanted: Wanted,
    answer: Answer,
    about: About,
    /// How long it waits, and until when.
    limit: Duration,
    until: Instant,
}

pub(super) async fn answer(
    mut visit: Visit,
    body: Body,
    route: Route,
) -> Result<Response, Refusal> {
    let body = visit.read(body).await?;
    let limits = &visit.site.parts.limits;
    let bounds = Bounds { max_inputs: limits.max_inputs, max_body: limits.max_body };
    let openai::Asked { model: name, bodies, stream, answer, .. } =
        openai::read(route, &body, &bounds)?;
    drop(body);
    let name = visit.name_or_only(name)?;
    if stream && bodies.len() > 1 {
        return Err(Refusal::wrong("stream", "stream is for one input at a time; send each alone"));
    }
    let model = visit.enter(&name)?;
    let now = visit.site.parts.clock.now();
    let mut envelope = Envelope::read(&visit.headers, visit.tenant(), now)?;
    let preference = preference(&visit);
    let limit = envelope.limit().unwrap_or(model.plan.timeout);
    if !preference.respond_async {
        envelope.limit_to(limit);
    }
    let jobs = bodies.into_iter().enumerate();
    let jobs = jobs.map(|(nth, body)| envelope.job(&model, nth, (Some(JSON), body)));
    let jobs: Vec<Job> = jobs.collect::<Result<_, _>>()?;
    // Before they are there: who goes away meanwhile leaves them behind.
    let is_own = !preference.respond_async && !envelope.is_shared();
    let own = jobs.iter().filter(|_| is_own).map(|job| job.id.clone()).collect();
    let mut wanted = Wanted::new(model.queue()?, own, &visit.site.parts.metrics);
    let placed = visit.publish(&model, jobs).await.inspect_err(|refusal| {
        // A broker that is away may have them all the same.
        if refusal.refused.status != 503 {
            wanted.let_be();
        }
    })?;
    let ids: Vec<JobId> = placed.into_iter().map(|placed| placed.id).collect();
    let created = u64::try_from(now.as_second()).unwrap_or(0);
    let about = About {
        id: ids.first().map(ToString::to_string).unwrap_or_default(),
        created,
        model: name,
    };
    let until = visit.begun + limit;
    let asked = Asked { visit, model, ids, wanted, answer, about, limit, until };
    match (preference.respond_async, preference.wait) {
        (true, None) => Ok(asked.accepted()),
        (true, Some(wait)) => asked.within(wait).await,
        (false, _) if stream => asked.stream().await,
        (false, _) => asked.whole().await,
    }
}

fn preference(visit: &Visit) -> Preference {
    let values = visit.headers.get_all("prefer").iter();
    Preference::read(values.filter_map(|value| value.to_str().ok()))
}

/// Where the answer will be.
#[derive(Debug, Serialize)]
struct Accepted<'a> {
    id: Option<&'a JobId>,
    /// Of all its jobs, in the order of the inputs.
    ids: &'a [JobId],
    state: &'static str,
}

impl Asked {
    /// Says where the answer will be.
    fn accepted(&self) -> Response {
        let body = Accepted { id: self.ids.first(), ids: &self.ids, state: "waiting" };
        let mut response = (StatusCode::ACCEPTED, json(&body)).into_response();
        let headers = response.headers_mut();
        headers.insert(PREFERENCE_APPLIED, HeaderValue::from_static("respond-async"));
        headers.extend(ids_header(&self.ids).map(|ids| (EBB_ID, ids)));
        if let [id] = &self.ids[..] {
            headers.extend(location(id).map(|at| (LOCATION, at)));
        }
        response
    }

    /// The answer if it comes within this time, and else where it will be.
    async fn within(self, wait: Duration) -> Result<Response, Refusal> {
        let waiting = self.visit.waiting(&self.model)?;
        match tokio::time::timeout(wait, waiting.ends(&self.ids)).await {
            Err(_) => Ok(self.accepted()),
            Ok(ends) => {
                let ends = ends.map_err(|error| self.visit.failed("follow", error))?;
                self.answered(ends)
            }
        }
    }

    /// The answer, once all jobs have ended.
    async fn whole(mut self) -> Result<Response, Refusal> {
        let waiting = self.visit.waiting(&self.model)?;
        let ends = tokio::select! { biased;
            ends = waiting.ends(&self.ids) => ends,
            () = sleep_until(self.until) => {
                return Err(Refusal::timed_out(&self.ids, self.limit));
            }
            () = self.visit.site.parts.closing.cancelled() => {
                self.wanted.let_be();
                return Err(Refusal::ending(&self.ids));
            }
        };
        self.wanted.let_be();
        let ends = ends.map_err(|error| self.visit.failed("follow", error).of(&self.ids))?;
        self.answered(ends)
    }

    fn answered(&self, ends: Vec<End>) -> Result<Response, Refusal> {
        let ended: Vec<Ended> = ends.into_iter().map(ended).collect();
        let whole = self.answer.whole(&self.about, &ended);
        let body = whole.map_err(|refused| Refusal::from(refused).of(&self.ids))?;
        let mut response = ([(CONTENT_TYPE, JSON)], body).into_response();
        response.headers_mut().extend(ids_header(&self.ids).map(|ids| (EBB_ID, ids)));
        Ok(response)
    }

    /// The answer piece by piece. The status is told once there is something to tell, so that a job
    /// which fails at once is an error as any other, or a proxy would lose patience.
    async fn stream(mut self) -> Result<Response, Refusal> {
        let waiting = self.visit.waiting(&self.model)?;
        let Site { parts, .. } = &*self.visit.site;
        let Some(id) = self.ids.first().cloned() else { return self.answered(Vec::new()) };
        let mut following = Following {
            news: waiting.news(id, None),
            keep_alive: parts.limits.keep_alive,
            until: Some(self.until),
            closing: parts.closing.clone(),
        };
        let first = following.next().await;
        if first.leaves_the_job() {
            self.wanted.let_be();
        }
        match &first {
            Step::News(News::End(End::Result(result))) if result.outcome.is_completed() => {}
            Step::News(News::End(end)) => return self.answered(vec![end.clone()]),
            Step::News(_) | Step::Quiet => {}
            Step::Late => return Err(Refusal::timed_out(&self.ids, self.limit)),
            Step::Closing => return Err(Refusal::ending(&self.ids)),
            Step::Failed(error) => return Err(error.clone().of(&self.ids)),
        }
        let headers = [
            (CONTENT_TYPE, HeaderValue::from_static(sse::EVENT_STREAM)),
            (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
            // Asks nginx not to hold pieces back.
            (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
        ];
        let ids = ids_header(&self.ids).map(|ids| (EBB_ID, ids));
        let mut response =
            (headers, Body::from_stream(self.told(first, following))).into_response();
        response.headers_mut().extend(ids);
        Ok(response)
    }

    fn told(
        mut self,
        first: Step,
        mut following: Following,
    ) -> impl futures::Stream<Item = Result<Bytes, std::convert::Infallible>> + Send + 'static {
        let first_piece = self.visit.site.parts.metrics.first_piece(self.visit.endpoint);
        let events = async_stream::stream! {
            let mut said = self.answer.stream(&self.about);
            for data in said.begin() {
                yield sse::data(&data);
            }
            let (mut step, mut is_begun) = (first, false);
            loop {
                if step.leaves_the_job() {
                    self.wanted.let_be();
                }
                let (events, is_last) = match step {
                    Step::Quiet => {
                        yield sse::COMMENT;
                        (Vec::new(), false)
                    }
                    Step::News(News::Piece { body, .. }) => {
                        if !is_begun {
                            is_begun = true;
                            first_piece.observe(self.visit.begun.elapsed().as_secs_f64());
                            // Who has begun may go on: a long answer is no late one.
                            following.until = None;
                        }
                        let told = said.piece(&body);
                        (told, said.is_ended())
                    }
                    Step::News(News::Void) => {
                        said.void();
                        (Vec::new(), false)
                    }
                    Step::News(News::End(end)) => (said.end(&ended(end)), true),
                    Step::Late => (said.fail(&Refusal::timed_out(&self.ids, self.limit).refused), true),
                    Step::Closing => (said.fail(&Refusal::ending(&self.ids).refused), true),
                    Step::Failed(error) => (said.fail(&error.refused), true),
                };
                for data in events {
                    yield sse::data(&data);
                }
                if is_last {
                    return;
                }
                step = following.next().await;
            }
        };
        events.map(Ok)
    }
}

/// How a job has ended, as answers are made of it.
fn ended(end: End) -> Ended {
    let End::Result(result) = end else {
        let reason = "its job is gone: it was purged, or its result is forgotten".to_owned();
        return Ended::Failed { reason };
    };
    match result.outcome {
        Outcome::Completed { body, .. } => Ended::Completed(body),
        Outcome::Cancelled => Ended::Cancelled,
        Outcome::Failed { reason } if reason == "expired" => Ended::Expired,
        Outcome::Failed { reason } => Ended::Failed { reason },
    }
}

/// Where the result of a job is.
pub(super) fn location(id: &JobId) -> Option<HeaderValue> {
    let id: String = url::form_urlencoded::byte_serialize(id.as_str().as_bytes()).collect();
    HeaderValue::from_str(&format!("/v1/jobs/{id}")).ok()
}
