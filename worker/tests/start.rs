//! The start of a worker with a real model: its phases.
#![cfg(feature = "cpu")]
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod support;

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Parser;
use ebb_queue::{Broker, Job, OpenOptions, QueueUrl};
use ebb_worker::{WorkerArgs, run};
use tokio_util::sync::CancellationToken;

fn sound() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/data/tiny-bert")
}

fn texts(n: usize) -> Vec<Job> {
    (0..n).map(|n| support::job(n, r#"{"input": "the pump is warm"}"#)).collect()
}

#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    worker: WorkerArgs,
}

fn args(queue: &QueueUrl, model: &Path) -> WorkerArgs {
    let (queue, model) = (queue.to_string(), model.display().to_string());
    let flags = ["worker", "--queue", &queue, "--model", &model, "--exit-when-empty"];
    Cli::parse_from(flags).worker
}

#[tokio::test(flavor = "multi_thread")]
async fn the_phases_of_a_start_tell_of_the_tokenizer_too_and_add_up_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let url = QueueUrl::sqlite(folder.path().join("queue.db"));
    let queue = ebb_queue::open(&url, OpenOptions::default()).await.unwrap();
    queue.publish(texts(1)).await.unwrap();
    let began = Instant::now();
    let summary = run(args(&url, &sound()), CancellationToken::new()).await.unwrap();
    let took = began.elapsed().as_secs_f64();
    let names: Vec<_> = summary.cold_start.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["process", "weights", "warm-up", "tokenizer"]);
    // The process is older than this worker.
    let told: f64 = summary.cold_start[1..].iter().map(|(_, seconds)| seconds).sum();
    assert!(told < took, "{told} s of {took} s");
}
