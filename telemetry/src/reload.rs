//! Files that are read again while the process runs.
//!
//! Contents are compared and not times, since Kubernetes swaps symbolic links; what is being written
//! is waited for; what is broken is told once and changes nothing.

use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::sleep;

/// How long what has changed must stay the same: somebody may be writing it, and a part of it may be
/// right as far as it goes.
const WRITING: Duration = Duration::from_millis(250);

/// What is found on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition<'a> {
    /// It is broken, in words, and what was before it stays.
    Broken(&'a str),
    /// It is no longer broken: it was taken, or is what was before.
    Mended,
}

/// Loads again and again, and gives what has changed to `take`, which sees what was before it and may
/// refuse it. An error, of either, goes to `tell` once, until it is another or has gone.
///
/// Never ends. `load` may block.
pub async fn follow<T: PartialEq + Send + 'static>(
    mut now: T,
    every: Duration,
    load: impl Fn() -> anyhow::Result<T> + Clone + Send + 'static,
    mut take: impl FnMut(&T, &T) -> anyhow::Result<()>,
    mut tell: impl FnMut(Condition<'_>),
) {
    let mut last_error: Option<String> = None;
    loop {
        sleep(every).await;
        let taken = match read(&now, load.clone()).await {
            Ok(Read::Changed(after)) => take(&now, &after).map(|()| now = after),
            Ok(Read::Same) => Ok(()),
            Ok(Read::Changing) => continue,
            Err(error) => Err(error),
        };
        let error = taken.err().map(|error| format!("{error:#}"));
        if error != last_error {
            tell(error.as_deref().map_or(Condition::Mended, Condition::Broken));
            last_error = error;
        }
    }
}

/// What was loaded.
enum Read<T> {
    /// What there is now.
    Same,
    /// Something else, and not the same for a moment.
    Changing,
    /// Something else.
    Changed(T),
}

async fn read<T: PartialEq + Send + 'static>(
    now: &T,
    load: impl Fn() -> anyhow::Result<T> + Clone + Send + 'static,
) -> anyhow::Result<Read<T>> {
    let first = spawn_blocking(load.clone()).await??;
    if first == *now {
        return Ok(Read::Same);
    }
    sleep(WRITING).await;
    let second = spawn_blocking(load).await??;
    Ok(if second == first { Read::Changed(second) } else { Read::Changing })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::{Arc, Mutex};

    use anyhow::{anyhow, ensure};
    use tokio_util::task::AbortOnDropHandle;

    use super::*;

    const EVERY: Duration = Duration::from_secs(5);

    /// A file, and what was told of it.
    struct Scene {
        file: Arc<Mutex<Result<u32, &'static str>>>,
        told: Arc<Mutex<Vec<String>>>,
    }

    impl Scene {
        fn new() -> Self {
            Self { file: Arc::new(Mutex::new(Ok(1))), told: Arc::default() }
        }

        fn follow(
            &self,
            load: impl Fn() -> anyhow::Result<u32> + Clone + Send + 'static,
        ) -> AbortOnDropHandle<()> {
            let (take, tell) = (Arc::clone(&self.told), Arc::clone(&self.told));
            let take = move |before: &u32, after: &u32| {
                ensure!(*after < 100, "{after} is too much");
                take.lock().unwrap().push(format!("{before} to {after}"));
                Ok(())
            };
            let tell = move |condition: Condition<'_>| {
                let told = match condition {
                    Condition::Broken(error) => format!("broken: {error}"),
                    Condition::Mended => "mended".to_owned(),
                };
                tell.lock().unwrap().push(told);
            };
            AbortOnDropHandle::new(tokio::spawn(follow(1, EVERY, load, take, tell)))
        }

        /// What is told of a file that holds this for a while.
        async fn told_of(&self, content: Result<u32, &'static str>) -> Vec<String> {
            *self.file.lock().unwrap() = content;
            sleep(4 * EVERY).await;
            std::mem::take(&mut self.told.lock().unwrap())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_is_told_once_and_so_is_what_is_broken() {
        let scene = Scene::new();
        let file = Arc::clone(&scene.file);
        let _follows = scene.follow(move || file.lock().unwrap().map_err(|words| anyhow!(words)));
        assert!(scene.told_of(Ok(1)).await.is_empty());
        assert_eq!(scene.told_of(Ok(2)).await, ["1 to 2"]);
        assert_eq!(scene.told_of(Err("line 3")).await, ["broken: line 3"]);
        assert_eq!(scene.told_of(Err("line 4")).await, ["broken: line 4"]);
        assert_eq!(scene.told_of(Ok(100)).await, ["broken: 100 is too much"]);
        assert_eq!(scene.told_of(Ok(2)).await, ["mended"], "as it was before");
        assert!(scene.told_of(Ok(2)).await.is_empty());
        assert_eq!(scene.told_of(Err("line 4")).await, ["broken: line 4"]);
        assert_eq!(scene.told_of(Ok(3)).await, ["2 to 3", "mended"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_being_written_is_waited_for() {
        let scene = Scene::new();
        let n_lines = Arc::new(AtomicU32::new(2));
        // Each round reads two of them, and after four rounds nothing is added any more.
        let _follows = scene.follow(move || Ok(n_lines.fetch_add(1, Ordering::Relaxed).min(8)));
        assert!(scene.told_of(Ok(1)).await.is_empty());
        assert_eq!(scene.told_of(Ok(1)).await, ["1 to 8"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_broken_is_not_mended_while_it_is_being_written() {
        let scene = Scene::new();
        let n_reads = Arc::new(AtomicU32::new(0));
        let _follows = scene.follow(move || match n_reads.fetch_add(1, Ordering::Relaxed) {
            // The second round reads two that differ.
            read @ 1..=2 => Ok(read + 1),
            _ => Err(anyhow!("line 3")),
        });
        assert_eq!(scene.told_of(Ok(1)).await, ["broken: line 3"]);
    }
}
