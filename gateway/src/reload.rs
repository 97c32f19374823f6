//! The keys from disk, at the start and again whenever they change.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use ebb_telemetry::Condition;
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::keys::Keys;
use crate::metrics::Metrics;
use crate::models::Models;

/// A file is read whole.
const MAX_FILE: u64 = 16 << 20;

/// Reads the file of keys.
///
/// # Errors
/// Names the file, the line and the remedy.
pub(crate) fn load(path: &Path) -> anyhow::Result<Keys> {
    let told = || format!("--keys: {}", path.display());
    Keys::parse(&read(path).with_context(told)?).with_context(told)
}

/// Reads a file of the configuration.
pub(crate) fn read(path: &Path) -> anyhow::Result<String> {
    let n_bytes = std::fs::metadata(path).context("cannot be read")?.len();
    ensure!(n_bytes <= MAX_FILE, "{n_bytes} bytes are too many; use {MAX_FILE} at most");
    std::fs::read_to_string(path).context("cannot be read")
}

/// Tells of models that keys name and there are not: who has such a key may use fewer than was meant.
pub(crate) fn tell_unknown(keys: &Keys, models: &Models) {
    for (key, model) in keys.unknown(|name| models.has(name)) {
        warn!(key, model, "a key may use a model that there is not");
    }
}

/// Looks again and again, and takes what has changed: a key that is gone lets nobody in any more.
pub(crate) async fn follow(
    path: PathBuf,
    every: Duration,
    keys: watch::Sender<Arc<Keys>>,
    models: Models,
    metrics: Metrics,
) {
    let now = Arc::clone(&keys.borrow());
    let take = |_: &Arc<Keys>, changed: &Arc<Keys>| {
        info!(n_keys = changed.len(), "keys changed");
        tell_unknown(changed, &models);
        metrics.reloads.with_label_values(&["ok"]).inc();
        keys.send_replace(Arc::clone(changed));
        Ok(())
    };
    let tell = |condition: Condition<'_>| match condition {
        Condition::Broken(error) => {
            metrics.broken.set(1);
            metrics.reloads.with_label_values(&["failed"]).inc();
            error!(error, "keys are broken; those before them stay");
        }
        Condition::Mended => {
            metrics.broken.set(0);
            info!("keys are no longer broken");
        }
    };
    let load = move || load(&path).map(Arc::new);
    ebb_telemetry::follow(now, every, load, take, tell).await;
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_that_is_added_is_let_in_and_a_broken_file_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        // Of the text `one`.
        let digest = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed";
        std::fs::write(&path, "").unwrap();
        let sender = watch::Sender::new(Arc::new(load(&path).unwrap()));
        let (mut told, metrics) = (sender.subscribe(), Metrics::default());
        let every = Duration::from_secs(5);
        let task =
            tokio::spawn(follow(path.clone(), every, sender, Models::default(), metrics.clone()));
        std::fs::write(&path, "[keys.a]\n").unwrap();
        sleep(3 * every).await;
        assert_eq!((metrics.broken.get(), told.has_changed().unwrap()), (1, false));
        std::fs::write(&path, format!("[keys.a]\nsha256 = \"{digest}\"")).unwrap();
        told.changed().await.unwrap();
        assert!(told.borrow().find("one").is_some());
        sleep(every).await;
        assert_eq!(metrics.broken.get(), 0);
        task.abort();
    }
}
