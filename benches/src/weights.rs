//! Weights of chance as a safetensors file: eight bytes with the length of the header, a header in
//! JSON that says where each tensor lies, and the tensors, one behind the other.

use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::Result;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::{Map, Value, json};

/// What a tensor's numbers are.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fill {
    /// Even chance around zero
    Chance,
    One,
    Zero,
}

/// How a number is written.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    F32,
    /// The upper half of an f32
    Bf16,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::Bf16 => "BF16",
        }
    }

    /// Bytes of a number.
    fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// The same seed gives the same file.
pub(crate) fn write(
    path: &Path,
    kind: Kind,
    tensors: &[(String, Vec<usize>, Fill)],
    seed: u64,
) -> Result<()> {
    let mut header = Map::new();
    let mut end = 0;
    for (name, shape, _) in tensors {
        let start = end;
        end += kind.size() * shape.iter().product::<usize>();
        let entry = json!({"dtype": kind.name(), "shape": shape, "data_offsets": [start, end]});
        header.insert(name.clone(), entry);
    }
    let mut header = Value::Object(header).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let mut out = BufWriter::new(std::fs::File::create(path)?);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    let mut dice = SmallRng::seed_from_u64(seed);
    for (_, shape, fill) in tensors {
        for _ in 0..shape.iter().product() {
            let number: f32 = match fill {
                Fill::Chance => dice.random_range(-0.06..0.06),
                Fill::One => 1.0,
                Fill::Zero => 0.0,
            };
            match kind {
                Kind::F32 => out.write_all(&number.to_le_bytes())?,
                Kind::Bf16 => out.write_all(&((number.to_bits() >> 16) as u16).to_le_bytes())?,
            }
        }
    }
    Ok(out.flush()?)
}
