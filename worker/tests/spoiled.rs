//! Weights that make numbers of no use of one word: whose text has it fails, and nobody beside it.
#![cfg(feature = "cpu")]
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ebb_model::bert::{Encoder, Settings as ModelSettings, Tokenizer, Tokens};
use ebb_model::{DeviceChoice, Layout, Model};
use ebb_queue::{Broker, DeadLetters};
use ebb_worker::{Device, EncoderCodec, ModelParts, Pipeline, Settings};
use support::{answer, job, parts_of, queue, served, settings};
use tokio_util::sync::CancellationToken;

const LEASE: Duration = Duration::from_secs(30);

/// The word whose vector is no number.
const SPOILED: &str = "bearing";

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/data/tiny-bert")
}

/// A copy of the model, with the vector of one token spoiled.
fn spoiled(token: u32) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy(&tiny(), dir.path());
    let weights = dir.path().join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let n_header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + n_header]).unwrap();
    let table = &header["embeddings.word_embeddings.weight"];
    assert_eq!(table["dtype"], "F32");
    let [start, width] = [&table["data_offsets"][0], &table["shape"][1]];
    let [start, width] = [start, width].map(|number| number.as_u64().unwrap() as usize);
    let row = 8 + n_header + start + token as usize * width * 4;
    bytes[row..row + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(weights, bytes).unwrap();
    dir
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (there, here) = (entry.as_ref().unwrap().path(), entry.unwrap().file_name());
        if there.is_dir() {
            copy(&there, &to.join(here));
        } else {
            std::fs::copy(there, to.join(here)).unwrap();
        }
    }
}

/// The token of a word that is in the vocabulary, and of no other.
fn token(tokenizer: &Tokenizer, word: &str) -> u32 {
    let ids = |text: &str| -> Tokens { tokenizer.tokenize(text).unwrap() };
    let found = (0..200).find(|id| {
        let own = Tokens::from_ids(vec![2, *id, 3]);
        ids(word) == own
    });
    found.expect("it is one token")
}

#[tokio::test]
async fn a_text_without_finite_numbers_fails_alone_among_64() {
    let tokenizer = Tokenizer::load(&tiny()).unwrap();
    let dir = spoiled(token(&tokenizer, SPOILED));
    let (queue, clock) = queue(LEASE);
    let mut jobs: Vec<_> =
        (0..64).map(|number| job(number, r#"{"input": "the pump turns under load"}"#)).collect();
    jobs[41] = job(41, &format!(r#"{{"input": "the pump turns {SPOILED} under load"}}"#));
    queue.publish(jobs).await.unwrap();
    let settings_of_model = ModelSettings::read(dir.path()).unwrap();
    let codec = EncoderCodec::new(tokenizer, &settings_of_model, "tiny".to_owned());
    let path = dir.path().to_owned();
    let device = Device::thread(move |_| Ok(Encoder::load(&path, DeviceChoice::Cpu)?)).unwrap();
    let models = vec![ModelParts::new("tiny", codec, device)];
    let served = served("default", &Arc::new(queue.clone()), models);
    let parts = parts_of(vec![served], &clock, Settings { exit_when_empty: true, ..settings() });
    let metrics = parts.metrics.clone();
    let summary = Pipeline::new(parts).run(CancellationToken::new()).await.unwrap();
    assert_eq!((summary.completed, summary.failed, summary.retried), (63, 1, 0));
    for number in (0..64).filter(|number| *number != 41) {
        let told = answer(&queue, number).await.unwrap();
        assert!(told.contains("embedding") && !told.contains("null"), "{told}");
    }
    let dead = queue.list(10).await.unwrap();
    assert_eq!((dead.len(), dead[0].job.id.as_str(), dead[0].attempts), (1, "job-0041", 1));
    assert!(dead[0].reason.contains("not finite"), "{}", dead[0].reason);
    assert_eq!(dead[0].kind, ebb_queue::FailureKind::Model);
    let n_failed = metrics.batches_failed.with_label_values(&["tiny"]).get();
    assert_eq!(n_failed, 0, "its batch was good");
}

#[tokio::test]
async fn many_short_texts_and_a_long_one_in_a_job_are_what_they_are_on_a_processor() {
    let tokenizer = Tokenizer::load(&tiny()).unwrap();
    let encoder = Encoder::load(&tiny(), DeviceChoice::Cpu).unwrap();
    assert_eq!(encoder.layout(), Layout::Alike);
    drop(encoder);
    let (queue, clock) = queue(LEASE);
    let long = vec!["pump"; 500].join(" ");
    let texts: Vec<&str> = std::iter::repeat_n("the pump turns", 200).chain([&*long]).collect();
    let n_tokens: usize = texts.iter().map(|text| tokenizer.tokenize(text).unwrap().len()).sum();
    let longest = tokenizer.tokenize(&long).unwrap().len();
    // What it would cost padded, with room below for what it costs.
    let max_job_cost = texts.len() * longest - 1;
    assert!(2 * n_tokens < max_job_cost, "{n_tokens} tokens, padded {max_job_cost}");
    let body = serde_json::json!({ "input": texts }).to_string();
    queue.publish(vec![job(0, &body)]).await.unwrap();
    let codec =
        EncoderCodec::new(tokenizer, &ModelSettings::read(&tiny()).unwrap(), "tiny".to_owned());
    let device = Device::thread(|_| Ok(Encoder::load(&tiny(), DeviceChoice::Cpu)?)).unwrap();
    let served =
        served("default", &Arc::new(queue.clone()), vec![ModelParts::new("tiny", codec, device)]);
    let settings = Settings { exit_when_empty: true, max_job_cost, ..settings() };
    let parts = parts_of(vec![served], &clock, settings);
    let metrics = parts.metrics.clone();
    let summary = Pipeline::new(parts).run(CancellationToken::new()).await.unwrap();
    assert_eq!((summary.completed, summary.failed), (1, 0));
    assert_eq!(metrics.batch_padding.with_label_values(&["tiny"]).get_sample_sum(), 0.0);
}
