//! How to wait for a database that somebody else is writing to.
//!
//! SQLite lets one connection write at a time, and whoever asks at the right moment is next. Its own
//! handler pauses longer and longer, so that newcomers win against those who wait; ours
//! asks every fraction of a millisecond, and each has the same chance.

use std::time::Duration;

use tokio::time::Instant;

/// How long anything waits for the database before it gives up.
const PATIENCE: Duration = Duration::from_secs(10);

/// The pause between two tries, before jitter. A commit takes as long.
const PAUSE: Duration = Duration::from_micros(300);

/// The pause once it is clear that the holder takes its time: it may be stopped, or not be ours.
const LONG_PAUSE: Duration = Duration::from_millis(3);

/// After how long that is clear.
const LONG: Duration = Duration::from_secs(2);

/// The busy handler of every connection.
pub(super) fn patience() -> impl FnMut(i32) -> bool + Send + 'static {
    let mut since = Instant::now();
    move |tries| {
        if tries == 0 {
            since = Instant::now();
        }
        let waited = since.elapsed();
        pause(if waited < LONG { PAUSE } else { LONG_PAUSE });
        waited < PATIENCE
    }
}

/// Sleeps for about this long, give or take a half, so that waiters do not march in step.
#[allow(clippy::disallowed_methods, reason = "runs on threads of its own, never on tokio's")]
pub(super) fn pause(length: Duration) {
    std::thread::sleep(length.mul_f64(rand::random_range(0.5..1.5)));
}
