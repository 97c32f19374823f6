//! Transformer layers over texts that lie end to end, in two ways: with packed weights, where all but
//! attention is done for a block of rows while they are in the cache, and by burn's own products.

use std::ops::Range;

use burn::tensor::{Device, Tensor, TensorData};
use rayon::prelude::*;

use super::attention::attend;
use super::config::Config;
use super::kernels;
use super::panels::{Finish, Panels};
use super::weights::{Dense, Layer, Reader};
use crate::{InferError, LoadError};

/// Rows of a block: their numbers stay in the second cache but for those between the two wide products,
/// and all weights of a layer are read once for them.
const BLOCK: usize = 128;

/// The layers of a model.
#[derive(Debug)]
pub(crate) enum Layers {
    /// For processors that suit.
    Packed(Vec<Layer<Panels>>),
    /// For all others, and the reference in tests.
    Burn(Vec<Layer<Tensor<2>>>, Device),
}

impl Layers {
    /// Reads them as this processor wants them.
    pub(crate) fn load(
        config: &Config,
        reader: &Reader,
        device: &Device,
    ) -> Result<Self, LoadError> {
        if Panels::suit() {
            Self::packed(config, reader)
        } else {
            Self::burn(config, reader, device)
        }
    }

    fn packed(config: &Config, reader: &Reader) -> Result<Self, LoadError> {
        let layers = (0..config.layers).map(|n| reader.stored_layer(n, config, &Panels::pack));
        Ok(Self::Packed(layers.collect::<Result<_, _>>()?))
    }

    fn burn(config: &Config, reader: &Reader, device: &Device) -> Result<Self, LoadError> {
        let tensor = |matrix: &[f32], from, to| {
            Tensor::from_data(TensorData::new(matrix.to_vec(), [from, to]), device)
        };
        let layers = (0..config.layers).map(|n| reader.layer(n, config, &tensor));
        Ok(Self::Burn(layers.collect::<Result<_, _>>()?, device.clone()))
    }

    /// What comes out of the last layer; `rows` goes into the first.
    pub(crate) fn run(
        &self,
        mut rows: Vec<f32>,
        texts: &[Range<usize>],
        config: &Config,
    ) -> Result<Vec<f32>, InferError> {
        match self {
            Self::Packed(layers) => {
                let mut buffers = Buffers::default();
                // On a thread of the pool: from any other, each step of each layer would have to
                // wake this one at its end.
                rayon::scope(|_| {
                    for layer in layers {
                        layer.run(&mut rows, texts, config, &mut buffers);
                    }
                });
                Ok(rows)
            }
            Self::Burn(layers, device) => {
                let n_tokens = rows.len() / config.hidden;
                let mut rows = TensorData::new(rows, [n_tokens, config.hidden]);
                for layer in layers {
                    rows = layer.run(rows, texts, config, device)?;
                }
                rows.try_into_vec()
                    .map_err(|error| InferError::Device(format!("read back: {error}")))
            }
        }
    }
}

/// What all rows have between the steps of a layer; used again by the next.
#[derive(Debug, Default)]
struct Buffers {
    qkv: Vec<f32>,
    context: Vec<f32>,
}

/// What one thread needs for a block of rows.
#[derive(Debug, Default)]
struct Scratch {
    attended: Vec<f32>,
    inner: Vec<f32>,
}

impl Layer<Panels> {
    fn run(
        &self,
        rows: &mut [f32],
        texts: &[Range<usize>],
        config: &Config,
        buffers: &mut Buffers,
    ) {
        let width = config.hidden;
        let block = block_rows(rows.len() / width, rayon::current_num_threads()) * width;
        let Buffers { qkv, context } = buffers;
        qkv.resize(3 * rows.len(), 0.0);
        context.resize(rows.len(), 0.0);
        let blocks = rows.par_chunks(block).zip(qkv.par_chunks_mut(3 * block));
        blocks.for_each(|(rows, qkv)| self.qkv.matrix.multiply(rows, None, qkv));
        attend(qkv, texts, config.heads, &self.qkv.bias, context);
        let blocks = rows.par_chunks_mut(block).zip(context.par_chunks(block));
        blocks.for_each_init(Scratch::default, |scratch, (rows, context)| {
            self.finish(rows, context, config, scratch);
        });
    }

