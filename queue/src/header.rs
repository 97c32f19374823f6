//! Header names, as producers write them.

/// The job's id; derived from the broker's own identity of the message when missing.
pub const ID: &str = "ebb-id";
/// The model asked for.
pub const MODEL: &str = "ebb-model";
/// The moment after which the answer is worthless, RFC 3339.
pub const DEADLINE: &str = "ebb-deadline";
/// The same as a span from publication: `30s`, `5m`, or plain seconds.
pub const TTL: &str = "ebb-ttl";
/// `high`, `normal` or `low`.
pub const PRIORITY: &str = "ebb-priority";
/// The span before the job may run: `30s`, `5m`, or plain seconds.
pub const DELAY: &str = "ebb-delay";
/// What the job costs, in tokens; a hint.
pub const COST: &str = "ebb-cost";
/// Where to send the result as well.
pub const REPLY_TO: &str = "ebb-reply-to";
/// On whose behalf.
pub const TENANT: &str = "ebb-tenant";
/// Idempotency key: a second job with the same key is the first one.
pub const KEY: &str = "ebb-key";
/// W3C trace context.
pub const TRACEPARENT: &str = "traceparent";
/// What the body is.
pub const CONTENT_TYPE: &str = "content-type";
/// The key of the body, which lies in a payload store: see [`crate::claim`].
pub const BODY_REF: &str = "ebb-body-ref";
/// When the job was published, RFC 3339; written by Ebb itself, as are those that follow.
pub const ENQUEUED_AT: &str = "ebb-enqueued-at";
/// The moment before which the job may not run, RFC 3339.
pub const NOT_BEFORE: &str = "ebb-not-before";
/// In a reply: the attempt that made it.
pub const ATTEMPT: &str = "ebb-attempt";
/// In a reply: `completed`, `failed` or `cancelled`.
pub const OUTCOME: &str = "ebb-outcome";
/// In the reply of a failed job: what there is to do about it, a word of [`crate::FailureKind`]. Brokers
/// whose dead letters are messages note it there under the same name.
pub const KIND: &str = "ebb-kind";
/// In a reply: the queue whose worker made it.
pub const QUEUE: &str = "ebb-queue";
/// A producer's own mark of its request, given back with the reply; `correlation_id` of AMQP.
pub const CORRELATION: &str = "ebb-correlation";
