//! A model on a card, and what is launched for a forward.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY;
use cudarc::driver::{CudaEvent, CudaSlice, CudaStream, DriverError};
use tracing::debug;

use super::batch::{Batch, MOST_TOKENS};
use super::code::{self, Kernels, PAIRS_OF_BLOCK, options};
use super::driver::{self, Arg};
use super::room::{Buffers, Room, Staged, UNDER_WAY, Widths};
use super::tiles::Size;
use super::upload::{Block, Linear, Normed, Upload};
use crate::bert::Tokens;
use crate::bert::body::cut;
use crate::bert::config::Config;
use crate::bert::pool::Pick;
use crate::bert::weights::{Dense, Embeddings, Reader};
use crate::device::{Card, kept_kernels};
use crate::{DeviceError, Dtype, InferError, LoadError};

const SOURCE: &str = include_str!("kernels.cu");
/// The oldest compute capability with asynchronous copies and products of 16 by 8 by 16.
const OLDEST: (i32, i32) = (8, 0);
/// Rows of a block where a warp has one each.
const ROWS_OF_BLOCK: usize = 4;

/// A model's weights on a card, with the kernels that were compiled for it.
#[derive(Debug)]
pub(crate) struct Cuda {
    stream: Arc<CudaStream>,
    kernels: Kernels,
    width: usize,
    heads: usize,
    inner: usize,
    processors: usize,
    hopper: bool,
    /// Stays here to say which rows of the tables a text needs.
    embeddings: Embeddings,
    words: CudaSlice<u8>,
    positions: CudaSlice<u8>,
    types: Option<CudaSlice<u8>>,
    norm: Normed,
    layers: Vec<Block>,
    room: Mutex<Room>,
}

/// What happens to a product before it is written.
#[derive(Debug, Clone, Copy)]
enum After<'a> {
    Nothing,
    Activation,
    Added(&'a CudaSlice<u8>),
}

/// A run that was started.
struct Started<'a, 'b> {
    texts: &'a [&'b Tokens],
    /// The place of the first.
    first: usize,
    staged: usize,
    done: CudaEvent,
}

impl Cuda {
    /// Whether there are kernels for such a model in this type of numbers on this card.
    pub(crate) fn suits(config: &Config, dtype: Dtype, card: &Card) -> bool {
        let Config { hidden, heads, intermediate, .. } = *config;
        let head = hidden / heads;
        dtype != Dtype::F32
            && card.capability >= OLDEST
            && hidden.is_multiple_of(64)
            && hidden <= 2048
            && intermediate.is_multiple_of(64)
            && head.is_multiple_of(16)
            && head <= 80
    }

    pub(crate) fn load(
        config: &Config,
        reader: &Reader,
        dtype: Dtype,
        card: &Card,
    ) -> Result<Self, LoadError> {
        let hopper = code::is_hopper(card.capability);
        let options = options(config, dtype, card.capability);
        let kept = kept_kernels();
        let module = driver::load(&card.context, SOURCE, &options, kept.as_deref());
        let module = module.map_err(|why| unfit(card, why))?;
        let on_card = |error: DriverError| unfit(card, failed(error).to_string());
        let kernels = Kernels::find(&module, hopper).map_err(on_card)?;
        let upload = Upload { stream: card.context.default_stream(), dtype };
        let mut embeddings = reader.embeddings(config)?;
        let [words, positions, types] = embeddings.take_tables();
        let width = config.hidden;
        // Scores are divided by the root of a head's width and raised to powers of two: the queries
        // are, once and for all.
        let scale = std::f32::consts::LOG2_E / ((width / config.heads) as f32).sqrt();
        let keep = |stored: &[f32], from: usize, to: usize| (stored.to_vec(), from, to);
        let mut layers = Vec::with_capacity(config.layers);
        for n in 0..config.layers {
            let mut layer = reader.stored_layer(n, config, &keep)?;
            let Dense { matrix: (values, ..), bias } = &mut layer.qkv;
            values[..width * width].iter_mut().for_each(|x| *x *= scale);
            bias[..width].iter_mut().for_each(|x| *x *= scale);
            let block = || {
                Ok(Block {
                    qkv: upload.linear(layer.qkv)?,
                    out: upload.linear(layer.out)?,
                    attention_norm: upload.norm(&layer.attention_norm)?,
                    up: upload.linear(layer.up)?,
                    down: upload.linear(layer.down)?,
                    output_norm: upload.norm(&layer.output_norm)?,
                })
            };
            layers.push(block().map_err(on_card)?);
        }
        let norm = upload.norm(&embeddings.norm).map_err(on_card)?;
        let types = (!types.is_empty()).then(|| upload.halves(types)).transpose();
        Ok(Self {
            kernels,
            width,
            heads: config.heads,
            inner: config.intermediate,
            processors: card.processors,
            hopper,
            words: upload.halves(words).map_err(on_card)?,
            positions: upload.halves(positions).map_err(on_card)?,
            types: types.map_err(on_card)?,
            norm,
            layers,
            embeddings,
            room: Mutex::default(),
            stream: upload.stream,
        })
    }

