//! A job as a message: its headers and body, and what Ebb notes of it besides.

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};

use super::connect::Version;
use crate::retry::MOST_ATTEMPTS;
use crate::{
    Attempt, DeadLetter, Error, ErrorKind, Failure, FailureKind, Job, JobId, Priority, Result,
    Timestamp, header, short_reason,
};

/// Where the job stands in line: a number that grows with publication.
const PLACE: &str = "ebb-place";
/// Attempts that were charged and whose deliveries ended.
const ATTEMPTS: &str = "ebb-attempts";
/// What became of them, as JSON.
const HISTORY: &str = "ebb-history";
/// Of a dead letter: why, and when.
const REASON: &str = "ebb-reason";
const DIED_AT: &str = "ebb-died-at";
/// The broker's count of deliveries that ended with their channel.
const CRASHES: &str = "x-delivery-count";
/// Its count of all deliveries before this one, from 4.3 on.
const DELIVERIES: &str = "x-acquired-count";

/// All headers travel in one frame of 128 KiB, so the history has to stay well below.
const MAX_HISTORY: usize = 40;
const MAX_HISTORY_BYTES: usize = 24 * 1024;
const MAX_HEADERS: usize = 64 * 1024;
/// Where that is too little, Ebb's own headers are left out from this length on. Names are shorter.
pub(super) const MAX_VALUE: usize = 1024;

/// A job with what is noted of it.
#[derive(Debug, Clone)]
pub(super) struct Parcel {
    pub(super) job: Job,
    pub(super) place: i64,
    /// Attempts that were charged before this delivery.
    pub(super) attempts: u32,
    pub(super) history: Vec<Attempt>,
    pub(super) death: Option<(Failure, Timestamp)>,
    /// A producer's own mark of its request, given back with the reply.
    pub(super) correlation: Option<ShortString>,
    /// Headers that mean nothing to Ebb; they stay with the job.
    strange: FieldTable,
}

impl Parcel {
    pub(super) fn new(job: Job, place: i64) -> Self {
        let correlation = job.headers.correlation.as_deref().map(ShortString::try_new);
        Self {
            job,
            place,
            attempts: 0,
            history: Vec::new(),
            death: None,
            correlation: correlation.and_then(std::result::Result::ok),
            strange: FieldTable::default(),
        }
    }

    /// Reads a message of anybody. What does not parse is left out, and said.
    pub(super) fn read(
        properties: &BasicProperties,
        body: Vec<u8>,
        now: Timestamp,
    ) -> (Self, Option<Error>) {
        let empty = FieldTable::default();
        let table = properties.headers().as_ref().unwrap_or(&empty).inner();
        let texts = table.iter().filter_map(|(name, value)| Some((name.as_str(), text(value)?)));
        let mut texts: Vec<(&str, String)> = texts.collect();
        // Spans count from the moment of publication, so that has to be read first.
        texts.sort_by_key(|(name, _)| !name.eq_ignore_ascii_case(header::ENQUEUED_AT));
        let stamp = properties.timestamp().and_then(|s| i64::try_from(s).ok());
        let stamp = stamp.and_then(|s| Timestamp::from_second(s).ok());
        let named = properties.message_id().as_ref().and_then(|id| id.as_str().parse().ok());
        let id = named.unwrap_or_else(JobId::fresh);
        let headers = texts.iter().map(|(name, value)| (*name, value.as_str()));
        let (mut job, wrong) = Job::from_stranger(id, headers, body, stamp.unwrap_or(now));
        let or = |mine: &mut Option<String>, theirs: &Option<ShortString>| {
            let theirs = theirs.as_ref().map(|text| text.as_str().to_owned());
            *mine = mine.take().or(theirs.filter(|text| !text.is_empty()));
        };
        or(&mut job.headers.content_type, properties.content_type());
        or(&mut job.headers.reply_to, properties.reply_to());
        or(&mut job.headers.correlation, properties.correlation_id());
        let note = |name: &str| {
            texts.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
        };
        let number = |name: &str| note(name).and_then(|value| value.parse::<i64>().ok());
        let (attempts, wrong) = match (note(ATTEMPTS).map_or(Ok(0), read_attempts), wrong) {
            (Ok(attempts), wrong) => (attempts, wrong),
            (Err(error), wrong) => (0, wrong.or(Some(error))),
        };
        let history = note(HISTORY).and_then(|json| serde_json::from_str(json).ok());
        let died_at = note(DIED_AT).and_then(|at| at.parse().ok());
        // As merged above: the header, else the property of AMQP.
        let correlation = job.headers.correlation.as_deref().map(ShortString::try_new);
        let parcel = Self {
            place: number(PLACE).unwrap_or_else(|| job.enqueued_at.as_microsecond()),
            attempts,
            history: history.unwrap_or_default(),
            death: died_at.map(|at| {
                let kind = FailureKind::of_word(note(header::KIND).unwrap_or_default());
                (Failure::new(kind, note(REASON).unwrap_or_default()).shortened(), at)
            }),
            correlation: correlation.and_then(std::result::Result::ok),
            strange: strange(table.iter()),
            job,
        };
        (parcel, wrong)
    }

