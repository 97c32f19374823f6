//! A decoder by burn's operations, for devices that kernels are launched on: the tokens of all
//! sequences go through the dense layers together, and sequences that grow attend side by side.
//!
//! Products are of the chosen type of numbers; what stands between them, norms, softmax, gates and
//! turns, is in f32.

use std::convert::Infallible;
use std::num::NonZeroUsize;

use burn::tensor::activation::{silu, softmax};
use burn::tensor::{DType, Device, Tensor};

use super::config::Config;
use super::forward::{Feed, Forward};
use super::groups::{Group, GroupShape, Piece, groups};
use super::inputs::{Angles, Pass, Seen};
use super::likeliest::{likeliest, read};
use super::pool::{self, Cache, Pool, Tables};
use super::weights::{Dense, Layer, Reader};
use crate::device::{Opened, Upload, guarded};
use crate::first_runs::KnownShapes;
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
    pub(super) shapes: KnownShapes,
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
        let head = match reader.is_tied() {
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
        let shapes = KnownShapes::new(opened.is_tuned);
        Ok(Self { device, dtype, config, angles, words, layers, norm, head, pool, shapes })
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

    /// Runs a pass of this shape alone, of so many tokens at most and so many that are chosen, whose
    /// keys and values are nobody's.
    pub(crate) fn warm_shape(
        &mut self,
        shape: GroupShape,
        n_tokens: usize,
        n_chosen: usize,
    ) -> Result<(), InferError> {
        let group = Group::full(shape, n_tokens);
        let tokens = vec![0; shape.tokens];
        let caches = group
            .pieces
            .iter()
            .map(|piece| self.pool.hollow(piece.n_seen - piece.n_tokens, piece.n_tokens));
        let mut caches: Vec<Cache> = caches.collect();
        let feeds = caches.iter_mut().zip(&group.pieces);
        let feed = |(cache, piece): (_, &Piece)| {
            let wants = piece.feed < n_chosen;
            Feed { cache, tokens: &tokens[..piece.n_tokens], wants }
        };
        let mut feeds: Vec<Feed<'_, Cache>> = feeds.map(feed).collect();
        self.choose(&mut feeds, &[group]).map(drop)
    }

    /// Reads the tokens in these groups: the likeliest behind each feed that wants it.
    fn choose(
        &mut self,
        feeds: &mut [Feed<'_, Cache>],
        groups: &[Group],
    ) -> Result<Vec<Option<u32>>, InferError> {
        self.attempt(|graph| {
            let Some((n, logits)) = graph.run(feeds, groups) else { return Ok(Vec::new()) };
            let tokens: Vec<i32> = read(likeliest(logits, &graph.device).try_into_data())?;
            graph.shapes.end(true);
            let none = graph.config.vocabulary as i32;
            let tokens = tokens.into_iter().take(n);
            Ok(tokens.map(|token| (token != none).then_some(token.cast_unsigned())).collect())
        })
    }

    /// Reads the tokens: how many logits are wanted, and those, filled up to a size.
    fn run(
        &mut self,
        feeds: &mut [Feed<'_, Cache>],
        groups: &[Group],
    ) -> Option<(usize, Tensor<2>)> {
        let mut n_positions = 0;
        for feed in feeds.iter_mut() {
            let n_tokens = feed.cache.n_read + feed.tokens.len();
            self.pool.reserve(feed.cache, n_tokens);
            n_positions = n_positions.max(n_tokens);
        }
        self.angles.reserve(n_positions, &self.device);
        let pass = Pass::new(feeds, groups, &self.angles, &self.device);
        self.shapes.begin(pass.shapes());
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
    type Block = Infallible;

    fn cache(&mut self) -> Cache {
        self.pool.cache()
    }

    fn cache_bytes(&self, n_tokens: usize) -> u64 {
        self.pool.bytes(n_tokens)
    }

    // A sequence has the rows of the tables to itself, and what is computed of a token depends on the
    // tokens beside it in the last bits.
    fn block_tokens(&self) -> Option<NonZeroUsize> {
        None
    }

    fn block(&self, _: &Cache, _: usize) -> Option<Infallible> {
        None
    }

    fn put(&mut self, _: &mut Cache, _: usize, block: &Infallible) {
        match *block {}
    }

    fn is_in_cache(&self, block: &Infallible) -> bool {
        match *block {}
    }

    fn forward(&mut self, feeds: &mut [Feed<'_, Cache>]) -> Result<Vec<f32>, InferError> {
        self.attempt(|graph| {
            let Some((n, logits)) = graph.run(feeds, &grouped(feeds)) else {
                return Ok(Vec::new());
            };
            // They cross over as they were computed, mostly in half the bytes of f32.
            let mut logits = read(logits.try_into_data())?;
            graph.shapes.end(true);
            logits.truncate(n * graph.config.vocabulary);
            Ok(logits)
        })
    }

    fn likeliest(
        &mut self,
        feeds: &mut [Feed<'_, Cache>],
        _: usize,
    ) -> Result<Vec<Option<u32>>, InferError> {
        self.choose(feeds, &grouped(feeds))
    }
}

/// The tokens of feeds, as they attend side by side.
fn grouped(feeds: &[Feed<'_, Cache>]) -> Vec<Group> {
    groups(&Vec::from_iter(feeds.iter().map(|it| (it.cache.n_read, it.tokens.len()))))
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
            self.graph.shapes.end(false);
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
