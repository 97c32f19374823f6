//! What the gateway answers when it does not answer: status, headers, and OpenAI's shape of an error.

use std::time::Duration;

use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use ebb_queue::{Error, ErrorKind, JSON, JobId};

use crate::admission::Busy;
use crate::memory::Full;
use crate::openai::Refused;

/// The id of a job, or those of several with commas between them.
pub(crate) const EBB_ID: HeaderName = HeaderName::from_static("ebb-id");

/// Ids that a header holds.
const MOST_IDS: usize = 32;

/// OpenAI's clients heed it.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// When to come again to a broker that is away or full, and to a gateway that is.
const SOON: Duration = Duration::from_secs(1);

/// Why a request is not answered, and when to come again.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{refused}")]
pub(crate) struct Refusal {
    /// In a box: each way in may end with one, and most do not.
    pub(crate) refused: Box<Refused>,
    retry_after: Option<Duration>,
    /// The jobs that the request has made.
    ids: Vec<JobId>,
    /// Whether the time was over that the client has set itself.
    is_own_limit: bool,
    /// Whether it stays so however often the client comes again.
    is_for_good: bool,
    /// Where jobs were to be published: whether they may be on their queue all the same.
    pub(crate) may_be_stored: bool,
}

/// Marks a response to a request whose own time was over.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OwnLimit;

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        let refused = Box::new(refused);
        let ids = Vec::new();
        Self {
            refused,
            retry_after: None,
            ids,
            is_own_limit: false,
            is_for_good: false,
            may_be_stored: false,
        }
    }
}

impl From<Busy> for Refusal {
    fn from(busy: Busy) -> Self {
        let (code, words, wait) = match busy {
            Busy::All => {
                ("gateway_busy", "the gateway has as many requests as it takes".to_owned(), SOON)
            }
            Busy::Key => {
                ("key_busy", "this key has as many requests in flight as it may".to_owned(), SOON)
            }
            Busy::Model(name) => {
                ("model_busy", format!("as many requests wait for {name} as may"), SOON)
            }
            Busy::Rate(wait) => {
                let words = "this key has as many requests a minute as it may".to_owned();
                ("rate_limit_exceeded", words, wait)
            }
        };
        Self::again(429, code, &format!("{words}; come again after retry-after"), wait)
    }
}

impl From<Full> for Refusal {
    fn from(full: Full) -> Self {
        let (code, words) = match full {
            Full::Never => return Self::never_fits(&[]),
            Full::All => ("gateway_busy", "bodies and answers take as much memory as they may"),
            Full::Key => (
                "key_busy",
                "bodies and answers of this key take half of the memory that others leave, which is as \
                 much as they may",
            ),
        };
        Self::again(429, code, &format!("{words}; come again after retry-after"), SOON)
    }
}

/// What the broker said to a call.
impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let may_be_stored = error.may_be_stored();
        let refusal = match error.kind() {
            ErrorKind::Full if may_be_stored => Self::again(
                503,
                "publish_in_doubt",
                "the broker has no room, and does not say what it has stored; come again after \
                 retry-after",
                SOON,
            ),
            ErrorKind::Full => Self::again(
                429,
                "queue_full",
                "as many jobs wait as the queue takes; come again after retry-after",
                SOON,
            ),
            ErrorKind::Unavailable => Self::again(
                503,
                "broker_unavailable",
                "the broker does not answer; come again after retry-after",
                SOON,
            ),
            ErrorKind::Invalid => Refused::new(400, "invalid_job", error.to_string()).into(),
            // What is wrong is the gateway's own: its rights, its URL, its version.
            _ => Self::broker_refuses(),
        };
        Self { may_be_stored, ..refusal }
    }
}

impl Refusal {
    fn again(status: u16, code: &'static str, words: &str, wait: Duration) -> Self {
        Self { retry_after: Some(wait), ..Refused::new(status, code, words).into() }
    }

    /// Who shows no key, or one that is not known.
    pub(crate) fn unknown_key(is_shown: IsShown) -> Self {
        let words = match is_shown {
            IsShown::No => "a key is missing; send the header authorization: Bearer KEY",
            IsShown::Yes => "this key is not known; ask the operator for another",
        };
        Refused::new(401, "invalid_api_key", words).into()
    }

