//! How fast do answers grow, and prompts are read, beside transformers on torch?
//!
//! On the processor, or on another device that both sides have. One run, one machine, the same weights,
//! prompts and number of threads; the sides take turns, and each takes the likeliest token. Cutting
//! texts into tokens is left out on both sides. First so many sequences at once, all as long as each
//! other; then answers of unlike lengths, in which a sequence that has ended gives its place to the next
//! here, while `generate` answers batch after batch, each until its longest answer is whole. In both
//! each prompt is read whole. Then as many prompts as at once at most, with one token each. Last, with
//! `--shared`, prompts that begin alike, with and without what they have in common kept, here alone.

mod made;
mod shared;

use std::num::{NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use ebb_model::causal::{Generator, Sampling, Sequence};
use ebb_model::{DeviceChoice, Dtype, Model};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::peers::{Peers, Script, in_turns, rest, words};
use crate::report::{self, Table, dash};
pub(crate) use made::Shape;
use made::vocabulary;

const PEERS: [&str; 2] = ["f32", "bf16"];
const SCRIPT: Script = Script::python(include_str!("../../generate_peers.py"), PEERS);

/// How fast answers grow and prompts are read, beside transformers on torch on the same device
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Device of both sides: cpu, cuda or cuda:N; with cpu-tensors ours runs on the processor, slowly,
    /// what a GPU would run, to try that
    #[arg(long, env = "EBB_BENCH_DEVICE", hide_env_values = true, value_name = "DEVICE")]
    #[arg(default_value = "cpu")]
    device: String,
    /// Numbers that ours computes with: f32, f16 or bf16 [default: as the worker on this device]
    #[arg(long, env = "EBB_BENCH_DTYPE", hide_env_values = true, value_name = "TYPE")]
    dtype: Option<Dtype>,
    /// Python with torch and transformers; what it lacks is a dash
    #[arg(
        long,
        env = "EBB_BENCH_PYTHON",
        hide_env_values = true,
        value_name = "PATH",
        default_value = "python3"
    )]
    python: PathBuf,
    /// Shape of a model that is made of chance
    #[arg(long, env = "EBB_BENCH_SHAPE", hide_env_values = true, value_name = "SHAPE")]
    #[arg(default_value = "smollm2-135m", conflicts_with = "model")]
    shape: Shape,
    /// Directory of a decoder, in place of one that is made
    #[arg(long, env = "EBB_BENCH_MODEL", hide_env_values = true, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Threads for each side [default: all processors]
    #[arg(long, env = "EBB_BENCH_THREADS", hide_env_values = true, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Sequences at once, one row each [default: 1,4,16, and 1,8,32,64 on a GPU]
    #[arg(long, env = "EBB_BENCH_SEQUENCES", hide_env_values = true, value_name = "N,...")]
    #[arg(value_delimiter = ',')]
    sequences: Vec<NonZeroUsize>,
    /// Tokens of each prompt
    #[arg(long, env = "EBB_BENCH_PROMPT", hide_env_values = true, value_name = "TOKENS")]
    #[arg(default_value_t = NonZeroUsize::new(64).expect("more than none"))]
    prompt: NonZeroUsize,
    /// Tokens of each answer; of unlike ones the mean
    #[arg(long, env = "EBB_BENCH_NEW", hide_env_values = true, value_name = "TOKENS")]
    #[arg(default_value_t = NonZeroUsize::new(64).expect("more than none"))]
    new: NonZeroUsize,
    /// Bytes of keys and values of ours
    #[arg(long, env = "EBB_BENCH_KV_MEMORY", hide_env_values = true, value_name = "BYTES")]
    #[arg(default_value_t = NonZeroU64::new(1 << 30).expect("more than none"))]
    kv_memory: NonZeroU64,
    /// Tokens that prompts have in common, each with those of --prompt behind them; 0 for no such row
    #[arg(long, env = "EBB_BENCH_SHARED", hide_env_values = true, value_name = "TOKENS")]
    #[arg(default_value_t = 0)]
    shared: usize,
    /// Rounds of which the median is taken
    #[arg(long, env = "EBB_BENCH_ROUNDS", hide_env_values = true, value_name = "N")]
    #[arg(default_value_t = NonZeroUsize::new(3).expect("three"))]
    rounds: NonZeroUsize,
    /// Where weights, prompts and lengths come from
    #[arg(
        long,
        env = "EBB_BENCH_SEED",
        hide_env_values = true,
        value_name = "N",
        default_value_t = 1
    )]
    seed: u64,
}

