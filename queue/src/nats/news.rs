//! Who follows answers: what a handle hears of them, and when whoever follows looks.
//!
//! Whoever follows a job listens to its record from the beginning to the end, and to its pieces from the
//! first on. That jobs end without an answer, or are purged, a handle hears of all jobs at once; not so of
//! answers, which come with their bodies. What is heard is noted and let go of by tasks of their own, so
//! that one who takes nothing holds up nobody and costs a few numbers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::{Client, Subject, Subscriber};
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, interval, timeout_at};

use super::answers::Cursor;
use super::names::{Names, text_of};
use super::{NatsQueue, Shared};
use crate::follow::{Follower, Followers};
use crate::{Error, ErrorKind, Frame, JobId, Link, Result};

/// Who follows looks again after so long at first, and twice as long each time that nothing is heard, up
/// to the longest: a thousand who wait are no thousand looks a second.
const NAP: Duration = Duration::from_secs(1);
const LONGEST_NAP: Duration = Duration::from_secs(8);
/// The longest for whoever may not listen.
const DEAF_NAP: Duration = Duration::from_millis(500);
/// A server tells of what it stores before it can be read, and long before where it waits for its disk or
/// for the others of its cluster: what was heard of and not seen is looked for after each of these.
const ECHOES: [Duration; 5] = [
    Duration::from_millis(2),
    Duration::from_millis(8),
    Duration::from_millis(32),
    Duration::from_millis(128),
    Duration::from_millis(512),
];
/// The same where it is not known when it is seen: so long it is looked for.
const ECHOED: Duration = Duration::from_millis(700);
/// After how long a handle that may not listen asks again whether it may.
const DEAF_FOR: Duration = Duration::from_secs(10);
/// How long it takes itself for deaf before it believes that it may.
const DOUBT: Duration = Duration::from_secs(1);
/// So often a handle looks whether its connection was lost meanwhile.
const HEARTBEAT: Duration = Duration::from_millis(500);

/// What was heard of one job.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Heard {
    /// How often its record was written, or may have been.
    n_records: u64,
    /// How often it was said to have ended without an answer, and to be purged.
    n_ends: u64,
    n_purges: u64,
    /// How often something may have been missed.
    n_gaps: u64,
    /// The last of its pieces: what their subjects have in common, and which it is. 0 for none.
    piece: (u64, u64),
}

impl Heard {
    /// What is said once, and cannot be told from what was said before when it is seen.
    fn words(&self) -> [u64; 3] {
        [self.n_records, self.n_ends, self.n_purges]
    }

    /// Whether a piece was heard of that has not been read.
    fn is_ahead(&self, cursor: &Cursor) -> bool {
        self.piece.0 > 0 && self.piece >= (cursor.epoch, cursor.seq)
    }

    fn hear(&mut self, subject: &str) {
        match piece_of(subject) {
            Some(piece) => self.piece = self.piece.max(piece),
            None => self.n_records += 1,
        }
    }
}

/// Which piece lies on a subject; none on that of a record.
fn piece_of(subject: &str) -> Option<(u64, u64)> {
    let mut tokens = subject.rsplit('.');
    let (seq, epoch) = (tokens.next()?, tokens.next()?);
    Some((epoch.parse().ok()?, seq.parse().ok()?))
}

/// A task that listens; it ends with this.
#[derive(Debug)]
struct Ear(AbortHandle);

impl Ear {
    fn start(hearing: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(hearing).abort_handle())
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// How a handle listens to what is said of all jobs.
#[derive(Debug)]
struct Listening {
    since: Instant,
    /// Whether it is known that not all of it may be heard.
    is_deaf: bool,
    /// Whether that was so before.
    was_deaf: bool,
    _ear: Ear,
}

/// Tells who follows answers through one handle.
#[derive(Debug)]
pub(super) struct Answers {
    followers: Followers<Heard>,
    listening: Mutex<Listening>,
}

impl Answers {
    /// Listens from now on, as far as this connection's later requests are concerned.
    pub(super) async fn start(shared: &Shared) -> Result<Self> {
        let followers = Followers::default();
        let listening = Mutex::new(listen(shared, &followers).await?);
        Ok(Self { followers, listening })
    }

    /// Whether this handle does not hear all that is said of all jobs.
    fn is_deaf(&self, shared: &Shared) -> bool {
        let mut listening = self.listening();
        if !listening.is_deaf {
            let subjects = subjects(&shared.names);
            listening.is_deaf = shared.api.refusal.is_deaf_to(&subjects, listening.since);
        }
        let is_doubted = listening.was_deaf && listening.since.elapsed() < DOUBT;
        listening.is_deaf || is_doubted
    }