    /// There is no such model for this caller; these there are.
    pub(crate) fn unknown_model(asked: &str, names: &[&str]) -> Self {
        let shown: String = asked.chars().take(64).collect();
        let there_are = match names {
            [] => "there is none for this key".to_owned(),
            names => format!("there are {}", names.join(", ")),
        };
        let words = format!("there is no model {shown:?}; {there_are}");
        Refused::new(404, "model_not_found", words).at("model").into()
    }

    /// The request does not say which model of several.
    pub(crate) fn no_model() -> Self {
        let words =
            "model is missing; name one of those at /v1/models, a job by the header ebb-model";
        Refused::new(400, "missing_required_parameter", words).at("model").into()
    }

    /// There is no such job for this caller.
    pub(crate) fn unknown_job() -> Self {
        let words = "there is no job of this id, or none of yours; it may have been forgotten";
        Refused::new(404, "job_not_found", words).into()
    }

    /// A field of the request, or a header, is wrong.
    pub(crate) fn wrong(param: &str, words: impl Into<String>) -> Self {
        Refused::new(400, "invalid_value", words).at(param).into()
    }

    /// The body is larger than it may be.
    pub(crate) fn too_large(most: usize) -> Self {
        let words = format!("the body has more than {most} bytes; send less");
        Refused::new(413, "body_too_large", words).into()
    }

    /// The answers are there, and no room to hold them.
    pub(crate) fn no_room_for_answers(ids: &[JobId]) -> Self {
        let words = "the answers take more memory than there is for them; send fewer inputs at once, or \
                     ask for each at /v1/jobs/ID";
        Self::again(503, "answers_too_large", words, SOON).of(ids)
    }

    /// A stream finds no room for what comes next.
    pub(crate) fn no_room_for_stream(ids: &[JobId]) -> Self {
        let words = "what comes next takes more memory than others leave; the job goes on: ask for its \
                     answer at /v1/jobs/ID, or follow it again at /v1/jobs/ID/events";
        Self::again(503, "answers_too_large", words, SOON).of(ids)
    }

    /// The answer would find no room if there were nobody else.
    pub(crate) fn never_fits(ids: &[JobId]) -> Self {
        let words = "the answer takes more memory than it may have though nobody else asks, of which a key \
                     that is not the only one has half; the operator raises --body-memory";
        let refused = Refused::new(503, "answers_too_large", words);
        Self { is_for_good: true, ..refused.into() }.of(ids)
    }

    /// A page of another site asks a gateway that is for this machine.
    pub(crate) fn foreign() -> Self {
        let words = "without keys this gateway is for programs of its own machine; the operator gives \
                     --keys or --open";
        Refused::new(403, "foreign_origin", words).into()
    }

    /// The job is done or purged, and its result not there.
    pub(crate) fn gone(id: &JobId) -> Self {
        let words = "the job is done or purged, and there is no result of it any more";
        Self::from(Refused::new(410, "result_gone", words)).of(std::slice::from_ref(id))
    }

    /// Nothing was heard of a job for so long.
    pub(crate) fn silent(id: &JobId, limit: Duration) -> Self {
        let words = format!(
            "nothing was heard of job {id} for {} s; come again with last-event-id",
            limit.as_secs_f64()
        );
        Refused::new(504, "silence", words).into()
    }

    /// The broker of a model was not reached since the gateway started.
    pub(crate) fn not_yet(model: &str) -> Self {
        let words = format!("the broker of {model} was not reached yet; come again");
        Self::again(503, "broker_unavailable", &words, SOON)
    }

    /// The broker does not let the gateway use a queue, and says so each time.
    pub(crate) fn broker_refuses() -> Self {
        let words = "the gateway may not use its queue; its log says why";
        Refused::new(500, "broker_refuses", words).into()
    }

