//! A decoder's weights as they are stored, ready for the device.

use super::config::Config;
use crate::checkpoint::Checkpoint;
use crate::{Dtype, LoadError};

/// A dense layer, its matrix as the products want it.
#[derive(Debug)]
pub(crate) struct Dense<M> {
    pub(crate) matrix: M,
    /// Empty where the layer has none.
    pub(crate) bias: Vec<f32>,
}

/// One transformer layer.
#[derive(Debug)]
pub(crate) struct Layer<M> {
    /// The scale of the RMS norm before attention.
    pub(crate) attention_norm: Vec<f32>,
    /// Queries, keys and values in one product, in this order.
    pub(crate) qkv: Dense<M>,
    /// The scale of the RMS norm of each head's queries; empty where there is none.
    pub(crate) query_norm: Vec<f32>,
    /// The same of the keys.
    pub(crate) key_norm: Vec<f32>,
    pub(crate) out: Dense<M>,
    /// The scale of the RMS norm before the feed-forward block.
    pub(crate) feed_norm: Vec<f32>,
    /// What is gated by SiLU, and then what it is multiplied with, in one product.
    pub(crate) gate_up: Dense<M>,
    pub(crate) down: Dense<M>,
}

/// The weights of a decoder.
pub(crate) struct Reader {
    weights: Checkpoint,
    prefix: &'static str,
    tied: bool,
}

/// What stands before all names but that of the head where the model was saved with its head.
const PREFIX: &str = "model.";
const WORDS: &str = "embed_tokens.weight";
const NORM: &str = "norm.weight";
/// The matrix that makes logits, where the table of embeddings does not.
const HEAD: &str = "lm_head.weight";

impl Reader {
    /// Looks where the decoder is in them, and holds all shapes against the configuration before
    /// anything is read; the disk is read from now on, while a device may start.
    pub(crate) fn new(weights: Checkpoint, config: &Config) -> Result<Self, LoadError> {
        weights.read_ahead();
        let holds = |prefix: &&str| weights.entry(&format!("{prefix}{WORDS}")).is_some();
        let Some(prefix) = ["", PREFIX].into_iter().find(holds) else {
            let message = format!(
                "is missing, with {PREFIX} before it too; the weights are not of such a model"
            );
            return Err(weights.wrong(WORDS, message));
        };
        let words = format!("{prefix}{WORDS}");
        // A head of its own counts more than the configuration, as in transformers; many files hold
        // the table a second time by this name.
        let has_head = weights.entry(HEAD).is_some();
        let tied = config.tied && (!has_head || weights.are_same(HEAD, &words));
        let reader = Self { weights, prefix, tied };
        reader.check(config)?;
        Ok(reader)
    }

    /// Whether the table of embeddings makes the logits.
    pub(crate) fn is_tied(&self) -> bool {
        self.tied
    }

    /// What the weights are stored as, as far as the table of embeddings tells.
    pub(crate) fn stored(&self) -> Dtype {
        let entry = self.weights.entry(&format!("{}{WORDS}", self.prefix));
        match entry.map(|entry| entry.dtype.as_str()) {
            Some("F16") => Dtype::F16,
            Some("BF16") => Dtype::Bf16,
            _ => Dtype::F32,
        }
    }

    /// The table of embeddings, a row per token.
    pub(crate) fn embeddings(&self, config: &Config) -> Result<Vec<f32>, LoadError> {
        self.read(WORDS, &[config.vocabulary, config.hidden])
    }

    /// The scale of the RMS norm behind the last layer.
    pub(crate) fn norm(&self, config: &Config) -> Result<Vec<f32>, LoadError> {
        self.read(NORM, &[config.hidden])
    }

    /// What makes logits, given to `prepare` as it is stored, `[vocabulary, hidden]`, with `hidden`
    /// and `vocabulary`; the table of embeddings where the model is tied.
    pub(crate) fn head<M>(
        &self,
        config: &Config,
        prepare: &impl Fn(&[f32], usize, usize) -> M,
    ) -> Result<M, LoadError> {
        let shape = [config.vocabulary, config.hidden];
        let stored =
            if self.tied { self.read(WORDS, &shape) } else { self.weights.read(HEAD, &shape) };
        Ok(prepare(&stored?, config.hidden, config.vocabulary))
    }