    /// The same of a message in a lane, where nothing is dead, whatever it says of itself. It is charged for
    /// so many deliveries that ended with their channel.
    pub(super) fn read_alive(
        properties: &BasicProperties,
        body: Vec<u8>,
        now: Timestamp,
        n_crashes: u32,
    ) -> (Self, Option<Error>) {
        let (mut parcel, wrong) = Self::read(properties, body, now);
        parcel.death = None;
        parcel.charge_crashes(n_crashes, now);
        (parcel, wrong)
    }

    /// Deliveries that ended with the connection of their holder. The broker does not know who.
    fn charge_crashes(&mut self, crashes: u32, now: Timestamp) {
        // The history keeps the last ones only, however many there were.
        let noted = crashes.min(MAX_HISTORY as u32);
        self.attempts = self.attempts.saturating_add(crashes - noted);
        for _ in 0..noted {
            self.charge(now, "lease expired, its connection was lost");
        }
    }

    /// Charges an attempt and says what became of it.
    pub(super) fn charge(&mut self, at: Timestamp, what: &str) {
        self.attempts = self.attempts.saturating_add(1);
        self.history.push(Attempt {
            attempt: self.attempts,
            at,
            what: short_reason(what).into_owned(),
        });
        let surplus = self.history.len().saturating_sub(MAX_HISTORY);
        self.history.drain(..surplus);
    }

    /// Makes a dead letter of it.
    pub(super) fn die(&mut self, at: Timestamp, failure: Failure) {
        self.death = Some((failure.shortened(), at));
    }

    /// Gives it another life, behind what was published before.
    pub(super) fn revive(&mut self, now: Timestamp, place: i64) {
        self.death = None;
        self.attempts = 0;
        self.place = place;
        self.job.headers.not_before = None;
        if self.job.expired(now) {
            self.job.headers.deadline = None;
        }
    }

    pub(super) fn into_dead_letter(self, now: Timestamp) -> DeadLetter {
        let (failure, died_at) = self.death.unwrap_or_else(|| ("unknown".into(), now));
        let Failure { kind, reason } = failure;
        let Self { job, attempts, history, .. } = self;
        DeadLetter { job, attempts, kind, reason, died_at, history }
    }

    /// Who goes first among parcels that are here together.
    pub(super) fn rank(&self) -> (std::cmp::Reverse<Priority>, i64) {
        (std::cmp::Reverse(self.job.headers.priority), self.place)
    }

    /// Whether a new job can be a message as it is.
    ///
    /// # Errors
    /// When its headers are too long.
    pub(super) fn check(&self) -> Result<()> {
        if table_size(&with(FieldTable::default(), self.job.to_headers())) <= MAX_HEADERS {
            return Ok(());
        }
        let words = format!("the headers of job {} are longer than 64 KiB", self.job.id);
        Err(Error::new(ErrorKind::Invalid, format!("{words}; move them to the body")))
    }

