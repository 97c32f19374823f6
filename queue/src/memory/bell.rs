//! Tells any number of listeners that there is news, in the order in which they began to wait.
//!
//! tokio's `watch` wakes its receivers in an order of its own choosing, and a simulation that does
//! not repeat itself is worth little.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// What is rung.
#[derive(Debug, Clone, Default)]
pub(super) struct Bell(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    n_rung: AtomicU64,
    waiting: Notify,
}

impl Bell {
    pub(super) fn ring(&self) {
        self.0.n_rung.fetch_add(1, Ordering::SeqCst);
        self.0.waiting.notify_waiters();
    }

    /// Hears all that is rung from now on.
    pub(super) fn listen(&self) -> Ear {
        Ear { heard: self.0.n_rung.load(Ordering::SeqCst), bell: self.clone() }
    }
}

/// Who listens.
#[derive(Debug)]
pub(super) struct Ear {
    bell: Bell,
    heard: u64,
}

impl Ear {
    /// Waits until it was rung since the last time this was answered; several times are one.
    pub(super) async fn hear(&mut self) {
        loop {
            // Armed before the look, so that nothing is missed in between.
            let rung = self.bell.0.waiting.notified();
            let n_rung = self.bell.0.n_rung.load(Ordering::SeqCst);
            if n_rung != self.heard {
                self.heard = n_rung;
                return;
            }
            rung.await;
        }
    }
}
