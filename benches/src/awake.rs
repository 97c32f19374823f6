//! Processors that never halt.
//!
//! The host of a virtual machine takes a halted processor away, and needs milliseconds to give it
//! back: who measures milliseconds measures that. A kernel booted with `idle=poll` spins instead of
//! halting; here a process for each processor does, which runs only where nothing else wants to.

use std::process::Stdio;

use anyhow::{Context, ensure};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};

/// Keeps them awake until it is dropped.
pub(crate) struct Awake(Vec<Child>);

impl Awake {
    /// On all processors there are.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let n_processors = std::thread::available_parallelism()?.get();
        let here = std::env::current_exe()?;
        let spin = |_| {
            let mut command = Command::new("chrt");
            // SCHED_IDLE: any other thread takes the processor at once.
            command.args(["--idle", "0"]).arg(&here).arg("spin");
            command.stdin(Stdio::piped()).kill_on_drop(true);
            command.spawn().context("--awake: cannot start chrt; install util-linux")
        };
        Ok(Self((0..n_processors).map(spin).collect::<Result<_, _>>()?))
    }

    /// Fails when one of them has ended.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        let is_whole = self.0.iter_mut().all(|child| matches!(child.try_wait(), Ok(None)));
        ensure!(is_whole, "--awake: what spins has ended; does the system allow `chrt --idle`?");
        Ok(())
    }
}

/// Spins until standard input ends.
pub(crate) async fn spin() -> anyhow::Result<()> {
    // The thread ends with the process.
    std::thread::spawn(|| {
        loop {
            std::hint::spin_loop();
        }
    });
    Ok(tokio::io::stdin().read(&mut [0]).await.map(drop)?)
}
