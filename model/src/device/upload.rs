//! How weights come onto a device that burn runs.

use burn::tensor::{DType, Device, Tensor, TensorData};

/// Where they go.
pub(crate) struct Upload<'a> {
    pub(crate) device: &'a Device,
}

impl Upload<'_> {
    /// Numbers as this type; they are rounded here, so that no more than that crosses over.
    pub(crate) fn tensor<const D: usize>(
        &self,
        values: Vec<f32>,
        shape: [usize; D],
        dtype: DType,
    ) -> Tensor<D> {
        Tensor::from_data(TensorData::new(values, shape).convert_dtype(dtype), (self.device, dtype))
    }

    /// What is added to rows or scales them, `[1, values]`, in f32.
    pub(crate) fn row(&self, values: &[f32]) -> Tensor<2> {
        self.tensor(values.to_vec(), [1, values.len()], DType::F32)
    }
}
