//! A job as a message: its envelope, and what happened to it so far, in headers. Pure.

use async_nats::{HeaderMap, HeaderValue};
use bytes::Bytes;

use super::names::Lane;
use crate::retry::MOST_ATTEMPTS;
use crate::{
    Attempt, DeadLetter, Error, ErrorKind, Failure, FailureKind, Job, JobId, Priority, Result,
    Timestamp, header,
};

/// How many attempts were charged before the message was stored.
const ATTEMPTS: &str = "ebb-attempts";
/// The place in the order of publication, where the message was stored anew.
const PLACE: &str = "ebb-place";
/// Says of a dead letter that it is being put back, and may be back already.
const AGAIN: &str = "ebb-again";
/// What became of earlier attempts, as JSON.
const HISTORY: &str = "ebb-history";
/// Why a dead letter is one, as a JSON string.
const REASON: &str = "ebb-reason";
/// Since when.
const DIED_AT: &str = "ebb-died-at";
/// How long the body of a dead letter was that is not whole.
const CUT_FROM: &str = "ebb-cut-from";
/// JetStream's own id of a message.
pub(super) const MSG_ID: &str = "Nats-Msg-Id";
/// Says to JetStream which message on its subject is to be the last one before this.
pub(super) const EXPECTED_LAST: &str = "Nats-Expected-Last-Subject-Sequence";

/// The longest headers that JetStream stores, whatever `max_payload` is.
pub(super) const LONGEST_HEADERS: usize = u16::MAX as usize;
/// What a message may grow by while its job lives.
pub(super) const ROOM: usize = 16 << 10;
/// The longest history as JSON.
const LONGEST_HISTORY: usize = 8 << 10;
/// The longest reason.
const LONGEST_REASON: usize = 2 << 10;
/// What is written beside a dead letter when it is put back.
const ROOM_TO_REVIVE: usize = 256;

/// A job in a stream.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) job: Job,
    /// Attempts charged before this delivery.
    pub(super) attempts: u32,
    pub(super) history: Vec<Attempt>,
    /// Its place in the order of publication; 0 for the one that its message will get.
    pub(super) place: u64,
    /// Whether it came from a client that knows nothing of us, and was not stored anew since.
    pub(super) is_plain: bool,
}

/// Why and when a job died.
#[derive(Debug, Clone)]
pub(super) struct Death {
    pub(super) failure: Failure,
    pub(super) at: Timestamp,
}

/// Where a message came from: what the job is called where its producer did not say.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin {
    /// When its stream was made.
    pub(super) created: Timestamp,
    pub(super) seq: u64,
    /// When it was stored.
    pub(super) at: Timestamp,
    /// That of its lane: what it has where its producer did not say.
    pub(super) priority: Priority,
}

impl Entry {
    pub(super) fn new(job: Job) -> Self {
        Self { job, attempts: 0, history: Vec::new(), place: 0, is_plain: false }
    }

    pub(super) fn lane(&self, is_back: bool) -> Lane {
        Lane { priority: self.job.headers.priority, is_back }
    }

    pub(super) fn record(&mut self, attempt: u32, at: Timestamp, what: &str) {
        self.history.push(Attempt { attempt, at, what: what.to_owned() });
    }

    /// Reads a message; what does not parse is left out, and said.
    pub(super) fn read(headers: &HeaderMap, body: Bytes, origin: Origin) -> (Self, Option<Error>) {
        let text = |name: &str| headers.get_last(name).map(HeaderValue::as_str);
        let known = text(MSG_ID).and_then(|id| id.parse().ok());
        let id = known.unwrap_or_else(|| origin.id());
        let mut fields = Vec::new();
        for (name, values) in headers.iter() {
            let name: &str = name.as_ref();
            if let Some(value) = values.last() {
                fields.push((name, value.as_str()));
            }
        }
        // A TTL counts from the publication, so that is read first.
        fields.sort_by_key(|(name, _)| !name.eq_ignore_ascii_case(header::ENQUEUED_AT));
        let (mut job, mut wrong) = Job::from_stranger(id, fields.iter().copied(), body, origin.at);
        let says = |name: &str| fields.iter().any(|(said, _)| said.eq_ignore_ascii_case(name));
        if !says(header::PRIORITY) {
            job.headers.priority = origin.priority;
        }
        // What we store says since when it has been there.
        let is_plain = !says(header::ENQUEUED_AT);
        let mut entry = Self { place: origin.seq, is_plain, ..Self::new(job) };
        for (name, value) in &fields {
            if let Err(error) = entry.set(name, value) {
                wrong.get_or_insert(error);
            }
        }
        // What was stored anew went behind the place that it keeps.
        if entry.place == 0 || entry.place > origin.seq {
            entry.place = origin.seq;
        }
        (entry, wrong)
    }

