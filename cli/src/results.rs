//! Results as the binary prints them.

use std::time::Duration;

use anyhow::Result;
use ebb_queue::claim::lies_elsewhere;
use ebb_queue::{
    DeadLetter, ErrorKind, Failure, FailureKind, Frame, Job, JobId, JobResult, JobState, Outcome,
    Queue, STATUS_TTL, Timestamp,
};
use futures::{StreamExt, stream};
use serde::Serialize;
use serde_json::{Value, json};

use crate::output::note;

/// What is said of a job whose result cannot come any more.
pub(crate) const GONE: &str = "was purged, or forgotten by its queue, before it had a result";

/// What is said of a job that was published longer ago than its result is kept. It may have had one, and
/// one behind a split may still wait or run: where it went is remembered no longer than a result.
const OUT_OF_SIGHT: &str = "is not found from here any more: a result, and where a split sent a job, is \
                            forgotten after result_ttl";

/// How long after its deadline a job is looked for among the dead letters.
const SOON: Duration = Duration::from_millis(100);

/// The pauses between further looks, from the first to the longest: a worker may hold the job, and
/// on RabbitMQ each look goes through all dead letters.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// After how long who follows a job asks once more whether it is still there: of one that was purged
/// before anybody followed it, nobody is told.
const STILL_THERE: Duration = Duration::from_secs(10);

/// Results that are asked for at the same time, and how long the queue has to tell all of them.
const AT_ONCE: usize = 64;
const PATIENCE: Duration = Duration::from_secs(5);

/// A job whose result is waited for.
#[derive(Debug, Clone)]
pub(crate) struct Awaited {
    pub(crate) id: JobId,
    /// When it was published; long ago where that is not known.
    pub(crate) enqueued_at: Timestamp,
    pub(crate) expiry: Expiry,
}

/// What is known of the moment from which on a job is not run any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expiry {
    /// There is none.
    Never,
    /// This one.
    At(Timestamp),
    /// There may be one.
    Unknown,
}

impl Awaited {
    pub(crate) fn of(job: &Job) -> Self {
        let expiry = job.headers.deadline.map_or(Expiry::Never, Expiry::At);
        Self { id: job.id.clone(), enqueued_at: job.enqueued_at, expiry }
    }

    /// A job of which no more is known than its id.
    pub(crate) fn known_by_id(id: JobId) -> Self {
        Self { id, enqueued_at: Timestamp::UNIX_EPOCH, expiry: Expiry::Unknown }
    }

    /// What is said when its queue does not know it.
    fn lost(&self, queue: &Queue) -> Answer {
        let kept_until = self.enqueued_at.checked_add(queue.result_ttl());
        match kept_until.is_ok_and(|end| end <= Timestamp::now()) {
            true => Answer::Gone(OUT_OF_SIGHT),
            false => Answer::Gone(GONE),
        }
    }
}

/// What became of a job that was published.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Answer {
    /// Its result, or what its dead letter says.
    Result(JobResult),
    /// None, and none can come from here, for this reason.
    Gone(&'static str),
}

/// Waits until it is known what became of a job that was published.
///
/// # Errors
/// When the queue does not answer.
pub(crate) async fn answer_of(queue: &Queue, job: &Awaited) -> Result<Answer> {
    tokio::select! {
        biased;
        answer = answer_unless_dead(
            async || answer_now(queue, job).await,
            followed(queue, &job.id),
        ) => answer,
        result = death(queue, &job.id, job.expiry) => Ok(Answer::Result(result)),
    }
}

/// Asks what is known of a job, which is then followed, and once more when it is. From then on who follows
/// is told of all that becomes of it; what is unknown here has not ended then: it may have gone on, and
/// the record of that be forgotten.
async fn answer_unless_dead(
    look: impl AsyncFn() -> ebb_queue::Result<Option<Answer>>,
    followed: impl Future<Output = Result<Option<JobResult>>>,
) -> Result<Answer> {
    let mut followed = std::pin::pin!(followed);
    let ended = |result: Option<JobResult>| result.map_or(Answer::Gone(GONE), Answer::Result);
    if let Some(answer) = look().await? {
        return Ok(answer);
    }
    if let Ok(result) = tokio::time::timeout(STILL_THERE, &mut followed).await {
        return Ok(ended(result?));
    }
    match look().await? {
        Some(answer) => Ok(answer),
        None => Ok(ended(followed.await?)),
    }
}

