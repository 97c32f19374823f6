//! Which files are opened, which are refused, and that a refused one stays as it was.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ebb_queue::{
    Clock, DeadLetter, Error, ErrorKind, Failure, FailureKind, OpenOptions, Queue, Timestamp, open,
};
use rusqlite::Connection;

use crate::{answer, handle, job, take, url};

const HOUR: Duration = Duration::from_secs(3600);

/// The wall clock, set forward by seconds.
#[derive(Debug, Default)]
struct AheadClock(AtomicU64);

impl Clock for AheadClock {
    fn now(&self) -> Timestamp {
        Timestamp::now() + Duration::from_secs(self.0.load(Ordering::SeqCst))
    }
}

async fn refusal(file: &Path) -> Error {
    let opened = open(&url(file), OpenOptions::default()).await;
    opened.err().expect("the file is refused")
}

#[tokio::test]
async fn folders_that_are_missing_are_made() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a").join("b").join("queue.db");
    handle(&url(&file)).await.publish(vec![job("a")]).await.unwrap();
    assert_eq!(handle(&url(&file)).await.depth().await.unwrap().ready, 1);
}

#[tokio::test]
async fn a_folder_in_the_place_of_the_file_is_unavailable_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = refusal(folder.path()).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains(&folder.path().display().to_string()), "{error}");
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("notes.txt");
    let notes = "buy milk\n".repeat(1000);
    std::fs::write(&file, &notes).unwrap();
    let error = refusal(&file).await;
    assert_eq!(error.kind(), ErrorKind::Incompatible);
    assert!(error.to_string().contains("notes.txt"), "{error}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), notes);
}

#[tokio::test]
async fn the_database_of_another_program_is_refused_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("other.db");
    Connection::open(&file).unwrap().execute_batch("CREATE TABLE songs (name TEXT)").unwrap();
    let before = std::fs::read(&file).unwrap();
    let error = refusal(&file).await;
    assert_eq!(error.kind(), ErrorKind::Incompatible);
    assert!(error.to_string().contains("another program"), "{error}");
    assert_eq!(std::fs::read(&file).unwrap(), before);
}

#[tokio::test]
async fn a_newer_layout_is_refused_with_both_versions_and_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("queue.db");
    drop(handle(&url(&file)).await);
    Connection::open(&file).unwrap().pragma_update(None, "user_version", 7).unwrap();
    let error = refusal(&file).await;
    assert_eq!(error.kind(), ErrorKind::Incompatible);
    for part in ["version 7", "up to 1", "newer ebb", "queue.db"] {
        assert!(error.to_string().contains(part), "{error}");
    }
}

/// What a version without kinds runs when it puts a job back.
const REDRIVEN_BEFORE: &str = "UPDATE jobs SET state = 0, attempts = 0, \
    reason = NULL, died_at = NULL, settled = NULL, deadline = NULL WHERE id = 'a'";
/// And when it makes a dead letter of one.
const BURIED_BEFORE: &str = "UPDATE jobs SET state = 3, due = NULL, \
    deadline = NULL, lease = NULL, worker = NULL, settled = NULL, history = NULL, \
    reason = 'as it was', died_at = 1 WHERE id = 'a'";

async fn reject(queue: &Queue, kind: FailureKind) {
    let delivery = take(queue, 1, Duration::ZERO).await.remove(0);
    queue.settle(&[delivery.reject(Failure::new(kind, "as it is"))]).await.unwrap();
}

#[tokio::test]
async fn a_job_that_an_older_version_puts_back_or_buries_has_no_kind_of_before() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("queue.db");
    let queue = handle(&url(&file)).await;
    let older = Connection::open(&file).unwrap();
    let letter = async || -> DeadLetter { queue.show(&job("a").id).await.unwrap().unwrap() };
    queue.publish(vec![job("a")]).await.unwrap();
    reject(&queue, FailureKind::Invalid).await;
    assert_eq!(letter().await.kind, FailureKind::Invalid);
    for sql in [REDRIVEN_BEFORE, BURIED_BEFORE] {
        assert_eq!(older.execute(sql, []).unwrap(), 1);
    }
    let found = letter().await;
    assert_eq!((found.kind, &*found.reason), (FailureKind::Other, "as it was"));
    queue.redrive(None).await.unwrap();
    reject(&queue, FailureKind::Model).await;
    assert_eq!(letter().await.kind, FailureKind::Model);
    queue.redrive(None).await.unwrap();
    assert_eq!(older.execute(BURIED_BEFORE, []).unwrap(), 1);
    assert_eq!(letter().await.kind, FailureKind::Other);
}

#[tokio::test]
async fn what_is_past_its_time_leaves_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("queue.db");
    let mut url = url(&file);
    (url.behavior.result_ttl, url.behavior.key_ttl) = (HOUR, HOUR);
    let clock = Arc::new(AheadClock::default());
    let options = OpenOptions { clock: clock.clone(), ..OpenOptions::default() };
    let queue = open(&url, options).await.unwrap();
    for name in ["a", "b", "c"] {
        let mut job = job(name);
        job.headers.key = Some(format!("key-{name}"));
        queue.publish(vec![job]).await.unwrap();
    }
    for delivery in take(&queue, 3, Duration::ZERO).await {
        queue.chunk(&delivery.job.id, 1, 0, "piece".into()).await.unwrap();
        queue.put(&answer(&delivery)).await.unwrap();
        queue.settle(&[delivery.ack()]).await.unwrap();
    }
    let db = Connection::open(&file).unwrap();
    let rows = |table: &str| -> i64 {
        db.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
    };
    let tables = ["jobs", "payloads", "names", "results", "chunks"];
    assert_eq!(tables.map(rows), [0, 0, 6, 3, 3]);
    clock.0.store(2 * HOUR.as_secs(), Ordering::SeqCst);
    // Any write sweeps now and then.
    let until = Timestamp::now() + Duration::from_secs(30);
    while tables.map(rows) != [0; 5] {
        assert!(Timestamp::now() < until, "{:?} rows are left", tables.map(rows));
        tokio::time::sleep(Duration::from_millis(20)).await;
        take(&queue, 1, Duration::ZERO).await;
    }
}
