//! Models of a known shape with weights of chance, as directories: what is measured depends on the
//! shape alone, and no download is needed.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::ways::WORDS;
use crate::weights::{self, Fill, Kind};

/// The numbers of a transformer that decide how much it computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Known {
    /// 6 layers of 384, as all-MiniLM-L6-v2
    Minilm,
    /// 12 layers of 768, as bert-base-uncased
    BertBase,
    /// 2 layers of 64, to try the bench itself
    Tiny,
}

/// The same, in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) layers: usize,
    pub(super) hidden: usize,
    pub(super) heads: usize,
    pub(super) inner: usize,
    pub(super) vocabulary: usize,
}

const POSITIONS: usize = 512;
/// Words begin behind the special tokens.
const SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

impl Known {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Minilm => "minilm",
            Self::BertBase => "bert-base",
            Self::Tiny => "tiny",
        }
    }

    fn sizes(self) -> Sizes {
        let (layers, hidden, heads, vocabulary) = match self {
            Self::Minilm => (6, 384, 12, 30522),
            Self::BertBase => (12, 768, 12, 30522),
            Self::Tiny => (2, 64, 4, 512),
        };
        Sizes { layers, hidden, heads, inner: 4 * hidden, vocabulary }
    }
}

impl Sizes {
    /// The sizes that a directory tells of.
    pub(super) fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let config: Value = serde_json::from_str(&text)?;
        let number = |names: [&str; 2]| {
            let value = names.iter().find_map(|name| config[*name].as_u64());
            let value = value.with_context(|| format!("{} has no {}", path.display(), names[0]));
            value.map(|value| value as usize)
        };
        Ok(Self {
            layers: number(["num_hidden_layers", "n_layers"])?,
            hidden: number(["hidden_size", "dim"])?,
            heads: number(["num_attention_heads", "n_heads"])?,
            inner: number(["intermediate_size", "hidden_dim"])?,
            vocabulary: number(["vocab_size", "vocab_size"])?,
        })
    }

    /// Floating-point operations of a text of so many tokens: the products, two for each weight or
    /// score and its vector. Norms, softmax and activations are not counted, as nobody counts them.
    pub(super) fn flops(self, n_tokens: usize) -> f64 {
        let Self { layers, hidden, inner, .. } = self;
        let per_token = 8 * hidden * hidden + 4 * hidden * inner + 4 * n_tokens * hidden;
        (layers * n_tokens * per_token) as f64
    }
}

/// Writes a model of this shape into a folder of `parent`.
pub(super) fn make(known: Known, parent: &Path, seed: u64) -> Result<PathBuf> {
    let dir = parent.join(known.name());
    std::fs::create_dir_all(dir.join("1_Pooling"))?;
    let sizes = known.sizes();
    let write = |name: &str, value: &Value| {
        std::fs::write(dir.join(name), value.to_string()).with_context(|| name.to_owned())
    };
    write("config.json", &config(sizes))?;
    write("tokenizer.json", &tokenizer(sizes))?;
    let special = json!({"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]",
        "sep_token": "[SEP]", "mask_token": "[MASK]", "model_max_length": POSITIONS,
        "tokenizer_class": "PreTrainedTokenizerFast"});
    write("tokenizer_config.json", &special)?;
    let module = |n: usize, path: &str, kind: &str| {
        json!({"idx": n, "name": n.to_string(), "path": path,
            "type": format!("sentence_transformers.models.{kind}")})
    };
    write(
        "modules.json",
        &json!([
            module(0, "", "Transformer"),
            module(1, "1_Pooling", "Pooling"),
            module(2, "2_Normalize", "Normalize"),
        ]),
    )?;
    let pooling =
        json!({"word_embedding_dimension": sizes.hidden, "pooling_mode_mean_tokens": true});
    write("1_Pooling/config.json", &pooling)?;
    weights::write(&dir.join("model.safetensors"), Kind::F32, &tensors(sizes), seed)?;
    Ok(dir)
}

fn config(sizes: Sizes) -> Value {
    json!({
        "model_type": "bert",
        "architectures": ["BertModel"],
        "num_hidden_layers": sizes.layers,
        "hidden_size": sizes.hidden,
        "num_attention_heads": sizes.heads,
        "intermediate_size": sizes.inner,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 2,
        "vocab_size": sizes.vocabulary,
        "pad_token_id": 0,
    })
}

