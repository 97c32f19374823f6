//! The encoder on the processor: texts end to end, from tokens to vectors.

use std::ops::Range;
use std::path::Path;

use burn::tensor::{Tensor, TensorData};

use super::kernels;
use super::layers::Layers;
use super::panels::Panels;
use super::weights::{Embeddings, load};
use super::{Pooling, Settings, Tokens};
use crate::{DeviceChoice, InferError, ItemError, LoadError, Model};

/// Tokens run at once; more would only make the buffers larger.
const MAX_TOKENS_AT_ONCE: usize = 8192;

/// The vector of one text.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// As long as the model is wide.
    pub vector: Vec<f32>,
    /// Tokens the text was cut to.
    pub tokens: usize,
}

/// A sentence encoder on its device.
#[derive(Debug)]
pub struct Encoder {
    settings: Settings,
    embeddings: Embeddings,
    layers: Layers,
}

impl Encoder {
    /// Reads the weights of a model directory; its texts are cut by [`super::Tokenizer::load`].
    pub fn load(dir: &Path, device: DeviceChoice) -> Result<Self, LoadError> {
        Self::load_as(dir, device, Panels::suit())
    }

    fn load_as(dir: &Path, device: DeviceChoice, is_packed: bool) -> Result<Self, LoadError> {
        let settings = Settings::read(dir)?;
        let device = device.open();
        let (embeddings, layers) = if is_packed {
            let (embeddings, layers) = load(dir, &settings, Panels::pack)?;
            (embeddings, Layers::Packed(layers))
        } else {
            let tensor = |matrix: &[f32], from, to| {
                Tensor::from_data(TensorData::new(matrix.to_vec(), [from, to]), &device)
            };
            let (embeddings, layers) = load(dir, &settings, tensor)?;
            (embeddings, Layers::Burn(layers, device))
        };
        Ok(Self { settings, embeddings, layers })
    }

    /// What the directory says of the model.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Runs a few shapes, so that the first job does not pay for what happens once.
    pub fn warm_up(&mut self) -> Result<(), InferError> {
        for (n_texts, n_tokens) in [(1, 8), (1, 64), (8, 64)] {
            let n_tokens = n_tokens.min(self.settings.max_tokens);
            let text = vec![Tokens::from_ids(vec![0; n_tokens])];
            self.infer(&vec![text; n_texts])?;
        }
        Ok(())
    }

    /// The vectors of texts that fit the model, one after another.
    fn encode(&self, texts: &[&Tokens]) -> Result<Vec<f32>, InferError> {
        let width = self.settings.hidden;
        let mut spans = Vec::with_capacity(texts.len());
        let mut rows = Vec::new();
        for text in texts {
            let start = rows.len() / width;
            for (id, position) in text.ids().iter().zip(self.embeddings.positions.chunks(width)) {
                let word = &self.embeddings.words[*id as usize * width..][..width];
                rows.extend(word.iter().zip(position).map(|(word, position)| word + position));
            }
            spans.push(start..start + text.len());
        }
        kernels::norm(&mut rows, &self.embeddings.norm);
        let rows = self.layers.run(rows, &spans, &self.settings)?;
        Ok(self.pool(&rows, &spans))
    }

