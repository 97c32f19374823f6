//! A decoder by burn's operations, for devices that kernels are launched on: the tokens of all
//! sequences go through the dense layers together, and sequences that grow attend side by side.
//!
//! Products are of the chosen type of numbers; what stands between them, norms, softmax, gates and
//! turns, is in f32.

use std::convert::Infallible;
use std::num::NonZeroUsize;

use burn::tensor::activation::{silu, softmax};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::config::Config;
use super::forward::{Feed, Forward};
use super::groups::{Group, groups};
use super::pool::{self, Cache, Pool};
use super::weights::{Dense, Layer, Reader};
use crate::device::{Opened, failure, guarded};
use crate::{Dtype, InferError, LoadError};

/// Added to the score of a place that is not to be seen: its share of a softmax becomes zero.
const NOT_THERE: f32 = -1e9;

/// A model's weights on the device, with the keys and values of its sequences.
#[derive(Debug)]
pub(crate) struct Graph {
    device: Device,
    dtype: DType,
    config: Config,
    frequencies: Vec<f32>,
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

/// What is the same for all layers of a pass.
struct Pass {
    /// Where the keys and values of the tokens go.
    rows: Tensor<1, Int>,
    /// Of the angles by which they are turned, `[tokens, 1, head_width]`.
    cos: Tensor<3>,
    /// The same, with the sign of the first half turned.
    sin: Tensor<3>,
    seen: Vec<Seen>,
}

/// Tokens that attend side by side, and what they see.
struct Seen {
    n_sequences: usize,
    n_tokens: usize,
    length: usize,
    /// The rows of all keys and values, `length` for each sequence.
    rows: Tensor<1, Int>,
    /// `[sequences, 1, 1, tokens, length]`.
    mask: Tensor<5>,
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
        let upload = Upload { device: &device, dtype, config };
        let shape = [config.vocabulary, config.hidden];
        let words = upload.tensor(reader.embeddings(config)?, shape, dtype);
        let head = match config.tied {
            true => words.clone().transpose(),
            false => reader.head(config, &|stored, from, to| upload.matrix(stored, from, to))?,
        };
        let layer = |n| {
            let matrix = |stored: &[f32], from, to| upload.matrix(stored, from, to);
            Ok(upload.block(reader.layer(n, config, &matrix)?))
        };
        let layers = (0..config.layers).map(layer).collect::<Result<_, LoadError>>()?;
        let norm = upload.row(&reader.norm(config)?);
        let pool = Pool::new(device.clone(), dtype, 2 * config.kv_width(), config.layers);
        let frequencies = config.frequencies();
        let config = config.clone();
        Ok(Self { device, dtype, config, frequencies, words, layers, norm, head, pool })
    }

    /// Bytes of keys and values of so many tokens, in numbers of this type.
    pub(crate) fn bytes(config: &Config, dtype: Dtype, n_tokens: usize) -> u64 {
        pool::bytes(n_tokens, 2 * config.kv_width(), dtype.of_burn(), config.layers)
    }

    /// How many bytes of keys and values will be asked for at most.
    pub(crate) fn bound(&mut self, bytes: u64) {
        self.pool.bound(bytes);
    }

    /// Makes numbers of a token's vector that are not finite.
    #[cfg(test)]
    pub(crate) fn spoil(&mut self, token: usize) {
        let row = self.words.clone().narrow(0, token, 1) * f32::NAN;
        let at = self.indices(&[token as i32]);
        let words = self.words.clone();
        self.words = words.select_assign(0, at, row, burn::tensor::IndexingUpdateOp::Assign);
    }

