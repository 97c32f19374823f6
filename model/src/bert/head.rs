//! Heads: what turns the vectors of tokens into scores.

use super::Task;
use super::family::Family;
use super::weights::Reader;
use crate::LoadError;

/// A small dense layer, run without the device: a head sees one token of a text.
#[derive(Debug)]
pub(crate) struct Linear {
    /// `[in, out]`, so that the inner loop runs over outputs.
    matrix: Vec<f32>,
    bias: Vec<f32>,
}

impl Linear {
    /// From a matrix that is stored as `[out, in]`.
    pub(crate) fn new(stored: &[f32], bias: Vec<f32>) -> Self {
        let from = stored.len() / bias.len();
        let column = |n: usize| stored.chunks_exact(from).map(move |row| row[n]);
        Self { matrix: (0..from).flat_map(column).collect(), bias }
    }

    pub(crate) fn apply(&self, input: &[f32]) -> Vec<f32> {
        let mut output = self.bias.clone();
        for (x, row) in input.iter().zip(self.matrix.chunks_exact(self.bias.len())) {
            output.iter_mut().zip(row).for_each(|(sum, weight)| *sum += x * weight);
        }
        output
    }
}

/// From the first token of a text to the numbers of its labels.
#[derive(Debug)]
pub(crate) struct SequenceHead {
    dense: Linear,
    activation: fn(f32) -> f32,
    out: Linear,
}

impl SequenceHead {
    pub(crate) fn load(
        reader: &Reader,
        family: Family,
        hidden: usize,
        n_labels: usize,
    ) -> Result<Self, LoadError> {
        let tanh: fn(f32) -> f32 = f32::tanh;
        let (dense, activation) = match family {
            Family::Bert => ("bert.pooler.dense", tanh),
            Family::Roberta => ("classifier.dense", tanh),
            Family::DistilBert => ("pre_classifier", relu as _),
        };
        let dense = reader.linear(dense, hidden, hidden)?;
        let out = family.output(Task::Classification);
        Ok(Self { dense, activation, out: reader.linear(out, hidden, n_labels)? })
    }

    pub(crate) fn apply(&self, first: &[f32]) -> Vec<f32> {
        let mut inner = self.dense.apply(first);
        inner.iter_mut().for_each(|x| *x = (self.activation)(*x));
        self.out.apply(&inner)
    }
}

/// Not `f32::max`, which would make a number of a NaN.
fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}
