//! The layers of a decoder on a processor, with weights that are packed once.

mod attention;
mod cache;
mod kernels;
#[cfg(test)]
mod naive;
mod panels;
mod parts;
mod pass;
mod rows;
#[cfg(test)]
mod tests;

use std::num::NonZeroUsize;
use std::sync::Arc;

pub(crate) use cache::{Block, Cache};
use panels::Panels;

use crate::causal::config::Config;
use crate::causal::forward::{Feed, Forward};
use crate::causal::weights::Reader;
use crate::processor::tile;
use crate::{InferError, LoadError};

/// A decoder, and all that it computes with.
#[derive(Debug)]
pub(crate) struct Packed {
    decoder: Arc<Decoder>,
}

/// What a pass reads.
#[derive(Debug)]
struct Decoder {
    config: Config,
    /// Of [`Config::frequencies`].
    frequencies: Vec<f32>,
    /// The table of embeddings, where the logits are not made with it.
    words: Option<Panels>,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    /// What makes logits.
    head: Panels,
}

/// One transformer layer.
#[derive(Debug)]
struct Layer {
    attention_norm: Vec<f32>,
    /// The queries' heads, then the keys', then the values'.
    heads: Vec<Panels>,
    /// Of all heads, or empty.
    bias: Vec<f32>,
    query_norm: Vec<f32>,
    key_norm: Vec<f32>,
    out: Panels,
    out_bias: Vec<f32>,
    feed_norm: Vec<f32>,
    /// What is gated by SiLU.
    gate: Panels,
    /// What it is multiplied with.
    up: Panels,
    down: Panels,
}

impl Packed {
    /// Whether this processor has registers for which packed weights pay.
    pub(crate) fn suits() -> bool {
        tile::suit()
    }

    /// Bytes of keys and values of so many tokens.
    pub(crate) fn bytes(config: &Config, n_tokens: usize) -> u64 {
        (config.layers * config.kv_heads) as u64 * cache::bytes(n_tokens, config.head_width)
    }

    /// Reads and packs all weights.
    pub(crate) fn load(config: &Config, reader: &Reader) -> Result<Self, LoadError> {
        let layers = (0..config.layers).map(|n| layer(n, config, reader));
        let layers = layers.collect::<Result<_, _>>()?;
        let head = reader.head(config, &Panels::pack)?;
        let words = match reader.is_tied() {
            true => None,
            false => {
                let words = reader.embeddings(config)?;
                Some(Panels::pack(&words, config.hidden, config.vocabulary))
            }
        };
        let (norm, frequencies) = (reader.norm(config)?, config.frequencies());
        let decoder = Decoder { config: config.clone(), frequencies, words, layers, norm, head };
        Ok(Self { decoder: Arc::new(decoder) })
    }
}

fn layer(n: usize, config: &Config, reader: &Reader) -> Result<Layer, LoadError> {
    let copy = |stored: &[f32], _, _| stored.to_vec();
    let layer = reader.layer(n, config, &copy)?;
    let Config { hidden, intermediate, head_width, .. } = *config;
    let heads = layer.qkv.matrix.chunks_exact(hidden * head_width);
    let (gate, up) = layer.gate_up.matrix.split_at(hidden * intermediate);
    Ok(Layer {
        attention_norm: layer.attention_norm,
        heads: heads.map(|head| Panels::pack(head, hidden, head_width)).collect(),
        bias: layer.qkv.bias,
        query_norm: layer.query_norm,
        key_norm: layer.key_norm,
        out: Panels::pack(&layer.out.matrix, config.query_width(), hidden),
        out_bias: layer.out.bias,
        feed_norm: layer.feed_norm,
        gate: Panels::pack(gate, hidden, intermediate),
        up: Panels::pack(up, hidden, intermediate),
        down: Panels::pack(&layer.down.matrix, intermediate, hidden),
    })
}

impl Decoder {
    /// The vector of a token.
    fn embedding(&self, token: u32) -> impl Iterator<Item = f32> {
        self.words.as_ref().unwrap_or(&self.head).column(token as usize)
    }
}

impl Forward for Packed {
    type Cache = Cache;
    type Block = Block;

    fn cache(&mut self) -> Cache {
        let Config { layers, kv_heads, head_width, .. } = self.decoder.config;
        Cache::new(layers * kv_heads, head_width)
    }

    fn cache_bytes(&self, n_tokens: usize) -> u64 {
        Self::bytes(&self.decoder.config, n_tokens)
    }

    fn block_tokens(&self) -> Option<NonZeroUsize> {
        NonZeroUsize::new(cache::BLOCK)
    }

    fn block(&self, cache: &Cache, nth: usize) -> Option<Block> {
        Some(cache.block(nth))
    }

    fn put(&mut self, cache: &mut Cache, nth: usize, block: &Block) {
        cache.put(nth, block);
    }

    fn is_in_cache(&self, block: &Block) -> bool {
        block.is_in_cache()
    }

    fn forward(&mut self, feeds: &mut [Feed<'_, Cache>]) -> Result<Vec<f32>, InferError> {
        let logits = pass::run(&self.decoder, feeds);
        for feed in feeds {
            feed.cache.n_tokens += feed.tokens.len();
        }
        Ok(logits)
    }
}
