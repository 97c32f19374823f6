//! The weights of a model directory: one safetensors file, or the shards that an index names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::LoadError;
use crate::json::is_there;
use crate::safetensors::{Entry, Weights};

/// The file of weights that are in one piece; where it is, an index does not count.
pub(crate) const SINGLE: &str = "model.safetensors";
/// The index of weights that are in several.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// The files that hold the weights of a directory, an index first; nothing but an index is opened.
pub(crate) fn files(dir: &Path) -> Result<Vec<String>, LoadError> {
    let Some(index) = Index::of(dir)? else { return Ok(vec![SINGLE.to_owned()]) };
    let shards = index.shards().into_iter().map(str::to_owned);
    Ok(std::iter::once(INDEX.to_owned()).chain(shards).collect())
}

/// The tensors of a model, whichever file each lies in.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    /// The single file or the index: where a tensor that is in no file should be.
    path: PathBuf,
    files: Vec<Weights>,
    /// The file of each tensor.
    places: BTreeMap<String, usize>,
}

impl Checkpoint {
    /// Maps the files of a directory, and reads their headers.
    ///
    /// # Errors
    /// When one is missing or is not what it should be, and when the index says other than they.
    pub(crate) fn open(dir: &Path) -> Result<Self, LoadError> {
        if let Some(index) = Index::of(dir)? {
            return index.open(dir);
        }
        let path = dir.join(SINGLE);
        let weights = Weights::open(&path)?;
        let places = weights.entries().keys().map(|name| (name.clone(), 0)).collect();
        Ok(Self { path, files: vec![weights], places })
    }

    /// Says that all of it will be read.
    #[cfg(feature = "cpu")]
    pub(crate) fn read_ahead(&self) {
        self.files.iter().for_each(Weights::read_ahead);
    }

    /// What each tensor is, by name.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.places.keys().filter_map(|name| Some((name.as_str(), self.entry(name)?)))
    }

    pub(crate) fn entry(&self, name: &str) -> Option<&Entry> {
        self.files[*self.places.get(name)?].entries().get(name)
    }

    /// Reads a tensor of this shape as `f32`, whatever float it is stored as.
    #[cfg(feature = "cpu")]
    pub(crate) fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        match self.places.get(name) {
            Some(place) => self.files[*place].read(name, shape),
            None => Err(self.wrong(name, "is missing")),
        }
    }

    /// Whether two tensors are there and of the same shape and numbers, whatever float each is stored as.
    #[cfg(feature = "cpu")]
    pub(crate) fn are_same(&self, one: &str, other: &str) -> bool {
        let find = |name: &str| {
            let weights = &self.files[*self.places.get(name)?];
            Some((weights, weights.entries().get(name)?))
        };
        find(one).zip(find(other)).is_some_and(|((weights, one), (others, other))| {
            let stored = || Some((weights.stored(one)?, others.stored(other)?));
            let numbers = || weights.numbers(one)?.eq(others.numbers(other)?).then_some(());
            one.shape == other.shape
                && match one.dtype == other.dtype {
                    true => stored().is_some_and(|(one, other)| one == other),
                    false => numbers().is_some(),
                }
        })
    }

    /// A tensor that is not what the rest of the model says.
    pub(crate) fn wrong(&self, name: &str, message: impl std::fmt::Display) -> LoadError {
        LoadError::tensor(&self.path, name, message)
    }
}

/// Which shard each tensor lies in.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Index {
    /// The index of a directory that has one, and no single file.
    fn of(dir: &Path) -> Result<Option<Self>, LoadError> {
        let path = dir.join(INDEX);
        if is_there(&dir.join(SINGLE))? || !is_there(&path)? {
            return Ok(None);
        }
        let bytes = std::fs::read(&path).map_err(|error| LoadError::io(&path, error))?;
        let index: Self = serde_json::from_slice(&bytes).map_err(|error| {
            LoadError::malformed(&path, format!("not an index of shards: {error}; fetch it again"))
        })?;
        index.check(&path)?;
        Ok(Some(index))
    }

    fn check(&self, path: &Path) -> Result<(), LoadError> {
        if self.weight_map.is_empty() {
            let remedy = "it must name the shard of each tensor, fetch the file again";
            return Err(LoadError::unsupported(path, "weight_map", "empty", remedy));
        }
        match self.weight_map.iter().find(|(_, shard)| !is_beside(shard)) {
            Some((tensor, shard)) => {
                let field = format!("weight_map of {tensor}");
                let remedy = "a shard is a file beside the index, its name of letters, digits, -, \
                              _ and . with .safetensors at the end";
                Err(LoadError::unsupported(path, &field, format!("{shard:?}"), remedy))
            }
            None => Ok(()),
        }
    }

    fn shards(&self) -> BTreeSet<&str> {
        self.weight_map.values().map(String::as_str).collect()
    }

    fn open(self, dir: &Path) -> Result<Checkpoint, LoadError> {
        let path = dir.join(INDEX);
        let mut files = Vec::new();
        let mut numbers = BTreeMap::new();
        for name in self.shards() {
            let shard = dir.join(name);
            if !shard.exists() {
                let message = format!(
                    "shard {name} is missing; fetch it to the same directory, or the whole model again"
                );
                return Err(LoadError::malformed(&path, message));
            }
            numbers.insert(name, files.len());
            files.push(Weights::open(&shard)?);
        }
        let mut places = BTreeMap::new();
        for (tensor, shard) in &self.weight_map {
            let place = numbers[shard.as_str()];
            if !files[place].entries().contains_key(tensor) {
                let message = format!("is missing, where {INDEX} has it; fetch both files again");
                return Err(LoadError::tensor(&dir.join(shard), tensor, message));
            }
            places.insert(tensor.clone(), place);
        }
        Ok(Checkpoint { path, files, places })
    }
}

