//! What runs on a GPU, run on the processor: burn's operations on texts padded to a few shapes, held
//! against the packed products for each kind of model.

#![cfg(feature = "cpu")]
#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use ebb_model::bert::{Classifier, Encoder, Pieces, Source, Tagger, Tokenizer, Tokens, Warmer};
use ebb_model::{DeviceChoice, Dtype, FirstRuns, InferError, InferErrorKind, Model};
use serde_json::json;

/// Largest difference per number in f32: the order of the sums is another, nothing else.
const F32: f32 = 1e-5;
/// In halves, of vectors of length one and of shares of a softmax: two layers of products rounded to
/// 11 and to 8 bits.
const F16: f32 = 5e-3;
const BF16: f32 = 4e-2;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn tensors(dtype: Dtype) -> DeviceChoice {
    "cpu-tensors".parse::<DeviceChoice>().unwrap().with_dtype(Some(dtype)).unwrap()
}

const WORDS: &str = "the pump turns under load while a bearing warms and pressure falls ";

/// Texts of 3 to more than 16 tokens, so that shapes have padding in both directions.
fn texts() -> Vec<String> {
    let lengths = [1, 2, 9, 17, 4, 60, 1, 13, 30, 2, 5];
    lengths.iter().map(|n| WORDS.repeat(6).split_inclusive(' ').take(*n).collect()).collect()
}

fn batch<T>(cut: impl Fn(&str) -> T) -> Vec<Vec<T>> {
    let mut texts = texts().into_iter();
    // Jobs of one text, of two, and of the rest.
    let first = vec![cut(&texts.next().unwrap())];
    let second = texts.by_ref().take(2).map(|text| cut(&text)).collect();
    vec![first, second, texts.map(|text| cut(&text)).collect()]
}

fn infer<M: Model>(model: &mut M, batch: &[M::Input]) -> Vec<M::Output> {
    let results = model.infer(batch).expect("the batch runs");
    results.into_iter().map(|result| result.expect("the item runs")).collect()
}

#[track_caller]
fn assert_near(found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (x, y) in found.iter().zip(expected) {
        assert!((x - y).abs() < tolerance, "{what}: {x} for {y}");
    }
}

fn assert_same_vectors(dir: &Path, dtype: Dtype, tolerance: f32) {
    let tokenizer = Tokenizer::load(dir).unwrap();
    let batch = batch(|text| tokenizer.tokenize(text).unwrap());
    let expected = infer(&mut Encoder::load(dir, DeviceChoice::Cpu).unwrap(), &batch);
    let mut model = Encoder::load(dir, tensors(dtype)).unwrap();
    model.warm_up().unwrap();
    let found = infer(&mut model, &batch);
    for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
        assert_eq!(found.tokens, expected.tokens);
        let what = format!("{}, {} tokens in {dtype}", dir.display(), found.tokens);
        assert_near(&found.vector, &expected.vector, tolerance, &what);
    }
}

#[test]
fn encoders_of_each_family_give_the_same_vectors() {
    for name in ["tiny-bert", "tiny-roberta", "tiny-xlm-roberta", "tiny-distilbert"] {
        assert_same_vectors(&data(name), Dtype::F32, F32);
    }
}

#[test]
fn every_pooling_is_the_same() {
    for pooling in ["mean", "cls", "max", "lasttoken"] {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("1_Pooling")).unwrap();
        for name in ["config.json", "model.safetensors", "modules.json", "tokenizer.json"] {
            fs::copy(data("tiny-bert").join(name), dir.path().join(name)).unwrap();
        }
        let config = json!({"pooling_mode": pooling}).to_string();
        fs::write(dir.path().join("1_Pooling/config.json"), config).unwrap();
        assert_same_vectors(dir.path(), Dtype::F32, F32);
    }
}

#[test]
fn halves_are_near() {
    for (dtype, tolerance) in [(Dtype::F16, F16), (Dtype::Bf16, BF16)] {
        assert_same_vectors(&data("tiny-bert"), dtype, tolerance);
    }
}

