//! Whether the gateway is of use: it is as long as some broker answers.
//!
//! It does not flap. One broker of several that is away closes nothing: requests for its models are
//! told to come again, the others go on. And with all of them away readiness ends only when none has
//! answered for a while, since a gateway that is taken out of its Service tells clients nothing.

use std::time::Duration;

use ebb_queue::Queue;
use ebb_telemetry::Gate;
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use crate::metrics::Metrics;
use crate::models::Models;

/// From one look at the brokers to the next.
const LOOK: Duration = Duration::from_secs(5);

/// How long the last answer of a broker counts.
const MAX_AGE: Duration = Duration::from_secs(20);

/// Looks at the brokers for ever, and opens and closes the gate.
pub(crate) async fn keep(models: Models, gate: Gate, metrics: Metrics) {
    let mut answered: Option<Instant> = None;
    loop {
        let opened: Vec<_> = models.all().iter().filter_map(|model| model.opened()).collect();
        let looks = opened.iter().map(|queue| answers(queue));
        let n_up = futures::future::join_all(looks).await.into_iter().filter(|up| *up).count();
        metrics.brokers_up.set(i64::try_from(n_up).unwrap_or(i64::MAX));
        let now = Instant::now();
        if n_up > 0 {
            answered = Some(now);
        }
        if is_ready(answered, now) {
            gate.open();
        } else {
            gate.close("no broker answers");
        }
        // At the start until the first one is open.
        sleep(if answered.is_some() { LOOK } else { LOOK / 20 }).await;
    }
}

async fn answers(queue: &Queue) -> bool {
    match timeout(LOOK, queue.ping()).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => {
            debug!(%error, "a broker does not answer");
            false
        }
        Err(_) => false,
    }
}

fn is_ready(answered: Option<Instant>, now: Instant) -> bool {
    answered.is_some_and(|at| now.saturating_duration_since(at) <= MAX_AGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_that_was_heard_of_lately_is_enough() {
        let now = Instant::now();
        assert!(!is_ready(None, now));
        assert!(is_ready(Some(now), now + MAX_AGE));
        assert!(!is_ready(Some(now), now + MAX_AGE + Duration::from_millis(1)));
    }
}
