//! The members of the BERT family against what transformers and sentence-transformers made of the
//! same tiny models (`data/make_family.py`).

#![cfg(feature = "cpu")]

use std::fs;
use std::path::{Path, PathBuf};

use ebb_model::bert::{Encoder, Tokenizer, Tokens};
use ebb_model::{DeviceChoice, Model};
use serde_json::Value;

/// Largest difference to the reference, per number, in parts of 1 or of the number if larger.
const TOLERANCE: f64 = 1e-5;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn reference(name: &str) -> Value {
    let text = fs::read_to_string(data(&format!("{name}.json"))).expect("it is committed");
    serde_json::from_str(&text).expect("the reference is JSON")
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|x| x.as_f64().expect("a number")).collect()
}

/// The texts of a reference, cut; the cut is checked where the reference tells it.
fn cut(tokenizer: &Tokenizer, cases: &Value) -> Vec<Vec<Tokens>> {
    let cut = |case: &Value| {
        let n_times = case["repeat"].as_u64().expect("a count") as usize;
        let text = case["text"].as_str().expect("a text").repeat(n_times);
        let tokens = tokenizer.tokenize(&text).expect("a text");
        if let Some(expected) = case["ids"].as_array() {
            assert_eq!(case["tokens"], tokens.len(), "tokens of {case}");
            let ids: Vec<Value> = tokens.ids().iter().take(24).map(|id| (*id).into()).collect();
            assert_eq!(&ids, expected, "ids of {case}");
        }
        vec![tokens]
    };
    cases.as_array().expect("cases").iter().map(cut).collect()
}

fn assert_near(found: &[f32], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        let error = (f64::from(*found) - expected).abs() / expected.abs().max(1.0);
        assert!(error < TOLERANCE, "{what}: {found} is not {expected}");
    }
}

/// One result per item, in a batch and each alone; they must be the same.
fn infer<M>(
    model: &mut M,
    batch: &[Vec<M::Input>],
    near: impl Fn(&M::Output, &M::Output),
) -> Vec<M::Output>
where
    M: Model,
    M::Input: Clone,
{
    let items: Vec<M::Input> = batch.concat();
    let together = model.infer(&items).expect("the batch runs");
    let together: Vec<_> = together.into_iter().map(|one| one.expect("the item runs")).collect();
    for (item, among) in items.iter().zip(&together) {
        let alone = model.infer(std::slice::from_ref(item)).expect("it runs").remove(0);
        near(&alone.expect("the item runs"), among);
    }
    together
}

#[test]
fn encoders_of_each_family_are_as_sentence_transformers_has_them() {
    for name in ["tiny-roberta", "tiny-xlm-roberta", "tiny-distilbert"] {
        let tokenizer = Tokenizer::load(&data(name)).expect("the tokenizer loads");
        let mut encoder = Encoder::load(&data(name), DeviceChoice::Cpu).expect("the weights load");
        encoder.warm_up().expect("it runs");
        let reference = reference(name);
        let batch: Vec<_> =
            cut(&tokenizer, &reference["cases"]).into_iter().map(|texts| vec![texts]).collect();
        let vectors = infer(&mut encoder, &batch, |alone, among| {
            let among: Vec<f64> = among[0].vector.iter().map(|x| f64::from(*x)).collect();
            assert_near(&alone[0].vector, &among, name);
        });
        for (n, found) in vectors.iter().enumerate() {
            let expected = numbers(&reference["default"][n]);
            assert_near(&found[0].vector, &expected, &format!("{name}: text {n}"));
        }
    }
}
