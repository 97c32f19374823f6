//! What a pass is run with: a few whole numbers for each token and each sequence cross over to the
//! device in one piece, and masks, turns and the rows of keys and values are made of them there, once
//! for all layers.
//!
//! All sizes are among few ([`sizes`](crate::device::sizes)). What fills them up is as sound as what is
//! beside it, and nothing of it is read back: behind the tokens of a pass stands the first token of the
//! vocabulary, whose keys and values go to nobody's block; behind those of a piece its first token
//! asks once more; behind what is seen stands the first token that the sequence has; behind the
//! sequences stands one that sees nobody's block.

use std::ops::Range;

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::forward::Feed;
use super::groups::{Group, GroupShape};
use super::pool::{BLOCK, Cache};
use crate::device::sizes::round_up;

/// Added to the score of a place that is not to be seen: its share of a softmax becomes zero.
const NOT_THERE: f32 = -1e9;

/// Positions whose angles are made at once, at least.
const LEAST_POSITIONS: usize = 1024;

/// What is the same for all layers of a pass.
pub(super) struct Pass {
    /// Tokens, padding counted.
    pub(super) tokens: Tensor<1, Int>,
    /// Where the keys and values of the tokens go.
    pub(super) rows: Tensor<1, Int>,
    /// Of the angles by which they are turned, `[tokens, 1, head_width]`.
    pub(super) cos: Tensor<3>,
    /// The same, with the sign of the first half turned.
    pub(super) sin: Tensor<3>,
    pub(super) seen: Vec<Seen>,
    /// Where in what the groups make each token's stands; `None` where it is in order.
    pub(super) order: Option<Tensor<1, Int>>,
    /// The tokens behind which logits are wanted, filled up to a size; `None` without any.
    pub(super) last: Option<Tensor<1, Int>>,
    /// How many they are without what fills them up.
    pub(super) n_last: usize,
}

/// Tokens that attend side by side, and what they see.
pub(super) struct Seen {
    pub(super) shape: GroupShape,
    /// The tokens of the pass that ask, a row's after each other; `None` for all in order.
    pub(super) queries: Option<Tensor<1, Int>>,
    /// The rows of all keys and values, `length` for each row of the group.
    pub(super) rows: Tensor<1, Int>,
    /// `[rows, 1, 1, tokens, length]`.
    pub(super) mask: Tensor<5>,
}

/// The angles of positions, made by the processor: those of large positions must not depend on how a
/// device takes the cosine of a large number.
#[derive(Debug)]
pub(super) struct Angles {
    frequencies: Vec<f32>,
    /// Cosines and then sines, `[positions, head_width]`; grows as longer texts come.
    table: Tensor<2>,
}

impl Angles {
    pub(super) fn new(frequencies: Vec<f32>, device: &Device) -> Self {
        let table = angles(&frequencies, LEAST_POSITIONS, device);
        Self { frequencies, table }
    }

    /// Makes all up to so many positions.
    pub(super) fn reserve(&mut self, n_positions: usize, device: &Device) {
        if n_positions > self.table.dims()[0] {
            self.table = angles(&self.frequencies, n_positions.next_power_of_two(), device);
        }
    }
}

fn angles(frequencies: &[f32], n_positions: usize, device: &Device) -> Tensor<2> {
    let width = 2 * frequencies.len();
    let mut values = Vec::with_capacity(n_positions * width);
    for position in 0..n_positions {
        let angles = || frequencies.iter().map(|frequency| position as f32 * frequency);
        values.extend(angles().map(f32::cos).chain(angles().map(f32::sin)));
    }
    let values = TensorData::new(values, [n_positions, width]);
    Tensor::from_data(values, (device, DType::F32))
}

/// The whole numbers of a pass.
#[derive(Default)]
struct Numbers(Vec<i32>);

/// Where in them the same of each token or sequence lies.
type Part = Range<usize>;

impl Numbers {
    fn push(&mut self, values: impl IntoIterator<Item = i32>) -> Part {
        let start = self.0.len();
        self.0.extend(values);
        start..self.0.len()
    }

    fn onto(self, device: &Device) -> Tensor<1, Int> {
        indices(self.0, device)
    }
}

