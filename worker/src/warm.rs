//! `ebb worker warm`: a device's caches filled before the first worker needs them.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use ebb_model::{DeviceChoice, InferError, LoadError, ModelKind, bert, causal, recognise};
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

    /// Largest batch of the workers to come, in texts; of a generator how many grow at once
    #[arg(long, value_name = "N", env = "EBB_MAX_ITEMS", default_value = "32")]
    pub max_items: NonZeroUsize,

    /// Largest batch of the workers to come, in tokens that it works through: padding counts; of a
    /// generator the longest text with its answer
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
    /// Texts, or pieces of them.
    pub rows: usize,
    /// Tokens of each.
    pub tokens: usize,
    /// Tokens that each of them may see, of a generator more than are read.
    pub seen: usize,
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
    let kind = kind(dir)?;
    let kernel_cache = args.device.keep_kernels()?;
    let warmer = Warmer::load(kind, dir, choice);
    let mut warmer = warmer.with_context(|| format!("--model {}", dir.display()))?;
    let load_s = start.elapsed().as_secs_f64();
    let mut shapes = Vec::new();
    for shape in warmer.shapes(args.max_items.get(), args.max_cost.get()) {
        let max_items = args.max_items.get();
        let [first, again] =
            [time(&mut warmer, shape, max_items)?, time(&mut warmer, shape, max_items)?];
        let Shape { rows, tokens, seen } = shape;
        let (first_s, again_s) = (first.as_secs_f64(), again.as_secs_f64());
        let warmed = WarmedShape { rows, tokens, seen, first_s, again_s };
        tell(&warmed);
        shapes.push(warmed);
    }
    let total_s = start.elapsed().as_secs_f64();
    Ok(Warmed { device: warmer.device().to_owned(), kernel_cache, load_s, shapes, total_s })
}

/// The kind of the model, one with shapes.
fn kind(dir: &Path) -> anyhow::Result<ModelKind> {
    let shown = dir.display();
    ensure!(dir.is_dir(), "--model {shown}: no such directory; fetch it with ebb model pull");
    let kind = recognise(dir).with_context(|| format!("--model {shown}"))?;
    ensure!(
        kind != ModelKind::Sentinel,
        "--model {shown}: a sentinel has one shape, nothing to warm"
    );
    Ok(kind)
}

/// What is run.
enum Warmer {
    Texts(Box<bert::Warmer>),
    Generator(Box<causal::Warmer>),
}

/// How it is run.
#[derive(Clone, Copy)]
struct Shape {
    rows: usize,
    tokens: usize,
    seen: usize,
}

impl Warmer {
    fn load(kind: ModelKind, dir: &Path, device: DeviceChoice) -> Result<Self, LoadError> {
        Ok(match kind {
            ModelKind::Generator => Self::Generator(Box::new(causal::Warmer::load(dir, device)?)),
            _ => Self::Texts(Box::new(bert::Warmer::load(dir, device)?)),
        })
    }

    fn device(&self) -> &str {
        match self {
            Self::Texts(warmer) => warmer.device(),
            Self::Generator(warmer) => warmer.device(),
        }
    }

    fn shapes(&self, max_items: usize, max_cost: usize) -> Vec<Shape> {
        let of_texts = |bert::Shape { rows, length }| Shape { rows, tokens: length, seen: length };
        let of_pieces =
            |causal::GroupShape { rows, tokens, length }| Shape { rows, tokens, seen: length };
        match self {
            Self::Texts(warmer) => {
                warmer.shapes(max_items, max_cost).into_iter().map(of_texts).collect()
            }
            Self::Generator(warmer) => {
                warmer.shapes(max_items, max_cost).into_iter().map(of_pieces).collect()
            }
        }
    }

    fn run(&mut self, shape: Shape, max_items: usize) -> Result<(), InferError> {
        let Shape { rows, tokens, seen } = shape;
        match self {
            Self::Texts(warmer) => warmer.run(bert::Shape { rows, length: tokens }),
            Self::Generator(warmer) => {
                warmer.run(causal::GroupShape { rows, tokens, length: seen }, max_items)
            }
        }
    }
}

fn time(warmer: &mut Warmer, shape: Shape, max_items: usize) -> anyhow::Result<Duration> {
    let start = Instant::now();
    let ran = warmer.run(shape, max_items);
    ran.with_context(|| format!("{} texts of {} tokens", shape.rows, shape.tokens))?;
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
    fn a_generator_runs_what_grows_and_what_is_read() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/data/tiny-qwen3");
        let flags = ["--model", dir.to_str().unwrap(), "--max-items=1", "--max-cost=32"];
        let (warmed, told) = run(&[&flags[..], &["--device", "cpu-tensors"]].concat()).unwrap();
        assert_eq!((warmed.kernel_cache, told), (None, warmed.shapes.len()));
        let is_there = |rows, tokens, seen| {
            warmed.shapes.iter().any(|it| (it.rows, it.tokens, it.seen) == (rows, tokens, seen))
        };
        assert!(is_there(1, 1, 32) && is_there(4, 32, 32), "{:?}", warmed.shapes);
        assert!(warmed.shapes.iter().all(|shape| shape.seen == 32));
        // On the processor all have the same code.
        let (warmed, _) = run(&flags).unwrap();
        assert_eq!((warmed.device.as_str(), warmed.shapes.len()), ("cpu in f32", 0));
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
