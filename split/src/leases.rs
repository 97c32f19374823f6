//! The leases of jobs that have not gone on: extended until they are settled.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ebb_queue::{Delivery, Queue, Receipt, Settled};
use ebb_telemetry::TraceId;
use tracing::warn;

use crate::metrics::Metrics;
use crate::place::trace_id;

/// Receipts per call to the broker.
const CHUNK: usize = 512;

/// What is held at this moment; clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Leases(Arc<Mutex<BTreeMap<Arc<str>, Lease>>>);

#[derive(Debug)]
struct Lease {
    receipt: Receipt,
    /// What log lines about it name.
    trace: Option<TraceId>,
    /// Of its body.
    n_bytes: usize,
}

impl Leases {
    pub(crate) fn hold(&self, delivery: &Delivery) {
        let (receipt, trace) = (delivery.receipt().clone(), trace_id(&delivery.job));
        let n_bytes = delivery.job.body.len();
        self.lock().insert(Arc::clone(&receipt.token), Lease { receipt, trace, n_bytes });
    }

    /// Whether the broker has given the job to nobody else, as far as is known.
    pub(crate) fn holds(&self, receipt: &Receipt) -> bool {
        self.lock().contains_key(&receipt.token)
    }

    pub(crate) fn let_go(&self, receipt: &Receipt) {
        self.lock().remove(&receipt.token);
    }

    pub(crate) fn n_held(&self) -> usize {
        self.lock().len()
    }

    /// Bytes of the bodies of all of them.
    pub(crate) fn n_bytes(&self) -> usize {
        self.lock().values().map(|lease| lease.n_bytes).sum()
    }

    /// Extends until it is dropped.
    pub(crate) async fn keep(self, queue: Queue, metrics: Metrics) {
        // Early enough for two more tries.
        let period = (queue.lease() / 3).max(Duration::from_millis(1));
        loop {
            tokio::time::sleep(period).await;
            let receipts: Vec<Receipt> =
                self.lock().values().map(|lease| lease.receipt.clone()).collect();
            for chunk in receipts.chunks(CHUNK) {
                match queue.extend(chunk).await {
                    Ok(answers) => self.note(chunk, &answers, &metrics),
                    Err(error) => {
                        metrics.broker_errors.with_label_values(&["extend"]).inc();
                        warn!(%error, "leases were not extended");
                    }
                }
            }
        }
    }

    fn note(&self, receipts: &[Receipt], answers: &[Settled], metrics: &Metrics) {
        for (receipt, answer) in receipts.iter().zip(answers) {
            // What was settled in the meantime was not lost.
            let lost = (*answer != Settled::Held).then(|| self.lock().remove(&receipt.token));
            if let Some(lease) = lost.flatten().filter(|_| *answer == Settled::Lost) {
                metrics.leases_lost.inc();
                warn!(job.id = %receipt.job, trace_id = lease.trace.map(display), "lease lost");
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Lease>> {
        // Every change to the map is one call: it is whole whatever its holder was doing.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
