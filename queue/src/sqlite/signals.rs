//! Who waits for news in this process, and how they are told.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::JobId;

/// Where the writer and the watcher tell their news.
#[derive(Debug)]
pub(super) struct Signals {
    /// The queue's count of things to tell, as far as it was told.
    arrivals: watch::Sender<i64>,
    followers: Mutex<HashMap<JobId, watch::Sender<()>>>,
}

impl Signals {
    pub(super) fn new(arrivals: i64) -> Self {
        Self { arrivals: watch::Sender::new(arrivals), followers: Mutex::default() }
    }

    /// Tells those who wait for jobs, once for each count whoever saw it first; true when it is
    /// news.
    pub(super) fn tell_arrivals(&self, count: i64) -> bool {
        self.arrivals.send_if_modified(|told| {
            let is_news = count > *told;
            *told = count.max(*told);
            is_news
        })
    }

    /// Tells those who follow one of these jobs.
    pub(super) fn tell_results(&self, ids: &[JobId]) {
        if ids.is_empty() {
            return;
        }
        let followers = self.followers();
        for follower in ids.iter().filter_map(|id| followers.get(id)) {
            follower.send_replace(());
        }
    }

    /// Tells all who follow a job, when it is not known which has news.
    pub(super) fn tell_all_followers(&self) {
        for follower in self.followers().values() {
            follower.send_replace(());
        }
    }

    /// Whether anybody follows a job.
    pub(super) fn is_followed(&self) -> bool {
        !self.followers().is_empty()
    }

    /// Told from now on.
    pub(super) fn arrivals(&self) -> watch::Receiver<i64> {
        let mut arrivals = self.arrivals.subscribe();
        arrivals.mark_unchanged();
        arrivals
    }

    /// Told from now on of one job, until it is dropped.
    pub(super) fn follow(self: &Arc<Self>, id: &JobId) -> Follower {
        let mut followers = self.followers();
        let sender = followers.entry(id.clone()).or_insert_with(|| watch::Sender::new(()));
        let news = Some(sender.subscribe());
        drop(followers);
        Follower { signals: self.clone(), id: id.clone(), news }
    }

    fn followers(&self) -> MutexGuard<'_, HashMap<JobId, watch::Sender<()>>> {
        self.followers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for news of one job.
#[derive(Debug)]
pub(super) struct Follower {
    signals: Arc<Signals>,
    id: JobId,
    news: Option<watch::Receiver<()>>,
}

impl Follower {
    /// Returns when there was news since the last time.
    pub(super) async fn news(&mut self) {
        if let Some(news) = &mut self.news {
            // The sender stays as long as we are registered.
            news.changed().await.ok();
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let mut followers = self.signals.followers();
        self.news = None;
        if followers.get(&self.id).is_some_and(|sender| sender.receiver_count() == 0) {
            followers.remove(&self.id);
        }
    }
}
