//! Which dead letters are meant: some by their ids, some by what they say, or all.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use ebb_queue::{DeadLetter, FailureKind, JobId, Queue, Timestamp, read_span};
use futures::{StreamExt, stream};

use crate::output::grouped;

/// One or more dead letters, those that are alike, or all.
#[derive(Debug, Args)]
#[group(required = true, multiple = true, args = [
    "ids", "all", "kind", "reason", "tenant", "older_than", "newer_than",
])]
pub(crate) struct Which {
    /// The ids of the jobs
    #[arg(value_name = "ID", conflicts_with_all = ["all", "filter"])]
    ids: Vec<JobId>,
    /// All dead letters of the queue
    #[arg(long, conflicts_with = "filter")]
    all: bool,
    /// Those that are alike.
    #[command(flatten)]
    filter: Filter,
}

/// Dead letters by what they say. Where more than one of these is given, all of them hold.
#[derive(Debug, Args)]
#[group(id = "filter", multiple = true, args = [
    "kind", "reason", "tenant", "older_than", "newer_than",
])]
pub(crate) struct Filter {
    /// Those that failed for this kind of cause, or for one of these
    #[arg(long, value_name = "KIND[,KIND]", value_delimiter = ',', value_parser = parse_kinds())]
    kind: Vec<FailureKind>,
    /// Those whose reason contains this, letter by letter
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Those of this tenant
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
    /// Those that died so long ago or longer, such as 90m or 36h
    #[arg(long, value_name = "SPAN", value_parser = parse_age)]
    older_than: Option<Duration>,
    /// Those that died within this time, such as 90m or 36h
    #[arg(long, value_name = "SPAN", value_parser = parse_age)]
    newer_than: Option<Duration>,
    /// How many of the newest dead letters are looked at for that; their bodies are in memory
    /// meanwhile
    #[arg(long, env = "EBB_DLQ_LOOK", hide_env_values = true, value_name = "N")]
    #[arg(default_value = "10000")]
    look: usize,
}

/// The words of all kinds, and nothing else: a slip would read as `other`.
fn parse_kinds() -> impl TypedValueParser<Value = FailureKind> {
    let words = FailureKind::ALL.iter().map(|kind| kind.word());
    PossibleValuesParser::new(words).map(|word| FailureKind::of_word(&word))
}

/// As many hours as one may want to look back.
fn parse_age(text: &str) -> Result<Duration, String> {
    read_span(text).ok_or_else(|| "use seconds, or a unit, such as 15s, 90m or 36h".to_owned())
}

impl Filter {
    /// Whether it leaves any out.
    pub(crate) fn is_any(&self) -> bool {
        let Self { kind, reason, tenant, older_than, newer_than, look: _ } = self;
        let is_aged = older_than.is_some() || newer_than.is_some();
        !kind.is_empty() || reason.is_some() || tenant.is_some() || is_aged
    }

    /// Whether a letter is meant.
    fn fits(&self, letter: &DeadLetter, now: Timestamp) -> bool {
        let age = Duration::try_from(now.duration_since(letter.died_at)).unwrap_or_default();
        let tenant = &letter.job.headers.tenant;
        (self.kind.is_empty() || self.kind.contains(&letter.kind))
            && self.reason.as_ref().is_none_or(|text| letter.reason.contains(text))
            && (self.tenant.is_none() || self.tenant == *tenant)
            && self.older_than.is_none_or(|least| age >= least)
            && self.newer_than.is_none_or(|most| age <= most)
    }

    /// The newest letters that are meant, at most so many; and what is to be said where older ones were
    /// not looked at.
    pub(crate) async fn newest(
        &self,
        queue: &Queue,
        max: usize,
    ) -> Answer<(Vec<DeadLetter>, Option<String>)> {
        if !self.is_any() {
            return Ok((queue.list(max).await?, None));
        }
        let mut letters = queue.list(self.look).await?;
        let (looked_at, all) = (letters.len() as u64, queue.depth().await?.dead);
        let unseen = (letters.len() == self.look && all > looked_at).then(|| {
            let (looked_at, of) = (grouped(looked_at), grouped(all));
            format!(
                "only the newest {looked_at} of {of} dead letters were looked at; use --look {all}"
            )
        });
        let now = Timestamp::now();
        letters.retain(|letter| self.fits(letter, now));
        letters.truncate(max);
        Ok((letters, unseen))
    }
}

/// So many ids are taken one by one, which tells them apart; on RabbitMQ each one costs a walk
/// through all letters.
const A_FEW: usize = 4;