    /// Asks once more to listen where it was refused, now and then: it may have been allowed since.
    async fn mend(&self, shared: &Shared) -> Result<()> {
        if !self.is_deaf(shared) || self.listening().since.elapsed() < DEAF_FOR {
            return Ok(());
        }
        // One who does it is enough.
        self.listening().since = Instant::now();
        let listening = listen(shared, &self.followers).await?;
        *self.listening() = Listening { was_deaf: true, ..listening };
        // What was said to the one before may not have been heard to the end.
        self.followers.note_all(|heard| heard.n_gaps += 1);
        Ok(())
    }

    fn listening(&self) -> MutexGuard<'_, Listening> {
        self.listening.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where it is said that jobs end without an answer, and that they are purged.
fn subjects(names: &Names) -> [String; 2] {
    ["notes.end.*", "purged.*"].map(|subject| names.subject(subject))
}

async fn listen(shared: &Shared, followers: &Followers<Heard>) -> Result<Listening> {
    let (client, link) = (&shared.api.client, shared.link.clone());
    let (since, n_losses) = (Instant::now(), link.n_losses());
    let [ends, purges] = subjects(&shared.names);
    let (ends, purges) = (subscribe(client, ends).await?, subscribe(client, purges).await?);
    let ear = Ear::start(hear(followers.clone(), ends, purges, (link, n_losses)));
    Ok(Listening { since, is_deaf: false, was_deaf: false, _ear: ear })
}

async fn subscribe(client: &Client, subject: String) -> Result<Subscriber> {
    client
        .subscribe(subject)
        .await
        .map_err(|error| Error::new(ErrorKind::Unavailable, format!("cannot subscribe: {error}")))
}

/// Hears what is said of all jobs, and what nobody says: that the connection was lost.
async fn hear(
    followers: Followers<Heard>,
    mut ends: Subscriber,
    mut purges: Subscriber,
    (link, mut n_losses): (Arc<Link>, u64),
) {
    let note = |subject: &Subject, news: fn(&mut Heard)| {
        let text = subject.rsplit('.').next().and_then(text_of);
        if let Some(id) = text.and_then(|id| id.parse().ok()) {
            followers.note(&id, news);
        }
    };
    let mut beat = interval(HEARTBEAT);
    loop {
        tokio::select! {
            Some(message) = ends.next() => note(&message.subject, |heard| heard.n_ends += 1),
            Some(message) = purges.next() => note(&message.subject, |heard| heard.n_purges += 1),
            _ = beat.tick() => {}
        }
        let n_by_now = link.n_losses();
        if n_by_now != n_losses && link.is_up() {
            n_losses = n_by_now;
            followers.note_all(|heard| heard.n_gaps += 1);
        }
    }
}

/// One who follows a job.
#[derive(Debug)]
struct Followed {
    /// Told of what is said of all jobs.
    follower: Follower<Heard>,
    /// What was heard of this job alone. Each who follows it hears that, and counts it once.
    own: watch::Sender<Heard>,
    ears: Vec<Ear>,
    /// What was told to others before.
    begin: Heard,
    /// What was heard before the last look.
    seen: Heard,
    /// When something was said that may not be seen yet.
    said: Option<Instant>,
    /// Looks since the last news.
    n_echoes: usize,
    nap: Duration,
    /// Whether this look comes of no word.
    is_quiet: bool,
}

impl Followed {
    fn new(mut follower: Follower<Heard>) -> Self {
        let (own, begin) = (watch::Sender::default(), follower.told());
        let (ears, said, nap) = (Vec::new(), None, NAP);
        Self { follower, own, ears, begin, seen: begin, said, n_echoes: 0, nap, is_quiet: true }
    }

    /// Listens to what is said of this job on these subjects.
    fn listen(&mut self, mut subscriber: Subscriber) {
        let own = self.own.clone();
        self.ears.push(Ear::start(async move {
            while let Some(message) = subscriber.next().await {
                own.send_modify(|heard| heard.hear(&message.subject));
            }
        }));
    }

    /// What was heard by now.
    fn told(&mut self) -> Heard {
        let Heard { n_records, piece, .. } = *self.own.borrow();
        Heard { n_records, piece, ..self.follower.told() }
    }

