//! The members of the BERT family against what transformers and sentence-transformers made of the
//! same tiny models (`data/make_family.py`).

#![cfg(feature = "cpu")]

use std::fs;
use std::path::{Path, PathBuf};

use ebb_model::bert::{
    Classification, Classifier, Encoder, Pieces, Problem, Settings, Tagged, Tagger, Task,
    Tokenizer, Tokens, entities, words,
};
use ebb_model::{DeviceChoice, Model, ModelKind, recognise};
use serde_json::{Value, json};

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

#[test]
fn a_prompt_of_the_model_stands_before_each_text() {
    let dir = data("tiny-xlm-roberta");
    let tokenizer = Tokenizer::load(&dir).expect("the tokenizer loads");
    let mut encoder = Encoder::load(&dir, DeviceChoice::Cpu).expect("the weights load");
    let reference = reference("tiny-xlm-roberta");
    for name in ["query", "document"] {
        let prompt = tokenizer.prompt(Some(name)).expect("it is there");
        for (n, case) in reference["cases"].as_array().expect("cases").iter().enumerate() {
            let n_times = case["repeat"].as_u64().expect("a count") as usize;
            let text = case["text"].as_str().expect("a text").repeat(n_times);
            let tokens = tokenizer.tokenize_after(prompt, &text).expect("a text");
            let mut found = encoder.infer(&[vec![tokens]]).expect("the batch runs").remove(0);
            let found = &mut found.as_mut().expect("the item runs")[0];
            let expected = numbers(&reference[name][n]);
            assert_near(&found.vector, &expected, &format!("{name}: text {n}"));
            found.shorten(5, true);
            let length = expected[..5].iter().map(|x| x * x).sum::<f64>().sqrt();
            let expected: Vec<f64> = expected[..5].iter().map(|x| x / length).collect();
            assert_near(&found.vector, &expected, &format!("{name}: text {n}, shorter"));
        }
    }
}

/// A copy of a tiny model with a field of its `config.json` changed.
fn changed(name: &str, field: &str, value: Value) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    for entry in fs::read_dir(data(name)).expect("a model").flatten() {
        fs::copy(entry.path(), dir.path().join(entry.file_name())).expect("a copy");
    }
    let path = dir.path().join("config.json");
    let text = fs::read_to_string(&path).expect("a file");
    let mut json: Value = serde_json::from_str(&text).expect("JSON");
    json[field] = value;
    fs::write(path, json.to_string()).expect("written");
    dir
}

fn classifier(dir: &Path) -> (Tokenizer, Classifier) {
    let tokenizer = Tokenizer::load(dir).expect("the tokenizer loads");
    (tokenizer, Classifier::load(dir, DeviceChoice::Cpu).expect("the weights load"))
}

fn near_alone(alone: &[Classification], among: &[Classification]) {
    assert_eq!(alone.len(), among.len(), "texts alone and in a batch");
    for (alone, among) in alone.iter().zip(among) {
        let among: Vec<f64> = among.logits.iter().map(|x| f64::from(*x)).collect();
        assert_near(&alone.logits, &among, "alone and in a batch");
    }
}

#[test]
fn classifiers_of_each_family_are_as_transformers_has_them() {
    for (name, problem) in [
        ("tiny-classes-bert", Problem::SingleLabel),
        ("tiny-classes-roberta", Problem::MultiLabel),
        ("tiny-classes-distilbert", Problem::SingleLabel),
    ] {
        assert_eq!(recognise(&data(name)).expect("it is known"), ModelKind::Classifier);
        let settings = Settings::read(&data(name)).expect("settings");
        assert_eq!((settings.task(), settings.problem()), (Task::Classification, problem));
        let (tokenizer, mut model) = classifier(&data(name));
        model.warm_up().expect("it runs");
        let reference = reference(name);
        let batch: Vec<_> =
            cut(&tokenizer, &reference["cases"]).into_iter().map(|texts| vec![texts]).collect();
        for (n, found) in
            infer(&mut model, &batch, |alone, among| near_alone(alone, among)).iter().enumerate()
        {
            let logits = numbers(&reference["logits"][n]);
            let what = format!("{name}: text {n}");
            assert_near(&found[0].logits, &logits, &what);
            assert_near(&found[0].scores, &scores(problem, &logits), &what);
        }
    }
}

/// In double precision.
fn scores(problem: Problem, logits: &[f64]) -> Vec<f64> {
    let sum: f64 = logits.iter().map(|x| x.exp()).sum();
    match problem {
        Problem::SingleLabel => logits.iter().map(|x| x.exp() / sum).collect(),
        Problem::MultiLabel => logits.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect(),
        Problem::Regression => logits.to_vec(),
    }
}

