//! Heads: what turns the vectors of tokens into scores.

use super::Task;
use super::family::Family;
use super::linear::Linear;
use super::weights::Reader;
use crate::{ItemError, LoadError};

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

    /// # Errors
    /// When a number is not finite, on the way too: behind a tanh it would be.
    pub(crate) fn apply(&self, first: &[f32]) -> Result<Vec<f32>, ItemError> {
        let mut inner = self.dense.apply(first);
        super::finite(&inner)?;
        inner.iter_mut().for_each(|x| *x = (self.activation)(*x));
        let logits = self.out.apply(&inner);
        super::finite(&logits)?;
        Ok(logits)
    }
}

/// Not `f32::max`, which would make a number of a NaN.
fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}
