//! Model directories that are not what they should be: an error names the file, the field and what
//! would do; nothing panics, and nothing is allocated for what a file only claims.

#![cfg(feature = "cpu")]
#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use ebb_model::bert::{Classifier, Encoder, Tagger, Tokenizer};
use ebb_model::{DeviceChoice, ItemError, LoadError, Model, ModelInfo, ModelKind, recognise};
use serde_json::{Value, json};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), &to).unwrap();
        }
    }
}

/// A copy of a tiny model.
fn model(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy(&data(name), dir.path());
    dir
}

fn read(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// The same with a field of a file changed.
fn changed(name: &str, file: &str, field: &str, value: Value) -> tempfile::TempDir {
    let dir = model(name);
    let path = dir.path().join(file);
    let mut json = read(&path);
    json[field] = value;
    fs::write(path, json.to_string()).unwrap();
    dir
}

/// Takes fields out of `config.json`.
fn without(name: &str, fields: &[&str]) -> tempfile::TempDir {
    let dir = model(name);
    let path = dir.path().join("config.json");
    let mut json = read(&path);
    fields.iter().for_each(|field| drop(json.as_object_mut().unwrap().remove(*field)));
    fs::write(path, json.to_string()).unwrap();
    dir
}

/// Does what a worker does with a directory until its first answer.
fn load(dir: &Path) -> Result<ModelKind, LoadError> {
    let kind = recognise(dir)?;
    let tokenizer = Tokenizer::load(dir)?;
    let text = "the pump is warm";
    if kind == ModelKind::Tagger {
        let batch = tokenizer.tokenize_pieces(text).map(|pieces| vec![pieces]);
        run(Tagger::load(dir, DeviceChoice::Cpu)?, batch);
        return Ok(kind);
    }
    let batch = tokenizer.tokenize(text).map(|tokens| vec![tokens]);
    match kind {
        ModelKind::Encoder => run(Encoder::load(dir, DeviceChoice::Cpu)?, batch),
        _ => run(Classifier::load(dir, DeviceChoice::Cpu)?, batch),
    }
    Ok(kind)
}

/// What can be cut has a result or an error.
fn run<M: Model>(mut model: M, text: Result<M::Input, ItemError>) {
    if let Ok(text) = text {
        assert_eq!(model.infer(&[text]).map_or(1, |results| results.len()), 1);
    }
}

#[track_caller]
fn says(dir: &Path, expected: &str) {
    let error = load(dir).expect_err(expected).to_string();
    assert!(error.contains(expected), "{error}\nlacks {expected}");
}

#[test]
fn a_directory_without_architectures_is_an_encoder_however_they_are_missing() {
    let expected = recognise(without("tiny-bert", &["architectures"]).path()).unwrap();
    assert_eq!(expected, ModelKind::Encoder);
    for value in [json!(null), json!([])] {
        let dir = changed("tiny-bert", "config.json", "architectures", value);
        assert_eq!(load(dir.path()).unwrap(), expected);
        let info = ModelInfo::read(dir.path()).unwrap();
        assert_eq!((info.kind, info.architecture.as_str()), (expected, "bert"));
    }
    // A head that nobody here knows is none that may be left out, unless the modules leave it out.
    let modules = changed("tiny-bert", "config.json", "architectures", json!(["Contriever"]));
    assert_eq!(load(modules.path()).unwrap(), expected);
    for name in ["HF_ColBERT", "BertClassifier", "BertFor", "BertModelWithHead"] {
        let dir = changed("tiny-bert", "config.json", "architectures", json!([name]));
        std::fs::remove_file(dir.path().join("modules.json")).unwrap();
        says(
            dir.path(),
            &format!("config.json: architectures is {name}; known are BertModel, Bert"),
        );
        let error = ModelInfo::read(dir.path()).expect_err(name).to_string();
        assert!(error.contains(&format!("architectures is {name}")), "{error}");
    }
    for value in [json!("BertModel"), json!([null]), json!([7])] {
        let dir = changed("tiny-bert", "config.json", "architectures", value.clone());
        says(dir.path(), &format!("config.json: architectures is {value}; it must be a list of"));
    }
}

#[test]
fn labels_without_names_are_as_many_as_the_head_has_outputs() {
    let head = |field: &str, value: Value| {
        let dir = without("tiny-classes-bert", &["id2label", "label2id"]);
        let path = dir.path().join("config.json");
        let mut json = read(&path);
        json[field] = value;
        fs::write(path, json.to_string()).unwrap();
        dir
    };
    let dir = head("num_labels", json!(3));
    assert_eq!(load(dir.path()).unwrap(), ModelKind::Classifier);
    let labels = ModelInfo::read(dir.path()).unwrap().labels;
    assert_eq!(labels, ["LABEL_0", "LABEL_1", "LABEL_2"]);
    for (value, expected) in [
        (json!(u64::MAX), "num_labels is 18446744073709551615; it must be a whole number from 1"),
        (json!(4_000_000_000_u32), "num_labels is 4000000000; it must be a whole number from 1"),
        (json!(0), "num_labels is 0; it must be a whole number from 1"),
        (json!(-1), "num_labels is -1; it must be a whole number from 1"),
        (json!(2.5), "num_labels is 2.5; it must be a whole number from 1"),
        (json!(2), "tensor classifier.weight is [3, 16], and config.json tells of 2 labels"),
        (json!(null), "tensor classifier.weight is [3, 16], and config.json tells of 2 labels"),
        (json!(100_000), "config.json tells of 100000 labels; id2label"),
    ] {
        let dir = head("num_labels", value);
        says(dir.path(), expected);
        let error = ModelInfo::read(dir.path()).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn the_outputs_of_every_head_are_held_against_its_labels() {
    for (name, tensor) in [
        ("tiny-classes-roberta", "classifier.out_proj.weight is [4, 16]"),
        ("tiny-classes-distilbert", "classifier.weight is [2, 16]"),
        ("tiny-tags-roberta", "classifier.weight is [6, 16]"),
        ("tiny-rerank-bert", "classifier.weight is [1, 16]"),
    ] {
        let labels: Vec<_> = (0..7).map(|n| (n.to_string(), json!("a"))).collect();
        let labels = Value::Object(labels.into_iter().collect());
        let dir = changed(name, "config.json", "id2label", labels);
        says(dir.path(), tensor);
        let error = ModelInfo::read(dir.path()).expect_err(tensor).to_string();
        assert!(error.contains(tensor) && error.contains("7 labels"), "{error}");
    }
    let encoder =
        changed("tiny-bert", "config.json", "architectures", json!(["BertForTokenClassification"]));
    says(encoder.path(), "known beside a head, which architectures in config.json tells of, is");
    fs::remove_file(encoder.path().join("modules.json")).unwrap();
    says(encoder.path(), "tensor classifier.weight is missing");
}

#[test]
fn a_number_that_cannot_be_is_named_with_what_would_do() {
    let config = "config.json";
    for (name, file, field, value, expected) in [
        ("tiny-bert", config, "hidden_size", json!(0), "hidden_size is 0; it must be a whole"),
        ("tiny-bert", config, "hidden_size", json!(-32), "hidden_size is -32; it must be"),
        ("tiny-bert", config, "hidden_size", json!(32.5), "hidden_size is 32.5; it must be"),
        ("tiny-bert", config, "hidden_size", json!(1u64 << 60), "from 1 to 16777216"),
        ("tiny-bert", config, "hidden_size", json!(1 << 20), "config.json says [174, 1048576]"),
        ("tiny-bert", config, "hidden_size", json!(null), "hidden_size is missing"),
        ("tiny-bert", config, "num_attention_heads", json!(0), "num_attention_heads is 0"),
        ("tiny-bert", config, "num_attention_heads", json!(64), "it must divide by"),
        ("tiny-bert", config, "num_hidden_layers", json!(0), "num_hidden_layers is 0"),
        ("tiny-bert", config, "num_hidden_layers", json!(u64::MAX), "from 1 to 4096"),
        ("tiny-bert", config, "num_hidden_layers", json!(4096), "encoder.layer.2."),
        ("tiny-bert", config, "intermediate_size", json!(1u64 << 61), "from 1 to 16777216"),
        ("tiny-bert", config, "intermediate_size", json!(1 << 24), "says [16777216, 32]"),
        ("tiny-bert", config, "vocab_size", json!(1 << 24), "config.json says [16777216, 32]"),
        ("tiny-bert", config, "max_position_embeddings", json!(0), "max_position_embeddings is 0"),
        ("tiny-bert", config, "max_position_embeddings", json!(9000), "says [9000, 32]"),
        ("tiny-bert", config, "type_vocab_size", json!(3), "config.json says [3, 32]"),
        ("tiny-bert", config, "layer_norm_eps", json!(1e39), "layer_norm_eps is 1e+39; it must be"),
        ("tiny-bert", config, "layer_norm_eps", json!(-1e-5), "layer_norm_eps is -0.00001; it"),
        ("tiny-bert", config, "layer_norm_eps", json!("1e-5"), "layer_norm_eps is \"1e-5\"; it"),
        ("tiny-roberta", config, "pad_token_id", json!(u64::MAX), "pad_token_id is 1844674407370"),
        ("tiny-roberta", config, "pad_token_id", json!(-1), "pad_token_id is -1; it must be"),
        ("tiny-roberta", config, "pad_token_id", json!(330), "it must be below vocab_size, which"),
        ("tiny-roberta", config, "pad_token_id", json!(65), "it must be more than pad_token_id"),
        (
            "tiny-bert",
            "sentence_bert_config.json",
            "max_seq_length",
            json!(0),
            "it must be a number",
        ),
        ("tiny-bert", "sentence_bert_config.json", "max_seq_length", json!(-1), "length is -1; it"),
        ("tiny-bert", "sentence_bert_config.json", "max_seq_length", json!(1), "room for 1; raise"),
        ("tiny-bert", "sentence_bert_config.json", "max_seq_length", json!(2), "room for 2; raise"),
        ("tiny-tags-bert", "tokenizer_config.json", "model_max_length", json!(0), "is 0; it must"),
        ("tiny-rerank-bert", "tokenizer_config.json", "model_max_length", json!(3), "room for 3"),
    ] {
        let dir = changed(name, file, field, value);
        says(dir.path(), expected);
        says(dir.path(), file_of(file, expected));
    }
}

/// Errors of shapes name the weights, and those of a text's frame the tokenizer.
fn file_of<'a>(file: &'a str, expected: &str) -> &'a str {
    match expected {
        _ if expected.contains("says [") || expected.starts_with("encoder.") => "model.safetensors",
        _ if expected.starts_with("room for") => "tokenizer.json",
        _ => file,
    }
}

#[test]
fn what_a_family_does_not_look_at_may_be_anything() {
    for (name, field, value) in [
        ("tiny-bert", "pad_token_id", json!(-1)),
        ("tiny-distilbert", "type_vocab_size", json!(0)),
        ("tiny-bert", "num_labels", json!(-5)),
        ("tiny-bert", "dim", json!(7)),
    ] {
        load(changed(name, "config.json", field, value).path()).unwrap();
    }
}

#[test]
fn a_tokenizer_of_another_model_is_told_at_the_start() {
    // Its own file says what stands around a text.
    let dir = model("tiny-xlm-roberta");
    let path = dir.path().join("tokenizer.json");
    let mut tokenizer = read(&path);
    let tokens = &mut tokenizer["post_processor"]["special_tokens"]["<s>"]["ids"];
    assert!(tokens.is_array());
    *tokens = json!([5000]);
    fs::write(path, tokenizer.to_string()).unwrap();
    says(dir.path(), "tokenizer.json: token 5000 is of every text, and vocab_size in config.json");
}

#[test]
fn beside_a_head_there_is_no_other_module_and_no_prompt_of_its_own() {
    for name in ["tiny-rerank-bert", "tiny-classes-roberta", "tiny-tags-distilbert"] {
        let kind = load(model(name).path()).unwrap();
        let with = |file: &str, content: Value| {
            let dir = model(name);
            fs::write(dir.path().join(file), content.to_string()).unwrap();
            dir
        };
        let module = |kind: &str, path: &str| json!({"type": format!("x.{kind}"), "path": path});
        let alone = json!([module("Transformer", "")]);
        assert_eq!(load(with("modules.json", alone).path()).unwrap(), kind);
        for (modules, place) in [
            (json!([module("Transformer", ""), module("Dense", "1_Dense")]), "module 1 is x.Dense"),
            (json!([module("Transformer", "0_Transformer")]), "module 0 is x.Transformer in \"0_"),
            (json!([module("Router", "")]), "module 0 is x.Router"),
        ] {
            let dir = with("modules.json", modules);
            says(dir.path(), place);
            says(
                dir.path(),
                "known beside a head, which architectures in config.json tells of, is",
            );
        }
        for (prompt, is_good) in [("", true), ("query: ", false)] {
            let prompts = json!({"prompts": {"a": prompt}, "default_prompt_name": "a"});
            let dir = with("config_sentence_transformers.json", prompts);
            match is_good {
                true => assert_eq!(load(dir.path()).unwrap(), kind),
                false => {
                    says(dir.path(), "default_prompt_name is a; prompts are known of encoders");
                }
            }
        }
    }
}

#[test]
fn a_module_lies_in_a_folder_of_the_model() {
    for (path, is_good) in [
        ("1_Pooling", true),
        ("1_Pooling/", true),
        ("./1_Pooling", true),
        ("./1_Pooling/.", true),
        ("./", true),
        ("a/b", true),
        ("a//./b/", true),
        ("../1_Pooling", false),
        ("./../1_Pooling", false),
        ("1_Pooling/..", false),
        ("..", false),
        ("/tmp", false),
        ("a/../1_Pooling", false),
        ("a/..", false),
    ] {
        let modules =
            json!([{"path": "", "type": "x.Transformer"}, {"path": path, "type": "x.Pooling"}]);
        let dir = model("tiny-bert");
        fs::write(dir.path().join("modules.json"), modules.to_string()).unwrap();
        copy(&dir.path().join("1_Pooling"), &dir.path().join("a/b"));
        match is_good {
            true => assert_eq!(load(dir.path()).unwrap(), ModelKind::Encoder),
            false => says(dir.path(), "known are Transformer in \"\", Pooling in a folder of this"),
        }
    }
}

#[test]
fn dense_layers_are_few_and_each_has_a_folder_of_its_own() {
    for (folders, is_good) in [
        ((0..8).map(|n| format!("{n}_Dense")).collect::<Vec<_>>(), true),
        ((0..9).map(|n| format!("{n}_Dense")).collect(), false),
        (vec!["a".into(), "./a/".into()], false),
    ] {
        let module = |kind: &str, path: &str| json!({"type": format!("x.{kind}"), "path": path});
        let mut modules = vec![module("Transformer", ""), module("Pooling", "1_Pooling")];
        modules.extend(folders.iter().map(|folder| module("Dense", folder)));
        let dir = model("tiny-bert");
        fs::write(dir.path().join("modules.json"), json!(modules).to_string()).unwrap();
        match is_good {
            true => says(dir.path(), "0_Dense"),
            false => says(dir.path(), "known are up to 8 Dense, each in a folder of its own"),
        }
    }
}

#[test]
fn a_module_whose_file_is_missing_is_told_by_the_file_that_names_it() {
    let dir = model("tiny-bert");
    fs::remove_file(dir.path().join("1_Pooling/config.json")).unwrap();
    says(dir.path(), "modules.json: module 1 is a Pooling of 1_Pooling/config.json; that file is");
}

#[test]
fn the_info_lists_the_pooling_that_is_read() {
    for (path, listed) in [
        ("1_Pooling", "1_Pooling/config.json"),
        ("./pool", "pool/config.json"),
        ("", "config.json"),
        ("./pool/./inner", "pool/inner/config.json"),
    ] {
        let modules =
            json!([{"path": "", "type": "x.Transformer"}, {"path": path, "type": "x.Pooling"}]);
        let dir = model("tiny-bert");
        fs::write(dir.path().join("modules.json"), modules.to_string()).unwrap();
        for folder in ["pool", "pool/inner"] {
            copy(&dir.path().join("1_Pooling"), &dir.path().join(folder));
        }
        let info = ModelInfo::read(dir.path()).unwrap();
        let names = info.files.iter().map(|file| file.name.as_str());
        let configs: Vec<_> = names.filter(|name| name.ends_with("config.json")).collect();
        let others = ["tokenizer_config.json", "sentence_bert_config.json"];
        let mut expected = vec!["config.json", listed];
        expected.dedup();
        let configs: Vec<_> = configs.into_iter().filter(|it| !others.contains(it)).collect();
        assert_eq!(configs, expected, "{path}");
    }
}

/// All that is no JSON object or list, and where it stands.
fn leaves(value: &Value, path: String, all: &mut Vec<String>) {
    match value {
        // Hundreds of words, all alike.
        _ if path.ends_with("/vocab") || path.ends_with("/merges") => {}
        Value::Object(map) if !map.is_empty() => {
            let escaped = |key: &str| key.replace('~', "~0").replace('/', "~1");
            map.iter()
                .for_each(|(key, value)| leaves(value, format!("{path}/{}", escaped(key)), all));
        }
        Value::Array(list) if !list.is_empty() => {
            leaves(&list[0], format!("{path}/0"), all);
        }
        _ => {}
    }
    all.push(path);
}

/// Puts each of these values in each place of a file; what comes of it is a model or an error.
fn check(name: &str, file: &str, values: &[Value]) {
    let dir = model(name);
    let path = dir.path().join(file);
    let sound = read(&path);
    let mut places = Vec::new();
    leaves(&sound, String::new(), &mut places);
    for (place, value) in places.iter().flat_map(|place| values.iter().map(move |it| (place, it))) {
        let mut json = sound.clone();
        *json.pointer_mut(place).unwrap() = value.clone();
        fs::write(&path, json.to_string()).unwrap();
        let tried = || [ModelInfo::read(dir.path()).err(), load(dir.path()).err()];
        let errors = catch_unwind(AssertUnwindSafe(tried));
        let errors = errors.unwrap_or_else(|_| panic!("{name}/{file}: {place} as {value} panics"));
        for error in errors.into_iter().flatten().map(|error| error.to_string()) {
            assert!(error.starts_with(&dir.path().display().to_string()), "{error}");
        }
    }
}

#[test]
fn no_value_in_a_small_file_makes_a_panic() {
    let numbers = [json!(0), json!(1), json!(-1), json!(2.5), json!(u64::MAX), json!(1e300)];
    let others = [json!(null), json!(true), json!(""), json!([]), json!([0]), json!({"0": "a"})];
    let values = [&numbers[..], &others].concat();
    for name in ["tiny-bert", "tiny-classes-roberta", "tiny-tags-distilbert"] {
        check(name, "config.json", &values);
    }
    for file in [
        "modules.json",
        "1_Pooling/config.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
        "tokenizer_config.json",
    ] {
        check("tiny-bert", file, &values);
    }
}

#[test]
fn no_value_in_a_tokenizer_makes_a_panic() {
    let values = [json!(null), json!(""), json!(u64::MAX), json!([])];
    for name in ["tiny-bert", "tiny-classes-roberta", "tiny-rerank-xlm-roberta"] {
        check(name, "tokenizer.json", &values);
    }
}

#[test]
fn a_tensor_of_unknown_numbers_may_claim_any_size() {
    let dir = model("tiny-bert");
    let entry = json!({"dtype": "F4", "shape": [u64::MAX], "data_offsets": [0, 0]});
    let header = json!({"a": entry, "b": entry}).to_string();
    let length = (header.len() as u64).to_le_bytes();
    let weights = [&length[..], header.as_bytes()].concat();
    fs::write(dir.path().join("model.safetensors"), weights).unwrap();
    assert_eq!(ModelInfo::read(dir.path()).unwrap().parameters, u64::MAX);
    says(dir.path(), "the weights are not of such a model");
}