/// What became of a job that was published, if that is known by now.
async fn answer_now(queue: &Queue, job: &Awaited) -> ebb_queue::Result<Option<Answer>> {
    if let Some(result) = queue.get(&job.id).await? {
        return Ok(Some(Answer::Result(result)));
    }
    lost_now(queue, job).await
}

/// What is said of a job that has no result, if its queue does not know it.
async fn lost_now(queue: &Queue, job: &Awaited) -> ebb_queue::Result<Option<Answer>> {
    let state = unless_denied(queue.state(&job.id).await)?;
    Ok((state == Some(JobState::Unknown)).then(|| job.lost(queue)))
}

/// What was found among the jobs: who may read results need not be one who may look there.
pub(crate) fn unless_denied<T>(
    found: ebb_queue::Result<Option<T>>,
) -> ebb_queue::Result<Option<T>> {
    match found {
        Err(error) if error.kind() == ErrorKind::Denied => {
            tracing::debug!(%error, "the jobs could not be looked at");
            Ok(None)
        }
        found => found,
    }
}

/// Returns once the job is a dead letter. An expired job gets its result from whoever receives
/// next or looks at the dead letters, and where no worker runs that is nobody but us.
pub(crate) async fn death(queue: &Queue, id: &JobId, expiry: Expiry) -> JobResult {
    let mut pause = match expiry {
        Expiry::Never => return std::future::pending().await,
        Expiry::At(deadline) => {
            let left = deadline.duration_since(Timestamp::now());
            Duration::try_from(left).unwrap_or_default() + SOON
        }
        Expiry::Unknown => Duration::ZERO,
    };
    let (mut next, longest) = PAUSES;
    loop {
        tokio::time::sleep(pause).await;
        // What cannot be looked at here is told by whoever follows the result.
        if let Ok(Some(result)) = dead_now(queue, id).await {
            return result;
        }
        if let Expiry::At(deadline) = expiry
            && Timestamp::now() - STATUS_TTL > deadline
            && is_lost(queue, id).await
        {
            let outcome = Outcome::Failed(Failure::new(FailureKind::Expired, LOST));
            let id = id.clone();
            return JobResult { id, attempt: 0, outcome, finished_at: deadline, queue: None };
        }
        (pause, next) = (next, (next * 2).min(longest));
    }
}

/// What became of a job that is a dead letter: its result, and where none was stored what the letter
/// says. A look at the letters gives expired jobs theirs.
///
/// # Errors
/// When the dead letters cannot be looked at.
pub(crate) async fn dead_now(queue: &Queue, id: &JobId) -> ebb_queue::Result<Option<JobResult>> {
    let Some(letter) = queue.show(id).await? else { return Ok(None) };
    let stored = queue.get(id).await.ok().flatten();
    Ok(Some(stored.unwrap_or_else(|| failed(letter))))
}

/// What is said of a job that is no dead letter yet, and will be one.
const LOST: &str = "expired: its deadline has passed, and no worker of the queue holds it";

/// Whether nobody here can finish a job whose deadline has passed. RabbitMQ does not look into jobs,
/// so there it is no dead letter before a worker meets it. Where nothing waits the job is not here:
/// it went on to the queue of a version, and whoever runs it may finish.
async fn is_lost(queue: &Queue, id: &JobId) -> bool {
    // In this order: a result is stored before its job is let go.
    let depth = queue.depth().await;
    let is_here = depth.is_ok_and(|depth| depth.in_flight == 0 && depth.ready > 0);
    is_here && matches!(queue.get(id).await, Ok(None))
}

fn failed(letter: DeadLetter) -> JobResult {
    JobResult {
        id: letter.job.id,
        attempt: letter.attempts,
        outcome: Outcome::Failed(Failure::new(letter.kind, letter.reason)),
        finished_at: letter.died_at,
        queue: None,
    }
}

