//! A model's weights as they are stored, ready for the device.

use super::Tokens;
use super::config::Config;
use super::family::{Family, Part};
use super::kernels::Norm;
use super::linear::Linear;
use crate::LoadError;
use crate::checkpoint::Checkpoint;

/// A dense layer, its matrix as the products want it.
#[derive(Debug)]
pub(crate) struct Dense<M> {
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
    width: usize,
    words: Vec<f32>,
    /// Positions, with the vector of the first token type added.
    positions: Vec<f32>,
    /// Rows of `positions` before that of the first token; the one before it is the padding's.
    first_position: usize,
    /// What the other token types have more than the first.
    types: Vec<f32>,
    pub(crate) norm: Norm,
}

impl Embeddings {
    /// Appends the vectors of a text's tokens, before the norm.
    pub(crate) fn embed(&self, text: &Tokens, rows: &mut Vec<f32>) {
        let width = self.width;
        let start = rows.len();
        for (id, row) in text.ids().iter().zip(self.places(text)) {
            let word = &self.words[*id as usize * width..][..width];
            let place = &self.positions[row * width..][..width];
            rows.extend(word.iter().zip(place).map(|(word, place)| word + place));
        }
        if self.types.is_empty() {
            return;
        }
        for (row, of) in rows[start..].chunks_exact_mut(width).zip(text.types()) {
            let more = &self.types[*of as usize * width..][..width];
            row.iter_mut().zip(more).for_each(|(x, more)| *x += more);
        }
    }

    /// The row of the table of positions for each token of a text.
    pub(crate) fn places(&self, text: &Tokens) -> impl Iterator<Item = usize> {
        let first = self.first_position;
        text.ids().iter().scan(first, move |position, id| {
            // In RoBERTa a padding token in the midst of a text has a place of its own.
            let is_padding = *id as usize + 1 == first;
            let row = if is_padding { first - 1 } else { *position };
            *position += usize::from(!is_padding);
            Some(row)
        })
    }

    /// Without tables: enough to tell the places of tokens.
    #[cfg(test)]
    pub(crate) fn of_positions(first_position: usize) -> Self {
        let norm = Norm { scale: Vec::new(), shift: Vec::new(), eps: 0.0 };
        let none = Vec::new;
        Self { width: 0, words: none(), positions: none(), first_position, types: none(), norm }
    }

    /// The tables of words, positions and types, for a device that keeps them; they are gone here.
    pub(crate) fn take_tables(&mut self) -> [Vec<f32>; 3] {
        [&mut self.words, &mut self.positions, &mut self.types].map(std::mem::take)
    }
}

/// The weights of a model, for its body and its head.
pub(crate) struct Reader {
    weights: Checkpoint,
    prefix: &'static str,
}

const WORDS: &str = "embeddings.word_embeddings.weight";

impl Reader {
    /// Looks where the transformer is in them; the disk is read from now on, while a device may
    /// start.
    pub(crate) fn new(weights: Checkpoint, family: Family) -> Result<Self, LoadError> {
        weights.read_ahead();
        // Saved alone, or as a part of a larger model.
        let own = family.prefix();
        let holds = |prefix: &&str| weights.entry(&format!("{prefix}{WORDS}")).is_some();
        let Some(prefix) = ["", own].into_iter().find(holds) else {
            let message = format!(
                "is missing, with {own} before it too; the weights are not of such a model"
            );
            return Err(weights.wrong(WORDS, message));
        };
        Ok(Self { weights, prefix })
    }

