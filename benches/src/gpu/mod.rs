//! What a GPU makes of the encoder: is it right, how fast is it, how near to what the card could do,
//! and how long does it take to begin?
//!
//! Three ways, each beside PyTorch where that is there: the model alone, a worker on a queue in
//! memory, and a worker on SQLite. A forward is the model alone: tensors made from ids, the layers,
//! pooling, the vectors read back. Its sides take turns. The best batch of each side counts.

mod checked;
mod cold;
mod made;
mod peaks;
mod peers;
mod told;
mod ways;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ebb_model::bert::{Encoder, Tokenizer, Tokens, Warmer};
use ebb_model::{DeviceChoice, DeviceError, Dtype, Model};
use serde::Serialize;

use crate::apart;
use crate::broker::{Bed, BrokerArgs};
use crate::peers::in_turns;
use crate::process::EbbArgs;
use crate::report::{self, progress};
use crate::vectors::{difference, vectors};
use checked::{Check, check, tolerance};
use cold::{Cold, Start};
use made::{Known, Sizes};
use peers::Peers;
use told::Found;
use ways::Way;

/// The encoder on a GPU: correctness, speed three ways beside PyTorch, share of the card's peak, and
/// cold start
///
/// Fails if vectors are others than those of the processor in f32. Ends with 69 where there is no
/// such device.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    broker: BrokerArgs,

    #[command(flatten)]
    worker: EbbArgs,

    /// Device to measure; cpu and cpu-tensors try the bench itself, with small numbers for the rest
    #[arg(long, env = "EBB_BENCH_DEVICE", hide_env_values = true, value_name = "DEVICE")]
    #[arg(default_value = "cuda:0")]
    device: String,

    /// Numbers to compute with: f32, f16 or bf16 [default: as the worker on this device]
    #[arg(long, env = "EBB_BENCH_DTYPE", hide_env_values = true, value_name = "TYPE")]
    dtype: Option<Dtype>,

    /// Shapes of models that are made with weights of chance
    #[arg(long, value_enum, env = "EBB_BENCH_SHAPES", hide_env_values = true)]
    #[arg(value_delimiter = ',', default_values = ["minilm", "bert-base"])]
    shapes: Vec<Known>,

    /// Directory of an encoder to measure instead
    #[arg(long, env = "EBB_BENCH_MODEL", hide_env_values = true, value_name = "DIR")]
    model: Option<PathBuf>,

    /// Tokens of each text, a row of the table for each
    #[arg(long, env = "EBB_BENCH_TOKENS", hide_env_values = true, value_name = "N,...")]
    #[arg(value_delimiter = ',', default_values = ["16", "32", "128", "256", "512"])]
    tokens: Vec<NonZeroUsize>,

    /// Tokens of a batch to try, as many texts as that is; of each side the best counts
    #[arg(long, env = "EBB_BENCH_BATCH_TOKENS", hide_env_values = true, value_name = "N,...")]
    #[arg(value_delimiter = ',', default_values = ["1024", "16384", "65536"])]
    batch_tokens: Vec<NonZeroUsize>,

    /// Texts of each job that goes through a worker
    #[arg(long, env = "EBB_BENCH_TEXTS", hide_env_values = true, value_name = "N")]
    #[arg(default_value = "32")]
    texts: NonZeroUsize,

    /// Rounds of which the median is taken
    #[arg(long, env = "EBB_BENCH_ROUNDS", hide_env_values = true, value_name = "N")]
    #[arg(default_value_t = 3)]
    rounds: usize,

    /// Seconds that a side runs in each round; a worker runs five times as long
    #[arg(long, env = "EBB_BENCH_SECONDS", hide_env_values = true, value_name = "S")]
    #[arg(default_value_t = 0.5)]
    seconds: f64,

    /// Python with sentence-transformers and torch for the device; what it lacks is a dash
    #[arg(long, env = "EBB_BENCH_PYTHON", hide_env_values = true, value_name = "PATH")]
    #[arg(default_value = "python3")]
    python: PathBuf,

    /// Peak of the card in 10^12 operations a second [default: its data sheet's, where known]
    #[arg(long, env = "EBB_BENCH_PEAK_TFLOPS", hide_env_values = true, value_name = "N")]
    peak_tflops: Option<f64>,

    /// Seed of the weights of made models
    #[arg(long, env = "EBB_BENCH_SEED", hide_env_values = true, value_name = "N")]
    #[arg(default_value_t = 1)]
    seed: u64,
}

