//! Sentence encoders of the BERT family, from a directory in the Hugging Face layout.
//!
//! The vectors are those of sentence-transformers: same tokens, same cut, same pooling.

#[cfg(feature = "cpu")]
mod encoder;
#[cfg(feature = "cpu")]
mod kernels;
#[cfg(feature = "cpu")]
mod layers;
#[cfg(feature = "cpu")]
mod panels;
mod settings;
#[cfg(feature = "cpu")]
mod tokenizer;
#[cfg(feature = "cpu")]
mod weights;

#[cfg(feature = "cpu")]
pub use encoder::{Embedding, Encoder};
pub(crate) use settings::read_json;
pub use settings::{Pooling, Settings};
#[cfg(feature = "cpu")]
pub use tokenizer::{MAX_TEXT_BYTES, Tokenizer, Tokens};
