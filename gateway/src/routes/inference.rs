//! OpenAI's routes, and those like them: a request is one job or several, and its answer theirs.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, LOCATION};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use ebb_queue::{JSON, Job, JobId, Outcome, header};
use futures::StreamExt;
use serde::Serialize;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::jobs::LONGEST;
use super::listing::json;
use super::{Placed, Site, Visit};
use crate::envelope::Envelope;
use crate::following::{Following, Step};
use crate::memory::Full;
use crate::metrics::Ending;
use crate::models::Model;
use crate::openai::{self, About, Answer, Bounds, Ended, Route, Streamed};
use crate::prefer::Preference;
use crate::refusal::{EBB_ID, Names, Refusal, Then, ids_header};
use crate::sse;
use crate::waiting::{End, News, Waiting};
use crate::wanted::Wanted;

/// Tells that the client has got what it preferred.
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// What a stream ends with that has told all.
const DONE: &[u8] = b"[DONE]";

/// The longest limit of a request: whoever says more waits so long.
const LONGEST_LIMIT: Duration = Duration::from_secs(30 * 86_400);

/// A request whose jobs are on their queue.
struct Asked {
    visit: Visit,
    waiting: Waiting,
    ids: Vec<JobId>,
    wanted: Wanted,
    answer: Answer,
    about: About,
    terms: Terms,
}

