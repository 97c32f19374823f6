//! Texts that are longer than their model takes: what their answers tell, and who refuses them.
#![cfg(feature = "cpu")]
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ebb_model::DeviceChoice;
use ebb_model::bert::{Classifier, Encoder, Settings as ModelSettings, Tokenizer};
use ebb_queue::{Broker, Outcome, ResultStore};
use ebb_worker::{
    ClassifierCodec, Codec, Device, EncoderCodec, Metrics, ModelParts, Pipeline, RerankerCodec,
    Settings,
};
use serde_json::{Value, json};
use support::{job, parts_of, queue, served, settings};
use tokio_util::sync::CancellationToken;

fn tiny(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/data").join(name)
}

fn tokenizer(name: &str) -> Tokenizer {
    Tokenizer::load(&tiny(name)).unwrap()
}

/// A body, or the reason of a failure.
type Told = Result<Value, String>;

/// What a worker of one model answers to jobs with these bodies, and what it counted.
async fn answers_of<C: Codec>(
    codec: C,
    device: Device<C::Input, C::Output>,
    bodies: &[Value],
) -> (Vec<Told>, Metrics) {
    let (queue, clock) = queue(Duration::from_secs(30));
    let jobs = bodies.iter().enumerate().map(|(number, body)| job(number, &body.to_string()));
    queue.publish(jobs.collect()).await.unwrap();
    let models = vec![ModelParts::new("tiny", codec, device)];
    let served = served("default", &Arc::new(queue.clone()), models);
    let parts = parts_of(vec![served], &clock, Settings { exit_when_empty: true, ..settings() });
    let metrics = parts.metrics.clone();
    Pipeline::new(parts).run(CancellationToken::new()).await.unwrap();
    let mut answers = Vec::new();
    for number in 0..bodies.len() {
        let id = format!("job-{number:04}").parse().unwrap();
        answers.push(match queue.get(&id).await.unwrap().unwrap().outcome {
            Outcome::Completed { body, .. } => Ok(serde_json::from_slice(&body).unwrap()),
            Outcome::Failed(failure) => Err(failure.reason),
            Outcome::Cancelled => panic!("nobody cancels here"),
        });
    }
    (answers, metrics)
}

fn n_cut(metrics: &Metrics) -> u64 {
    metrics.texts_truncated.with_label_values(&["tiny", "none"]).get()
}

#[tokio::test]
async fn an_answer_tells_which_of_its_texts_were_cut() {
    let settings = ModelSettings::read(&tiny("tiny-bert")).unwrap();
    let codec = EncoderCodec::new(tokenizer("tiny-bert"), &settings, "tiny".to_owned());
    let load = |_: &mut _| Ok(Encoder::load(&tiny("tiny-bert"), DeviceChoice::Cpu)?);
    let [one, other] = ["warm", "the bearing"].map(|end| "pump ".repeat(3_000) + end);
    let bodies = [json!({"input": [one, "pump", other]}), json!({"input": "pump"})];
    let (answers, metrics) = answers_of(codec, Device::thread(load).unwrap(), &bodies).await;
    let data = &answers[0].as_ref().unwrap()["data"];
    assert_eq!(data[0]["embedding"], data[2]["embedding"], "what differs is cut off");
    let cut = [0, 1, 2].map(|n| data[n]["truncated"].as_bool().unwrap());
    assert_eq!(cut, [true, false, true]);
    assert_eq!(answers[1].as_ref().unwrap()["data"][0]["truncated"], false);
    assert_eq!(n_cut(&metrics), 2);
}

#[tokio::test]
async fn classifiers_and_rerankers_tell_it_too() {
    let long = "pump ".repeat(70);
    let name = "tiny-classes-bert";
    let settings = ModelSettings::read(&tiny(name)).unwrap();
    let codec = ClassifierCodec::new(tokenizer(name), &settings, "tiny".to_owned());
    let load = move |_: &mut _| Ok(Classifier::load(&tiny(name), DeviceChoice::Cpu)?);
    let bodies = [json!({"input": ["pump", long]})];
    let (answers, metrics) = answers_of(codec, Device::thread(load).unwrap(), &bodies).await;
    let data = &answers[0].as_ref().unwrap()["data"];
    assert_eq!([&data[0]["truncated"], &data[1]["truncated"]], [false, true]);
    assert_eq!(n_cut(&metrics), 1);

    let name = "tiny-rerank-bert";
    let codec = RerankerCodec::new(tokenizer(name), "tiny".to_owned());
    let load = move |_: &mut _| Ok(Classifier::load(&tiny(name), DeviceChoice::Cpu)?);
    // Each alone has room, and both together have not.
    let half = "pump ".repeat(40);
    let bodies = [json!({"query": half, "documents": ["pump", half], "top_n": 1})];
    let (answers, metrics) = answers_of(codec, Device::thread(load).unwrap(), &bodies).await;
    let best = &answers[0].as_ref().unwrap()["results"][0];
    assert_eq!(best["truncated"], best["index"] == 1, "{best}");
    assert_eq!(n_cut(&metrics), 1, "also of what is not shown");
}

#[tokio::test]
async fn a_job_whose_text_may_not_be_cut_fails_alone_and_is_told_how_long_it_is() {
    let settings = ModelSettings::read(&tiny("tiny-bert")).unwrap();
    let codec = EncoderCodec::new(tokenizer("tiny-bert"), &settings, "tiny".to_owned());
    let load = |_: &mut _| Ok(Encoder::load(&tiny("tiny-bert"), DeviceChoice::Cpu)?);
    let long = "pump ".repeat(3_000);
    let bodies = [
        json!({"input": "pump", "truncate": false}),
        json!({"input": ["pump", long], "truncate": false}),
        json!({"input": ["pump", long]}),
    ];
    let (answers, metrics) = answers_of(codec, Device::thread(load).unwrap(), &bodies).await;
    assert!(answers[0].is_ok() && answers[2].is_ok(), "{answers:?}");
    let reason = answers[1].as_ref().unwrap_err();
    assert!(reason.starts_with("input[1] has 3002 tokens; the model takes 512"), "{reason}");
    assert_eq!(n_cut(&metrics), 1, "of what was answered");
}