/// Of more ids that are asked for one by one, so many at the same time.
const AT_ONCE: usize = 16;

/// What became of the letters that were meant.
#[derive(Debug, PartialEq)]
pub(crate) struct Done {
    pub(crate) n: u64,
    /// Of those that are meant, letters with which it was not done.
    pub(crate) stayed: u64,
    /// What is to be said of ids that are no letters, if there are any.
    pub(crate) unknown: Option<String>,
    /// What is to be said where there may be more that are meant.
    pub(crate) unseen: Option<String>,
}

impl Done {
    fn all(n: u64) -> Self {
        Self { n, stayed: 0, unknown: None, unseen: None }
    }
}

impl Which {
    /// Does it to each that is meant.
    ///
    /// # Errors
    /// When the queue does not answer.
    pub(crate) async fn each(
        &self,
        queue: &Queue,
        act: impl AsyncFn(Option<&[JobId]>) -> Answer<u64>,
    ) -> Result<Done> {
        if self.filter.is_any() {
            let (letters, unseen) = self.filter.newest(queue, usize::MAX).await?;
            // In the order in which they died.
            let meant: Vec<_> = letters.into_iter().rev().map(Letter::of).collect();
            let ids: Vec<_> = meant.iter().map(|letter| letter.id.clone()).collect();
            // None are all of them, to some.
            let n = if ids.is_empty() { 0 } else { act(Some(&ids)).await? };
            let meant: BTreeSet<_> = meant.into_iter().collect();
            let stayed = stayed_of(
                (&ids, n),
                async |ids: &[JobId]| self.newest_among(queue, ids).await,
                |letter| meant.contains(letter),
            );
            let stayed = stayed.await;
            return Ok(Done { stayed, unseen, ..Done::all(n) });
        }
        if self.all {
            // What cannot be told keeps nobody from it.
            let n_before = queue.depth().await.map_or(0, |depth| depth.dead);
            let n = act(None).await?;
            let n_others = n_before.saturating_sub(n);
            let stayed = if n_others == 0 { 0 } else { n_others.min(n_left(queue).await) };
            return Ok(Done { stayed, ..Done::all(n) });
        }
        self.each_named(act, async |ids: &[JobId]| self.letters_among(queue, ids).await).await
    }

    /// What was no dead letter is known from how many there were: nobody looks at the letters
    /// beforehand. `letters_among` says which of these ids are letters all the same.
    async fn each_named(
        &self,
        act: impl AsyncFn(Option<&[JobId]>) -> Answer<u64>,
        letters_among: impl AsyncFn(&[JobId]) -> Answer<Vec<Letter>>,
    ) -> Result<Done> {
        let mut seen = BTreeSet::new();
        let ids: Vec<JobId> = self.ids.iter().filter(|id| seen.insert(*id)).cloned().collect();
        if ids.len() > A_FEW {
            let begun = Timestamp::now();
            let n = act(Some(&ids)).await?;
            let stayed =
                stayed_of((&ids, n), letters_among, |letter| letter.died_at <= begun).await;
            return Ok(Done { stayed, unknown: no_letters_of(&ids, n + stayed), ..Done::all(n) });
        }
        let (mut n, mut others) = (0, Vec::new());
        for id in ids {
            match act(Some(std::slice::from_ref(&id))).await? {
                0 => others.push(id),
                more => n += more,
            }
        }
        let stayed = letters_among(&others).await?;
        others.retain(|id| !stayed.iter().any(|letter| letter.id == *id));
        let (stayed, unknown) = (stayed.len() as u64, no_letters_of(&others, 0));
        Ok(Done { stayed, unknown, ..Done::all(n) })
    }

    /// Which of these are dead letters. Of many the newest of the queue are looked at together, then the
    /// others, which may be older or in the queue that their job went on to, each by itself, unless that
    /// costs a walk through all letters.
    async fn letters_among(&self, queue: &Queue, ids: &[JobId]) -> Answer<Vec<Letter>> {
        let mut others: BTreeSet<_> = ids.iter().collect();
        let mut found = Vec::new();
        if ids.len() > A_FEW {
            found = self.newest_among(queue, ids).await?;
            for letter in &found {
                others.remove(&letter.id);
            }
        }
        let is_many = others.len() > A_FEW;
        if is_many && queue.info().await?.broker == "amqp" {
            return Ok(found);
        }
        // Who walks through all letters keeps them from others who look.
        let shown = stream::iter(others).map(|id| queue.show(id));
        let mut shown = shown.buffered(if is_many { AT_ONCE } else { 1 });
        while let Some(letter) = shown.next().await {
            found.extend(letter?.map(Letter::of));
        }
        Ok(found)
    }

