//! A decoder by burn's operations, for devices that kernels are launched on: the tokens of all
//! sequences go through the dense layers together, and sequences that grow attend side by side.
//!
//! Products are of the chosen type of numbers; what stands between them, norms, softmax, gates and
//! turns, is in f32.

use burn::tensor::activation::{silu, softmax};
use burn::tensor::{DType, Device, Element, Int, Tensor, TensorData};

use super::config::Config;
use super::forward::{Feed, Forward};
use super::groups::{GroupShape, groups};
use super::inputs::{Angles, Pass, Seen};
use super::pool::{self, Cache, Pool, Tables};
use super::weights::{Dense, Layer, Reader};
use crate::device::{Opened, Upload, failure, guarded};
use crate::{Dtype, InferError, LoadError};

/// A model's weights on the device, with the keys and values of its sequences.
#[derive(Debug)]
pub(crate) struct Graph {
    device: Device,
    dtype: DType,
    config: Config,
    angles: Angles,
    words: Tensor<2>,
    layers: Vec<Block>,
    norm: Tensor<2>,
    /// `[hidden, vocabulary]`.
    head: Tensor<2>,
    pool: Pool,
}

#[derive(Debug)]
struct Linear {
    /// `[in, out]`.
    matrix: Tensor<2>,
    /// `[1, out]`, in f32.
    bias: Option<Tensor<2>>,
}

#[derive(Debug)]
struct Block {
    attention_norm: Tensor<2>,
    qkv: Linear,
    /// Of the heads of queries and then keys, `[1, heads, head_width]`.
    head_norm: Option<Tensor<3>>,
    out: Linear,
    feed_norm: Tensor<2>,
    gate_up: Linear,
    down: Linear,
}

impl Graph {
    pub(crate) fn load(
        config: &Config,
        reader: &Reader,
        opened: &Opened,
    ) -> Result<Self, LoadError> {
        #[cfg(feature = "cuda")]
        if let Some(card) = &opened.card {
            card.start_burn(&opened.device)?;
        }
        let (device, dtype) = (opened.device.clone(), opened.dtype.of_burn());
        let upload = Upload { device: &device };
        let blocks = Blocks { upload: &upload, dtype, config };
        let shape = [config.vocabulary, config.hidden];
        let words = upload.tensor(reader.embeddings(config)?, shape, dtype);
        let head = match config.tied {
            true => words.clone().transpose(),
            false => reader.head(config, &|stored, from, to| blocks.matrix(stored, from, to))?,
        };
        let layer = |n| {
            let matrix = |stored: &[f32], from, to| blocks.matrix(stored, from, to);
            Ok(blocks.block(reader.layer(n, config, &matrix)?))
        };
        let layers = (0..config.layers).map(layer).collect::<Result<_, LoadError>>()?;
        let norm = upload.row(&reader.norm(config)?);
        let tables = if opened.is_gpu() { Tables::Whole } else { Tables::Growing };
        let width = 2 * config.kv_width();
        let pool = Pool::new(device.clone(), dtype, width, config.layers, tables);
        let angles = Angles::new(config.frequencies(), &device);
        let config = config.clone();
        Ok(Self { device, dtype, config, angles, words, layers, norm, head, pool })
    }

    /// Bytes of keys and values of so many tokens, in numbers of this type.
    pub(crate) fn bytes(config: &Config, dtype: Dtype, n_tokens: usize) -> u64 {
        pool::bytes(n_tokens, 2 * config.kv_width(), dtype.of_burn(), config.layers)
    }

    /// How many bytes of keys and values will be asked for at most.
    pub(crate) fn bound(&mut self, bytes: u64) {
        self.pool.bound(bytes);
    }

    /// The same with tables as a GPU has them.
    #[cfg(test)]
    pub(crate) fn with_whole_tables(mut self) -> Self {
        let (device, width) = (self.device.clone(), 2 * self.config.kv_width());
        self.pool = Pool::new(device, self.dtype, width, self.config.layers, Tables::Whole);
        self
    }

