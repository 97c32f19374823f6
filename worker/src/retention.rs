//! Deletes dead letters that are older than `dead_ttl` of the queue, about once a minute.

use ebb_queue::Retention;
use tokio_util::sync::CancellationToken;

use crate::served::Served;

/// Looks until it is stopped; a step that has begun ends before, or the bodies of what it deletes would
/// stay.
pub(crate) async fn keep(served: Served, stop: CancellationToken) {
    let metrics = &served.shared.metrics;
    let mut retention = Retention::new(&*served.name);
    let mut pause = Retention::first_pause(served.shared.chance());
    while stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
        let look = retention.look(&*served.broker, || stop.is_cancelled()).await;
        metrics.dead_looks.inc();
        metrics.dead_purged.inc_by(look.n_purged);
        if look.has_failed {
            metrics.broker_errors.with_label_values(&["purge_old"]).inc();
        }
        pause = retention.pause();
    }
}