    /// A layer. `prepare` makes of each matrix, given as it is stored, `[out, in]`, with its numbers
    /// of inputs and of outputs, what the products want.
    pub(crate) fn layer<M>(
        &self,
        n: usize,
        config: &Config,
        prepare: &impl Fn(&[f32], usize, usize) -> M,
    ) -> Result<Layer<M>, LoadError> {
        let dense = |kind: Kind| self.dense(n, &kind.parts(config), prepare);
        let norm = |name: &str, width: usize| self.read(&of_layer(n, name), &[width]);
        let of_head = |name: &str| match config.qk_norm {
            true => norm(name, config.head_width),
            false => Ok(Vec::new()),
        };
        Ok(Layer {
            attention_norm: norm(ATTENTION_NORM, config.hidden)?,
            qkv: dense(Kind::Qkv)?,
            query_norm: of_head(QUERY_NORM)?,
            key_norm: of_head(KEY_NORM)?,
            out: dense(Kind::Out)?,
            feed_norm: norm(FEED_NORM, config.hidden)?,
            gate_up: dense(Kind::GateUp)?,
            down: dense(Kind::Down)?,
        })
    }

    /// Dense layers side by side as one. They are stored as `[out, in]`, so that their rows follow
    /// each other.
    fn dense<M>(
        &self,
        n: usize,
        parts: &[Part],
        prepare: &impl Fn(&[f32], usize, usize) -> M,
    ) -> Result<Dense<M>, LoadError> {
        let (mut matrix, mut bias) = (Vec::new(), Vec::new());
        let from = parts[0].from;
        let to = parts.iter().map(|part| part.to).sum();
        for Part { name, from, to, has_bias } in parts {
            let stored = self.read(&of_layer(n, &format!("{name}.weight")), &[*to, *from])?;
            if matrix.is_empty() {
                matrix = stored;
            } else {
                matrix.extend(stored);
            }
            if *has_bias {
                bias.extend(self.read(&of_layer(n, &format!("{name}.bias")), &[*to])?);
            }
        }
        Ok(Dense { matrix: prepare(&matrix, from, to), bias })
    }

    /// A tensor of the decoder without its head.
    fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        self.weights.read(&format!("{}{name}", self.prefix), shape)
    }

    /// Holds the shape of every tensor that will be read against the configuration.
    fn check(&self, config: &Config) -> Result<(), LoadError> {
        let whole = |name: &str| format!("{}{name}", self.prefix);
        self.check_one(&whole(WORDS), &[config.vocabulary, config.hidden])?;
        self.check_one(&whole(NORM), &[config.hidden])?;
        if !self.tied {
            self.check_one(HEAD, &[config.vocabulary, config.hidden])?;
        }
        for n in 0..config.layers {
            for name in [ATTENTION_NORM, FEED_NORM] {
                self.check_one(&whole(&of_layer(n, name)), &[config.hidden])?;
            }
            for name in [QUERY_NORM, KEY_NORM].into_iter().filter(|_| config.qk_norm) {
                self.check_one(&whole(&of_layer(n, name)), &[config.head_width])?;
            }
            let kinds = [Kind::Qkv, Kind::Out, Kind::GateUp, Kind::Down];
            for Part { name, from, to, has_bias } in kinds.iter().flat_map(|it| it.parts(config)) {
                self.check_one(&whole(&of_layer(n, &format!("{name}.weight"))), &[to, from])?;
                if has_bias {
                    self.check_one(&whole(&of_layer(n, &format!("{name}.bias"))), &[to])?;
                }
            }
        }
        Ok(())
    }

    fn check_one(&self, name: &str, shape: &[usize]) -> Result<(), LoadError> {
        match self.weights.entry(name) {
            None if name == HEAD => {
                let message = "is missing; where the table of embeddings makes the logits, \
                               config.json must have tie_word_embeddings true";
                Err(self.weights.wrong(name, message))
            }
            None => Err(self.weights.wrong(name, "is missing; fetch the weights again")),
            Some(entry) if entry.shape != shape => {
                let message = format!("is {:?}, config.json says {shape:?}", entry.shape);
                Err(self.weights.wrong(name, message))
            }
            Some(_) => Ok(()),
        }
    }
}

