//! What several tests look at the world through.

use std::time::Duration;

use super::outage::Away;
use super::pods::Pod;
use super::world::{Settings, View};

/// Batches of 8, half a minute to load.
pub(crate) const SETTINGS: Settings = Settings {
    cold_start: Duration::from_secs(30),
    overhead: 0.5,
    slots: 8,
    grace: Duration::from_secs(300),
    max_replicas: 20,
    objective: Duration::from_secs(120),
    cooldown: Duration::from_secs(30),
    window: Duration::from_secs(30),
    outage_length: Duration::ZERO,
    away: Away::Broker,
    fallback_replicas: 4,
    seed: 7,
};

/// Jobs of normal priority that wait, seen at a second, with these pods and as many wanted.
pub(crate) fn view(second: u64, ready: usize, pods: &[Pod]) -> View<'_> {
    View {
        now: Duration::from_secs(second),
        settings: &SETTINGS,
        ready,
        by_priority: [0, ready, 0],
        in_flight: pods.iter().map(Pod::in_flight).sum(),
        oldest: None,
        cost: 0.0,
        pods,
        wanted: pods.len() as u32,
    }
}

/// Pods that are ready from the start.
pub(crate) fn pods(n: usize) -> Vec<Pod> {
    (0..n).map(|number| Pod::start(number, Duration::ZERO, Duration::ZERO)).collect()
}
