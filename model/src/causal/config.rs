//! `config.json` of a decoder, checked: what is computed, and how large it is.

use std::path::Path;

use crate::LoadError;
use crate::json::Fields;

/// The shape of a decoder of the Llama family.
///
/// Each layer: RMS norm, attention with rotary positions and shared keys and values, residual, RMS
/// norm, a feed-forward block gated by SiLU, residual.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Config {
    /// The first of `architectures`, for people.
    pub(crate) architecture: String,
    pub(crate) layers: usize,
    pub(crate) hidden: usize,
    /// Width between the two layers of a feed-forward block.
    pub(crate) intermediate: usize,
    /// Heads of the queries.
    pub(crate) heads: usize,
    /// Heads of the keys and values; divides `heads`.
    pub(crate) kv_heads: usize,
    /// Width of a head, an even number; `heads` of them need not make `hidden`.
    pub(crate) head_width: usize,
    pub(crate) vocabulary: usize,
    /// Tokens that a sequence may have. Where tokens look back through a window, it ends with the
    /// window: up to there a window changes nothing.
    pub(crate) positions: usize,
    pub(crate) norm_eps: f32,
    pub(crate) rope: Rope,
    /// Whether queries, keys and values have biases (Qwen2, and `attention_bias`).
    pub(crate) qkv_bias: bool,
    /// Whether the product after attention has a bias (`attention_bias` of Llama and Qwen3).
    pub(crate) out_bias: bool,
    /// Whether queries and keys are normed by head before they are turned (Qwen3).
    pub(crate) qk_norm: bool,
    /// Whether the logits are made with the table of embeddings, unless the weights have another head.
    pub(crate) tied: bool,
}

/// How positions turn queries and keys.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rope {
    pub(crate) theta: f64,
    pub(crate) scaling: Option<Scaling>,
}

/// How a model was stretched to longer texts than it was first trained on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Scaling {
    /// Positions are divided by this.
    Linear(f64),
    /// Slow frequencies are divided by `factor`, fast ones stay, those in between are blended (Llama 3).
    Llama3 { factor: f64, low_freq_factor: f64, high_freq_factor: f64, original_positions: f64 },
}

/// A member of the family: one decoder, with small differences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Member {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
}

/// The values of `model_type` that belong to the family.
pub const MODEL_TYPES: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];

/// Most of whatever is counted: far above what is trained, and products of two of them are numbers.
const MOST: usize = 1 << 24;
/// Most transformer layers.
const MOST_LAYERS: usize = 1 << 12;
/// Most of a factor or base of the rotary positions.
const MOST_ROPE: f64 = 1e12;

/// The window of attention where a file does not speak of it, as transformers' classes have it; `null`
/// is none.
const CLASS_WINDOW: usize = 4096;
/// Layers without a window, the same.
const CLASS_FULL: usize = 28;

impl Member {
    fn of(model_type: &str) -> Option<Self> {
        match model_type {
            "llama" => Some(Self::Llama),
            "mistral" => Some(Self::Mistral),
            "qwen2" => Some(Self::Qwen2),
            "qwen3" => Some(Self::Qwen3),
            _ => None,
        }
    }

    /// Its name in `architectures` where it has a head that makes tokens.
    fn architecture(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
        }
    }
}

impl Config {
    /// Reads and checks `config.json`.
    pub(crate) fn read(path: &Path) -> Result<Self, LoadError> {
        let fields = Fields::read(path)?;
        // The type first: other fields of a model that is not ours have other names.
        let member = member(&fields)?;
        refuse_what_is_not_computed(&fields)?;
        let size = |name: &str| fields.required_size(&[name], 1..=MOST);
        let attention_bias = fields.flag("attention_bias")? && member != Member::Mistral;
        let (hidden, heads) = (size("hidden_size")?, size("num_attention_heads")?);
        let layers = fields.required_size(&["num_hidden_layers"], 1..=MOST_LAYERS)?;
        Ok(Self {
            architecture: member.architecture().to_owned(),
            layers,
            hidden,
            intermediate: size("intermediate_size")?,
            heads,
            kv_heads: kv_heads(&fields, member, heads)?,
            head_width: head_width(&fields, member, hidden, heads)?,
            vocabulary: size("vocab_size")?,
            positions: positions(&fields, member, layers)?,
            norm_eps: fields.number("rms_norm_eps", 0.0..=1.0)?.unwrap_or(1e-6) as f32,
            rope: Rope::read(&fields)?,
            qkv_bias: attention_bias || member == Member::Qwen2,
            out_bias: attention_bias && member != Member::Qwen2,
            qk_norm: member == Member::Qwen3,
            tied: fields.flag("tie_word_embeddings")?,
        })
    }

