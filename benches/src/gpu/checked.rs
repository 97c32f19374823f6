//! Our vectors on the device against those of the processor in f32, and of PyTorch.

use anyhow::{Result, ensure};
use ebb_model::DeviceChoice;
use ebb_model::bert::{Encoder, Tokenizer, Tokens};
use serde::Serialize;

use super::{Subject, ways};
use crate::vectors::{difference, vectors};

/// Tokens of the texts that are held against the reference: short, long, and beside the steps that
/// shapes have.
const CHECKED: [usize; 10] = [3, 16, 17, 31, 48, 100, 128, 200, 385, 512];

/// What was held against somebody else's.
#[derive(Debug, Serialize)]
pub(super) struct Check {
    pub(super) model: &'static str,
    /// Whose.
    pub(super) against: &'static str,
    /// Largest difference of a number of a vector of length one.
    pub(super) largest_difference: f32,
    pub(super) tolerance: f32,
}

/// Our vectors on the device against those of the processor in f32, in batches of mixed lengths.
pub(super) fn check(subject: &Subject, choice: DeviceChoice, device: &str) -> Result<Check> {
    let tokenizer = Tokenizer::load(&subject.dir)?;
    let texts = CHECKED.iter().map(|n_tokens| ways::batch(&tokenizer, 1, *n_tokens));
    let texts: Vec<Vec<Tokens>> = texts.collect::<Result<Vec<_>>>()?.concat();
    let mut reference = Encoder::load(&subject.dir, DeviceChoice::Cpu)?;
    let mut ours = Encoder::load(&subject.dir, choice)?;
    let expected = vectors(&mut reference, &texts)?;
    let mut largest = 0.0_f32;
    // All together, and in threes: other shapes.
    let threes =
        texts.chunks(3).map(|some| vectors(&mut ours, some)).collect::<Result<Vec<_>>>()?;
    let together = vectors(&mut ours, &texts)?;
    for found in [together, threes.concat()] {
        largest = largest.max(difference(&found, &expected));
    }
    Ok(Check {
        model: subject.name,
        against: "the processor's in f32",
        largest_difference: largest,
        tolerance: tolerance(device),
    })
}

/// What rounding to a type may do to the numbers of a vector of length one on a device, which is named in
/// full, as in "cpu in f32". On a GPU products of f32 may run as TF32, which has the precision of f16.
pub(super) fn tolerance(device: &str) -> f32 {
    let is_cpu = device.starts_with("cpu");
    match device.rsplit(' ').next() {
        Some("bf16") => 3e-2,
        Some("f32") if is_cpu => 1e-4,
        _ => 5e-3,
    }
}

impl Check {
    /// Fails where they are too far apart.
    pub(super) fn judge(&self) -> Result<()> {
        let Self { model, against, largest_difference, tolerance } = self;
        ensure!(
            largest_difference <= tolerance,
            "{model}: vectors differ from {against} by {largest_difference}, more than {tolerance}"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rounding_may_do_is_a_matter_of_the_type_that_the_device_computes_with() {
        for (device, expected) in [
            ("cpu in f32", 1e-4),
            ("cpu-tensors in f16", 5e-3),
            ("cuda:0 (NVIDIA H200) in f32", 5e-3),
            ("cuda:0 (NVIDIA H200) in f16", 5e-3),
            ("cuda:0 (NVIDIA H200) in bf16", 3e-2),
        ] {
            assert_eq!(tolerance(device), expected, "{device}");
        }
    }
}
