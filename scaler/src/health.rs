//! Health by gRPC: told to who asks.

use futures::stream::Empty;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_health::server::{HealthReporter, HealthService};

/// Answers `Check` alone. A stream of `Watch` would have no end and no limit, and nothing that asks a
/// scaler needs one: Kubernetes' probes ask with `Check`, and clients that watch do without where they
/// are told `UNIMPLEMENTED`.
pub(crate) struct Checks(HealthService);

impl Checks {
    /// What a reporter has been told.
    pub(crate) fn of(reporter: &HealthReporter) -> HealthServer<Self> {
        HealthServer::new(Self(HealthService::from_health_reporter(reporter.clone())))
    }
}

#[tonic::async_trait]
impl Health for Checks {
    type WatchStream = Empty<Result<HealthCheckResponse, Status>>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        self.0.check(request).await
    }

    async fn watch(
        &self,
        _: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("health is not streamed; ask with Check"))
    }
}
