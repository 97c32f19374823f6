//! Causal language models of the Llama family: a sequence grows by some tokens in each turn.

#[cfg(feature = "cpu")]
mod chat;
mod class;
mod config;
#[cfg(feature = "cpu")]
mod engine;
#[cfg(feature = "cpu")]
mod forward;
#[cfg(feature = "cpu")]
mod generator;
#[cfg(feature = "cpu")]
mod graph;
#[cfg(feature = "cpu")]
mod groups;
#[cfg(feature = "cpu")]
mod growing;
#[cfg(feature = "cpu")]
mod inputs;
#[cfg(feature = "cpu")]
mod letters;
#[cfg(feature = "cpu")]
mod likeliest;
mod numbers;
#[cfg(feature = "cpu")]
mod pace;
#[cfg(feature = "cpu")]
mod packed;
#[cfg(feature = "cpu")]
mod plan;
#[cfg(feature = "cpu")]
mod pool;
#[cfg(feature = "cpu")]
mod prefixes;
#[cfg(feature = "cpu")]
mod reuse;
#[cfg(feature = "cpu")]
mod room;
#[cfg(feature = "cpu")]
mod sampler;
mod settings;
#[cfg(feature = "cpu")]
mod source;
#[cfg(feature = "cpu")]
mod stops;
#[cfg(feature = "cpu")]
mod tokenizer;
#[cfg(feature = "cpu")]
mod tokenizer_class;
#[cfg(feature = "cpu")]
mod transcript;
mod turn;
#[cfg(feature = "cpu")]
mod warmer;
#[cfg(feature = "cpu")]
mod weights;

#[cfg(feature = "cpu")]
pub use chat::{ChatTemplate, MAX_MESSAGES, Message};
pub use config::MODEL_TYPES;
pub(crate) use config::check_head;
#[cfg(feature = "cpu")]
pub use generator::Generator;
#[cfg(feature = "cpu")]
pub use groups::GroupShape;
#[cfg(feature = "cpu")]
pub use room::{bytes, positions};
pub use settings::{Defaults, Settings};
#[cfg(feature = "cpu")]
pub use source::Source;
#[cfg(feature = "cpu")]
pub use tokenizer::Tokenizer;
#[cfg(feature = "cpu")]
pub use transcript::Transcript;
pub use turn::{Ended, Sampling, Sequence, Turn};
#[cfg(feature = "cpu")]
pub use warmer::Warmer;

/// Reads what a directory says of texts, and holds it against what this build can run, without the
/// weights: templates that are none, and tokenizers that are not the model's.
pub(crate) fn check_texts(dir: &std::path::Path) -> Result<Settings, crate::LoadError> {
    let settings = Settings::read(dir)?;
    #[cfg(feature = "cpu")]
    {
        ChatTemplate::of(&settings)?;
        Tokenizer::of(&settings, dir)?;
    }
    Ok(settings)
}
