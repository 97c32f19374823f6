//! Calls of the bench itself, which outlive an outage: that is what a run is about.

use std::future::Future;
use std::time::Duration;

use anyhow::Context;
use ebb_queue::ErrorKind;
use tokio::time::{sleep, timeout};

use crate::report::progress;

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(100);
/// A call without an answer is made again; far longer than a broker's own limits.
const LIMIT: Duration = Duration::from_secs(30);

/// Asks until the broker answers, or refuses for a reason that no waiting heals.
pub(super) async fn patiently<T, F>(ask: impl Fn() -> F) -> anyhow::Result<T>
where
    F: Future<Output = ebb_queue::Result<T>>,
{
    loop {
        match timeout(LIMIT, ask()).await {
            Ok(Err(error)) if is_passing(error.kind()) => {}
            Ok(answer) => return answer.context("the broker refused"),
            Err(_) => progress(format_args!("a call got no answer in {} s", LIMIT.as_secs())),
        }
        sleep(PAUSE).await;
    }
}

fn is_passing(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Unavailable | ErrorKind::Full)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use ebb_queue::Error;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_outage_is_waited_out_a_silent_one_too_and_a_refusal_is_not() {
        let n_calls = Cell::new(0);
        let answer = patiently(|| async {
            n_calls.set(n_calls.get() + 1);
            match n_calls.get() {
                1 => Err(Error::new(ErrorKind::Unavailable, "gone")),
                2 => Err(Error::new(ErrorKind::Full, "full")),
                3 => std::future::pending().await,
                n => Ok(n),
            }
        });
        assert_eq!(answer.await.unwrap(), 4);

        let refused = patiently(|| async {
            ebb_queue::Result::<()>::Err(Error::new(ErrorKind::Invalid, "no such thing"))
        });
        assert!(refused.await.is_err());
    }
}
