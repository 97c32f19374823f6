//! From the headers of a request to the envelope of its jobs. Pure.

use std::time::Duration;

use axum::http::HeaderMap;
use bytes::Bytes;
use ebb_queue::{Headers, Job, Timestamp, header};

use crate::ids::{self, Ids};
use crate::keys::{Key, Tenant};
use crate::models::Model;
use crate::refusal::Refusal;

/// Headers of a job that anybody may set.
const ALLOWED: [&str; 7] = [
    header::DEADLINE,
    header::TTL,
    header::PRIORITY,
    header::DELAY,
    header::COST,
    header::CORRELATION,
    header::TRACEPARENT,
];

/// How long behind the end of a request its jobs' deadlines are: it cancels them itself when it gives
/// up, which leaves no dead letter, and the deadline is for a gateway that is lost.
const SLACK: Duration = Duration::from_secs(10);

/// The longest deadline of a stream's job, which has no last moment.
const FARTHEST: Duration = Duration::from_secs(30 * 86_400);

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);

/// Where other APIs have `ebb-key`.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// What a request says about its jobs.
#[derive(Debug)]
pub(crate) struct Envelope {
    headers: Headers,
    now: Timestamp,
    /// The id that the client has chosen.
    own_id: Option<String>,
    /// The model that the client names in `ebb-model`.
    pub(crate) model: Option<String>,
    tenant: Option<Tenant>,
}

impl Envelope {
    /// Reads the headers of a request on behalf of the owner of a key, where the caller shows one.
    ///
    /// # Errors
    /// Names the header that is wrong, or that a client may not set.
    pub(crate) fn read(
        headers: &HeaderMap,
        caller: Option<&Key>,
        now: Timestamp,
    ) -> Result<Self, Refusal> {
        let tenant = caller.map(|key| &key.tenant);
        let mut job = Job::new(Bytes::new(), now);
        let (mut own_id, mut key) = (None, None);
        for (name, value) in headers {
            let name = name.as_str();
            let is_ours = name.starts_with("ebb-") || name == header::TRACEPARENT;
            if !is_ours && name != IDEMPOTENCY_KEY {
                continue;
            }
            let wrong = |words: &str| Refusal::wrong(name, format!("{name} {words}"));
            let value = value.to_str().map_err(|_| wrong("is no ASCII text"))?;
            match name {
                // Further jobs are named after the first one, not by the ids that follow in a list.
                header::ID if value.contains(',') => {
                    return Err(wrong("is of one job; send one id, or the idempotency-key of all"));
                }
                header::ID => own_id = Some(value.to_owned()),
                header::KEY | IDEMPOTENCY_KEY => key = Some(value.to_owned()),
                header::TENANT if tenant.is_some_and(|own| own.as_str() != value) => {
                    return Err(wrong("is another tenant's than the key's; leave it out"));
                }
                // Of whoever reads the queue, and with the rights of the worker.
                header::REPLY_TO if tenant.is_some() => {
                    return Err(wrong("is not for clients with a key; ask for the result"));
                }
                header::PRIORITY if value == "high" && caller.is_some_and(|key| !key.priority) => {
                    return Err(wrong("is not for this key to be high; leave it out"));
                }
                header::COST if caller.is_some_and(|key| !key.cost) => {
                    return Err(wrong("is not for this key; leave it out"));
                }
                header::MODEL | header::TENANT | header::REPLY_TO => set(&mut job, name, value)?,
                _ if ALLOWED.contains(&name) => set(&mut job, name, value)?,
                _ => return Err(wrong("is not for clients of the gateway; leave it out")),
            }
        }
        if let Some(key) = &key {
            // Before it is hashed, where it is.
            set(&mut job, header::KEY, key)?;
        }
        if let Some(own_id) = &own_id {
            set(&mut job, header::ID, own_id)?;
        }
        let model = job.headers.model.take();
        Ok(Self { headers: job.headers, now, own_id, model, tenant: tenant.cloned() })
    }

    /// How long until the deadline that the client has set, if it has set one.
    pub(crate) fn limit(&self) -> Option<Duration> {
        let left = self.headers.deadline?.duration_since(self.now);
        Some(left.try_into().unwrap_or(Duration::ZERO))
    }

    /// Whether somebody else may come for the same jobs, by an id or a key.
    pub(crate) fn is_shared(&self) -> bool {
        self.own_id.is_some() || self.headers.key.is_some()
    }

    /// Gives the jobs a deadline behind the end of a request that waits so long, and cancels them then.
    pub(crate) fn limit_to(&mut self, limit: Duration) {
        let deadline = self.now.checked_add(limit.saturating_add(SLACK));
        self.headers.deadline = Some(deadline.unwrap_or(Timestamp::MAX));
    }