    /// The answer did not come in time.
    pub(crate) fn timed_out(ids: &[JobId], limit: Duration, then: Then) -> Self {
        let may_be_stored = then == Then::InDoubt;
        let then = match then {
            Then::GivenUp => {
                "is given up; allow more by the header ebb-ttl, or send prefer: respond-async"
            }
            Then::GoesOn => {
                "goes on: send the request again with the same idempotency-key or ebb-id, or ask at \
                 /v1/jobs/ID"
            }
            Then::BeginsNoMore => "goes on only if it has begun: ask at /v1/jobs/ID",
            Then::InDoubt => "the broker has not said whether it has it",
        };
        let words =
            format!("{} had no answer within {} s and {then}", jobs(ids), limit.as_secs_f64());
        let refused = Refused { kind: "timeout_error", ..Refused::new(504, "timeout", words) };
        Self { ids: ids.to_vec(), may_be_stored, ..refused.into() }
    }

    /// The gateway ends; the jobs do not.
    pub(crate) fn ending(ids: &[JobId]) -> Self {
        let words = match ids {
            [] => "the gateway ends; come again".to_owned(),
            ids => {
                format!("the gateway ends, and {} goes on: ask for it at /v1/jobs/ID", jobs(ids))
            }
        };
        let again = Self::again(503, "gateway_ends", &words, SOON);
        Self { ids: ids.to_vec(), may_be_stored: true, ..again }
    }

    /// The same of jobs that were to be published, of which the client may come for these: where they
    /// may be on their queue it says so, and what to do.
    pub(crate) fn of_doubtful(self, ids: &[JobId], names: Names) -> Self {
        let to_do = match (ids, names) {
            ([], _) => return self,
            ([_], _) => {
                "send the request again with the same idempotency-key or with this ebb-id, and it may \
                 run twice and has one result, or ask for it at /v1/jobs/ID"
            }
            // Of several ids none names them all.
            (_, Names::Client) => {
                "send the request again with the idempotency-key or the ebb-id that it had, and each \
                 may run twice and has one result, or ask for each at /v1/jobs/ID"
            }
            (_, Names::Gateway) => {
                "ask for each at /v1/jobs/ID, since the request makes new jobs when it is sent again"
            }
        };
        if !self.may_be_stored {
            return self;
        }
        let message =
            format!("{}; {} may be stored all the same: {to_do}", self.refused.message, jobs(ids));
        let refused = Box::new(Refused { message, ..*self.refused });
        Self { refused, ..self }.of(ids)
    }

    /// The same, where it says that time is over, of a time that the client has set itself or not.
    pub(crate) fn own(self, is_own: bool) -> Self {
        let is_own_limit = is_own && self.refused.status == 504;
        Self { is_own_limit, ..self }
    }

    /// The same with the jobs that the request has made.
    pub(crate) fn of(self, ids: &[JobId]) -> Self {
        Self { ids: ids.to_vec(), ..self }
    }
}

/// What becomes of jobs when the time of their request is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// They are cancelled: nobody else can come for them.
    GivenUp,
    /// They wait or run as before.
    GoesOn,
    /// Their deadline, which the client has set, is over as well: what has begun is finished.
    BeginsNoMore,
    /// They may not be on their queue at all, see [`Refusal::of_doubtful`].
    InDoubt,
}

/// By whose name or key the jobs of a request are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Names {
    /// The client has chosen it: the same request means the same jobs.
    Client,
    /// The gateway has, and the same request means others.
    Gateway,
}

/// Whether a caller has shown a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IsShown {
    Yes,
    No,
}

fn jobs(ids: &[JobId]) -> String {
    match ids {
        [] => "the request".to_owned(),
        [id] => format!("job {id}"),
        [first, rest @ ..] => format!("job {first} and {} more", rest.len()),
    }
}

