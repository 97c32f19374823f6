//! A job and its envelope: the body is the request itself, all else travels in headers.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind, Result, Timestamp, header, read_span};

/// What the body is when nobody says.
pub const JSON: &str = "application/json";
/// Our own messages.
pub const PROTOBUF: &str = "application/protobuf";

/// The longest id, key, model, tenant or reply address.
const MAX_NAME: usize = 256;

/// The name of a job: 1 to 256 printable ASCII characters, no spaces.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JobId(std::sync::Arc<str>);

impl JobId {
    /// A fresh id, ordered by time.
    #[must_use]
    pub fn fresh() -> Self {
        Self(uuid::Uuid::now_v7().to_string().into())
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for JobId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        check_name(header::ID, &text)?;
        Ok(Self(text.into()))
    }
}

impl std::str::FromStr for JobId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        text.to_owned().try_into()
    }
}

impl From<JobId> for String {
    fn from(id: JobId) -> Self {
        id.as_str().to_owned()
    }
}

/// Who goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// When nothing else waits.
    Low,
    /// In turn.
    #[default]
    Normal,
    /// Before all others.
    High,
}

impl std::str::FromStr for Priority {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "high" => Ok(Self::High),
            "normal" => Ok(Self::Normal),
            "low" => Ok(Self::Low),
            other => Err(invalid(header::PRIORITY, other, "use high, normal or low")),
        }
    }
}

impl Priority {
    /// The name that producers write.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
        }
    }
}

/// A job: the request itself and its envelope.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Job {
    /// Its name.
    pub id: JobId,
    /// When it was published.
    pub enqueued_at: Timestamp,
    /// Everything that travels beside the body.
    #[serde(flatten)]
    pub headers: Headers,
    /// The request itself.
    #[serde(serialize_with = "body_as_text")]
    pub body: Bytes,
}

/// The envelope of a job, parsed. All of it is optional.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Headers {
    /// The model asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The moment after which the answer is worthless.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    /// The moment before which the job may not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// Who goes first.
    pub priority: Priority,
    /// What the job costs, in tokens; a hint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<f64>,
    /// Where to send the result as well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<String>,
    /// On whose behalf.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Idempotency key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// W3C trace context.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// What the body is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// The key of the body where that lies in a payload store, and what is here is a reference.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body_ref: Option<String>,
    /// A producer's own mark of its request, given back with the reply where the broker has that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correlation: Option<String>,
}

impl Job {
    /// A job with a fresh id and an empty envelope.
    #[must_use]
    pub fn new(body: impl Into<Bytes>, now: Timestamp) -> Self {
        Self {
            id: JobId::fresh(),
            enqueued_at: now,
            headers: Headers::default(),
            body: body.into(),
        }
    }