/// What is answered in one go.
struct Load {
    name: String,
    prompts: Vec<Vec<u32>>,
    /// Tokens of each answer.
    new: Vec<usize>,
    /// Sequences at once.
    at_once: usize,
    /// Whether the tokens of the prompts count, and not those of the answers.
    reads: bool,
}

/// Tokens per second: ours, then each peer's.
struct Row {
    load: Load,
    rates: [Option<f64>; 3],
    /// Share of our tokens that the peer in f32 chose as well, up to the first that differs.
    agreed: Option<f64>,
}

/// What one side made of a load.
#[derive(Deserialize)]
struct Made {
    seconds: f64,
    tokens: Vec<Vec<u32>>,
}

/// Runs the comparison and prints it; a model that is made, and what peers write, lie in `folder`.
pub(crate) fn run(args: &Args, folder: &Path, json: bool) -> Result<()> {
    let threads = match args.threads {
        Some(threads) => threads,
        None => std::thread::available_parallelism().context("how many processors")?,
    };
    ebb_model::use_threads(threads)?;
    let dir = match &args.model {
        Some(dir) => dir.clone(),
        None => made::make(args.shape, folder, args.seed)?,
    };
    let choice = args.device.parse::<DeviceChoice>()?.with_dtype(args.dtype)?;
    // What the rounds repeat would be read once alone.
    let mut generator =
        Generator::load(&dir, choice)?.with_cache_bytes(args.kv_memory.get()).with_prefixes(false);
    generator.warm_up()?;
    generator = shared::check(generator, args)?;
    let torch = if choice.keeps_kernels() { choice.to_string() } else { "cpu".to_owned() };
    let ask = json!({"model": dir, "threads": threads, "device": torch});
    let mut peers = Peers::load(&args.python, &SCRIPT, folder, &ask);
    let mut rows = Vec::new();
    for load in loads(args, sequences(args, choice), vocabulary(&dir)?) {
        report::progress(format_args!("{} …", load.name));
        rows.push(compare(&mut generator, &mut peers, load, args.rounds.get())?);
    }
    let said = peers.said.clone();
    peers.end()?;
    let device = generator.device().to_owned();
    let mut told = object(&rows, threads, (&device, &said));
    let shared = match args.shared {
        0 => Ok(None),
        _ => {
            let most = sequences(args, choice).into_iter().max().unwrap_or(1);
            shared::compare(generator, args, most, vocabulary(&dir)?).map(Some)
        }
    };
    // The rows are told whatever became of it.
    told["shared"] = json!(shared.as_ref().ok());
    report::print(json, &table(&rows), &told)?;
    tell(threads, &device, &said);
    if let Some(shared) = shared? {
        report::progress(shared);
    }
    // Rounded to halves, random weights answer something else early on.
    check(&rows, device.ends_with(" in f32"))
}

/// How many at once: as told, or as suits the device.
fn sequences(args: &Args, device: DeviceChoice) -> Vec<usize> {
    if !args.sequences.is_empty() {
        return args.sequences.iter().map(|n| n.get()).collect();
    }
    if device.keeps_kernels() { vec![1, 8, 32, 64] } else { vec![1, 4, 16] }
}

