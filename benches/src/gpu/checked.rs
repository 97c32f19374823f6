//! Our vectors on the device against those of the processor in f32.

use anyhow::Result;
use ebb_model::bert::{Encoder, Tokenizer, Tokens};
use ebb_model::{DeviceChoice, Model};
use serde::Serialize;

use super::{Subject, ways};

/// Tokens of the texts that are held against the reference: short, long, and beside the steps that
/// shapes have.
const CHECKED: [usize; 10] = [3, 16, 17, 31, 48, 100, 128, 200, 385, 512];

/// What was held against the reference.
#[derive(Debug, Serialize)]
pub(super) struct Check {
    pub(super) model: &'static str,
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
    Ok(Check { model: subject.name, largest_difference: largest, tolerance: tolerance(device) })
}

/// What rounding to a type may do to the numbers of a vector of length one. On a GPU products of f32
/// may run as TF32, which has the precision of f16.
pub(super) fn tolerance(device: &str) -> f32 {
    let is_cpu = device.starts_with("cpu");
    match device.rsplit(' ').next() {
        Some("bf16") => 3e-2,
        Some("f32") if is_cpu => 1e-4,
        _ => 5e-3,
    }
}

pub(super) fn vectors(encoder: &mut Encoder, texts: &[Vec<Tokens>]) -> Result<Vec<Vec<f32>>> {
    let results = encoder.infer(texts)?.into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok(results.into_iter().flatten().map(|embedding| embedding.vector).collect())
}

pub(super) fn difference(found: &[Vec<f32>], expected: &[Vec<f32>]) -> f32 {
    let numbers = found.iter().flatten().zip(expected.iter().flatten());
    numbers.fold(0.0, |largest, (found, expected)| {
        let difference = (found - expected).abs();
        // What is not a number is as far off as can be.
        if difference.is_nan() { f32::INFINITY } else { largest.max(difference) }
    })
}
