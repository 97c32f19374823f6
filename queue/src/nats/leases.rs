//! Who holds what. JetStream counts deliveries but tells nobody who has them, and it takes any
//! acknowledgement, so each handle keeps a note of what it holds where all can read it.

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::api::{Api, in_order};
use super::entry::Entry;
use super::names::Names;
pub(super) use super::notes::Claim;
use super::notes::{Note, Packed, Places, pack};
use crate::{Attempt, JobId, Result, Timestamp, WorkerId};

/// How many settlements a handle remembers, and how many leases it has in its note.
const MEMORY: usize = 8192;
/// Lines for deliveries that nobody settled, of one message: a history keeps the last ones only.
const MOST_CRASHES: usize = 100;
/// A lease that ended is noted this long, for whoever takes the job over.
const NOTED: Duration = Duration::from_secs(3600);

/// What this handle holds, and what it settled.
#[derive(Debug)]
pub(super) struct Leases {
    subject: String,
    worker: WorkerId,
    mine: Mutex<Mine>,
}

#[derive(Debug, Default)]
struct Mine {
    held: HashMap<u64, Held>,
    settled: HashMap<Arc<str>, Done>,
    /// The settlements in their order, the oldest first.
    order: VecDeque<Arc<str>>,
    /// What became of jobs whose acknowledgement may have been lost on its way, by number and age: a queue
    /// that was lost and made anew begins to count again.
    finished: HashMap<(u64, Timestamp), Done>,
    places: Places,
    /// Whether it was said that not everything is noted.
    is_cut: bool,
}

/// One job on loan to this handle.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) token: Token,
    pub(super) until: Instant,
    /// The job with its history, as long as its lease is fresh.
    pub(super) entry: Option<Entry>,
    /// The tick of its deadline.
    pub(super) deadline: Option<u64>,
    /// What became of earlier deliveries of this message.
    pub(super) crashes: Vec<Attempt>,
    /// Whether its job is about to be stored anew, or may be.
    pub(super) leaves: bool,
}

/// A settlement that was carried out.
#[derive(Debug, Clone, Copy)]
pub(super) enum Done {
    /// Acked then.
    Ack(Instant),
    /// Put back under this number.
    Back(u64),
    /// Among the dead letters under this number.
    Dead(u64),
    /// Left where it is, to be handed out again.
    Left,
}

/// JetStream's own mark of one delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) reply: Arc<str>,
    /// Whose delivery it is.
    pub(super) consumer: Arc<str>,
    pub(super) seq: u64,
    /// Counts the deliveries of this message, from 1.
    pub(super) delivered: u32,
    /// When the message was stored, in nanoseconds of the server's time.
    pub(super) stored_at: Timestamp,
}

/// What all handles hold, the latest delivery of each message.
#[derive(Debug, Default)]
pub(super) struct Claims(HashMap<u64, Claim>);

impl Token {
    /// Reads the subject that a delivery is acknowledged on.
    pub(super) fn read(reply: &str) -> Option<Self> {
        let tokens: Vec<_> = reply.strip_prefix("$JS.ACK.")?.split('.').collect();
        // Newer servers may name a domain and an account before the stream.
        let rest = match tokens.len() {
            7 => &tokens[..],
            9.. => &tokens[2..],
            _ => return None,
        };
        let nanos: i128 = rest[5].parse().ok()?;
        Some(Self {
            reply: reply.into(),
            consumer: rest[1].into(),
            delivered: rest[2].parse().ok().filter(|n| *n > 0)?,
            seq: rest[3].parse().ok()?,
            stored_at: Timestamp::from_nanosecond(nanos).ok()?,
        })
    }

    /// What tells its message from all others.
    pub(super) fn message(&self) -> (u64, Timestamp) {
        (self.seq, self.stored_at)
    }
}

impl Leases {
    pub(super) fn new(names: &Names, worker: WorkerId) -> Self {
        let handle: u64 = rand::random();
        let subject = names.subject(&format!("notes.lease.{handle:016x}"));
        Self { subject, worker, mine: Mutex::default() }
    }

