//! The likeliest token, found on the device from which logits take long to come.

use burn::tensor::{DType, Device, Element, Int, Tensor, TensorData};

use crate::InferError;
use crate::device::failure;

/// The first of the largest of each row of logits; of a row that is spoilt, their number.
pub(super) fn likeliest(logits: Tensor<2>, device: &Device) -> Tensor<2, Int> {
    let [rows, n] = logits.dims();
    let logits = logits.cast(DType::F32);
    let is_spoilt = logits.clone().is_finite().bool_not().any_dim(1);
    let is_less = logits.clone().max_dim(1).greater(logits);
    let tokens = Tensor::<1, Int>::arange(0..n as i64, (device, DType::I32));
    let tokens = tokens.reshape([1, n]).expand([rows, n]);
    tokens.mask_fill(is_less, n as i32).min_dim(1).mask_fill(is_spoilt, n as i32)
}

/// What has come from the device.
pub(super) fn read<E: Element>(
    data: Result<TensorData, impl std::fmt::Display>,
) -> Result<Vec<E>, InferError> {
    let data = data.map_err(|error| failure(&error.to_string()))?;
    let values = data.convert::<E>().try_into_vec::<E>();
    values.map_err(|error| InferError::Device(format!("read back: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_equals_the_first_is_the_likeliest_and_a_spoilt_row_has_none() {
        let (device, x) = (Device::flex(), f32::NAN);
        let rows = [
            [1.0, 3.0, 3.0, 2.0],
            [-5.0, -2.0, -9.0, -2.0],
            [f32::MIN; 4],
            [-0.0, 0.0, 0.0, -1.0],
            [1.0, x, 3.0, 2.0],
            [f32::INFINITY, 0.0, 0.0, 0.0],
            [0.0, f32::NEG_INFINITY, 0.0, 0.0],
        ];
        let found = likeliest(Tensor::from_data(rows, &device), &device);
        let found: Vec<i32> = read(found.try_into_data()).unwrap();
        assert_eq!(found, [1, 1, 0, 0, 4, 4, 4]);
    }
}