    /// A look begins, which sees what was stored before now.
    fn look(&mut self) {
        let heard = self.told();
        if heard.words() != self.seen.words() {
            self.said = Some(Instant::now());
        }
        if (heard.words(), heard.piece) != (self.seen.words(), self.seen.piece) {
            (self.n_echoes, self.nap) = (0, NAP);
        }
        self.seen = heard;
    }

    fn is_purged(&self) -> bool {
        self.seen.n_purges > self.begin.n_purges
    }

    /// Whether it is worth asking if the job ended without an answer.
    fn may_have_ended(&self) -> bool {
        self.is_quiet || self.seen.n_ends > self.begin.n_ends
    }

    /// Waits until it is time for the next look.
    async fn rest(&mut self, cursor: &Cursor, is_deaf: bool) {
        self.said.take_if(|at| self.n_echoes > 0 && at.elapsed() >= ECHOED);
        let is_owed = self.said.is_some() || self.seen.is_ahead(cursor);
        let echo = ECHOES.get(self.n_echoes).filter(|_| is_owed);
        self.n_echoes += usize::from(echo.is_some());
        let nap = if is_deaf { self.nap.min(DEAF_NAP) } else { self.nap };
        let end = Instant::now() + *echo.unwrap_or(&nap);
        // What was heard since the look is news at once.
        let mut own = self.own.subscribe();
        own.mark_changed();
        loop {
            let news = async {
                tokio::select! {
                    () = self.follower.news() => {}
                    // The sender is ours.
                    _ = own.changed() => {}
                }
            };
            if timeout_at(end, news).await.is_err() {
                break;
            }
            let heard = self.told();
            let is_piece = heard.piece != self.seen.piece && heard.is_ahead(cursor);
            self.is_quiet = heard.n_gaps != self.seen.n_gaps;
            if self.is_quiet || is_piece || heard.words() != self.seen.words() {
                return;
            }
        }
        self.is_quiet = echo.is_none();
        if self.is_quiet {
            self.nap = LONGEST_NAP.min(self.nap * 2);
        }
    }
}

impl NatsQueue {
    pub(super) async fn follow_result(
        &self,
        id: &JobId,
        from_seq: u64,
    ) -> Result<BoxStream<'static, Result<Frame>>> {
        let (shared, begin) = (&*self.shared, Instant::now());
        // Before anybody reads on, and for the whole time: of a purge nothing is kept.
        let answers = shared.answers.get_or_try_init(|| Answers::start(shared)).await?;
        answers.mend(shared).await?;
        let mut followed = Followed::new(answers.followers.follow(id));
        followed.listen(subscribe(&shared.api.client, self.result_subject(id)).await?);
        let (queue, id) = (self.clone(), id.clone());
        let mut cursor = Cursor { attempt: 0, epoch: 0, seq: from_seq };
        let frames = async_stream::try_stream! {
            let shared = &*queue.shared;
            let api = &shared.api;
            let mut hears_pieces = false;
            loop {
                followed.look();
                let frames = queue.frames(&id, &mut cursor).await?;
                let found = !frames.is_empty();
                for frame in frames {
                    let is_last = matches!(frame, Frame::Final(_));
                    yield frame;
                    if is_last {
                        return;
                    }
                }
                if !found && queue.is_over(&id, &followed).await? {
                    return;
                }
                if cursor.epoch > 0 && !hears_pieces {
                    let pieces = subscribe(&api.client, queue.chunk_subjects(&id)).await?;
                    followed.listen(pieces);
                    hears_pieces = true;
                    // For those that came before.
                    continue;
                }
                let is_deaf = shared.answers.get().is_some_and(|answers| answers.is_deaf(shared));
                followed.rest(&cursor, is_deaf || api.refusal.is_deaf_since(begin)).await;
            }
        };
        Ok(frames.boxed())
    }

