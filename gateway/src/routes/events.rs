//! `/v1/jobs/{id}/events`: a job as it goes on, as server-sent events.
//!
//! `piece` has a piece of the answer, `void` says that another attempt begins and what was told before
//! counts no more, `end` has the result, `error` says why nothing follows. Who comes back with the id of
//! the last piece goes on behind it.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::HeaderName;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use ebb_queue::{FailureKind, JSON, JobId, JobResult, JobState, Outcome};
use futures::StreamExt;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::jobs::{Found, LONGEST, named};
use super::{Endpoint, Site, Visit, guarded};
use crate::following::{Following, Step};
use crate::metrics::Ending;
use crate::openai::Refused;
use crate::refusal::Refusal;
use crate::sse;
use crate::waiting::{End, News, Place};

const LAST_EVENT_ID: &str = "last-event-id";

/// What an `end` says.
#[derive(Debug, Serialize)]
struct Ended<'a> {
    id: &'a JobId,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'a str>,
    /// The answer, where that is JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a RawValue>,
    /// The answer, where it is another text.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    /// The answer, where it is neither.
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
    /// What there is to do about it that there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<FailureKind>,
    /// Why there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

pub(super) fn routes() -> axum::Router<Arc<Site>> {
    let follow = |State(site): State<Arc<Site>>,
                  id: Result<Path<String>, PathRejection>,
                  request: Request| {
        guarded(site, Endpoint::Events, request, move |visit, _| follow(visit, named(id)))
    };
    axum::Router::new().route("/v1/jobs/{id}/events", get(follow))
}

async fn follow(visit: Visit, id: String) -> Result<Response, Refusal> {
    let behind = match visit.headers.get(LAST_EVENT_ID) {
        None => None,
        Some(value) => Some(value.to_str().ok().and_then(read_place).ok_or_else(|| {
            Refusal::wrong(LAST_EVENT_ID, "last-event-id is that of a piece, such as 1.7")
        })?),
    };
    let (id, seen) = visit.see(&id).await?;
    let is_dead = matches!(seen.found, Found::State(Some(JobState::Dead)));
    let waiting = visit.waiting(&seen.model, is_dead.then(|| id.clone()))?;
    let following = Following {
        news: waiting.news(id.clone(), behind),
        keep_alive: visit.site.parts.limits.keep_alive,
        // A job of which nothing is heard for so long may never have been: who wants comes again.
        until: Instant::now() + LONGEST,
        limit: LONGEST,
        closing: visit.site.parts.closing.clone(),
        waits: None,
        is_begun: false,
    };
    let headers = [
        (CONTENT_TYPE, sse::EVENT_STREAM),
        (CACHE_CONTROL, "no-cache"),
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    Ok((headers, Body::from_stream(told(visit, id, following))).into_response())
}

fn told(
    visit: Visit,
    id: JobId,
    mut following: Following,
) -> impl futures::Stream<Item = Result<Bytes, std::convert::Infallible>> + Send + 'static {
    let events = async_stream::stream! {
        // In flight as long as somebody listens, with the piece or the answer that he has to take.
        let mut visit = visit;
        let mut streaming = visit.site.parts.metrics.stream(visit.endpoint);
        loop {
            let step = following.next_held(&mut visit.held, 0, std::slice::from_ref(&id)).await;
            let (event, ending) = match step {
                Step::Quiet => (sse::COMMENT, None),
                Step::News(News::Piece { place, body }) => (piece(place, &body), None),
                Step::News(News::Void) => (sse::event(None, Some("void"), b"{}"), None),
                Step::News(News::End(End::Elsewhere)) => {
                    (error(&Refused::elsewhere().into()), Some(Ending::Failed))
                }
                Step::News(News::End(end)) => {
                    (sse::event(None, Some("end"), &end_of(&id, &end)), Some(Ending::Completed))
                }
                // The job may well wait; this is no failure.
                Step::Late => (error(&Refusal::silent(&id, LONGEST)), Some(Ending::LateOwn)),
                Step::Closing => {
                    (error(&Refusal::ending(std::slice::from_ref(&id))), Some(Ending::Closing))
                }
                Step::Failed(refusal) => (error(&refusal), Some(Ending::Failed)),
            };
            if let Some(ending) = ending {
                streaming.ends(ending);
                yield event;
                return;
            }
            yield event;
        }
    };
    events.map(Ok)
}

