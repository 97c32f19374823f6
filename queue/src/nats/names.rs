//! What streams, subjects and consumers are called. Pure.

use std::fmt::Write;

use crate::owed::check_address;
use crate::{Priority, Result, Timestamp};

/// Where ready jobs wait, in the order in which a worker looks: what came back goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lane {
    /// Who goes first.
    pub(super) priority: Priority,
    /// Whether the jobs of this lane were handed out, or waited elsewhere, before.
    pub(super) is_back: bool,
}

/// All lanes, the first to look at first.
pub(super) const LANES: [Lane; 6] = [
    Lane { priority: Priority::High, is_back: true },
    Lane { priority: Priority::High, is_back: false },
    Lane { priority: Priority::Normal, is_back: true },
    Lane { priority: Priority::Normal, is_back: false },
    Lane { priority: Priority::Low, is_back: true },
    Lane { priority: Priority::Low, is_back: false },
];

/// Deadlines stand in subjects to the tenth of a second, so that many jobs share one.
const TICK: i64 = 100;

impl Lane {
    /// The name of its durable consumer.
    pub(super) fn consumer(self) -> &'static str {
        match (self.priority, self.is_back) {
            (Priority::High, true) => "back-high",
            (Priority::High, false) => "high",
            (Priority::Normal, true) => "back-normal",
            (Priority::Normal, false) => "normal",
            (Priority::Low, true) => "back-low",
            (Priority::Low, false) => "low",
        }
    }
}

/// The names of one queue.
#[derive(Debug, Clone)]
pub(super) struct Names {
    /// As it stands in all of these.
    pub(super) queue: String,
    /// The jobs that wait or run.
    pub(super) jobs: String,
    /// The dead letters.
    pub(super) dead: String,
    /// The answers and their pieces.
    pub(super) results: String,
    /// The idempotency keys.
    pub(super) keys: String,
    /// Who holds what, and what was purged or ended without an answer.
    pub(super) notes: String,
    /// What the workers say of themselves.
    pub(super) status: String,
}

/// What the subject of a waiting job tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In a lane, dead from this tick on.
    Lane(Lane, Option<u64>),
    /// Until this millisecond, or dead from this tick on.
    Later(i64, Option<u64>),
}

impl Names {
    pub(super) fn new(queue: &str) -> Self {
        let queue = token(queue);
        // The kind comes first: a queue may be called `jobs_DEAD`.
        let stream = |kind: &str| format!("EBB_{kind}_{queue}");
        Self {
            jobs: stream("JOBS"),
            dead: stream("DEAD"),
            results: stream("RESULTS"),
            keys: stream("KEYS"),
            notes: stream("NOTES"),
            status: stream("STATUS"),
            queue,
        }
    }

    pub(super) fn subject(&self, rest: &str) -> String {
        format!("ebb.{}.{rest}", self.queue)
    }

    /// Where plain clients publish.
    pub(super) fn plain(&self) -> String {
        self.subject("jobs")
    }

    /// The subjects that a lane takes its jobs from.
    pub(super) fn filters(&self, lane: Lane) -> Vec<String> {
        let name = lane.priority.as_str();
        if lane.is_back {
            return vec![self.subject(&format!("jobs.back.{name}.*"))];
        }
        let mut filters =
            vec![self.subject(&format!("jobs.{name}")), self.subject(&format!("jobs.{name}.*"))];
        if lane.priority == Priority::Normal {
            filters.push(self.plain());
        }
        filters
    }

    /// Where a job waits for a worker.
    pub(super) fn lane(&self, lane: Lane, deadline: Option<Timestamp>) -> String {
        let name = lane.priority.as_str();
        match (lane.is_back, deadline.map(tick)) {
            (true, Some(tick)) => self.subject(&format!("jobs.back.{name}.{tick}")),
            (true, None) => self.subject(&format!("jobs.back.{name}.0")),
            (false, Some(tick)) => self.subject(&format!("jobs.{name}.{tick}")),
            (false, None) => self.subject(&format!("jobs.{name}")),
        }
    }

    /// Where a job waits for its moment.
    pub(super) fn later(&self, due: Timestamp, deadline: Option<Timestamp>) -> String {
        let deadline = deadline.map_or(0, tick);
        // A moment between two milliseconds has come when both have.
        let due = due.as_millisecond() + i64::from(due.as_nanosecond() % 1_000_000 > 0);
        self.subject(&format!("jobs.later.{due}.{deadline}"))
    }

    /// What a subject below `jobs` says.
    pub(super) fn place(&self, subject: &str) -> Option<Place> {
        let rest = subject.strip_prefix("ebb.")?.strip_prefix(&*self.queue)?;
        let tokens: Vec<_> = rest.strip_prefix(".jobs")?.split('.').skip(1).collect();
        let lane = |name: &str, is_back| Some(Lane { priority: name.parse().ok()?, is_back });
        let normal = Lane { priority: Priority::Normal, is_back: false };
        match tokens[..] {
            [] => Some(Place::Lane(normal, None)),
            // No lane has it: a moment that does not parse has come, or it would lie there for ever.
            ["later", due, deadline] => {
                Some(Place::Later(due.parse().unwrap_or(0), ticks(deadline)))
            }
            ["back", name, deadline] => Some(Place::Lane(lane(name, true)?, ticks(deadline))),
            [name] => Some(Place::Lane(lane(name, false)?, None)),
            [name, deadline] => Some(Place::Lane(lane(name, false)?, ticks(deadline))),
            _ => None,
        }
    }
}

fn ticks(text: &str) -> Option<u64> {
    text.parse().ok().filter(|tick| *tick > 0)
}

