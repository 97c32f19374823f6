//! Streams that are open, counted while they live.

use prometheus::IntGauge;
use tokio::sync::watch;

use crate::connection::Room;

/// Counts a stream while it lives.
pub(crate) struct OpenStream {
    open: watch::Sender<usize>,
    gauge: IntGauge,
    /// Missing where streams are not counted by connection and client.
    _room: Option<Room>,
}

impl OpenStream {
    pub(crate) fn count(open: &watch::Sender<usize>, gauge: IntGauge, room: Option<Room>) -> Self {
        open.send_modify(|n_streams| *n_streams += 1);
        gauge.inc();
        Self { open: open.clone(), gauge, _room: room }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.open.send_modify(|n_streams| *n_streams -= 1);
        self.gauge.dec();
    }
}