    fn mine(&self) -> MutexGuard<'_, Mine> {
        self.mine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn take(&self, held: Vec<Held>) {
        let mut mine = self.mine();
        mine.held.extend(held.into_iter().map(|one| (one.token.seq, one)));
    }

    pub(super) fn get(&self, seq: u64) -> Option<Held> {
        self.mine().held.get(&seq).cloned()
    }

    pub(super) fn n_held(&self) -> usize {
        self.mine().held.len()
    }

    /// The jobs whose leases are fresh.
    pub(super) fn jobs(&self) -> Vec<JobId> {
        let mine = self.mine();
        let fresh = mine.held.values().filter_map(|held| held.entry.as_ref());
        fresh.map(|entry| entry.job.id.clone()).collect()
    }

    /// The lease of this very delivery starts anew.
    pub(super) fn extend(&self, token: &Token, until: Instant) {
        if let Some(held) = self.mine().held.get_mut(&token.seq)
            && held.token == *token
        {
            held.until = until;
        }
    }

    pub(super) fn settled(&self, token: &Token) -> Option<Done> {
        self.mine().settled.get(&token.reply).copied()
    }

    /// The job is not held any more, and this is what became of the attempt.
    pub(super) fn leave(&self, token: &Token, attempt: Attempt) {
        if let Some(held) = self.mine().held.get_mut(&token.seq)
            && held.token == *token
        {
            (held.until, held.leaves) = (Instant::now(), false);
            held.crashes.retain(|known| known.attempt != attempt.attempt);
            held.crashes.push(attempt);
        }
    }

    /// The jobs of these deliveries are about to be stored anew; whether one of them has a line in our note,
    /// and of which that was not known before.
    pub(super) fn part_with(&self, tokens: impl Iterator<Item = Token>) -> (bool, Vec<Token>) {
        let (mut mine, mut is_any, mut parting) = (self.mine(), false, Vec::new());
        for token in tokens {
            if let Some(held) = mine.held.get_mut(&token.seq)
                && held.token == token
            {
                is_any = true;
                if !mem::replace(&mut held.leaves, true) {
                    parting.push(token);
                }
            }
        }
        (is_any, parting)
    }

    /// The job of this delivery was not stored anew, and will not be.
    pub(super) fn stay(&self, token: &Token) {
        if let Some(held) = self.mine().held.get_mut(&token.seq)
            && held.token == *token
        {
            held.leaves = false;
        }
    }

    /// Nothing is held any more that was stored before its stream was made.
    pub(super) fn forget_before(&self, created: Timestamp) {
        self.mine().held.retain(|_, held| held.token.stored_at >= created);
    }

    /// Remembers a settlement; the job is not held any more.
    pub(super) fn settle(&self, token: &Token, done: Done) {
        let (mut mine, now) = (self.mine(), Instant::now());
        let is_late = |held: &Held| held.token == *token && held.until <= now;
        let keeps_line = match done {
            Done::Left => true,
            // The next one may have been handed the message before it was gone.
            Done::Back(_) => mine.held.get(&token.seq).is_some_and(is_late),
            Done::Ack(_) | Done::Dead(_) => false,
        };
        if !keeps_line {
            mine.held.remove(&token.seq);
        }
        mine.finished.remove(&token.message());
        if mine.settled.insert(token.reply.clone(), done).is_none() {
            mine.order.push_back(token.reply.clone());
        }
        if mine.order.len() > MEMORY
            && let Some(oldest) = mine.order.pop_front()
        {
            mine.settled.remove(&oldest);
        }
    }

    /// This became of the job, but its acknowledgement may not have arrived.
    pub(super) fn finish(&self, token: &Token, done: Done) {
        let mut mine = self.mine();
        if mine.finished.len() < MEMORY {
            mine.finished.insert(token.message(), done);
        }
    }