    /// Gives what is picked of each of these texts, which fit the model, with its place.
    pub(crate) fn encode(
        &self,
        texts: &[&Tokens],
        pick: Pick,
        take: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), InferError> {
        let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        let ran = self.encode_in(&mut room, texts, pick, take);
        if ran.is_err() {
            // Nothing may be under way in memory that is given back.
            if let Err(error) = self.stream.synchronize() {
                debug!(%error, "the card does not end what it began");
            }
            *room = Room::default();
        }
        ran.map_err(failed)
    }

    /// Runs are started ahead of those that are read.
    fn encode_in(
        &self,
        room: &mut Room,
        texts: &[&Tokens],
        pick: Pick,
        take: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), DriverError> {
        let mut started = VecDeque::with_capacity(UNDER_WAY);
        let mut first = 0;
        for (nth, texts) in cut(texts, MOST_TOKENS).into_iter().enumerate() {
            if started.len() == UNDER_WAY
                && let Some(oldest) = started.pop_front()
            {
                self.finish(room, &oldest, pick, take)?;
            }
            let staged = nth % UNDER_WAY;
            let done = self.start(room, texts, pick, staged)?;
            started.push_back(Started { texts, first, staged, done });
            first += texts.len();
        }
        started.iter().try_for_each(|run| self.finish(room, run, pick, take))
    }

    /// Starts to copy the texts there, to run them, and to copy back what is picked.
    fn start(
        &self,
        Room { buffers, staged }: &mut Room,
        texts: &[&Tokens],
        pick: Pick,
        nth: usize,
    ) -> Result<CudaEvent, DriverError> {
        let batch = Batch::new(texts, &self.embeddings);
        let ints = batch.table.len();
        let numbers = self.width * if pick == Pick::Tokens { batch.n_tokens } else { texts.len() };
        let widths = Widths { width: self.width, inner: self.inner };
        let buffers = Buffers::fit(buffers, &self.stream, widths, [batch.n_tokens, ints, numbers])?;
        let staged = Staged::fit(&mut staged[nth], self.stream.context(), [ints, numbers])?;
        let table = &mut staged.table.as_mut_slice()?[..ints];
        table.copy_from_slice(&batch.table);
        self.stream.memcpy_htod(table, &mut buffers.table)?;
        self.run(buffers, &batch, pick)?;
        let out = &mut staged.out.as_mut_slice()?[..numbers];
        self.stream.memcpy_dtoh(&buffers.out.slice(..numbers), out)?;
        self.stream.record_event(None)
    }

    /// Waits for a run; whatever failed on its way is told here.
    fn finish(
        &self,
        room: &Room,
        Started { texts, first, staged, done }: &Started<'_, '_>,
        pick: Pick,
        take: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), DriverError> {
        done.synchronize()?;
        let Some(Staged { out, .. }) = &room.staged[*staged] else { return Ok(()) };
        let mut rows = out.as_slice()?;
        for (nth, text) in texts.iter().enumerate() {
            let n_rows = if pick == Pick::Tokens { text.len() } else { 1 };
            let (own, others) = rows.split_at(n_rows * self.width);
            rows = others;
            take(first + nth, own);
        }
        Ok(())
    }

