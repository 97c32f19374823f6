//! The safetensors format: a length, a JSON header, and the tensors end to end.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::LoadError;

/// The format's own limit on the header.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Where a tensor lies, and what it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) dtype: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) data_offsets: (u64, u64),
}

impl Entry {
    pub(crate) fn n_elements(&self) -> Option<u64> {
        self.shape.iter().try_fold(1u64, |product, side| product.checked_mul(*side as u64))
    }

    fn element_bytes(&self) -> Option<u64> {
        Some(match self.dtype.as_str() {
            "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" => 1,
            "U16" | "I16" | "F16" | "BF16" => 2,
            "U32" | "I32" | "F32" => 4,
            "U64" | "I64" | "F64" => 8,
            _ => return None,
        })
    }

    fn check(&self, data_bytes: u64) -> Result<(), String> {
        let (start, end) = self.data_offsets;
        if start > end || end > data_bytes {
            return Err(format!("lies at {start}..{end}, past the end of the file"));
        }
        // A type we never read may still be counted.
        let Some(bytes) = self.element_bytes() else { return Ok(()) };
        let expected = self.n_elements().and_then(|n| n.checked_mul(bytes));
        if expected != Some(end - start) {
            let Self { dtype, shape, .. } = self;
            return Err(format!("is {dtype} of {shape:?} in {} bytes", end - start));
        }
        Ok(())
    }
}

/// A safetensors file, its header read and checked.
#[derive(Debug)]
#[cfg_attr(not(feature = "cpu"), expect(dead_code, reason = "only the header is read"))]
pub(crate) struct Weights<R> {
    path: PathBuf,
    reader: R,
    data_start: u64,
    entries: BTreeMap<String, Entry>,
}

impl Weights<BufReader<File>> {
    /// Opens a file and reads its header.
    pub(crate) fn open(path: &Path) -> Result<Self, LoadError> {
        let file = File::open(path).map_err(|error| LoadError::io(path, error))?;
        Self::new(path, BufReader::new(file))
    }
}

impl<R: Read + Seek> Weights<R> {
    /// Reads the header; `path` is for the errors.
    pub(crate) fn new(path: &Path, mut reader: R) -> Result<Self, LoadError> {
        let io = |error| LoadError::io(path, error);
        let file_bytes = reader.seek(std::io::SeekFrom::End(0)).map_err(io)?;
        reader.rewind().map_err(io)?;
        let mut length = [0; 8];
        reader.read_exact(&mut length).map_err(io)?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER_BYTES || length > file_bytes.saturating_sub(8) {
            let message = "not a safetensors file, or cut short; fetch it again";
            return Err(LoadError::malformed(path, message));
        }
        let mut header = String::new();
        reader.by_ref().take(length).read_to_string(&mut header).map_err(io)?;
        let mut header: BTreeMap<String, serde_json::Value> = serde_json::from_str(&header)
            .map_err(|error| LoadError::malformed(path, format!("header: {error}")))?;
        header.remove("__metadata__");

        let data_start = 8 + length;
        let mut entries = BTreeMap::new();
        for (name, value) in header {
            let entry: Entry = serde_json::from_value(value).map_err(|error| {
                LoadError::tensor(path, &name, format!("in the header: {error}"))
            })?;
            entry
                .check(file_bytes - data_start)
                .map_err(|message| LoadError::tensor(path, &name, message))?;
            entries.insert(name, entry);
        }
        Ok(Self { path: path.to_owned(), reader, data_start, entries })
    }

    /// The tensors by name.
    pub(crate) fn entries(&self) -> &BTreeMap<String, Entry> {
        &self.entries
    }

