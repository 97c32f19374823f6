//! From text to tokens, on the threads that decode: the encoder sees numbers only.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use tokenizers::normalizers::{Lowercase, Sequence};
use tokenizers::{
    Encoding, NormalizerWrapper, PostProcessor, TruncationDirection, TruncationParams,
};

use super::settings::Prompts;
use super::tokenizer_config::TokenizerConfig;
use super::vocabulary::{self, WORDS};
use super::{Settings, Task};
use crate::catalog::{self, TOKENIZER};
use crate::{ItemError, LoadError};

/// A text longer than this is refused: cutting it to tokens would hold a thread for too long.
pub const MAX_TEXT_BYTES: usize = 1 << 20;

/// The tokens of one text, special ones included.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tokens {
    ids: Vec<u32>,
    /// As long as the ids, or empty where all are of the first type.
    types: Vec<u32>,
    n_whole: usize,
}

#[expect(clippy::len_without_is_empty, reason = "a text has its special tokens at least")]
impl Tokens {
    /// Tokens made elsewhere; the encoder refuses what does not fit it.
    pub fn from_ids(ids: Vec<u32>) -> Self {
        let n_whole = ids.len();
        Self { ids, types: Vec::new(), n_whole }
    }

    /// How many there are: what the text costs.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// How many there were before an end of the text was cut off, which is mostly its last.
    pub fn n_whole(&self) -> usize {
        self.n_whole
    }

    /// Whether an end of the text was cut off.
    pub fn is_cut(&self) -> bool {
        self.n_whole > self.len()
    }

    /// Their numbers in the vocabulary.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// To which text of a pair each belongs; empty where all are of the first type.
    pub(crate) fn types(&self) -> &[u32] {
        &self.types
    }
}

/// A token's place in its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Where it begins, in characters.
    pub start: usize,
    /// Where it ends.
    pub end: usize,
    /// The word it belongs to.
    pub word: Option<u32>,
    /// Whether it stands for nothing in the text.
    pub is_special: bool,
}

/// The tokens of a text with their places in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pieces {
    /// The tokens.
    pub tokens: Tokens,
    /// One place per token.
    pub pieces: Vec<Piece>,
}

/// A model's own way to cut a text; cheap to clone, and shared by threads.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    prompts: Arc<Prompts>,
    max_tokens: usize,
    /// The end at which a text is cut off that is too long.
    cut_at: TruncationDirection,
    /// Whether the model is told to which text of a pair a token belongs.
    has_types: bool,
    /// Tokens that a text has besides its own.
    n_around_text: usize,
    /// Tokens that a pair has besides those of its texts.
    n_around_pair: usize,
}

/// One of the texts of a pair, not longer than a pair may be.
#[derive(Clone)]
struct Side {
    encoding: Encoding,
    /// Its tokens before anything was cut off.
    n_whole: usize,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, or the list of words of a BERT that has none, and what counts more than
    /// it in the files beside it.
    pub fn load(dir: &Path) -> Result<Self, LoadError> {
        let settings = Settings::read(dir)?;
        let config = TokenizerConfig::read(dir, settings.config.family)?;
        let file = vocabulary::tokenizer_file(dir)?.unwrap_or(TOKENIZER);
        let path = dir.join(file);
        let malformed = |error: tokenizers::Error| LoadError::malformed(&path, error);
        let mut inner = if file == WORDS {
            vocabulary::read(dir)?
        } else {
            let text = catalog::read_tokenizer(dir)?;
            guarded(&path, || tokenizers::Tokenizer::from_bytes(&text))?
        };
        let cut_at = config.cut_at(inner.get_truncation().map(|it| it.direction))?;
        // What else the file says of padding and truncation was meant for whoever saved it.
        inner.with_padding(None).with_truncation(None).map_err(malformed)?;
        config.apply(&mut inner, dir)?;
        check_frame(&inner, &settings, &path)?;
        let max_length = settings.max_tokens;
        let truncation =
            TruncationParams { max_length, direction: cut_at, ..TruncationParams::default() };
        inner.with_truncation(Some(truncation)).map_err(malformed)?;
        let lowers = inner.get_normalizer().is_some_and(lowers_case);
        if settings.lower_case && !lowers {
            let own = inner.get_normalizer().cloned();
            let all = std::iter::once(NormalizerWrapper::Lowercase(Lowercase)).chain(own);
            inner.with_normalizer(Some(Sequence::new(all.collect())));
        }
        let n_around =
            |is_pair| inner.get_post_processor().map_or(0, |around| around.added_tokens(is_pair));
        let (n_around_text, n_around_pair) = (n_around(false), n_around(true));
        Ok(Self {
            inner: Arc::new(inner),
            prompts: settings.prompts.into(),
            max_tokens: max_length,
            cut_at,
            has_types: config.has_types()?,
            n_around_text,
            n_around_pair,
        })
    }