/// Loads of like answers, then one of unlike ones at as many sequences at once, and one that reads.
fn loads(args: &Args, sequences: Vec<usize>, vocabulary: u32) -> Vec<Load> {
    let mut dice = SmallRng::seed_from_u64(args.seed);
    let mut prompts = |n: usize| -> Vec<Vec<u32>> {
        let tokens = args.prompt.get();
        // The first ids are special ones in most vocabularies.
        let mut prompt = || (0..tokens).map(|_| dice.random_range(64..vocabulary)).collect();
        (0..n).map(|_| prompt()).collect()
    };
    let mean = args.new.get();
    let mut loads: Vec<Load> = Vec::new();
    let mut most = 1;
    for n in sequences {
        most = most.max(n);
        let (name, new) = (format!("{n} at once"), vec![mean; n]);
        loads.push(Load { name, prompts: prompts(n), new, at_once: n, reads: false });
    }
    let n_jobs = 4 * most;
    let to_read = prompts(most);
    let prompts = prompts(n_jobs);
    // As answers are: most are short, some are very long.
    let length = |dice: &mut SmallRng| {
        let exponential = -(1.0 - dice.random_range(0.0..1.0_f64)).ln() * mean as f64;
        (exponential.round() as usize).clamp(1, 4 * mean)
    };
    let new = (0..n_jobs).map(|_| length(&mut dice)).collect();
    let name = format!("{n_jobs} of unlike lengths, {most} at once");
    loads.push(Load { name, prompts, new, at_once: most, reads: false });
    let (name, new) = (format!("{most} prompts read"), vec![1; most]);
    loads.push(Load { name, prompts: to_read, new, at_once: most, reads: true });
    loads
}

/// The median rate of each side over rounds in which all take their turn, after one that is not
/// counted.
fn compare(generator: &mut Generator, peers: &mut Peers, load: Load, rounds: usize) -> Result<Row> {
    let n_tokens = load.n_tokens() as f64;
    let mut tokens: [Option<Vec<Vec<u32>>>; 3] = Default::default();
    let rates = in_turns(rounds, |round, side| {
        if side > 0 && !peers.is_here(side - 1) {
            return Ok(None);
        }
        rest();
        let made = match side {
            0 => Some(generate(generator, &load, round as u64)?),
            _ => ask(peers, side - 1, &load),
        };
        Ok(made.map(|made| {
            tokens[side] = Some(made.tokens);
            n_tokens / made.seconds
        }))
    })?;
    let agreed = match &tokens {
        [Some(ours), Some(theirs), _] => Some(agreement(ours, theirs)),
        _ => None,
    };
    Ok(Row { load, rates, agreed })
}

/// Answers a load here: whoever has ended gives its place to the next.
fn generate(generator: &mut Generator, load: &Load, round: u64) -> Result<Made> {
    let n_jobs = load.prompts.len();
    let sequence = |job: usize| Sequence {
        key: round * n_jobs as u64 + job as u64,
        tokens: load.prompts[job].clone(),
        n_prompt: load.prompts[job].len(),
        max_new: load.new[job],
        ends: Arc::from([]),
        sampling: Sampling::default(),
        life: Arc::default(),
    };
    let mut tokens = vec![Vec::new(); n_jobs];
    let start = Instant::now();
    let mut next = load.at_once.min(n_jobs);
    let mut running: Vec<usize> = (0..next).collect();
    let mut batch: Vec<Sequence> = running.iter().map(|job| sequence(*job)).collect();
    while !batch.is_empty() {
        let turns = generator.infer(&batch)?;
        let mut left = (Vec::new(), Vec::new());
        for ((job, mut grown), turn) in running.into_iter().zip(batch).zip(turns) {
            let turn = turn?;
            grown.tokens.extend(&turn.tokens);
            if turn.ended.is_none() {
                left.0.push(job);
                left.1.push(grown);
                continue;
            }
            tokens[job] = grown.tokens.split_off(grown.n_prompt);
            if next < n_jobs {
                left.0.push(next);
                left.1.push(sequence(next));
                next += 1;
            }
        }
        (running, batch) = left;
    }
    Ok(Made { seconds: start.elapsed().as_secs_f64(), tokens })
}

