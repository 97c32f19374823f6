//! The encoder on the processor: texts end to end, matrix products by burn, kernels between.

use std::ops::Range;
use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};

use super::kernels;
use super::weights::{Dense, Embeddings, Layer, load};
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
    layers: Vec<Layer>,
    device: Device,
}

impl Encoder {
    /// Reads the weights of a model directory; its texts are cut by [`super::Tokenizer::load`].
    pub fn load(dir: &Path, device: DeviceChoice) -> Result<Self, LoadError> {
        let settings = Settings::read(dir)?;
        let device = device.open();
        let (embeddings, layers) = load(dir, &settings, &device)?;
        Ok(Self { settings, embeddings, layers, device })
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
        let n_tokens = rows.len() / width;
        let mut rows = TensorData::new(rows, [n_tokens, width]);
        for layer in &self.layers {
            rows = self.run(layer, rows, &spans)?;
        }
        Ok(self.pool(values(&mut rows)?, &spans))
    }

    fn run(
        &self,
        layer: &Layer,
        rows: TensorData,
        texts: &[Range<usize>],
    ) -> Result<TensorData, InferError> {
        let (mut rows, mut qkv) = self.product(rows, &layer.qkv)?;
        let mut context = vec![0.0; rows.num_elements()];
        kernels::attend(
            values(&mut qkv)?,
            texts,
            self.settings.heads,
            &layer.qkv.bias,
            &mut context,
        );
        drop(qkv);

        let context = TensorData::new(context, rows.shape().clone());
        let (_, mut attended) = self.product(context, &layer.out)?;
        let attention = values(&mut attended)?;
        kernels::add_norm(attention, &layer.out.bias, values(&mut rows)?, &layer.attention_norm);

        let (mut attended, mut inner) = self.product(attended, &layer.up)?;
        kernels::activate(values(&mut inner)?, &layer.up.bias, self.settings.activation);
        let (_, mut output) = self.product(inner, &layer.down)?;
        let residual = values(&mut attended)?;
        kernels::add_norm(values(&mut output)?, &layer.down.bias, residual, &layer.output_norm);
        Ok(output)
    }

    /// `rows x dense`, without the bias, and the rows again: neither is copied.
    fn product(
        &self,
        rows: TensorData,
        dense: &Dense,
    ) -> Result<(TensorData, TensorData), InferError> {
        let failed = |error| InferError::Device(format!("matrix product: {error}"));
        let rows = Tensor::<2>::from_data(rows, &self.device);
        let product = rows.clone().matmul(dense.matrix.clone());
        let product = product.try_into_data().map_err(failed)?;
        Ok((rows.try_into_data().map_err(failed)?, product))
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

/// The numbers behind a tensor that was read back.
fn values(data: &mut TensorData) -> Result<&mut [f32], InferError> {
    data.as_mut_slice().map_err(|error| InferError::Device(format!("read back: {error}")))
}