    /// Cuts a query and each of the documents into the tokens of one pair, the longer of them first
    /// where there are too many.
    pub fn tokenize_pairs<'a>(
        &self,
        query: &str,
        documents: impl IntoIterator<Item = &'a str>,
    ) -> Result<Vec<Tokens>, ItemError> {
        let query = self.side("query", query)?;
        let pair = |document| self.pair(query.clone(), self.side("document", document)?);
        documents.into_iter().map(pair).collect()
    }

    fn side(&self, field: &str, text: &str) -> Result<Side, ItemError> {
        check_length(field, text)?;
        let mut encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|error| uncut(&format!("the {field}"), &error))?;
        // Where both texts of a pair have a rest the library pairs each piece with each: of two of
        // 30 kB and a model of 64 tokens these were 39 thousand, and 1.5 GB.
        let rest = encoding.take_overflowing();
        let n_whole = encoding.len() + rest.iter().map(Encoding::len).sum::<usize>();
        Ok(Side { encoding, n_whole })
    }

    fn pair(&self, mut query: Side, mut document: Side) -> Result<Tokens, ItemError> {
        let room = self.max_tokens.saturating_sub(self.n_around_pair);
        let n_whole = query.n_whole + document.n_whole + self.n_around_pair;
        let shares = share(query.n_whole, document.n_whole, room);
        for (side, n_tokens) in [(&mut query, shares.0), (&mut document, shares.1)] {
            side.encoding.truncate(n_tokens, 0, self.cut_at);
            drop(side.encoding.take_overflowing());
        }
        // Without a post-processor nobody else says so.
        document.encoding.set_type_ids(vec![1; document.encoding.len()]);
        let encoding = self.inner.post_process(query.encoding, Some(document.encoding), true);
        let encoding = encoding.map_err(|error| uncut("the pair", &error))?;
        let mut types = encoding.get_type_ids().to_vec();
        if !self.has_types || types.iter().all(|of| *of == 0) {
            types.clear();
        }
        Ok(Tokens { ids: encoding.get_ids().to_vec(), types, n_whole })
    }

    /// The prompt of this name; without one that of the model, which is mostly empty.
    pub fn prompt(&self, name: Option<&str>) -> Result<&str, ItemError> {
        let Some(name) = name else { return Ok(&self.prompts.default) };
        let Some(prompt) = self.prompts.named.get(name) else {
            let known: Vec<&str> = self.prompts.named.keys().map(String::as_str).collect();
            let remedy = match known[..] {
                [] => "the model has no prompts, leave it out".to_owned(),
                _ => format!("the model's are {}", known.join(", ")),
            };
            return Err(ItemError::new(format!("prompt_name is {name:?}; {remedy}")));
        };
        if !self.prompts.are_pooled && !prompt.is_empty() {
            let why = "the model leaves prompts out of the pooling, which is not known here";
            return Err(ItemError::new(format!("prompt_name is {name:?}; {why}")));
        }
        Ok(prompt)
    }

    /// Cuts a text into tokens, at most [`Self::max_tokens`] of them, with the model's own prompt.
    pub fn tokenize(&self, text: &str) -> Result<Tokens, ItemError> {
        self.tokenize_after(&self.prompts.default, text)
    }

    /// Cuts a text into tokens, and tells where in the text each of them stands.
    pub fn tokenize_pieces(&self, text: &str) -> Result<Pieces, ItemError> {
        check_length("input", text)?;
        let encoding = self.inner.encode_char_offsets(text, true);
        let encoding = encoding.map_err(|error| uncut("input", &error))?;
        let words = encoding.get_word_ids().iter();
        let places =
            encoding.get_offsets().iter().zip(words).zip(encoding.get_special_tokens_mask());
        let pieces = places.map(|(((start, end), word), special)| Piece {
            start: *start,
            end: *end,
            word: *word,
            is_special: *special != 0,
        });
        Ok(Pieces { tokens: self.tokens(&encoding), pieces: pieces.collect() })
    }

    /// Cuts a text with this before it.
    pub fn tokenize_after(&self, prompt: &str, text: &str) -> Result<Tokens, ItemError> {
        check_length("input", text)?;
        let encoding = if prompt.is_empty() {
            self.inner.encode_fast(text, true)
        } else {
            self.inner.encode_fast(format!("{prompt}{text}"), true)
        };
        let encoding = encoding.map_err(|error| uncut("input", &error))?;
        Ok(self.tokens(&encoding))
    }

    fn tokens(&self, encoding: &Encoding) -> Tokens {
        let tokens = Tokens::from_ids(encoding.get_ids().to_vec());
        // What is cut off comes in pieces with the same around each as around a text.
        let own = |piece: &Encoding| piece.len().saturating_sub(self.n_around_text);
        let n_cut: usize = encoding.get_overflowing().iter().map(own).sum();
        Tokens { n_whole: tokens.len() + n_cut, ..tokens }
    }

    /// Tokens a text is cut to.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }
}