    fn run(&mut self, feeds: &mut [Feed<'_, Cache>]) -> Result<Vec<f32>, InferError> {
        for feed in feeds.iter_mut() {
            let n_tokens = feed.cache.n_read + feed.tokens.len();
            self.pool.reserve(feed.cache, n_tokens);
        }
        let sizes: Vec<_> = feeds.iter().map(|it| (it.cache.n_read, it.tokens.len())).collect();
        let groups = groups(&sizes);
        let pass = self.pass(feeds, &groups);
        let tokens = groups.iter().flat_map(Group::places);
        let tokens: Vec<i32> = tokens.map(|(feed, n)| feeds[feed].tokens[n] as i32).collect();
        let mut x = self.words.clone().select(0, self.indices(&tokens)).cast(DType::F32);
        for n in 0..self.layers.len() {
            x = self.layer(n, x, &pass);
        }
        feeds.iter_mut().for_each(|feed| feed.cache.n_read += feed.tokens.len());
        self.logits(x, feeds, &groups)
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
        let x = layer.out.apply(self.attend(n, &queries, &pass.seen)) + x;
        let inner = (rms(x.clone(), eps) * layer.feed_norm.clone()).cast(self.dtype);
        let inner = layer.gate_up.apply(inner);
        let width = inner.dims()[1] / 2;
        let inner = silu(inner.clone().narrow(1, 0, width)) * inner.narrow(1, width, width);
        layer.down.apply(inner.cast(self.dtype)) + x
    }

    /// What the tokens, with these queries, `[tokens, heads, head_width]`, get of what they see.
    fn attend(&self, layer: usize, queries: &Tensor<3>, seen: &[Seen]) -> Tensor<2> {
        let Config { heads, kv_heads, head_width, .. } = self.config;
        let shared = heads / kv_heads;
        let mut start = 0;
        let mut contexts = Vec::with_capacity(seen.len());
        for Seen { n_sequences, n_tokens, length, rows, mask } in seen {
            let (n_sequences, n_tokens, length) = (*n_sequences, *n_tokens, *length);
            let n_rows = n_sequences * n_tokens;
            let queries = queries.clone().narrow(0, start, n_rows);
            start += n_rows;
            let queries = queries.reshape([n_sequences, n_tokens, kv_heads, shared, head_width]);
            let queries = queries.permute([0, 2, 3, 1, 4]);
            let queries = queries.reshape([n_sequences, kv_heads, shared * n_tokens, head_width]);
            let kv = self.pool.read(layer, rows.clone());
            let kv = kv.reshape([n_sequences, length, 2 * kv_heads, head_width]).swap_dims(1, 2);
            let keys = kv.clone().narrow(1, 0, kv_heads);
            let values = kv.narrow(1, kv_heads, kv_heads);
            let scores = queries.matmul(keys.swap_dims(2, 3)).cast(DType::F32);
            let scores = scores.reshape([n_sequences, kv_heads, shared, n_tokens, length]);
            let parts = softmax(scores + mask.clone(), 4).cast(self.dtype);
            let parts = parts.reshape([n_sequences, kv_heads, shared * n_tokens, length]);
            let context = parts.matmul(values);
            let context = context.reshape([n_sequences, kv_heads, shared, n_tokens, head_width]);
            let context = context.permute([0, 3, 1, 2, 4]);
            contexts.push(context.reshape([n_rows, heads * head_width]));
        }
        if contexts.len() == 1 { contexts.swap_remove(0) } else { Tensor::cat(contexts, 0) }
    }

    /// The logits behind the feeds that want them.
    fn logits(
        &self,
        x: Tensor<2>,
        feeds: &[Feed<'_, Cache>],
        groups: &[Group],
    ) -> Result<Vec<f32>, InferError> {
        let mut last = vec![0; feeds.len()];
        let places = groups.iter().flat_map(Group::places);
        places.enumerate().for_each(|(row, (feed, _))| last[feed] = row as i32);
        let wanted = feeds.iter().zip(last).filter(|(feed, _)| feed.wants);
        let wanted: Vec<i32> = wanted.map(|(_, row)| row).collect();
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let x = x.select(0, self.indices(&wanted));
        let x = (rms(x, self.config.norm_eps) * self.norm.clone()).cast(self.dtype);
        let logits = x.matmul(self.head.clone()).cast(DType::F32);
        let data = logits.try_into_data().map_err(|error| failure(&error.to_string()))?;
        let logits = data.try_into_vec::<f32>();
        logits.map_err(|error| InferError::Device(format!("read back: {error}")))
    }

    fn pass(&self, feeds: &[Feed<'_, Cache>], groups: &[Group]) -> Pass {
        let (mut rows, mut cos, mut sin) = (Vec::new(), Vec::new(), Vec::new());
        for (feed, n) in groups.iter().flat_map(Group::places) {
            let cache = &*feeds[feed].cache;
            let place = cache.n_read + n;
            rows.push(cache.row(place));
            let angles = || self.frequencies.iter().map(|frequency| place as f32 * frequency);
            cos.extend(angles().chain(angles()).map(f32::cos));
            sin.extend(angles().map(|angle| -angle.sin()).chain(angles().map(f32::sin)));
        }
        let shape = [rows.len(), 1, self.config.head_width];
        let seen = groups.iter().map(|group| self.seen(feeds, group)).collect();
        Pass {
            rows: self.indices(&rows),
            cos: self.f32s(cos, shape),
            sin: self.f32s(sin, shape),
            seen,
        }
    }

    fn seen(&self, feeds: &[Feed<'_, Cache>], group: &Group) -> Seen {
        let Group { n_tokens, length, .. } = *group;
        let n_sequences = group.feeds.len();
        let mut rows = Vec::with_capacity(n_sequences * length);
        let mut mask = Vec::with_capacity(n_sequences * n_tokens * length);
        for feed in &group.feeds {
            let cache = &*feeds[*feed].cache;
            let n_before = cache.n_read + group.first;
            let n_seen = n_before + n_tokens;
            // Beyond what is seen stands the sequence's first token, as sound as the sequence is.
            rows.extend((0..length).map(|n| cache.row(if n < n_seen { n } else { 0 })));
            let sees = |token: usize| {
                (0..length).map(move |n| if n <= n_before + token { 0.0 } else { NOT_THERE })
            };
            mask.extend((0..n_tokens).flat_map(sees));
        }
        let mask = self.f32s(mask, [n_sequences, 1, 1, n_tokens, length]);
        Seen { n_sequences, n_tokens, length, rows: self.indices(&rows), mask }
    }

    fn indices(&self, at: &[i32]) -> Tensor<1, Int> {
        let at = TensorData::new(at.to_vec(), [at.len()]);
        Tensor::from_data(at, (&self.device, DType::I32))
    }

    fn f32s<const D: usize>(&self, values: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
        Tensor::from_data(TensorData::new(values, shape), (&self.device, DType::F32))
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
        let device = self.device.clone();
        // Also where it panics: what the tables hold is known again only once all went well.
        let mut attempt = Attempt { graph: self, is_sound: false };
        let found = guarded(|| attempt.graph.run(feeds), || ());
        attempt.is_sound = found.is_ok();
        drop(attempt);
        if found.is_err() {
            device.memory_cleanup();
        }
        found
    }
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
struct Upload<'a> {
    device: &'a Device,
    dtype: DType,
    config: &'a Config,
}

impl Upload<'_> {
    fn tensor<const D: usize>(
        &self,
        values: Vec<f32>,
        shape: [usize; D],
        dtype: DType,
    ) -> Tensor<D> {
        Tensor::from_data(TensorData::new(values, shape).convert_dtype(dtype), (self.device, dtype))
    }

    fn row(&self, values: &[f32]) -> Tensor<2> {
        self.tensor(values.to_vec(), [1, values.len()], DType::F32)
    }

    /// Turned by the device, which multiplies by what is stored in either order.
    fn matrix(&self, stored: &[f32], from: usize, to: usize) -> Tensor<2> {
        self.tensor(stored.to_vec(), [to, from], self.dtype).transpose()
    }

    fn linear(&self, dense: Dense<Tensor<2>>) -> Linear {
        let bias = (!dense.bias.is_empty()).then(|| self.row(&dense.bias));
        Linear { matrix: dense.matrix, bias }
    }

    fn block(&self, layer: Layer<Tensor<2>>) -> Block {
        let Config { heads, kv_heads, head_width, .. } = *self.config;
        let head_norm = self.config.qk_norm.then(|| {
            let scales = [layer.query_norm.repeat(heads), layer.key_norm.repeat(kv_heads)];
            self.tensor(scales.concat(), [1, heads + kv_heads, head_width], DType::F32)
        });
        Block {
            attention_norm: self.row(&layer.attention_norm),
            qkv: self.linear(layer.qkv),
            head_norm,
            out: self.linear(layer.out),
            feed_norm: self.row(&layer.feed_norm),
            gate_up: self.linear(layer.gate_up),
            down: self.linear(layer.down),
        }
    }
}
