//! Whether the broker is there: told once in the log, and to whoever asks.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tracing::{info, warn};

/// The connection of one handle to its broker.
#[derive(Debug)]
pub struct Link {
    /// Where the broker is, in words for the log.
    broker: String,
    is_down: AtomicBool,
    n_losses: AtomicU64,
    last_error: Mutex<Option<String>>,
}

impl Link {
    /// A connection that stands; `broker` names it in the log and holds no secret.
    pub(crate) fn new(broker: impl Into<String>) -> Self {
        Self {
            broker: broker.into(),
            is_down: AtomicBool::new(false),
            n_losses: AtomicU64::new(0),
            last_error: Mutex::default(),
        }
    }

    /// Whether the broker answered last.
    #[must_use]
    pub fn is_up(&self) -> bool {
        !self.is_down.load(Ordering::Relaxed)
    }

    /// How often the connection was lost since it was opened.
    #[must_use]
    pub fn n_losses(&self) -> u64 {
        self.n_losses.load(Ordering::Relaxed)
    }

    /// Why it was lost last, in words.
    #[must_use]
    pub fn last_error(&self) -> Option<String> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes that the broker is gone; told once until it is back.
    pub(crate) fn lost(&self, error: &dyn std::fmt::Display) {
        let words = error.to_string();
        if !self.is_down.swap(true, Ordering::Relaxed) {
            self.n_losses.fetch_add(1, Ordering::Relaxed);
            warn!(broker = %self.broker, error = %words, "the connection to the broker is lost");
        }
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(words);
    }

    /// Notes that the broker is back.
    pub(crate) fn restored(&self) {
        if self.is_down.swap(false, Ordering::Relaxed) {
            info!(broker = %self.broker, "the connection to the broker is back");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_is_counted_once_until_the_broker_is_back() {
        let link = Link::new("nats host:4222");
        assert_eq!((link.is_up(), link.n_losses(), link.last_error()), (true, 0, None));
        link.lost(&"refused");
        link.lost(&"timed out");
        assert_eq!((link.is_up(), link.n_losses()), (false, 1));
        assert_eq!(link.last_error().as_deref(), Some("timed out"));
        link.restored();
        assert!(link.is_up());
        link.lost(&"refused");
        assert_eq!(link.n_losses(), 2);
    }
}