    /// A tensor of the transformer.
    fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        self.weights.read(&format!("{}{name}", self.prefix), shape)
    }

    pub(crate) fn embeddings(&self, config: &Config) -> Result<Embeddings, LoadError> {
        let Config { hidden, vocabulary, positions, first_position, token_types, .. } = *config;
        let table = |name| format!("embeddings.{name}_embeddings.weight");
        let words = self.read(WORDS, &[vocabulary, hidden])?;
        let rows = positions + first_position;
        let mut positions = self.read(&table("position"), &[rows, hidden])?;
        let mut types = Vec::new();
        if token_types > 0 {
            types = self.read(&table("token_type"), &[token_types, hidden])?;
            let first = types[..hidden].to_vec();
            let add = |row: &mut [f32]| row.iter_mut().zip(&first).for_each(|(x, of)| *x += of);
            positions.chunks_exact_mut(hidden).for_each(add);
            let less = |row: &mut [f32]| row.iter_mut().zip(&first).for_each(|(x, of)| *x -= of);
            types.chunks_exact_mut(hidden).for_each(less);
        }
        let norm = self.norm("embeddings.LayerNorm", config)?;
        Ok(Embeddings { width: hidden, words, positions, first_position, types, norm })
    }

    /// A layer. `prepare` makes of each matrix, given row by row as `[in, out]` with both, what the
    /// products want.
    pub(crate) fn layer<M>(
        &self,
        n: usize,
        config: &Config,
        prepare: &impl Fn(&[f32], usize, usize) -> M,
    ) -> Result<Layer<M>, LoadError> {
        let turn = |stored: &[f32], from: usize, to: usize| {
            let mut matrix = vec![0.0; stored.len()];
            for (row, values) in stored.chunks_exact(from).enumerate() {
                for (column, value) in values.iter().enumerate() {
                    matrix[column * to + row] = *value;
                }
            }
            prepare(&matrix, from, to)
        };
        self.stored_layer(n, config, &turn)
    }

    /// The same, with each matrix given as it is stored, `[out, in]`; its numbers of inputs and of
    /// outputs come with it.
    pub(crate) fn stored_layer<M>(
        &self,
        n: usize,
        config: &Config,
        prepare: &impl Fn(&[f32], usize, usize) -> M,
    ) -> Result<Layer<M>, LoadError> {
        let Config { hidden, intermediate, family, .. } = *config;
        let name = |part| family.name(n, part);
        let qkv = [Part::Query, Part::Key, Part::Value].map(name);
        Ok(Layer {
            qkv: self.dense(&[&qkv[0], &qkv[1], &qkv[2]], (hidden, hidden), prepare)?,
            out: self.dense(&[&name(Part::Attended)], (hidden, hidden), prepare)?,
            attention_norm: self.norm(&name(Part::AttentionNorm), config)?,
            up: self.dense(&[&name(Part::Up)], (hidden, intermediate), prepare)?,
            down: self.dense(&[&name(Part::Down)], (intermediate, hidden), prepare)?,
            output_norm: self.norm(&name(Part::OutputNorm), config)?,
        })
    }

    /// The dense layers `names`, side by side as one. They are stored as `[out, in]`.
    fn dense<M>(
        &self,
        names: &[&str],
        (from, to): (usize, usize),
        prepare: &impl Fn(&[f32], usize, usize) -> M,
    ) -> Result<Dense<M>, LoadError> {
        let (mut matrix, mut bias) = (Vec::new(), Vec::new());
        for name in names {
            let stored = self.read(&format!("{name}.weight"), &[to, from])?;
            if matrix.is_empty() {
                // Only now it is known that the file has as much as config.json says.
                matrix.reserve_exact(names.len() * stored.len());
            }
            matrix.extend(stored);
            bias.extend(self.read(&format!("{name}.bias"), &[to])?);
        }
        Ok(Dense { matrix: prepare(&matrix, from, names.len() * to), bias })
    }

    /// A dense layer of the head, by its whole name.
    pub(crate) fn linear(&self, name: &str, from: usize, to: usize) -> Result<Linear, LoadError> {
        let stored = self.weights.read(&format!("{name}.weight"), &[to, from])?;
        Ok(Linear::new(&stored, self.weights.read(&format!("{name}.bias"), &[to])?))
    }

    fn norm(&self, name: &str, config: &Config) -> Result<Norm, LoadError> {
        let shape = [config.hidden];
        // Checkpoints converted from TensorFlow say gamma and beta.
        let old = self.weights.entry(&format!("{}{name}.gamma", self.prefix)).is_some();
        let (scale, shift) = if old { ("gamma", "beta") } else { ("weight", "bias") };
        Ok(Norm {
            scale: self.read(&format!("{name}.{scale}"), &shape)?,
            shift: self.read(&format!("{name}.{shift}"), &shape)?,
            eps: config.layer_norm_eps,
        })
    }
}