    /// Width of all queries of a token.
    #[cfg(feature = "cpu")]
    pub(crate) fn query_width(&self) -> usize {
        self.heads * self.head_width
    }

    /// Width of all keys of a token, and of all values.
    #[cfg(feature = "cpu")]
    pub(crate) fn kv_width(&self) -> usize {
        self.kv_heads * self.head_width
    }

    /// By how much a head's pairs turn from one position to the next, in radians: half as many as a
    /// head is wide. Number `n` turns what stands at `n` and at `n + head_width / 2`.
    #[cfg(feature = "cpu")]
    pub(crate) fn frequencies(&self) -> Vec<f32> {
        let pairs = (0..self.head_width / 2).map(|n| 2.0 * n as f64 / self.head_width as f64);
        let plain = pairs.map(|power| self.rope.theta.powf(-power));
        plain.map(|frequency| self.rope.scaled(frequency) as f32).collect()
    }
}

impl Rope {
    /// By the formulas of transformers' `modeling_rope_utils`.
    #[cfg(feature = "cpu")]
    fn scaled(&self, frequency: f64) -> f64 {
        match self.scaling {
            None => frequency,
            Some(Scaling::Linear(factor)) => frequency / factor,
            Some(Scaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_positions,
            }) => {
                // How often it turns round within the texts of the first training.
                let turns = original_positions * frequency / std::f64::consts::TAU;
                let share = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                let share = share.clamp(0.0, 1.0);
                (1.0 - share) * frequency / factor + share * frequency
            }
        }
    }

    /// From `rope_parameters`, as new configurations have it, or `rope_theta` and `rope_scaling`.
    fn read(fields: &Fields) -> Result<Self, LoadError> {
        let is_new = fields.object("rope_parameters")?.is_some();
        let parent = if is_new { "rope_parameters" } else { "rope_scaling" };
        let has_parent = fields.object(parent)?.is_some();
        let inner = |name: &str| format!("{parent}.{name}");
        let number = |name: &str, least: f64| fields.number(&inner(name), least..=MOST_ROPE);
        let needed = |name: &str, least: f64| {
            let missing = || fields.wrong(&inner(name), "missing", "this rope_type needs it");
            number(name, least)?.ok_or_else(missing)
        };
        let theta = match number("rope_theta", 1.0)? {
            Some(theta) => theta,
            None => fields.number("rope_theta", 1.0..=MOST_ROPE)?.unwrap_or(10_000.0),
        };
        for part in [inner("partial_rotary_factor"), "partial_rotary_factor".to_owned()] {
            if let Some(share) = fields.number(&part, 0.0..=1.0)?.filter(|share| *share < 1.0) {
                return Err(fields.wrong(&part, share, "only heads that turn whole are known"));
            }
        }
        let (name, old_name) = (inner("rope_type"), inner("type"));
        let kind = match fields.text(&[&name, &old_name])? {
            Some(kind) => kind,
            None if has_parent && number("factor", 0.0)?.is_some() => "missing",
            None => "default",
        };
        let scaling = match kind {
            "default" => None,
            "linear" => Some(Scaling::Linear(needed("factor", 1.0)?)),
            "llama3" => Some(Scaling::Llama3 {
                factor: needed("factor", 1.0)?,
                low_freq_factor: needed("low_freq_factor", 0.0)?,
                high_freq_factor: needed("high_freq_factor", 0.0)?,
                original_positions: needed("original_max_position_embeddings", 1.0)?,
            }),
            other => {
                let remedy = format!(
                    "default, linear and llama3 are known; without {parent} a model reads up to the \
                     positions that it was trained on"
                );
                return Err(fields.wrong(&name, other, &remedy));
            }
        };
        if let Some(Scaling::Llama3 { low_freq_factor, high_freq_factor, .. }) = scaling
            && high_freq_factor <= low_freq_factor
        {
            let remedy = format!("it must be above low_freq_factor, which is {low_freq_factor}");
            return Err(fields.wrong(&inner("high_freq_factor"), high_freq_factor, &remedy));
        }
        Ok(Self { theta, scaling })
    }
}

/// Refuses a model of the family that has another head than one that makes tokens.
pub(crate) fn check_head(fields: &Fields) -> Result<(), LoadError> {
    member(fields).map(drop)
}