    /// What became of a job but for its acknowledgement.
    pub(super) fn finished(&self, token: &Token) -> Option<Done> {
        self.mine().finished.get(&token.message()).copied()
    }

    /// The notes of what this handle holds now, for a server whose `max_payload` is this.
    fn notes(&self, now: Instant, lease: Duration, max: usize) -> Vec<Bytes> {
        let mut mine = self.mine();
        mine.held.retain(|_, held| held.until + NOTED > now);
        if mine.held.len() > MEMORY {
            mine.held.retain(|_, held| held.until > now);
        }
        let mut claims = Vec::with_capacity(mine.held.len());
        for (seq, held) in &mut mine.held {
            if held.until + lease < now {
                held.entry = None;
            }
            let ahead = held.until.saturating_duration_since(now).as_millis();
            let behind = now.saturating_duration_since(held.until).as_millis();
            claims.push(Claim {
                seq: *seq,
                delivered: held.token.delivered,
                at: Some(held.token.stored_at.as_millisecond()),
                leaves: held.leaves,
                left: i64::try_from(ahead).unwrap_or(i64::MAX)
                    - i64::try_from(behind).unwrap_or(i64::MAX),
                deadline: held.deadline,
                crashes: held.crashes.clone(),
                worker: String::new(),
                until: Timestamp::UNIX_EPOCH,
            });
        }
        let Packed { notes, is_cut } = pack(&self.worker, claims, &mut mine.places, max);
        if is_cut && !mine.is_cut {
            mine.is_cut = true;
            tracing::warn!(
                "so many leases ended that it is not noted of all who had them: less has room in a \
                 message of this NATS server (max_payload)"
            );
        }
        notes
    }

    /// The notes with their subjects.
    fn addressed(&self, api: &Api, lease: Duration) -> Vec<(String, Bytes)> {
        let notes = self.notes(Instant::now(), lease, api.client.max_payload());
        let subject = |nth: usize| match nth {
            0 => self.subject.clone(),
            nth => format!("{}-{nth}", self.subject),
        };
        notes.into_iter().enumerate().map(|(nth, note)| (subject(nth), note)).collect()
    }

    /// Writes the notes; others follow soon, so that nobody waits for them.
    pub(super) async fn tell(&self, api: &Api, lease: Duration) {
        for (subject, note) in self.addressed(api, lease) {
            api.tell(&subject, note).await;
        }
    }

    /// Writes the notes and makes sure that all can read them.
    pub(super) async fn write(&self, api: &Api, lease: Duration) -> Result<()> {
        let notes = self.addressed(api, lease);
        let written = notes.iter().map(|(subject, note)| {
            api.publish(subject, async_nats::HeaderMap::new(), note.clone())
        });
        in_order(written.collect()).await.map(drop)
    }
}

impl Claims {
    /// Reads the notes of all handles.
    pub(super) async fn load(api: &Api, names: &Names) -> Result<Self> {
        let filter = names.subject("notes.lease.*");
        let info = api.subjects(&names.notes, &filter).await?;
        let subjects = info.and_then(|info| info.state.subjects).unwrap_or_default();
        let looks = subjects.keys().map(|subject| api.last(&names.notes, subject)).collect();
        let notes = in_order(looks).await?;
        let mut claims = Self::default();
        for kept in notes.into_iter().flatten() {
            // A note of another version says nothing to us.
            let Ok(note) = serde_json::from_slice::<Note>(&kept.body) else { continue };
            for mut claim in note.jobs {
                claim.worker.clone_from(&note.worker);
                let left = jiff::SignedDuration::from_millis(claim.left);
                claim.until = kept.at.checked_add(left).unwrap_or(Timestamp::MAX);
                claims.meet(claim);
            }
        }
        Ok(claims)
    }

