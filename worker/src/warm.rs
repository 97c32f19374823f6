//! `ebb worker warm`: a device's caches filled before the first worker needs them.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use ebb_model::bert::{Shape, Warmer};
use ebb_model::{ModelKind, recognise};
use serde::Serialize;

use crate::placing::DeviceArgs;

/// What is warmed up.
#[derive(Debug, Clone, clap::Args)]
pub struct WarmArgs {
    /// Model whose kernels are wanted: a directory in the Hugging Face layout
    #[arg(long, value_name = "DIR", env = "EBB_MODEL")]
    pub model: Option<PathBuf>,

    /// What it runs on.
    #[command(flatten)]
    pub device: DeviceArgs,

    /// Largest batch of the workers to come, in texts
    #[arg(long, value_name = "N", env = "EBB_MAX_ITEMS", default_value = "32")]
    pub max_items: NonZeroUsize,

    /// Largest batch of the workers to come, in tokens that it works through: padding counts
    #[arg(long, value_name = "TOKENS", env = "EBB_MAX_COST", default_value = "8192")]
    pub max_cost: NonZeroUsize,
}

/// What was warmed up.
#[derive(Debug, Clone, Serialize)]
pub struct Warmed {
    /// The device, and its type of numbers.
    pub device: String,
    /// Where its kernels are kept; `None` where it has none.
    pub kernel_cache: Option<PathBuf>,
    /// Until the device was there and the weights were on it, in seconds.
    pub load_s: f64,
    /// All that ran, in order.
    pub shapes: Vec<WarmedShape>,
    /// From the start to the end, in seconds.
    pub total_s: f64,
}

/// A shape, and how long it took.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct WarmedShape {
    /// Texts.
    pub rows: usize,
    /// Tokens of each.
    pub tokens: usize,
    /// The first time, compiling and tuning counted, in seconds.
    pub first_s: f64,
    /// The second time, in seconds.
    pub again_s: f64,
}

/// Runs every shape that batches within the limits may have, and tells of each; blocks.
///
/// # Errors
/// When a flag is wrong, the device cannot be had, or a shape does not run.
pub fn warm(args: &WarmArgs, tell: &mut dyn FnMut(&WarmedShape)) -> anyhow::Result<Warmed> {
    let start = Instant::now();
    let missing = "--model is missing; use the directory of the model that the workers will run";
    let dir = args.model.as_deref().context(missing)?;
    let choice = args.device.choice()?;
    check(dir)?;
    let kernel_cache = args.device.keep_kernels()?;
    let warmer = Warmer::load(dir, choice).with_context(|| format!("--model {}", dir.display()))?;
    let load_s = start.elapsed().as_secs_f64();
    let mut shapes = Vec::new();
    for shape in warmer.shapes(args.max_items.get(), args.max_cost.get()) {
        let [first, again] = [time(&warmer, shape)?, time(&warmer, shape)?];
        let warmed = WarmedShape {
            rows: shape.rows,
            tokens: shape.length,
            first_s: first.as_secs_f64(),
            again_s: again.as_secs_f64(),
        };
        tell(&warmed);
        shapes.push(warmed);
    }
    let total_s = start.elapsed().as_secs_f64();
    Ok(Warmed { device: warmer.device().to_owned(), kernel_cache, load_s, shapes, total_s })
}

/// Whether the model is one with shapes.
fn check(dir: &Path) -> anyhow::Result<()> {
    let shown = dir.display();
    ensure!(dir.is_dir(), "--model {shown}: no such directory; fetch it with ebb model pull");
    let kind = recognise(dir).with_context(|| format!("--model {shown}"))?;
    ensure!(
        kind != ModelKind::Sentinel,
        "--model {shown}: a sentinel has one shape, nothing to warm"
    );
    ensure!(
        kind != ModelKind::Generator,
        "--model {shown}: what a generator runs is not kept, nothing to warm"
    );
    Ok(())
}

fn time(warmer: &Warmer, shape: Shape) -> anyhow::Result<Duration> {
    let start = Instant::now();
    let ran = warmer.run(shape);
    ran.with_context(|| format!("{} texts of {} tokens", shape.rows, shape.length))?;
    Ok(start.elapsed())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        warm: WarmArgs,
    }

    fn run(flags: &[&str]) -> Result<(Warmed, usize), String> {
        let cli = Cli::try_parse_from([&["warm"], flags].concat());
        let cli = cli.map_err(|error| error.to_string())?;
        let mut told = 0;
        let warmed = warm(&cli.warm, &mut |_| told += 1);
        warmed.map(|warmed| (warmed, told)).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn every_shape_is_told_of_and_a_processor_keeps_nothing() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/data/tiny-bert");
        let dir = dir.to_str().unwrap();
        // End to end on the processor all shapes have the same kernels.
        for (device, all) in [("cpu", &[][..]), ("cpu-tensors", &[(1, 64), (2, 32)])] {
            let flags = ["--model", dir, "--device", device, "--max-items=2", "--max-cost=64"];
            let (warmed, told) = run(&flags).unwrap();
            assert_eq!(warmed.device, format!("{device} in f32"));
            assert_eq!((warmed.kernel_cache, told), (None, warmed.shapes.len()));
            let shapes: Vec<_> = warmed.shapes.iter().map(|it| (it.rows, it.tokens)).collect();
            assert!(all.iter().all(|one| shapes.contains(one)), "{shapes:?}");
            assert_eq!(shapes.len() == 1, device == "cpu", "{shapes:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_by_its_flag() {
        for (flags, says) in [
            (&[][..], "--model is missing"),
            (&["--model", "/no/such/model"], "--model /no/such/model: no such directory"),
            (&["--model", "/tmp", "--dtype", "bf16"], "--dtype: bf16 on cpu"),
        ] {
            let error = run(flags).expect_err(says);
            assert!(error.contains(says), "{error}");
        }
    }
}