#[test]
fn rerankers_score_pairs_as_transformers_does() {
    for name in ["tiny-rerank-bert", "tiny-rerank-xlm-roberta"] {
        assert_eq!(recognise(&data(name)).expect("it is known"), ModelKind::Reranker);
        let (tokenizer, mut model) = classifier(&data(name));
        let reference = reference(name);
        let jobs = reference["pairs"].as_array().expect("pairs");
        let pairs = |job: &Value| {
            let query = job["query"].as_str().expect("a text");
            let documents = job["documents"].as_array().expect("documents").iter();
            let documents = documents.map(|document| document.as_str().expect("a text"));
            vec![tokenizer.tokenize_pairs(query, documents).expect("pairs")]
        };
        let batch: Vec<_> = jobs.iter().map(pairs).collect();
        let results = infer(&mut model, &batch, |alone, among| near_alone(alone, among));
        for (job, found) in jobs.iter().zip(&results) {
            let logits = numbers(&job["logits"]);
            let found: Vec<f32> = found.iter().map(|one| one.logits[0]).collect();
            assert_near(&found, &logits, &format!("{name}: {}", job["query"]));
        }
        let scores: Vec<f32> = results[0].iter().map(|one| one.scores[0]).collect();
        let logits = numbers(&jobs[0]["logits"]);
        assert_near(&scores, &self::scores(Problem::MultiLabel, &logits), name);
    }
}

#[test]
fn one_number_that_is_asked_for_as_such_is_a_regression() {
    let dir = changed("tiny-rerank-bert", "problem_type", json!("regression"));
    // A cross-encoder says there what becomes of its number.
    assert_eq!(recognise(dir.path()).expect("it is known"), ModelKind::Reranker);
    fs::remove_file(dir.path().join("config_sentence_transformers.json")).expect("it was there");
    assert_eq!(recognise(dir.path()).expect("it is known"), ModelKind::Classifier);
    let (tokenizer, mut model) = classifier(dir.path());
    let text = tokenizer.tokenize("the pump is warm").expect("a text");
    let results = model.infer(&[vec![text]]).expect("the batch runs");
    let found = &results[0].as_ref().expect("the item runs")[0];
    assert_eq!(found.scores, found.logits);
}