/// What is known now of jobs that were published; nothing where the queue does not answer soon, and
/// of a job whose result cannot be read.
pub(crate) async fn answers_now(queue: &Queue, jobs: &[Awaited]) -> Vec<Option<Answer>> {
    let now = Timestamp::now();
    let is_late = |job: &&Awaited| matches!(job.expiry, Expiry::At(deadline) if deadline <= now);
    let (mut results, mut states) = (Looks::new(jobs), Looks::new(jobs));
    let asked = async {
        if let Some(late) = jobs.iter().find(is_late) {
            // One look gives all that are expired their results.
            queue.show(&late.id).await.ok();
        }
        // All results first: whether an open job is still there may take as long as many of these.
        let result = async |job: &Awaited| Ok(queue.get(&job.id).await?.map(Answer::Result));
        let open = results.ask(0..jobs.len(), result).await;
        // It may have been done since the look at its result.
        let state = async |job: &Awaited| match lost_now(queue, job).await? {
            Some(_) => answer_now(queue, job).await,
            None => Ok(None),
        };
        states.ask(open, state).await;
    };
    tokio::time::timeout(PATIENCE, asked).await.ok();
    results.note_unread("results cannot be read");
    states.note_unread("jobs without a result cannot be looked at");
    results.found.into_iter().zip(states.found).map(|(result, state)| result.or(state)).collect()
}

/// What many looks found, each at one of these jobs.
struct Looks<'a> {
    jobs: &'a [Awaited],
    found: Vec<Option<Answer>>,
    unread: Vec<(usize, ebb_queue::Error)>,
}

impl<'a> Looks<'a> {
    fn new(jobs: &'a [Awaited]) -> Self {
        Self { jobs, found: vec![None; jobs.len()], unread: Vec::new() }
    }

    /// Looks at some of the jobs, and says of which nothing was found and nothing failed.
    async fn ask(
        &mut self,
        nths: impl IntoIterator<Item = usize>,
        look: impl AsyncFn(&Awaited) -> ebb_queue::Result<Option<Answer>>,
    ) -> Vec<usize> {
        let (jobs, look, mut open) = (self.jobs, &look, Vec::new());
        let answers = stream::iter(nths).map(async |nth| (nth, look(&jobs[nth]).await));
        let mut answers = std::pin::pin!(answers.buffered(AT_ONCE));
        while let Some((nth, answer)) = answers.next().await {
            match answer {
                Ok(None) => open.push(nth),
                Ok(found) => self.found[nth] = found,
                // Nothing is said by that of those behind it.
                Err(error) => self.unread.push((nth, error)),
            }
        }
        open
    }

    /// Says how many could not be read.
    fn note_unread(&self, what: &str) {
        if let [(nth, error), ..] = &self.unread[..] {
            let (n_unread, id) = (self.unread.len(), &self.jobs[*nth].id);
            note(format!("{n_unread} {what}, the first that of {id}: {error}"));
        }
    }
}

/// Waits for the result of a job, or until the queue knows that there will be none.
///
/// # Errors
/// When the queue does not answer.
pub(crate) async fn result_unless_forgotten(
    queue: &Queue,
    id: &JobId,
) -> Result<Option<JobResult>> {
    match queue.get(id).await? {
        None => followed(queue, id).await,
        found => Ok(found),
    }
}

/// The result that ends what a job says; none when it ends without.
async fn followed(queue: &Queue, id: &JobId) -> Result<Option<JobResult>> {
    let mut frames = queue.follow(id, 0).await?;
    while let Some(frame) = frames.next().await {
        if let Frame::Final(result) = frame? {
            return Ok(Some(result));
        }
    }
    Ok(None)
}

/// What is said in the place of an answer that [`lies_elsewhere`].
pub(crate) const ELSEWHERE: &str =
    "the answer lies in a store of payloads; name it with --payloads, as the worker does";

/// A result as one JSON object, `body` or `error` in it by its outcome, and of a failed one its `kind`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Line<'a> {
    id: &'a JobId,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    queue: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<FailureKind>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

impl<'a> Line<'a> {
    /// What there is.
    pub(crate) fn of(result: &'a JobResult) -> Self {
        let line = Self {
            attempt: Some(result.attempt),
            finished_at: Some(result.finished_at),
            queue: result.queue.as_deref(),
            ..Self::waiting(&result.id)
        };
        match &result.outcome {
            Outcome::Completed { .. } if lies_elsewhere(result) => {
                Self { outcome: "completed", error: Some(ELSEWHERE), ..line }
            }
            Outcome::Completed { content_type, body } => Self {
                outcome: "completed",
                content_type: Some(content_type),
                body: Some(body_of(body)),
                error: None,
                ..line
            },
            Outcome::Failed(Failure { kind, reason }) => {
                Self { outcome: "failed", kind: Some(*kind), error: Some(reason), ..line }
            }
            Outcome::Cancelled => Self { outcome: "cancelled", error: Some("cancelled"), ..line },
        }
    }

