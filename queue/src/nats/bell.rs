//! Tells that something was published, without taking anything.

use std::time::Duration;

use async_nats::{Client, Subscriber};
use futures::StreamExt;
use futures::stream::{SelectAll, select_all};

use crate::{Error, ErrorKind, Result};

/// A subscription that rings once: it costs its server nothing more once it has rung.
#[derive(Debug)]
pub(super) struct Bell(SelectAll<Subscriber>);

impl Bell {
    /// Listens from now on, as far as this connection's later requests are concerned.
    pub(super) async fn arm(client: &Client, subjects: &[String]) -> Result<Self> {
        let silent = |error: &dyn std::fmt::Display| {
            Error::new(ErrorKind::Unavailable, format!("cannot subscribe: {error}"))
        };
        let mut subscribers = Vec::new();
        for subject in subjects {
            let subscriber = client.subscribe(subject.clone()).await;
            let mut subscriber = subscriber.map_err(|error| silent(&error))?;
            subscriber.unsubscribe_after(1).await.map_err(|error| silent(&error))?;
            subscribers.push(subscriber);
        }
        Ok(Self(select_all(subscribers)))
    }

    /// Waits until it rings; never where the connection is gone for good.
    pub(super) async fn rings(&mut self) {
        if self.0.next().await.is_none() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether it rings within this time.
    pub(super) async fn rings_within(&mut self, wait: Duration) -> bool {
        tokio::time::timeout(wait, self.rings()).await.is_ok()
    }
}
