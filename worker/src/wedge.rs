//! Notices that the device is wedged. Nothing here waits for a broker: one that hangs would hide it.

use std::time::Duration;

use ebb_telemetry::Gate;
use tracing::{error, info};

use crate::board::Board;
use crate::device::Load;

/// What a model that is loaded again may take, as the probes of the deployment give a first start; and a
/// batch for which kernels are compiled and tuned, as in such a start.
const LOAD: Duration = Duration::from_secs(600);

/// From one look to the next at most.
const PERIOD: Duration = Duration::from_secs(1);

/// What is looked at and told.
pub(crate) struct Watch<'a> {
    /// What the device has to do.
    pub(crate) load: &'a Board<Load>,
    /// A batch that takes longer means that the device is wedged.
    pub(crate) stall: Duration,
    /// Liveness: a wedged device wants a restart.
    pub(crate) gate: Gate,
    /// Whether the device is wedged, for who keeps leases and for the stages.
    pub(crate) wedged: &'a Board<bool>,
}

impl Watch<'_> {
    /// Looks until it is dropped.
    pub(crate) async fn run(self) {
        let period = (self.stall / 4).clamp(Duration::from_millis(1), PERIOD);
        loop {
            tokio::time::sleep(period).await;
            let wedge = self.wedge();
            let is_wedged = wedge.is_some();
            if self.wedged.set(is_wedged) != is_wedged {
                self.tell(wedge);
            }
        }
    }

    /// What the device does not get done, and for how long, if it is wedged.
    fn wedge(&self) -> Option<(&'static str, Duration)> {
        let load = self.load.get();
        let runs = load.running.map(|batch| {
            let most = if batch.is_first { self.stall.max(LOAD) } else { self.stall };
            (batch.since, most, "no batch has ended")
        });
        let loads = load.loading.map(|since| {
            (since, self.stall.max(LOAD), "a model is being loaded again and not ready")
        });
        let (_, most, what) =
            [runs, loads].into_iter().flatten().find(|(since, most, _)| since.elapsed() > *most)?;
        Some((what, most))
    }

    fn tell(&self, wedge: Option<(&'static str, Duration)>) {
        if let Some((what, most)) = wedge {
            let reason = format!("{what} for {} s", most.as_secs_f64());
            error!(
                reason,
                "the device makes no progress: the leases of what is with it are left to end"
            );
            self.gate.close(reason);
        } else {
            info!("the device makes progress again");
            self.gate.open();
        }
    }
}
