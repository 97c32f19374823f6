//! The safetensors format: a length, a JSON header, and the tensors end to end.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Place;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::{Error, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::LoadError;
use crate::mapped::Mapped;

/// The format's own limit on the header.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Tensors of one file; models of thousands of layers and experts have fewer in all.
const MOST_TENSORS: usize = 1 << 18;

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
pub(crate) struct Weights<B = Mapped> {
    path: PathBuf,
    bytes: B,
    data_start: usize,
    entries: BTreeMap<String, Entry>,
}

impl Weights {
    /// Maps a file and reads its header.
    pub(crate) fn open(path: &Path) -> Result<Self, LoadError> {
        Self::new(path, Mapped::open(path).map_err(|error| LoadError::io(path, error))?)
    }

    /// Says that all of it will be read.
    #[cfg(feature = "cpu")]
    pub(crate) fn read_ahead(&self) {
        self.bytes.read_ahead();
    }
}

impl<B: AsRef<[u8]>> Weights<B> {
    /// Reads the header; `path` is for the errors.
    pub(crate) fn new(path: &Path, bytes: B) -> Result<Self, LoadError> {
        let file = bytes.as_ref();
        let header = file.split_first_chunk().and_then(|(length, rest)| {
            let length = u64::from_le_bytes(*length);
            let length = usize::try_from(length).ok().filter(|_| length <= MAX_HEADER_BYTES)?;
            rest.get(..length)
        });
        let Some(header) = header.map(<[u8]>::to_vec) else {
            let message = "not a safetensors file, or cut short; fetch it again";
            return Err(LoadError::malformed(path, message));
        };
        let data_start = 8 + header.len();
        let data_bytes = (file.len() - data_start) as u64;
        let Header(entries) = serde_json::from_slice(&header)
            .map_err(|error| LoadError::malformed(path, format!("header: {error}")))?;
        for (name, entry) in &entries {
            entry.check(data_bytes).map_err(|message| LoadError::tensor(path, name, message))?;
        }
        if entries.is_empty() && data_bytes > 0 {
            let message = format!("no tensor, and {data_bytes} bytes of them; fetch it again");
            return Err(LoadError::malformed(path, message));
        }
        check_places(&entries, data_bytes)
            .map_err(|(name, message)| LoadError::tensor(path, name, message))?;
        Ok(Self { path: path.to_owned(), bytes, data_start, entries })
    }

    /// The tensors by name.
    pub(crate) fn entries(&self) -> &BTreeMap<String, Entry> {
        &self.entries
    }

    /// Reads a tensor of this shape as `f32`, whatever float it is stored as.
    #[cfg(feature = "cpu")]
    pub(crate) fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        let wrong = |message: String| LoadError::tensor(&self.path, name, message);
        let Some(entry) = self.entries.get(name) else {
            return Err(wrong("is missing".into()));
        };
        if entry.shape != shape {
            return Err(wrong(format!("is {:?}, config.json says {shape:?}", entry.shape)));
        }
        let from_bytes: fn(&[u8]) -> Vec<f32> = match entry.dtype.as_str() {
            "F32" => |bytes| chunks(bytes, f32::from_le_bytes).collect(),
            "F16" => |bytes| chunks(bytes, of_f16).collect(),
            "BF16" => |bytes| chunks(bytes, of_bf16).collect(),
            other => return Err(wrong(format!("is {other}; convert it to F32, F16 or BF16"))),
        };
        let past = || wrong("lies past the end of the file".into());
        Ok(from_bytes(self.stored(entry).ok_or_else(past)?))
    }

    /// The numbers of a tensor one by one, for what is too large to be in memory as `f32`; of what is no
    /// float there are none.
    #[cfg(feature = "cpu")]
    pub(crate) fn numbers(&self, entry: &Entry) -> Option<Box<dyn Iterator<Item = f32> + '_>> {
        let bytes = self.stored(entry)?;
        Some(match entry.dtype.as_str() {
            "F32" => Box::new(chunks(bytes, f32::from_le_bytes)),
            "F16" => Box::new(chunks(bytes, of_f16)),
            "BF16" => Box::new(chunks(bytes, of_bf16)),
            _ => return None,
        })
    }

    /// A tensor as it is stored.
    #[cfg(feature = "cpu")]
    pub(crate) fn stored(&self, entry: &Entry) -> Option<&[u8]> {
        let (start, end) = entry.data_offsets;
        let place = |at| usize::try_from(at).ok().map(|at| self.data_start.saturating_add(at));
        let (start, end) = place(start).zip(place(end))?;
        self.bytes.as_ref().get(start..end)
    }
}

/// The tensors by name, each once.
struct Header(BTreeMap<String, Entry>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Tensors).map(Self)
    }
}

/// Takes tensors as they come, so that a header is in memory once and not as a tree of values too.
struct Tensors;

impl<'de> Visitor<'de> for Tensors {
    type Value = BTreeMap<String, Entry>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            if entries.len() == MOST_TENSORS {
                let message = format!("more than {MOST_TENSORS} tensors; cut the file into shards");
                return Err(A::Error::custom(message));
            }
            let named = |error| A::Error::custom(format!("tensor {name}: {error}"));
            let entry = map.next_value().map_err(named)?;
            match entries.entry(name) {
                Place::Vacant(place) => drop(place.insert(entry)),
                Place::Occupied(place) => {
                    let message = format!("tensor {} stands there twice", place.key());
                    return Err(A::Error::custom(message));
                }
            }
        }
        Ok(entries)
    }
}