    /// Starts a forward, of which what is picked goes to `out`.
    fn run(&self, buffers: &Buffers, batch: &Batch, pick: Pick) -> Result<(), DriverError> {
        let Self { stream, kernels, .. } = self;
        let Buffers { x, y, qkv, context, inner, table, .. } = buffers;
        let n_tokens = Arg::Int(batch.n_tokens as i32);
        let blocks_of_rows = (batch.n_tokens.div_ceil(ROWS_OF_BLOCK), 1);
        let norm = |norm: &Normed, from: &CudaSlice<u8>, to: &CudaSlice<u8>| {
            let Normed { scale, shift, eps } = norm;
            let (from, to) = (Arg::Halves(from), Arg::Halves(to));
            let args =
                [from, Arg::Floats(scale), Arg::Floats(shift), Arg::Float(*eps), to, n_tokens];
            kernels.norm.launch(stream, blocks_of_rows, &args)
        };
        self.embed(buffers, batch)?;
        let product =
            |layer: &Linear, from: &CudaSlice<u8>, after: After<'_>, to: &CudaSlice<u8>| {
                self.product(batch.n_tokens, layer, from, after, to)
            };
        for layer in &self.layers {
            product(&layer.qkv, x, After::Nothing, qkv)?;
            for (kernel, blocks) in
                [(&kernels.attend_short, &batch.short), (&kernels.attend_long, &batch.long)]
            {
                if !blocks.is_empty() {
                    let args = [
                        Arg::Halves(qkv),
                        Arg::Ints(&table.slice(blocks.clone())),
                        Arg::Halves(context),
                    ];
                    kernel.launch(stream, (blocks.len() / 4, self.heads), &args)?;
                }
            }
            product(&layer.out, context, After::Added(x), y)?;
            norm(&layer.attention_norm, y, x)?;
            product(&layer.up, x, After::Activation, inner)?;
            product(&layer.down, inner, After::Added(x), y)?;
            norm(&layer.output_norm, y, x)?;
        }
        self.pick(buffers, batch, pick)
    }

    /// What goes into the first layer.
    fn embed(&self, buffers: &Buffers, batch: &Batch) -> Result<(), DriverError> {
        let Buffers { x, table, .. } = buffers;
        let [words, places, types] = [0, 1, 2].map(|n| table.slice(n * batch.n_tokens..));
        let args = [
            Arg::Halves(&self.words),
            Arg::Halves(&self.positions),
            self.types.as_ref().map_or(Arg::Nothing, Arg::Halves),
            Arg::Ints(&words),
            Arg::Ints(&places),
            Arg::Ints(&types),
            Arg::Floats(&self.norm.scale),
            Arg::Floats(&self.norm.shift),
            Arg::Float(self.norm.eps),
            Arg::Halves(x),
            Arg::Int(batch.n_tokens as i32),
        ];
        let blocks = (batch.n_tokens.div_ceil(ROWS_OF_BLOCK), 1);
        self.kernels.embed.launch(&self.stream, blocks, &args)
    }

    /// What is picked of the last layer's vectors.
    fn pick(&self, buffers: &Buffers, batch: &Batch, pick: Pick) -> Result<(), DriverError> {
        let Self { stream, kernels, width, .. } = self;
        let Buffers { x, table, out, .. } = buffers;
        let how = match pick {
            Pick::Tokens => {
                let n_pairs = batch.n_tokens * width / 2;
                let args = [Arg::Halves(x), Arg::Floats(out), Arg::Int(n_pairs as i32)];
                return kernels.widen.launch(stream, (n_pairs.div_ceil(PAIRS_OF_BLOCK), 1), &args);
            }
            Pick::Mean => 0,
            Pick::Max => 1,
            Pick::First => 2,
            Pick::Last => 3,
        };
        let starts = table.slice(batch.starts..);
        let args = [Arg::Halves(x), Arg::Ints(&starts), Arg::Floats(out), Arg::Int(how)];
        kernels.pool.launch(stream, (batch.n_texts, width / 64), &args)
    }

    fn product(
        &self,
        n_tokens: usize,
        layer: &Linear,
        from: &CudaSlice<u8>,
        after: After<'_>,
        to: &CudaSlice<u8>,
    ) -> Result<(), DriverError> {
        let size = Size::of(n_tokens, layer.to, self.processors, self.hopper);
        let tiles = size.tiles(self.hopper);
        let kernels = &self.kernels.products[size as usize];
        let (kernel, rows) = match after {
            After::Nothing => (&kernels[0], Arg::Nothing),
            After::Activation => (&kernels[1], Arg::Nothing),
            After::Added(rows) => (&kernels[2], Arg::Halves(rows)),
        };
        let args = [
            Arg::Halves(from),
            Arg::Halves(&layer.matrix),
            Arg::Floats(&layer.bias),
            rows,
            Arg::Halves(to),
            Arg::Int(layer.to as i32),
            Arg::Int(layer.from as i32),
        ];
        let blocks = (layer.to / tiles.columns, n_tokens.div_ceil(tiles.rows));
        kernel.launch(&self.stream, blocks, &args)
    }
}

fn unfit(card: &Card, why: String) -> DeviceError {
    DeviceError::Missing { device: card.name.clone(), missing: vec![why] }
}

fn failed(error: DriverError) -> InferError {
    let words = error.to_string();
    if error.0 == CUDA_ERROR_OUT_OF_MEMORY {
        return InferError::OutOfMemory(words);
    }
    InferError::Device(words)
}
