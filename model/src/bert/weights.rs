//! An encoder's weights as they are stored, ready for the device.

use std::io::{Read, Seek};
use std::path::Path;

use super::Settings;
use super::kernels::Norm;
use crate::LoadError;
use crate::safetensors::Weights;

/// A dense layer, its matrix as the products want it.
#[derive(Debug)]
pub(crate) struct Dense<M> {
    /// `[in, out]`.
    pub(crate) matrix: M,
    pub(crate) bias: Vec<f32>,
}

/// One transformer layer.
#[derive(Debug)]
pub(crate) struct Layer<M> {
    /// Queries, keys and values in one product.
    pub(crate) qkv: Dense<M>,
    pub(crate) out: Dense<M>,
    pub(crate) attention_norm: Norm,
    pub(crate) up: Dense<M>,
    pub(crate) down: Dense<M>,
    pub(crate) output_norm: Norm,
}

/// Everything before the first layer.
#[derive(Debug)]
pub(crate) struct Embeddings {
    pub(crate) words: Vec<f32>,
    /// Positions, with the vector of the one token type added.
    pub(crate) positions: Vec<f32>,
    pub(crate) norm: Norm,
}

/// Reads the weights of `settings` from `dir/model.safetensors`. `prepare` makes of each matrix, given
/// row by row with its number of rows and columns, what the products want.
pub(crate) fn load<M>(
    dir: &Path,
    settings: &Settings,
    prepare: impl Fn(&[f32], usize, usize) -> M,
) -> Result<(Embeddings, Vec<Layer<M>>), LoadError> {
    let path = dir.join("model.safetensors");
    let weights = Weights::open(&path)?;
    // Saved alone, or as a part of a larger model.
    let prefix = ["", "bert."]
        .into_iter()
        .find(|prefix| {
            weights.entries().contains_key(&format!("{prefix}embeddings.word_embeddings.weight"))
        })
        .ok_or_else(|| {
            let message = "is missing; the file does not hold a BertModel";
            LoadError::tensor(&path, "embeddings.word_embeddings.weight", message)
        })?;
    let mut reader = Reader { weights, prefix, settings, prepare };
    let embeddings = reader.embeddings()?;
    let layers = (0..settings.layers).map(|n| reader.layer(n)).collect::<Result<_, _>>()?;
    Ok((embeddings, layers))
}

struct Reader<'a, R, F> {
    weights: Weights<R>,
    prefix: &'static str,
    settings: &'a Settings,
    prepare: F,
}

impl<R, F, M> Reader<'_, R, F>
where
    R: Read + Seek,
    F: Fn(&[f32], usize, usize) -> M,
{
    fn read(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        self.weights.read(&format!("{}{name}", self.prefix), shape)
    }

    fn embeddings(&mut self) -> Result<Embeddings, LoadError> {
        let Settings { hidden, vocabulary, positions, token_types, .. } = *self.settings;
        let table = |name| format!("embeddings.{name}_embeddings.weight");
        let words = self.read(&table("word"), &[vocabulary, hidden])?;
        let mut position = self.read(&table("position"), &[positions, hidden])?;
        let token_type = self.read(&table("token_type"), &[token_types, hidden])?;
        for row in position.chunks_exact_mut(hidden) {
            row.iter_mut().zip(&token_type).for_each(|(x, of_type)| *x += of_type);
        }
        let norm = self.norm("embeddings.LayerNorm")?;
        Ok(Embeddings { words, positions: position, norm })
    }

    fn layer(&mut self, n: usize) -> Result<Layer<M>, LoadError> {
        let Settings { hidden, intermediate, .. } = *self.settings;
        let name = |part: &str| format!("encoder.layer.{n}.{part}");
        let qkv = ["query", "key", "value"].map(|part| name(&format!("attention.self.{part}")));
        Ok(Layer {
            qkv: self.dense(&[&qkv[0], &qkv[1], &qkv[2]], hidden, hidden)?,
            out: self.dense(&[&name("attention.output.dense")], hidden, hidden)?,
            attention_norm: self.norm(&name("attention.output.LayerNorm"))?,
            up: self.dense(&[&name("intermediate.dense")], hidden, intermediate)?,
            down: self.dense(&[&name("output.dense")], intermediate, hidden)?,
            output_norm: self.norm(&name("output.LayerNorm"))?,
        })
    }

    /// The dense layers `names`, side by side as one. They are stored as `[out, in]`.
    fn dense(&mut self, names: &[&str], from: usize, to: usize) -> Result<Dense<M>, LoadError> {
        let width = names.len() * to;
        let mut matrix = vec![0.0; from * width];
        let mut bias = Vec::with_capacity(width);
        for (part, name) in names.iter().enumerate() {
            let stored = self.read(&format!("{name}.weight"), &[to, from])?;
            for (row, values) in stored.chunks_exact(from).enumerate() {
                for (column, value) in values.iter().enumerate() {
                    matrix[column * width + part * to + row] = *value;
                }
            }
            bias.extend(self.read(&format!("{name}.bias"), &[to])?);
        }
        Ok(Dense { matrix: (self.prepare)(&matrix, from, width), bias })
    }

    fn norm(&mut self, name: &str) -> Result<Norm, LoadError> {
        let shape = [self.settings.hidden];
        // Checkpoints converted from TensorFlow say gamma and beta.
        let old = self.weights.entries().contains_key(&format!("{}{name}.gamma", self.prefix));
        let (scale, shift) = if old { ("gamma", "beta") } else { ("weight", "bias") };
        Ok(Norm {
            scale: self.read(&format!("{name}.{scale}"), &shape)?,
            shift: self.read(&format!("{name}.{shift}"), &shape)?,
            eps: self.settings.layer_norm_eps,
        })
    }
}
