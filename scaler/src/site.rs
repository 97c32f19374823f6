//! Where queues are opened to be looked at.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ebb_queue::{Backlog, Missing, OpenOptions, QueueUrl, Result, Source, Watchers};

/// Opens what is to be looked at.
#[async_trait]
pub trait Connect: Send + Sync + 'static {
    /// Opens a source on the broker at this address, which names the same queue where it is one.
    async fn connect(&self, url: &QueueUrl, source: &Source) -> Result<Arc<dyn Backlog>>;
}

/// Queues on real brokers.
pub(crate) struct Site {
    /// What to do where a queue is missing there.
    missing: Missing,
    /// Of all the queues in a file.
    watchers: Watchers,
}

impl Site {
    pub(crate) fn new(missing: Missing) -> Self {
        Self { missing, watchers: Watchers::default() }
    }
}

#[async_trait]
impl Connect for Site {
    async fn connect(&self, url: &QueueUrl, source: &Source) -> Result<Arc<dyn Backlog>> {
        let worker = format!("scaler-{}", std::process::id());
        let options = OpenOptions {
            worker,
            missing: self.missing,
            connect_timeout: CONNECT,
            watchers: self.watchers.clone(),
            ..OpenOptions::default()
        };
        match source {
            Source::Queue(_) => Ok(ebb_queue::open(url, options).await?),
            Source::Foreign(foreign) => ebb_queue::look_at(url, foreign, options).await,
        }
    }
}

/// A broker that has not answered by then counts as unavailable.
pub(crate) const ANSWER: Duration = Duration::from_secs(5);

/// The broker's client gives up before that, since it can tell which hosts do not answer.
const CONNECT: Duration = Duration::from_secs(4);

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ebb_queue::{Missing, Source};
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    use super::{Connect, Site};

    #[tokio::test]
    async fn a_broker_that_takes_a_connection_and_never_answers_is_named() {
        let site = Site::new(Missing::Refuse);
        let hung = async |scheme: &str| {
            // The system takes connections for it; nobody reads them.
            let broker = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let host = broker.local_addr().unwrap().to_string();
            let url: ebb_queue::QueueUrl = format!("{scheme}://{host}").parse().unwrap();
            // No hurry: a machine that is busy must not be faster than the client's own limit.
            let source = Source::Queue("jobs".into());
            let connected = site.connect(&url, &source);
            let connected = timeout(Duration::from_secs(30), connected).await.unwrap();
            let Err(error) = connected else { panic!("{url} answers") };
            assert!(error.to_string().contains(&host), "{error}");
        };
        tokio::join!(hung("nats"), hung("amqp"), hung("redis"));
    }
}
