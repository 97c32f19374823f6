//! Scalers to ask: one in this process, and one as a process of its own.

mod process;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use ebb_proto::keda::external_scaler_client::ExternalScalerClient;
use ebb_proto::keda::{IsActiveResponse, ScaledObjectRef};
use ebb_queue::QueueUrl;
use ebb_scaler::ScalerArgs;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tonic::transport::Channel;

pub(crate) use process::{NOWHERE, ScalerProcess, client};

/// A scaler on a free port of the loopback, with its defaults otherwise.
pub(crate) struct Scaler {
    client: ExternalScalerClient<Channel>,
    stop: CancellationToken,
    served: JoinHandle<anyhow::Result<()>>,
}

impl Scaler {
    /// Starts it and connects to it.
    pub(crate) async fn start(url: &QueueUrl) -> anyhow::Result<Self> {
        let args = ScalerArgs {
            queue: Some(url.clone()),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            http_listen: None,
            // No stream ends in the middle of a sample.
            stream_max_age: Duration::from_secs(86_400),
            ..ScalerArgs::default()
        };
        let scaler = ebb_scaler::Scaler::bind(args).await?;
        let address = scaler.local_addr()?;
        let stop = CancellationToken::new();
        let served = tokio::spawn(scaler.serve(stop.clone()));
        let client = client(&address.to_string()).await?;
        Ok(Self { client, stop, served })
    }

    /// The stream on which it says `true`.
    pub(crate) async fn stream(&self) -> anyhow::Result<Streaming<IsActiveResponse>> {
        let answer = self.client.clone().stream_is_active(object()).await;
        Ok(answer.context("the scaler refused the stream")?.into_inner())
    }

    /// Whether it calls the queue active.
    pub(crate) async fn is_active(&self) -> anyhow::Result<bool> {
        let answer = self.client.clone().is_active(object()).await;
        let answer = answer.context("the scaler does not say whether the queue is active")?;
        Ok(answer.into_inner().result)
    }

    /// Ends it in peace.
    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        drop(self.client);
        self.stop.cancel();
        self.served.await?
    }
}

/// The request that KEDA would make for the scaler's own queue.
fn object() -> ScaledObjectRef {
    ScaledObjectRef {
        name: "bench".to_owned(),
        namespace: "default".to_owned(),
        ..ScaledObjectRef::default()
    }
}
