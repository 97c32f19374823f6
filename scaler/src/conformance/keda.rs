//! The client that KEDA would be: one connection, one ScaledObject, no answer later than patience.

use std::collections::HashMap;
use std::error::Error;
use std::time::Duration;

use ebb_proto::keda::external_scaler_client::ExternalScalerClient;
use ebb_proto::keda::{
    GetMetricSpecResponse, GetMetricsRequest, IsActiveResponse, MetricSpec, MetricValue,
    ScaledObjectRef,
};
use tokio::time::timeout;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status, Streaming};

use super::Plan;

/// PEM texts for a connection under TLS. As with KEDA the server's certificate must name the host
/// of the address.
#[derive(Clone)]
pub struct Papers {
    /// Who is trusted.
    pub ca: String,
    /// Our certificate and its key.
    pub identity: Option<(String, String)>,
}

impl std::fmt::Debug for Papers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Papers").finish_non_exhaustive()
    }
}

/// Why nothing could be examined.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// What was given is no address, or no papers.
    #[error("{0} is not an address; use HOST:PORT")]
    Address(String),
    /// Nobody answers.
    #[error("nothing answers at {0}: {1}")]
    Unreachable(String, String),
}

/// A connection, and the ScaledObject that is played on it.
#[derive(Clone)]
pub(super) struct Keda {
    endpoint: Endpoint,
    client: ExternalScalerClient<Channel>,
    object: ScaledObjectRef,
    pub(super) patience: Duration,
}

impl Keda {
    pub(super) async fn connect(plan: &Plan) -> Result<Self, ConnectError> {
        let endpoint = endpoint(plan)?;
        let channel = channel(&endpoint, plan.patience).await;
        let channel =
            channel.map_err(|words| ConnectError::Unreachable(plan.address.clone(), words))?;
        let mut metadata: HashMap<_, _> = plan.metadata.clone().into_iter().collect();
        metadata.insert("scalerAddress".to_owned(), plan.address.clone());
        let object = ScaledObjectRef {
            name: plan.name.clone(),
            namespace: plan.namespace.clone(),
            scaler_metadata: metadata,
        };
        let client = ExternalScalerClient::new(channel);
        let keda = Self { endpoint, client, object, patience: plan.patience };
        // A server that wants other papers, or speaks something else, says so at the first call.
        if let Err(status) = keda.specs().await
            && let Some(cause) = status.source()
        {
            return Err(ConnectError::Unreachable(plan.address.clone(), in_words(cause)));
        }
        Ok(keda)
    }

    /// The same on a connection of its own.
    pub(super) async fn again(&self) -> Result<Self, Status> {
        let channel = channel(&self.endpoint, self.patience).await;
        let channel = channel
            .map_err(|words| Status::unavailable(format!("no second connection: {words}")))?;
        Ok(Self { client: ExternalScalerClient::new(channel), ..self.clone() })
    }

    /// The same with other metadata.
    pub(super) fn with(&self, change: impl FnOnce(&mut HashMap<String, String>)) -> Self {
        let mut other = self.clone();
        change(&mut other.object.scaler_metadata);
        other
    }

    pub(super) async fn specs(&self) -> Result<Vec<MetricSpec>, Status> {
        let mut client = self.client.clone();
        let answer = self.within(client.get_metric_spec(self.object.clone())).await?;
        Ok(answer.into_inner().metric_specs)
    }

    pub(super) async fn values(&self, metric: &str) -> Result<Vec<MetricValue>, Status> {
        let mut client = self.client.clone();
        let request = GetMetricsRequest {
            scaled_object_ref: Some(self.object.clone()),
            metric_name: metric.to_owned(),
        };
        Ok(self.within(client.get_metrics(request)).await?.into_inner().metric_values)
    }

    pub(super) async fn active(&self) -> Result<bool, Status> {
        let mut client = self.client.clone();
        Ok(self.within(client.is_active(self.object.clone())).await?.into_inner().result)
    }

    /// Returns when the server has opened the stream, which some do with the first message only.
    pub(super) async fn pushes(&self) -> Result<Streaming<IsActiveResponse>, Status> {
        let mut client = self.client.clone();
        Ok(client.stream_is_active(self.object.clone()).await?.into_inner())
    }

    /// The same for the stream of metrics.
    pub(super) async fn streamed_specs(&self) -> Result<Streaming<GetMetricSpecResponse>, Status> {
        let mut client = self.client.clone();
        Ok(client.stream_metric_spec(self.object.clone()).await?.into_inner())
    }

    async fn within<T>(
        &self,
        answer: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let late = |_| Status::deadline_exceeded(format!("no answer for {:?}", self.patience));
        timeout(self.patience, answer).await.map_err(late)?
    }
}

fn endpoint(plan: &Plan) -> Result<Endpoint, ConnectError> {
    let address = || ConnectError::Address(plan.address.clone());
    let (host, port) = plan.address.rsplit_once(':').ok_or_else(address)?;
    if host.is_empty() || port.parse::<u16>().is_err() {
        return Err(address());
    }
    let scheme = if plan.papers.is_some() { "https" } else { "http" };
    let endpoint = Endpoint::from_shared(format!("{scheme}://{}", plan.address));
    let endpoint = endpoint.map_err(|_| address())?;
    let Some(papers) = &plan.papers else { return Ok(endpoint) };
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&papers.ca));
    if let Some((certificate, key)) = &papers.identity {
        tls = tls.identity(Identity::from_pem(certificate, key));
    }
    let wrong = |error| ConnectError::Unreachable(plan.address.clone(), in_words(&error));
    endpoint.tls_config(tls).map_err(wrong)
}

async fn channel(endpoint: &Endpoint, patience: Duration) -> Result<Channel, String> {
    match timeout(patience, endpoint.connect()).await {
        Ok(connected) => connected.map_err(|error| in_words(&error)),
        Err(_) => Err(format!("no connection within {patience:?}")),
    }
}

/// An error and its causes, each said once: tonic's own words are only `transport error`.
fn in_words(error: &dyn Error) -> String {
    let mut words = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_words = cause.to_string();
        if !words.contains(&cause_words) {
            words.push_str(": ");
            words.push_str(&cause_words);
        }
        next = cause.source();
    }
    words
}

/// A status as it is told: its code and its words.
pub(super) fn told(status: &Status) -> String {
    match status.message() {
        "" => code(status.code()).to_owned(),
        words => format!("{}: {words}", code(status.code())),
    }
}

/// The name of a code as the specification writes it.
pub(super) fn code(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
