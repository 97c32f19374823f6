//! What makes a push stream look up.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use crate::push::Push;
use crate::view::View;

/// An active stream has spoken, and what it says next can wait this long.
const UNHURRIED: Duration = Duration::from_millis(100);

/// What makes a push stream look up.
pub(crate) enum News {
    /// There may be something to say.
    View,
    /// The configuration changed.
    Profiles,
    /// There will be no more news.
    End,
}

impl News {
    pub(crate) fn of(changed: Result<(), watch::error::RecvError>, news: Self) -> Self {
        changed.map_or(Self::End, |()| news)
    }
}

/// Waits until the stream may have something to say about its queue.
pub(crate) async fn news(push: &Push, views: &mut watch::Receiver<View>, now: Instant) -> News {
    // A due push about an unknown queue waits until there is news.
    let Some(due) = push.due().filter(|due| *due > now) else {
        return News::of(views.changed().await, News::View);
    };
    if push.is_unhurried() {
        sleep(UNHURRIED).await;
    }
    tokio::select! {
        changed = views.changed() => News::of(changed, News::View),
        () = sleep_until(due) => News::View,
    }
}