    /// All that follows attention, for a block of rows.
    fn finish(&self, rows: &mut [f32], context: &[f32], config: &Config, scratch: &mut Scratch) {
        let Scratch { attended, inner } = scratch;
        let n_rows = rows.len() / config.hidden;
        attended.resize(rows.len(), 0.0);
        inner.resize(n_rows * self.up.matrix.to(), 0.0);
        self.out.matrix.multiply(context, None, attended);
        kernels::add_norm_here(attended, &self.out.bias, rows, &self.attention_norm);
        let finish = Finish { bias: &self.up.bias, activation: config.activation };
        self.up.matrix.multiply(attended, Some(finish), inner);
        self.down.matrix.multiply(inner, None, rows);
        kernels::add_norm_here(rows, &self.down.bias, attended, &self.output_norm);
    }
}

/// Rows of each block: at most [`BLOCK`], and as many blocks for each thread.
fn block_rows(n_rows: usize, n_threads: usize) -> usize {
    let n_blocks = n_rows.div_ceil(BLOCK).next_multiple_of(n_threads);
    n_rows.div_ceil(n_blocks.max(1)).max(1)
}

impl Layer<Tensor<2>> {
    fn run(
        &self,
        rows: TensorData,
        texts: &[Range<usize>],
        config: &Config,
        device: &Device,
    ) -> Result<TensorData, InferError> {
        let (mut rows, mut qkv) = product(rows, &self.qkv, device)?;
        let mut context = vec![0.0; rows.num_elements()];
        attend(values(&mut qkv)?, texts, config.heads, &self.qkv.bias, &mut context);
        drop(qkv);

        let context = TensorData::new(context, rows.shape().clone());
        let (_, mut attended) = product(context, &self.out, device)?;
        let attention = values(&mut attended)?;
        kernels::add_norm(attention, &self.out.bias, values(&mut rows)?, &self.attention_norm);

        let (mut attended, mut inner) = product(attended, &self.up, device)?;
        kernels::activate(values(&mut inner)?, &self.up.bias, config.activation);
        let (_, mut output) = product(inner, &self.down, device)?;
        let residual = values(&mut attended)?;
        kernels::add_norm(values(&mut output)?, &self.down.bias, residual, &self.output_norm);
        Ok(output)
    }
}

/// `rows x dense`, without the bias, and the rows again: neither is copied.
fn product(
    rows: TensorData,
    dense: &Dense<Tensor<2>>,
    device: &Device,
) -> Result<(TensorData, TensorData), InferError> {
    let failed = |error| InferError::Device(format!("matrix product: {error}"));
    let rows = Tensor::<2>::from_data(rows, device);
    let product = rows.clone().matmul(dense.matrix.clone());
    let product = product.try_into_data().map_err(failed)?;
    Ok((rows.try_into_data().map_err(failed)?, product))
}

/// The numbers behind a tensor that was read back.
fn values(data: &mut TensorData) -> Result<&mut [f32], InferError> {
    data.as_mut_slice().map_err(|error| InferError::Device(format!("read back: {error}")))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::Settings;
    use super::*;

    #[test]
    fn packed_weights_give_what_burn_gives() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-bert");
        let config = Settings::read(&dir).unwrap().config;
        let open = || Reader::open(&dir, config.family).unwrap();
        let packed = Layers::packed(&config, &open()).unwrap();
        let burn = Layers::burn(&config, &open(), &Device::flex()).unwrap();
        let texts = [0..1, 1..3, 3..10, 10..130, 130..133];
        let rows: Vec<f32> = (0..133 * config.hidden).map(|n| (n as f32).sin()).collect();
        let found = packed.run(rows.clone(), &texts, &config).unwrap();
        let expected = burn.run(rows, &texts, &config).unwrap();
        for (x, y) in found.iter().zip(&expected) {
            assert!((x - y).abs() < 1e-5, "{x} {y}");
        }
    }

    #[test]
    fn blocks_are_as_many_for_each_thread_and_fit_the_cache() {
        for (n_rows, n_threads) in [(0, 2), (1, 2), (8, 2), (32, 2), (200, 2), (1024, 3), (8192, 7)]
        {
            let rows = block_rows(n_rows, n_threads);
            assert!((1..=BLOCK).contains(&rows), "{n_rows} rows on {n_threads}: {rows}");
            assert!(n_rows.div_ceil(rows) <= n_rows.div_ceil(BLOCK).next_multiple_of(n_threads));
        }
    }
}
