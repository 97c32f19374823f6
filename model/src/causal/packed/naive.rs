//! Decoders of random weights, and the same computed in plain loops in double precision.

use proptest::prelude::*;

use crate::causal::config::{Config, Rope, Scaling};
use crate::causal::weights::Reader;
use crate::checkpoint::Checkpoint;
use crate::safetensors::to_bytes;

/// A decoder as its checkpoint has it.
pub(super) struct Naive {
    pub(super) config: Config,
    tensors: Vec<(String, Vec<usize>, Vec<f32>)>,
}

/// Numbers from a seed, between -1 and 1.
fn numbers(n: usize, mut state: u64) -> Vec<f32> {
    state |= 1;
    let number = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(number).take(n).collect()
}

impl Naive {
    /// Random weights, as bf16 has them if `is_brain`.
    pub(super) fn new(config: Config, is_brain: bool, seed: u64) -> Self {
        let Config { hidden, intermediate, head_width, vocabulary, .. } = config;
        let (queries, kv) = (config.query_width(), config.kv_width());
        let mut shapes = vec![
            ("embed_tokens.weight".to_owned(), vec![vocabulary, hidden]),
            ("norm.weight".to_owned(), vec![hidden]),
        ];
        if !config.tied {
            shapes.push(("lm_head.weight".to_owned(), vec![vocabulary, hidden]));
        }
        for n in 0..config.layers {
            for (name, shape) in [
                ("input_layernorm.weight", vec![hidden]),
                ("post_attention_layernorm.weight", vec![hidden]),
                ("self_attn.q_norm.weight", vec![head_width]),
                ("self_attn.k_norm.weight", vec![head_width]),
                ("self_attn.q_proj.weight", vec![queries, hidden]),
                ("self_attn.q_proj.bias", vec![queries]),
                ("self_attn.k_proj.weight", vec![kv, hidden]),
                ("self_attn.k_proj.bias", vec![kv]),
                ("self_attn.v_proj.weight", vec![kv, hidden]),
                ("self_attn.v_proj.bias", vec![kv]),
                ("self_attn.o_proj.weight", vec![hidden, queries]),
                ("self_attn.o_proj.bias", vec![hidden]),
                ("mlp.gate_proj.weight", vec![intermediate, hidden]),
                ("mlp.up_proj.weight", vec![intermediate, hidden]),
                ("mlp.down_proj.weight", vec![hidden, intermediate]),
            ] {
                shapes.push((format!("layers.{n}.{name}"), shape));
            }
        }
        let tensor = |(place, (name, shape)): (usize, (String, Vec<usize>))| {
            let mut values = numbers(shape.iter().product(), seed ^ (place as u64) << 20);
            // So that what comes out is about as large as what goes in.
            let scale = if shape.len() > 1 { 1.7 / (shape[1] as f32).sqrt() } else { 1.0 };
            for value in &mut values {
                *value *= scale;
                if is_brain {
                    *value = f32::from_bits(value.to_bits() & 0xffff_0000);
                }
            }
            (name, shape, values)
        };
        Self { config, tensors: shapes.into_iter().enumerate().map(tensor).collect() }
    }