    /// Takes the line of a note: of several the latest delivery, of the stream that was made last.
    fn meet(&mut self, claim: Claim) {
        let Some(known) = self.0.get_mut(&claim.seq) else {
            self.0.insert(claim.seq, claim);
            return;
        };
        if let (Some(before), Some(at)) = (known.at, claim.at)
            && before != at
        {
            if before < at {
                *known = claim;
            }
            return;
        }
        // A lease may be extended through another handle than it was given to.
        let age = |claim: &Claim| (claim.delivered, claim.until);
        let leaves = known.leaves || claim.leaves;
        if age(known) < age(&claim) {
            *known = claim;
        }
        known.leaves = leaves;
    }

    /// Who has, or had, the message of this number that was stored at this moment.
    pub(super) fn get(&self, (seq, at): (u64, Timestamp)) -> Option<&Claim> {
        self.0.get(&seq).filter(|claim| claim.is_of(at))
    }

    /// The leases that last, by the server's clock.
    pub(super) fn live(&self, now: Timestamp) -> impl Iterator<Item = &Claim> {
        self.0.values().filter(move |claim| claim.until > now)
    }

    /// The leases that ended.
    pub(super) fn lapsed(&self, now: Timestamp) -> impl Iterator<Item = &Claim> {
        self.0.values().filter(move |claim| claim.until <= now)
    }
}

