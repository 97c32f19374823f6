//! What travels beside the bodies: headers for all jobs of a call, and how a job is read.

use anyhow::Result;
use clap::Args;
use ebb_queue::{Job, JobId, Timestamp, header};
use ebb_telemetry::read_traceparent;
use serde_json::{Value, json};

use crate::exit::usage;

/// Our headers that a producer may set.
const KNOWN: [&str; 14] = [
    header::ID,
    header::MODEL,
    header::DEADLINE,
    header::TTL,
    header::PRIORITY,
    header::DELAY,
    header::COST,
    header::REPLY_TO,
    header::TENANT,
    header::KEY,
    header::CORRELATION,
    header::BODY_REF,
    header::ENQUEUED_AT,
    header::NOT_BEFORE,
];

/// Headers for all jobs of the call; what a line says itself comes before them.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct Envelope {
    /// The model asked for
    #[arg(long, env = "EBB_ENQUEUE_MODEL", hide_env_values = true, value_name = "NAME")]
    model: Option<String>,
    /// high, normal or low
    #[arg(long, env = "EBB_ENQUEUE_PRIORITY", hide_env_values = true, value_name = "PRIORITY")]
    priority: Option<String>,
    /// Worthless after this long, such as 30s or 5m; expired jobs end in the dead letters
    #[arg(long, env = "EBB_ENQUEUE_TTL", hide_env_values = true, value_name = "SPAN")]
    ttl: Option<String>,
    /// Worthless after this moment, such as 2030-01-31T12:00:00Z
    #[arg(long, env = "EBB_ENQUEUE_DEADLINE", hide_env_values = true, value_name = "TIME")]
    deadline: Option<String>,
    /// Not to be run before this long has passed
    #[arg(long, env = "EBB_ENQUEUE_DELAY", hide_env_values = true, value_name = "SPAN")]
    delay: Option<String>,
    /// The id of one job; sent again it may run twice, and has one result [default: a new one]
    #[arg(long, env = "EBB_ENQUEUE_ID", hide_env_values = true, value_name = "ID")]
    pub(super) id: Option<JobId>,
    /// Idempotency key: a second job with the same key is the first one
    #[arg(long, env = "EBB_ENQUEUE_KEY", hide_env_values = true, value_name = "KEY")]
    pub(super) key: Option<String>,
    /// On whose behalf
    #[arg(long, env = "EBB_ENQUEUE_TENANT", hide_env_values = true, value_name = "NAME")]
    tenant: Option<String>,
    /// What a job costs, in tokens; a hint for the scaler
    #[arg(long, env = "EBB_ENQUEUE_COST", hide_env_values = true, value_name = "TOKENS")]
    cost: Option<String>,
    /// The W3C trace context that the jobs are part of, as 00-TRACE-SPAN-01
    #[arg(long, env = "EBB_ENQUEUE_TRACEPARENT", hide_env_values = true, value_name = "HEADER")]
    traceparent: Option<String>,
    /// Whether bodies that are made of texts ask for pieces of the answer.
    #[arg(skip)]
    pub(super) streams: bool,
}

impl Envelope {
    pub(super) fn check(&self) -> Result<()> {
        let wrong = |text: &&String| read_traceparent(text, None).is_none();
        if self.traceparent.as_ref().filter(wrong).is_some() {
            return Err(usage(
                "--traceparent is not one; use 00-TRACE-SPAN-01 with 32 and 16 hex digits",
            ));
        }
        self.job(Vec::new()).map(drop)
    }

    fn job(&self, body: impl Into<bytes::Bytes>) -> Result<Job> {
        let mut job = Job::new(body, Timestamp::now());
        if let Some(id) = &self.id {
            job.id = id.clone();
        }
        let headers = [
            (header::MODEL, &self.model),
            (header::PRIORITY, &self.priority),
            (header::TTL, &self.ttl),
            (header::DEADLINE, &self.deadline),
            (header::DELAY, &self.delay),
            (header::KEY, &self.key),
            (header::TENANT, &self.tenant),
            (header::COST, &self.cost),
            (header::TRACEPARENT, &self.traceparent),
        ];
        for (name, value) in headers {
            if let Some(value) = value {
                job.set(name, value)?;
            }
        }
        Ok(job)
    }