    /// Whether a message has an id of its own, as all have that Ebb stores.
    pub(super) fn is_named(headers: &HeaderMap) -> bool {
        let is_id =
            |name| headers.get_last(name).is_some_and(|id| id.as_str().parse::<JobId>().is_ok());
        is_id(header::ID) || is_id(MSG_ID)
    }

    /// Takes what we wrote beside a job; of a plain client it is no truth.
    fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let wrong = || garbled(name);
        match name.to_ascii_lowercase().as_str() {
            ATTEMPTS | PLACE | HISTORY if self.is_plain => return Err(wrong()),
            ATTEMPTS => {
                let attempts = value.parse().ok().filter(|attempts| *attempts <= MOST_ATTEMPTS);
                self.attempts = attempts.ok_or_else(wrong)?;
            }
            PLACE => self.place = value.parse().map_err(|_| wrong())?,
            HISTORY => self.history = serde_json::from_str(value).map_err(|_| wrong())?,
            _ => {}
        }
        Ok(())
    }

    /// Charges attempts that were begun and not settled.
    pub(super) fn charge(&mut self, n_attempts: u32) {
        self.attempts = self.attempts.saturating_add(n_attempts);
    }

    /// Writes it as headers under this message id.
    pub(super) fn headers(&self, message_id: &str) -> Result<HeaderMap> {
        let mut headers = HeaderMap::new();
        for (name, value) in self.job.to_headers() {
            let value: HeaderValue = value.parse().map_err(|_| {
                let words = format!("{name}: a header cannot hold a line break; leave it out");
                Error::new(ErrorKind::Invalid, words)
            })?;
            headers.insert(name, value);
        }
        headers.insert(MSG_ID, message_id);
        if self.attempts > 0 {
            headers.insert(ATTEMPTS, self.attempts.to_string());
        }
        if self.place > 0 {
            headers.insert(PLACE, self.place.to_string());
        }
        if !self.history.is_empty() {
            headers.insert(HISTORY, history_text(&self.history));
        }
        Ok(headers)
    }

    /// The headers of a dead letter of this number with the mark that it is being put back.
    pub(super) fn again(headers: &HeaderMap, seq: u64) -> HeaderMap {
        let mut again = HeaderMap::new();
        for (name, values) in headers.iter() {
            let name_text: &str = name.as_ref();
            // Those of the server say where the message was that this one replaces.
            if !name_text.starts_with("Nats-") {
                values.iter().for_each(|value| again.append(name.clone(), value.clone()));
            }
        }
        again.insert(AGAIN, "1");
        again.insert(MSG_ID, format!("again/{seq}"));
        again
    }

    /// Whether a server whose `max_payload` is this takes a dead letter with that mark in its place.
    pub(super) fn fits_again(headers: &HeaderMap, body: &[u8], seq: u64, max: usize) -> bool {
        let mut again = Self::again(headers, seq);
        again.insert(EXPECTED_LAST, seq.to_string());
        Self::is_again(headers) || fits(&again, body, max)
    }

    /// Whether a dead letter is being put back, and may be back already.
    pub(super) fn is_again(headers: &HeaderMap) -> bool {
        headers.get(AGAIN).is_some()
    }

    /// Writes it as a dead letter.
    pub(super) fn death(&self, message_id: &str, death: &Death) -> Result<HeaderMap> {
        let mut headers = self.headers(message_id)?;
        // JSON, since a reason may have line breaks.
        let reason = cut(&death.failure.reason, LONGEST_REASON);
        headers.insert(REASON, serde_json::Value::from(reason).to_string());
        headers.insert(header::KIND, death.failure.kind.word());
        headers.insert(DIED_AT, death.at.to_string());
        Ok(headers)
    }

    /// Writes it as a dead letter that is no longer than this, and can be put back: where there is too little
    /// room, its headers or some of its body are left out, and that is said.
    pub(super) fn letter(
        &self,
        message_id: &str,
        death: &Death,
        max: usize,
    ) -> Result<(HeaderMap, Bytes)> {
        let headers = self.death(message_id, death)?;
        let body = &self.job.body;
        let is_whole = size(&headers) + ROOM_TO_REVIVE <= LONGEST_HEADERS
            && fits(&headers, body, max.saturating_sub(ROOM_TO_REVIVE));
        if is_whole {
            return Ok((headers, body.clone()));
        }
        let n_bytes = body.len();
        let note = format!(
            "; cut to what fits into a message of this NATS server (max_payload, 64 KiB of \
             headers), the body had {n_bytes} bytes: publish the job anew, it cannot be put back"
        );
        let Failure { kind, reason } = &death.failure;
        let reason = format!("{}{note}", cut(reason, LONGEST_REASON - note.len()));
        let death = Death { failure: Failure { kind: *kind, reason }, at: death.at };
        let write = |entry: &Self| -> Result<_> {
            let mut headers = entry.death(message_id, &death)?;
            headers.insert(CUT_FROM, n_bytes.to_string());
            Ok(headers)
        };
        let mut headers = write(self)?;
        if !fits(&headers, &[], max) {
            // What it was called, and nothing else.
            let (id, at) = (self.job.id.clone(), self.job.enqueued_at);
            let job = Job { id, ..Job::new(Bytes::new(), at) };
            headers = write(&Self { attempts: self.attempts, ..Self::new(job) })?;
        }
        let n_kept = max.saturating_sub(size(&headers)).min(n_bytes);
        Ok((headers, body.slice(..n_kept)))
    }

    /// Whether these are the headers of a dead letter whose body is not whole.
    pub(super) fn is_cut(headers: &HeaderMap) -> bool {
        headers.get(CUT_FROM).is_some()
    }

    /// Reads a dead letter.
    pub(super) fn dead_letter(headers: &HeaderMap, body: Bytes, origin: Origin) -> DeadLetter {
        let text = |name: &str| headers.get_last(name).map(HeaderValue::as_str);
        let (entry, _) = Self::read(headers, body, origin);
        let reason = text(REASON).and_then(|text| serde_json::from_str(text).ok());
        let died_at = text(DIED_AT).and_then(|text| text.parse().ok());
        DeadLetter {
            job: entry.job,
            attempts: entry.attempts,
            kind: FailureKind::of_word(text(header::KIND).unwrap_or_default()),
            reason: reason.unwrap_or_default(),
            died_at: died_at.unwrap_or(origin.at),
            history: entry.history,
        }
    }
}