/// A length of texts.
#[derive(Debug, Serialize)]
struct Row {
    model: &'static str,
    tokens: usize,
    /// The batch at which the model alone was fastest.
    batch: usize,
    /// Sentences a second.
    kernels: f64,
    pipeline: f64,
    queue: f64,
    /// Through the queue with a single text in each job.
    queue_of_one: f64,
    torch_eager: Option<f64>,
    torch_compiled: Option<f64>,
    tokens_per_s: f64,
    /// Of the model alone, in 10^12 operations a second, and over the peak.
    tflops: f64,
    roofline_share: Option<f64>,
    kernels_per_compiled: Option<f64>,
    queue_per_kernels: f64,
}

/// A model to measure.
struct Subject {
    name: &'static str,
    dir: PathBuf,
    sizes: Sizes,
}

/// Runs the bench; fails where a vector is wrong.
pub(crate) async fn run(mut args: Args, json: bool) -> Result<()> {
    // Both outlive what is measured, which nobody drops where a signal ends it.
    let folder = tempfile::Builder::new().prefix("ebb-bench-gpu-").tempdir()?;
    let data = args.broker.lie_in_a_folder()?;
    let (path, runtime) = (folder.path().to_owned(), tokio::runtime::Handle::current());
    // Forwards and peers keep their thread without ever waiting.
    let measured = apart(move || runtime.block_on(measure(&args, &path, json))).await;
    drop((folder, data));
    measured
}

async fn measure(args: &Args, folder: &Path, json: bool) -> Result<()> {
    let choice: DeviceChoice = args.device.parse().map_err(Unfit)?;
    let choice = choice.with_dtype(args.dtype).map_err(Unfit)?;
    choice.start().map_err(Unfit)?;
    ensure!(
        !args.batch_tokens.is_empty() && !args.tokens.is_empty(),
        "no batch or no length is given"
    );
    ensure!(args.rounds > 0, "--rounds is 1 or more");
    let mut found = Found::default();
    let measured = look(args, folder, choice, &mut found).await;
    // What was measured is told, whatever became of the rest.
    if measured.is_ok() || !found.rows.is_empty() {
        found.print(json)?;
    }
    measured?;
    found.checks.iter().try_for_each(Check::judge)
}

async fn look(args: &Args, folder: &Path, choice: DeviceChoice, found: &mut Found) -> Result<()> {
    let ebb = args.worker.find()?;
    let subjects = subjects(args, folder)?;
    let bed = Bed::make(&args.broker).await?;
    for subject in &subjects {
        // First, as this process keeps what it compiles in a place of its own.
        found.colds.extend(cold_starts(args, &ebb, subject, &bed, folder).await?);
        let device = Warmer::load(&subject.dir, choice)?.device().to_owned();
        progress(format_args!("{} on {device}", subject.name));
        found.checks.push(check(subject, choice, &device)?);
        found.device.clone_from(&device);
        let mut bench = Bench::start(args, subject, folder, (choice, device), &bed)?;
        let rows = bench.rows(&mut found.rows).await;
        found.checks.extend(bench.checks());
        found.heard(&bench.peers.said);
        rows?;
        bench.peers.end()?;
    }
    Ok(())
}

/// A device that cannot be measured; the process ends with a number of its own.
#[derive(Debug)]
pub(crate) struct Unfit(DeviceError);

impl std::fmt::Display for Unfit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "--device: {}", self.0)
    }
}