    /// Makes numbers of a token's vector that are not finite.
    #[cfg(test)]
    pub(crate) fn spoil(&mut self, token: usize) {
        let row = self.words.clone().narrow(0, token, 1) * f32::NAN;
        let at = super::inputs::indices(vec![token as i32], &self.device);
        let words = self.words.clone();
        self.words = words.select_assign(0, at, row, burn::tensor::IndexingUpdateOp::Assign);
    }

    /// Runs a pass of this shape alone, whose keys and values are nobody's.
    pub(crate) fn warm_shape(&mut self, shape: GroupShape) -> Result<(), InferError> {
        let GroupShape { rows, tokens, length } = shape;
        let hollow = |_| self.pool.hollow(length - tokens, tokens);
        let mut caches: Vec<Cache> = (0..rows).map(hollow).collect();
        let tokens = vec![0; tokens];
        let feed = |cache| Feed { cache, tokens: &tokens, wants: true };
        let mut feeds: Vec<Feed<'_, Cache>> = caches.iter_mut().map(feed).collect();
        self.likeliest(&mut feeds).map(drop)
    }

    /// Reads the tokens: how many logits are wanted, and those, filled up to a size.
    fn run(&mut self, feeds: &mut [Feed<'_, Cache>]) -> Option<(usize, Tensor<2>)> {
        let mut n_positions = 0;
        for feed in feeds.iter_mut() {
            let n_tokens = feed.cache.n_read + feed.tokens.len();
            self.pool.reserve(feed.cache, n_tokens);
            n_positions = n_positions.max(n_tokens);
        }
        self.angles.reserve(n_positions, &self.device);
        let sizes: Vec<_> = feeds.iter().map(|it| (it.cache.n_read, it.tokens.len())).collect();
        let pass = Pass::new(feeds, &groups(&sizes), &self.angles, &self.device);
        let mut x = self.words.clone().select(0, pass.tokens.clone()).cast(DType::F32);
        for n in 0..self.layers.len() {
            x = self.layer(n, x, &pass);
        }
        feeds.iter_mut().for_each(|feed| feed.cache.n_read += feed.tokens.len());
        let x = x.select(0, pass.last?);
        let x = (rms(x, self.config.norm_eps) * self.norm.clone()).cast(self.dtype);
        Some((pass.n_last, x.matmul(self.head.clone())))
    }

    /// Does what leaves no tables behind where it does not come to its end.
    fn attempt<T>(
        &mut self,
        run: impl FnOnce(&mut Self) -> Result<T, InferError>,
    ) -> Result<T, InferError> {
        let device = self.device.clone();
        // Also where it panics: what the tables hold is known again only once all went well.
        let mut attempt = Attempt { graph: self, is_sound: false };
        let found = guarded(|| run(attempt.graph), || ());
        attempt.is_sound = found.is_ok();
        drop(attempt);
        if found.is_err() {
            device.memory_cleanup();
        }
        found
    }

    /// One layer: what it adds to the vectors of all tokens.
    fn layer(&mut self, n: usize, x: Tensor<2>, pass: &Pass) -> Tensor<2> {
        let layer = &self.layers[n];
        let Config { heads, kv_heads, head_width, norm_eps: eps, .. } = self.config;
        let (n_tokens, n_turned) = (x.dims()[0], heads + kv_heads);
        let inner = (rms(x.clone(), eps) * layer.attention_norm.clone()).cast(self.dtype);
        let qkv = layer.qkv.apply(inner).reshape([n_tokens, n_turned + kv_heads, head_width]);
        let mut turned = qkv.clone().narrow(1, 0, n_turned);
        if let Some(scale) = &layer.head_norm {
            turned = rms(turned, eps) * scale.clone();
        }
        let half = head_width / 2;
        let halves = [half, 0].map(|start| turned.clone().narrow(2, start, half));
        let swapped = Tensor::cat(halves.to_vec(), 2);
        let turned = turned * pass.cos.clone() + swapped * pass.sin.clone();
        let keys = turned.clone().narrow(1, heads, kv_heads);
        let values = qkv.narrow(1, n_turned, kv_heads);
        let rows = Tensor::cat(vec![keys, values], 1).cast(self.dtype);
        let rows = rows.reshape([n_tokens, 2 * kv_heads * head_width]);
        self.pool.write(n, pass.rows.clone(), rows);
        // Scores are divided by the root of a head's width: the queries are, before they are rounded.
        let scale = (head_width as f32).sqrt().recip();
        let queries = (turned.narrow(1, 0, heads) * scale).cast(self.dtype);
        let layer = &self.layers[n];
        let x = layer.out.apply(self.attend(n, &queries, pass)) + x;
        let inner = (rms(x.clone(), eps) * layer.feed_norm.clone()).cast(self.dtype);
        let inner = layer.gate_up.apply(inner);
        let width = inner.dims()[1] / 2;
        let inner = silu(inner.clone().narrow(1, 0, width)) * inner.narrow(1, width, width);
        layer.down.apply(inner.cast(self.dtype)) + x
    }

    /// What the tokens, with these queries, `[tokens, heads, head_width]`, get of what they see.
    fn attend(&self, layer: usize, queries: &Tensor<3>, pass: &Pass) -> Tensor<2> {
        let made = pass.seen.iter().map(|seen| self.attend_group(layer, queries, seen));
        let mut made: Vec<Tensor<2>> = made.collect();
        let made = if made.len() == 1 { made.swap_remove(0) } else { Tensor::cat(made, 0) };
        match &pass.order {
            Some(order) => made.select(0, order.clone()),
            None => made,
        }
    }

    fn attend_group(&self, layer: usize, queries: &Tensor<3>, seen: &Seen) -> Tensor<2> {
        let Config { heads, kv_heads, head_width, .. } = self.config;
        let shared = heads / kv_heads;
        let GroupShape { rows: n_rows, tokens, length } = seen.shape;
        let queries = match &seen.queries {
            Some(at) => queries.clone().select(0, at.clone()),
            None => queries.clone(),
        };
        let queries = queries.reshape([n_rows, tokens, kv_heads, shared, head_width]);
        let queries = queries.permute([0, 2, 3, 1, 4]);
        let queries = queries.reshape([n_rows, kv_heads, shared * tokens, head_width]);
        let kv = self.pool.read(layer, seen.rows.clone());
        let kv = kv.reshape([n_rows, length, 2 * kv_heads, head_width]).swap_dims(1, 2);
        let keys = kv.clone().narrow(1, 0, kv_heads);
        let values = kv.narrow(1, kv_heads, kv_heads);
        let scores = queries.matmul(keys.swap_dims(2, 3)).cast(DType::F32);
        let scores = scores.reshape([n_rows, kv_heads, shared, tokens, length]);
        let parts = softmax(scores + seen.mask.clone(), 4).cast(self.dtype);
        let parts = parts.reshape([n_rows, kv_heads, shared * tokens, length]);
        let context = parts.matmul(values);
        let context = context.reshape([n_rows, kv_heads, shared, tokens, head_width]);
        let context = context.permute([0, 3, 1, 2, 4]);
        context.reshape([n_rows * tokens, heads * head_width])
    }
}

impl Forward for Graph {
    type Cache = Cache;

