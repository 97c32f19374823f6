//! How long jobs are waited for that were in a lane a moment ago.

use std::time::Duration;

use futures::{Stream, StreamExt};
use tokio::time::{Instant, timeout};

use super::errors;
use crate::Result;

/// How long to wait for the next of them; others may have taken them.
const SOON: Duration = Duration::from_millis(100);
/// The same where the broker says that they are there still: the next lane has no turn before them.
const LATE: Duration = Duration::from_millis(500);

/// So many, or as many as come.
///
/// # Errors
/// [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable) where they end: a channel that is closed takes
/// its deliveries with it.
pub(super) async fn await_as_many<T, F: Future<Output = bool>>(
    mut coming: impl Stream<Item = lapin::Result<T>> + Unpin,
    n: usize,
    is_any_left: impl Fn() -> F,
) -> Result<Vec<T>> {
    let (mut came, mut end) = (Vec::with_capacity(n), Instant::now() + LATE);
    while came.len() < n {
        match timeout(SOON, coming.next()).await {
            Ok(Some(Ok(one))) => {
                came.push(one);
                end = Instant::now() + LATE;
            }
            Ok(Some(Err(_)) | None) => return Err(errors::down()),
            Err(_) if Instant::now() < end && is_any_left().await => {}
            Err(_) => break,
        }
    }
    Ok(came)
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use futures::stream;
    use tokio::time::sleep;

    use super::*;

    /// Numbers that come after so many milliseconds each, and nothing after them.
    fn after(spans: &'static [u64]) -> impl Stream<Item = lapin::Result<u64>> + Unpin {
        let coming = stream::iter(spans).then(|span| async move {
            sleep(Duration::from_millis(*span)).await;
            Ok(*span)
        });
        Box::pin(coming.chain(stream::pending()))
    }

    #[tokio::test(start_paused = true)]
    async fn jobs_that_are_there_still_are_waited_for_one_by_one() {
        // Together that takes longer than the wait for one.
        let spans = &[0, 450, 0, 450, 450];
        let came = await_as_many(after(spans), 5, || ready(true)).await.unwrap();
        assert_eq!(came, spans);
    }

    #[tokio::test(start_paused = true)]
    async fn jobs_that_others_took_are_not_waited_for() {
        let start = Instant::now();
        let came = await_as_many(after(&[0, 450]), 2, || ready(false)).await.unwrap();
        assert_eq!((came, start.elapsed()), (vec![0], SOON));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lane_that_says_it_has_jobs_and_hands_out_none_does_not_keep_the_others_for_long() {
        let start = Instant::now();
        let came = await_as_many(after(&[]), 2, || ready(true)).await.unwrap();
        assert!(came.is_empty());
        assert!((LATE..=LATE + SOON).contains(&start.elapsed()), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_is_waited_for_than_was_asked_for() {
        let start = Instant::now();
        let came = await_as_many(after(&[10, 10, 10]), 2, || ready(true)).await.unwrap();
        assert_eq!((came.len(), start.elapsed()), (2, Duration::from_millis(20)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_channel_that_ends_takes_what_came_by_it() {
        let ended = stream::iter([Ok(1)]);
        assert!(await_as_many(ended, 2, || ready(true)).await.is_err());
    }
}