/// Tensors lie end to end and fill the file, in whatever order: of others the format's own reader reads
/// none.
fn check_places(entries: &BTreeMap<String, Entry>, data_bytes: u64) -> Result<(), (&str, String)> {
    let mut places: Vec<_> = entries.iter().map(|(name, it)| (it.data_offsets, name)).collect();
    places.sort_unstable();
    let mut last = (0, "");
    for ((start, end), name) in places {
        if start != last.0 {
            let how = if start < last.0 { "overlaps" } else { "leaves a gap behind" };
            let other = if last.1.is_empty() { "the header" } else { last.1 };
            return Err((
                name,
                format!("lies at {start}..{end} and {how} {other}; fetch it again"),
            ));
        }
        last = (end, name);
    }
    if last.0 == data_bytes {
        return Ok(());
    }
    let left = data_bytes - last.0;
    Err((last.1, format!("is the last, and {left} bytes are left behind it; fetch the file again")))
}

#[cfg(feature = "cpu")]
fn chunks<const N: usize>(
    bytes: &[u8],
    convert: impl Fn([u8; N]) -> f32,
) -> impl Iterator<Item = f32> {
    let (values, _rest) = bytes.as_chunks::<N>();
    values.iter().map(move |value| convert(*value))
}

#[cfg(feature = "cpu")]
fn of_f16(bytes: [u8; 2]) -> f32 {
    burn::tensor::f16::from_le_bytes(bytes).to_f32()
}

#[cfg(feature = "cpu")]
fn of_bf16(bytes: [u8; 2]) -> f32 {
    burn::tensor::bf16::from_le_bytes(bytes).to_f32()
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
    use super::*;

    fn file(header: &str, n_data: usize) -> Vec<u8> {
        let length = (header.len() as u64).to_le_bytes();
        [&length[..], header.as_bytes(), &vec![0; n_data]].concat()
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
        assert_eq!(check("{}", 0), Ok(()));
        for (header, says) in [
            (tensor("F32", "[2, 3]", "24"), "past the end"),
            (tensor("F32", "[2, 3]", "16"), "is F32 of [2, 3] in 16 bytes"),
            (tensor("F16", "[4294967296, 4294967296, 4]", "16"), "in 16 bytes"),
            (tensor("F32", "[-1]", "16"), "header: tensor a: invalid value"),
            ("{}".to_owned(), "no tensor, and 16 bytes of them; fetch it again"),
            ("[]".to_owned(), "header"),
            ("{".to_owned(), "header"),
        ] {
            let error = check(&header, 16).expect_err(says);
            assert!(error.contains(says), "{error}");
        }
        for bytes in [vec![255; 8], vec![1; 3], Vec::new(), [&[9][..], &[0; 7], b"{}"].concat()] {
            let cut = Weights::new(Path::new("w"), bytes).expect_err("cut short");
            assert!(cut.to_string().contains("not a safetensors file"));
        }
    }

    #[test]
    fn tensors_lie_end_to_end_and_have_a_name_each() {
        let tensor = |name: &str, start: u64, end: u64| {
            let n = (end - start) / 4;
            format!(
                r#""{name}": {{"dtype": "F32", "shape": [{n}], "data_offsets": [{start}, {end}]}}"#
            )
        };
        let check = |tensors: &[String]| {
            let header = format!("{{{}}}", tensors.join(", "));
            Weights::new(Path::new("w"), file(&header, 16)).map_err(|error| error.to_string())
        };
        let metadata = r#""__metadata__": {"format": "pt", "deep": [{}]}"#.to_owned();
        let sound = [tensor("b", 8, 16), metadata, tensor("z", 8, 8), tensor("a", 0, 8)];
        assert_eq!(check(&sound).unwrap().entries().len(), 3);
        for (tensors, says) in [
            ([tensor("a", 0, 12), tensor("b", 8, 16)], "tensor b lies at 8..16 and overlaps a"),
            ([tensor("a", 0, 16), tensor("b", 4, 8)], "tensor b lies at 4..8 and overlaps a"),
            ([tensor("a", 0, 4), tensor("b", 8, 16)], "lies at 8..16 and leaves a gap behind a"),
            ([tensor("a", 4, 8), tensor("b", 8, 16)], "leaves a gap behind the header"),
            ([tensor("a", 0, 4), tensor("b", 4, 8)], "tensor b is the last, and 8 bytes are left"),
            ([tensor("a", 0, 8), tensor("a", 8, 16)], "header: tensor a stands there twice"),
        ] {
            let error = check(&tensors).map(|_| ()).expect_err(says);
            assert!(error.contains(says), "{error}");
        }
        let many: Vec<_> = (0..=MOST_TENSORS).map(|n| tensor(&n.to_string(), 0, 0)).collect();
        let error = check(&many).map(|_| ()).unwrap_err();
        assert!(error.contains("more than 262144 tensors; cut the file"), "{error}");
    }

    #[test]
    fn an_empty_file_and_none_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let error = |path| Weights::open(path).unwrap_err().to_string();
        assert!(error(&path).contains("No such file"), "{}", error(&path));
        std::fs::write(&path, "").unwrap();
        assert!(error(&path).contains("not a safetensors file"), "{}", error(&path));
    }
}