    /// The same, to be read as any checkpoint.
    pub(super) fn reader(&self) -> Reader {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("model.safetensors"), to_bytes(&self.tensors)).unwrap();
        Reader::new(Checkpoint::open(dir.path()).unwrap(), &self.config).unwrap()
    }

    /// Makes one number of a token's vector none.
    pub(super) fn spoil_word(&mut self, token: usize) {
        let hidden = self.config.hidden;
        self.tensors[0].2[token * hidden] = f32::NAN;
    }

    fn tensor(&self, name: &str) -> &[f32] {
        let found = self.tensors.iter().find(|(full, ..)| full == name);
        &found.unwrap_or_else(|| panic!("no {name}")).2
    }

    fn norm(&self, row: &[f64], name: &str) -> Vec<f64> {
        let square = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
        let root = (square + f64::from(self.config.norm_eps)).sqrt();
        row.iter().zip(self.tensor(name)).map(|(x, scale)| x / root * f64::from(*scale)).collect()
    }

    fn dense(&self, row: &[f64], name: &str, has_bias: bool) -> Vec<f64> {
        let matrix = self.tensor(&format!("{name}.weight")).chunks_exact(row.len());
        let dot = |of: &[f32]| row.iter().zip(of).map(|(x, of)| x * f64::from(*of)).sum::<f64>();
        let mut out: Vec<f64> = matrix.map(dot).collect();
        if has_bias {
            let bias = self.tensor(&format!("{name}.bias"));
            out.iter_mut().zip(bias).for_each(|(x, bias)| *x += f64::from(*bias));
        }
        out
    }

    /// The heads of a row, normed if they are to be, and turned.
    fn turned(&self, row: &[f64], place: usize, norm: &str) -> Vec<f64> {
        let half = self.config.head_width / 2;
        let frequencies = self.config.frequencies();
        let turn = |head: &[f64]| -> Vec<f64> {
            let head = if self.config.qk_norm { self.norm(head, norm) } else { head.to_vec() };
            let angle = |n: usize| f64::from(place as f32 * frequencies[n]);
            let first =
                (0..half).map(|n| head[n] * angle(n).cos() - head[n + half] * angle(n).sin());
            let second =
                (0..half).map(|n| head[n + half] * angle(n).cos() + head[n] * angle(n).sin());
            first.chain(second).collect()
        };
        row.chunks_exact(2 * half).flat_map(turn).collect()
    }

    /// What each token gets of itself and those before it.
    fn attend(
        &self,
        queries: &[Vec<f64>],
        keys: &[Vec<f64>],
        values: &[Vec<f64>],
    ) -> Vec<Vec<f64>> {
        let Config { heads, kv_heads, head_width, .. } = self.config;
        let row = |token: usize| {
            let of_head = |head: usize| {
                let shared = head / (heads / kv_heads) * head_width;
                let query = &queries[token][head * head_width..][..head_width];
                let score = |key: &Vec<f64>| {
                    let key = &key[shared..][..head_width];
                    let dot = query.iter().zip(key).map(|(x, y)| x * y).sum::<f64>();
                    (dot / (head_width as f64).sqrt()).exp()
                };
                let weights: Vec<f64> = keys[..=token].iter().map(score).collect();
                let total = weights.iter().sum::<f64>();
                let column = move |n: usize| {
                    let products =
                        weights.iter().zip(values).map(|(w, value)| w * value[shared + n]);
                    products.sum::<f64>() / total
                };
                (0..head_width).map(column).collect::<Vec<f64>>()
            };
            (0..heads).flat_map(of_head).collect()
        };
        (0..queries.len()).map(row).collect()
    }

    /// The logits behind each token.
    pub(super) fn logits(&self, tokens: &[u32]) -> Vec<Vec<f64>> {
        let Config { hidden, qkv_bias, out_bias, .. } = self.config;
        let words = self.tensor("embed_tokens.weight");
        let word = |token: &u32| &words[*token as usize * hidden..][..hidden];
        let mut stream: Vec<Vec<f64>> = tokens
            .iter()
            .map(|token| word(token).iter().map(|x| f64::from(*x)).collect())
            .collect();
        let add = |row: &mut Vec<f64>, more: Vec<f64>| {
            row.iter_mut().zip(more).for_each(|(x, more)| *x += more);
        };
        for n in 0..self.config.layers {
            let name = |part: &str| format!("layers.{n}.{part}");
            let normed: Vec<_> =
                stream.iter().map(|row| self.norm(row, &name("input_layernorm.weight"))).collect();
            let dense = |part: &str| -> Vec<Vec<f64>> {
                normed.iter().map(|row| self.dense(row, &name(part), qkv_bias)).collect()
            };
            let turned = |rows: Vec<Vec<f64>>, norm: &str| -> Vec<Vec<f64>> {
                let turn = |(place, row): (usize, Vec<f64>)| self.turned(&row, place, &name(norm));
                rows.into_iter().enumerate().map(turn).collect()
            };
            let queries = turned(dense("self_attn.q_proj"), "self_attn.q_norm.weight");
            let keys = turned(dense("self_attn.k_proj"), "self_attn.k_norm.weight");
            let attended = self.attend(&queries, &keys, &dense("self_attn.v_proj"));
            for (row, attended) in stream.iter_mut().zip(attended) {
                add(row, self.dense(&attended, &name("self_attn.o_proj"), out_bias));
                let normed = self.norm(row, &name("post_attention_layernorm.weight"));
                let gates = self.dense(&normed, &name("mlp.gate_proj"), false);
                let ups = self.dense(&normed, &name("mlp.up_proj"), false);
                let gated: Vec<f64> =
                    gates.iter().zip(ups).map(|(x, up)| x / (1.0 + (-x).exp()) * up).collect();
                add(row, self.dense(&gated, &name("mlp.down_proj"), false));
            }
        }
        let head = if self.config.tied { "embed_tokens" } else { "lm_head" };
        let score = |row: &Vec<f64>| self.dense(&self.norm(row, "norm.weight"), head, false);
        stream.iter().map(score).collect()
    }
}

/// Small decoders of all members, with widths that are no multiple of a register's.
pub(super) fn configs() -> impl Strategy<Value = Config> {
    let heads = prop::sample::select(vec![(1, 1), (3, 1), (4, 2), (6, 2), (3, 3), (14, 2)]);
    let scaling = prop::sample::select(vec![
        None,
        Some(Scaling::Linear(2.0)),
        Some(Scaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_positions: 64.0,
        }),
    ]);
    let sizes = (1usize..3, 1usize..50, 1usize..70, heads, 1usize..26, 2usize..90);
    (sizes, scaling, any::<[bool; 4]>()).prop_map(|(sizes, scaling, flags)| {
        let (layers, hidden, intermediate, (heads, kv_heads), half, vocabulary) = sizes;
        let [qkv_bias, out_bias, qk_norm, tied] = flags;
        Config {
            architecture: "LlamaForCausalLM".to_owned(),
            layers,
            hidden,
            intermediate,
            heads,
            kv_heads,
            head_width: 2 * half,
            vocabulary,
            positions: 1000,
            norm_eps: 1e-5,
            rope: Rope { theta: 1e4, scaling },
            qkv_bias,
            out_bias,
            qk_norm,
            tied,
        }
    })
}
