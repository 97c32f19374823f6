//! The transformer by burn's operations, for devices that kernels are launched on: texts side by
//! side, padded to one of a few shapes.
//!
//! Products are of the chosen type of numbers; what stands between them, norms, softmax, activations
//! and pooling, is in f32. A place that pads holds the first token of its text once more, so that
//! it is as sound as the text; no token attends to it and no pooling counts it.

use burn::tensor::activation::{gelu, gelu_approximate, relu, softmax};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::Tokens;
use super::config::{Activation, Config};
use super::kernels::Norm;
use super::pool::Pick;
use super::shapes::{Part, Shape};
use super::weights::{Dense, Embeddings, Layer, Reader};
use crate::device::{Opened, Upload, failure};
use crate::first_runs::KnownShapes;
use crate::{InferError, LoadError};

/// Added to the score of a place that pads: its share of a softmax becomes zero.
const NOT_THERE: f32 = -1e9;

/// A model's weights on the device.
#[derive(Debug)]
pub(crate) struct Graph {
    device: Device,
    dtype: DType,
    heads: usize,
    activation: Activation,
    /// Stays here to say which rows of the tables a text needs.
    embeddings: Embeddings,
    words: Tensor<2>,
    positions: Tensor<2>,
    types: Option<Tensor<2>>,
    norm: Normed,
    layers: Vec<Block>,
    pub(super) shapes: KnownShapes,
}

#[derive(Debug)]
struct Normed {
    scale: Tensor<2>,
    shift: Tensor<2>,
    eps: f32,
}

#[derive(Debug)]
struct Linear {
    /// `[in, out]`.
    matrix: Tensor<2>,
    /// `[1, out]`, in f32.
    bias: Tensor<2>,
}

#[derive(Debug)]
struct Block {
    qkv: Linear,
    out: Linear,
    attention_norm: Normed,
    up: Linear,
    down: Linear,
    output_norm: Normed,
}

/// The rows of a forward that are read back.
#[derive(Debug)]
pub(crate) struct Output {
    rows: Tensor<2>,
    shape: Shape,
    lengths: Vec<usize>,
    pick: Pick,
}

impl Graph {
    pub(crate) fn load(
        config: &Config,
        reader: &Reader,
        opened: &Opened,
    ) -> Result<Self, LoadError> {
        let (device, dtype) = (opened.device.clone(), opened.dtype.of_burn());
        let blocks = Blocks { upload: Upload { device: &device }, dtype };
        let mut embeddings = reader.embeddings(config)?;
        let [words, positions, types] = embeddings.take_tables();
        let width = config.hidden;
        let table = |values: Vec<f32>| {
            let shape = [values.len() / width, width];
            blocks.upload.tensor(values, shape, dtype)
        };
        // Scores are divided by the root of a head's width: the queries are, once and for all.
        let scale = ((width / config.heads) as f32).sqrt().recip();
        let keep = |values: &[f32], from: usize, to: usize| (values.to_vec(), [from, to]);
        let mut layers = Vec::with_capacity(config.layers);
        for n in 0..config.layers {
            let mut layer = reader.layer(n, config, &keep)?;
            let Dense { matrix: (values, _), bias } = &mut layer.qkv;
            for row in values.chunks_exact_mut(3 * width).chain([&mut bias[..]]) {
                row[..width].iter_mut().for_each(|x| *x *= scale);
            }
            layers.push(blocks.block(layer));
        }
        let norm = blocks.norm(&embeddings.norm);
        Ok(Self {
            heads: config.heads,
            activation: config.activation,
            words: table(words),
            positions: table(positions),
            types: (!types.is_empty()).then(|| table(types)),
            norm,
            layers,
            embeddings,
            device,
            dtype,
            shapes: KnownShapes::new(opened.is_tuned),
        })
    }

    /// Gives memory back that the device keeps for the next forward.
    pub(crate) fn free(&self) {
        self.device.memory_cleanup();
    }

