//! One pass of a decoder: rows of several sequences, of some one and of others hundreds, through all
//! layers at once.
//!
//! A layer is five phases, after each of which the threads meet. Products are cut by columns, so that
//! all weights are read once, by all threads together, for as many rows as the cache holds. Each piece
//! writes rows of its own, which the next phase puts side by side again.

use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};

use super::attention::{self, Queries, attend};
use super::cache::{Cache, Head};
use super::kernels::{add_row, gate_row, norm_row, turn_row};
use super::panels::Panels;
use super::parts::Parts;
use super::rows::{Rows, Span, groups};
use super::{Decoder, Layer};
use crate::causal::forward::Feed;
use crate::processor::crew::{self, Phased};
use crate::processor::lanes::widest;

/// Reads what the feeds have behind what their caches hold, which do not count it yet. Returns the
/// logits that are wanted.
pub(super) fn run(decoder: &Arc<Decoder>, feeds: &[Feed<'_, Cache>]) -> Vec<f32> {
    let shape = |feed: &Feed<'_, Cache>| (feed.tokens.len(), feed.cache.n_tokens, feed.wants);
    let cut = Rows::new(&decoder.config, &feeds.iter().map(shape).collect::<Vec<_>>());
    feeds.iter().for_each(|feed| feed.cache.grow(feed.cache.n_tokens + feed.tokens.len()));
    let pass = Arc::new(Pass::new(decoder, cut, feeds));
    crew::run(&pass, PHASES * pass.decoder.layers.len() + 1);
    // A thread that comes late may hold the pass for a while, but not the memory of the caches.
    pass.caches.write().unwrap_or_else(PoisonError::into_inner).clear();
    let width = pass.decoder.config.vocabulary;
    let mut logits = vec![0.0; pass.cut.wanted.len() * width];
    let columns = pass.columns_of(&pass.decoder.head, &pass.vocabulary);
    pass.logits.gather(0, &columns, &mut logits, width);
    logits
}

/// Phases of a layer, as in [`Pass::piece`].
const PHASES: usize = 5;

/// What a pass works on.
struct Pass {
    decoder: Arc<Decoder>,
    cut: Rows,
    /// Those of each feed.
    caches: RwLock<Vec<Arc<Vec<RwLock<Head>>>>>,
    /// By how much each row turns each pair of a head.
    cosines: Vec<f32>,
    sines: Vec<f32>,
    /// Panels of the products that lead to the stream, to the gates and to the logits, in groups.
    hidden: Vec<Range<usize>>,
    inner: Vec<Range<usize>>,
    vocabulary: Vec<Range<usize>>,
    /// What goes from layer to layer.
    stream: Parts,
    /// A part per head, turned and scaled.
    queries: Parts,
    /// What the rows of each span get by attention, a part per head of the keys.
    attended: Parts,
    gated: Parts,
    /// Of the rows that want them, in one block.
    logits: Parts,
}

/// What one thread needs for a piece.
#[derive(Default)]
struct Scratch {
    /// What a product of this phase gets in this block, once there is something in `rows`.
    gathered: Option<(usize, usize)>,
    rows: Vec<f32>,
    product: Vec<f32>,
    ups: Vec<f32>,
    queries: Vec<f32>,
    attention: attention::Scratch,
}

impl Phased for Pass {
    type Scratch = Scratch;

    fn pieces(&self, phase: usize) -> usize {
        let n_blocks = self.cut.blocks.len();
        let config = &self.decoder.config;
        if phase == PHASES * config.layers {
            return if self.cut.wanted.is_empty() { 0 } else { self.vocabulary.len() };
        }
        match phase % PHASES {
            0 => n_blocks * (config.heads + 2 * config.kv_heads),
            1 => self.cut.spans.len() * config.kv_heads,
            3 => n_blocks * self.inner.len(),
            _ => n_blocks * self.hidden.len(),
        }
    }

    fn piece(&self, phase: usize, piece: usize, scratch: &mut Scratch) {
        let nth = phase / PHASES;
        let Some(layer) = self.decoder.layers.get(nth) else {
            return self.score(phase, piece, scratch);
        };
        let of = |n: usize| (piece / n, piece % n);
        match phase % PHASES {
            0 => self.project(phase, layer, of(layer.heads.len()), scratch),
            1 => self.attend(nth, of(self.decoder.config.kv_heads), scratch),
            2 => self.add_attended(phase, layer, of(self.hidden.len()), scratch),
            3 => self.gate(phase, layer, of(self.inner.len()), scratch),
            _ => self.add_gated(phase, layer, of(self.hidden.len()), scratch),
        }
    }
}

impl Pass {
    fn new(decoder: &Arc<Decoder>, cut: Rows, feeds: &[Feed<'_, Cache>]) -> Self {
        let config = &decoder.config;
        let n_threads = rayon::current_num_threads();
        let n_blocks = cut.blocks.len();
        let of = |panels: &Panels| groups(panels.n(), n_threads);
        let [hidden, inner] = [of(&decoder.layers[0].down), of(&decoder.layers[0].gate)];
        let vocabulary = of(&decoder.head);
        let places = cut.spans.iter().flat_map(|span| span.first..span.first + span.rows.len());
        let angles = places.flat_map(|place| {
            decoder.frequencies.iter().map(move |by| f64::from(place as f32 * by))
        });
        let (cosines, sines) = angles.map(|angle| (angle.cos() as f32, angle.sin() as f32)).unzip();
        let pass = Self {
            caches: RwLock::new(feeds.iter().map(|it| Arc::clone(&it.cache.heads)).collect()),
            cosines,
            sines,
            stream: Parts::new(n_blocks, hidden.len()),
            queries: Parts::new(n_blocks, config.heads),
            attended: Parts::new(cut.spans.len(), config.kv_heads),
            gated: Parts::new(n_blocks, inner.len()),
            logits: Parts::new(1, vocabulary.len()),
            hidden,
            inner,
            vocabulary,
            decoder: Arc::clone(decoder),
            cut,
        };
        let tokens: Vec<u32> = feeds.iter().flat_map(|feed| feed.tokens).copied().collect();
        pass.embed(&tokens);
        pass
    }

    /// Puts the vectors of the tokens into the stream.
    fn embed(&self, tokens: &[u32]) {
        let columns = self.stream_columns();
        for (block, rows) in self.cut.blocks.iter().enumerate() {
            let mut parts: Vec<_> =
                (0..columns.len()).map(|group| self.stream.write(block, group)).collect();
            for token in &tokens[rows.clone()] {
                let vector: Vec<f32> = self.decoder.embedding(*token).collect();
                for (part, columns) in parts.iter_mut().zip(&columns) {
                    part.extend_from_slice(&vector[columns.clone()]);
                }
            }
        }
    }

    fn columns_of(&self, panels: &Panels, groups: &[Range<usize>]) -> Vec<Range<usize>> {
        groups.iter().map(|group| panels.columns(group.clone())).collect()
    }

    fn stream_columns(&self) -> Vec<Range<usize>> {
        self.columns_of(&self.decoder.layers[0].down, &self.hidden)
    }

    /// The rows of a block, normed, unless this thread has them from its last piece.
    fn norm(&self, phase: usize, block: usize, scale: &[f32], scratch: &mut Scratch) {
        if scratch.gathered == Some((phase, block)) {
            return;
        }
        let width = scale.len();
        scratch.rows.resize(self.cut.blocks[block].len() * width, 0.0);
        self.stream.gather(block, &self.stream_columns(), &mut scratch.rows, width);
        self.norm_rows(scale, &mut scratch.rows);
        scratch.gathered = Some((phase, block));
    }

    fn norm_rows(&self, scale: &[f32], rows: &mut [f32]) {
        let eps = self.decoder.config.norm_eps;
        widest(
            rows,
            #[inline(always)]
            |rows| {
                for row in rows.chunks_exact_mut(scale.len()) {
                    norm_row(row, scale, eps);
                }
            },
        );
    }

    /// The queries, the keys or the values of one head.
    fn project(
        &self,
        phase: usize,
        layer: &Layer,
        (block, head): (usize, usize),
        scratch: &mut Scratch,
    ) {
        self.norm(phase, block, &layer.attention_norm, scratch);
        let config = &self.decoder.config;
        let panels = &layer.heads[head];
        let width = panels.to();
        let rows = &self.cut.blocks[block];
        scratch.product.resize(rows.len() * width, 0.0);
        panels.multiply(0..panels.n(), &scratch.rows, &mut scratch.product);
        let bias = layer.bias.get(head * width..(head + 1) * width);
        let first_value = config.heads + config.kv_heads;
        let (norm, scale) = match head {
            _ if head < config.heads => (&layer.query_norm, 1.0 / (width as f32).sqrt()),
            _ => (&layer.key_norm, 1.0),
        };
        let half = width / 2;
        let cosines = &self.cosines[rows.start * half..rows.end * half];
        let sines = &self.sines[rows.start * half..rows.end * half];
        widest(
            &mut scratch.product,
            #[inline(always)]
            |product| {
                let turns = cosines.chunks_exact(half).zip(sines.chunks_exact(half));
                for (row, (cosines, sines)) in product.chunks_exact_mut(width).zip(turns) {
                    if let Some(bias) = bias {
                        add_row(row, bias);
                    }
                    if head < first_value {
                        if !norm.is_empty() {
                            norm_row(row, norm, config.norm_eps);
                        }
                        turn_row(row, cosines, sines);
                        row.iter_mut().for_each(|x| *x *= scale);
                    }
                }
            },
        );
        if head < config.heads {
            self.queries.write(block, head).clone_from(&scratch.product);
        } else {
            self.keep(phase / PHASES, block, head - config.heads, &scratch.product);
        }
    }

    /// Puts keys or values of a head into the caches: first come the heads of the keys.
    fn keep(&self, layer: usize, block: usize, head: usize, rows: &[f32]) {
        let (n_heads, width) = (self.decoder.config.kv_heads, self.decoder.config.head_width);
        let mut rows = rows.chunks_exact(width);
        let caches = self.caches.read().unwrap_or_else(PoisonError::into_inner);
        for span in &self.cut.spans[self.cut.spans_of(block)] {
            let cache = &caches[span.feed][layer * n_heads + head % n_heads];
            let mut cache = cache.write().unwrap_or_else(PoisonError::into_inner);
            for (token, row) in (span.first..).zip(rows.by_ref().take(span.rows.len())) {
                if head < n_heads {
                    cache.put_key(token, row);
                } else {
                    cache.put_value(token, row);
                }
            }
        }
    }

    /// What the heads that share one head of the keys get for the tokens of a span.
    fn attend(&self, layer: usize, (nth, head): (usize, usize), scratch: &mut Scratch) {
        let config = &self.decoder.config;
        let Span { feed, block, ref rows, first } = self.cut.spans[nth];
        let (n_heads, width) = (config.heads / config.kv_heads, config.head_width);
        let n_numbers = rows.len() * n_heads * width;
        scratch.queries.resize(n_numbers, 0.0);
        let start = (rows.start - self.cut.blocks[block].start) * width;
        for place in 0..n_heads {
            let queries = self.queries.read(block, head * n_heads + place);
            let from = queries[start..].chunks_exact(width);
            let to = scratch.queries.chunks_exact_mut(width).skip(place).step_by(n_heads);
            to.zip(from).for_each(|(to, from)| to.copy_from_slice(from));
        }
        let caches = self.caches.read().unwrap_or_else(PoisonError::into_inner);
        let cache = &caches[feed][layer * config.kv_heads + head];
        let cache = cache.read().unwrap_or_else(PoisonError::into_inner);
        let mut out = self.attended.write(nth, head);
        out.resize(n_numbers, 0.0);
        let queries = Queries { rows: &scratch.queries, n_heads, width, first };
        attend(&queries, &cache, &mut scratch.attention, &mut out);
    }

    /// Adds the product of what attention made to the stream.
    fn add_attended(
        &self,
        phase: usize,
        layer: &Layer,
        (block, group): (usize, usize),
        scratch: &mut Scratch,
    ) {
        if scratch.gathered != Some((phase, block)) {
            let width = layer.out.from();
            let n_heads = self.decoder.config.kv_heads;
            let part = width / n_heads;
            let columns: Vec<_> = (0..n_heads).map(|n| n * part..(n + 1) * part).collect();
            let first = self.cut.blocks[block].start;
            scratch.rows.resize(self.cut.blocks[block].len() * width, 0.0);
            for nth in self.cut.spans_of(block) {
                let rows = &self.cut.spans[nth].rows;
                let rows = (rows.start - first) * width..(rows.end - first) * width;
                self.attended.gather(nth, &columns, &mut scratch.rows[rows], width);
            }
            scratch.gathered = Some((phase, block));
        }
        self.add(&layer.out, &layer.out_bias, (block, group), scratch);
    }

    /// Adds the product of what the gates let through to the stream.
    fn add_gated(
        &self,
        phase: usize,
        layer: &Layer,
        (block, group): (usize, usize),
        scratch: &mut Scratch,
    ) {
        if scratch.gathered != Some((phase, block)) {
            let width = layer.down.from();
            scratch.rows.resize(self.cut.blocks[block].len() * width, 0.0);
            let columns = self.columns_of(&layer.gate, &self.inner);
            self.gated.gather(block, &columns, &mut scratch.rows, width);
            scratch.gathered = Some((phase, block));
        }
        self.add(&layer.down, &[], (block, group), scratch);
    }

    fn add(
        &self,
        panels: &Panels,
        bias: &[f32],
        (block, group): (usize, usize),
        scratch: &mut Scratch,
    ) {
        let columns = panels.columns(self.hidden[group].clone());
        let n_rows = self.cut.blocks[block].len();
        scratch.product.resize(n_rows * columns.len(), 0.0);
        panels.multiply(self.hidden[group].clone(), &scratch.rows, &mut scratch.product);
        let product = &scratch.product;
        let bias = bias.get(columns.clone()).unwrap_or_default();
        widest(
            &mut self.stream.write(block, group),
            #[inline(always)]
            |stream| {
                add_row(stream, product);
                for row in stream.chunks_exact_mut(columns.len()) {
                    add_row(row, bias);
                }
            },
        );
    }

    /// Some columns of what goes into the last product of the feed-forward block.
    fn gate(
        &self,
        phase: usize,
        layer: &Layer,
        (block, group): (usize, usize),
        scratch: &mut Scratch,
    ) {
        self.norm(phase, block, &layer.feed_norm, scratch);
        let panels = &self.inner[group];
        let width = layer.gate.columns(panels.clone()).len();
        let n_numbers = self.cut.blocks[block].len() * width;
        scratch.ups.resize(n_numbers, 0.0);
        layer.up.multiply(panels.clone(), &scratch.rows, &mut scratch.ups);
        let ups = &scratch.ups;
        let mut gates = self.gated.write(block, group);
        gates.resize(n_numbers, 0.0);
        layer.gate.multiply(panels.clone(), &scratch.rows, &mut gates);
        widest(
            &mut gates,
            #[inline(always)]
            |gates| gate_row(gates, ups),
        );
    }

    /// Some columns of the logits.
    fn score(&self, phase: usize, group: usize, scratch: &mut Scratch) {
        let Decoder { norm, head, .. } = &*self.decoder;
        if scratch.gathered != Some((phase, 0)) {
            let columns = self.stream_columns();
            scratch.rows.resize(self.cut.wanted.len() * norm.len(), 0.0);
            for (row, to) in self.cut.wanted.iter().zip(scratch.rows.chunks_exact_mut(norm.len())) {
                let block = self.cut.block_of(*row);
                let row = row - self.cut.blocks[block].start;
                for (group, columns) in columns.iter().enumerate() {
                    let part = self.stream.read(block, group);
                    let from = &part[row * columns.len()..][..columns.len()];
                    to[columns.clone()].copy_from_slice(from);
                }
            }
            self.norm_rows(norm, &mut scratch.rows);
            scratch.gathered = Some((phase, 0));
        }
        let panels = &self.vocabulary[group];
        let mut logits = self.logits.write(0, group);
        let width = head.columns(panels.clone()).len();
        logits.resize(self.cut.wanted.len() * width, 0.0);
        head.multiply(panels.clone(), &scratch.rows, &mut logits);
    }
}