    /// Whether nothing can come any more of a job of which nothing was found.
    async fn is_over(&self, id: &JobId, followed: &Followed) -> Result<bool> {
        let has_ended =
            followed.is_purged() || followed.may_have_ended() && self.has_ended(id).await?;
        Ok(has_ended && self.answer(id).await?.is_none())
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    const CURSOR: Cursor = Cursor { attempt: 1, epoch: 7, seq: 3 };

    fn id() -> JobId {
        "a".parse().unwrap()
    }

    fn followed(followers: &Followers<Heard>) -> Followed {
        Followed::new(followers.follow(&id()))
    }

    /// After how long the next looks come, each of them in vain.
    async fn looks(followed: &mut Followed, n_looks: usize) -> Vec<(Duration, bool)> {
        let mut looks = Vec::new();
        for _ in 0..n_looks {
            followed.look();
            let begin = Instant::now();
            followed.rest(&CURSOR, false).await;
            looks.push((begin.elapsed(), followed.may_have_ended()));
        }
        looks
    }

    fn millis<const N: usize>(all: [u64; N], may_have_ended: bool) -> Vec<(Duration, bool)> {
        all.map(|one| (Duration::from_millis(one), may_have_ended)).to_vec()
    }

    #[tokio::test(start_paused = true)]
    async fn who_hears_nothing_looks_ever_more_seldom() {
        let followers = Followers::default();
        let mut followed = followed(&followers);
        assert!(followed.may_have_ended(), "at first nobody knows");
        let expected = millis([1000, 2000, 4000, 8000, 8000], true);
        assert_eq!(looks(&mut followed, 5).await, expected);
        followed.look();
        let begin = Instant::now();
        followed.rest(&CURSOR, true).await;
        assert_eq!(begin.elapsed(), DEAF_NAP, "who may not listen looks often");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_told_before_it_is_stored_is_looked_for_until_it_is() {
        let followers = Followers::default();
        let mut followed = followed(&followers);
        looks(&mut followed, 3).await;
        for subject in ["ebb.jobs.results.a", "ebb.jobs.chunks.a.7.3", "ebb.jobs.chunks.a.8.0"] {
            followed.own.send_modify(|heard| heard.hear(subject));
            let found = looks(&mut followed, 6).await;
            let expected = [millis([2, 8, 32, 128, 512], false), millis([1000], true)];
            assert_eq!(found, expected.concat(), "{subject}");
        }
        followers.note(&id(), |heard| heard.n_ends += 1);
        let found = looks(&mut followed, 4).await;
        assert_eq!(found, millis([2, 8, 32, 128], true), "whether it ended is asked each time");
    }

    #[tokio::test(start_paused = true)]
    async fn pieces_that_were_read_are_no_news_however_often_they_are_told() {
        let followers = Followers::default();
        let mut followed = followed(&followers);
        followed.look();
        let own = followed.own.clone();
        let told = async {
            for seq in [0, 1, 2, 1, 0, 2] {
                tokio::time::sleep(Duration::from_millis(100)).await;
                own.send_modify(|heard| heard.hear(&format!("chunks.a.7.{seq}")));
                own.send_modify(|heard| heard.hear("chunks.a.6.99"));
            }
        };
        let begin = Instant::now();
        tokio::join!(followed.rest(&CURSOR, false), told);
        assert_eq!(begin.elapsed(), NAP);
        // A record that was written once is not looked for with each piece for ever.
        own.send_modify(|heard| heard.hear("results.a"));
        for _ in 0..50 {
            own.send_modify(|heard| heard.piece.1 += 1);
            looks(&mut followed, 3).await;
        }
        assert_eq!(followed.said, None);
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_follow_the_same_job_do_not_make_each_other_look() {
        let followers = Followers::default();
        let (one, mut other) = (followed(&followers), followed(&followers));
        other.look();
        one.own.send_modify(|heard| heard.hear("results.a"));
        let begin = Instant::now();
        other.rest(&CURSOR, false).await;
        assert_eq!(begin.elapsed(), NAP);
        // Heard between the look and the rest, it is not missed.
        other.look();
        other.own.send_modify(|heard| heard.hear("results.a"));
        timeout(Duration::ZERO, other.rest(&CURSOR, false)).await.expect("it looks at once");
    }

    #[tokio::test(start_paused = true)]
    async fn what_others_were_told_before_is_not_told_again_and_a_gap_is_a_look() {
        let followers = Followers::default();
        let _other = followed(&followers);
        followers.note(&id(), |heard| heard.n_purges += 1);
        let mut late = followed(&followers);
        late.look();
        assert!(!late.is_purged());
        followers.note_all(|heard| heard.n_gaps += 1);
        timeout(Duration::ZERO, late.rest(&CURSOR, false)).await.expect("it looks at once");
        assert!(late.may_have_ended());
        late.look();
        followers.note(&id(), |heard| heard.n_purges += 1);
        timeout(Duration::ZERO, late.rest(&CURSOR, false)).await.expect("it looks at once");
        late.look();
        assert!(late.is_purged());
    }
}