/// Text as it is, anything else in base64 under a name of its own: a text with a CR in it as well, of which
/// readers of events make another end of a line.
fn piece(place: Place, body: &[u8]) -> Bytes {
    let id = format!("{}.{}", place.attempt, place.seq);
    if body.contains(&b'\r') || std::str::from_utf8(body).is_err() {
        return sse::event(Some(&id), Some("piece-base64"), STANDARD.encode(body).as_bytes());
    }
    sse::event(Some(&id), Some("piece"), body)
}

fn error(refusal: &Refusal) -> Bytes {
    sse::event(None, Some("error"), &refusal.refused.body())
}

fn read_place(text: &str) -> Option<Place> {
    let (attempt, seq) = text.trim().split_once('.')?;
    Some(Place { attempt: attempt.parse().ok()?, seq: seq.parse().ok()? })
}

fn end_of(id: &JobId, end: &End) -> Vec<u8> {
    let mut told = Ended {
        id,
        state: "gone",
        content_type: None,
        result: None,
        text: None,
        base64: None,
        kind: None,
        reason: None,
    };
    match end {
        End::Gone | End::Elsewhere => {}
        End::Result(JobResult { outcome: Outcome::Failed(failure), .. }) => {
            told.state = "failed";
            told.kind = Some(failure.kind);
            told.reason = Some(&failure.reason);
        }
        End::Result(JobResult { outcome: Outcome::Cancelled, .. }) => told.state = "cancelled",
        End::Result(JobResult { outcome: Outcome::Completed { content_type, body }, .. }) => {
            told.state = "completed";
            told.content_type = Some(content_type);
            let text = std::str::from_utf8(body).ok();
            told.result = text
                .filter(|_| content_type.starts_with(JSON))
                .and_then(|text| serde_json::from_str(text).ok());
            told.text = text.filter(|_| told.result.is_none());
            told.base64 = text.is_none().then(|| STANDARD.encode(body));
        }
    }
    serde_json::to_vec(&told).expect("keys are texts, and numbers are finite")
}

#[cfg(test)]
mod tests {
    use ebb_queue::{Failure, Timestamp};

    use super::*;

    fn end(outcome: Outcome) -> String {
        let id: JobId = "j".parse().unwrap();
        let result = JobResult {
            id: id.clone(),
            attempt: 1,
            outcome,
            finished_at: Timestamp::UNIX_EPOCH,
            queue: None,
        };
        String::from_utf8(end_of(&id, &End::Result(result))).unwrap()
    }

    #[test]
    fn an_end_has_the_answer_as_what_it_is() {
        let completed = |content_type: &str, body: &'static [u8]| {
            let content_type = content_type.to_owned();
            end(Outcome::Completed { content_type, body: Bytes::from_static(body) })
        };
        let told = completed(JSON, br#"{"a": [1.50]}"#);
        let expected = r#"{"id":"j","state":"completed","content_type":"application/json","result":{"a": [1.50]}}"#;
        assert_eq!(told, expected, "not a digit is changed");
        assert!(completed("text/plain", b"a\nb").ends_with(r#""text":"a\nb"}"#));
        assert!(completed(JSON, b"{").ends_with(r#""text":"{"}"#), "what is no JSON is a text");
        assert!(completed("x/y", b"\xff\x00").ends_with(r#""base64":"/wA="}"#));
        let failed = end(Outcome::Failed(Failure::new(FailureKind::Model, "no")));
        assert_eq!(failed, r#"{"id":"j","state":"failed","kind":"model","reason":"no"}"#);
    }

    #[test]
    fn a_place_is_read_as_it_was_told() {
        let place = Place { attempt: 2, seq: 17 };
        let told = String::from_utf8(piece(place, b"a").to_vec()).unwrap();
        assert_eq!(told, "id: 2.17\nevent: piece\ndata: a\n\n");
        assert_eq!(read_place("2.17"), Some(place));
        for (body, data) in [(&b"\xff"[..], "/w=="), (b"a\r\nb", "YQ0KYg==")] {
            let expected = format!("id: 2.17\nevent: piece-base64\ndata: {data}\n\n");
            assert_eq!(piece(place, body), expected);
        }
        for wrong in ["", "2", "2.", ".1", "a.b", "-1.0"] {
            assert_eq!(read_place(wrong), None, "{wrong:?}");
        }
    }
}
