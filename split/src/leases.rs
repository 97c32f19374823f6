//! The leases of jobs that have not gone on: extended until they are settled.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ebb_queue::{Queue, Receipt, Settled};
use tracing::warn;

use crate::metrics::Metrics;

/// Receipts per call to the broker.
const CHUNK: usize = 512;

/// What is held at this moment; clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Leases(Arc<Mutex<BTreeMap<Arc<str>, Receipt>>>);

impl Leases {
    pub(crate) fn hold(&self, receipt: &Receipt) {
        self.lock().insert(Arc::clone(&receipt.token), receipt.clone());
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

    /// Extends until it is dropped.
    pub(crate) async fn keep(self, queue: Queue, metrics: Metrics) {
        // Early enough for two more tries.
        let period = (queue.lease() / 3).max(Duration::from_millis(1));
        loop {
            tokio::time::sleep(period).await;
            let receipts: Vec<Receipt> = self.lock().values().cloned().collect();
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
            if *answer == Settled::Lost && self.lock().remove(&receipt.token).is_some() {
                metrics.leases_lost.inc();
                warn!(job.id = %receipt.job, "lease lost");
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Receipt>> {
        // Every change to the map is one call: it is whole whatever its holder was doing.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
