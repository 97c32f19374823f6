//! Who waits for news in this process, and how they are told.

use tokio::sync::watch;

use crate::follow::Followers;

/// Where the writer and the watcher tell their news.
#[derive(Debug)]
pub(super) struct Signals {
    /// The queue's count of things to tell, as far as it was told.
    arrivals: watch::Sender<i64>,
    pub(super) followers: Followers,
}

impl Signals {
    pub(super) fn new(arrivals: i64) -> Self {
        Self { arrivals: watch::Sender::new(arrivals), followers: Followers::default() }
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

    /// Told from now on.
    pub(super) fn arrivals(&self) -> watch::Receiver<i64> {
        let mut arrivals = self.arrivals.subscribe();
        arrivals.mark_unchanged();
        arrivals
    }
}
