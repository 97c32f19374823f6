//! Weights in shards: the same model as in one file, and errors that name the shard.

#![cfg(feature = "cpu")]
#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

use std::fs;
use std::path::{Path, PathBuf};

use ebb_model::bert::{Classifier, Encoder, Tagger, Tokenizer};
use ebb_model::sentinel::{Sentinel, Window};
use ebb_model::{DeviceChoice, Model, ModelInfo};
use serde_json::{Map, Value, json};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const FIRST: &str = "model-00001-of-00002.safetensors";
const SECOND: &str = "model-00002-of-00002.safetensors";

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// A copy of a tiny model with its weights in two shards.
fn sharded(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("1_Pooling")).unwrap();
    for file in ["config.json", "tokenizer.json", "modules.json", "1_Pooling/config.json", SINGLE] {
        if data(name).join(file).exists() {
            fs::copy(data(name).join(file), dir.path().join(file)).unwrap();
        }
    }
    split(dir.path());
    dir
}

/// Puts two shards, each with every second tensor, and an index in place of the single file.
fn split(dir: &Path) {
    let bytes = fs::read(dir.join(SINGLE)).unwrap();
    let n_header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Map<String, Value> = serde_json::from_slice(&bytes[8..8 + n_header]).unwrap();
    let tensors = header.iter().filter(|(name, _)| *name != "__metadata__");
    let mut shards = [FIRST, SECOND].map(|name| (name, Map::new(), Vec::new()));
    let mut places = Map::new();
    for (nth, (name, entry)) in tensors.enumerate() {
        let (shard, header, data) = &mut shards[nth % 2];
        let place = |n: usize| 8 + n_header + entry["data_offsets"][n].as_u64().unwrap() as usize;
        let start = data.len();
        data.extend(&bytes[place(0)..place(1)]);
        let mut entry = entry.clone();
        entry["data_offsets"] = json!([start, data.len()]);
        header.insert(name.clone(), entry);
        places.insert(name.clone(), json!(shard));
    }
    for (name, header, data) in shards {
        let header = Value::Object(header).to_string();
        let length = (header.len() as u64).to_le_bytes();
        let bytes = [&length[..], header.as_bytes(), &data].concat();
        fs::write(dir.join(name), bytes).unwrap();
    }
    let index = json!({"metadata": {"total_size": bytes.len()}, "weight_map": places});
    fs::write(dir.join(INDEX), index.to_string()).unwrap();
    fs::remove_file(dir.join(SINGLE)).unwrap();
}

fn outputs<M: Model>(mut model: M, input: M::Input) -> M::Output {
    model.infer(&[input]).unwrap().remove(0).unwrap()
}

#[test]
fn weights_in_shards_are_the_same_model() {
    let text = "the pump is warm";
    for name in ["tiny-bert", "tiny-roberta", "tiny-distilbert"] {
        let vectors = |dir: &Path| {
            let tokens = Tokenizer::load(dir).unwrap().tokenize(text).unwrap();
            outputs(Encoder::load(dir, DeviceChoice::Cpu).unwrap(), vec![tokens])
        };
        assert_eq!(vectors(sharded(name).path()), vectors(&data(name)), "{name}");
    }
    let scores = |dir: &Path| {
        let tokens = Tokenizer::load(dir).unwrap().tokenize(text).unwrap();
        outputs(Classifier::load(dir, DeviceChoice::Cpu).unwrap(), vec![tokens])
    };
    let name = "tiny-classes-roberta";
    assert_eq!(scores(sharded(name).path()), scores(&data(name)));
    let tags = |dir: &Path| {
        let pieces = Tokenizer::load(dir).unwrap().tokenize_pieces(text).unwrap();
        outputs(Tagger::load(dir, DeviceChoice::Cpu).unwrap(), vec![pieces])
    };
    let name = "tiny-tags-bert";
    assert_eq!(tags(sharded(name).path()), tags(&data(name)));
}