const ATTENTION_NORM: &str = "input_layernorm.weight";
const FEED_NORM: &str = "post_attention_layernorm.weight";
const QUERY_NORM: &str = "self_attn.q_norm.weight";
const KEY_NORM: &str = "self_attn.k_norm.weight";

/// The name of a part of layer `n`, without the prefix.
fn of_layer(n: usize, name: &str) -> String {
    format!("layers.{n}.{name}")
}

/// What one product of a layer does.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Qkv,
    Out,
    GateUp,
    Down,
}

/// A dense layer as it is stored.
#[derive(Debug)]
struct Part {
    name: &'static str,
    from: usize,
    to: usize,
    has_bias: bool,
}

impl Kind {
    /// The dense layers that make it, in the order of their outputs.
    fn parts(self, config: &Config) -> Vec<Part> {
        let Config { hidden, intermediate, qkv_bias, out_bias, .. } = *config;
        let (queries, kv) = (config.query_width(), config.kv_width());
        let part = |name, from, to, has_bias| Part { name, from, to, has_bias };
        match self {
            Self::Qkv => vec![
                part("self_attn.q_proj", hidden, queries, qkv_bias),
                part("self_attn.k_proj", hidden, kv, qkv_bias),
                part("self_attn.v_proj", hidden, kv, qkv_bias),
            ],
            Self::Out => vec![part("self_attn.o_proj", queries, hidden, out_bias)],
            Self::GateUp => vec![
                part("mlp.gate_proj", hidden, intermediate, false),
                part("mlp.up_proj", hidden, intermediate, false),
            ],
            Self::Down => vec![part("mlp.down_proj", intermediate, hidden, false)],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::Rope;
    use super::*;
    use crate::safetensors::to_bytes;

    /// The name, shape and numbers of each.
    type Tensors = Vec<(String, Vec<usize>, Vec<f32>)>;

    fn config() -> Config {
        Config {
            architecture: "Qwen3ForCausalLM".to_owned(),
            layers: 2,
            hidden: 6,
            intermediate: 5,
            heads: 4,
            kv_heads: 2,
            head_width: 2,
            vocabulary: 7,
            positions: 16,
            norm_eps: 1e-6,
            rope: Rope { theta: 1e4, scaling: None },
            qkv_bias: true,
            out_bias: true,
            qk_norm: true,
            tied: false,
        }
    }

    /// Every tensor of such a model, with numbers that tell them apart.
    fn tensors(prefix: &str) -> Tensors {
        let mut shapes = vec![
            (format!("{prefix}embed_tokens.weight"), vec![7, 6]),
            (format!("{prefix}norm.weight"), vec![6]),
            ("lm_head.weight".to_owned(), vec![7, 6]),
        ];
        for n in 0..2 {
            for (name, shape) in [
                ("input_layernorm.weight", vec![6]),
                ("post_attention_layernorm.weight", vec![6]),
                ("self_attn.q_norm.weight", vec![2]),
                ("self_attn.k_norm.weight", vec![2]),
                ("self_attn.q_proj.weight", vec![8, 6]),
                ("self_attn.q_proj.bias", vec![8]),
                ("self_attn.k_proj.weight", vec![4, 6]),
                ("self_attn.k_proj.bias", vec![4]),
                ("self_attn.v_proj.weight", vec![4, 6]),
                ("self_attn.v_proj.bias", vec![4]),
                ("self_attn.o_proj.weight", vec![6, 8]),
                ("self_attn.o_proj.bias", vec![6]),
                ("mlp.gate_proj.weight", vec![5, 6]),
                ("mlp.up_proj.weight", vec![5, 6]),
                ("mlp.down_proj.weight", vec![6, 5]),
            ] {
                shapes.push((format!("{prefix}layers.{n}.{name}"), shape));
            }
        }
        let values = |(place, (name, shape)): (usize, (String, Vec<usize>))| {
            let n = shape.iter().product::<usize>();
            (name, shape, (0..n).map(|k| (1000 * place + k) as f32).collect())
        };
        shapes.into_iter().enumerate().map(values).collect()
    }

    fn open(
        tensors: &[(String, Vec<usize>, Vec<f32>)],
        config: &Config,
    ) -> Result<Reader, LoadError> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("model.safetensors"), to_bytes(tensors)).unwrap();
        Reader::new(Checkpoint::open(dir.path()).unwrap(), config)
    }