    /// A job from an argument: a JSON object is the body, anything else a text.
    pub(super) fn job_of_text(&self, text: &str) -> Result<Job> {
        if !text.trim_start().starts_with('{') {
            return self.job(self.input(text));
        }
        if let Err(error) = serde_json::from_str::<Value>(text) {
            return Err(usage(format!(
                "the text begins as a JSON object and is none: {error}; mend it, or send it as a \
                 text in {{\"input\": \"...\"}}"
            )));
        }
        self.job(text.to_owned())
    }

    /// The body of a text.
    fn input(&self, text: &str) -> String {
        let body = if self.streams {
            json!({ "input": text, "stream": true })
        } else {
            json!({ "input": text })
        };
        body.to_string()
    }

    /// A job from a JSON line.
    pub(super) fn job_of_line(&self, line: &str) -> Result<Job> {
        let value: Value = serde_json::from_str(line).map_err(|error| not_json(line, &error))?;
        match value {
            Value::String(text) => self.job(self.input(&text)),
            Value::Object(mut fields) if fields.contains_key("body") => {
                let body = match fields.remove("body") {
                    Some(Value::String(text)) => text,
                    body => body.unwrap_or_default().to_string(),
                };
                let mut job = self.job(body)?;
                let headers = match fields.remove("headers") {
                    None => serde_json::Map::new(),
                    Some(Value::Object(headers)) => headers,
                    Some(_) => return Err(usage("`headers` is no object of names and values")),
                };
                if let Some(id) = fields.remove("id") {
                    job.set(header::ID, &words_of(&id))?;
                }
                if let Some((name, _)) = fields.into_iter().next() {
                    return Err(usage(format!(
                        "{name:?} stands beside `body`; only id, headers and body may"
                    )));
                }
                for (name, value) in headers {
                    check_name(&name)?;
                    job.set(&name, &words_of(&value))?;
                }
                Ok(job)
            }
            Value::Object(_) => self.job(line.trim().to_owned()),
            _ => Err(usage("a JSON line is a string or an object")),
        }
    }
}

/// For whoever sent lines of text, or wrote JSON with a slip in it.
fn not_json(line: &str, error: &serde_json::Error) -> anyhow::Error {
    let reason = error.to_string();
    let reason = match reason.rsplit_once(" at line ") {
        Some((slip, _)) if line.trim_start().starts_with(['{', '[', '"']) => format!(" ({slip})"),
        _ => String::new(),
    };
    let column = error.column();
    usage(format!(
        "not a JSON line, at column {column}{reason}; write a text in quotes, as `jq -R .` does"
    ))
}

/// Refuses one of our headers that is none; others may stand there, and mean nothing.
fn check_name(name: &str) -> Result<()> {
    let lower = name.to_ascii_lowercase();
    if !lower.starts_with("ebb-") || KNOWN.contains(&lower.as_str()) {
        return Ok(());
    }
    let alike = |known: &&&str| {
        let same = |(a, b): &(u8, u8)| a == b;
        let begins = lower.bytes().zip(known.bytes()).take_while(same).count();
        begins + lower.bytes().rev().zip(known.bytes().rev()).take_while(same).count()
    };
    let nearest = KNOWN.iter().max_by_key(alike).expect("the list is not empty");
    Err(usage(format!("header {name:?} is not known; the nearest one is {nearest}")))
}