#[test]
fn a_bad_pair_fails_alone() {
    let (tokenizer, mut model) = classifier(&data("tiny-rerank-bert"));
    let good = tokenizer.tokenize_pairs("warm?", ["the pump is warm"]).expect("a pair").remove(0);
    let bad = Tokens::from_ids(vec![1_000_000]);
    let long = Tokens::from_ids(vec![1; 65]);
    let batch = [vec![good.clone()], vec![good.clone(), bad], vec![long], vec![good.clone()]];
    let results = model.infer(&batch).expect("the batch runs");
    assert_eq!(results[0], results[3]);
    assert!(results[0].is_ok());
    for (place, says) in [(1, "token 1000000"), (2, "65 tokens; the model takes 1 to 64")] {
        let error = results[place].as_ref().expect_err("a bad item").to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn a_head_that_is_not_supported_is_named_with_those_that_are() {
    for (field, value, says) in [
        ("architectures", json!(["BertForQuestionAnswering"]), "BertForQuestionAnswering; known"),
        ("problem_type", json!("ranking"), "problem_type is ranking; known are single_label"),
        ("id2label", json!({"1": "a"}), "id2label is a map of [1]; its keys must be 0, 1"),
        ("id2label", json!({"0": "a", "1": "b"}), "tensor classifier.weight is [3, 16]"),
    ] {
        let dir = changed("tiny-classes-bert", field, value);
        let error = Classifier::load(dir.path(), DeviceChoice::Cpu).expect_err(says).to_string();
        assert!(error.contains(says), "{error}");
    }
}

fn near_tags(alone: &[Tagged], among: &[Tagged]) {
    assert_eq!((alone.len(), among.len()), (1, 1), "a job is a text");
    assert_eq!(alone[0].tags.len(), among[0].tags.len(), "tags alone and in a batch");
    for (alone, among) in alone[0].tags.iter().zip(&among[0].tags) {
        assert_eq!((alone.label, alone.start, alone.end), (among.label, among.start, among.end));
        assert_near(&[alone.score], &[f64::from(among.score)], "alone and in a batch");
    }
}

#[test]
fn taggers_of_each_family_find_what_transformers_finds() {
    for name in ["tiny-tags-bert", "tiny-tags-roberta", "tiny-tags-distilbert"] {
        assert_eq!(recognise(&data(name)).expect("it is known"), ModelKind::Tagger);
        let settings = Settings::read(&data(name)).expect("settings");
        let labels = settings.labels();
        let tokenizer = Tokenizer::load(&data(name)).expect("the tokenizer loads");
        let mut model = Tagger::load(&data(name), DeviceChoice::Cpu).expect("the weights load");
        model.warm_up().expect("it runs");
        let reference = reference(name);
        let texts = reference["texts"].as_array().expect("texts");
        let cut = |text: &Value| tokenizer.tokenize_pieces(text.as_str().expect("a text"));
        let cut = |text: &Value| vec![vec![cut(text).expect("a text")]];
        let batch: Vec<Vec<Vec<Pieces>>> = texts.iter().map(cut).collect();
        let results = infer(&mut model, &batch, |alone, among| near_tags(alone, among));
        for (n, found) in results.iter().enumerate() {
            let tags = found[0].tags.iter().filter(|tag| labels[tag.label] != "O");
            let tags: Vec<_> = tags
                .map(|tag| (labels[tag.label].as_str(), tag.score, tag.start, tag.end))
                .collect();
            assert_found(&tags, &reference["none"][n], &format!("{name}: tokens of text {n}"));
            let groups = entities(&found[0].tags, labels);
            let groups: Vec<_> = groups
                .iter()
                .map(|one| (one.label.as_str(), one.score, one.start, one.end))
                .collect();
            assert_found(&groups, &reference["simple"][n], &format!("{name}: text {n}"));
            let is_long = texts[n].as_str().expect("a text").len() > 500;
            assert_eq!(found[0].is_cut, is_long, "{name}: text {n}");
        }
        let long: Vec<_> = words(&results[5][0].tags, labels);
        assert!(long.iter().all(|word| word.end - word.start <= 7), "words are words: {long:?}");
    }
}

/// Where the words of a text without accents are, as BERT has them: letters and digits together, each
/// sign alone.
fn places_of_words(text: &str) -> Vec<(usize, usize)> {
    let mut places: Vec<(usize, usize)> = Vec::new();
    let mut before = ' ';
    for (at, char) in text.chars().enumerate() {
        match places.last_mut() {
            Some((_, end)) if char.is_alphanumeric() && before.is_alphanumeric() => *end = at + 1,
            _ if char.is_whitespace() => {}
            _ => places.push((at, at + 1)),
        }
        before = char;
    }
    places
}

#[test]
fn a_word_is_what_transformers_says_of_its_first_token() {
    for name in ["tiny-tags-bert", "tiny-tags-distilbert"] {
        let settings = Settings::read(&data(name)).expect("settings");
        let tokenizer = Tokenizer::load(&data(name)).expect("the tokenizer loads");
        let mut model = Tagger::load(&data(name), DeviceChoice::Cpu).expect("the weights load");
        let reference = reference(name);
        let texts = reference["texts"].as_array().expect("texts").iter().enumerate();
        let texts = texts.map(|(n, text)| (n, text.as_str().expect("a text")));
        let mut n_words = 0;
        for (n, text) in texts.filter(|(_, text)| text.is_ascii() && text.len() < 100) {
            // A token that is outside of everything is not listed.
            let of_tokens = reference["none"][n].as_array().expect("tokens");
            let starting = |at| of_tokens.iter().find(|token| token[2] == json!(at));
            let words_of_text = places_of_words(text).into_iter();
            let expected = words_of_text.filter_map(|(start, end)| {
                let token = starting(start)?;
                Some(json!([token[0], token[1], start, end]))
            });
            let expected: Vec<Value> = expected.collect();
            let pieces = tokenizer.tokenize_pieces(text).expect("a text");
            let results = model.infer(&[vec![pieces]]).expect("the batch runs");
            let tags = &results[0].as_ref().expect("the item runs")[0].tags;
            let found = words(tags, settings.labels());
            let found: Vec<_> = found
                .iter()
                .map(|one| (one.label.as_str(), one.score, one.start, one.end))
                .collect();
            n_words += found.len();
            assert_found(&found, &Value::Array(expected), &format!("{name}: words of {text:?}"));
        }
        assert!(n_words > 10, "{name}: {n_words} words");
    }
}

fn assert_found(found: &[(&str, f32, usize, usize)], expected: &Value, what: &str) {
    let expected = expected.as_array().expect("entities");
    assert_eq!(found.len(), expected.len(), "{what}: {found:?}");
    for ((label, score, start, end), expected) in found.iter().zip(expected) {
        assert_eq!(expected[0], *label, "{what}");
        assert_near(&[*score], &[expected[1].as_f64().expect("a score")], what);
        assert_eq!((&expected[2], &expected[3]), (&json!(start), &json!(end)), "{what}");
    }
}