/// The header `ebb-id` of a response about these jobs. Of many only as many as a header holds.
pub(crate) fn ids_header(ids: &[JobId]) -> Option<HeaderValue> {
    let ids: Vec<&str> = ids.iter().take(MOST_IDS).map(JobId::as_str).collect();
    (!ids.is_empty()).then(|| HeaderValue::from_str(&ids.join(",")).ok())?
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self { refused, retry_after, ids, is_own_limit, is_for_good, .. } = self;
        let status =
            StatusCode::from_u16(refused.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        // Whoever is to come for the jobs has to know them all.
        let in_body = if ids.len() > MOST_IDS { &ids[..] } else { &[] };
        let body = refused.body_about(in_body);
        let mut response = (status, [(CONTENT_TYPE, JSON)], body).into_response();
        let headers = response.headers_mut();
        if let Some(wait) = retry_after {
            // Whole seconds, and not before the time.
            headers.insert(RETRY_AFTER, HeaderValue::from(wait.as_secs_f64().ceil() as u64));
        }
        if is_for_good || !refused.is_worth_another_try() {
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        headers.extend(ids_header(&ids).map(|ids| (EBB_ID, ids)));
        if is_own_limit {
            response.extensions_mut().insert(OwnLimit);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(response: &Response, name: &str) -> Option<String> {
        Some(response.headers().get(name)?.to_str().unwrap().to_owned())
    }

    #[test]
    fn who_may_come_again_is_told_when() {
        for (refusal, status, after, retry) in [
            (Busy::Rate(Duration::from_millis(1200)).into(), 429, Some("2"), None),
            (Busy::All.into(), 429, Some("1"), None),
            (Full::All.into(), 429, Some("1"), None),
            (Full::Key.into(), 429, Some("1"), None),
            (Full::Never.into(), 503, None, Some("false")),
            (Error::new(ErrorKind::Full, "x").into(), 429, Some("1"), None),
            (Error::new(ErrorKind::Unavailable, "x").into(), 503, Some("1"), None),
            (Error::new(ErrorKind::Denied, "secret").into(), 500, None, None),
            (Error::new(ErrorKind::Invalid, "x").into(), 400, None, Some("false")),
            (Refused::new(409, "job_ended", "x").into(), 409, None, Some("false")),
            (Refusal::unknown_key(IsShown::No), 401, None, Some("false")),
        ] {
            let refusal: Refusal = refusal;
            assert!(!refusal.to_string().contains("secret"), "{refusal}");
            let response = refusal.into_response();
            assert_eq!(response.status(), status);
            assert_eq!(header(&response, "retry-after").as_deref(), after);
            assert_eq!(header(&response, "x-should-retry").as_deref(), retry);
        }
    }

    #[test]
    fn what_was_begun_is_named() {
        let ids = [JobId::fresh(), JobId::fresh()];
        let late = Refusal::timed_out(&ids, Duration::from_secs(5), Then::GivenUp);
        let response = late.into_response();
        assert_eq!(response.status(), 504);
        assert_eq!(header(&response, "x-should-retry").as_deref(), Some("false"));
        let expected = format!("{},{}", ids[0], ids[1]);
        assert_eq!(header(&response, "ebb-id"), Some(expected));
        assert!(Refusal::ending(&ids[..1]).to_string().contains(ids[0].as_str()));
    }

    #[test]
    fn who_may_come_for_jobs_in_doubt_is_told_what_means_them_all() {
        let ids = [JobId::fresh(), JobId::fresh()];
        for (kind, n_ids, names, told) in [
            (ErrorKind::Unavailable, 1, Names::Gateway, Some("with this ebb-id")),
            (ErrorKind::Denied, 1, Names::Client, Some("with this ebb-id")),
            (ErrorKind::Internal, 2, Names::Client, Some("the ebb-id that it had")),
            (ErrorKind::Unavailable, 2, Names::Gateway, Some("ask for each at /v1/jobs/ID")),
            (ErrorKind::Unavailable, 0, Names::Gateway, None),
            (ErrorKind::Full, 1, Names::Client, None),
        ] {
            let refusal = Refusal::from(Error::new(kind, "x")).of_doubtful(&ids[..n_ids], names);
            let words = refusal.to_string();
            assert_eq!(words.contains("this ebb-id"), told.is_some() && n_ids == 1, "{words}");
            assert!(told.is_none_or(|told| words.contains(told)), "{words}");
            let named = header(&refusal.into_response(), "ebb-id");
            assert_eq!(named.is_some(), told.is_some(), "{words}");
        }
    }
}