/// Has a peer answer a load, batch after batch; `None` where it cannot.
fn ask(peers: &mut Peers, peer: usize, load: &Load) -> Option<Made> {
    let mut made = Made { seconds: 0.0, tokens: Vec::new() };
    for (prompts, new) in load.prompts.chunks(load.at_once).zip(load.new.chunks(load.at_once)) {
        let answer: Made = peers.ask(peer, json!({"prompts": prompts, "new": new}))?;
        made.seconds += answer.seconds;
        made.tokens.extend(answer.tokens);
    }
    Some(made)
}

/// Tokens up to the first that differs, of all: behind it the two answer something else.
fn agreement(ours: &[Vec<u32>], theirs: &[Vec<u32>]) -> f64 {
    let same = |(ours, theirs): (&Vec<u32>, &Vec<u32>)| {
        ours.iter().zip(theirs).take_while(|(our, their)| our == their).count()
    };
    let agreed: usize = ours.iter().zip(theirs).map(same).sum();
    agreed as f64 / ours.iter().map(Vec::len).sum::<usize>().max(1) as f64
}

impl Load {
    /// Tokens that count.
    fn n_tokens(&self) -> usize {
        match self.reads {
            true => self.prompts.iter().map(Vec::len).sum(),
            false => self.new.iter().sum(),
        }
    }
}

fn object(rows: &[Row], threads: NonZeroUsize, (device, said): (&str, &[Value; 2])) -> Value {
    let rate = |rate: Option<f64>| rate.map(|it| report::rounded(it, 2));
    let rows: Vec<Value> = rows
        .iter()
        .map(|row| {
            json!({
                "load": row.load.name,
                "jobs": row.load.prompts.len(),
                "at_once": row.load.at_once,
                "counts": if row.load.reads { "prompts" } else { "answers" },
                "tokens": row.load.n_tokens(),
                "ebb": rate(row.rates[0]),
                "torch_f32": rate(row.rates[1]),
                "torch_bf16": rate(row.rates[2]),
                "ratio": row.ratio().map(|it| report::rounded(it, 3)),
                "agreed": row.agreed.map(|it| report::rounded(it, 4)),
            })
        })
        .collect();
    json!({
        "bench": "generate",
        "unit": "tokens/s",
        "device": device,
        "threads": threads,
        "rows": rows,
        "versions": { "ebb": env!("CARGO_PKG_VERSION"), "torch": said[0], "torch_bf16": said[1] },
    })
}

impl Row {
    /// Ours over the faster of the peers.
    fn ratio(&self) -> Option<f64> {
        let best = self.rates[1..].iter().flatten().copied().reduce(f64::max)?;
        Some(self.rates[0]? / best)
    }
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new(["load", "ebb", "torch f32", "torch bf16", "ebb/faster", "agreed"]);
    for row in rows {
        let [ours, f32, bf16] = row.rates.map(|rate| dash(rate, 1));
        let (ratio, agreed) = (dash(row.ratio(), 2), dash(row.agreed, 3));
        table.row([row.load.name.clone(), ours, f32, bf16, ratio, agreed]);
    }
    table
}

fn tell(threads: NonZeroUsize, device: &str, said: &[Value; 2]) {
    report::progress(format_args!(
        "tokens of answers per second, of prompts where they are read, on {device} with {threads} \
         threads; ids in, ids out; agreed: up to the first token that differs from torch in f32"
    ));
    for (peer, said) in PEERS.iter().zip(said) {
        let transformers = said["transformers"].as_str();
        let transformers = transformers.map(|version| format!(", transformers {version}"));
        let (words, transformers) = (words(said), transformers.unwrap_or_default());
        report::progress(format_args!("torch in {peer}: {words}{transformers}"));
    }
}

/// Fails where the answers are others than torch's from the beginning, if they should be the same.
fn check(rows: &[Row], should_agree: bool) -> Result<()> {
    for row in rows {
        if let Some(agreed) = row.agreed.filter(|agreed| should_agree && *agreed < 0.5) {
            bail!("{}: only {agreed:.3} of the tokens are those of torch", row.load.name);
        }
        ensure!(row.rates[0].is_some_and(f64::is_normal), "{}: nothing was made", row.load.name);
    }
    Ok(())
}
