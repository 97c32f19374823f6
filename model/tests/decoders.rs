//! Generators against what transformers made of the same tiny models (`data/make_decoders.py`).

#![cfg(feature = "cpu")]

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use ebb_model::causal::{Ended, Generator, Sampling, Sequence, Source};
use ebb_model::{DeviceChoice, FirstRuns, Model};
use serde_json::Value;

const MODELS: [&str; 4] = ["tiny-llama", "tiny-mistral", "tiny-qwen2", "tiny-qwen3"];
const DEVICES: [DeviceChoice; 2] = [DeviceChoice::CpuTensors(None), DeviceChoice::Cpu];

/// A prompt, and what is likeliest behind it.
struct Prompt {
    ids: Vec<u32>,
    greedy: Vec<u32>,
}

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn prompts(name: &str) -> Vec<Prompt> {
    let text = std::fs::read_to_string(data(&format!("{name}.json"))).expect("it is committed");
    let reference: Value = serde_json::from_str(&text).expect("the reference is JSON");
    let ids = |value: &Value| serde_json::from_value(value.clone()).expect("a list of tokens");
    let prompts = reference["prompts"].as_array().expect("prompts").iter();
    prompts.map(|it| Prompt { ids: ids(&it["ids"]), greedy: ids(&it["greedy"]) }).collect()
}

fn sequence(key: u64, prompt: &Prompt) -> Sequence {
    Sequence {
        key,
        tokens: prompt.ids.clone(),
        n_prompt: prompt.ids.len(),
        max_new: prompt.greedy.len(),
        ends: Arc::from([]),
        sampling: Sampling::default(),
        life: Arc::default(),
    }
}

/// Runs turns until all have ended, each as soon as there is a place among so many.
fn generate(generator: &mut Generator, jobs: &[Sequence], at_once: usize) -> Vec<Vec<u32>> {
    let mut waiting = jobs.iter().cloned().enumerate();
    let mut running: Vec<(usize, Sequence)> = waiting.by_ref().take(at_once).collect();
    let mut made = vec![Vec::new(); jobs.len()];
    while !running.is_empty() {
        let batch: Vec<Sequence> = running.iter().map(|(_, sequence)| sequence.clone()).collect();
        let turns = generator.infer(&batch).expect("the batch runs");
        let mut next = Vec::new();
        for ((job, mut sequence), turn) in running.into_iter().zip(turns) {
            let turn = turn.expect("a sound sequence");
            sequence.tokens.extend(&turn.tokens);
            if turn.ended.is_none() {
                assert!(turn.n_read < sequence.tokens.len());
                next.push((job, sequence));
            } else {
                made[job] = sequence.tokens.split_off(sequence.n_prompt);
                next.extend(waiting.next());
            }
        }
        running = next;
    }
    made
}

#[test]
fn a_pass_with_a_shape_that_was_not_run_before_is_told_of_where_kernels_are_tuned() {
    let tensors = DeviceChoice::CpuTensors(None);
    for (device, is_tuned) in [(DeviceChoice::Cpu, false), (tensors, false), (tensors, true)] {
        let opened = device.start().expect("a processor is there");
        let opened = if is_tuned { opened.as_if_tuned() } else { opened };
        let source = Source::open(&data("tiny-llama")).expect("it is committed");
        let mut generator = Generator::on(source, &opened).expect("it loads");
        generator.warm_up().expect("the device is sound");
        let n_told = Arc::new(AtomicUsize::new(0));
        let told = Arc::clone(&n_told);
        generator.tell_first_runs(FirstRuns::new(move || {
            told.fetch_add(1, Relaxed);
        }));
        let prompts = prompts("tiny-llama");
        let mut told = |round: u64| {
            let numbers = (100 * round..).zip(&prompts);
            let jobs: Vec<Sequence> = numbers.map(|(key, it)| sequence(key, it)).collect();
            let before = n_told.load(Relaxed);
            generate(&mut generator, &jobs, 1);
            n_told.load(Relaxed) - before
        };
        assert_eq!(told(0) > 0, is_tuned, "{device}");
        // How much of a prompt a pass reads goes by the time that passes take; once all have been run.
        assert!((1..100).any(|round| told(round) == 0), "{device}: there is always a new one");
    }
}

#[test]
fn the_likeliest_tokens_are_those_of_transformers() {
    for name in MODELS {
        let prompts = prompts(name);
        let jobs: Vec<Sequence> =
            prompts.iter().enumerate().map(|(key, it)| sequence(key as u64, it)).collect();
        for device in DEVICES {
            let mut generator = Generator::load(&data(name), device).expect("it loads");
            generator.warm_up().expect("the device computes");
            let made = generate(&mut generator, &jobs, jobs.len());
            for (prompt, made) in prompts.iter().zip(made) {
                // A window bounds what a sequence may have.
                let room = generator.positions() - prompt.ids.len();
                let n_new = prompt.greedy.len().min(room);
                assert_eq!(made, prompt.greedy[..n_new], "{name} on {device}");
            }
        }
    }
}

#[test]
fn a_head_that_is_stored_makes_the_logits_where_it_is_not_the_table_of_embeddings() {
    let (from, dir) = (data("tiny-qwen2"), tempfile::tempdir().expect("a directory"));
    for entry in std::fs::read_dir(&from).expect("it is committed").flatten() {
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).expect("a copy");
    }
    let path = dir.path().join("config.json");
    let text = std::fs::read_to_string(&path).expect("a file");
    let mut config: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(config["tie_word_embeddings"], false);
    config["tie_word_embeddings"] = true.into();
    std::fs::write(path, config.to_string()).expect("written");
    let prompt = &prompts("tiny-qwen2")[0];
    for device in DEVICES {
        let mut generator = Generator::load(dir.path(), device).expect("it loads");
        let made = generate(&mut generator, &[sequence(1, prompt)], 1);
        assert_eq!(made, [&prompt.greedy[..]], "on {device}");
    }
}