    fn cache(&mut self) -> Cache {
        self.pool.cache()
    }

    fn cache_bytes(&self, n_tokens: usize) -> u64 {
        self.pool.bytes(n_tokens)
    }

    fn forward(&mut self, feeds: &mut [Feed<'_, Cache>]) -> Result<Vec<f32>, InferError> {
        self.attempt(|graph| {
            let Some((n, logits)) = graph.run(feeds) else { return Ok(Vec::new()) };
            // They cross over as they were computed, mostly in half the bytes of f32.
            let mut logits = read(logits.try_into_data())?;
            logits.truncate(n * graph.config.vocabulary);
            Ok(logits)
        })
    }

    fn likeliest(&mut self, feeds: &mut [Feed<'_, Cache>]) -> Result<Vec<Option<u32>>, InferError> {
        self.attempt(|graph| {
            let Some((n, logits)) = graph.run(feeds) else { return Ok(Vec::new()) };
            let tokens: Vec<i32> = read(likeliest(logits, &graph.device).try_into_data())?;
            let none = graph.config.vocabulary as i32;
            let tokens = tokens.into_iter().take(n);
            Ok(tokens.map(|token| (token != none).then_some(token.cast_unsigned())).collect())
        })
    }
}

/// The first of the largest of each row of logits; of a row that is spoilt, their number.
fn likeliest(logits: Tensor<2>, device: &Device) -> Tensor<2, Int> {
    let [rows, n] = logits.dims();
    let logits = logits.cast(DType::F32);
    let is_spoilt = logits.clone().is_finite().bool_not().any_dim(1);
    let is_less = logits.clone().max_dim(1).greater(logits);
    let tokens = Tensor::<1, Int>::arange(0..n as i64, (device, DType::I32));
    let tokens = tokens.reshape([1, n]).expand([rows, n]);
    tokens.mask_fill(is_less, n as i32).min_dim(1).mask_fill(is_spoilt, n as i32)
}

/// What has come from the device.
fn read<E: Element>(
    data: Result<TensorData, impl std::fmt::Display>,
) -> Result<Vec<E>, InferError> {
    let data = data.map_err(|error| failure(&error.to_string()))?;
    let values = data.convert::<E>().try_into_vec::<E>();
    values.map_err(|error| InferError::Device(format!("read back: {error}")))
}

/// A pass that leaves no tables behind where it does not come to its end.
struct Attempt<'a> {
    graph: &'a mut Graph,
    is_sound: bool,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.is_sound {
            self.graph.pool.reset();
        }
    }
}

impl Linear {
    /// In f32, whatever the product was in.
    fn apply(&self, x: Tensor<2>) -> Tensor<2> {
        let x = x.matmul(self.matrix.clone()).cast(DType::F32);
        match &self.bias {
            Some(bias) => x + bias.clone(),
            None => x,
        }
    }
}

/// Divides what lies along the last dimension by the root of its mean square.
fn rms<const D: usize>(x: Tensor<D>, eps: f32) -> Tensor<D> {
    let square = (x.clone() * x.clone()).mean_dim(D - 1);
    x / (square + eps).sqrt()
}

/// Where weights go, and as what.
struct Blocks<'a> {
    upload: &'a Upload<'a>,
    dtype: DType,
    config: &'a Config,
}