/// The first tick at or after this moment.
pub(super) fn tick(at: Timestamp) -> u64 {
    let millis = at.as_millisecond().max(1).cast_unsigned();
    millis.div_ceil(TICK.cast_unsigned())
}

/// When a tick comes.
pub(super) fn moment_of(tick: u64) -> Timestamp {
    let millis = i64::try_from(tick).ok().and_then(|tick| tick.checked_mul(TICK));
    millis.and_then(|millis| Timestamp::from_millisecond(millis).ok()).unwrap_or(Timestamp::MAX)
}

/// The tick that has come.
pub(super) fn tick_now(now: Timestamp) -> u64 {
    (now.as_millisecond().max(0) / TICK).cast_unsigned()
}

/// Any printable text as one token of a subject or the name of a stream.
pub(super) fn token(text: &str) -> String {
    let mut token = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"_-".contains(&byte) {
            token.push(char::from(byte));
        } else {
            // Writing into a string cannot fail.
            write!(token, "={byte:02X}").unwrap_or_default();
        }
    }
    token
}

/// The text that a token was made of.
pub(super) fn text_of(token: &str) -> Option<String> {
    let mut text = Vec::with_capacity(token.len());
    let mut bytes = token.bytes();
    while let Some(byte) = bytes.next() {
        text.push(match byte {
            b'=' => {
                let digits = [bytes.next()?, bytes.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(text).ok()
}

/// Whether a reply may go there: to any subject, but see [`check_address`].
pub(super) fn check_reply_to(to: &str) -> Result<()> {
    let tokens: Vec<_> = to.split('.').collect();
    let is_token = |token: &&str| {
        let fits = |byte: u8| byte.is_ascii_graphic() && !b"*>".contains(&byte);
        !token.is_empty() && token.bytes().all(fits)
    };
    let why_not = match tokens[..] {
        _ if !tokens.iter().all(is_token) => Some("is no subject"),
        [first, ..] if first.starts_with('$') => Some("belongs to the NATS server"),
        ["ebb", _, "jobs"] => None,
        ["ebb", _, ..] => Some("belongs to Ebb; of its subjects only ebb.NAME.jobs takes replies"),
        _ => None,
    };
    check_address(to, why_not)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ErrorKind;

    proptest! {
        #[test]
        fn different_names_are_different_tokens(a in "[!-~]{1,20}", b in "[!-~]{1,20}") {
            prop_assert_eq!(a == b, token(&a) == token(&b));
            prop_assert!(!token(&a).contains(['.', '*', '>', ' ', '/', '\\']));
        }

        #[test]
        fn a_text_is_read_back_from_its_token(text in "\\PC{0,20}", other in "[=0-9A-Fa-z+]{0,9}") {
            prop_assert_eq!(text_of(&token(&text)), Some(text));
            drop(text_of(&other));
        }

        #[test]
        fn the_place_of_a_job_is_read_back_from_its_subject(
            queue in "[a-zA-Z0-9._-]{1,20}", nth in 0..6usize,
            deadline in proptest::option::of(1..4_000_000_000_000i64),
            due in 1..4_000_000_000_000i64,
        ) {
            let names = Names::new(&queue);
            let at = |millis| Timestamp::from_millisecond(millis).unwrap();
            let deadline = deadline.map(at);
            let subject = names.lane(LANES[nth], deadline);
            prop_assert_eq!(names.place(&subject), Some(Place::Lane(LANES[nth], deadline.map(tick))));
            let subject = names.later(at(due), deadline);
            prop_assert_eq!(names.place(&subject), Some(Place::Later(due, deadline.map(tick))));
        }

        #[test]
        fn no_subject_makes_it_panic(subject in "[a-z0-9.*>=]{0,40}") {
            let _: Option<Place> = Names::new("jobs").place(&subject);
        }
    }

    #[test]
    fn a_moment_that_does_not_parse_has_come() {
        let names = Names::new("jobs");
        for (due, deadline) in [("soon", "0"), ("", ""), ("99999999999999999999", "x")] {
            let place = names.place(&format!("ebb.jobs.jobs.later.{due}.{deadline}"));
            assert_eq!(place, Some(Place::Later(0, None)), "{due}");
        }
    }

    #[test]
    fn a_reply_goes_to_subjects_of_others_and_to_where_jobs_are_published() {
        for to in ["answers", "_INBOX.a1.b2", "a.b-c.$d", "ebb", "ebbs.a", "ebb.more.jobs"] {
            assert!(check_reply_to(to).is_ok(), "{to}");
        }
        for (to, why) in [
            ("$JS.API.STREAM.PURGE.EBB_JOBS_jobs", "the NATS server"),
            ("$SYS.REQ.ACCOUNT.PING", "the NATS server"),
            ("ebb.jobs.results.a1", "only ebb.NAME.jobs"),
            ("ebb.jobs.jobs.high", "only ebb.NAME.jobs"),
            ("ebb.jobs.jobs.later.0.0", "only ebb.NAME.jobs"),
            ("ebb.jobs", "only ebb.NAME.jobs"),
            ("ebb.*.jobs", "no subject"),
            ("answers.>", "no subject"),
            ("answers..a", "no subject"),
            (".answers", "no subject"),
            ("two words", "no subject"),
            ("", "no subject"),
        ] {
            let error = check_reply_to(to).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.to_string().contains(why), "{error}");
        }
    }

    #[test]
    fn queues_of_any_name_share_no_stream() {
        let streams = ["x", "x_DEAD", "DEAD_x", "x.y", "x=2Ey"].map(|queue| {
            let names = Names::new(queue);
            [names.jobs, names.dead, names.results, names.keys, names.notes, names.status]
        });
        let all: std::collections::HashSet<_> = streams.iter().flatten().collect();
        assert_eq!(all.len(), 30);
    }
}