    /// What stands for a result that cannot come any more.
    pub(crate) fn gone(id: &'a JobId, words: &'static str) -> Self {
        let (kind, error) = (Some(FailureKind::Other), Some(words));
        Self { outcome: "failed", kind, error, ..Self::waiting(id) }
    }

    /// What stands for a result that did not come in time.
    pub(crate) fn waiting(id: &'a JobId) -> Self {
        Self {
            id,
            outcome: "waiting",
            attempt: None,
            finished_at: None,
            queue: None,
            content_type: None,
            body: None,
            kind: None,
            error: Some("no result yet"),
        }
    }
}

/// A body in JSON: itself if it is JSON, else text, else a list of bytes.
#[must_use]
pub(crate) fn body_of(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap_or_else(|_| match std::str::from_utf8(body) {
        Ok(text) => json!(text),
        Err(_) => json!(body),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ebb_queue::faulty::{Faults, Faulty};
    use ebb_queue::memory::MemoryQueue;
    use ebb_queue::{Behavior, JSON, OpenOptions, Payloads, QueueUrl};

    use super::*;

    async fn queue(folder: &std::path::Path) -> Queue {
        crate::options::open(&QueueUrl::sqlite(folder.join("queue.db"))).await.unwrap()
    }

    async fn publish(queue: &Queue, id: &str, ttl: Option<&str>) -> Awaited {
        let mut job = Job::new("{}", Timestamp::now());
        job.id = id.parse().unwrap();
        ttl.into_iter().for_each(|ttl| job.set("ebb-ttl", ttl).unwrap());
        let awaited = Awaited::of(&job);
        queue.publish(vec![job]).await.unwrap();
        awaited
    }

    async fn complete(queue: &Queue, job: &Awaited) -> JobResult {
        let outcome = Outcome::Completed { content_type: JSON.into(), body: "42".into() };
        let (id, finished_at) = (job.id.clone(), Timestamp::UNIX_EPOCH);
        let result = JobResult { id, attempt: 1, outcome, finished_at, queue: None };
        queue.put(&result).await.unwrap();
        result
    }

    fn expired() -> Outcome {
        Outcome::Failed(Failure::expired())
    }

    #[tokio::test]
    async fn a_wait_ends_when_its_job_expires_and_nobody_works() {
        let folder = tempfile::tempdir().unwrap();
        let queue = queue(folder.path()).await;
        let job = publish(&queue, "late", Some("20ms")).await;
        let of_another = Awaited { expiry: Expiry::Unknown, ..job.clone() };
        for job in [job, of_another] {
            let result = tokio::time::timeout(Duration::from_secs(30), answer_of(&queue, &job));
            let Answer::Result(result) = result.await.expect("it ends").unwrap() else {
                panic!("it is there");
            };
            assert_eq!((result.id, result.outcome), (job.id, expired()));
        }
    }

    #[tokio::test]
    async fn a_dead_letter_without_a_result_says_what_became_of_its_job() {
        let folder = tempfile::tempdir().unwrap();
        let queue = queue(folder.path()).await;
        let open = publish(&queue, "open", None).await;
        let late = publish(&queue, "late", Some("1ms")).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_eq!(queue.get(&late.id).await.unwrap(), None);
        let result = dead_now(&queue, &late.id).await.unwrap().expect("it has expired");
        assert_eq!((result.id, result.outcome), (late.id, expired()));
        assert_eq!(dead_now(&queue, &open.id).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_job_that_cannot_expire_is_not_looked_for_among_the_dead_letters() {
        let folder = tempfile::tempdir().unwrap();
        let queue = queue(folder.path()).await;
        let job = publish(&queue, "patient", None).await;
        assert_eq!(job.expiry, Expiry::Never);
        let dead = death(&queue, &job.id, job.expiry);
        assert!(tokio::time::timeout(SOON * 2, dead).await.is_err());
    }

    #[tokio::test]
    async fn each_job_behind_an_open_one_is_told_as_it_stands() {
        let folder = tempfile::tempdir().unwrap();
        let queue = queue(folder.path()).await;
        let jobs = [
            publish(&queue, "open", None).await,
            publish(&queue, "done", None).await,
            publish(&queue, "late", Some("1ms")).await,
            publish(&queue, "open-too", None).await,
        ];
        let done = complete(&queue, &jobs[1]).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        let found = answers_now(&queue, &jobs).await;
        let done = Some(Answer::Result(done));
        assert_eq!([&found[0], &found[1], &found[3]], [&None, &done, &None]);
        assert!(matches!(&found[2], Some(Answer::Result(late)) if late.outcome == expired()));
    }

    #[tokio::test]
    async fn a_job_that_was_purged_before_anybody_followed_it_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let queue = queue(folder.path()).await;
        let job = publish(&queue, "purged", None).await;
        let mut steps = queue.purge_waiting().await.unwrap();
        while let Some(step) = steps.next().await {
            step.unwrap();
        }
        let open = publish(&queue, "open", None).await;
        let answer = tokio::time::timeout(Duration::from_secs(30), answer_of(&queue, &job));
        assert_eq!(answer.await.expect("it ends").unwrap(), Answer::Gone(GONE));
        assert_eq!(answers_now(&queue, &[job, open]).await, [Some(Answer::Gone(GONE)), None]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_that_is_unknown_long_after_it_is_followed_is_still_followed() {
        let id: JobId = "passed-on".parse().unwrap();
        let outcome = Outcome::Completed { content_type: JSON.into(), body: "42".into() };
        let finished_at = Timestamp::UNIX_EPOCH;
        let result = JobResult { id, attempt: 1, outcome, finished_at, queue: None };
        // The record that it went on is forgotten after a minute, and its worker comes after that.
        let begun = tokio::time::Instant::now();
        let unknown_after = |span: Duration| {
            async move || Ok((begun.elapsed() >= span).then_some(Answer::Gone(GONE)))
        };
        let minute = Duration::from_secs(60);
        let followed = async {
            tokio::time::sleep(minute + STILL_THERE).await;
            Ok(Some(result.clone()))
        };
        let answer = answer_unless_dead(unknown_after(minute), followed).await.unwrap();
        assert_eq!(answer, Answer::Result(result));
        // One that was purged before anybody followed it is told all the same.
        let begun = tokio::time::Instant::now();
        let purged = async || Ok((begun.elapsed() > Duration::ZERO).then_some(Answer::Gone(GONE)));
        let answer = answer_unless_dead(purged, std::future::pending()).await.unwrap();
        assert_eq!((answer, begun.elapsed()), (Answer::Gone(GONE), STILL_THERE));
    }

    #[tokio::test]
    async fn a_job_that_is_looked_for_too_late_is_not_said_to_have_had_no_result() {
        let folder = tempfile::tempdir().unwrap();
        let queue = queue(folder.path()).await;
        let mut old = Job::new("{}", Timestamp::now());
        let known = Awaited::of(&old);
        old.enqueued_at -= queue.result_ttl();
        let old = Awaited::of(&old);
        assert_eq!(answer_of(&queue, &known).await.unwrap(), Answer::Gone(GONE));
        assert_eq!(answer_of(&queue, &old).await.unwrap(), Answer::Gone(OUT_OF_SIGHT));
        let found = answers_now(&queue, &[known, old]).await;
        assert_eq!(found, [Some(Answer::Gone(GONE)), Some(Answer::Gone(OUT_OF_SIGHT))]);
    }

    #[tokio::test(start_paused = true)]
    async fn open_jobs_take_no_time_from_the_results_behind_them() {
        let memory = MemoryQueue::new(&Behavior::default(), OpenOptions::default());
        let inner: Queue = Arc::new(memory.clone());
        let mut jobs = Vec::new();
        for nth in 0..4 * AT_ONCE {
            jobs.push(publish(&inner, &format!("job-{nth}"), None).await);
        }
        let done = complete(&inner, jobs.last().unwrap()).await;
        let faults = Faults { lag: PATIENCE / 5, ..Faults::NONE };
        let slow: Queue = Arc::new(Faulty::new(Arc::new(memory), faults, 7));
        let found = answers_now(&slow, &jobs).await;
        assert_eq!(found.last(), Some(&Some(Answer::Result(done))));
        assert_eq!(found.iter().flatten().count(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn looks_at_all_jobs_say_what_they_found_though_some_failed() {
        let jobs: Vec<_> =
            ["open", "done", "broken"].map(|id| Awaited::known_by_id(id.parse().unwrap())).into();
        let mut looks = Looks::new(&jobs);
        let open = looks.ask(0..3, async |job: &Awaited| match job.id.as_str() {
            "open" => Ok(None),
            "done" => Ok(Some(Answer::Gone(GONE))),
            _ => Err(ebb_queue::Error::new(ErrorKind::Internal, "words")),
        });
        assert_eq!(open.await, [0]);
        assert_eq!(looks.found, [None, Some(Answer::Gone(GONE)), None]);
        assert_eq!(looks.unread.iter().map(|(nth, _)| *nth).collect::<Vec<_>>(), [2]);
    }

    /// The store of answers of a queue, and the queue.
    async fn queue_with_store(folder: &std::path::Path) -> (std::path::PathBuf, Queue) {
        let store = folder.join("store");
        let url = format!("file://{}", store.display()).parse().unwrap();
        let mut payloads = Payloads::open(&url).unwrap();
        payloads.inline = 1;
        let options = OpenOptions { payloads: Some(payloads), ..OpenOptions::default() };
        let url = QueueUrl::sqlite(folder.join("queue.db"));
        (store, ebb_queue::open(&url, options).await.unwrap())
    }

    #[tokio::test]
    async fn a_result_that_cannot_be_read_hides_none_of_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let (store, queue) = queue_with_store(folder.path()).await;
        let mut jobs = Vec::new();
        for id in ["unreadable", "read"] {
            jobs.push(publish(&queue, id, None).await);
        }
        complete(&queue, &jobs[0]).await;
        // No file can be read where a link leads to itself.
        for answer in std::fs::read_dir(store.join("results")).unwrap() {
            let path = answer.unwrap().path();
            std::fs::remove_file(&path).unwrap();
            std::os::unix::fs::symlink(&path, &path).unwrap();
        }
        let read = Some(Answer::Result(complete(&queue, &jobs[1]).await));
        assert!(queue.get(&jobs[0].id).await.is_err());
        assert_eq!(answers_now(&queue, &jobs).await, [None, read]);
    }

    #[test]
    fn a_look_at_the_jobs_that_fails_is_no_answer_unless_it_is_denied() {
        use ErrorKind::{Denied, Full, Incompatible, Internal, Invalid, Unavailable};
        assert_eq!(unless_denied(Ok(Some(5))).unwrap(), Some(5));
        let looked = |kind| unless_denied::<u8>(Err(ebb_queue::Error::new(kind, "words")));
        assert_eq!(looked(Denied).unwrap(), None);
        for kind in [Full, Incompatible, Internal, Invalid, Unavailable] {
            assert_eq!(looked(kind).unwrap_err().kind(), kind);
        }
    }

    fn check(outcome: Outcome, expected: &str) {
        let id = "job-1".parse().unwrap();
        let finished_at = Timestamp::UNIX_EPOCH;
        let result = JobResult { id, attempt: 2, outcome, finished_at, queue: None };
        assert_eq!(serde_json::to_string(&Line::of(&result)).unwrap(), expected);
    }

    #[test]
    fn a_result_is_one_line() {
        check(
            Outcome::Completed { content_type: JSON.into(), body: r#"{"score":0.5}"#.into() },
            r#"{"id":"job-1","outcome":"completed","attempt":2,"finished_at":"1970-01-01T00:00:00Z","content_type":"application/json","body":{"score":0.5}}"#,
        );
        check(
            Outcome::Failed(Failure::expired()),
            r#"{"id":"job-1","outcome":"failed","attempt":2,"finished_at":"1970-01-01T00:00:00Z","kind":"expired","error":"expired"}"#,
        );
        check(
            Outcome::Cancelled,
            r#"{"id":"job-1","outcome":"cancelled","attempt":2,"finished_at":"1970-01-01T00:00:00Z","error":"cancelled"}"#,
        );
        check(
            Outcome::Completed {
                content_type: ebb_queue::claim::REFERENCE.into(),
                body: r#"{"key":"a"}"#.into(),
            },
            r#"{"id":"job-1","outcome":"completed","attempt":2,"finished_at":"1970-01-01T00:00:00Z","error":"the answer lies in a store of payloads; name it with --payloads, as the worker does"}"#,
        );
        let id = "job-1".parse().unwrap();
        let waiting = serde_json::to_string(&Line::waiting(&id)).unwrap();
        assert_eq!(waiting, r#"{"id":"job-1","outcome":"waiting","error":"no result yet"}"#);
        let gone = serde_json::to_string(&Line::gone(&id, GONE)).unwrap();
        let told =
            format!(r#"{{"id":"job-1","outcome":"failed","kind":"other","error":"{GONE}"}}"#);
        assert_eq!(gone, told);
    }

    #[test]
    fn a_body_that_is_no_json_is_text_or_bytes() {
        assert_eq!(body_of(b"plain"), json!("plain"));
        assert_eq!(body_of(&[255, 0]), json!([255, 0]));
    }
}