    /// Which of these are among the newest dead letters of the queue.
    async fn newest_among(&self, queue: &Queue, ids: &[JobId]) -> Answer<Vec<Letter>> {
        let named: BTreeSet<_> = ids.iter().collect();
        let letters = queue.list(self.filter.look).await?.into_iter().map(Letter::of);
        Ok(letters.filter(|letter| named.contains(&letter.id)).collect())
    }
}

/// A dead letter, told apart from one that the same job becomes later.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Letter {
    id: JobId,
    died_at: Timestamp,
}

impl Letter {
    fn of(letter: DeadLetter) -> Self {
        Self { id: letter.job.id, died_at: letter.died_at }
    }
}

/// How many of these letters, with so many of which it was done, are letters all the same, such as one
/// that was cut: a warning says why.
async fn stayed_of(
    (ids, n): (&[JobId], u64),
    letters_among: impl AsyncFn(&[JobId]) -> Answer<Vec<Letter>>,
    is_meant: impl Fn(&Letter) -> bool,
) -> u64 {
    let n_others = (ids.len() as u64).saturating_sub(n);
    if n_others == 0 {
        return 0;
    }
    // What was done is told, whatever becomes of this look; a job that was put back may be dead again.
    let letters = letters_among(ids).await.unwrap_or_default();
    n_others.min(letters.iter().filter(|letter| is_meant(letter)).count() as u64)
}

/// How many dead letters there are now, as far as that can be told.
async fn n_left(queue: &Queue) -> u64 {
    // What nobody has met yet may be counted as dead, and is no letter before.
    let has_letters = queue.list(1).await.is_ok_and(|letters| !letters.is_empty());
    if !has_letters {
        return 0;
    }
    queue.depth().await.map_or(0, |depth| depth.dead)
}

type Answer<T> = ebb_queue::Result<T>;

