//! The start of a worker with a real model: its phases, and a device that gives rubbish.
#![cfg(feature = "cpu")]
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod support;

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use ebb_model::DeviceChoice;
use ebb_model::bert::{Encoder, Settings, Tokenizer};
use ebb_queue::memory::MemoryQueue;
use ebb_queue::{Broker, Job, OpenOptions, QueueUrl};
use ebb_worker::{Device, EncoderCodec, ModelParts, Parts, Pipeline, WorkerArgs, run};
use support::{parts_of, queue, served, settings};
use tokio_util::sync::CancellationToken;

const SAYS: &str = "self-test on cpu in f32: output is not finite";

fn sound() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/data/tiny-bert")
}

/// A copy of the tiny encoder.
fn copy() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("1_Pooling")).unwrap();
    for name in [
        "config.json",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "1_Pooling/config.json",
    ] {
        fs::copy(sound().join(name), dir.path().join(name)).unwrap();
    }
    dir
}

/// A copy whose words have vectors of no numbers.
fn spoiled() -> tempfile::TempDir {
    let dir = copy();
    let path = dir.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let n_header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + n_header]).unwrap();
    let table = &header["embeddings.word_embeddings.weight"]["data_offsets"];
    let place = |n: usize| 8 + n_header + table[n].as_u64().unwrap() as usize;
    bytes[place(0)..place(1)].fill(0xff);
    fs::write(path, bytes).unwrap();
    dir
}

fn texts(n: usize) -> Vec<Job> {
    (0..n).map(|n| support::job(n, r#"{"input": "the pump is warm"}"#)).collect()
}

fn worker(dir: &Path, queue: &MemoryQueue, clock: &Arc<dyn ebb_queue::Clock>) -> Parts {
    let tokenizer = Tokenizer::load(dir).unwrap();
    let codec = EncoderCodec::new(tokenizer, &Settings::read(dir).unwrap(), "tiny".into());
    let dir = dir.to_owned();
    let device = Device::thread(move |phases| {
        let mut model = phases.time("weights", || Encoder::load(&dir, DeviceChoice::Cpu))?;
        phases.time("warm-up", || model.warm_up())?;
        Ok(model)
    });
    let models = vec![ModelParts::new("tiny", codec, device.unwrap())];
    let settings = ebb_worker::Settings { exit_when_empty: true, ..settings() };
    parts_of(vec![served("default", &Arc::new(queue.clone()), models)], clock, settings)
}

#[tokio::test]
async fn a_device_that_gives_no_numbers_never_becomes_ready_and_takes_no_job() {
    let (queue, clock) = queue(Duration::from_secs(30));
    queue.publish(texts(3)).await.unwrap();
    let dir = spoiled();
    let parts = worker(dir.path(), &queue, &clock);
    let (health, metrics) = (parts.health.clone(), parts.metrics.clone());
    let error = Pipeline::new(parts).run(CancellationToken::new()).await.unwrap_err().to_string();
    assert!(error.starts_with("device is lost") && error.contains(SAYS), "{error}");
    assert!(health.started().is_err() && health.ready().is_err(), "no gate was opened");
    assert_eq!(metrics.in_flight.get(), 0);
    let jobs = queue.receive(NonZeroUsize::new(9).unwrap(), Duration::ZERO).await.unwrap();
    assert_eq!(jobs.iter().map(|job| job.attempt).collect::<Vec<_>>(), [1, 1, 1], "all are there");

    let dir = copy();
    queue
        .settle(&jobs.into_iter().map(ebb_queue::Delivery::release).collect::<Vec<_>>())
        .await
        .unwrap();
    let parts = worker(dir.path(), &queue, &clock);
    let health = parts.health.clone();
    let summary = Pipeline::new(parts).run(CancellationToken::new()).await.unwrap();
    assert_eq!((summary.completed, summary.failed), (3, 0), "sound weights answer the same jobs");
    assert_eq!(health.started(), Ok(()));
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
async fn a_worker_of_the_command_line_ends_with_what_the_self_test_found() {
    let folder = tempfile::tempdir().unwrap();
    let url = QueueUrl::sqlite(folder.path().join("queue.db"));
    let queue = ebb_queue::open(&url, OpenOptions::default()).await.unwrap();
    queue.publish(texts(1)).await.unwrap();
    let dir = spoiled();
    let error = run(args(&url, dir.path()), CancellationToken::new()).await.unwrap_err();
    assert!(format!("{error:#}").contains(SAYS), "{error:#}");
    let jobs = queue.receive(NonZeroUsize::MIN, Duration::ZERO).await.unwrap();
    assert_eq!(jobs[0].attempt, 1, "no attempt was spent");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_phases_of_a_start_tell_of_the_tokenizer_too_and_are_no_more_than_it() {
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

/// Waits until a queue is as it should be.
async fn until(queue: &ebb_queue::Queue, is_so: impl Fn(&ebb_queue::Depth) -> bool) {
    for _ in 0..1_000 {
        if is_so(&queue.depth().await.unwrap()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{:?}", queue.depth().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_whose_files_changed_is_not_loaded_again_beside_the_tokenizer_of_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let url = QueueUrl::sqlite(folder.path().join("queue.db"));
    let (echo, texts_of) = (url.with_queue("echo").unwrap(), url.with_queue("texts").unwrap());
    let echo = ebb_queue::open(&echo, OpenOptions::default()).await.unwrap();
    let queue = ebb_queue::open(&texts_of, OpenOptions::default()).await.unwrap();
    let (dir, url) = (copy(), url.to_string());
    let serve = format!("texts={}", dir.path().display());
    let flags = ["worker", "--queue", &url, "--serve", "echo=echo", "--serve", &serve];
    let worker = tokio::spawn(run(Cli::parse_from(flags).worker, CancellationToken::new()));
    let over = |depth: &ebb_queue::Depth| depth.ready + depth.in_flight == 0;
    queue.publish(texts(1)).await.unwrap();
    until(&queue, over).await;
    // The same bytes, written again: as good as others.
    let config = dir.path().join("config.json");
    fs::write(&config, fs::read(&config).unwrap()).unwrap();
    queue.publish(vec![support::job(1, r#"{"input": "the pump is warm"}"#)]).await.unwrap();
    until(&queue, over).await;
    assert!(!worker.is_finished(), "what is loaded serves on");
    let loses = support::job(2, r#"{"input": "", "lose_device": true}"#);
    echo.publish(vec![loses]).await.unwrap();
    until(&echo, |depth| depth.delayed == 1).await;
    queue.publish(vec![support::job(3, r#"{"input": "the pump is warm"}"#)]).await.unwrap();
    let error = worker.await.unwrap().unwrap_err();
    let told = format!("{error:#}");
    assert!(told.contains("are not those of the start"), "{told}");
    let jobs = queue.receive(NonZeroUsize::MIN, Duration::ZERO).await.unwrap();
    assert_eq!((jobs.len(), jobs[0].attempt), (1, 1), "no attempt was spent");
}