/// Whole numbers on the device.
pub(super) fn indices(values: Vec<i32>, device: &Device) -> Tensor<1, Int> {
    let n = values.len();
    Tensor::from_data(TensorData::new(values, [n]), (device, DType::I32))
}

/// Of each token of a pass.
#[derive(Default)]
struct Tokens {
    ids: Vec<i32>,
    places: Vec<i32>,
    rows: Vec<i32>,
    order: Vec<i32>,
}

/// Of a group, as it crosses over.
struct Sides {
    shape: GroupShape,
    queries: Option<Part>,
    /// Of each row's sequence, `length` tokens.
    blocks: Part,
    /// Tokens before the first of each row.
    before: Part,
    /// And before the end of each row.
    ends: Part,
}

impl Pass {
    /// What its kernels depend on: the shape of each group, and, without rows, how many tokens there
    /// are and how many of them choose. No product has both, and the tuner of products takes all sizes
    /// up to a power of two for one.
    pub(super) fn shapes(&self) -> impl Iterator<Item = [usize; 3]> {
        let shape = |seen: &Seen| [seen.shape.rows, seen.shape.tokens, seen.shape.length];
        let size = |of: &Tensor<1, Int>| of.dims()[0].next_power_of_two();
        let last = self.last.as_ref().map(|last| [0, 0, size(last)]);
        self.seen.iter().map(shape).chain([[0, size(&self.tokens), 0]]).chain(last)
    }

