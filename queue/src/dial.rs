//! Calls the hosts of a URL, in order, and waits for none that keeps silent.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::time::timeout;

use crate::{Error, ErrorKind, Result};

/// How long a host is waited for before the next one is called as well.
const STAGGER: Duration = Duration::from_millis(500);

/// What the first host that answers well gives; the other calls are dropped. After a failure that is
/// final no more are called, as they would say the same; those that were may still do better.
pub(crate) async fn first<T>(
    calls: Vec<impl Future<Output = Result<T>>>,
    is_final: fn(&Error) -> bool,
) -> Result<T> {
    let mut calls = calls.into_iter().peekable();
    let (mut ringing, mut failures) = (FuturesUnordered::new(), Vec::new());
    let mut last_word = None;
    loop {
        if last_word.is_none() {
            ringing.extend(calls.next());
        }
        let answer = if calls.peek().is_some() || last_word.is_some() {
            match timeout(STAGGER, ringing.next()).await {
                Ok(answer) => answer,
                Err(_) if last_word.is_some() => None,
                Err(_) => continue,
            }
        } else {
            ringing.next().await
        };
        match answer {
            Some(Ok(answer)) => return Ok(answer),
            Some(Err(error)) if is_final(&error) => last_word = last_word.or(Some(error)),
            Some(Err(error)) => failures.push(error),
            None => return Err(last_word.unwrap_or_else(|| all_of(failures))),
        }
    }
}

/// One error for all: each has its host in its words.
fn all_of(mut failures: Vec<Error>) -> Error {
    if failures.len() > 1 {
        let words: Vec<_> = failures.iter().map(in_full).collect();
        return Error::new(ErrorKind::Unavailable, words.join("; "));
    }
    failures.pop().unwrap_or_else(|| Error::new(ErrorKind::Invalid, "the URL names no host"))
}

/// What happened, and what was at the bottom of it.
fn in_full(error: &Error) -> String {
    let first = std::error::Error::source(error);
    match std::iter::successors(first, |cause| cause.source()).last() {
        Some(cause) => format!("{error} ({cause})"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use futures::FutureExt;
    use tokio::time::{Instant, sleep};

    use super::*;

    fn failed(host: &str) -> Error {
        let cause = std::io::Error::other("refused");
        Error::new(ErrorKind::Unavailable, format!("{host} is away")).caused_by(cause)
    }

    #[derive(Clone, Copy)]
    enum Host {
        Good(u64),
        Away,
        Denies,
        Hung,
    }

    async fn call(name: &'static str, host: Host) -> Result<&'static str> {
        match host {
            Host::Good(ms) => sleep(Duration::from_millis(ms)).await,
            Host::Away => return Err(failed(name)),
            Host::Denies => return Err(Error::new(ErrorKind::Denied, format!("{name} denies"))),
            Host::Hung => pending().await,
        }
        Ok(name)
    }

    /// The host that is taken, and after how many milliseconds.
    async fn taken(hosts: &[Host]) -> (Result<&'static str>, u128) {
        let began = Instant::now();
        let calls = ["a", "b", "c"].into_iter().zip(hosts).map(|(name, host)| call(name, *host));
        let answer = first(calls.collect(), |error| error.kind() == ErrorKind::Denied).await;
        (answer, began.elapsed().as_millis())
    }

    #[tokio::test(start_paused = true)]
    async fn hosts_are_called_in_order_and_none_is_waited_for_long() {
        use Host::{Away, Denies, Good, Hung};
        for (hosts, name, ms) in [
            (&[Good(5), Good(0), Good(0)][..], "a", 5),
            (&[Away, Good(5), Good(0)], "b", 5),
            (&[Hung, Good(5), Good(0)], "b", 505),
            (&[Hung, Hung, Good(0)], "c", 1000),
            (&[Good(700), Hung, Away], "a", 700),
            (&[Good(2000)], "a", 2000),
            // One that is late is good all the same.
            (&[Good(700), Denies, Good(0)], "a", 700),
        ] {
            let (answer, took) = taken(hosts).await;
            assert_eq!((answer.unwrap(), took), (name, ms));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_error_of_one_host_is_its_own_and_of_several_tells_them_all() {
        let (answer, _) = taken(&[Host::Away]).await;
        let error = answer.unwrap_err();
        assert_eq!(error.to_string(), "a is away");
        assert!(std::error::Error::source(&error).is_some());
        let (answer, took) = taken(&[Host::Away, Host::Away]).await;
        assert_eq!(answer.unwrap_err().to_string(), "a is away (refused); b is away (refused)");
        assert_eq!(took, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_that_is_final_ends_it() {
        let denied = async { Err::<(), _>(Error::new(ErrorKind::Denied, "no")) };
        let calls = vec![denied.left_future(), pending().right_future()];
        let error = first(calls, |error| error.kind() == ErrorKind::Denied).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied);
    }
}