#[test]
fn classifiers_and_rerankers_give_the_same_scores() {
    for name in [
        "tiny-classes-bert",
        "tiny-classes-distilbert",
        "tiny-classes-roberta",
        "tiny-rerank-bert",
        "tiny-rerank-xlm-roberta",
    ] {
        let tokenizer = Tokenizer::load(&data(name)).unwrap();
        // Pairs, for the sake of the second token type.
        let batch = batch(|text| tokenizer.tokenize_pairs("the pump", [text]).unwrap().remove(0));
        let expected =
            infer(&mut Classifier::load(&data(name), DeviceChoice::Cpu).unwrap(), &batch);
        for (dtype, tolerance) in [(Dtype::F32, F32), (Dtype::F16, F16)] {
            let mut model = Classifier::load(&data(name), tensors(dtype)).unwrap();
            let found = infer(&mut model, &batch);
            for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
                assert_near(&found.scores, &expected.scores, tolerance, name);
            }
        }
    }
}

#[test]
fn taggers_find_the_same() {
    for name in ["tiny-tags-bert", "tiny-tags-roberta", "tiny-tags-distilbert"] {
        let tokenizer = Tokenizer::load(&data(name)).unwrap();
        let batch: Vec<Vec<Pieces>> = batch(|text| tokenizer.tokenize_pieces(text).unwrap());
        let expected = infer(&mut Tagger::load(&data(name), DeviceChoice::Cpu).unwrap(), &batch);
        let found = infer(&mut Tagger::load(&data(name), tensors(Dtype::F32)).unwrap(), &batch);
        for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
            assert_eq!(found.tags.len(), expected.tags.len());
            for (found, expected) in found.tags.iter().zip(&expected.tags) {
                let places = (expected.label, expected.start, expected.end);
                assert_eq!((found.label, found.start, found.end), places, "{name}");
                assert_near(&[found.score], &[expected.score], F32, name);
            }
        }
    }
}

#[test]
fn a_bad_item_fails_alone() {
    let mut model = Encoder::load(&data("tiny-bert"), tensors(Dtype::F32)).unwrap();
    let good = Tokens::from_ids(vec![2, 7, 3]);
    let bad = Tokens::from_ids(vec![2, 1_000_000, 3]);
    let results = model.infer(&[vec![good.clone()], vec![good.clone(), bad], vec![good]]).unwrap();
    assert_eq!(results[0], results[2]);
    assert!(results[0].is_ok() && results[1].is_err());
}

#[test]
fn what_is_no_number_stays_in_its_text() {
    for pooling in ["mean", "max"] {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("1_Pooling")).unwrap();
        for name in ["config.json", "modules.json", "model.safetensors"] {
            fs::copy(data("tiny-bert").join(name), dir.path().join(name)).unwrap();
        }
        let config = json!({"pooling_mode": pooling}).to_string();
        fs::write(dir.path().join("1_Pooling/config.json"), config).unwrap();
        spoil(&dir.path().join("model.safetensors"), 20);
        let mut model = Encoder::load(dir.path(), tensors(Dtype::F32)).unwrap();
        let text = |ids: &[u32]| vec![Tokens::from_ids(ids.to_vec())];
        let batch = [text(&[2, 7, 3]), text(&[2, 20, 8, 9, 3]), text(&[2, 3])];
        let results = model.infer(&batch).unwrap();
        let error = results[1].as_ref().expect_err("no number").to_string();
        assert!(error.contains("not finite"), "{pooling}: {error}");
        assert!(results[0].is_ok() && results[2].is_ok(), "{pooling}: its neighbours are sound");
    }
}

#[test]
fn weights_that_give_no_numbers_end_the_warm_up_of_every_model_on_every_device() {
    type Start = fn(&Path, DeviceChoice) -> Result<(), InferError>;
    let starts: [(&str, Start); 3] = [
        ("tiny-bert", |dir, device| Encoder::load(dir, device).unwrap().warm_up()),
        ("tiny-classes-roberta", |dir, device| Classifier::load(dir, device).unwrap().warm_up()),
        ("tiny-tags-distilbert", |dir, device| Tagger::load(dir, device).unwrap().warm_up()),
    ];
    for (name, start) in starts {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("1_Pooling")).unwrap();
        for file in ["config.json", "modules.json", "model.safetensors", "1_Pooling/config.json"] {
            // A classifier has no modules.
            if data(name).join(file).exists() {
                fs::copy(data(name).join(file), dir.path().join(file)).unwrap();
            }
        }
        for device in [DeviceChoice::Cpu, tensors(Dtype::F32), tensors(Dtype::F16)] {
            assert_eq!(start(&data(name), device), Ok(()), "{name} is sound");
        }
        spoil_all(&dir.path().join("model.safetensors"));
        for (device, called) in
            [(DeviceChoice::Cpu, "cpu in f32"), (tensors(Dtype::F16), "cpu-tensors in f16")]
        {
            let error = start(dir.path(), device).expect_err("no numbers");
            assert_eq!(error.kind(), InferErrorKind::Device, "{name}");
            let error = error.to_string();
            let says = format!("self-test on {called}: output is not finite");
            assert!(error.contains(&says) && error.contains("--dtype f32"), "{name}: {error}");
        }
    }
}