/// A line for each delivery before this one of a message that so many attempts were charged for when it
/// was stored; none of them was settled. Who had it is known of the last one at most: by its note, or by
/// the number of the delivery and the name where it was this handle.
pub(super) fn crashes(
    attempts: u32,
    delivered: u32,
    known: Option<&Claim>,
    own: Option<(u32, &str)>,
    now: Timestamp,
) -> Vec<Attempt> {
    let mut crashes = known.map(|claim| claim.crashes.clone()).unwrap_or_default();
    let end = attempts.saturating_add(delivered);
    // Not by their number: those before the last ones are left out.
    let first = crashes.last().map_or(attempts, |last| last.attempt).saturating_add(1);
    for attempt in first.max(end.saturating_sub(MOST_CRASHES as u32))..end {
        let is_of = |delivered: u32| attempts.saturating_add(delivered) == attempt;
        let (at, what) = match (known, own) {
            (Some(claim), _) if is_of(claim.delivered) => {
                (claim.until.min(now), format!("lease expired, held by {}", claim.worker))
            }
            (_, Some((delivered, worker))) if is_of(delivered) => {
                (now, format!("lease expired, held by {worker}"))
            }
            _ => (now, "lease expired".to_owned()),
        };
        crashes.push(Attempt { attempt, at, what });
    }
    crashes.drain(..crashes.len().saturating_sub(MOST_CRASHES));
    crashes
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_said_of_earlier_deliveries_is_short_whatever_their_number_is(
            attempts: u32, delivered in 1u32.., of_note: Option<u32>, own: Option<u32>,
        ) {
            let now = Timestamp::UNIX_EPOCH;
            let known = of_note.map(|delivered| Claim { delivered, ..claim(7) });
            let own = own.map(|delivered| (delivered, "w"));
            let lines = crashes(attempts, delivered, known.as_ref(), own, now);
            prop_assert!(lines.len() <= 100 && lines.len() < delivered as usize);
            prop_assert!(lines.iter().all(|line| line.attempt > attempts));
            let few = crashes(3, 1 + delivered % 9, None, None, now);
            let numbers: Vec<_> = few.iter().map(|line| line.attempt).collect();
            prop_assert_eq!(numbers, (4..4 + delivered % 9).collect::<Vec<_>>());
        }

        #[test]
        fn the_last_of_earlier_deliveries_have_a_line_each_whoever_noted_those_before_them(
            attempts in 0u32..1000, deliveries in proptest::collection::vec(1u32..150, 1..6),
        ) {
            let now = Timestamp::UNIX_EPOCH;
            let (mut delivered, mut known) = (0, None);
            for n_more in deliveries {
                delivered += n_more;
                let lines = crashes(attempts, delivered, known.as_ref(), None, now);
                let numbers: Vec<_> = lines.iter().map(|line| line.attempt).collect();
                let end = attempts + delivered;
                let expected: Vec<_> = (end.saturating_sub(100).max(attempts + 1)..end).collect();
                prop_assert_eq!(numbers, expected);
                known = Some(Claim { delivered, crashes: lines, ..claim(7) });
            }
        }
    }

    fn claim(seq: u64) -> Claim {
        let (worker, until) = ("w".to_owned(), Timestamp::UNIX_EPOCH);
        let (at, crashes) = (None, Vec::new());
        Claim {
            seq,
            delivered: 1,
            at,
            left: 0,
            deadline: None,
            leaves: false,
            crashes,
            worker,
            until,
        }
    }

    #[test]
    fn of_several_lines_for_a_number_the_latest_delivery_of_the_latest_stream_counts() {
        let line = |at: Option<i64>, delivered, leaves| Claim { at, delivered, leaves, ..claim(7) };
        let at = |millis| Timestamp::from_millisecond(millis).unwrap();
        let met = |lines: [Claim; 2]| {
            let [a, b] = lines;
            // Whichever is read first.
            [[a.clone(), b.clone()], [b, a]].map(|lines| {
                let mut claims = Claims::default();
                lines.into_iter().for_each(|line| claims.meet(line));
                claims
            })
        };
        for claims in met([line(Some(5), 2, true), line(Some(9), 1, false)]) {
            let known = claims.get((7, at(9))).unwrap();
            assert_eq!((known.delivered, known.leaves), (1, false));
            assert!(claims.get((7, at(5))).is_none() && claims.get((8, at(9))).is_none());
        }
        // Whoever was to store it anew may still be about to.
        for claims in met([line(Some(9), 1, true), line(Some(9), 2, false)]) {
            let known = claims.get((7, at(9))).unwrap();
            assert_eq!((known.delivered, known.leaves), (2, true));
        }
        // An older version does not say which stream it means.
        for claims in met([line(None, 2, false), line(Some(9), 1, false)]) {
            assert_eq!(claims.get((7, at(9))).unwrap().delivered, 2);
        }
    }

    #[test]
    fn a_line_of_an_older_version_is_read_and_what_is_new_stands_only_where_it_says_something() {
        let old = br#"{"worker":"w","jobs":[{"seq":7,"delivered":2,"left":9}]}"#;
        let read: Note = serde_json::from_slice(old).unwrap();
        let (claim, at) = (&read.jobs[0], Timestamp::UNIX_EPOCH);
        assert!(!claim.leaves && claim.is_of(at) && claim.is_of(Timestamp::MAX));
        let written = serde_json::to_string(claim).unwrap();
        assert_eq!(written, r#"{"seq":7,"delivered":2,"left":9}"#);
    }

    #[test]
    fn a_delivery_is_read_from_its_subject() {
        for reply in [
            "$JS.ACK.S.normal.2.17.40.1795255642697185435.3",
            "$JS.ACK.hub.ACC.S.normal.2.17.40.1795255642697185435.3",
            "$JS.ACK.hub.ACC.S.normal.2.17.40.1795255642697185435.3.xyz",
        ] {
            let token = Token::read(reply).unwrap();
            assert_eq!(
                (&*token.consumer, token.seq, token.delivered),
                ("normal", 17, 2),
                "{reply}"
            );
            assert_eq!(token.stored_at.as_second(), 1_795_255_642);
        }
        for reply in ["", "7", "$JS.ACK.S.normal.2", "$JS.ACK.S.n.x.17.40.1.3"] {
            assert!(Token::read(reply).is_none(), "{reply}");
        }
    }

    #[test]
    fn a_handle_that_holds_more_than_a_note_has_room_for_notes_each_lease() {
        const MAX: usize = 64 << 10;
        let leases = Leases::new(&Names::new("jobs"), "w".to_owned());
        let (now, lease) = (Instant::now(), Duration::from_secs(30));
        let attempt =
            |what: &str| Attempt { attempt: 1, at: Timestamp::now(), what: what.to_owned() };
        let held = |seq: u64, until: Instant| {
            let reply = format!("$JS.ACK.S.normal.2.{seq}.40.1795255642697185435.3");
            let (token, crashes) = (Token::read(&reply).unwrap(), vec![attempt(&"x".repeat(250))]);
            Held { token, until, entry: None, deadline: None, crashes, leaves: false }
        };
        let read = || {
            let notes = leases.notes(now, lease, MAX);
            assert!(notes.iter().all(|note| note.len() < MAX));
            let read = |note: &Bytes| serde_json::from_slice::<Note>(note).unwrap().jobs;
            (notes.len(), notes.iter().flat_map(read).collect::<Vec<_>>())
        };
        leases.take((0..500).map(|seq| held(seq, now - lease)).collect());
        let (n_notes, claims) = read();
        assert!((n_notes, claims.len()) == (1, 500) && leases.mine().is_cut);
        leases.take((500..5000).map(|seq| held(seq, now + lease)).collect());
        let (n_notes, claims) = read();
        let numbers: HashSet<_> = claims.iter().map(|claim| claim.seq).collect();
        assert!(n_notes > 1 && (500..5000).all(|seq| numbers.contains(&seq)), "{n_notes}");
        // What one of them said is not to stand there for ever.
        leases.mine().held.clear();
        for _ in 0..3 {
            let (n_written, claims) = read();
            assert!(n_written == n_notes && claims.is_empty(), "{n_written}");
        }
    }

    #[test]
    fn a_job_that_stays_or_is_left_where_it_is_is_not_noted_as_leaving() {
        let leases = Leases::new(&Names::new("jobs"), "w".to_owned());
        let (now, lease) = (Instant::now(), Duration::from_secs(30));
        let tokens = [7, 8, 9].map(|seq| {
            Token::read(&format!("$JS.ACK.S.normal.1.{seq}.40.1795255642697185435.3")).unwrap()
        });
        let held = tokens.clone().map(|token| {
            let (until, crashes) = (now + lease, Vec::new());
            Held { token, until, entry: None, deadline: None, crashes, leaves: false }
        });
        leases.take(held.to_vec());
        let part = || leases.part_with(tokens.iter().cloned());
        assert_eq!(part(), (true, tokens.to_vec()));
        // An earlier try may have stored them.
        assert_eq!(part(), (true, Vec::new()));
        leases.stay(&tokens[0]);
        let what = "there is no room".to_owned();
        leases.leave(&tokens[1], Attempt { attempt: 1, at: Timestamp::UNIX_EPOCH, what });
        let notes = leases.notes(now, lease, 64 << 10);
        let jobs = serde_json::from_slice::<Note>(&notes[0]).unwrap().jobs;
        let mut leaving: Vec<_> = jobs.iter().map(|claim| (claim.seq, claim.leaves)).collect();
        leaving.sort_unstable();
        assert_eq!(leaving, [(7, false), (8, false), (9, true)]);
    }

    #[test]
    fn a_job_is_finished_in_all_its_deliveries_and_no_other_of_its_number_is() {
        let leases = Leases::new(&Names::new("jobs"), "w".to_owned());
        let token = |delivered: u32, nanos: i64| {
            Token::read(&format!("$JS.ACK.S.normal.{delivered}.17.40.{nanos}.3")).unwrap()
        };
        leases.finish(&token(1, 1_795_255_642_697_185_435), Done::Back(9));
        let known = leases.finished(&token(2, 1_795_255_642_697_185_435));
        assert!(matches!(known, Some(Done::Back(9))));
        // The stream was lost and made anew.
        assert!(leases.finished(&token(2, 1_795_255_642_697_185_436)).is_none());
        leases.settle(&token(1, 1_795_255_642_697_185_435), Done::Back(1));
        assert!(leases.finished(&token(2, 1_795_255_642_697_185_435)).is_none());
    }
}