    /// Starts a forward of the texts of a part; [`Output::read`] waits for it.
    pub(crate) fn start(&self, texts: &[&Tokens], part: &Part, pick: Pick) -> Output {
        let shape = part.shape;
        let inputs = Inputs::new(texts, part, &self.embeddings);
        let lengths = inputs.lengths.clone();
        let Shape { rows: n_rows, length } = shape;
        let select = |table: &Tensor<2>, at: Vec<i32>| {
            let at = TensorData::new(at, [shape.tokens()]);
            let at = Tensor::<1, Int>::from_data(at, (&self.device, DType::I32));
            table.clone().select(0, at).cast(DType::F32)
        };
        let mut x = select(&self.words, inputs.words) + select(&self.positions, inputs.positions);
        if let Some(types) = &self.types {
            x = x + select(types, inputs.types);
        }
        let mut x = self.norm.apply(x).cast(self.dtype);
        let f32s = |values: Vec<f32>, shape| {
            Tensor::<4>::from_data(TensorData::new(values, shape), (&self.device, DType::F32))
        };
        let mask = f32s(inputs.mask.clone(), [n_rows, 1, 1, length]);
        for layer in &self.layers {
            x = self.layer(layer, x, &mask, shape);
        }
        let rows = pick.of_tensor(x.cast(DType::F32), &mask, shape, &lengths, &self.device);
        Output { rows, shape, lengths: lengths[..texts.len()].to_vec(), pick }
    }

    fn layer(&self, layer: &Block, x: Tensor<2>, mask: &Tensor<4>, shape: Shape) -> Tensor<2> {
        let [n_tokens, width] = x.dims();
        let (heads, dtype) = (self.heads, self.dtype);
        let Shape { rows, length } = shape;
        let qkv = layer.qkv.apply(x.clone()).cast(dtype);
        let qkv = qkv.reshape([rows, length, 3 * heads, width / heads]).swap_dims(1, 2);
        let [q, k, v] = [0, 1, 2].map(|n| qkv.clone().narrow(1, n * heads, heads));
        let scores = q.matmul(k.swap_dims(2, 3)).cast(DType::F32) + mask.clone();
        let context = softmax(scores, 3).cast(dtype).matmul(v);
        let context = context.swap_dims(1, 2).reshape([n_tokens, width]);
        let attended = layer.out.apply(context) + x.cast(DType::F32);
        let attended = layer.attention_norm.apply(attended).cast(dtype);
        let inner = layer.up.apply(attended.clone());
        let inner = match self.activation {
            Activation::Gelu => gelu(inner),
            Activation::GeluTanh => gelu_approximate(inner),
            Activation::Relu => relu(inner),
        };
        let output = layer.down.apply(inner.cast(dtype)) + attended.cast(DType::F32);
        layer.output_norm.apply(output).cast(dtype)
    }
}

impl Linear {
    /// In f32, whatever the product was in.
    fn apply(&self, x: Tensor<2>) -> Tensor<2> {
        x.matmul(self.matrix.clone()).cast(DType::F32) + self.bias.clone()
    }
}

impl Normed {
    fn apply(&self, x: Tensor<2>) -> Tensor<2> {
        let centred = x.clone() - x.mean_dim(1);
        let variance = (centred.clone() * centred.clone()).mean_dim(1);
        centred / (variance + self.eps).sqrt() * self.scale.clone() + self.shift.clone()
    }
}

impl Pick {
    /// One row per text, or all of them.
    fn of_tensor(
        self,
        x: Tensor<2>,
        mask: &Tensor<4>,
        shape: Shape,
        lengths: &[usize],
        device: &Device,
    ) -> Tensor<2> {
        let Shape { rows, length } = shape;
        let width = x.dims()[1];
        let of_each = |place: &dyn Fn(usize) -> usize| {
            let at = lengths.iter().enumerate();
            let at = at.map(|(row, n)| (row * length + place(*n)) as i32).collect::<Vec<_>>();
            Tensor::<1, Int>::from_data(TensorData::new(at, [rows]), (device, DType::I32))
        };
        match self {
            Self::Tokens => x,
            Self::First => x.select(0, of_each(&|_| 0)),
            Self::Last => x.select(0, of_each(&|n| n - 1)),
            Self::Mean => {
                let shares = lengths.iter().flat_map(|n| {
                    (0..length).map(|place| if place < *n { 1.0 / *n as f32 } else { 0.0 })
                });
                let shares = TensorData::new(shares.collect::<Vec<f32>>(), [rows, length, 1]);
                let shares = Tensor::<3>::from_data(shares, (device, DType::F32));
                let sum = (x.reshape([rows, length, width]) * shares).sum_dim(1);
                sum.reshape([rows, width])
            }
            Self::Max => {
                let x = x.reshape([rows, length, width]);
                let there = x.clone() + mask.clone().reshape([rows, length, 1]);
                // What is no number must not be lost, as a maximum may lose it.
                let spoilt = x.sum_dim(1) * 0.0;
                (there.max_dim(1) + spoilt).reshape([rows, width])
            }
        }
    }
}

