//! A BERT without a `tokenizer.json`: of its list of words transformers makes the same tokenizer.

use std::path::Path;

use crate::LoadError;
use crate::catalog::TOKENIZER;
use crate::json::{Fields, is_there};

/// A word on each line, its number that of the line.
pub(crate) const WORDS: &str = "vocab.txt";

/// The names under which transformers has BERT's class.
pub(super) const BERTS: [&str; 6] = [
    "BertTokenizer",
    "ElectraTokenizer",
    "LayoutLMTokenizer",
    "LxmertTokenizer",
    "MobileBertTokenizer",
    "SqueezeBertTokenizer",
];

/// BERT's class, but for `do_lower_case`, which these keep to themselves.
pub(super) const DPRS: [&str; 2] = ["DPRContextEncoderTokenizer", "DPRQuestionEncoderTokenizer"];

/// Takes `tokenizer.json` for its steps, and makes a list of words a BERT's.
pub(super) const CONVBERT: &str = "ConvBertTokenizer";

/// The file that says how texts are cut, where there is one: a list of words is enough for the classes
/// that have all else by themselves.
pub(crate) fn tokenizer_file(dir: &Path) -> Result<Option<&'static str>, LoadError> {
    if is_there(&dir.join(TOKENIZER))? {
        return Ok(Some(TOKENIZER));
    }
    let config = Fields::read(&dir.join("config.json"))?;
    let field = &["tokenizer_class"];
    let small = Fields::read_if_there(&dir.join("tokenizer_config.json"))?;
    let class = match small.text(field)? {
        None => config.text(field)?,
        class => class,
    };
    let is_enough = match class.map(|name| name.strip_suffix("Fast").unwrap_or(name)) {
        Some("DistilBertTokenizer" | CONVBERT) => true,
        Some(class) => BERTS.contains(&class) || DPRS.contains(&class),
        None => matches!(config.text(&["model_type"])?, Some("bert" | "distilbert")),
    };
    Ok((is_enough && is_there(&dir.join(WORDS))?).then_some(WORDS))
}

#[cfg(feature = "cpu")]
pub(super) use made::read;

#[cfg(feature = "cpu")]
mod made {
    use tokenizers::models::wordpiece::WordPiece;
    use tokenizers::normalizers::BertNormalizer;
    use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
    use tokenizers::{Tokenizer, decoders};

    use super::{LoadError, Path, WORDS};

    /// Makes a tokenizer of the list; what its class sets is still to be set.
    pub(in crate::bert) fn read(dir: &Path) -> Result<Tokenizer, LoadError> {
        let path = dir.join(WORDS);
        let text = std::fs::read(&path).map_err(|error| LoadError::io(&path, error))?;
        let malformed = |error: tokenizers::Error| LoadError::malformed(&path, error);
        let words = WordPiece::read_bytes(&text).map_err(malformed)?;
        let words = WordPiece::builder().vocab(words).build();
        let mut inner = Tokenizer::new(words.map_err(malformed)?);
        inner.with_normalizer(Some(BertNormalizer::default()));
        inner.with_pre_tokenizer(Some(BertPreTokenizer));
        inner.with_decoder(Some(decoders::wordpiece::WordPiece::default()));
        Ok(inner)
    }
}