    /// The same of a stream on a queue that keeps results so long. It may be older than its limit, and its
    /// job is to outlive a lost worker then, too; but it must not begin when it was cancelled and no broker
    /// knows that any more.
    pub(crate) fn limit_stream_to(&mut self, limit: Duration, result_ttl: Duration) {
        let known = cancel_is_known(result_ttl).min(FARTHEST);
        self.limit_to(limit.max(known.saturating_sub(SLACK)));
    }

    /// The job of this number, with this body.
    ///
    /// # Errors
    /// When the id that the client has chosen is too long.
    pub(crate) fn job(
        &self,
        (ids, model): (&Ids, &Model),
        nth: usize,
        (content_type, body): (Option<&str>, Bytes),
    ) -> Result<Job, Refusal> {
        let (name, tenant) = (&model.plan.name, self.tenant.as_ref());
        let id = match (&self.own_id, &self.headers.key) {
            (None, None) => Ok(ids.fresh(tenant, name)),
            (None, Some(chosen)) => ids.of_key(chosen, tenant, name, nth),
            (Some(said), _) => {
                let own = ids.own(said, tenant, name);
                let own = if nth == 0 { own.to_owned() } else { format!("{own}-{nth}") };
                ids.named(&own, tenant, name)
            }
        };
        let id = id.map_err(|error| Refusal::wrong(header::ID, error.to_string()))?;
        let key = self.headers.key.as_ref();
        let key = key.map(|chosen| ids::key(chosen, tenant, (name, model.is_alone), nth));
        let own_tenant = tenant.map(|tenant| tenant.as_str().to_owned());
        let headers = Headers {
            key,
            model: model.plan.serves.clone(),
            tenant: own_tenant.or_else(|| self.headers.tenant.clone()),
            content_type: content_type.map(str::to_owned),
            ..self.headers.clone()
        };
        Ok(Job { id, enqueued_at: self.now, headers, body })
    }
}

/// How long each broker knows at least that a job was cancelled: RabbitMQ notes it by the hour, or by the
/// minute where results are kept for less than four hours.
fn cancel_is_known(result_ttl: Duration) -> Duration {
    result_ttl.saturating_sub(if result_ttl < 4 * HOUR { MINUTE } else { HOUR })
}