/// Whether a shard's name leads to no other folder, and is fit for a URL as it is.
fn is_beside(name: &str) -> bool {
    name.ends_with(".safetensors")
        && !name.starts_with('.')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A file of one tensor of two numbers.
    fn shard(tensor: &str) -> Vec<u8> {
        let header = json!({tensor: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}});
        let header = header.to_string();
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 8]].concat()
    }

    /// A directory of two shards, and what its index says.
    fn directory(index: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in [
            ("a.safetensors", shard("one")),
            ("b.safetensors", shard("two")),
            (INDEX, index.as_bytes().to_vec()),
        ] {
            std::fs::write(dir.path().join(name), content).unwrap();
        }
        dir
    }

    const INDEX_OF_TWO: &str = r#"{"metadata": {"total_size": 16},
        "weight_map": {"one": "a.safetensors", "two": "b.safetensors"}}"#;

    #[test]
    fn the_tensors_of_all_shards_are_found() {
        let dir = directory(INDEX_OF_TWO);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let names: Vec<&str> = checkpoint.entries().map(|(name, _)| name).collect();
        assert_eq!(names, ["one", "two"]);
        assert_eq!(checkpoint.entry("two").unwrap().shape, [2]);
        assert!(checkpoint.entry("three").is_none());
        assert_eq!(files(dir.path()).unwrap(), [INDEX, "a.safetensors", "b.safetensors"]);
    }

    #[test]
    fn a_single_file_is_used_whatever_an_index_beside_it_says() {
        let dir = directory("rubbish");
        std::fs::write(dir.path().join(SINGLE), shard("three")).unwrap();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        assert!(checkpoint.entry("three").is_some() && checkpoint.entry("one").is_none());
        assert_eq!(files(dir.path()).unwrap(), [SINGLE]);
    }

    #[test]
    fn without_both_the_single_file_is_missed() {
        let dir = tempfile::tempdir().unwrap();
        let error = Checkpoint::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("model.safetensors: No such file"), "{error}");
        assert!(error.contains("convert other formats first"), "{error}");
    }

    #[test]
    fn an_index_that_is_none_or_leads_elsewhere_is_refused() {
        let of = |shard: &str| json!({"weight_map": {"one": shard}}).to_string();
        for (index, says) in [
            ("<html>".to_owned(), "not an index of shards: expected value"),
            (String::new(), "not an index of shards: EOF"),
            ("{}".to_owned(), "missing field `weight_map`"),
            (json!({"weight_map": {}}).to_string(), "weight_map is empty"),
            (json!({"weight_map": {"one": 1}}).to_string(), "not an index of shards: invalid type"),
            (of("../a.safetensors"), r#"weight_map of one is "../a.safetensors"; a shard is"#),
            (of("/a.safetensors"), r#"weight_map of one is "/a.safetensors"; a shard is"#),
            (of("x/../a.safetensors"), "a shard is a file beside the index"),
            (of(".."), "a shard is a file beside the index"),
            (of(""), "a shard is a file beside the index"),
            (of("a.bin"), "with .safetensors at the end"),
            (of("c.safetensors"), "shard c.safetensors is missing; fetch it to the same directory"),
        ] {
            let dir = directory(&index);
            let error = Checkpoint::open(dir.path()).expect_err(says).to_string();
            assert!(error.contains(says) && error.contains(INDEX), "{error}");
        }
    }

    #[test]
    fn a_shard_that_is_cut_short_or_lacks_a_tensor_is_named() {
        let dir = directory(&INDEX_OF_TWO.replace("\"two\"", "\"other\""));
        let error = Checkpoint::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("b.safetensors: tensor other is missing, where"), "{error}");
        let dir = directory(INDEX_OF_TWO);
        let path = dir.path().join("b.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        let error = Checkpoint::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("b.safetensors: tensor two lies at 0..8, past the end"), "{error}");
        std::fs::write(&path, "").unwrap();
        let error = Checkpoint::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("b.safetensors: not a safetensors file"), "{error}");
    }
}
