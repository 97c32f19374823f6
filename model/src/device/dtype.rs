//! The types of numbers that products are computed with; sums are in f32 whatever the type.

use std::fmt;
use std::str::FromStr;

/// What weights and activations are stored and multiplied as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// 32 bits: the reference.
    F32,
    /// 16 bits with 11 of precision.
    F16,
    /// 16 bits with 8 of precision, and the range of f32.
    Bf16,
}

/// A word that names no type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown type {0:?}; use f32, f16 or bf16")]
pub struct UnknownDtype(String);

impl FromStr for Dtype {
    type Err = UnknownDtype;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            "bf16" => Ok(Self::Bf16),
            other => Err(UnknownDtype(other.to_owned())),
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        })
    }
}

#[cfg(feature = "cpu")]
impl Dtype {
    /// The type with 16 bits that suits weights that are stored as this one: a model that was trained
    /// with the range of f32 makes numbers that are too large for f16.
    pub(crate) fn halved(self) -> Self {
        match self {
            Self::F16 => Self::F16,
            Self::Bf16 | Self::F32 => Self::Bf16,
        }
    }

    /// The same, as burn calls it.
    pub(crate) fn of_burn(self) -> burn::tensor::DType {
        use burn::tensor::DType;
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Dtype;

    #[test]
    fn a_type_reads_as_it_is_written() {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            assert_eq!(dtype.to_string().parse(), Ok(dtype));
        }
        let error = "fp16".parse::<Dtype>().expect_err("torch's word").to_string();
        assert_eq!(error, "unknown type \"fp16\"; use f32, f16 or bf16");
    }
}