#[test]
fn the_first_mistrals_end_with_their_window() {
    let generator = Generator::load(&data("tiny-mistral"), DeviceChoice::Cpu).expect("it loads");
    assert_eq!(generator.positions(), 192);
}

#[test]
fn tokens_are_the_same_however_they_are_batched_cut_and_read_again() {
    let name = "tiny-qwen3";
    for device in DEVICES {
        let by_chance = Sampling { temperature: 0.7, top_p: 0.9, ..Sampling::default() };
        let job = |(key, prompt): (usize, &Prompt)| {
            let sampling = Sampling { seed: key as u64, ..by_chance };
            Sequence { sampling, ..sequence(key as u64, prompt) }
        };
        let prompts = prompts(name);
        let jobs: Vec<Sequence> = prompts.iter().chain(&prompts).enumerate().map(job).collect();
        let load = || Generator::load(&data(name), device).expect("it loads");
        let alone = generate(&mut load(), &jobs, 1);
        assert_ne!(alone[0], alone[4], "the seeds differ");
        let together = generate(&mut load(), &jobs, 8);
        assert_eq!(together, alone, "on {device}");
        let one = NonZeroUsize::new(1).expect("one");
        let in_pieces = load().with_turn(Duration::ZERO).with_pass_tokens(one);
        assert_eq!(generate(&mut { in_pieces }, &jobs, 3), alone, "on {device}");
        // Room for the longest and little more: others wait, and are read again.
        let longest = jobs.iter().map(|job| job.n_prompt + job.max_new).max().expect("jobs");
        let narrow = (1..).map(|n| load().with_cache_bytes(20_000 * n));
        let narrow = narrow.map(|it| it.with_turn(Duration::from_millis(5)));
        let narrow = { narrow }.find(|it| it.positions() >= longest).expect("there is one");
        assert_eq!(generate(&mut { narrow }, &jobs, 5), alone, "on {device}");
    }
}

#[test]
fn texts_that_begin_alike_get_the_same_tokens_whether_or_not_they_have_that_in_common() {
    for name in MODELS {
        let prompts = prompts(name);
        let first: Vec<u32> = prompts.iter().flat_map(|it| it.ids.clone()).take(100).collect();
        let job = |(key, prompt): (usize, &Prompt)| {
            let tokens = [&first[..], &prompt.ids[..5.min(prompt.ids.len())]].concat();
            let by_chance = Sampling { temperature: 0.8, seed: key as u64, ..Sampling::default() };
            let n_prompt = tokens.len();
            let job = sequence(key as u64, prompt);
            Sequence { tokens, n_prompt, max_new: 40, sampling: by_chance, ..job }
        };
        let jobs: Vec<Sequence> = prompts.iter().enumerate().map(job).collect();
        let load = || Generator::load(&data(name), DeviceChoice::Cpu).expect("it loads");
        let alone = generate(&mut load().with_prefixes(false), &jobs, 1);
        for at_once in [1, jobs.len()] {
            assert_eq!(generate(&mut load(), &jobs, at_once), alone, "{name}, {at_once} at once");
        }
    }
}

#[test]
fn a_bad_sequence_fails_alone() {
    let prompts = prompts("tiny-qwen2");
    for device in DEVICES {
        let mut generator = Generator::load(&data("tiny-qwen2"), device).expect("it loads");
        let good = sequence(1, &prompts[0]);
        let empty = Sequence { key: 2, tokens: Vec::new(), n_prompt: 0, ..good.clone() };
        let unknown = Sequence { key: 3, tokens: vec![384], n_prompt: 1, ..good.clone() };
        let long = Sequence { key: 4, tokens: vec![9; 257], n_prompt: 257, ..good.clone() };
        let batch = [empty, good.clone(), unknown, long];
        let turns = generator.infer(&batch).expect("the batch runs");
        for (place, says) in
            [(0, "prompt is empty"), (2, "token 384; the model knows 384"), (3, "257 tokens")]
        {
            let error = turns[place].as_ref().expect_err(says).to_string();
            assert!(error.contains(says), "{error}");
        }
        let turn = turns[1].as_ref().expect("a sound sequence");
        assert_eq!(turn.tokens, prompts[0].greedy[..turn.tokens.len()]);
    }
}

#[test]
fn an_end_token_ends_a_sequence_and_is_none_of_its_tokens() {
    let prompts = prompts("tiny-llama");
    let end = prompts[0].greedy[20];
    let n_before = prompts[0].greedy.iter().position(|token| *token == end).expect("it is there");
    for device in DEVICES {
        let mut generator = Generator::load(&data("tiny-llama"), device).expect("it loads");
        generator = generator.with_turn(Duration::from_secs(60));
        let ends = Arc::from([end]);
        let turns = generator.infer(&[Sequence { ends, ..sequence(1, &prompts[0]) }]);
        let turn = turns.expect("the batch runs").swap_remove(0).expect("a sound sequence");
        assert_eq!(turn.ended, Some(Ended::Stop));
        assert_eq!(turn.tokens, prompts[0].greedy[..n_before]);
    }
}