    /// The message that [`Self::read`] reads back. A job that is here already can always be written:
    /// what a stranger made too long is left out.
    pub(super) fn write(&self) -> (BasicProperties, Bytes) {
        let mut table = self.envelope();
        let mut put = |name: &str, value: AMQPValue| {
            table.insert(name.into(), value);
        };
        put(PLACE, AMQPValue::LongLongInt(self.place));
        if self.attempts > 0 {
            put(ATTEMPTS, AMQPValue::LongLongInt(self.attempts.min(MOST_ATTEMPTS).into()));
        }
        if !self.history.is_empty() {
            put(HISTORY, long(self.history_as_json()));
        }
        if let Some((failure, at)) = &self.death {
            put(REASON, long(failure.reason.clone()));
            put(header::KIND, long(failure.kind.word()));
            put(DIED_AT, long(at.to_string()));
        }
        let mut properties = BasicProperties::default().with_delivery_mode(2).with_headers(table);
        if let Ok(id) = ShortString::try_new(self.job.id.as_str()) {
            properties = properties.with_message_id(id);
        }
        let kind = self.job.headers.content_type.as_deref().map(ShortString::try_new);
        if let Some(Ok(kind)) = kind {
            properties = properties.with_content_type(kind);
        }
        if let Some(correlation) = &self.correlation {
            properties = properties.with_correlation_id(correlation.clone());
        }
        (properties, self.job.body.clone())
    }

    /// What the producer sent along; headers that mean nothing to Ebb only where there is room, and
    /// then long ones that do.
    fn envelope(&self) -> FieldTable {
        let mut ours = self.job.to_headers();
        for table in [self.strange.clone(), FieldTable::default()] {
            let table = with(table, ours.clone());
            if table_size(&table) <= MAX_HEADERS {
                return table;
            }
        }
        ours.retain(|(_, value)| value.len() <= MAX_VALUE);
        with(FieldTable::default(), ours)
    }

    /// As much of the end of the history as there is room for.
    fn history_as_json(&self) -> String {
        let mut history = &self.history[..];
        loop {
            // A list of plain structs has nothing in it that JSON cannot say.
            let json = serde_json::to_string(history).unwrap_or_default();
            match history.split_first() {
                Some((_, rest)) if json.len() > MAX_HISTORY_BYTES => history = rest,
                _ => return json,
            }
        }
    }
}

/// What Ebb writes itself, and a stranger may have written.
fn read_attempts(value: &str) -> Result<u32> {
    let attempts = value.parse().ok().filter(|attempts| *attempts <= MOST_ATTEMPTS);
    attempts.ok_or_else(|| {
        let shown: String = value.chars().take(64).collect();
        let words = format!("{ATTEMPTS}: {shown:?} is not valid; leave it out, Ebb counts them");
        Error::new(ErrorKind::Invalid, words)
    })
}

/// How many deliveries of a message ended with their channel. Of one that was not delivered before the broker
/// has counted nothing, and what stands there is a stranger's.
///
/// From 4.3 on it may be that of others, too: there the broker counts what failed, and says nothing where
/// nothing did. But it says how many deliveries there were, however they ended, and no more than these failed.
pub(super) fn crashes(
    properties: &BasicProperties,
    is_redelivered: bool,
    version: &Version,
) -> u32 {
    if !is_redelivered {
        return 0;
    }
    let table = properties.headers().as_ref();
    let said = |name: &str| text(table?.inner().get(name)?)?.parse::<u32>().ok();
    let n_crashes = said(CRASHES).unwrap_or(0);
    if version.number < (4, 3) {
        return n_crashes;
    }
    n_crashes.min(said(DELIVERIES).unwrap_or(u32::MAX))
}

fn with(mut table: FieldTable, headers: Vec<(&'static str, String)>) -> FieldTable {
    for (name, value) in headers {
        table.insert(name.into(), long(value));
    }
    table
}

/// What is neither Ebb's nor the broker's.
fn strange<'a>(table: impl Iterator<Item = (&'a ShortString, &'a AMQPValue)>) -> FieldTable {
    let mut strange = FieldTable::default();
    for (name, value) in table {
        let lower = name.as_str().to_ascii_lowercase();
        // The broker's notes grow with each stop of a delayed job.
        let ours = lower.starts_with("ebb-") || lower.starts_with("x-");
        if !ours && ![header::TRACEPARENT, header::CONTENT_TYPE].contains(&&*lower) {
            strange.insert(name.clone(), value.clone());
        }
    }
    strange
}

