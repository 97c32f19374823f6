//! Whether a small file names one of Llama's classes of tokenizers, which have steps and tokens of their
//! own.

use std::path::Path;

use crate::LoadError;
use crate::catalog::TOKENIZER;
use crate::json::{Fields, is_there};
use crate::named::Own;

/// Whose steps count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// `LlamaTokenizer`.
    Llama,
    /// `CodeLlamaTokenizer`: its decoder always drops a space, and it knows nothing of `legacy`.
    CodeLlama,
}

impl Class {
    /// Whose it is: by the name in the small file, or else in `config.json`. Without a name, and for
    /// other types of models, transformers takes `tokenizer.json` as it is.
    ///
    /// # Errors
    /// When a file cannot be read, or a field is not what it should be.
    pub(super) fn of(dir: &Path, tokenizer: &Fields) -> Result<Option<Self>, LoadError> {
        let config = Fields::read_if_there(&dir.join("config.json"))?;
        let field = &["tokenizer_class"];
        let name = match tokenizer.text(field)? {
            None => config.text(field)?,
            name => name,
        };
        if !matches!(config.text(&["model_type"])?, Some("llama" | "qwen3")) {
            return Ok(None);
        }
        Ok(match name.map(|name| name.strip_suffix("Fast").unwrap_or(name)) {
            Some("LlamaTokenizer") if !is_of_bytes(dir)? => Some(Self::Llama),
            Some("CodeLlamaTokenizer") => Some(Self::CodeLlama),
            _ => None,
        })
    }

    /// The tokens that it has where the files do not say otherwise.
    pub(super) fn tokens(self) -> Own<'static> {
        const ALL: Own<'static> = &[
            ("bos_token", "<s>"),
            ("eos_token", "</s>"),
            ("unk_token", "<unk>"),
            ("prefix_token", "\u{2581}<PRE>"),
            ("middle_token", "\u{2581}<MID>"),
            ("suffix_token", "\u{2581}<SUF>"),
            ("eot_token", "\u{2581}<EOT>"),
            ("fill_token", "<FILL_ME>"),
        ];
        match self {
            Self::Llama => &ALL[..3],
            Self::CodeLlama => ALL,
        }
    }
}

/// Whether the file is like that of Llama 3, whose letters are bytes: it often names this class, and is
/// taken as it is. By these letters anywhere in it, as transformers looks.
fn is_of_bytes(dir: &Path) -> Result<bool, LoadError> {
    const NAME: &[u8] = b"\"ByteLevel\"";
    let path = dir.join(TOKENIZER);
    // A directory that was only begun has none yet.
    if !is_there(&path)? {
        return Ok(false);
    }
    let text = std::fs::read(&path).map_err(|error| LoadError::io(&path, error))?;
    Ok(text.windows(NAME.len()).any(|letters| letters == NAME))
}
