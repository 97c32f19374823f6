//! A BERT without a `tokenizer.json`: of its list of words transformers makes the same tokenizer.

use std::path::Path;

use crate::LoadError;
use crate::catalog::TOKENIZER;
use crate::json::{Fields, is_there};

/// A word on each line, its number that of the line.
pub(crate) const WORDS: &str = "vocab.txt";

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
        Some(class) => ["BertTokenizer", "DistilBertTokenizer"].contains(&class),
        None => matches!(config.text(&["model_type"])?, Some("bert" | "distilbert")),
    };
    Ok((is_enough && is_there(&dir.join(WORDS))?).then_some(WORDS))
}

#[cfg(feature = "cpu")]
pub(super) use made::{frame, read};

#[cfg(feature = "cpu")]
mod made {
    use tokenizers::models::wordpiece::WordPiece;
    use tokenizers::normalizers::BertNormalizer;
    use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
    use tokenizers::processors::bert::BertProcessing;
    use tokenizers::{Tokenizer, decoders};

    use super::{Fields, LoadError, Path, WORDS};
    use crate::added;

    /// Makes a tokenizer of the list; what its class sets is still to be set.
    pub(in crate::bert) fn read(dir: &Path, small: &Fields) -> Result<Tokenizer, LoadError> {
        let path = dir.join(WORDS);
        let text = std::fs::read(&path).map_err(|error| LoadError::io(&path, error))?;
        let malformed = |error: tokenizers::Error| LoadError::malformed(&path, error);
        let words = WordPiece::read_bytes(&text).map_err(malformed)?;
        let unknown = added::name_of(dir, small, "unk_token")?.unwrap_or("[UNK]".to_owned());
        let words = WordPiece::builder().vocab(words).unk_token(unknown).build();
        let mut inner = Tokenizer::new(words.map_err(malformed)?);
        inner.with_normalizer(Some(BertNormalizer::default()));
        inner.with_pre_tokenizer(Some(BertPreTokenizer));
        inner.with_decoder(Some(decoders::wordpiece::WordPiece::default()));
        Ok(inner)
    }

    /// Puts around a text, or two, what the class puts there, once all tokens have their numbers.
    pub(in crate::bert) fn frame(
        inner: &mut Tokenizer,
        dir: &Path,
        small: &Fields,
    ) -> Result<(), LoadError> {
        let mut ends = Vec::new();
        for (purpose, usual) in [("cls_token", "[CLS]"), ("sep_token", "[SEP]")] {
            let name = added::name_of(dir, small, purpose)?.unwrap_or(usual.to_owned());
            let Some(id) = inner.token_to_id(&name) else {
                return Err(small.wrong(purpose, name, &format!("it must be a line of {WORDS}")));
            };
            ends.push((name, id));
        }
        let around = BertProcessing::new(ends.remove(1), ends.remove(0));
        inner.with_post_processor(Some(around));
        Ok(())
    }
}
