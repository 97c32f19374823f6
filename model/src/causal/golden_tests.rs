//! Logits against those that transformers made of the same tiny models (`tests/data/make_decoders.py`).

use std::path::PathBuf;

use serde_json::Value;

use super::*;
use crate::Dtype;

const MODELS: [&str; 4] = ["tiny-llama", "tiny-mistral", "tiny-qwen2", "tiny-qwen3"];

/// Largest difference to the reference, in parts of the largest logit of its prompt.
const TOLERANCE: f32 = 1e-5;

struct Prompt {
    ids: Vec<u32>,
    logits: Vec<f32>,
}

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn prompts(name: &str) -> Vec<Prompt> {
    let text = std::fs::read_to_string(data(&format!("{name}.json"))).unwrap();
    let reference: Value = serde_json::from_str(&text).unwrap();
    let prompt = |prompt: &Value| Prompt {
        ids: serde_json::from_value(prompt["ids"].clone()).unwrap(),
        logits: serde_json::from_value(prompt["logits"].clone()).unwrap(),
    };
    reference["prompts"].as_array().unwrap().iter().map(prompt).collect()
}

fn graph(name: &str, dtype: Option<Dtype>) -> Graph {
    let Source { config, reader } = Source::open(&data(name)).unwrap();
    Graph::load(&config, &reader, &DeviceChoice::CpuTensors(dtype).start().unwrap()).unwrap()
}

fn assert_near(found: &[f32], prompt: &Prompt, tolerance: f32, what: &str) {
    assert_eq!(found.len(), prompt.logits.len(), "{what}");
    let largest = prompt.logits.iter().fold(1.0, |largest: f32, x| largest.max(x.abs()));
    let errors = found.iter().zip(&prompt.logits).map(|(x, y)| (x - y).abs() / largest);
    let error = errors.fold(0.0, |most: f32, error| if error <= most { most } else { error });
    assert!(error <= tolerance, "{what}: {error} of {largest}");
}

/// Reads all prompts side by side, in pieces of so many tokens, and holds the logits against the
/// reference.
fn check<F: Forward>(forward: &mut F, name: &str, piece: usize, tolerance: f32) {
    let prompts = prompts(name);
    let vocabulary = prompts[0].logits.len();
    let mut caches: Vec<F::Cache> = prompts.iter().map(|_| forward.cache()).collect();
    let mut n_read = vec![0; prompts.len()];
    while prompts.iter().zip(&n_read).any(|(prompt, n)| *n < prompt.ids.len()) {
        let mut feeds = Vec::new();
        let mut whole = Vec::new();
        for ((prompt, n), cache) in prompts.iter().zip(&mut n_read).zip(&mut caches) {
            let rest = &prompt.ids[*n..];
            let tokens = &rest[..piece.min(rest.len())];
            *n += tokens.len();
            let wants = *n == prompt.ids.len();
            if !tokens.is_empty() {
                feeds.push(Feed { cache, tokens, wants });
                whole.extend(wants.then_some(prompt));
            }
        }
        let logits = forward.forward(&mut feeds).unwrap();
        assert_eq!(logits.len(), whole.len() * vocabulary);
        for (found, prompt) in logits.chunks(vocabulary).zip(whole) {
            let what = format!("{name} in pieces of {piece}, {} tokens", prompt.ids.len());
            assert_near(found, prompt, tolerance, &what);
        }
    }
}

#[test]
fn logits_are_those_of_transformers_in_pieces_of_any_size() {
    for name in MODELS {
        let mut graph = graph(name, None);
        let Source { config, reader } = Source::open(&data(name)).unwrap();
        let mut packed = Packed::load(&config, &reader).unwrap();
        for piece in [1, 7, 50, 1000] {
            check(&mut graph, name, piece, TOLERANCE);
            check(&mut packed, name, piece, TOLERANCE);
        }
    }
}

#[test]
fn logits_in_halves_are_near_those_of_transformers() {
    for (dtype, tolerance) in [(Dtype::F16, 5e-3), (Dtype::Bf16, 5e-2)] {
        for name in MODELS {
            check(&mut graph(name, Some(dtype)), name, 40, tolerance);
        }
    }
}

#[test]
fn a_spoilt_sequence_spoils_no_other_and_none_that_gets_its_place() {
    let Source { config, reader } = Source::open(&data("tiny-llama")).unwrap();
    let opened = DeviceChoice::CpuTensors(None).start().unwrap();
    let mut graph = Graph::load(&config, &reader, &opened).unwrap();
    graph.spoil(5);
    let prompts = prompts("tiny-llama");
    let sound: Vec<&Prompt> = prompts.iter().filter(|it| !it.ids.contains(&5)).collect();
    assert!(!sound.is_empty());
    for _ in 0..2 {
        for prompt in &sound {
            let (mut spoilt, mut cache) = (graph.cache(), graph.cache());
            let mut feeds = [
                Feed { cache: &mut spoilt, tokens: &[5; 40], wants: true },
                Feed { cache: &mut cache, tokens: &prompt.ids, wants: true },
            ];
            let logits = graph.forward(&mut feeds).unwrap();
            let (first, second) = logits.split_at(config.vocabulary);
            assert!(first.iter().all(|x| x.is_nan()));
            assert_near(second, prompt, TOLERANCE, "beside what is spoilt");
        }
    }
}
