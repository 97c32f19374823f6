//! The weights from disk, at the start and again whenever they change.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use ebb_telemetry::Condition;
use tokio::sync::watch;
use tracing::{error, info};

use crate::file;
use crate::metrics::{FILE, Metrics};
use crate::weights::Weights;

/// A file of weights is read whole.
const MAX_FILE: u64 = 1 << 20;

/// Reads the file.
///
/// # Errors
/// Names the file, the line and the remedy.
pub(crate) fn load(path: &Path, intake: &str) -> anyhow::Result<Weights> {
    let told = || format!("--weights: {}", path.display());
    let n_bytes = std::fs::metadata(path).context("cannot be read").with_context(told)?.len();
    ensure!(n_bytes <= MAX_FILE, "{}: {n_bytes} bytes are too many", told());
    let text = std::fs::read_to_string(path).context("cannot be read").with_context(told)?;
    let weights = file::parse(&text).with_context(told)?;
    check(&weights, intake).with_context(told)?;
    Ok(weights)
}

/// A job must not come back to where it was taken from.
///
/// # Errors
/// When it would.
pub(crate) fn check(weights: &Weights, intake: &str) -> anyhow::Result<()> {
    let is_circle = weights.queues().any(|queue| queue == intake);
    ensure!(!is_circle, "{intake} is the queue that jobs are taken from; name others");
    Ok(())
}

/// Looks again and again, and tells what has changed.
pub(crate) async fn follow(
    (path, intake): (PathBuf, String),
    every: Duration,
    weights: watch::Sender<Arc<Weights>>,
    metrics: Metrics,
) {
    let now = Arc::clone(&weights.borrow());
    let take = |_: &Arc<Weights>, changed: &Arc<Weights>| {
        info!(weights = %changed, "weights changed");
        weights.send_replace(Arc::clone(changed));
        Ok(())
    };
    let broken = metrics.broken.with_label_values(&[FILE]);
    let tell = |condition: Condition<'_>| match condition {
        Condition::Broken(error) => {
            broken.set(1);
            metrics.reloads.with_label_values(&["failed"]).inc();
            error!(error, "weights are broken; those before them stay");
        }
        Condition::Mended => {
            broken.set(0);
            info!("weights are no longer broken");
        }
    };
    let load = move || load(&path, &intake).map(Arc::new);
    ebb_telemetry::follow(now, every, load, take, tell).await;
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_change_is_taken_and_a_broken_one_is_told_and_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights.toml");
        std::fs::write(&path, "[weights]\na = 1\n").unwrap();
        let sender = watch::Sender::new(Arc::new(load(&path, "jobs").unwrap()));
        let (mut told, metrics) = (sender.subscribe(), Metrics::default());
        let every = Duration::from_secs(5);
        let place = (path.clone(), "jobs".to_owned());
        let task = tokio::spawn(follow(place, every, sender, metrics.clone()));
        let count = |outcome: &str| metrics.reloads.with_label_values(&[outcome]).get();

        for broken in ["[weights]\na = x", "[weights]\njobs = 5"] {
            std::fs::write(&path, broken).unwrap();
            sleep(3 * every).await;
        }
        assert_eq!((count("failed"), told.has_changed().unwrap()), (2, false));
        let is_broken = || metrics.broken.with_label_values(&["file"]).get() == 1;
        assert!(is_broken(), "until the next good one");
        std::fs::write(&path, "[weights]\na = 1\n").unwrap();
        sleep(3 * every).await;
        assert!(!is_broken() && !told.has_changed().unwrap(), "it is as it was before");
        std::fs::write(&path, "[weights]\na = x").unwrap();
        sleep(3 * every).await;
        assert!(is_broken());

        std::fs::write(&path, "[weights]\na = 1\nb = 3\n").unwrap();
        told.changed().await.unwrap();
        assert!((told.borrow().share("b") - 0.75).abs() < 1e-12);
        sleep(every).await;
        assert!(!is_broken());
        task.abort();
    }
}
