//! Models of the BERT family, from a directory in the Hugging Face layout.
//!
//! The vectors are those of sentence-transformers: same tokens, same cut, same pooling.

#[cfg(feature = "cpu")]
mod attention;
#[cfg(feature = "cpu")]
mod body;
#[cfg(feature = "cpu")]
mod classifier;
mod config;
#[cfg(any(feature = "cuda", all(feature = "cpu", test)))]
mod cuda;
#[cfg(feature = "cpu")]
mod encoder;
#[cfg(feature = "cpu")]
mod entities;
mod family;
#[cfg(feature = "cpu")]
mod graph;
#[cfg(feature = "cpu")]
mod head;
#[cfg(feature = "cpu")]
mod kernels;
#[cfg(feature = "cpu")]
mod layers;
#[cfg(feature = "cpu")]
mod linear;
mod modules;
#[cfg(feature = "cpu")]
mod packed;
#[cfg(feature = "cpu")]
mod panels;
#[cfg(feature = "cpu")]
mod pool;
mod projection;
mod settings;
#[cfg(feature = "cpu")]
mod shapes;
#[cfg(feature = "cpu")]
mod source;
#[cfg(feature = "cpu")]
mod tagger;
mod task;
#[cfg(feature = "cpu")]
mod tokenizer;
#[cfg(feature = "cpu")]
mod tokenizer_config;
mod transformer;
mod vocabulary;
#[cfg(feature = "cpu")]
mod warmer;
#[cfg(feature = "cpu")]
mod weights;

#[cfg(feature = "cpu")]
pub use classifier::{Classification, Classifier};
#[cfg(feature = "cpu")]
pub use encoder::{Embedding, Encoder};
#[cfg(feature = "cpu")]
pub use entities::{Entity, entities, words};
pub use family::{Family, MODEL_TYPES};
pub use modules::Pooling;
pub(crate) use modules::{MODULES, module_files};
pub(crate) use settings::SENTENCE_CONFIG;
pub use settings::Settings;
#[cfg(feature = "cpu")]
pub use shapes::Shape;
#[cfg(feature = "cpu")]
pub use source::Source;
#[cfg(feature = "cpu")]
pub use tagger::{Tag, Tagged, Tagger};
pub use task::{Problem, Task};
#[cfg(feature = "cpu")]
pub use tokenizer::{MAX_TEXT_BYTES, Piece, Pieces, Tokenizer, Tokens};
#[cfg(feature = "cpu")]
pub(crate) use tokenizer::{check_length, guarded, uncut};
pub(crate) use vocabulary::{WORDS, tokenizer_file};
#[cfg(feature = "cpu")]
pub use warmer::Warmer;

/// Reads what a directory says beside its weights, and holds it against what can be run here.
pub(crate) fn check_texts(dir: &std::path::Path) -> Result<Settings, crate::LoadError> {
    let settings = Settings::read(dir)?;
    #[cfg(feature = "cpu")]
    Tokenizer::load(dir)?;
    Ok(settings)
}

/// Refuses an output that is no number.
#[cfg(feature = "cpu")]
fn finite(output: &[f32]) -> Result<(), crate::ItemError> {
    if output.iter().all(|x| x.is_finite()) {
        return Ok(());
    }
    Err(crate::ItemError::of_model("output is not finite; the weights do not suit this input"))
}
