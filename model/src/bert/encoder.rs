//! From the vectors of a text's tokens to one vector of the text.

use std::path::Path;

use super::body::Body;
use super::weights::Reader;
use super::{Pooling, Settings, Tokens};
use crate::{DeviceChoice, InferError, ItemError, LoadError, Model};

/// The vector of one text.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// As long as the model is wide.
    pub vector: Vec<f32>,
    /// Tokens the text was cut to.
    pub tokens: usize,
}

impl Embedding {
    /// Keeps the first `dimensions` numbers; `of_length_one` makes the rest of that length again.
    pub fn shorten(&mut self, dimensions: usize, of_length_one: bool) {
        if dimensions >= self.vector.len() {
            return;
        }
        self.vector.truncate(dimensions);
        if of_length_one {
            normalise(&mut self.vector);
        }
    }
}

/// A sentence encoder on its device.
#[derive(Debug)]
pub struct Encoder {
    settings: Settings,
    body: Body,
}

impl Encoder {
    /// Reads the weights of a model directory; its texts are cut by [`super::Tokenizer::load`].
    pub fn load(dir: &Path, device: DeviceChoice) -> Result<Self, LoadError> {
        let settings = Settings::read(dir)?;
        let mut reader = Reader::open(dir, settings.config.family, device.open())?;
        let body = Body::load(settings.config.clone(), &mut reader)?;
        Ok(Self { settings, body })
    }

    /// What the directory says of the model.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Runs a few shapes, so that the first job does not pay for what happens once.
    pub fn warm_up(&mut self) -> Result<(), InferError> {
        for batch in super::warm_up_batches(self.settings.max_tokens) {
            self.infer(&batch)?;
        }
        Ok(())
    }

    /// One vector of the vectors of a text's tokens.
    fn pool(&self, rows: &[f32]) -> Vec<f32> {
        let width = self.settings.hidden();
        let n_tokens = rows.len() / width;
        let (first, others) = rows.split_at(width);
        let mut vector = first.to_vec();
        match self.settings.pooling {
            Pooling::Cls => {}
            Pooling::LastToken => vector.copy_from_slice(&rows[(n_tokens - 1) * width..]),
            Pooling::Mean => {
                for token in others.chunks_exact(width) {
                    vector.iter_mut().zip(token).for_each(|(sum, x)| *sum += x);
                }
                vector.iter_mut().for_each(|sum| *sum /= n_tokens as f32);
            }
            Pooling::Max => {
                for token in others.chunks_exact(width) {
                    let pairs = vector.iter_mut().zip(token);
                    // A NaN on either side must not be lost.
                    pairs.for_each(|(max, x)| {
                        *max = if *max >= *x { *max } else { *x + 0.0 * *max }
                    });
                }
            }
        }
        if self.settings.normalize {
            normalise(&mut vector);
        }
        vector
    }
}

fn normalise(vector: &mut [f32]) {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-12);
    vector.iter_mut().for_each(|x| *x /= length);
}

impl Model for Encoder {
    /// The texts of one job.
    type Input = Vec<Tokens>;
    /// The vectors of its texts, in their order.
    type Output = Vec<Embedding>;

    fn infer(
        &mut self,
        batch: &[Vec<Tokens>],
    ) -> Result<Vec<Result<Vec<Embedding>, ItemError>>, InferError> {
        let head = |rows: &[f32], text: &Tokens| {
            let vector = self.pool(rows);
            super::finite(&vector)?;
            Ok(Embedding { vector, tokens: text.len() })
        };
        self.body.infer(batch, |text| text, head)
    }
}