/// The member that this is, with a head that makes tokens.
fn member(fields: &Fields) -> Result<Member, LoadError> {
    let model_type = fields.text(&["model_type"])?.unwrap_or("missing");
    let Some(member) = Member::of(model_type) else {
        let remedy = format!("known here are {}", MODEL_TYPES.join(", "));
        return Err(fields.wrong("model_type", model_type, &remedy));
    };
    let architectures = fields.texts("architectures")?;
    if architectures.first() == Some(&member.architecture()) {
        return Ok(member);
    }
    let found = if architectures.is_empty() { "missing".into() } else { architectures.join(", ") };
    let remedy = format!("{} is known of this model_type", member.architecture());
    Err(fields.wrong("architectures", found, &remedy))
}

/// What some models of the family have, and would make other numbers without a word.
fn refuse_what_is_not_computed(fields: &Fields) -> Result<(), LoadError> {
    if let Some(how) = fields.object("quantization_config")? {
        let method = how.get("quant_method").and_then(|method| method.as_str());
        let remedy =
            "quantised weights are not known; take the model's weights in bf16, f16 or f32";
        return Err(fields.wrong("quantization_config", method.unwrap_or("an object"), remedy));
    }
    if fields.flag("mlp_bias")? {
        return Err(fields.wrong(
            "mlp_bias",
            "true",
            "biases of feed-forward blocks are not known",
        ));
    }
    match fields.text(&["hidden_act"])? {
        None | Some("silu" | "swish") => Ok(()),
        Some(other) => Err(fields.wrong("hidden_act", other, "only silu is known")),
    }
}

fn kv_heads(fields: &Fields, member: Member, heads: usize) -> Result<usize, LoadError> {
    let name = "num_key_value_heads";
    let kv_heads = match fields.size(&[name], 1..=MOST)? {
        Some(kv_heads) => kv_heads,
        // The first Llamas do not have the field. The others share, and the file says how far.
        None if member == Member::Llama => heads,
        None => return fields.required_size(&[name], 1..=MOST),
    };
    if heads.is_multiple_of(kv_heads) {
        return Ok(kv_heads);
    }
    let remedy = format!("it must divide num_attention_heads, which is {heads}");
    Err(fields.wrong(name, kv_heads, &remedy))
}

fn head_width(
    fields: &Fields,
    member: Member,
    hidden: usize,
    heads: usize,
) -> Result<usize, LoadError> {
    let width = match fields.size(&["head_dim"], 1..=MOST)? {
        Some(width) => width,
        None if member == Member::Qwen3 => 128,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            let remedy = "without head_dim it must divide by num_attention_heads";
            return Err(fields.wrong("hidden_size", hidden, remedy));
        }
    };
    if !width.is_multiple_of(2) {
        return Err(fields.wrong("head_dim", width, "it must be even, since pairs are turned"));
    }
    if heads.saturating_mul(width) > MOST {
        let remedy = format!("times num_attention_heads it must be at most {MOST}");
        return Err(fields.wrong("head_dim", width, &remedy));
    }
    Ok(width)
}