impl Blocks<'_> {
    /// Turned by the device, which multiplies by what is stored in either order.
    fn matrix(&self, stored: &[f32], from: usize, to: usize) -> Tensor<2> {
        self.upload.tensor(stored.to_vec(), [to, from], self.dtype).transpose()
    }

    fn linear(&self, dense: Dense<Tensor<2>>) -> Linear {
        let bias = (!dense.bias.is_empty()).then(|| self.upload.row(&dense.bias));
        Linear { matrix: dense.matrix, bias }
    }

    fn block(&self, layer: Layer<Tensor<2>>) -> Block {
        let Config { heads, kv_heads, head_width, .. } = *self.config;
        let head_norm = self.config.qk_norm.then(|| {
            let scales = [layer.query_norm.repeat(heads), layer.key_norm.repeat(kv_heads)];
            self.upload.tensor(scales.concat(), [1, heads + kv_heads, head_width], DType::F32)
        });
        Block {
            attention_norm: self.upload.row(&layer.attention_norm),
            qkv: self.linear(layer.qkv),
            head_norm,
            out: self.linear(layer.out),
            feed_norm: self.upload.row(&layer.feed_norm),
            gate_up: self.linear(layer.gate_up),
            down: self.linear(layer.down),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_equals_the_first_is_the_likeliest_and_a_spoilt_row_has_none() {
        let (device, x) = (Device::flex(), f32::NAN);
        let rows = [
            [1.0, 3.0, 3.0, 2.0],
            [-5.0, -2.0, -9.0, -2.0],
            [f32::MIN; 4],
            [-0.0, 0.0, 0.0, -1.0],
            [1.0, x, 3.0, 2.0],
            [f32::INFINITY, 0.0, 0.0, 0.0],
            [0.0, f32::NEG_INFINITY, 0.0, 0.0],
        ];
        let found = likeliest(Tensor::from_data(rows, &device), &device);
        let found: Vec<i32> = read(found.try_into_data()).unwrap();
        assert_eq!(found, [1, 1, 0, 0, 4, 4, 4]);
    }
}