/// The value of a header as text, whatever scalar a client made of it.
pub(super) fn text(value: &AMQPValue) -> Option<String> {
    Some(match value {
        AMQPValue::LongString(text) => String::from_utf8_lossy(text.as_bytes()).into_owned(),
        AMQPValue::ShortString(text) => text.as_str().to_owned(),
        AMQPValue::ByteArray(bytes) => String::from_utf8_lossy(bytes.as_slice()).into_owned(),
        AMQPValue::Boolean(value) => value.to_string(),
        AMQPValue::ShortShortInt(value) => value.to_string(),
        AMQPValue::ShortShortUInt(value) => value.to_string(),
        AMQPValue::ShortInt(value) => value.to_string(),
        AMQPValue::ShortUInt(value) => value.to_string(),
        AMQPValue::LongInt(value) => value.to_string(),
        AMQPValue::LongUInt(value) => value.to_string(),
        AMQPValue::LongLongInt(value) => value.to_string(),
        AMQPValue::Float(value) => value.to_string(),
        AMQPValue::Double(value) => value.to_string(),
        AMQPValue::DecimalValue(value) => {
            (f64::from(value.value) / 10f64.powi(value.scale.into())).to_string()
        }
        AMQPValue::Timestamp(seconds) => {
            let seconds = i64::try_from(*seconds).ok()?;
            Timestamp::from_second(seconds).ok()?.to_string()
        }
        AMQPValue::FieldArray(_) | AMQPValue::FieldTable(_) | AMQPValue::Void => return None,
    })
}

pub(super) fn long(text: impl Into<String>) -> AMQPValue {
    AMQPValue::LongString(LongString::from(text.into()))
}

/// As many bytes as it has on the wire, or a few more.
fn size(value: &AMQPValue) -> usize {
    8 + match value {
        AMQPValue::LongString(text) => text.len(),
        AMQPValue::ShortString(text) => text.as_str().len(),
        AMQPValue::ByteArray(bytes) => bytes.as_slice().len(),
        AMQPValue::FieldArray(values) => values.as_slice().iter().map(size).sum(),
        AMQPValue::FieldTable(table) => table_size(table),
        _ => 8,
    }
}