impl Output {
    /// Waits for the forward: what was picked of each text, in the order of its part.
    pub(crate) fn read(self) -> Result<Vec<Vec<f32>>, InferError> {
        let width = self.rows.dims()[1];
        let data = self.rows.try_into_data().map_err(|error| failure(&error.to_string()))?;
        let rows = data.try_into_vec::<f32>();
        let rows = rows.map_err(|error| InferError::Device(format!("read back: {error}")))?;
        let each = if self.pick == Pick::Tokens { self.shape.length } else { 1 };
        let texts = rows.chunks_exact(each * width).zip(&self.lengths);
        Ok(texts.map(|(rows, n)| rows[..(*n).min(each) * width].to_vec()).collect())
    }
}

/// The tokens of a part as tables of a shape.
struct Inputs {
    words: Vec<i32>,
    positions: Vec<i32>,
    types: Vec<i32>,
    mask: Vec<f32>,
    /// Also of the texts that only fill the shape.
    lengths: Vec<usize>,
}

impl Inputs {
    fn new(texts: &[&Tokens], part: &Part, embeddings: &Embeddings) -> Self {
        let Shape { rows, length } = part.shape;
        let n = part.shape.tokens();
        let table = || Vec::with_capacity(n);
        let (mut words, mut positions, mut types) = (table(), table(), table());
        let mut mask = Vec::with_capacity(n);
        let mut lengths = Vec::with_capacity(rows);
        for row in 0..rows {
            // A row of its own token for those that only fill the shape.
            let (text, n_tokens) = match texts.get(row) {
                Some(text) => (*text, text.len()),
                None => (texts[0], 1),
            };
            let fill = |own: &mut Vec<i32>, values: &mut dyn Iterator<Item = usize>| {
                let start = own.len();
                own.extend(values.take(n_tokens).map(|value| value as i32));
                own.resize(start + length, own[start]);
            };
            fill(&mut words, &mut text.ids().iter().map(|id| *id as usize));
            fill(&mut positions, &mut embeddings.places(text));
            // A text of the first type alone does not list it.
            let of_first = std::iter::repeat(0);
            fill(&mut types, &mut text.types().iter().map(|of| *of as usize).chain(of_first));
            mask.extend((0..length).map(|place| if place < n_tokens { 0.0 } else { NOT_THERE }));
            lengths.push(n_tokens);
        }
        Self { words, positions, types, mask, lengths }
    }
}

/// Where weights go, and as what.
struct Blocks<'a> {
    upload: Upload<'a>,
    dtype: DType,
}

/// A matrix row by row, `[from, to]`.
type Host = (Vec<f32>, [usize; 2]);

impl Blocks<'_> {
    fn norm(&self, norm: &Norm) -> Normed {
        Normed {
            scale: self.upload.row(&norm.scale),
            shift: self.upload.row(&norm.shift),
            eps: norm.eps,
        }
    }

    fn linear(&self, dense: Dense<Host>) -> Linear {
        let (values, shape) = dense.matrix;
        Linear {
            bias: self.upload.row(&dense.bias),
            matrix: self.upload.tensor(values, shape, self.dtype),
        }
    }

    fn block(&self, layer: Layer<Host>) -> Block {
        Block {
            qkv: self.linear(layer.qkv),
            out: self.linear(layer.out),
            attention_norm: self.norm(&layer.attention_norm),
            up: self.linear(layer.up),
            down: self.linear(layer.down),
            output_norm: self.norm(&layer.output_norm),
        }
    }
}