impl Origin {
    pub(super) fn id(self) -> JobId {
        let id = format!("nats-{}-{}", self.created.as_millisecond(), self.seq);
        id.parse().expect("digits and dashes are printable")
    }
}

fn garbled(name: &str) -> Error {
    Error::new(ErrorKind::Incompatible, format!("{name}: is written by Ebb itself; leave it out"))
}

/// The newest of what happened, as far as a header may be long.
fn history_text(history: &[Attempt]) -> String {
    let mut kept: Vec<_> = history.to_vec();
    for attempt in &mut kept {
        attempt.what = cut(&attempt.what, LONGEST_REASON).to_owned();
    }
    loop {
        // Plain data cannot fail to be written.
        let text = serde_json::to_string(&kept).unwrap_or_else(|_| "[]".to_owned());
        if text.len() <= LONGEST_HISTORY || kept.is_empty() {
            return text;
        }
        kept.remove(0);
    }
}

pub(super) fn cut(text: &str, longest: usize) -> &str {
    let mut end = text.len().min(longest);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Whether a server takes a message of these whose `max_payload` is this.
pub(super) fn fits(headers: &HeaderMap, body: &[u8], max: usize) -> bool {
    size(headers) <= LONGEST_HEADERS && size(headers) + body.len() <= max
}

/// How long headers are on the wire.
pub(super) fn size(headers: &HeaderMap) -> usize {
    let lines = headers.iter().flat_map(|(name, values)| {
        let name: &str = name.as_ref();
        values.iter().map(move |value| name.len() + value.as_str().len() + 4)
    });
    lines.sum::<usize>() + 14
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn origin() -> Origin {
        let at = "2030-01-31T12:00:00Z".parse().unwrap();
        Origin { created: at, seq: 99, at, priority: Priority::Normal }
    }

    proptest! {
        #[test]
        fn what_happened_to_a_job_survives_the_wire(
            attempts in 0u32..9, place in 1u64..99,
            whats in proptest::collection::vec(any::<String>(), 0..4), reason: String,
        ) {
            let Origin { at, .. } = origin();
            let mut entry = Entry::new(Job::new("body", at));
            entry.attempts = attempts;
            entry.place = place;
            for (attempt, what) in (1..).zip(&whats) {
                entry.record(attempt, at, what);
            }
            let failure = Failure::invalid(reason.clone());
            let headers = entry.death("id", &Death { failure, at }).unwrap();
            let (read, wrong) = Entry::read(&headers, "body".into(), origin());
            prop_assert!(wrong.is_none(), "{:?}", wrong);
            prop_assert_eq!((&read.job, read.place), (&entry.job, place));
            let letter = Entry::dead_letter(&headers, "body".into(), origin());
            prop_assert_eq!((letter.attempts, letter.died_at), (attempts, at));
            prop_assert_eq!((letter.history, letter.reason), (entry.history, reason));
            prop_assert_eq!(letter.kind, FailureKind::Invalid);
        }

        #[test]
        fn what_a_plain_client_says_of_attempts_and_places_is_no_truth(
            number: u64, nth in 0usize..3, is_plain: bool,
        ) {
            let name = [ATTEMPTS, PLACE, HISTORY][nth];
            let mut headers = HeaderMap::new();
            headers.insert(name, number.to_string());
            if !is_plain {
                headers.insert(header::ENQUEUED_AT, origin().at.to_string());
            }
            let (read, wrong) = Entry::read(&headers, Bytes::new(), origin());
            prop_assert!(read.attempts <= MOST_ATTEMPTS && (1..=origin().seq).contains(&read.place));
            let words = wrong.map(|wrong| wrong.to_string()).unwrap_or_default();
            if is_plain {
                prop_assert!(words.starts_with(name), "{}", words);
                prop_assert_eq!((read.attempts, read.place, read.history.len()), (0, 99, 0));
            }
        }

        #[test]
        fn no_header_makes_it_panic(name in "[a-z-]{1,20}", value in "[^\r\n]{0,40}") {
            for name in [&*name, ATTEMPTS, PLACE, HISTORY, REASON, DIED_AT, MSG_ID, "ebb-ttl"] {
                let mut headers = HeaderMap::new();
                headers.insert(name, value.parse::<HeaderValue>().unwrap());
                drop(Entry::read(&headers, Bytes::new(), origin()));
                drop(Entry::dead_letter(&headers, Bytes::new(), origin()));
            }
        }
    }

    #[test]
    fn a_letter_is_as_long_as_it_may_be() {
        let at = origin().at;
        let mut entry = Entry::new(Job::new(vec![b'7'; 9000], at));
        entry.attempts = 2;
        entry.job.headers.tenant = Some("t".repeat(3000));
        let death = Death { failure: "why ".repeat(900).into(), at };
        for max in [20_000, 12_000, 6000, 3000] {
            let (headers, body) = entry.letter("id", &death, max).unwrap();
            let is_whole = body.len() == 9000;
            assert_eq!((is_whole, Entry::is_cut(&headers)), (max == 20_000, max < 20_000));
            assert!(size(&headers) + body.len() <= max, "{max}");
            let letter = Entry::dead_letter(&headers, body, origin());
            assert_eq!((&letter.job.id, letter.attempts), (&entry.job.id, 2));
            assert!(letter.reason.starts_with("why "), "{}", letter.reason);
            assert_eq!(letter.reason.contains("9000"), !is_whole, "{}", letter.reason);
            assert!(!letter.job.body.is_empty(), "{max}");
        }
    }

    #[test]
    fn a_letter_that_is_whole_can_be_put_back() {
        let at = origin().at;
        let mut entry = Entry::new(Job::new(vec![b'7'; 9000], at));
        entry.record(1, at, "why");
        let death = Death { failure: "why".into(), at };
        let whole = size(&entry.death("id", &death).unwrap()) + 9000;
        for n_more in [0, 100, 255, 256, 300] {
            let max = whole + n_more;
            let (headers, body) = entry.letter("id", &death, max).unwrap();
            assert_eq!(Entry::is_cut(&headers), n_more < 256, "{n_more}");
            if n_more >= 256 {
                assert!(Entry::fits_again(&headers, &body, u64::MAX, max), "{n_more}");
            }
        }
    }

    #[test]
    fn a_message_without_an_id_is_named_by_its_place() {
        let (entry, _) = Entry::read(&HeaderMap::new(), Bytes::new(), origin());
        assert_eq!(entry.job.id.as_str(), "nats-1896091200000-99");
        let mut headers = HeaderMap::new();
        headers.insert(MSG_ID, "mine");
        let (entry, _) = Entry::read(&headers, Bytes::new(), origin());
        assert_eq!(entry.job.id.as_str(), "mine");
    }

    #[test]
    fn a_long_history_keeps_its_end() {
        let mut entry = Entry::new(Job::new("body", origin().at));
        for attempt in 1..=99 {
            entry.record(attempt, origin().at, &"ü".repeat(3000));
        }
        let headers = entry.headers("id").unwrap();
        assert!(size(&headers) < ROOM);
        let (read, _) = Entry::read(&headers, Bytes::new(), origin());
        assert_eq!(read.history.last().unwrap().attempt, 99);
    }
}
