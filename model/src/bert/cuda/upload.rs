//! Weights on the card.

use std::sync::Arc;

use burn::tensor::TensorData;
use cudarc::driver::{CudaSlice, CudaStream, DriverError};

use crate::Dtype;
use crate::bert::kernels::Norm;
use crate::bert::weights::Dense;

#[derive(Debug)]
pub(super) struct Normed {
    pub(super) scale: CudaSlice<f32>,
    pub(super) shift: CudaSlice<f32>,
    pub(super) eps: f32,
}

#[derive(Debug)]
pub(super) struct Linear {
    /// `[out, in]`.
    pub(super) matrix: CudaSlice<u8>,
    pub(super) bias: CudaSlice<f32>,
    pub(super) from: usize,
    pub(super) to: usize,
}

#[derive(Debug)]
pub(super) struct Block {
    pub(super) qkv: Linear,
    pub(super) out: Linear,
    pub(super) attention_norm: Normed,
    pub(super) up: Linear,
    pub(super) down: Linear,
    pub(super) output_norm: Normed,
}

/// Where weights go, and as what.
pub(super) struct Upload {
    pub(super) stream: Arc<CudaStream>,
    pub(super) dtype: Dtype,
}

impl Upload {
    pub(super) fn halves(&self, values: Vec<f32>) -> Result<CudaSlice<u8>, DriverError> {
        let n_values = values.len();
        let data = TensorData::new(values, [n_values]).convert_dtype(self.dtype.of_burn());
        self.stream.clone_htod(data.as_bytes())
    }

    fn floats(&self, values: &[f32]) -> Result<CudaSlice<f32>, DriverError> {
        self.stream.clone_htod(values)
    }

    pub(super) fn norm(&self, norm: &Norm) -> Result<Normed, DriverError> {
        let (scale, shift) = (self.floats(&norm.scale)?, self.floats(&norm.shift)?);
        Ok(Normed { scale, shift, eps: norm.eps })
    }

    pub(super) fn linear(
        &self,
        dense: Dense<(Vec<f32>, usize, usize)>,
    ) -> Result<Linear, DriverError> {
        let (values, from, to) = dense.matrix;
        Ok(Linear { matrix: self.halves(values)?, bias: self.floats(&dense.bias)?, from, to })
    }
}