/// One token for each word of the bench, and `w0`, `w1` and so on, between the special ones.
fn tokenizer(sizes: Sizes) -> Value {
    let known = SPECIAL.iter().chain(&WORDS).map(|token| (*token).to_owned());
    let all = known.chain((0..).map(|n| format!("w{n}"))).take(sizes.vocabulary);
    let vocabulary: Map<String, Value> =
        all.enumerate().map(|(id, token)| (token, id.into())).collect();
    let added: Vec<Value> = SPECIAL
        .iter()
        .enumerate()
        .map(|(id, token)| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true})
        })
        .collect();
    let special = |token: &str| json!({"SpecialToken": {"id": token, "type_id": 0}});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let place = |token: &str, id: usize| json!({"id": token, "ids": [id], "tokens": [token]});
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [special("[CLS]"), text, special("[SEP]")],
            "pair": [special("[CLS]"), text, special("[SEP]")],
            "special_tokens": {"[CLS]": place("[CLS]", 2), "[SEP]": place("[SEP]", 3)},
        },
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    })
}

/// The tensors by their names, with their shapes; norms change nothing.
fn tensors(sizes: Sizes) -> Vec<(String, Vec<usize>, Fill)> {
    let Sizes { layers, hidden, inner, vocabulary, .. } = sizes;
    let mut tensors: Vec<(String, Vec<usize>, Fill)> = Vec::new();
    let mut dense = |name: String, to: usize, from: usize| {
        tensors.push((format!("{name}.weight"), vec![to, from], Fill::Chance));
        tensors.push((format!("{name}.bias"), vec![to], Fill::Chance));
    };
    for n in 0..layers {
        let part = |name: &str| format!("encoder.layer.{n}.{name}");
        for name in ["query", "key", "value"] {
            dense(part(&format!("attention.self.{name}")), hidden, hidden);
        }
        dense(part("attention.output.dense"), hidden, hidden);
        dense(part("intermediate.dense"), inner, hidden);
        dense(part("output.dense"), hidden, inner);
    }
    dense("pooler.dense".to_owned(), hidden, hidden);
    for (table, rows) in [("word", vocabulary), ("position", POSITIONS), ("token_type", 2)] {
        let name = format!("embeddings.{table}_embeddings.weight");
        tensors.push((name, vec![rows, hidden], Fill::Chance));
    }
    let norms = (0..layers).flat_map(|n| {
        ["attention.output", "output"].map(|part| format!("encoder.layer.{n}.{part}.LayerNorm"))
    });
    for name in norms.chain(["embeddings.LayerNorm".to_owned()]) {
        tensors.push((format!("{name}.weight"), vec![hidden], Fill::One));
        tensors.push((format!("{name}.bias"), vec![hidden], Fill::Zero));
    }
    tensors
}

#[cfg(test)]
mod tests {
    use ebb_model::bert::{Encoder, Tokenizer};
    use ebb_model::{DeviceChoice, Model};

    use super::*;

    #[test]
    fn a_made_model_runs_and_its_words_are_tokens() {
        let dir = tempfile::tempdir().unwrap();
        let made = make(Known::Tiny, dir.path(), 1).unwrap();
        assert_eq!(Sizes::read(&made).unwrap(), Known::Tiny.sizes());
        let tokens = Tokenizer::load(&made).unwrap().tokenize("queue the w0").unwrap();
        assert_eq!(tokens.ids(), [2, 5, 6, 28, 3]);
        let mut encoder = Encoder::load(&made, DeviceChoice::Cpu).unwrap();
        let results = encoder.infer(&[vec![tokens]]).unwrap();
        let vector = &results[0].as_ref().unwrap()[0].vector;
        let length: f32 = vector.iter().map(|x| x * x).sum();
        assert!((length - 1.0).abs() < 1e-5, "{length}");
    }

    #[test]
    fn the_work_of_a_text_is_that_of_its_products() {
        // Per layer: four square products and two of four times the width; then every token with
        // every other, twice.
        let sizes = Sizes { layers: 2, hidden: 8, heads: 2, inner: 32, vocabulary: 10 };
        let per_layer = 3 * (4 * 2 * 64 + 2 * 2 * 256) + 2 * 2 * 9 * 8;
        assert_eq!(sizes.flops(3), f64::from(2 * per_layer));
    }
}