    fn keep(values: &[f32], from: usize, to: usize) -> (Vec<f32>, usize, usize) {
        (values.to_vec(), from, to)
    }

    #[test]
    fn weights_are_read_with_and_without_a_prefix() {
        for prefix in ["", "model."] {
            let tensors = tensors(prefix);
            let of = |name: &str| {
                let found = tensors.iter().find(|(full, ..)| full.ends_with(name));
                found.map(|(_, _, values)| values.clone()).expect(name)
            };
            let reader = open(&tensors, &config()).unwrap();
            let layer = reader.layer(1, &config(), &keep).unwrap();
            let all = |names: [&str; 3], kind: &str| {
                names.map(|name| of(&format!("layers.1.self_attn.{name}_proj.{kind}"))).concat()
            };
            let qkv = all(["q", "k", "v"], "weight");
            assert_eq!(layer.qkv.matrix, (qkv, 6, 16), "{prefix}");
            assert_eq!(layer.qkv.bias, all(["q", "k", "v"], "bias"));
            let block = ["gate", "up"].map(|name| of(&format!("layers.1.mlp.{name}_proj.weight")));
            assert_eq!(layer.gate_up.matrix, (block.concat(), 6, 10));
            assert!(layer.gate_up.bias.is_empty() && layer.down.bias.is_empty());
            assert_eq!(layer.out.bias, of("layers.1.self_attn.o_proj.bias"));
            assert_eq!(layer.query_norm, of("layers.1.self_attn.q_norm.weight"));
            assert_eq!(layer.key_norm, of("layers.1.self_attn.k_norm.weight"));
            let feed_norm = of("layers.1.post_attention_layernorm.weight");
            assert_eq!(layer.feed_norm, feed_norm);
            let head = reader.head(&config(), &keep).unwrap();
            assert_eq!(head, (of("lm_head.weight"), 6, 7));
            assert_eq!(reader.norm(&config()).unwrap(), of(&format!("{prefix}norm.weight")));
        }
    }

    #[test]
    fn a_head_that_is_stored_counts_where_it_is_not_the_table_whatever_the_configuration_says() {
        let tied = Config { tied: true, ..config() };
        let of = |tensors: &Tensors, name: &str| {
            let found = tensors.iter().find(|(full, ..)| full.ends_with(name));
            found.map(|(_, _, values)| values.clone()).expect(name)
        };
        for prefix in ["", "model."] {
            let mut tensors = tensors(prefix);
            let (words, own) = (of(&tensors, WORDS), of(&tensors, HEAD));
            let place = tensors.iter().position(|(name, ..)| name == HEAD).unwrap();
            let reader = open(&tensors, &tied).unwrap();
            assert!(!reader.is_tied(), "{prefix}");
            assert_eq!(reader.head(&tied, &keep).unwrap(), (own, 6, 7), "{prefix}");
            tensors[place].2.clone_from(&words);
            assert!(open(&tensors, &tied).unwrap().is_tied(), "{prefix}");
            assert!(!open(&tensors, &config()).unwrap().is_tied(), "{prefix}");
            tensors.remove(place);
            let reader = open(&tensors, &tied).unwrap();
            assert!(reader.is_tied(), "{prefix}");
            assert_eq!(reader.head(&tied, &keep).unwrap(), (words, 6, 7), "{prefix}");
        }
        let mut tensors = tensors("model.");
        tensors.iter_mut().find(|(name, ..)| name == HEAD).unwrap().1.reverse();
        let Err(error) = open(&tensors, &tied) else { panic!("it is of another shape") };
        let says = "lm_head.weight is [6, 7], config.json says [7, 6]";
        assert!(error.to_string().contains(says), "{error}");
    }