    /// Reads a tensor of this shape as `f32`, whatever float it is stored as.
    #[cfg(feature = "cpu")]
    pub(crate) fn read(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        let wrong = |message: String| LoadError::tensor(&self.path, name, message);
        let Some(entry) = self.entries.get(name) else {
            return Err(wrong("is missing".into()));
        };
        if entry.shape != shape {
            return Err(wrong(format!("is {:?}, config.json says {shape:?}", entry.shape)));
        }
        let from_bytes: fn(&[u8]) -> Vec<f32> = match entry.dtype.as_str() {
            "F32" => |bytes| chunks(bytes, f32::from_le_bytes),
            "F16" => |bytes| chunks(bytes, |b| burn::tensor::f16::from_le_bytes(b).to_f32()),
            "BF16" => |bytes| chunks(bytes, |b| burn::tensor::bf16::from_le_bytes(b).to_f32()),
            other => return Err(wrong(format!("is {other}; convert it to F32, F16 or BF16"))),
        };
        let (start, end) = entry.data_offsets;
        let io = |error| LoadError::io(&self.path, error);
        let mut bytes = vec![0; usize::try_from(end - start).unwrap_or(usize::MAX)];
        let at = std::io::SeekFrom::Start(self.data_start + start);
        self.reader.seek(at).map_err(io)?;
        self.reader.read_exact(&mut bytes).map_err(io)?;
        Ok(from_bytes(&bytes))
    }
}

#[cfg(feature = "cpu")]
fn chunks<const N: usize>(bytes: &[u8], convert: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    let (values, _rest) = bytes.as_chunks::<N>();
    values.iter().map(|value| convert(*value)).collect()
}

/// Writes `f32` tensors in the order given.
#[cfg(feature = "cpu")]
pub(crate) fn to_bytes(tensors: &[(String, Vec<usize>, Vec<f32>)]) -> Vec<u8> {
    let mut header = BTreeMap::new();
    let mut end = 0;
    for (name, shape, values) in tensors {
        let start = end;
        end += 4 * values.len() as u64;
        let data_offsets = (start, end);
        header.insert(name, Entry { dtype: "F32".into(), shape: shape.clone(), data_offsets });
    }
    let mut header = serde_json::to_vec(&header).expect("a map of strings and numbers");
    // The data starts aligned, so that readers may map it.
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    for (_, _, values) in tensors {
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn file(header: &str, n_data: usize) -> Cursor<Vec<u8>> {
        let length = (header.len() as u64).to_le_bytes();
        Cursor::new([&length[..], header.as_bytes(), &vec![0; n_data]].concat())
    }

    #[test]
    fn a_header_that_lies_is_refused() {
        let tensor = |dtype: &str, shape: &str, end: &str| {
            format!(
                r#"{{"a": {{"dtype": "{dtype}", "shape": {shape}, "data_offsets": [0, {end}]}}}}"#
            )
        };
        let check = |header: &str, n_data: usize| {
            Weights::new(Path::new("w"), file(header, n_data))
                .map(|_| ())
                .map_err(|e| e.to_string())
        };
        assert_eq!(check(&tensor("F32", "[2, 3]", "24"), 24), Ok(()));
        assert_eq!(check(&tensor("F32", "[]", "4"), 4), Ok(()));
        for (header, says) in [
            (tensor("F32", "[2, 3]", "24"), "past the end"),
            (tensor("F32", "[2, 3]", "16"), "is F32 of [2, 3] in 16 bytes"),
            (tensor("F16", "[4294967296, 4294967296, 4]", "16"), "in 16 bytes"),
            (tensor("F32", "[-1]", "16"), "in the header"),
            ("[]".to_owned(), "header"),
            ("{".to_owned(), "header"),
        ] {
            let error = check(&header, 16).expect_err(says);
            assert!(error.contains(says), "{error}");
        }
        let cut = Weights::new(Path::new("w"), Cursor::new(vec![255; 8])).expect_err("cut short");
        assert!(cut.to_string().contains("not a safetensors file"));
        assert!(Weights::new(Path::new("w"), Cursor::new(vec![1; 3])).is_err());
    }
}
