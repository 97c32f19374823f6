//! Who follows results: how they are told, look after look, and when they wait in vain.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::watch;

use crate::{Frame, JobId, Result};

/// How long who follows a result goes without a look: not all news is told.
const NAP: Duration = Duration::from_secs(10);

/// What a queue knows of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Nothing: it was not published yet, was purged, or was done long ago.
    Unknown,
    /// It waits or runs, or is a dead letter that may be put back.
    Open,
    /// It is done, and known for a while.
    Done,
}

/// Tells from what the queue knows, look by look, whether a result can still come.
#[derive(Debug, Default)]
pub(crate) struct Hope {
    was_open: bool,
}

impl Hope {
    /// Whether no result can come any more, given that there was none when the job stood like this.
    pub(crate) fn is_lost(&mut self, standing: Standing) -> bool {
        self.was_open |= standing == Standing::Open;
        match standing {
            Standing::Unknown => self.was_open,
            Standing::Open => false,
            Standing::Done => true,
        }
    }
}

/// Who follows results in this process, and what each is told of its job; clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Followers<N = ()>(Arc<Mutex<HashMap<JobId, watch::Sender<N>>>>);

impl<N: Default> Followers<N> {
    /// Told from now on of one job, until it is dropped.
    pub(crate) fn follow(&self, id: &JobId) -> Follower<N> {
        let mut followers = self.lock();
        let sender =
            followers.entry(id.clone()).or_insert_with(|| watch::Sender::new(N::default()));
        let news = Some(sender.subscribe());
        drop(followers);
        Follower { followers: Self(self.0.clone()), id: id.clone(), news }
    }

    /// Tells those who follow one job.
    pub(crate) fn note(&self, id: &JobId, news: impl FnOnce(&mut N)) {
        if let Some(follower) = self.lock().get(id) {
            follower.send_modify(news);
        }
    }

    /// Tells all who follow a job.
    pub(crate) fn note_all(&self, news: impl Fn(&mut N)) {
        for follower in self.lock().values() {
            follower.send_modify(&news);
        }
    }
}

impl<N> Followers<N> {
    /// Whether nobody follows a job.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<JobId, watch::Sender<N>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Followers {
    /// Tells those who follow one of these jobs.
    pub(crate) fn tell<'a>(&self, ids: impl IntoIterator<Item = &'a JobId>) {
        let followers = self.lock();
        for follower in ids.into_iter().filter_map(|id| followers.get(id)) {
            follower.send_replace(());
        }
    }

    /// Tells all who follow a job, when it is not known which has news.
    pub(crate) fn tell_all(&self) {
        self.note_all(|()| {});
    }
}

/// Waits for news of one job.
#[derive(Debug)]
pub(crate) struct Follower<N = ()> {
    followers: Followers<N>,
    id: JobId,
    news: Option<watch::Receiver<N>>,
}

impl<N> Follower<N> {
    /// Returns when there was news since the last time.
    pub(crate) async fn news(&mut self) {
        if let Some(news) = &mut self.news {
            // The sender stays as long as we are registered.
            news.changed().await.ok();
        }
    }
}

impl<N: Copy + Default> Follower<N> {
    /// What was told by now; it is no news any more.
    pub(crate) fn told(&mut self) -> N {
        self.news.as_mut().map(|news| *news.borrow_and_update()).unwrap_or_default()
    }
}

impl<N> Drop for Follower<N> {
    fn drop(&mut self) {
        let mut followers = self.followers.lock();
        self.news = None;
        if followers.get(&self.id).is_some_and(|sender| sender.receiver_count() == 0) {
            followers.remove(&self.id);
        }
    }
}

/// What one look at a result found.
#[derive(Debug)]
pub(crate) struct Found<C> {
    pub(crate) frames: Vec<Frame>,
    /// How far that is.
    pub(crate) cursor: C,
    /// There may be more already.
    pub(crate) is_cut: bool,
    /// What was known of the job before the look.
    pub(crate) standing: Standing,
}

/// The pieces as looks find them, then the result, then the end.
pub(crate) fn frames<C, F>(
    mut follower: Follower,
    mut cursor: C,
    look: impl Fn(C) -> F + Send + 'static,
) -> BoxStream<'static, Result<Frame>>
where
    C: Copy + Send + 'static,
    F: Future<Output = Result<Found<C>>> + Send,
{
    let mut hope = Hope::default();
    let frames = async_stream::try_stream! {
        loop {
            let found = look(cursor).await?;
            cursor = found.cursor;
            for frame in found.frames {
                let is_last = matches!(frame, Frame::Final(_));
                yield frame;
                if is_last {
                    return;
                }
            }
            if found.is_cut {
                continue;
            }
            if hope.is_lost(found.standing) {
                return;
            }
            // Of what time forgets, or another process purges, there is no news.
            tokio::time::timeout(NAP, follower.news()).await.ok();
        }
    };
    frames.boxed()
}