fn table_size(table: &FieldTable) -> usize {
    table.inner().iter().map(|(name, value)| name.as_str().len() + size(value)).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn now() -> Timestamp {
        "2030-01-31T12:00:00Z".parse().unwrap()
    }

    fn table(headers: Vec<(&str, AMQPValue)>) -> BasicProperties {
        let mut table = FieldTable::default();
        for (name, value) in headers {
            table.insert(name.into(), value);
        }
        BasicProperties::default().with_headers(table)
    }

    fn version(number: (u32, u32)) -> Version {
        Version { text: String::new(), number }
    }

    /// What is read of a message that was delivered before, by a server that counts what fails.
    fn alive(properties: &BasicProperties) -> (Parcel, Option<Error>) {
        let n_crashes = crashes(properties, true, &version((3, 10)));
        Parcel::read_alive(properties, Vec::new(), now(), n_crashes)
    }

    fn again(parcel: &Parcel) -> Parcel {
        let (properties, body) = parcel.write();
        Parcel::read(&properties, body.to_vec(), now()).0
    }

    #[test]
    fn a_message_without_anything_is_a_job() {
        let (parcel, wrong) = Parcel::read(&BasicProperties::default(), b"{}".to_vec(), now());
        assert!(wrong.is_none());
        assert_eq!((parcel.job.body.as_ref(), parcel.attempts), (&b"{}"[..], 0));
        assert_eq!(parcel.job.headers, crate::Headers::default());
    }

    #[test]
    fn headers_of_any_scalar_type_are_read_and_the_properties_of_amqp_count() {
        let properties = table(vec![
            ("ebb-cost", AMQPValue::Double(1.5)),
            ("ebb-ttl", AMQPValue::LongInt(30)),
            ("Ebb-Tenant", AMQPValue::ShortString("lab".into())),
            ("other", AMQPValue::Void),
        ]);
        let properties = properties
            .with_message_id("m1".into())
            .with_content_type("text/plain".into())
            .with_reply_to("answers".into())
            .with_timestamp(1_000);
        let (Parcel { job, .. }, wrong) = Parcel::read(&properties, Vec::new(), now());
        assert!(wrong.is_none());
        assert_eq!((job.id.as_str(), job.enqueued_at.as_second()), ("m1", 1_000));
        assert_eq!(job.headers.deadline.map(crate::Timestamp::as_second), Some(1_030));
        assert_eq!((job.headers.cost, job.headers.tenant.as_deref()), (Some(1.5), Some("lab")));
        assert_eq!(job.headers.reply_to.as_deref(), Some("answers"));
        assert_eq!(job.headers.content_type.as_deref(), Some("text/plain"));
    }

    #[test]
    fn what_does_not_parse_is_named_and_the_body_kept() {
        let properties = table(vec![("ebb-priority", long("urgent"))]);
        let (parcel, wrong) = Parcel::read(&properties, b"body".to_vec(), now());
        assert!(wrong.unwrap().to_string().contains("ebb-priority"));
        assert_eq!(parcel.job.body.as_ref(), b"body");
    }

    #[test]
    fn more_attempts_than_there_can_be_are_refused_and_those_that_ebb_writes_are_not() {
        for said in ["1000001", "4294967295", "99999999999999999999", "-1", "two"] {
            let properties = table(vec![(ATTEMPTS, long(said))]);
            let (mut parcel, wrong) = Parcel::read(&properties, Vec::new(), now());
            let words = wrong.unwrap().to_string();
            assert!(words.contains(ATTEMPTS) && words.contains(said), "{words}");
            parcel.charge(now(), "refused");
            assert_eq!(parcel.attempts, 1);
        }
        for said in [0, 1, MOST_ATTEMPTS] {
            let properties = table(vec![(ATTEMPTS, AMQPValue::LongLongInt(said.into()))]);
            let (mut parcel, wrong) = Parcel::read(&properties, Vec::new(), now());
            assert!(wrong.is_none());
            parcel.charge(now(), "it failed");
            assert_eq!(parcel.attempts, said + 1);
        }
    }

    #[test]
    fn a_past_that_a_stranger_wrote_costs_no_more_than_its_headers() {
        let one = Attempt { attempt: u32::MAX, at: now(), what: "x".repeat(500) };
        let past = serde_json::to_string(&vec![one; 2_000]).unwrap();
        let properties = table(vec![
            (HISTORY, long(past)),
            (PLACE, AMQPValue::LongLongInt(i64::MIN)),
            (CRASHES, AMQPValue::LongUInt(u32::MAX)),
        ]);
        let (mut parcel, wrong) = alive(&properties);
        assert!(wrong.is_none());
        parcel.charge(now(), "it failed");
        assert_eq!((parcel.attempts, parcel.history.len()), (u32::MAX, MAX_HISTORY));
        let read = again(&parcel);
        assert_eq!(read.attempts, MOST_ATTEMPTS);
        assert!(headers_size(&read) < 100_000 && read.place == i64::MIN);
    }

    #[test]
    fn a_job_that_says_that_it_is_dead_is_charged_for_lost_connections_as_others_are() {
        let died_at = (DIED_AT, long(now().to_string()));
        let properties = table(vec![died_at, (CRASHES, AMQPValue::LongLongInt(2))]);
        let (parcel, _) = alive(&properties);
        assert_eq!((parcel.attempts, parcel.death), (2, None));
        let (letter, _) = Parcel::read(&properties, Vec::new(), now());
        assert!(letter.attempts == 0 && letter.death.is_some());
    }

    #[test]
    fn a_lost_connection_is_charged_once_however_often_the_job_is_put_back() {
        let properties = table(vec![(CRASHES, AMQPValue::LongLongInt(2))]);
        let (parcel, _) = alive(&properties);
        assert_eq!((parcel.attempts, parcel.history.len()), (2, 2));
        let parcel = again(&parcel);
        assert_eq!((parcel.attempts, parcel.history[1].attempt), (2, 2));
    }

    #[test]
    fn a_job_is_charged_for_no_more_lost_connections_than_it_had_deliveries_whatever_it_says() {
        let long = AMQPValue::LongLongInt;
        // In the words of the version; a stranger may say anything that the broker does not.
        for (number, n_crashes, n_deliveries, expected) in [
            ((3, 13), Some(7), None, 7),
            ((3, 13), Some(7), Some(1), 7),
            ((4, 2), Some(7), Some(1), 7),
            ((4, 3), Some(7), Some(1), 1),
            ((4, 3), Some(2), Some(5), 2),
            ((4, 3), None, Some(5), 0),
            ((4, 3), Some(2), None, 2),
            ((5, 0), Some(7), Some(0), 0),
        ] {
            let n_crashes = n_crashes.map(|n| (CRASHES, long(n)));
            let n_deliveries = n_deliveries.map(|n| (DELIVERIES, long(n)));
            let properties = table(n_crashes.into_iter().chain(n_deliveries).collect());
            let counted = crashes(&properties, true, &version(number));
            assert_eq!(counted, expected, "{number:?} {properties:?}");
            assert_eq!(crashes(&properties, false, &version(number)), 0, "it was never delivered");
        }
    }

    #[test]
    fn a_long_past_still_fits_into_one_frame() {
        let mut parcel = Parcel::new(Job::new("x", now()), 7);
        for _ in 0..1_000 {
            parcel.charge(now(), &"\u{0}".repeat(9_000));
        }
        parcel.die(now(), "\u{1f600}".repeat(9_000).into());
        let parcel = again(&parcel);
        assert_eq!(parcel.attempts, 1_000);
        assert_eq!(parcel.history.last().unwrap().attempt, 1_000);
        let size = headers_size(&parcel);
        assert!(size < 100_000, "{size}");
    }

    fn headers_size(parcel: &Parcel) -> usize {
        table_size(parcel.write().0.headers().as_ref().unwrap())
    }

    #[test]
    fn headers_of_any_length_leave_a_job_that_can_be_written() {
        let text = |n| AMQPValue::LongString(LongString::from("x".repeat(n)));
        let bytes = AMQPValue::ByteArray(vec![255; 90_000].into());
        let names: Vec<String> = (0..500).map(|nth| format!("{nth:0>250}")).collect();
        for headers in [
            vec![(header::TRACEPARENT, text(70_000))],
            vec![(header::CONTENT_TYPE, bytes.clone()), (header::TENANT, text(9))],
            vec![(header::CORRELATION, text(40_000)), (header::TRACEPARENT, text(40_000))],
            vec![("my-own", bytes)],
            names.iter().map(|name| (name.as_str(), AMQPValue::Void)).collect(),
            vec![(DIED_AT, long(now().to_string())), (REASON, text(90_000))],
        ] {
            let name = headers[0].0.to_owned();
            let properties = table(headers).with_message_id("m".into());
            let (mut parcel, wrong) = Parcel::read(&properties, b"body".to_vec(), now());
            assert!(wrong.is_none(), "{name}");
            parcel.job.headers.model = Some("kept".to_owned());
            for _ in 0..100 {
                parcel.charge(now(), &"why ".repeat(100));
            }
            parcel.die(now(), Failure::invalid("the reason"));
            let size = headers_size(&parcel);
            assert!(size < 100_000, "{name}: {size}");
            let read = again(&parcel);
            assert_eq!((read.job.id.as_str(), read.attempts), ("m", 100), "{name}");
            assert_eq!(read.job.headers.model.as_deref(), Some("kept"), "{name}");
            assert_eq!(read.death.unwrap().0, Failure::invalid("the reason"), "{name}");
        }
    }

    #[test]
    fn a_new_job_whose_headers_are_too_long_is_refused() {
        let mut parcel = Parcel::new(Job::new("x", now()), 7);
        assert!(parcel.check().is_ok());
        parcel.job.headers.traceparent = Some("x".repeat(70_000));
        let error = parcel.check().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains("64 KiB"), "{error}");
    }

    #[test]
    fn what_means_nothing_to_us_stays_with_the_job() {
        let properties = table(vec![("x-death", long("old")), ("my-own", long("kept"))]);
        let (parcel, _) = Parcel::read(&properties, Vec::new(), now());
        let names: Vec<_> = parcel.strange.inner().keys().map(ShortString::as_str).collect();
        assert_eq!(names, ["my-own"]);
        assert_eq!(again(&parcel).strange, parcel.strange);
    }

    proptest! {
        #[test]
        fn a_parcel_is_read_back_as_it_was_written(
            body: Vec<u8>, place: i64, attempts in 0..5u32, what: String, dead: bool,
        ) {
            let mut parcel = Parcel::new(Job::new(body, now()), place);
            for _ in 0..attempts {
                parcel.charge(now(), &what);
            }
            if dead {
                parcel.die(now(), what.into());
            }
            let read = again(&parcel);
            prop_assert_eq!(&read.job, &parcel.job);
            prop_assert_eq!((read.place, read.attempts), (place, attempts));
            prop_assert_eq!(&read.history, &parcel.history);
            prop_assert_eq!(&read.death, &parcel.death);
        }
    }
}