/// Tokens that a sequence may have: all positions, or those within the window of attention.
fn positions(fields: &Fields, member: Member, layers: usize) -> Result<usize, LoadError> {
    let positions = fields.required_size(&["max_position_embeddings"], 1..=MOST)?;
    let name = "sliding_window";
    let window = match fields.says(name) {
        true => fields.size(&[name], 1..=MOST)?,
        false => Some(CLASS_WINDOW),
    };
    let kinds = fields.texts("layer_types")?;
    let is_known = |kind: &&&str| ["full_attention", "sliding_attention"].contains(*kind);
    if let Some(other) = kinds.iter().find(|kind| !is_known(kind)) {
        let remedy = "full_attention and sliding_attention are known";
        return Err(fields.wrong("layer_types", other, remedy));
    }
    let is_used = match member {
        Member::Llama => false,
        // Its class has the window in all layers, whatever they are called.
        Member::Mistral => true,
        Member::Qwen2 | Member::Qwen3 if !kinds.is_empty() => kinds.contains(&"sliding_attention"),
        Member::Qwen2 | Member::Qwen3 => {
            let full = fields.size(&["max_window_layers"], 0..=MOST)?.unwrap_or(CLASS_FULL);
            fields.flag("use_sliding_window")? && full < layers
        }
    };
    Ok(window.filter(|_| is_used).map_or(positions, |window| window.min(positions)))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(change: &Value) -> Result<Config, String> {
        let mut config = json!({
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 320,
            "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 4, "max_position_embeddings": 128,
        });
        for (name, value) in change.as_object().expect("changes") {
            config[name] = value.clone();
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, config.to_string()).unwrap();
        Config::read(&path).map_err(|error| error.to_string())
    }

    fn of(model_type: &str, architecture: &str, more: &Value) -> Result<Config, String> {
        let mut change = json!({
            "model_type": model_type, "architectures": [architecture], "num_key_value_heads": 2,
        });
        for (name, value) in more.as_object().expect("changes") {
            change[name] = value.clone();
        }
        read(&change)
    }

    #[test]
    fn a_plain_llama_has_the_defaults_of_its_kind() {
        let config = read(&json!({})).unwrap();
        assert_eq!((config.heads, config.kv_heads, config.head_width), (4, 4, 16));
        assert_eq!((config.query_width(), config.kv_width(), config.positions), (64, 64, 128));
        assert_eq!(config.rope, Rope { theta: 10_000.0, scaling: None });
        assert!(!config.tied && !config.qkv_bias && !config.out_bias && !config.qk_norm);
        assert!((config.norm_eps - 1e-6).abs() < 1e-12);
    }

    #[test]
    fn members_differ_in_biases_and_norms() {
        let bias = json!({"attention_bias": true});
        for (model_type, architecture, plain, with_bias) in [
            ("llama", "LlamaForCausalLM", (false, false, false), (true, true, false)),
            ("mistral", "MistralForCausalLM", (false, false, false), (false, false, false)),
            ("qwen2", "Qwen2ForCausalLM", (true, false, false), (true, false, false)),
            ("qwen3", "Qwen3ForCausalLM", (false, false, true), (true, true, true)),
        ] {
            for (more, expected) in [(&json!({}), plain), (&bias, with_bias)] {
                let config = of(model_type, architecture, more).unwrap();
                let found = (config.qkv_bias, config.out_bias, config.qk_norm);
                assert_eq!(found, expected, "{model_type} {more}");
            }
        }
        let head = |more: &Value| of("qwen3", "Qwen3ForCausalLM", more).unwrap().head_width;
        assert_eq!((head(&json!({})), head(&json!({"head_dim": 32}))), (128, 32));
    }

    #[test]
    fn a_window_bounds_the_positions_only_where_it_is_used() {
        let window = |model_type: &str, more: Value| {
            let architecture = Member::of(model_type).unwrap().architecture();
            of(model_type, architecture, &more).unwrap().positions
        };
        assert_eq!(window("mistral", json!({"sliding_window": 32})), 32);
        assert_eq!(window("mistral", json!({"sliding_window": 4096})), 128);
        assert_eq!(window("mistral", json!({"sliding_window": null})), 128);
        let full = ["full_attention", "full_attention"];
        let layers = json!({"sliding_window": 32, "layer_types": full});
        assert_eq!(window("mistral", layers), 32);
        assert_eq!(window("llama", json!({"sliding_window": 32})), 128);
        // What the file does not speak of is as transformers' class has it.
        let long = |more: Value| {
            let mut config = json!({"max_position_embeddings": 32_768});
            config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            config
        };
        assert_eq!(window("mistral", long(json!({}))), 4096);
        assert_eq!(window("mistral", long(json!({"sliding_window": null}))), 32_768);
        assert_eq!(window("qwen2", long(json!({}))), 32_768);
        let used = json!({"use_sliding_window": true, "max_window_layers": 1});
        assert_eq!(window("qwen2", long(used)), 4096);
        for model_type in ["qwen2", "qwen3"] {
            let check = |more: Value, expected| assert_eq!(window(model_type, more), expected);
            check(json!({"sliding_window": 32}), 128);
            let all = json!({
                "sliding_window": 32, "use_sliding_window": true, "max_window_layers": 0,
            });
            check(all, 32);
            let above = json!({
                "sliding_window": 32, "use_sliding_window": true, "max_window_layers": 2,
            });
            check(above, 128);
            let layers = ["full_attention", "sliding_attention"];
            check(json!({"sliding_window": 32, "layer_types": layers}), 32);
            let layers = ["full_attention", "full_attention"];
            check(
                json!({
                    "sliding_window": 32, "use_sliding_window": true, "layer_types": layers,
                }),
                128,
            );
        }
    }

    #[test]
    fn rotary_positions_are_read_from_old_and_from_new_fields() {
        let llama3 = json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64, "rope_theta": 500_000.0,
        });
        let scaling = Some(Scaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_positions: 64.0,
        });
        let expected = Rope { theta: 500_000.0, scaling };
        for change in [
            json!({"rope_parameters": llama3}),
            json!({"rope_scaling": llama3, "rope_theta": 500_000.0}),
            json!({"rope_parameters": llama3, "rope_scaling": null, "rope_theta": 3.0}),
        ] {
            assert_eq!(read(&change).unwrap().rope, expected, "{change}");
        }
        let linear = Some(Scaling::Linear(2.0));
        for (change, theta, scaling) in [
            (json!({"rope_theta": 1e6}), 1e6, None),
            (json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}), 1e6, None),
            (json!({"rope_parameters": {"rope_theta": 1e6}}), 1e6, None),
            (json!({"rope_scaling": {"type": "linear", "factor": 2}}), 1e4, linear),
        ] {
            assert_eq!(read(&change).unwrap().rope, Rope { theta, scaling }, "{change}");
        }
    }

    #[test]
    fn frequencies_fall_from_one_and_are_stretched_as_the_scaling_says() {
        let near = |found: &[f32], expected: &[f32]| {
            assert_eq!(found.len(), expected.len());
            let is_near = |(x, y): (&f32, &f32)| (x - y).abs() < 1e-6 * y;
            assert!(found.iter().zip(expected).all(is_near), "{found:?} {expected:?}");
        };
        let plain = json!({"head_dim": 8, "rope_theta": 10_000.0});
        near(&read(&plain).unwrap().frequencies(), &[1.0, 0.1, 0.01, 0.001]);
        let linear = json!({"head_dim": 4, "rope_scaling": {"rope_type": "linear", "factor": 4.0}});
        near(&read(&linear).unwrap().frequencies(), &[0.25, 0.0025]);
        // Over 628.3 positions these turn 100, 10, 1 and 0.1 times: from 4 on they are kept, up to
        // 0.5 they are divided, between them they are blended by their share of the way.
        let llama3 = json!({"head_dim": 8, "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 0.5, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 200.0 * std::f64::consts::PI,
        }});
        let blended = 0.01 * (1.0 / 7.0 + 6.0 / 7.0 / 8.0);
        near(&read(&llama3).unwrap().frequencies(), &[1.0, 0.1, blended, 0.001 / 8.0]);
    }

    #[test]
    fn what_is_not_computed_is_refused_with_the_field_and_a_remedy() {
        for (change, says) in [
            (json!({"model_type": "gemma"}), "model_type is gemma; known here are llama, mistral"),
            (
                json!({"architectures": ["LlamaForSequenceClassification"]}),
                "architectures is LlamaForSequenceClassification; LlamaForCausalLM is known",
            ),
            (json!({"architectures": null}), "architectures is missing"),
            (json!({"quantization_config": {"quant_method": "gptq"}}), "config is gptq; quantised"),
            (json!({"mlp_bias": true}), "mlp_bias is true"),
            (json!({"hidden_act": "gelu"}), "hidden_act is gelu; only silu"),
            (json!({"num_key_value_heads": 3}), "num_key_value_heads is 3; it must divide"),
            (json!({"num_key_value_heads": 0}), "a whole number from 1"),
            (json!({"hidden_size": 66}), "hidden_size is 66; without head_dim"),
            (json!({"head_dim": 7}), "head_dim is 7; it must be even"),
            (json!({"head_dim": 1 << 23}), "at most 16777216"),
            (json!({"num_hidden_layers": 1 << 13}), "num_hidden_layers is 8192"),
            (json!({"max_position_embeddings": null}), "max_position_embeddings is missing"),
            (json!({"layer_types": ["chunked_attention"]}), "layer_types is chunked_attention"),
            (json!({"rope_scaling": {"type": "yarn", "factor": 4}}), "rope_type is yarn; default,"),
            (json!({"rope_scaling": {"factor": 4}}), "rope_scaling.rope_type is missing"),
            (json!({"rope_scaling": {"type": "linear"}}), "rope_scaling.factor is missing"),
            (json!({"rope_scaling": {"type": "linear", "factor": 0.5}}), "rope_scaling.factor is"),
            (json!({"rope_parameters": {"rope_theta": 0}}), "rope_parameters.rope_theta is 0"),
            (json!({"rope_theta": "big"}), "rope_theta is \"big\""),
            (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor is 0.5"),
            (
                json!({"rope_parameters": {
                    "rope_type": "llama3", "factor": 8, "low_freq_factor": 4,
                    "high_freq_factor": 4, "original_max_position_embeddings": 64,
                }}),
                "rope_parameters.high_freq_factor is 4; it must be above low_freq_factor",
            ),
        ] {
            let error = read(&change).expect_err(says);
            assert!(error.contains(says) && error.contains("config.json"), "{error}");
        }
        let error = of("qwen2", "Qwen2ForCausalLM", &json!({"num_key_value_heads": null}));
        assert!(error.unwrap_err().contains("num_key_value_heads is missing"));
    }
}