/// Makes the vector of every word no number.
fn spoil_all(weights: &Path) {
    let mut bytes = fs::read(weights).unwrap();
    let n_header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + n_header]).unwrap();
    let tables = header.as_object().unwrap().iter();
    let mut tables = tables.filter(|(name, _)| name.contains("word_embeddings"));
    let (_, table) = tables.next().unwrap();
    let place = |n: usize| 8 + n_header + table["data_offsets"][n].as_u64().unwrap() as usize;
    // No number, in f32 as in f16.
    bytes[place(0)..place(1)].fill(0xff);
    fs::write(weights, bytes).unwrap();
}

/// Makes the vector of one word no number.
fn spoil(weights: &Path, word: usize) {
    let mut bytes = fs::read(weights).unwrap();
    let n_header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + n_header]).unwrap();
    let table = &header["embeddings.word_embeddings.weight"];
    assert_eq!(table["dtype"], "F32");
    let (start, width) = (&table["data_offsets"][0], &table["shape"][1]);
    let (start, width) = (start.as_u64().unwrap() as usize, width.as_u64().unwrap() as usize);
    let row = 8 + n_header + start + word * width * 4;
    bytes[row..row + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(weights, bytes).unwrap();
}

/// How often a model tells that it runs a shape for the first time: of three batches, the last two of
/// which are the same.
fn first_runs<M: Model>(mut model: M, batches: [&[M::Input]; 2]) -> [usize; 3] {
    let n_told = Arc::new(AtomicUsize::new(0));
    let told = Arc::clone(&n_told);
    model.tell_first_runs(FirstRuns::new(move || {
        told.fetch_add(1, Relaxed);
    }));
    let [first, second] = batches;
    [first, second, second].map(|batch| {
        infer(&mut model, batch);
        n_told.load(Relaxed)
    })
}

#[test]
fn a_batch_with_a_shape_that_was_not_run_before_is_told_of_where_kernels_are_tuned() {
    let open = |device: DeviceChoice| device.start().unwrap();
    for (device, expected) in [
        (open(DeviceChoice::Cpu), [0, 0, 0]),
        (open(tensors(Dtype::F32)), [0, 0, 0]),
        (open(tensors(Dtype::F32)).as_if_tuned(), [0, 1, 1]),
    ] {
        let source = |name: &str| Source::open(&data(name)).unwrap();
        let tokenizer = Tokenizer::load(&data("tiny-bert")).unwrap();
        let long = batch(|text| tokenizer.tokenize(text).unwrap());
        // Of 8 tokens, as the self-test has one.
        let short = [vec![tokenizer.tokenize("the pump turns").unwrap()]];
        let mut model = Encoder::on(source("tiny-bert"), &device).unwrap();
        model.warm_up().unwrap();
        assert_eq!(first_runs(model, [&short, &long]), expected, "an encoder on {device:?}");

        let tokenizer = Tokenizer::load(&data("tiny-classes-bert")).unwrap();
        let pieces = |text: &str| vec![tokenizer.tokenize(text).unwrap()];
        let (short, long) = ([pieces("the")], [pieces(&WORDS.repeat(4)), pieces("pump")]);
        let mut model = Classifier::on(source("tiny-classes-bert"), &device).unwrap();
        model.warm_up().unwrap();
        assert_eq!(first_runs(model, [&short, &long]), expected, "a classifier on {device:?}");
    }
}

#[test]
fn every_shape_within_the_limits_is_warmed_up() {
    // End to end on the processor all have the same kernels.
    for (device, name, has_shapes) in [
        (DeviceChoice::Cpu, "cpu in f32", false),
        (tensors(Dtype::F16), "cpu-tensors in f16", true),
    ] {
        let warmer = Warmer::load(&data("tiny-tags-bert"), device).unwrap();
        assert_eq!(warmer.device(), name);
        let shapes = warmer.shapes(3, 100);
        assert_eq!((shapes.len() > 5, shapes.len() == 1), (has_shapes, !has_shapes), "{shapes:?}");
        for shape in shapes {
            warmer.run(shape).unwrap();
        }
    }
}