    /// A job from a message as a plain client sent it: headers by name, and a body.
    ///
    /// # Errors
    /// A header that does not parse is named, with the remedy; unknown headers are ignored.
    pub fn from_message<'a>(
        headers: impl IntoIterator<Item = (&'a str, &'a str)>,
        body: impl Into<Bytes>,
        now: Timestamp,
    ) -> Result<Self> {
        let mut job = Self::new(body, now);
        for (name, value) in headers {
            job.set(name, value)?;
        }
        Ok(job)
    }

    /// The same for a message that is here already: what does not parse is left out, and said.
    ///
    /// A message that names no id gets this one, from the broker's own identity of it.
    pub(crate) fn from_stranger<'a>(
        id: JobId,
        headers: impl IntoIterator<Item = (&'a str, &'a str)>,
        body: impl Into<Bytes>,
        now: Timestamp,
    ) -> (Self, Option<Error>) {
        let headers_read = Headers::default();
        let mut job = Self { id, enqueued_at: now, headers: headers_read, body: body.into() };
        let mut wrong = None;
        for (name, value) in headers {
            if let Err(error) = job.set(name, value) {
                wrong.get_or_insert(error);
            }
        }
        (job, wrong)
    }

    /// What travels beside the body, by name; [`Self::from_message`] reads it back.
    #[must_use]
    pub fn to_headers(&self) -> Vec<(&'static str, String)> {
        // By name, so that a new header cannot be forgotten here.
        let Headers {
            model,
            deadline,
            not_before,
            priority,
            cost,
            reply_to,
            tenant,
            key,
            traceparent,
            content_type,
            body_ref,
            correlation,
        } = &self.headers;
        let priority = Some(*priority).filter(|priority| *priority != Priority::default());
        let fields = [
            (header::ENQUEUED_AT, Some(self.enqueued_at.to_string())),
            (header::ID, Some(self.id.to_string())),
            (header::MODEL, model.clone()),
            (header::DEADLINE, deadline.map(|at| at.to_string())),
            (header::NOT_BEFORE, not_before.map(|at| at.to_string())),
            (header::PRIORITY, priority.map(|priority| priority.as_str().to_owned())),
            (header::COST, cost.map(|cost| cost.to_string())),
            (header::REPLY_TO, reply_to.clone()),
            (header::TENANT, tenant.clone()),
            (header::KEY, key.clone()),
            (header::TRACEPARENT, traceparent.clone()),
            (header::CONTENT_TYPE, content_type.clone()),
            (header::BODY_REF, body_ref.clone()),
            (header::CORRELATION, correlation.clone()),
        ];
        fields.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }

    /// Sets one header from its text, names in any case.
    ///
    /// # Errors
    /// When the value does not parse.
    pub fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let headers = &mut self.headers;
        match name.to_ascii_lowercase().as_str() {
            header::ID => self.id = value.parse()?,
            header::MODEL => headers.model = Some(checked_name(header::MODEL, value)?),
            header::DEADLINE => headers.merge_deadline(parse_moment(header::DEADLINE, value)?),
            header::TTL => {
                let ttl = parse_span(header::TTL, value)?;
                headers.merge_deadline(later(self.enqueued_at, ttl));
            }
            header::DELAY => {
                let delay = parse_span(header::DELAY, value)?;
                headers.not_before = Some(later(self.enqueued_at, delay));
            }
            header::PRIORITY => headers.priority = value.parse()?,
            header::COST => headers.cost = Some(parse_cost(value)?),
            header::REPLY_TO => headers.reply_to = Some(checked_name(header::REPLY_TO, value)?),
            header::TENANT => headers.tenant = Some(checked_name(header::TENANT, value)?),
            header::KEY => headers.key = Some(checked_name(header::KEY, value)?),
            header::TRACEPARENT => headers.traceparent = Some(value.to_owned()),
            header::CONTENT_TYPE => headers.content_type = Some(value.to_owned()),
            header::BODY_REF => headers.body_ref = Some(checked_name(header::BODY_REF, value)?),
            header::CORRELATION => headers.correlation = Some(value.to_owned()),
            header::ENQUEUED_AT => self.enqueued_at = parse_moment(header::ENQUEUED_AT, value)?,
            header::NOT_BEFORE => {
                headers.not_before = Some(parse_moment(header::NOT_BEFORE, value)?);
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether the answer is worthless by now.
    #[must_use]
    pub fn expired(&self, now: Timestamp) -> bool {
        self.headers.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// What the body is.
    #[must_use]
    pub fn content_type(&self) -> &str {
        self.headers.content_type.as_deref().unwrap_or(JSON)
    }
}

impl Headers {
    /// A deadline and a TTL may both be given: the earlier one counts.
    fn merge_deadline(&mut self, deadline: Timestamp) {
        self.deadline = Some(self.deadline.map_or(deadline, |known| known.min(deadline)));
    }
}

/// The end of time is late enough for those who ask for more.
fn later(at: Timestamp, span: Duration) -> Timestamp {
    at.checked_add(span).unwrap_or(Timestamp::MAX)
}

fn parse_moment(name: &str, value: &str) -> Result<Timestamp> {
    value
        .parse()
        .map_err(|_| invalid(name, value, "use RFC 3339 with a zone, such as 2030-01-31T12:00:00Z"))
}

/// Parses a span of time as [`read_span`] reads it, of at most ten years.
pub(crate) fn parse_span(name: &str, value: &str) -> Result<Duration> {
    const TEN_YEARS: Duration = Duration::from_secs(10 * 366 * 86_400);
    let remedy = "use seconds, or a number with a unit, such as 250ms, 30s, 5m or 1d";
    let span = read_span(value).ok_or_else(|| invalid(name, value, remedy))?;
    if span > TEN_YEARS {
        return Err(invalid(name, value, "use at most ten years"));
    }
    // To the microsecond, as it is stored.
    Ok(Duration::from_micros(u64::try_from(span.as_micros()).unwrap_or(u64::MAX)))
}

fn parse_cost(value: &str) -> Result<f64> {
    let cost = value.parse().ok().filter(|cost: &f64| cost.is_finite() && *cost >= 0.0);
    cost.ok_or_else(|| invalid(header::COST, value, "use a number of tokens, 0 or more"))
}

fn checked_name(name: &str, value: &str) -> Result<String> {
    check_name(name, value)?;
    Ok(value.to_owned())
}

fn check_name(name: &str, value: &str) -> Result<()> {
    let fits = (1..=MAX_NAME).contains(&value.len());
    if fits && value.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(());
    }
    Err(invalid(name, value, "use 1 to 256 printable ASCII characters without spaces"))
}

fn invalid(name: &str, value: &str, remedy: &str) -> Error {
    let shown: String = value.chars().take(64).collect();
    Error::new(ErrorKind::Invalid, format!("{name}: {shown:?} is not valid; {remedy}"))
}

fn body_as_text<S: serde::Serializer>(body: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&String::from_utf8_lossy(body))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn now() -> Timestamp {
        "2030-01-31T12:00:00Z".parse().unwrap()
    }

    fn seconds(n: i64) -> Timestamp {
        now() + jiff::SignedDuration::from_secs(n)
    }

    fn parse(headers: &[(&str, &str)]) -> Result<Job> {
        Job::from_message(headers.iter().copied(), "{}", now())
    }

    /// Writes an envelope the way a producer would.
    fn written(job: &Job) -> Vec<(&'static str, String)> {
        let Headers { model, deadline, not_before, priority, cost, .. } = &job.headers;
        let Headers { reply_to, tenant, key, traceparent, content_type, body_ref, .. } =
            &job.headers;
        let correlation = &job.headers.correlation;
        let delay = not_before.map(|at| at.duration_since(job.enqueued_at).as_millis());
        let fields = [
            (header::ID, Some(job.id.to_string())),
            (header::MODEL, model.clone()),
            (header::DEADLINE, deadline.map(|at| at.to_string())),
            (header::DELAY, delay.map(|ms| format!("{ms}ms"))),
            (header::PRIORITY, Some(priority.as_str().to_owned())),
            (header::COST, cost.map(|cost| cost.to_string())),
            (header::REPLY_TO, reply_to.clone()),
            (header::TENANT, tenant.clone()),
            (header::KEY, key.clone()),
            (header::TRACEPARENT, traceparent.clone()),
            (header::BODY_REF, body_ref.clone()),
            (header::CONTENT_TYPE, content_type.clone()),
            (header::CORRELATION, correlation.clone()),
        ];
        fields.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }

    #[test]
    fn a_message_without_headers_is_a_job() {
        let job = parse(&[]).unwrap();
        assert_eq!(job.headers, Headers::default());
        assert_eq!((job.content_type(), job.enqueued_at), (JSON, now()));
        assert_ne!(job.id, parse(&[]).unwrap().id);
    }

    #[test]
    fn a_strange_message_is_a_job_without_what_cannot_be_read() {
        let headers = [("ebb-priority", "urgent"), ("ebb-tenant", "t"), ("ebb-cost", "much")];
        let (job, wrong) = Job::from_stranger("seq-1".parse().unwrap(), headers, "body", now());
        assert_eq!((job.id.as_str(), job.headers.priority), ("seq-1", Priority::Normal));
        assert_eq!(job.headers.tenant.as_deref(), Some("t"));
        assert!(wrong.unwrap().to_string().starts_with("ebb-priority"));
    }

    #[test]
    fn header_names_may_be_in_any_case_and_unknown_ones_are_ignored() {
        let job = parse(&[("EBB-Priority", "high"), ("x-other", "\u{0}"), ("Content-Type", "a/b")]);
        let job = job.unwrap();
        assert_eq!((job.headers.priority, job.content_type()), (Priority::High, "a/b"));
    }

    #[test]
    fn of_a_deadline_and_a_ttl_the_earlier_counts_in_any_order() {
        let late = ("ebb-deadline", "2030-01-31T13:00:00Z");
        let early = ("ebb-deadline", "2030-01-31T12:00:01+00:00");
        let ttl = ("ebb-ttl", "5m");
        for (headers, expected) in [
            ([late, ttl], seconds(300)),
            ([ttl, late], seconds(300)),
            ([early, ttl], seconds(1)),
            ([ttl, early], seconds(1)),
        ] {
            assert_eq!(parse(&headers).unwrap().headers.deadline, Some(expected));
        }
    }

    #[test]
    fn a_job_expires_at_its_deadline_and_not_before() {
        let job = parse(&[("ebb-ttl", "10")]).unwrap();
        assert!(!job.expired(seconds(9)));
        assert!(job.expired(seconds(10)));
        assert!(!parse(&[]).unwrap().expired(Timestamp::MAX));
    }

    #[test]
    fn spans_have_a_unit_or_are_seconds() {
        for (text, millis) in [
            ("250ms", 250),
            ("30s", 30_000),
            ("30", 30_000),
            ("1.5s", 1_500),
            ("30 s", 30_000),
            ("5m", 300_000),
            ("2h", 7_200_000),
            ("1d", 86_400_000),
            ("1h30m", 5_400_000),
            ("0", 0),
            ("3660d", 316_224_000_000),
        ] {
            assert_eq!(parse_span("x", text).unwrap(), Duration::from_millis(millis), "{text}");
        }
    }

    #[test]
    fn a_value_that_cannot_be_right_is_refused_by_name_with_the_remedy() {
        let long = "x".repeat(257);
        for (name, value, remedy) in [
            ("ebb-id", "", "1 to 256"),
            ("ebb-id", "with space", "1 to 256"),
            ("ebb-id", "umlaut-\u{e4}", "1 to 256"),
            ("ebb-model", &*long, "1 to 256"),
            ("ebb-tenant", "a\nb", "1 to 256"),
            ("ebb-reply-to", "", "1 to 256"),
            ("ebb-key", "\u{7f}", "1 to 256"),
            ("ebb-deadline", "tomorrow", "RFC 3339"),
            ("ebb-deadline", "2030-01-31T12:00:00", "RFC 3339"),
            ("ebb-ttl", "-1s", "250ms, 30s"),
            ("ebb-ttl", "5 months", "250ms, 30s"),
            ("ebb-ttl", "1.2.3s", "250ms, 30s"),
            ("ebb-ttl", "nan", "250ms, 30s"),
            ("ebb-ttl", ".", "250ms, 30s"),
            ("ebb-ttl", "3661d", "ten years"),
            ("ebb-delay", "99999999999999999999999999999999999999d", "250ms, 30s"),
            ("ebb-priority", "urgent", "high, normal or low"),
            ("ebb-cost", "-1", "0 or more"),
            ("ebb-cost", "inf", "0 or more"),
            ("ebb-cost", "NaN", "0 or more"),
        ] {
            let error = parse(&[(name, value)]).expect_err(value);
            let text = error.to_string();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(text.starts_with(name) && text.contains(remedy), "{text}");
            assert!(text.len() < 400, "{text}");
        }
    }

    #[test]
    fn an_envelope_survives_json() {
        let job = parse(&[("ebb-ttl", "1m"), ("ebb-cost", "2.5"), ("ebb-tenant", "t")]).unwrap();
        let json = serde_json::to_string(&job.headers).unwrap();
        assert_eq!(serde_json::from_str::<Headers>(&json).unwrap(), job.headers);
        assert_eq!(serde_json::from_str::<Headers>("{}").unwrap(), Headers::default());
    }

    fn name() -> impl Strategy<Value = String> {
        "[!-~]{1,40}"
    }

    prop_compose! {
        fn envelope()(
            id in name(),
            names in prop::array::uniform5(prop::option::of(name())),
            deadline in prop::option::of(-1_000_000i64..1_000_000),
            delay in prop::option::of(0i64..1_000_000),
            priority in prop::sample::select(&[Priority::Low, Priority::Normal, Priority::High]),
            cost in prop::option::of(0f64..1e12),
            texts in prop::array::uniform3(prop::option::of("[ -~]{0,40}")),
            body in prop::collection::vec(any::<u8>(), 0..64),
        ) -> Job {
            let [model, reply_to, tenant, key, body_ref] = names;
            let [traceparent, content_type, correlation] = texts;
            let deadline = deadline.map(seconds);
            let not_before = delay.map(seconds);
            let headers = Headers {
                model, deadline, not_before, priority, cost, reply_to, tenant, key, traceparent,
                content_type, body_ref, correlation,
            };
            Job { id: id.parse().unwrap(), enqueued_at: now(), headers, body: body.into() }
        }
    }

    fn any_header() -> impl Strategy<Value = (String, String)> {
        let known = prop::sample::select(&[
            header::ID,
            header::MODEL,
            header::DEADLINE,
            header::TTL,
            header::PRIORITY,
            header::DELAY,
            header::COST,
            header::KEY,
            header::TRACEPARENT,
            header::CONTENT_TYPE,
        ]);
        let name = prop_oneof![4 => known.prop_map(str::to_owned), 1 => any::<String>()];
        let value = prop_oneof![any::<String>(), "[0-9.]{1,12}(ms|s|m|h|d)?", "[0-9TZ:+. -]{1,30}"];
        (name, value)
    }

    proptest! {
        #[test]
        fn what_a_producer_writes_is_what_the_worker_reads(job in envelope()) {
            let headers = written(&job);
            let headers = headers.iter().map(|(name, value)| (*name, value.as_str()));
            let read = Job::from_message(headers, job.body.clone(), now()).unwrap();
            prop_assert_eq!(read, job);
        }

        #[test]
        fn what_we_write_is_what_we_read_at_any_later_time(job in envelope()) {
            let headers = job.to_headers();
            let headers = headers.iter().map(|(name, value)| (*name, value.as_str()));
            let (read, wrong) = Job::from_stranger(
                JobId::fresh(), headers, job.body.clone(), seconds(1_000_000),
            );
            prop_assert!(wrong.is_none());
            prop_assert_eq!(read, job);
        }

        #[test]
        fn no_header_makes_it_panic_and_every_refusal_names_the_header(
            headers in prop::collection::vec(any_header(), 0..8),
            at in prop::sample::select(&[Timestamp::MIN, Timestamp::UNIX_EPOCH, Timestamp::MAX]),
        ) {
            let pairs = headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
            if let Err(error) = Job::from_message(pairs, "", at) {
                let text = error.to_string();
                let lower = |name: &String| name.to_ascii_lowercase();
                prop_assert!(headers.iter().any(|(name, _)| text.starts_with(&lower(name))));
            }
        }

        #[test]
        fn a_span_is_never_longer_than_ten_years(text in "[0-9]{0,25}[.]?[0-9]{0,25}(ms|s|m|h|d|)") {
            if let Ok(span) = parse_span("x", &text) {
                prop_assert!(span <= Duration::from_secs(3660 * 86_400));
            }
        }
    }
}