    fn pool(&self, rows: &[f32], texts: &[Range<usize>]) -> Vec<f32> {
        let width = self.settings.hidden;
        let mut pooled = Vec::with_capacity(texts.len() * width);
        for text in texts {
            let start = pooled.len();
            let mut tokens = rows[text.start * width..text.end * width].chunks_exact(width);
            pooled.extend(tokens.next().into_iter().flatten());
            let vector = &mut pooled[start..];
            match self.settings.pooling {
                Pooling::Cls => {}
                Pooling::Mean => {
                    for token in tokens {
                        vector.iter_mut().zip(token).for_each(|(sum, x)| *sum += x);
                    }
                    let n_tokens = text.len() as f32;
                    vector.iter_mut().for_each(|sum| *sum /= n_tokens);
                }
                Pooling::Max => {
                    for token in tokens {
                        let pairs = vector.iter_mut().zip(token);
                        // A NaN on either side must not be lost.
                        pairs.for_each(|(max, x)| {
                            *max = if *max >= *x { *max } else { *x + 0.0 * *max }
                        });
                    }
                }
            }
            if self.settings.normalize {
                let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-12);
                vector.iter_mut().for_each(|x| *x /= length);
            }
        }
        pooled
    }

    /// Whether a text is one that [`Self::encode`] can take.
    fn check(&self, tokens: &Tokens) -> Result<(), ItemError> {
        let Settings { positions, vocabulary, .. } = self.settings;
        if tokens.len() == 0 || tokens.len() > positions {
            return Err(ItemError::new(format!(
                "input has {} tokens; the model takes 1 to {positions}",
                tokens.len()
            )));
        }
        match tokens.ids().iter().find(|id| **id as usize >= vocabulary) {
            Some(id) => Err(ItemError::new(format!(
                "input has token {id}; the model knows {vocabulary}, use the tokenizer beside it"
            ))),
            None => Ok(()),
        }
    }
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
        let checked: Vec<Result<(), ItemError>> =
            batch.iter().map(|texts| texts.iter().try_for_each(|text| self.check(text))).collect();
        let sound = batch.iter().zip(&checked).filter(|(_, checked)| checked.is_ok());
        let texts: Vec<&Tokens> = sound.flat_map(|(texts, _)| texts).collect();
        let mut vectors = Vec::with_capacity(texts.len() * self.settings.hidden);
        for part in parts(&texts) {
            vectors.extend(self.encode(part)?);
        }
        let mut vectors = vectors.chunks_exact(self.settings.hidden);
        let mut results = Vec::with_capacity(batch.len());
        for (texts, checked) in batch.iter().zip(checked) {
            let result = checked.and_then(|()| {
                // Taken in whole, so that one bad text does not shift those of the next job.
                let own: Vec<&[f32]> = vectors.by_ref().take(texts.len()).collect();
                own.into_iter().zip(texts).map(|(vector, text)| embedding(vector, text)).collect()
            });
            results.push(result);
        }
        Ok(results)
    }
}

fn embedding(vector: &[f32], text: &Tokens) -> Result<Embedding, ItemError> {
    if vector.iter().any(|x| !x.is_finite()) {
        return Err(ItemError::new("output is not finite; the weights do not suit this input"));
    }
    Ok(Embedding { vector: vector.to_vec(), tokens: text.len() })
}

/// Cuts a list of texts into runs of at most [`MAX_TOKENS_AT_ONCE`] tokens.
fn parts<'a, 'b>(texts: &'a [&'b Tokens]) -> Vec<&'a [&'b Tokens]> {
    let mut parts = Vec::new();
    let (mut start, mut n_tokens) = (0, 0);
    for (place, text) in texts.iter().enumerate() {
        if n_tokens + text.len() > MAX_TOKENS_AT_ONCE && place > start {
            parts.push(&texts[start..place]);
            (start, n_tokens) = (place, 0);
        }
        n_tokens += text.len();
    }
    if start < texts.len() {
        parts.push(&texts[start..]);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::{Encoder, Path, Tokens};
    use crate::{DeviceChoice, Model};

    #[test]
    fn packed_weights_give_what_burn_gives() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-bert");
        let load = |is_packed| Encoder::load_as(&dir, DeviceChoice::Cpu, is_packed).unwrap();
        let (mut packed, mut burn) = (load(true), load(false));
        let text = |n: usize| Tokens::from_ids((0..n as u32).map(|id| id * 7 % 30).collect());
        let batch: Vec<_> = [1, 2, 7, 20, 3, 13].map(|n| vec![text(n)]).into();
        let pairs = packed.infer(&batch).unwrap().into_iter().zip(burn.infer(&batch).unwrap());
        for (packed, burn) in pairs {
            let (packed, burn) = (packed.unwrap().remove(0), burn.unwrap().remove(0));
            for (x, y) in packed.vector.iter().zip(&burn.vector) {
                assert!((x - y).abs() < 1e-5, "{x} {y}");
            }
        }
    }
}