impl std::error::Error for Unfit {}

fn subjects(args: &Args, folder: &Path) -> Result<Vec<Subject>> {
    if let Some(dir) = &args.model {
        let sizes = Sizes::read(dir)?;
        return Ok(vec![Subject { name: "model", dir: dir.clone(), sizes }]);
    }
    let make = |known: &Known| {
        progress(format_args!("making {} with weights of chance", known.name()));
        let dir = made::make(*known, folder, args.seed)?;
        Ok(Subject { name: known.name(), sizes: Sizes::read(&dir)?, dir })
    };
    args.shapes.iter().map(make).collect()
}

async fn cold_starts(
    args: &Args,
    ebb: &Path,
    subject: &Subject,
    bed: &Bed,
    folder: &Path,
) -> Result<Vec<Cold>> {
    let kernels = folder.join(format!("kernels-{}", subject.name));
    let dtype = args.dtype.map(|dtype| dtype.to_string());
    let start = Start {
        ebb,
        model: subject.name,
        dir: &subject.dir,
        device: &args.device,
        dtype: dtype.as_deref(),
        kernels: &kernels,
    };
    let mut colds = Vec::new();
    for caches in ["cold", "warm"] {
        let place = bed.place(&format!("{}-{caches}", subject.name), Duration::from_secs(600))?;
        let log = folder.join(format!("{}-{caches}.log", subject.name));
        progress(format_args!("{}: a start with caches {caches}", subject.name));
        colds.push(start.time(&place, caches, &log).await?);
    }
    Ok(colds)
}

/// A model on its device, beside PyTorch.
struct Bench<'a> {
    args: &'a Args,
    subject: &'a Subject,
    choice: DeviceChoice,
    /// In full, with the type of its numbers.
    device: String,
    peak: Option<f64>,
    encoder: Encoder,
    tokenizer: Tokenizer,
    peers: Peers,
    /// Largest difference of each peer's vectors to ours so far.
    differences: [Option<f32>; 2],
    bed: &'a Bed,
}

impl<'a> Bench<'a> {
    fn start(
        args: &'a Args,
        subject: &'a Subject,
        folder: &Path,
        (choice, device): (DeviceChoice, String),
        bed: &'a Bed,
    ) -> Result<Self> {
        let dtype = device.rsplit(' ').next().unwrap_or_default();
        let peers = Peers::start(&args.python, folder, &subject.dir, (&args.device, dtype));
        let known = dtype.parse().ok().and_then(|dtype| peaks::of(&device, dtype));
        Ok(Self {
            args,
            subject,
            choice,
            peak: args.peak_tflops.or(known),
            encoder: Encoder::load(&subject.dir, choice)?,
            tokenizer: Tokenizer::load(&subject.dir)?,
            device,
            peers,
            differences: [None; 2],
            bed,
        })
    }

    async fn rows(&mut self, rows: &mut Vec<Row>) -> Result<()> {
        for n_tokens in &self.args.tokens {
            rows.push(self.row(n_tokens.get()).await?);
        }
        Ok(())
    }

    /// How far the peers' vectors are from ours. Both are rounded, so that they may be twice as far apart.
    fn checks(&self) -> Vec<Check> {
        let (model, tolerance) = (self.subject.name, 2.0 * tolerance(&self.device));
        let against = ["torch's, eager", "torch's, compiled"].into_iter().zip(self.differences);
        let check = |(against, difference): (_, Option<f32>)| {
            Some(Check { model, against, largest_difference: difference?, tolerance })
        };
        against.filter_map(check).collect()
    }

