//! What gRPC alone costs: a server of KEDA's calls with nothing behind it.

use std::net::SocketAddr;

use ebb_proto::keda::external_scaler_server::{ExternalScaler, ExternalScalerServer};
use ebb_proto::keda::{
    GetMetricSpecResponse, GetMetricsRequest, GetMetricsResponse, IsActiveResponse, MetricSpec,
    MetricValue, ScaledObjectRef,
};
use tokio::net::TcpListener;
use tokio_stream::Empty;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::report::progress;
use crate::scaler::NOWHERE;

/// The jobs that it says are in every queue.
pub(super) const JOBS: f64 = 1.0;
const METRIC: &str = "bare";

struct Bare;

/// Says that there is one job in every queue, until it is ended.
pub(crate) async fn bare() -> anyhow::Result<()> {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    progress(format_args!("serving listen={} http={NOWHERE}", listener.local_addr()?));
    // As a scaler does: answers are small, and none is to wait for the next.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let served = Server::builder().add_service(ExternalScalerServer::new(Bare));
    Ok(served.serve_with_incoming(incoming).await?)
}

#[tonic::async_trait]
impl ExternalScaler for Bare {
    type StreamIsActiveStream = Empty<Result<IsActiveResponse, Status>>;
    type StreamMetricSpecStream = Empty<Result<GetMetricSpecResponse, Status>>;

    async fn is_active(
        &self,
        _: Request<ScaledObjectRef>,
    ) -> Result<Response<IsActiveResponse>, Status> {
        Ok(Response::new(IsActiveResponse { result: true }))
    }

    async fn get_metric_spec(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<GetMetricSpecResponse>, Status> {
        let metadata = request.into_inner().scaler_metadata;
        let target = metadata.get("jobsPerReplica").and_then(|target| target.parse().ok());
        let spec = MetricSpec {
            metric_name: METRIC.to_owned(),
            target_size_float: target.unwrap_or_default(),
            ..MetricSpec::default()
        };
        Ok(Response::new(GetMetricSpecResponse { metric_specs: vec![spec] }))
    }

    async fn get_metrics(
        &self,
        _: Request<GetMetricsRequest>,
    ) -> Result<Response<GetMetricsResponse>, Status> {
        let value = MetricValue {
            metric_name: METRIC.to_owned(),
            metric_value_float: JOBS,
            ..MetricValue::default()
        };
        Ok(Response::new(GetMetricsResponse { metric_values: vec![value] }))
    }

    async fn stream_is_active(
        &self,
        _: Request<ScaledObjectRef>,
    ) -> Result<Response<Self::StreamIsActiveStream>, Status> {
        Err(Status::unimplemented("it is polled"))
    }

    async fn stream_metric_spec(
        &self,
        _: Request<ScaledObjectRef>,
    ) -> Result<Response<Self::StreamMetricSpecStream>, Status> {
        Err(Status::unimplemented("it is polled"))
    }
}