/// Holds what stands around each text against the model: it must know these tokens, and have room
/// for more than them.
fn check_frame(
    inner: &tokenizers::Tokenizer,
    settings: &Settings,
    path: &Path,
) -> Result<(), LoadError> {
    let mut frame = guarded(path, || inner.encode_fast("", true))?;
    if settings.task() == Task::Reranking {
        frame = guarded(path, || inner.encode_fast(("", ""), true))?;
    }
    let (ids, vocabulary) = (frame.get_ids(), settings.config.vocabulary);
    if let Some(id) = ids.iter().find(|id| **id as usize >= vocabulary) {
        let message = format!(
            "token {id} is of every text, and vocab_size in config.json is {vocabulary}; use the \
             tokenizer of this model"
        );
        return Err(LoadError::malformed(path, message));
    }
    if ids.len() >= settings.max_tokens {
        let message = format!(
            "{} tokens are of every text, and there is room for {}; raise max_seq_length in \
             sentence_bert_config.json or model_max_length in tokenizer_config.json",
            ids.len(),
            settings.max_tokens
        );
        return Err(LoadError::malformed(path, message));
    }
    Ok(())
}

/// How many tokens each text of a pair may keep, as the library has it: those of the longer one go
/// first, and where even the shorter one is too long for its half, each has half.
fn share(n_query: usize, n_document: usize, room: usize) -> (usize, usize) {
    if n_query + n_document <= room {
        return (n_query, n_document);
    }
    let less = n_query.min(n_document).min(room / 2);
    if n_query > n_document { (room - less, less) } else { (less, room - less) }
}

/// What the library makes of a file; where it contradicts itself some of it panics.
pub(crate) fn guarded<T>(
    path: &Path,
    run: impl FnOnce() -> tokenizers::Result<T>,
) -> Result<T, LoadError> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(made) => made.map_err(|error| LoadError::malformed(path, error)),
        Err(_) => Err(LoadError::malformed(path, "it contradicts itself; fetch it again")),
    }
}

pub(crate) fn check_length(field: &str, text: &str) -> Result<(), ItemError> {
    if text.len() <= MAX_TEXT_BYTES {
        return Ok(());
    }
    let n_bytes = text.len();
    let message = format!("{field} is a text of {n_bytes} bytes; send at most {MAX_TEXT_BYTES}");
    Err(ItemError::new(message))
}

/// A text that the library cannot cut: any text can be, by a tokenizer that has all that it names.
pub(crate) fn uncut(field: &str, error: &tokenizers::Error) -> ItemError {
    ItemError::of_model(format!("{field} cannot be cut into tokens: {error}"))
}