#[test]
fn a_sentinel_may_be_in_shards_too() {
    let dir = tempfile::tempdir().unwrap();
    let shipped = Sentinel::shipped(DeviceChoice::Cpu).unwrap();
    shipped.save(dir.path()).unwrap();
    split(dir.path());
    let readings = |mean: f32| vec![mean; shipped.config().window];
    let window =
        Window { vibration: readings(2.0), temperature: readings(60.0), pressure: readings(5.0) };
    let found = outputs(Sentinel::load(dir.path(), DeviceChoice::Cpu).unwrap(), window.clone());
    assert_eq!(found, outputs(shipped, window));
    assert_eq!(ModelInfo::read(dir.path()).unwrap().files.len(), 4);
}

#[test]
fn the_info_lists_the_index_and_every_shard() {
    let dir = sharded("tiny-bert");
    let info = ModelInfo::read(dir.path()).unwrap();
    let single = ModelInfo::read(&data("tiny-bert")).unwrap();
    assert_eq!(info.parameters, single.parameters);
    let names: Vec<&str> = info.files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names[names.len() - 3..], [INDEX, FIRST, SECOND]);
    assert!(info.files.iter().all(|file| file.bytes > 0 && file.sha256.len() == 64));
}

#[test]
fn of_a_single_file_and_an_index_the_file_is_used() {
    let dir = sharded("tiny-bert");
    fs::copy(data("tiny-bert").join(SINGLE), dir.path().join(SINGLE)).unwrap();
    for file in [INDEX, FIRST] {
        fs::write(dir.path().join(file), "rubbish").unwrap();
    }
    Encoder::load(dir.path(), DeviceChoice::Cpu).unwrap();
    let info = ModelInfo::read(dir.path()).unwrap();
    assert!(info.files.iter().any(|file| file.name == SINGLE));
    assert!(!info.files.iter().any(|file| [INDEX, FIRST, SECOND].contains(&&*file.name)));
}

#[test]
fn what_is_wrong_with_shards_is_told_by_the_load_and_by_the_info() {
    let of = |change: &dyn Fn(&Path)| {
        let dir = sharded("tiny-bert");
        change(dir.path());
        dir
    };
    let change_index = |change: &dyn Fn(&mut Value)| {
        of(&|dir| {
            let text = fs::read_to_string(dir.join(INDEX)).unwrap();
            let mut index: Value = serde_json::from_str(&text).unwrap();
            change(&mut index["weight_map"]);
            fs::write(dir.join(INDEX), index.to_string()).unwrap();
        })
    };
    const NORM: &str = "embeddings.LayerNorm.weight";
    for (dir, says) in [
        (of(&|dir| fs::write(dir.join(INDEX), "{").unwrap()), "not an index of shards: EOF"),
        (of(&|dir| fs::write(dir.join(INDEX), "{}").unwrap()), "missing field `weight_map`"),
        (of(&|dir| fs::remove_file(dir.join(SECOND)).unwrap()), "shard model-00002-of-00002.safe"),
        (of(&|dir| fs::remove_file(dir.join(INDEX)).unwrap()), "convert other formats first"),
        (change_index(&|map| map[NORM] = json!("../w.safetensors")), "weight_map of embeddings.L"),
        (change_index(&|map| map["more"] = json!(FIRST)), "001-of-00002.safetensors: tensor more"),
    ] {
        let load = Encoder::load(dir.path(), DeviceChoice::Cpu).expect_err(says).to_string();
        let info = ModelInfo::read(dir.path()).expect_err(says).to_string();
        assert!(load.contains(says) && load == info, "{load}\n{info}");
    }
    // A tensor that the index does not name is none of the model's.
    let dir = change_index(&|map| drop(map.as_object_mut().unwrap().remove(NORM)));
    let error = Encoder::load(dir.path(), DeviceChoice::Cpu).unwrap_err().to_string();
    let says = format!("{INDEX}: tensor {NORM} is missing");
    assert!(error.contains(&says), "{error}");
}
