//! Logits against those that transformers made of the same tiny models (`tests/data/make_decoders.py`).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::Dtype;
use crate::causal::sampler;
use crate::first_runs::tests::counter;

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
        // The tables as a GPU has them.
        let mut graph = graph.with_whole_tables();
        graph.bound(1 << 20);
        check(&mut graph, name, 50, TOLERANCE);
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

/// A graph as on a device that tunes its kernels, and how often it told of a first run.
fn tuned(name: &str) -> (Graph, impl Fn() -> u32) {
    let Source { config, reader } = Source::open(&data(name)).unwrap();
    let opened = DeviceChoice::CpuTensors(None).start().unwrap().as_if_tuned();
    let mut graph = Graph::load(&config, &reader, &opened).unwrap();
    let (first_runs, n_told) = counter();
    graph.shapes.tell(first_runs);
    (graph, n_told)
}

#[test]
fn a_pass_of_sizes_that_were_run_before_is_no_first_run_whatever_they_were_run_beside() {
    let (mut graph, n_told) = tuned("tiny-llama");
    let mut read = |n_tokens: usize, wants: bool| {
        let (before, mut cache) = (n_told(), graph.cache());
        let tokens = vec![1; n_tokens];
        graph.forward(&mut [Feed { cache: &mut cache, tokens: &tokens, wants }]).unwrap();
        n_told() - before
    };
    assert_eq!(read(16, false), 1);
    assert_eq!(read(1, true), 1);
    assert_eq!(read(16, true), 0, "so many tokens were there, and so many that choose");
    assert_eq!(read(12, true), 0, "the tuner takes them for 16");
    assert_eq!(read(17, true), 1);
}

#[test]
fn a_pass_that_failed_is_a_first_run_once_more() {
    let (mut graph, n_told) = tuned("tiny-llama");
    let unknown = Source::open(&data("tiny-llama")).unwrap().config.vocabulary as u32;
    let mut read = |token| {
        let (before, mut cache) = (n_told(), graph.cache());
        let feed = Feed { cache: &mut cache, tokens: &[token; 16], wants: true };
        let read = catch_unwind(AssertUnwindSafe(|| graph.forward(&mut [feed])));
        (read.is_ok_and(|read| read.is_ok()), n_told() - before)
    };
    for (token, expected) in [(unknown, (false, 1)), (1, (true, 1)), (1, (true, 0))] {
        assert_eq!(read(token), expected, "token {token}");
    }
}

/// What sequences of these many tokens, cut there, make: the logits of each behind its first part where
/// it has one, and then behind all of it.
fn in_two<F: Forward>(
    forward: &mut F,
    texts: &[(Vec<u32>, usize)],
    vocabulary: usize,
) -> Vec<Vec<f32>> {
    let mut caches: Vec<F::Cache> = texts.iter().map(|_| forward.cache()).collect();
    let mut found = Vec::new();
    for is_first in [true, false] {
        let parts = texts.iter().map(|(text, cut)| text.split_at(*cut));
        let parts = parts.map(|(first, rest)| if is_first { first } else { rest });
        let feeds = caches.iter_mut().zip(parts).filter(|(_, tokens)| !tokens.is_empty());
        let mut feeds: Vec<_> =
            feeds.map(|(cache, tokens)| Feed { cache, tokens, wants: true }).collect();
        // Nobody makes a pass of nothing.
        if feeds.is_empty() {
            continue;
        }
        let logits = forward.forward(&mut feeds).unwrap();
        found.extend(logits.chunks(vocabulary).map(<[f32]>::to_vec));
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// However texts are padded and put side by side, beside the form that pads nothing.
    #[test]
    fn what_is_padded_has_the_numbers_of_what_is_not(
        lengths in proptest::collection::vec((1usize..150, 0usize..=100, any::<bool>()), 1..9),
        seed in 0u32..1000,
    ) {
        let Source { config, reader } = Source::open(&data("tiny-qwen3")).unwrap();
        let mut packed = Packed::load(&config, &reader).unwrap();
        let mut graph = graph("tiny-qwen3", None);
        let text = |(n, (length, share, grows)): (usize, &(usize, usize, bool))| {
            let tokens = (0..*length).map(|place| (seed + 31 * (n + 7 * place) as u32) % 384);
            // Those that grow read one token at last.
            (tokens.collect(), if *grows { length - 1 } else { length * share / 100 })
        };
        let texts: Vec<(Vec<u32>, usize)> = lengths.iter().enumerate().map(text).collect();
        let expected = in_two(&mut packed, &texts, config.vocabulary);
        let found = in_two(&mut graph, &texts, config.vocabulary);
        prop_assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            let largest = expected.iter().fold(1.0, |largest: f32, x| largest.max(x.abs()));
            for (x, y) in found.iter().zip(expected) {
                prop_assert!((x - y).abs() <= TOLERANCE * largest, "{} {} {:?}", x, y, lengths);
            }
        }
    }
}

#[test]
fn the_likeliest_is_found_where_the_logits_are_as_it_is_found_here() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        let mut graph = graph("tiny-llama", Some(dtype));
        graph.spoil(5);
        let vocabulary = Source::open(&data("tiny-llama")).unwrap().config.vocabulary;
        let texts = [&[9, 8, 7][..], &[5], &[3; 40], &[1, 2], &[6]];
        let wants = |n: usize| n != 3;
        let mut run = |is_whole: bool| {
            let mut caches: Vec<_> = texts.iter().map(|_| graph.cache()).collect();
            let feeds = caches.iter_mut().zip(texts).enumerate();
            let feed = |(n, (cache, tokens))| Feed { cache, tokens, wants: wants(n) };
            let mut feeds: Vec<_> = feeds.map(feed).collect();
            if !is_whole {
                return graph.likeliest(&mut feeds, vocabulary).unwrap();
            }
            let logits = graph.forward(&mut feeds).unwrap();
            logits.chunks(logits.len() / 4).map(sampler::likeliest_sound).collect()
        };
        let expected: Vec<Option<u32>> = run(true);
        assert_eq!(run(false), expected, "{dtype}");
        assert_eq!(
            expected.iter().map(Option::is_some).collect::<Vec<_>>(),
            [true, false, true, true]
        );
    }
}