fn lowers_case(normalizer: &NormalizerWrapper) -> bool {
    match normalizer {
        NormalizerWrapper::Lowercase(_) => true,
        NormalizerWrapper::BertNormalizer(bert) => bert.lowercase,
        NormalizerWrapper::Sequence(all) => all.as_ref().iter().any(lowers_case),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenizer(name: &str) -> Tokenizer {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
        Tokenizer::load(&data.join(name)).unwrap()
    }

    /// The same, without an end to its texts.
    fn uncut(tokenizer: &Tokenizer) -> tokenizers::Tokenizer {
        let mut inner = tokenizers::Tokenizer::clone(&tokenizer.inner);
        inner.with_truncation(None).unwrap();
        inner
    }

    #[test]
    fn how_long_a_text_was_is_known_after_the_cut() {
        for name in ["tiny-bert", "tiny-roberta", "tiny-xlm-roberta", "tiny-tags-distilbert"] {
            let tokenizer = tokenizer(name);
            let (whole, most) = (uncut(&tokenizer), tokenizer.max_tokens());
            for n_times in (most - 9..=most).chain([0, 1, 2 * most, 1_500]) {
                let text = format!("{}</s> [SEP]", "a ".repeat(n_times));
                let n_tokens = whole.encode_fast(&*text, true).unwrap().len();
                let cut = tokenizer.tokenize(&text).unwrap();
                let what = format!("{name}: {n_times} words");
                let expected = (n_tokens.min(most), n_tokens, n_tokens > most);
                assert_eq!((cut.len(), cut.n_whole(), cut.is_cut()), expected, "{what}");
                assert_eq!(tokenizer.tokenize_pieces(&text).unwrap().tokens, cut, "{what}");
            }
        }
    }

    #[test]
    fn a_pair_is_cut_as_the_library_cuts_it() {
        for name in ["tiny-rerank-bert", "tiny-rerank-xlm-roberta"] {
            let tokenizer = tokenizer(name);
            let whole = uncut(&tokenizer);
            let lengths = [0, 1, 29, 30, 31, 60, 61, 62, 130];
            for (query, document) in lengths.iter().flat_map(|n| lengths.map(|m| (*n, m))) {
                let texts = (&*"warm ".repeat(query), &*"the pump ".repeat(document));
                let expected = tokenizer.inner.encode_fast(texts, true).unwrap();
                let found = tokenizer.tokenize_pairs(texts.0, [texts.1]).unwrap().remove(0);
                let what = format!("{name}: {query} and {document}");
                assert_eq!(found.ids, expected.get_ids(), "{what}");
                let one_type = vec![0; found.len()];
                let types = if found.types.is_empty() { &one_type } else { &found.types };
                assert_eq!(types, expected.get_type_ids(), "{what}");
                let n_whole = whole.encode_fast(texts, true).unwrap().len();
                assert_eq!(found.n_whole(), n_whole, "{what}");
                assert_eq!(found.is_cut(), !expected.get_overflowing().is_empty(), "{what}");
            }
        }
    }

    #[test]
    fn a_text_that_a_tokenizer_has_no_token_for_is_the_models_fault() {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-rerank-bert");
        let dir = tempfile::tempdir().unwrap();
        for name in ["config.json", "tokenizer.json"] {
            std::fs::copy(data.join(name), dir.path().join(name)).unwrap();
        }
        let config = serde_json::json!({"unk_token": "[NONE]"}).to_string();
        std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
        let tokenizer = Tokenizer::load(dir.path()).unwrap();
        let odd = "\u{1f30a}";
        let errors = [
            tokenizer.tokenize(odd).unwrap_err(),
            tokenizer.tokenize_pieces(odd).unwrap_err(),
            tokenizer.tokenize_pairs(odd, ["the pump"]).unwrap_err(),
        ];
        for error in errors {
            assert!(error.to_string().contains("cannot be cut into tokens"), "{error}");
            assert!(error.is_models(), "{error}");
        }
        let long = "a".repeat(MAX_TEXT_BYTES + 1);
        assert!(!tokenizer.tokenize(&long).unwrap_err().is_models());
    }

    #[test]
    fn what_is_cut_off_of_one_text_is_not_paired_with_what_is_of_the_other() {
        let tokenizer = tokenizer("tiny-rerank-bert");
        let side = |word: &str| tokenizer.side("query", &word.repeat(5_000)).unwrap();
        let (query, document) = (side("warm "), side("pump "));
        for side in [&query, &document] {
            assert_eq!((side.encoding.len(), side.n_whole), (64, 5_000));
            assert!(side.encoding.get_overflowing().is_empty());
        }
        let pair = tokenizer.pair(query, document).unwrap();
        assert_eq!((pair.len(), pair.n_whole()), (64, 10_003));
    }
}