    /// The bytes of tensors, those of this name in `bf16`.
    fn with_one_in_bf16(tensors: &Tensors, name: &str) -> Vec<u8> {
        let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
        for (full, shape, values) in tensors {
            let start = data.len();
            let half = full.ends_with(name);
            let bytes = values.iter().flat_map(|value| match half {
                true => burn::tensor::bf16::from_f32(*value).to_le_bytes().to_vec(),
                false => value.to_le_bytes().to_vec(),
            });
            data.extend(bytes);
            let dtype = if half { "BF16" } else { "F32" };
            let place = [start, data.len()];
            let entry = serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": place});
            header.insert(full.clone(), entry);
        }
        let header = serde_json::to_vec(&header).unwrap();
        [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
    }

    #[test]
    fn a_head_of_the_numbers_of_the_table_is_the_table_in_whatever_type_each_is_stored() {
        let tied = Config { tied: true, ..config() };
        let mut tensors = tensors("model.");
        let find = |name: &'static str| {
            move |(full, ..): &(String, Vec<usize>, Vec<f32>)| full.ends_with(name)
        };
        let (words, head) = (
            tensors.iter().position(find(WORDS)).unwrap(),
            tensors.iter().position(find(HEAD)).unwrap(),
        );
        // Numbers that both types have.
        tensors[words].2.iter_mut().enumerate().for_each(|(n, value)| *value = n as f32 / 8.0);
        tensors[head].2 = tensors[words].2.clone();
        let is_tied = |tensors: &Tensors, in_bf16: &str| {
            let dir = tempfile::tempdir().unwrap();
            let bytes = with_one_in_bf16(tensors, in_bf16);
            std::fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
            Reader::new(Checkpoint::open(dir.path()).unwrap(), &tied).unwrap().is_tied()
        };
        assert!(is_tied(&tensors, WORDS) && is_tied(&tensors, HEAD));
        *tensors[head].2.last_mut().unwrap() += 1.0;
        assert!(!is_tied(&tensors, WORDS) && !is_tied(&tensors, HEAD));
    }

    #[test]
    fn what_a_member_does_not_have_is_not_asked_for() {
        let plain =
            Config { tied: true, qkv_bias: false, out_bias: false, qk_norm: false, ..config() };
        let is_plain = |name: &str| {
            !["bias", "q_norm", "k_norm", "lm_head"].iter().any(|part| name.contains(part))
        };
        let tensors: Vec<_> =
            tensors("model.").into_iter().filter(|(name, ..)| is_plain(name)).collect();
        let layer = open(&tensors, &plain).unwrap().layer(0, &plain, &keep).unwrap();
        assert!(layer.query_norm.is_empty() && layer.key_norm.is_empty());
        assert!(layer.qkv.bias.is_empty() && layer.out.bias.is_empty());
    }

    #[test]
    fn a_tensor_that_is_missing_or_of_another_shape_is_named_before_any_is_read() {
        let check = |change: &dyn Fn(&mut Tensors), says: &str| {
            let mut tensors = tensors("model.");
            change(&mut tensors);
            let Err(error) = open(&tensors, &config()) else { panic!("{says}") };
            let error = error.to_string();
            assert!(error.contains(says) && error.contains("model.safetensors"), "{error}");
        };
        let without = |name: &'static str| {
            move |tensors: &mut Tensors| {
                tensors.retain(|(full, ..)| !full.ends_with(name));
            }
        };
        check(
            &without("embed_tokens.weight"),
            "embed_tokens.weight is missing, with model. before",
        );
        check(&without("lm_head.weight"), "lm_head.weight is missing; where the table");
        for name in
            ["layers.1.self_attn.k_proj.bias", "layers.0.mlp.up_proj.weight", "k_norm.weight"]
        {
            check(&without(name), &format!("{name} is missing; fetch"));
        }
        let turned = |tensors: &mut Tensors| {
            let is_out = |name: &str| name.ends_with("layers.1.self_attn.o_proj.weight");
            let out = tensors.iter_mut().find(|(name, ..)| is_out(name)).unwrap();
            out.1.reverse();
        };
        check(&turned, "o_proj.weight is [8, 6], config.json says [6, 8]");
    }
}