    pub(super) fn new(
        feeds: &[Feed<'_, Cache>],
        groups: &[Group],
        angles: &Angles,
        device: &Device,
    ) -> Self {
        let (tokens, starts, n_real) = Tokens::new(feeds, groups);
        let last = last(feeds, groups, &starts);
        let n_last = last.len();
        let n = tokens.ids.len();
        let mut numbers = Numbers::default();
        let of_tokens = [tokens.ids, tokens.places, tokens.rows].map(|values| numbers.push(values));
        let n_made: usize = groups.iter().map(|it| it.shape.rows * it.shape.tokens).sum();
        let is_whole = n_made == n && is_in_order(&tokens.order);
        let order = (!is_whole).then(|| numbers.push(tokens.order));
        let fill = round_up(n_last.max(1)) - n_last;
        let last = (n_last > 0).then(|| numbers.push(last.into_iter().chain(vec![0; fill])));
        let mut sides = Vec::with_capacity(groups.len());
        for (group, starts) in groups.iter().zip(&starts) {
            sides.push(Sides::new(feeds, group, starts, (n_real, n), &mut numbers));
        }
        let numbers = numbers.onto(device);
        let part = |part: Part| numbers.clone().narrow(0, part.start, part.len());
        let [ids, places, rows] = of_tokens.map(part);
        let (cos, sin) = turns(&angles.table, places);
        Self {
            tokens: ids,
            rows,
            cos,
            sin,
            seen: sides.into_iter().map(|sides| sides.seen(&part, device)).collect(),
            order: order.map(part),
            last: last.map(part),
            n_last,
        }
    }
}

impl Tokens {
    /// In the order of the groups, filled up to a size; of each piece also its first token's place, and
    /// how many there are without what fills them up.
    fn new(feeds: &[Feed<'_, Cache>], groups: &[Group]) -> (Self, Vec<Vec<usize>>, usize) {
        let mut found = Self::default();
        let mut starts = Vec::with_capacity(groups.len());
        let mut n_made = 0;
        for Group { pieces, shape } in groups {
            let mut of_group = Vec::with_capacity(pieces.len());
            for (row, piece) in pieces.iter().enumerate() {
                let Feed { cache, tokens, .. } = &feeds[piece.feed];
                of_group.push(found.ids.len());
                for n in 0..piece.n_tokens {
                    let place = cache.n_read + piece.first + n;
                    found.ids.push(tokens[piece.first + n] as i32);
                    found.places.push(place as i32);
                    found.rows.push(cache.row(place));
                    found.order.push((n_made + row * shape.tokens + n) as i32);
                }
            }
            starts.push(of_group);
            n_made += shape.rows * shape.tokens;
        }
        let n_real = found.ids.len();
        let n = round_up(n_real);
        for values in [&mut found.ids, &mut found.places, &mut found.rows] {
            values.resize(n, 0);
        }
        found.order.extend((n_real..n).map(|place| if place < n_made { place as i32 } else { 0 }));
        (found, starts, n_real)
    }
}

/// Of each feed that wants logits, its last token.
fn last(feeds: &[Feed<'_, Cache>], groups: &[Group], starts: &[Vec<usize>]) -> Vec<i32> {
    let mut last = vec![0; feeds.len()];
    for (group, starts) in groups.iter().zip(starts) {
        for (piece, start) in group.pieces.iter().zip(starts) {
            if piece.first + piece.n_tokens == feeds[piece.feed].tokens.len() {
                last[piece.feed] = (start + piece.n_tokens - 1) as i32;
            }
        }
    }
    let wanted = feeds.iter().zip(last).filter(|(feed, _)| feed.wants);
    wanted.map(|(_, last)| last).collect()
}

fn is_in_order(values: &[i32]) -> bool {
    (0..).zip(values).all(|(place, value): (i32, _)| place == *value)
}

impl Sides {
    /// `counts` are those of the tokens of the pass, without what fills them up and with it.
    fn new(
        feeds: &[Feed<'_, Cache>],
        group: &Group,
        starts: &[usize],
        (n_real, n_all): (usize, usize),
        numbers: &mut Numbers,
    ) -> Self {
        let GroupShape { rows, tokens, length } = group.shape;
        let n_blocks = length / BLOCK;
        let (mut queries, mut blocks) = (Vec::new(), Vec::with_capacity(rows * n_blocks));
        let (mut before, mut ends) = (vec![0; rows], vec![1; rows]);
        for (row, (piece, start)) in group.pieces.iter().zip(starts).enumerate() {
            let of_token = |n| (if n < piece.n_tokens { start + n } else { *start }) as i32;
            queries.extend((0..tokens).map(of_token));
            blocks.extend(feeds[piece.feed].cache.blocks(piece.n_seen, n_blocks));
            before[row] = (piece.n_seen - piece.n_tokens) as i32;
            ends[row] = piece.n_seen as i32;
        }
        let fill = n_real..n_all;
        let n_missing = rows * tokens - queries.len();
        queries.extend(fill.chain(std::iter::repeat(0)).take(n_missing).map(|place| place as i32));
        blocks.resize(rows * n_blocks, 0);
        let is_whole = queries.len() == n_all && is_in_order(&queries);
        Self {
            shape: group.shape,
            queries: (!is_whole).then(|| numbers.push(queries)),
            blocks: numbers.push(blocks),
            before: numbers.push(before),
            ends: numbers.push(ends),
        }
    }

    fn seen(self, part: &impl Fn(Part) -> Tensor<1, Int>, device: &Device) -> Seen {
        let Self { shape, queries, blocks, before, ends } = self;
        let GroupShape { rows: n_rows, tokens, length } = shape;
        let up_to = |n: usize| Tensor::<1, Int>::arange(0..n as i64, (device, DType::I32));
        let places = up_to(length);
        let blocks = part(blocks).reshape([n_rows, length / BLOCK, 1]) * BLOCK as i32;
        let rows = blocks.clone() + up_to(BLOCK).reshape([1, 1, BLOCK]);
        let first = blocks.narrow(1, 0, 1).reshape([n_rows, 1]).expand([n_rows, length]);
        let ends = part(ends).reshape([n_rows, 1]);
        let is_beyond = places.clone().reshape([1, length]).greater_equal(ends);
        let rows = rows.reshape([n_rows, length]).mask_where(is_beyond, first);
        let last = part(before).reshape([n_rows, 1, 1, 1, 1])
            + up_to(tokens).reshape([1, 1, 1, tokens, 1]);
        let is_hidden = places.reshape([1, 1, 1, 1, length]).greater(last);
        let mask = Tensor::<5>::zeros([n_rows, 1, 1, tokens, length], (device, DType::F32));
        Seen {
            shape,
            queries: queries.map(part),
            rows: rows.reshape([n_rows * length]),
            mask: mask.mask_fill(is_hidden, NOT_THERE),
        }
    }
}

/// Cosines and sines of tokens at these places, as each half of a head is turned.
fn turns(table: &Tensor<2>, places: Tensor<1, Int>) -> (Tensor<3>, Tensor<3>) {
    let found = table.clone().select(0, places);
    let [n, width] = found.dims();
    let half = width / 2;
    let [cos, sin] = [0, half].map(|start| found.clone().narrow(1, start, half));
    let cos = Tensor::cat(vec![cos.clone(), cos], 1);
    let sin = Tensor::cat(vec![-sin.clone(), sin], 1);
    (cos.reshape([n, 1, width]), sin.reshape([n, 1, width]))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::Value;

    use super::*;
    use crate::causal::config::Config;

    fn config(change: &Value) -> Config {
        let mut config = serde_json::json!({
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 320,
            "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1,
            "num_attention_heads": 2, "max_position_embeddings": 131_072,
        });
        config.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, config.to_string()).unwrap();
        Config::read(&path).unwrap()
    }

    #[test]
    fn angles_are_those_of_transformers() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/rope.json");
        let cases: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let floats = |value: &Value| -> Vec<f32> { serde_json::from_value(value.clone()).unwrap() };
        let device = Device::flex();
        for case in cases.as_array().unwrap() {
            let found = config(&case["config"]).frequencies();
            let expected = floats(&case["frequencies"]);
            assert_eq!(found.len(), expected.len());
            for (x, y) in found.iter().zip(&expected) {
                assert!((x - y).abs() <= 3e-7 * y, "{}: {x} {y}", case["config"]);
            }
            let mut angles = Angles::new(found, &device);
            for (n, position) in case["positions"].as_array().unwrap().iter().enumerate() {
                let position = position.as_u64().unwrap() as usize;
                angles.reserve(position + 1, &device);
                let (cos, sin) = turns(&angles.table, indices(vec![position as i32], &device));
                let [cos, sin] = [cos, sin].map(|it| it.into_data().try_into_vec::<f32>().unwrap());
                let (half, signs) = (expected.len(), [-1.0, 1.0]);
                let [known_cos, known_sin] = [&case["cos"][n], &case["sin"][n]].map(floats);
                for place in 0..2 * half {
                    // As far as a rounded frequency moves the angle.
                    let near = 1e-6 + 3e-7 * position as f32 * expected[place % half];
                    let known =
                        (known_cos[place % half], signs[place / half] * known_sin[place % half]);
                    let error = (cos[place] - known.0).abs().max((sin[place] - known.1).abs());
                    assert!(error <= near, "{}: {position} {place} {error}", case["config"]);
                }
            }
        }
    }

    #[test]
    fn masks_and_rows_say_what_each_token_sees() {
        let device = Device::flex();
        let shape = GroupShape { rows: 2, tokens: 2, length: 64 };
        // A sequence that has read 31 tokens in the blocks 3 and 5 reads two; beside it stands nobody.
        let mut numbers = Numbers::default();
        let sides = Sides {
            shape,
            queries: None,
            blocks: numbers.push([3, 5, 0, 0]),
            before: numbers.push([31, 0]),
            ends: numbers.push([33, 1]),
        };
        let numbers = numbers.onto(&device);
        let part = |part: Part| numbers.clone().narrow(0, part.start, part.len());
        let seen = sides.seen(&part, &device);
        let rows = seen.rows.into_data().try_into_vec::<i32>().unwrap();
        let block = 3 * BLOCK as i32;
        assert_eq!(rows[..32], (block..block + 32).collect::<Vec<_>>());
        assert_eq!(rows[32], 5 * BLOCK as i32);
        assert_eq!(rows[33..64], [block; 31]);
        assert_eq!(rows[64..], [0; 64]);
        let mask = seen.mask.into_data().try_into_vec::<f32>().unwrap();
        let n_seen = |row: &[f32]| {
            let n = row.iter().take_while(|x| **x == 0.0).count();
            assert!(row[n..].iter().all(|x| *x == NOT_THERE));
            n
        };
        assert_eq!(mask.chunks(64).map(n_seen).collect::<Vec<_>>(), [32, 33, 1, 2]);
    }
}