    async fn row(&mut self, n_tokens: usize) -> Result<Row> {
        let batches = self.args.batch_tokens.iter().map(|tokens| (tokens.get() / n_tokens).max(1));
        let mut batches: Vec<usize> = batches.collect();
        batches.dedup();
        let mut best: [Option<(f64, usize)>; 3] = [None; 3];
        for batch in batches {
            let rates = self.compare(batch, n_tokens)?;
            for (best, rate) in best.iter_mut().zip(rates) {
                let Some(rate) = rate else { continue };
                if best.is_none_or(|(before, _)| rate > before) {
                    *best = Some((rate, batch));
                }
            }
        }
        let [ours, eager, compiled] = best;
        let (kernels, batch) = ours.context("nothing was measured")?;
        let way = Way {
            dir: &self.subject.dir,
            device: self.choice,
            n_tokens,
            batch,
            texts: self.args.texts.get().min(batch),
        };
        let seconds = 5.0 * self.args.seconds;
        let pipeline = way.in_memory(seconds, kernels).await?;
        let place = |way: &str| {
            let name = format!("{}-{n_tokens}-{way}", self.subject.name);
            self.bed.place(&name, Duration::from_secs(60))
        };
        let queue = way.on_sqlite(&place("many")?, seconds, pipeline).await?;
        let of_one = Way { texts: 1, ..way };
        let queue_of_one = of_one.on_sqlite(&place("one")?, seconds, queue).await?;
        let tflops = kernels * self.subject.sizes.flops(n_tokens) / 1e12;
        let (eager, compiled) = (eager.map(|it| it.0), compiled.map(|it| it.0));
        let row = Row {
            model: self.subject.name,
            tokens: n_tokens,
            batch,
            kernels: report::rounded(kernels, 1),
            pipeline: report::rounded(pipeline, 1),
            queue: report::rounded(queue, 1),
            queue_of_one: report::rounded(queue_of_one, 1),
            torch_eager: eager.map(|rate| report::rounded(rate, 1)),
            torch_compiled: compiled.map(|rate| report::rounded(rate, 1)),
            tokens_per_s: report::rounded(kernels * n_tokens as f64, 0),
            tflops: report::rounded(tflops, 3),
            roofline_share: self.peak.map(|peak| report::rounded(tflops / peak, 4)),
            kernels_per_compiled: compiled.map(|rate| report::rounded(kernels / rate, 3)),
            queue_per_kernels: report::rounded(queue / kernels, 3),
        };
        progress(format_args!("{row:?}"));
        Ok(row)
    }

    /// The median rate of each side over rounds in which all take their turn.
    fn compare(&mut self, n_texts: usize, n_tokens: usize) -> Result<[Option<f64>; 3]> {
        let batch = ways::batch(&self.tokenizer, n_texts, n_tokens)?;
        let mut times = [1; 3];
        in_turns(self.args.rounds, |round, side| {
            if round > 0 {
                let took = self.turn(side, &batch, times[side])?;
                return Ok(took.map(|took| (n_texts * times[side]) as f64 / took));
            }
            let mut rate = None;
            // Compiling and tuning may take more than one forward to settle.
            for _warm in 0..3 {
                let Some(took) = self.turn(side, &batch, 1)? else { return Ok(None) };
                times[side] = ((self.args.seconds / took) as usize).max(2);
                rate = Some(n_texts as f64 / took);
            }
            Ok(rate)
        })
    }

    /// Seconds that a side takes for so many forwards; `None` where it cannot.
    fn turn(&mut self, side: usize, batch: &[Vec<Tokens>], times: usize) -> Result<Option<f64>> {
        if side == 0 {
            let start = Instant::now();
            for _ in 0..times {
                std::hint::black_box(self.encoder.infer(batch)?);
            }
            return Ok(Some(start.elapsed().as_secs_f64()));
        }
        let Some(forward) = self.peers.forward(side - 1, batch, times) else { return Ok(None) };
        // They come with a single forward only.
        if times == 1 {
            let theirs = forward.vectors.unwrap_or_default();
            let known = self.differences[side - 1].get_or_insert(0.0);
            *known = known.max(difference(&vectors(&mut self.encoder, batch)?, &theirs));
        }
        Ok(Some(forward.seconds))
    }
}
