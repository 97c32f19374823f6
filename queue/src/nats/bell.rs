//! Tells that something was published, without taking anything.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, Subscriber};
use futures::StreamExt;
use futures::stream::{BoxStream, SelectAll, select_all};
use tokio::time::{Instant, sleep, timeout};

use crate::{Error, ErrorKind, Link, Result};

/// What is heard within this time is told as one.
pub(super) const HUSH: Duration = Duration::from_millis(5);

/// So often a listener looks whether the connection was lost meanwhile.
const HEARTBEAT: Duration = Duration::from_millis(500);

/// A server that waits for the disk tells subscribers before the stream has the job: whoever looks
/// at once may see nothing, so it is told again after each of these.
const ECHOES: [Duration; 3] =
    [Duration::from_millis(15), Duration::from_millis(60), Duration::from_millis(240)];

/// What rings sooner than this after it was armed is one of many.
const SOON: Duration = Duration::from_secs(1);

/// A subscription that rings once: it costs its server nothing more once it has rung.
#[derive(Debug)]
pub(super) struct Bell {
    rung: SelectAll<Subscriber>,
    armed: Instant,
}

impl Bell {
    /// Listens from now on, as far as this connection's later requests are concerned.
    pub(super) async fn arm(client: &Client, subjects: &[String]) -> Result<Self> {
        let silent = |error: &dyn std::fmt::Display| {
            Error::new(ErrorKind::Unavailable, format!("cannot subscribe: {error}"))
        };
        let (mut subscribers, armed) = (Vec::new(), Instant::now());
        for subject in subjects {
            let subscriber = client.subscribe(subject.clone()).await;
            let mut subscriber = subscriber.map_err(|error| silent(&error))?;
            subscriber.unsubscribe_after(1).await.map_err(|error| silent(&error))?;
            subscribers.push(subscriber);
        }
        Ok(Self { rung: select_all(subscribers), armed })
    }

    /// Waits until it rings; never where the connection is gone for good.
    pub(super) async fn rings(&mut self) {
        if self.rung.next().await.is_none() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether it rings within this time.
    pub(super) async fn rings_within(&mut self, wait: Duration) -> bool {
        timeout(wait, self.rings()).await.is_ok()
    }
}

/// Tells of arrivals for ever, arming the bell anew by `listen`. What rings again and again is told
/// ever less often, down to once in `longest`: each ring costs a message of whoever publishes. A bell
/// that was `refused` since then never rings: then, and while none can be armed, it is told without
/// cause every now and then.
pub(super) fn told<F>(
    first: Bell,
    link: Arc<Link>,
    longest: Duration,
    refused: impl Fn(Instant) -> bool + Send + 'static,
    listen: impl Fn() -> F + Send + 'static,
) -> BoxStream<'static, ()>
where
    F: Future<Output = Result<Bell>> + Send,
{
    let told = async_stream::stream! {
        let (mut bell, mut n_losses) = (first, link.n_losses());
        let mut hush = HUSH;
        let mut echoes = [].iter();
        loop {
            let echo = echoes.next();
            let is_heard = bell.rings_within(*echo.unwrap_or(&HEARTBEAT)).await;
            if !is_heard && echo.is_some() {
                yield ();
                continue;
            }
            let is_lost = link.n_losses() != n_losses && link.is_up();
            if !is_heard && !is_lost && !refused(bell.armed) {
                continue;
            }
            yield ();
            hush = if bell.armed.elapsed() < SOON { (hush * 2).min(longest) } else { HUSH };
            sleep(hush).await;
            n_losses = link.n_losses();
            // Until there is somebody who answers: a cluster may be about to elect a leader.
            bell = loop {
                match listen().await {
                    Ok(again) => break again,
                    Err(error) => tracing::debug!(%error, "not heard"),
                }
                sleep(HEARTBEAT).await;
                // It may be so for good.
                yield ();
            };
            // What came while nobody listened, and during an outage.
            yield ();
            echoes = ECHOES.iter();
        }
    };
    told.boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_may_listen_no_more_is_told_now_and_then() {
        let link = Arc::new(Link::new("nats".to_owned()));
        let bell = Bell { rung: select_all(Vec::new()), armed: Instant::now() };
        let listen = || async { Err(Error::new(ErrorKind::Denied, "not any more")) };
        let mut told = told(bell, link, HUSH, |_| true, listen);
        for _ in 0..5 {
            timeout(SOON, told.next()).await.expect("it is told").unwrap();
        }
    }
}
