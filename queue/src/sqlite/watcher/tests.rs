//! Which handles share a watcher, and what they hear.

use super::*;
use crate::sqlite::SqliteQueue;
use crate::{Behavior, Broker, Job, OpenOptions, Synchronous, Timestamp};

async fn open(path: &Path, name: &str) -> SqliteQueue {
    let (behavior, options) = (Behavior::default(), OpenOptions::default());
    SqliteQueue::open(path, name, Synchronous::Normal, &behavior, options).await.unwrap()
}

/// Told by a watcher alone, and not by the queue's own writer.
fn apart(queue: &SqliteQueue) -> (&File, Arc<Signals>) {
    (&queue.shared.file, Arc::new(Signals::new(0)))
}

async fn publish(queue: &SqliteQueue) {
    queue.publish(vec![Job::new("body", Timestamp::now())]).await.unwrap();
}

async fn told(arrivals: &mut tokio::sync::watch::Receiver<i64>) {
    let told = tokio::time::timeout(Duration::from_secs(20), arrivals.changed()).await;
    told.expect("the arrival is told").unwrap();
}

#[tokio::test]
async fn without_inotify_a_commit_is_seen_by_looking() {
    let folder = tempfile::tempdir().unwrap();
    let queue = open(&folder.path().join("queue.db"), "default").await;
    let (file, signals) = apart(&queue);
    let mut arrivals = signals.arrivals();
    let listeners = Arc::<Listeners>::default();
    listeners.add(file.queue, &signals);
    let eye = Eye::new(&file.path, listeners, |_| Stir::Untold).unwrap();
    let (stop, stopped) = oneshot::channel();
    let publish = async {
        publish(&queue).await;
        told(&mut arrivals).await;
        drop(stop);
    };
    tokio::join!(eye.watch(stopped), publish);
}

#[tokio::test]
async fn handles_of_one_file_share_a_thread_and_hear_of_their_own_queue() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("queue.db");
    let (one, two) = (open(&path, "one").await, open(&path, "two").await);
    let link = folder.path().join("link.db");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let again = open(&link, "two").await;
    let watchers = Watchers::default();
    let mut running = Vec::new();
    let mut heard = Vec::new();
    for queue in [&one, &two, &again] {
        let (file, signals) = apart(queue);
        running.push(watchers.start(file, &signals).await.unwrap());
        heard.push((signals.arrivals(), signals));
    }
    for watcher in &running {
        assert!(Arc::ptr_eq(watcher, &running[0]));
    }
    publish(&two).await;
    told(&mut heard[1].0).await;
    told(&mut heard[2].0).await;
    assert!(!heard[0].0.has_changed().unwrap());
    publish(&one).await;
    told(&mut heard[0].0).await;
    assert!(!heard[1].0.has_changed().unwrap());
}

#[tokio::test]
async fn a_file_that_took_the_path_of_another_is_watched_for_itself() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("queue.db");
    let before = open(&path, "default").await;
    let (file, signals) = apart(&before);
    let watchers = Watchers::default();
    let watcher = watchers.start(file, &signals).await.unwrap();
    for suffix in ["", "-wal", "-shm"] {
        let name = |folder: &str| path.with_file_name(format!("{folder}queue.db{suffix}"));
        std::fs::rename(name(""), name("old-")).unwrap();
    }
    let after = open(&path, "default").await;
    let (file, signals) = apart(&after);
    let mut arrivals = signals.arrivals();
    let other = watchers.start(file, &signals).await.unwrap();
    assert!(!Arc::ptr_eq(&watcher, &other));
    publish(&after).await;
    told(&mut arrivals).await;
}

#[tokio::test]
async fn the_thread_ends_with_the_last_handle_and_starts_again_with_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let queue = open(&folder.path().join("queue.db"), "default").await;
    let (file, signals) = apart(&queue);
    let watchers = Watchers::default();
    for _ in 0..2 {
        let one = watchers.start(file, &signals).await.unwrap();
        let two = watchers.start(file, &signals).await.unwrap();
        let listeners = Arc::downgrade(&one.listeners);
        drop(one);
        let mut arrivals = signals.arrivals();
        publish(&queue).await;
        told(&mut arrivals).await;
        drop(two);
        let gone = async {
            while listeners.strong_count() > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), gone).await.expect("the thread ends");
    }
}

#[tokio::test]
async fn queues_that_were_opened_with_the_same_options_share_a_watcher() {
    let folder = tempfile::tempdir().unwrap();
    let url = |queue: &str| {
        let text = format!("sqlite:{}?queue={queue}", folder.path().join("queue.db").display());
        text.parse::<crate::QueueUrl>().unwrap()
    };
    let options = OpenOptions::default();
    let strangers = OpenOptions::default();
    let mut streams = Vec::new();
    for (queue, options) in [("one", &options), ("two", &options), ("three", &strangers)] {
        let queue = crate::open(&url(queue), options.clone()).await.unwrap();
        streams.push(queue.arrivals().await.unwrap());
    }
    let n_watching = |options: &OpenOptions| {
        let watchers = lock(&options.watchers.0);
        let n_listeners =
            |watcher: &Weak<Watcher>| watcher.upgrade().unwrap().listeners.present().len();
        watchers.values().map(n_listeners).collect::<Vec<_>>()
    };
    assert_eq!(n_watching(&options), [2]);
    assert_eq!(n_watching(&strangers), [1]);
}