/// Of these ids so many were dead letters.
fn no_letters_of(ids: &[JobId], n: u64) -> Option<String> {
    let others = (ids.len() as u64).saturating_sub(n);
    match ids {
        _ if others == 0 => None,
        _ if n > 0 => Some(format!("{others} of {} ids are no dead letters", ids.len())),
        [id] => Some(format!("{id} is no dead letter")),
        ids => {
            let names: Vec<&str> = ids.iter().map(JobId::as_str).collect();
            Some(format!("{} are no dead letters", names.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ebb_queue::faulty::{Faults, Faulty};
    use ebb_queue::memory::MemoryQueue;
    use ebb_queue::{Behavior, Job, OpenOptions};

    use super::*;

    /// Those of these ids that are dead letters which are never put back.
    async fn cut_among(ids: &[JobId]) -> Answer<Vec<Letter>> {
        let cut = ids.iter().filter(|id| id.as_str() == "cut");
        Ok(cut.map(|id| Letter { id: id.clone(), died_at: Timestamp::UNIX_EPOCH }).collect())
    }

    fn memory() -> MemoryQueue {
        MemoryQueue::new(&Behavior::default(), OpenOptions::default())
    }

    /// Rejects all jobs that wait.
    async fn reject_all(queue: &Queue) {
        let held = queue.receive(9.try_into().unwrap(), Duration::ZERO).await.unwrap();
        let rejects: Vec<_> = held.into_iter().map(|one| one.reject("bad")).collect();
        queue.settle(&rejects).await.unwrap();
    }

    /// Publishes so many jobs, which die, and says their ids.
    async fn publish_dead(queue: &Queue, n: usize) -> Vec<JobId> {
        let jobs: Vec<_> = (0..n).map(|_| Job::new("body", Timestamp::now())).collect();
        let ids = jobs.iter().map(|job| job.id.clone()).collect();
        queue.publish(jobs).await.unwrap();
        reject_all(queue).await;
        ids
    }

    fn none() -> Filter {
        let (kind, reason, tenant) = (Vec::new(), None, None);
        Filter { kind, reason, tenant, older_than: None, newer_than: None, look: 10 }
    }

    #[derive(Debug, clap::Parser)]
    struct Cli {
        #[command(flatten)]
        which: Which,
    }

    #[test]
    fn some_are_meant_and_in_one_way() {
        use clap::Parser;

        for good in
            ["a b", "--all", "--reason x", "--older-than 36h", "--newer-than 5", "--tenant acme"]
        {
            Cli::try_parse_from(["dlq"].into_iter().chain(good.split(' '))).expect(good);
        }
        for both in ["--kind model,lost", "--kind model --kind lost"] {
            let cli = Cli::try_parse_from(["dlq"].into_iter().chain(both.split(' ')));
            assert_eq!(cli.expect(both).which.filter.kind, [FailureKind::Model, FailureKind::Lost]);
        }
        for bad in [
            "--look 5",
            "a --all",
            "a --reason x",
            "--all --tenant acme",
            "--newer-than soon",
            "a --kind model",
            "--all --kind model",
            "--kind modell",
            "--kind",
        ] {
            Cli::try_parse_from(["dlq"].into_iter().chain(bad.split(' '))).expect_err(bad);
        }
        Cli::try_parse_from(["dlq"]).expect_err("none are meant");
    }

    #[test]
    fn letters_are_told_apart_by_what_they_say() {
        let hour = Duration::from_secs(3600);
        let now = Timestamp::UNIX_EPOCH + 100 * hour;
        let mut job = Job::new("body", now);
        job.set("ebb-tenant", "acme").unwrap();
        let reason = "all 3 attempts are spent".to_owned();
        let kind = FailureKind::Attempts;
        let letter =
            DeadLetter { job, attempts: 3, kind, reason, died_at: now - 2 * hour, history: vec![] };
        let some = |text: &str| Some(text.to_owned());
        for (filter, fits) in [
            (none(), true),
            (Filter { kind: vec![FailureKind::Attempts], ..none() }, true),
            (Filter { kind: vec![FailureKind::Lost, FailureKind::Attempts], ..none() }, true),
            (Filter { kind: vec![FailureKind::Lost], ..none() }, false),
            (
                Filter { kind: vec![FailureKind::Attempts], reason: some("expired"), ..none() },
                false,
            ),
            (Filter { reason: some("attempts are"), ..none() }, true),
            (Filter { reason: some("expired"), ..none() }, false),
            (Filter { tenant: some("acme"), ..none() }, true),
            (Filter { tenant: some("acm"), ..none() }, false),
            (Filter { older_than: Some(2 * hour), ..none() }, true),
            (Filter { older_than: Some(3 * hour), ..none() }, false),
            (Filter { newer_than: Some(2 * hour), ..none() }, true),
            (Filter { newer_than: Some(hour), ..none() }, false),
            (Filter { reason: some("spent"), older_than: Some(3 * hour), ..none() }, false),
        ] {
            assert_eq!(filter.fits(&letter, now), fits, "{filter:?}");
        }
    }

    #[tokio::test]
    async fn who_means_more_than_was_looked_at_is_told_so() {
        let queue: Queue = Arc::new(memory());
        publish_dead(&queue, 3).await;
        for (look, n, is_told) in [(2, 2, true), (2, 1, false)] {
            let filter = Filter { older_than: Some(Duration::ZERO), look, ..none() };
            let which = Which { ids: Vec::new(), all: false, filter };
            let done = which.each(&queue, async |ids| queue.purge(ids).await).await.unwrap();
            assert_eq!((done.n, done.unseen.is_some()), (n, is_told), "{done:?}");
            let words = done.unseen.unwrap_or("newest 2 of 3, --look 3".to_owned());
            assert!(words.contains("newest 2 of 3") && words.contains("--look 3"), "{words}");
        }
    }

    #[tokio::test]
    async fn a_letter_with_which_nothing_is_done_is_told_however_it_was_meant() {
        let queue: Queue = Arc::new(memory());
        let all = publish_dead(&queue, 6).await;
        let cut = all[0].clone();
        // As a broker does it that cannot put this one back.
        let redrive = async |ids: Option<&[JobId]>| {
            let letters = queue.list(10).await?.into_iter().map(|letter| letter.job.id);
            let is_meant = |id: &JobId| ids.is_none_or(|ids| ids.contains(id)) && *id != cut;
            queue.redrive(Some(&letters.filter(is_meant).collect::<Vec<_>>())).await
        };
        let older_than = Some(Duration::ZERO);
        let alike = Filter { older_than, ..none() };
        for (which, n) in [
            (Which { ids: all, all: false, filter: none() }, 5),
            (Which { ids: vec![cut.clone()], all: false, filter: none() }, 0),
            (Which { ids: Vec::new(), all: false, filter: alike }, 0),
            (Which { ids: Vec::new(), all: true, filter: none() }, 0),
        ] {
            let done = which.each(&queue, redrive).await.unwrap();
            assert_eq!(done, Done { stayed: 1, ..Done::all(n) }, "{which:?}");
        }
    }

    #[tokio::test]
    async fn all_are_put_back_though_nobody_can_tell_how_many_there_are() {
        let (memory, faults) = (memory(), Faults { fail_before: 1.0, ..Faults::NONE });
        let inner: Queue = Arc::new(memory.clone());
        publish_dead(&inner, 2).await;
        let silent: Queue = Arc::new(Faulty::new(Arc::new(memory), faults, 7));
        let which = Which { ids: Vec::new(), all: true, filter: none() };
        let done = which.each(&silent, async |ids| inner.redrive(ids).await).await.unwrap();
        assert_eq!(done, Done::all(2));
    }

    #[tokio::test]
    async fn a_letter_that_stayed_is_found_beyond_those_that_are_looked_at_together() {
        let queue: Queue = Arc::new(memory());
        let mut ids = publish_dead(&queue, A_FEW + 1).await;
        ids.push("none".parse().unwrap());
        let which = Which { ids, all: false, filter: Filter { look: 1, ..none() } };
        let done = which.each(&queue, async |_| Ok(0)).await.unwrap();
        let unknown = Some("1 of 6 ids are no dead letters".to_owned());
        assert_eq!(done, Done { stayed: 5, unknown, ..Done::all(0) });
    }

    #[tokio::test]
    async fn a_job_that_was_put_back_and_died_again_did_not_stay() {
        let queue: Queue = Arc::new(memory());
        let mut ids = publish_dead(&queue, A_FEW).await;
        ids.push("none".parse().unwrap());
        let redrive = async |ids: Option<&[JobId]>| {
            let n = queue.redrive(ids).await?;
            tokio::time::sleep(Duration::from_millis(5)).await;
            reject_all(&queue).await;
            // As where another was quicker with one of them.
            Ok(n - u64::from(ids.is_some_and(|ids| ids.len() == A_FEW)))
        };
        let named = Which { ids, all: false, filter: none() };
        let done = named.each(&queue, redrive).await.unwrap();
        let unknown = Some("1 of 5 ids are no dead letters".to_owned());
        assert_eq!(done, Done { unknown, ..Done::all(4) });
        let alike = Filter { older_than: Some(Duration::ZERO), ..none() };
        let alike = Which { ids: Vec::new(), all: false, filter: alike };
        assert_eq!(alike.each(&queue, redrive).await.unwrap(), Done::all(3));
    }

    #[tokio::test]
    async fn what_is_no_dead_letter_is_told_without_a_look_at_the_letters() {
        use std::cell::Cell;

        let letters = ["a", "b", "c", "d", "e"];
        for (given, calls, (n, stayed), unknown) in [
            (&["a"][..], 1, (1, 0), None),
            (&["a", "a"], 1, (1, 0), None),
            (&["x"], 1, (0, 0), Some("x is no dead letter")),
            (&["a", "cut"], 2, (1, 1), None),
            (&["a", "x", "cut"], 3, (1, 1), Some("x is no dead letter")),
            (&["a", "x", "b", "y"], 4, (2, 0), Some("x, y are no dead letters")),
            (&["a", "b", "c", "d", "e"], 1, (5, 0), None),
            (&["a", "b", "c", "d", "cut"], 1, (4, 1), None),
            (&["a", "b", "c", "cut", "x"], 1, (3, 1), Some("1 of 5 ids are no dead letters")),
            (&["a", "b", "c", "d", "x"], 1, (4, 0), Some("1 of 5 ids are no dead letters")),
            (&["v", "w", "x", "y", "z"], 1, (0, 0), Some("v, w, x, y, z are no dead letters")),
        ] {
            let ids = given.iter().map(|id| id.parse().unwrap()).collect();
            let n_calls = Cell::new(0);
            let act = async |ids: Option<&[JobId]>| {
                n_calls.set(n_calls.get() + 1);
                let ids = ids.expect("these ids").iter();
                Ok(ids.filter(|id| letters.contains(&id.as_str())).count() as u64)
            };
            let which = Which { ids, all: false, filter: none() };
            let done = which.each_named(act, cut_among).await.unwrap();
            let unknown = unknown.map(str::to_owned);
            assert_eq!(done, Done { stayed, unknown, ..Done::all(n) }, "{given:?}");
            assert_eq!(n_calls.get(), calls, "{given:?}");
        }
    }
}