fn set(job: &mut Job, name: &str, value: &str) -> Result<(), Refusal> {
    job.set(name, value).map_err(|error| Refusal::wrong(name, error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::http::{HeaderName, HeaderValue};
    use ebb_queue::Priority;

    use super::*;
    use crate::keys::Keys;

    fn now() -> Timestamp {
        "2030-01-31T12:00:00Z".parse().unwrap()
    }

    fn model(serves: Option<&str>) -> Model {
        Model::of_tests("chat", serves)
    }

    /// A key of this name, whose owner may this.
    fn key(name: &str, more: &str) -> Arc<Key> {
        // Of the text `one`.
        let digest = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed";
        let text = format!("[keys.{name}]\nsha256 = \"{digest}\"\n{more}");
        Arc::clone(Keys::parse(&text).unwrap().find("one").unwrap())
    }

    fn job(envelope: &Envelope, model: &Model, nth: usize, body: (Option<&str>, Bytes)) -> Job {
        envelope.job((&Ids::default(), model), nth, body).unwrap()
    }

    fn read(pairs: &[(&'static str, &str)], tenant: Option<&str>) -> Result<Envelope, Refusal> {
        let pair = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        };
        let headers: HeaderMap = pairs.iter().map(pair).collect();
        let key = tenant.map(|name| key(name, ""));
        Envelope::read(&headers, key.as_deref(), now())
    }

    #[test]
    fn what_a_request_says_stands_in_its_jobs() {
        let told = [
            ("ebb-priority", "high"),
            ("ebb-model", "chat"),
            ("ebb-ttl", "30s"),
            ("idempotency-key", "k"),
            ("accept", "x"),
        ];
        let envelope = read(&told, None).unwrap();
        assert_eq!(envelope.model.as_deref(), Some("chat"));
        assert_eq!(envelope.limit(), Some(Duration::from_secs(30)));
        assert!(envelope.is_shared() && !read(&[], None).unwrap().is_shared());
        let job = job(&envelope, &model(Some("m")), 1, (Some("text/plain"), "body".into()));
        let Headers { priority, model: asked, key, content_type, .. } = &job.headers;
        assert_eq!((*priority, asked.as_deref()), (Priority::High, Some("m")));
        assert_eq!(content_type.as_deref(), Some("text/plain"));
        assert!(key.as_deref().is_some_and(|key| key.len() == 64), "its model shares a queue");
        let alone = self::job(&envelope, &model(None), 1, (None, Bytes::new()));
        assert_eq!(alone.headers.key.as_deref(), Some("k#1"));
        assert_eq!(job.headers.deadline, Some(now() + Duration::from_secs(30)));
        let mut plain = read(&[], None).unwrap();
        plain.limit_to(Duration::from_secs(5));
        let job = self::job(&plain, &model(None), 0, (None, Bytes::new()));
        let deadline = now() + Duration::from_secs(5) + SLACK;
        assert_eq!(job.headers.deadline, Some(deadline), "it is cancelled before");
        assert_eq!((job.headers.model, job.headers.tenant), (None, None));
        plain.limit_to(Duration::MAX);
        let job = self::job(&plain, &model(None), 0, (None, Bytes::new()));
        assert_eq!(job.headers.deadline, Some(Timestamp::MAX));
    }

    #[test]
    fn the_deadline_of_a_stream_is_no_later_than_its_cancel_is_known() {
        let minutes = |n| n * MINUTE;
        for (limit, result_ttl, expected) in [
            (minutes(5), 24 * HOUR, 23 * HOUR),
            (minutes(5), 4 * HOUR, 3 * HOUR),
            (minutes(5), 3 * HOUR, minutes(179)),
            (minutes(5), minutes(2), minutes(5) + SLACK),
            (minutes(5), Duration::ZERO, minutes(5) + SLACK),
            (23 * HOUR, 24 * HOUR, 23 * HOUR + SLACK),
            (minutes(5), Duration::MAX, FARTHEST),
        ] {
            let mut envelope = read(&[], None).unwrap();
            envelope.limit_stream_to(limit, result_ttl);
            let job = job(&envelope, &model(None), 0, (None, Bytes::new()));
            assert_eq!(job.headers.deadline, Some(now() + expected), "{limit:?} {result_ttl:?}");
        }
    }

    #[test]
    fn nobody_speaks_for_another_tenant() {
        let job = |told: &[(&'static str, &str)], tenant| {
            self::job(&read(told, tenant).unwrap(), &model(None), 0, (None, Bytes::new()))
        };
        let own = job(&[("ebb-tenant", "a"), ("ebb-id", "x"), ("ebb-key", "k")], Some("a"));
        let other = job(&[("ebb-id", "x"), ("ebb-key", "k")], Some("b"));
        assert_eq!(own.headers.tenant.as_deref(), Some("a"));
        assert!(own.id != other.id && own.headers.key != other.headers.key);
        assert_eq!(job(&[("ebb-tenant", "a")], None).headers.tenant.as_deref(), Some("a"));
    }

    #[test]
    fn the_jobs_of_one_idempotency_key_have_the_same_id_each_time() {
        let id = |nth| {
            let envelope = read(&[("idempotency-key", "k")], Some("a")).unwrap();
            job(&envelope, &model(None), nth, (None, Bytes::new())).id
        };
        assert_eq!((id(0), id(1)), (id(0), id(1)));
        assert_ne!(id(0), id(1));
    }

    #[test]
    fn a_key_comes_before_others_only_where_it_may() {
        for (name, value, may) in [("ebb-priority", "high", "priority"), ("ebb-cost", "3", "cost")]
        {
            let headers: HeaderMap =
                [(HeaderName::from_static(name), HeaderValue::from_static(value))]
                    .into_iter()
                    .collect();
            let with = |more: &str| Envelope::read(&headers, Some(&key("a", more)), now());
            let refused = with("").expect_err(name).refused;
            assert_eq!(refused.param.as_deref(), Some(name));
            assert!(with(&format!("{may} = true")).is_ok(), "{name}");
            assert!(Envelope::read(&headers, None, now()).is_ok(), "{name}");
        }
        assert!(read(&[("ebb-priority", "low")], Some("a")).is_ok());
    }

    #[test]
    fn what_is_wrong_is_named_by_its_header() {
        for (name, value, tenant, told) in [
            ("ebb-ttl", "soon", None, "ebb-ttl: \"soon\" is not valid"),
            ("ebb-tenant", "b", Some("a"), "ebb-tenant is another tenant's"),
            ("ebb-reply-to", "q", Some("a"), "ebb-reply-to is not for clients with a key"),
            ("ebb-body-ref", "q", None, "ebb-body-ref is not for clients"),
            ("ebb-enqueued-at", "2030-01-01T00:00:00Z", None, "ebb-enqueued-at is not for"),
            ("ebb-id", "a,b", None, "ebb-id is of one job"),
            ("ebb-colour", "red", None, "ebb-colour is not for clients"),
            ("idempotency-key", "a b", None, "ebb-key: \"a b\" is not valid"),
        ] {
            let refused = read(&[(name, value)], tenant).expect_err(told).refused;
            assert!(refused.message.starts_with(told), "{}", refused.message);
            assert_eq!(refused.status, 400);
        }
        assert!(read(&[("ebb-reply-to", "q")], None).is_ok());
    }
}
