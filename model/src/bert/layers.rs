//! Transformer layers over texts that lie end to end, in two ways: with packed weights, and by burn's
//! own products.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};

use super::attention::attend;
use super::config::Config;
use super::kernels::{self, Norm};
use super::packed;
use super::panels::Panels;
use super::weights::{Dense, Layer, Reader};
use crate::{InferError, LoadError};

/// The layers of a model.
#[derive(Debug)]
pub(crate) enum Layers {
    /// For processors that suit.
    Packed(Arc<Vec<Layer<Panels>>>),
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
        Ok(Self::Packed(Arc::new(layers.collect::<Result<_, _>>()?)))
    }

    fn burn(config: &Config, reader: &Reader, device: &Device) -> Result<Self, LoadError> {
        let tensor = |matrix: &[f32], from, to| {
            Tensor::from_data(TensorData::new(matrix.to_vec(), [from, to]), device)
        };
        let layers = (0..config.layers).map(|n| reader.layer(n, config, &tensor));
        Ok(Self::Burn(layers.collect::<Result<_, _>>()?, device.clone()))
    }

    /// What comes out of the last layer; `rows`, normalised, go into the first.
    pub(crate) fn run(
        &self,
        mut rows: Vec<f32>,
        norm: &Norm,
        texts: &[Range<usize>],
        config: &Config,
    ) -> Result<Vec<f32>, InferError> {
        match self {
            Self::Packed(layers) => {
                let n_rows = rows.len() / config.hidden;
                let block = packed::block_rows(n_rows, rayon::current_num_threads());
                packed::run(block, layers, &mut rows, norm, texts, config);
                Ok(rows)
            }
            Self::Burn(layers, device) => {
                kernels::norm_here(&mut rows, norm);
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
    use crate::checkpoint::Checkpoint;

    const TEXTS: [Range<usize>; 5] = [0..1, 1..3, 3..10, 10..130, 130..133];

    fn tiny() -> (Config, Reader) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-bert");
        let config = Settings::read(&dir).unwrap().config;
        let reader = Reader::new(Checkpoint::open(&dir).unwrap(), config.family).unwrap();
        (config, reader)
    }

    fn rows(config: &Config) -> Vec<f32> {
        (0..133 * config.hidden).map(|n| (n as f32).sin()).collect()
    }

    fn norm(config: &Config) -> Norm {
        let [scale, shift] = [2.0, 0.5].map(|x| vec![x; config.hidden]);
        Norm { scale, shift, eps: 1e-5 }
    }

    /// The layers of the tiny model three times over: buffers are used again from the third layer on.
    fn deep() -> (Config, Arc<Vec<Layer<Panels>>>, Layers) {
        let (mut packed, mut burn) = (Vec::new(), Vec::new());
        let (config, reader) = tiny();
        for _ in 0..3 {
            let layers = Layers::packed(&config, &reader).unwrap();
            let Layers::Packed(layers) = layers else { unreachable!() };
            packed.extend(Arc::into_inner(layers).unwrap());
            let layers = Layers::burn(&config, &reader, &Device::flex()).unwrap();
            let Layers::Burn(layers, _) = layers else { unreachable!() };
            burn.extend(layers);
        }
        (config, Arc::new(packed), Layers::Burn(burn, Device::flex()))
    }

    #[test]
    fn packed_weights_give_what_burn_gives_in_blocks_of_any_size() {
        let (config, packed, burn) = deep();
        let (rows, norm) = (rows(&config), norm(&config));
        let run = |block| {
            let mut rows = rows.clone();
            packed::run(block, &packed, &mut rows, &norm, &TEXTS, &config);
            rows
        };
        let found = Layers::Packed(Arc::clone(&packed)).run(rows.clone(), &norm, &TEXTS, &config);
        let found = found.unwrap();
        let expected = burn.run(rows.clone(), &norm, &TEXTS, &config).unwrap();
        assert_eq!(found.len(), expected.len());
        for (x, y) in found.iter().zip(&expected) {
            assert!((x - y).abs() < 1e-5, "{x} {y}");
        }
        for block in [1, 2, 3, 7, 16, 50, 132, 133, 200] {
            assert!(run(block) == found, "blocks of {block}");
        }
    }

    #[test]
    fn without_texts_nothing_comes_out() {
        let (config, packed, _) = deep();
        let out = Layers::Packed(packed).run(Vec::new(), &norm(&config), &[], &config);
        assert!(out.unwrap().is_empty());
    }
}