fn words_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use ebb_queue::Priority;

    use super::*;
    use crate::exit::Exit;

    fn line(text: &str) -> Result<Job> {
        Envelope { priority: Some("low".into()), ..Envelope::default() }.job_of_line(text)
    }

    #[test]
    fn a_text_becomes_an_input_and_an_object_is_the_body() {
        for (text, body) in [
            ("a text", r#"{"input":"a text"}"#),
            ("42", r#"{"input":"42"}"#),
            ("[a note] and more", r#"{"input":"[a note] and more"}"#),
            (r#"{"input": "as it is"}"#, r#"{"input": "as it is"}"#),
        ] {
            assert_eq!(Envelope::default().job_of_text(text).unwrap().body, body, "{text}");
        }
        let streamed = Envelope { streams: true, ..Envelope::default() };
        for (text, body) in [
            ("a text", r#"{"input":"a text","stream":true}"#),
            (r#"{"input": "as it is"}"#, r#"{"input": "as it is"}"#),
        ] {
            assert_eq!(streamed.job_of_text(text).unwrap().body, body, "{text}");
        }
        let broken = Envelope::default().job_of_text(r#"{"input":"x""#).unwrap_err();
        assert!(broken.to_string().contains(r#"as a text in {"input": "..."}"#), "{broken}");
        assert_eq!(Exit::of(&broken), Exit::Usage);
    }

    #[test]
    fn each_form_of_a_line_is_read() {
        for (text, body) in [
            (r#""a text""#, r#"{"input":"a text"}"#),
            (r#"{"input": ["a", "b"]}"#, r#"{"input": ["a", "b"]}"#),
            (r#"{"body": {"input": "x"}}"#, r#"{"input":"x"}"#),
            (r#"{"body": "plain"}"#, "plain"),
        ] {
            let job = line(text).unwrap();
            assert_eq!(job.body, body, "{text}");
            assert_eq!(job.headers.priority, Priority::Low);
        }
        let job = line(
            r#"{"id": "a-1", "headers": {"ebb-priority": "high", "ebb-cost": 7}, "body": ""}"#,
        );
        let job = job.unwrap();
        assert_eq!((job.id.as_str(), job.headers.priority), ("a-1", Priority::High));
        assert_eq!(job.headers.cost, Some(7.0));
    }

    #[test]
    fn a_wrong_line_is_told_with_its_remedy() {
        for (text, told) in [
            ("not json", "not a JSON line, at column 2; write a text in quotes"),
            (r#"{"input": "a",}"#, "not a JSON line, at column 15 (trailing comma); write"),
            ("[1]", "a string or an object"),
            (r#"{"body": "", "prio": 1}"#, "only id, headers and body"),
            (r#"{"body": "", "headers": []}"#, "no object"),
            (r#"{"body": "", "id": "a b"}"#, "without spaces"),
            (r#"{"body": "", "headers": {"ebb-ttl": "soon"}}"#, "such as 250ms, 30s"),
            (r#"{"body": "", "headers": {"ebb-prioritty": "high"}}"#, "one is ebb-priority"),
            (r#"{"body": "", "headers": {"Ebb-Replyto": "a"}}"#, "one is ebb-reply-to"),
        ] {
            let error = line(text).expect_err(text);
            assert!(format!("{error:#}").contains(told), "{text}: {error:#}");
            assert_eq!(Exit::of(&error), Exit::Usage, "{text}");
        }
    }

    #[test]
    fn a_traceparent_that_is_none_is_refused_and_one_that_is_travels_with_each_job() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let with = |text: &str| Envelope { traceparent: Some(text.into()), ..Envelope::default() };
        assert!(with("nonsense").check().unwrap_err().to_string().contains("--traceparent"));
        let job = with(good).job_of_text("a").unwrap();
        assert_eq!(job.headers.traceparent.as_deref(), Some(good));
    }

    #[test]
    fn every_header_that_a_job_carries_may_be_set_and_so_may_strangers() {
        let mut job = Job::new("", Timestamp::now());
        job.headers = serde_json::from_value(json!({
            "model": "m", "deadline": "2030-01-31T12:00:00Z", "not_before": "2030-01-31T12:00:00Z",
            "priority": "high", "cost": 1.0, "reply_to": "r", "tenant": "t", "key": "k",
            "traceparent": "t", "content_type": "c", "body_ref": "b", "correlation": "c",
        }))
        .unwrap();
        let carried = job.to_headers();
        assert_eq!(carried.len(), 14, "this test forgot none");
        for name in carried.iter().map(|(name, _)| *name).chain(["EBB-TTL", "ebb-delay", "x-own"]) {
            assert!(check_name(name).is_ok(), "{name}");
        }
    }
}