/// How long a request waits for its jobs, and for whom they are.
#[derive(Debug, Clone, Copy)]
struct Terms {
    limit: Duration,
    until: Instant,
    /// Whether the client has set that.
    is_own_limit: bool,
    /// Whether nobody else may come for the jobs, by an id or a key.
    is_own: bool,
    /// Whether the client would rather be told where the answer will be.
    is_async: bool,
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
    let model = visit.enter(&name)?;
    let now = visit.site.parts.clock.now();
    let mut envelope = Envelope::read(&visit.headers, visit.key.as_deref(), now)?;
    if envelope.model.as_ref().is_some_and(|other| *other != name) {
        let words = "ebb-model is not the model of the body; leave it out";
        return Err(Refusal::wrong(header::MODEL, words));
    }
    let preference = preference(&visit);
    let own_limit = envelope.limit();
    let limit = own_limit.unwrap_or(model.plan.timeout).min(LONGEST_LIMIT);
    let terms = Terms {
        limit,
        until: visit.begun + limit,
        is_own_limit: own_limit.is_some(),
        is_own: !envelope.is_shared(),
        is_async: preference.respond_async,
    };
    // Who comes with an id or a key of his own comes again, and his job is no late one then.
    if terms.is_own && !terms.is_async {
        // Who sets a deadline himself says when the answer is worth nothing, of a stream as well.
        if stream && own_limit.is_none() {
            envelope.limit_stream_to(limit, model.queue()?.result_ttl());
        } else {
            envelope.limit_to(limit);
        }
    }
    let jobs = bodies.into_iter().enumerate();
    let jobs = jobs
        .map(|(nth, body)| envelope.job((&visit.site.parts.ids, &model), nth, (Some(JSON), body)));
    let jobs: Vec<Job> = jobs.collect::<Result<_, _>>()?;
    // Before they are there: who goes away meanwhile leaves them behind, unless he may come again.
    let own = jobs.iter().filter(|_| terms.is_own).map(|job| job.id.clone()).collect();
    let mut wanted = Wanted::new(model.queue()?, own, &visit.site.parts.canceller);
    let placed = terms.publish((&visit, &model), jobs, &mut wanted).await?;
    // The jobs have them now, and the broker has the jobs.
    visit.held.release();
    if terms.is_async {
        wanted.let_be();
    }
    let met = placed.iter().filter(|placed| !placed.is_new).map(|placed| placed.id.clone());
    let waiting = visit.waiting(&model, met)?;
    let ids: Vec<JobId> = placed.into_iter().map(|placed| placed.id).collect();
    let created = u64::try_from(now.as_second()).unwrap_or(0);
    let about = About {
        id: ids.first().map(ToString::to_string).unwrap_or_default(),
        created,
        model: name,
    };
    let asked = Asked { visit, waiting, ids, wanted, answer, about, terms };
    match (terms.is_async, preference.wait) {
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

impl Terms {
    /// Puts the jobs of a request on their queue, as long as somebody waits for that.
    async fn publish(
        &self,
        (visit, model): (&Visit, &Model),
        jobs: Vec<Job>,
        wanted: &mut Wanted,
    ) -> Result<Vec<Placed>, Refusal> {
        let n_jobs = jobs.len();
        // Who does not wait comes for them by the ids that he is told.
        let is_told = !self.is_own || self.is_async;
        let told: Vec<JobId> = jobs.iter().filter(|_| is_told).map(|job| job.id.clone()).collect();
        let published = visit.publish(model, jobs);
        let placed = if self.is_async {
            // The limit is for who waits for an answer: the broker has as long as for any other call.
            published.await
        } else {
            timeout_at(self.until, published).await.map_err(|_| self.unsaid(&told))?
        };
        placed.map_err(|refusal| {
            // Some brokers store job by job: of several the first may be there, and no room for the last.
            let is_none_there = n_jobs == 1 && !refusal.may_be_stored;
            if is_none_there || self.is_async && refusal.may_be_stored {
                wanted.let_be();
            }
            refusal.of_doubtful(&told, if self.is_own { Names::Gateway } else { Names::Client })
        })
    }

    /// Time is over, and the broker has not said whether it has the jobs.
    fn unsaid(&self, ids: &[JobId]) -> Refusal {
        if self.is_own {
            return self.late(ids);
        }
        let late = Refusal::timed_out(ids, self.limit, Then::InDoubt).own(self.is_own_limit);
        late.of_doubtful(ids, Names::Client)
    }

    /// Time is over.
    fn late(&self, ids: &[JobId]) -> Refusal {
        let then = match (self.is_own, self.is_own_limit) {
            (true, _) => Then::GivenUp,
            (false, false) => Then::GoesOn,
            (false, true) => Then::BeginsNoMore,
        };
        Refusal::timed_out(ids, self.limit, then).own(self.is_own_limit)
    }
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
    async fn within(mut self, wait: Duration) -> Result<Response, Refusal> {
        let closing = self.visit.site.parts.closing.clone();
        let ends = tokio::select! { biased;
            ends = self.waiting.ends(&self.ids, &mut self.visit.held) => ends,
            () = sleep(wait.min(LONGEST)) => return Ok(self.accepted()),
            () = closing.cancelled() => return Ok(self.accepted()),
        };
        let ends = self.heard(ends)?;
        self.answered(ends)
    }

    /// How all jobs have ended, where that could be heard and held.
    fn heard(&self, ends: ebb_queue::Result<Result<Vec<End>, Full>>) -> Result<Vec<End>, Refusal> {
        let ends = ends.map_err(|error| self.visit.lost(error).of(&self.ids))?;
        ends.map_err(|full| match (full, &self.ids[..]) {
            (Full::Never, [_]) => Refusal::never_fits(&self.ids),
            _ => Refusal::no_room_for_answers(&self.ids),
        })
    }

    /// Time is over.
    fn late(&self) -> Refusal {
        self.terms.late(&self.ids)
    }

    /// The answer, once all jobs have ended.
    async fn whole(mut self) -> Result<Response, Refusal> {
        let closing = self.visit.site.parts.closing.clone();
        let ends = tokio::select! { biased;
            ends = self.waiting.ends(&self.ids, &mut self.visit.held) => ends,
            () = sleep_until(self.terms.until) => return Err(self.late()),
            () = closing.cancelled() => {
                self.wanted.let_be();
                return Err(Refusal::ending(&self.ids));
            }
        };
        self.wanted.let_be();
        let ends = self.heard(ends)?;
        self.answered(ends)
    }

    fn answered(self, ends: Vec<End>) -> Result<Response, Refusal> {
        let ended: Vec<Ended> = ends.into_iter().map(ended).collect();
        let whole = self.answer.whole(&self.about, &ended);
        let refusal = |refused| Refusal::from(refused).of(&self.ids).own(self.terms.is_own_limit);
        let body = whole.map_err(refusal)?;
        let mut response = ([(CONTENT_TYPE, JSON)], body).into_response();
        response.headers_mut().extend(ids_header(&self.ids).map(|ids| (EBB_ID, ids)));
        Ok(self.visit.keeps(response))
    }

    /// The answer piece by piece. The status is told once there is something to tell, so that a job
    /// which fails at once is an error as any other, or a proxy would lose patience.
    async fn stream(mut self) -> Result<Response, Refusal> {
        let site = Arc::clone(&self.visit.site);
        let Site { parts, .. } = &*site;
        let Some(id) = self.ids.first().cloned() else { return self.answered(Vec::new()) };
        let mut following = Following {
            news: self.waiting.news(id, None),
            keep_alive: parts.limits.keep_alive,
            until: self.terms.until,
            limit: self.terms.limit,
            closing: parts.closing.clone(),
            waits: None,
            is_begun: false,
        };
        let first = following.next_held(&mut self.visit.held, 0, &self.ids).await;
        if first.leaves_the_job() {
            self.wanted.let_be();
        }
        match &first {
            Step::News(News::End(End::Result(result))) if result.outcome.is_completed() => {}
            Step::News(News::End(end)) => return self.answered(vec![end.clone()]),
            Step::News(_) | Step::Quiet => {}
            Step::Late => return Err(self.late()),
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
        let parts = &self.visit.site.parts;
        let first_piece = parts.metrics.first_piece(self.visit.endpoint);
        let mut streaming = parts.metrics.stream(self.visit.endpoint);
        let events = async_stream::stream! {
            let mut said = self.answer.stream(&self.about);
            for data in said.begin() {
                yield sse::data(&data);
            }
            let (mut step, mut is_begun) = (first, false);
            loop {
                if matches!(step, Step::News(News::Piece { .. })) && !is_begun {
                    is_begun = true;
                    first_piece.observe(self.visit.begun.elapsed().as_secs_f64());
                }
                if matches!(step, Step::Quiet) {
                    yield sse::COMMENT;
                }
                let leaves_the_job = step.leaves_the_job();
                let (events, ending) = self.say(&mut said, step);
                // What was said anew is another answer, and the result of the job is whole all the same.
                if leaves_the_job || ending == Some(Ending::Failed) {
                    self.wanted.let_be();
                }
                if let Some(ending) = ending {
                    streaming.ends(ending);
                }
                for data in events {
                    yield sse::data(&data);
                }
                if ending.is_some() {
                    return;
                }
                let n_kept = said.n_bytes();
                step = following.next_held(&mut self.visit.held, n_kept, &self.ids).await;
            }
        };
        events.map(Ok)
    }

    /// What a step tells the client, and how the stream ends where that is the last of it.
    fn say(&self, said: &mut Streamed, step: Step) -> (Vec<Bytes>, Option<Ending>) {
        match step {
            Step::Quiet => (Vec::new(), None),
            Step::News(News::Piece { body, .. }) => {
                let told = said.piece(&body);
                (told, said.is_ended().then_some(Ending::Failed))
            }
            Step::News(News::Void) => {
                said.void();
                (Vec::new(), None)
            }
            Step::News(News::End(end)) => {
                let end = ended(end);
                let told = said.end(&end);
                let ending = if told.last().is_some_and(|last| last == DONE) {
                    Ending::Completed
                } else {
                    let refused = self.answer.whole(&self.about, std::slice::from_ref(&end)).err();
                    refused.map_or(Ending::Failed, |refused| Ending::of(refused.status))
                };
                (told, Some(ending))
            }
            Step::Late => {
                let ending = if self.terms.is_own_limit { Ending::LateOwn } else { Ending::Late };
                (said.fail(&self.late().refused), Some(ending))
            }
            Step::Closing => {
                (said.fail(&Refusal::ending(&self.ids).refused), Some(Ending::Closing))
            }
            Step::Failed(error) => (said.fail(&error.refused), Some(Ending::Failed)),
        }
    }
}

/// How a job has ended, as answers are made of it.
fn ended(end: End) -> Ended {
    let result = match end {
        End::Result(result) => result,
        End::Elsewhere => return Ended::Elsewhere,
        End::Gone => return Ended::Gone,
    };
    match result.outcome {
        Outcome::Completed { body, .. } => Ended::Completed(body),
        Outcome::Cancelled => Ended::Cancelled,
        Outcome::Failed(failure) => Ended::Failed(failure),
    }
}

/// Where the result of a job is.
pub(super) fn location(id: &JobId) -> Option<HeaderValue> {
    let id: String = url::form_urlencoded::byte_serialize(id.as_str().as_bytes()).collect();
    HeaderValue::from_str(&format!("/v1/jobs/{id}")).ok()
}
