//! From a token to the bytes it stands for, as the decoder of a `tokenizer.json` has it.

use std::collections::HashMap;
use std::path::Path;

use tokenizers::decoders::DecoderWrapper;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;
use tokenizers::{Decoder as _, Tokenizer};

use crate::LoadError;

/// What becomes of a token, one step after the other.
#[derive(Debug, Clone)]
pub(crate) struct Letters {
    steps: Vec<Step>,
    /// What is dropped at the beginning of a text, and how often at most.
    lead: Option<(char, usize)>,
    /// Whether tokens that are bytes stand for one of a text each, right or wrong.
    by_byte: bool,
}

#[derive(Debug, Clone)]
enum Step {
    /// A library's step that takes each token for itself.
    Each(Box<DecoderWrapper>),
    /// This letter is a space, and at the beginning of a text nothing where it is said so.
    Space { letter: char, is_dropped_first: bool },
    /// `<0x0A>` is a byte.
    Byte,
    /// Each letter is a byte, where all of them are of the alphabet.
    Alphabet(HashMap<char, u8>),
    /// A space stands between two tokens.
    Between,
}

/// A token on its way.
enum Form {
    Text(String),
    Bytes(Vec<u8>),
}

impl Letters {
    /// Reads the decoder of a tokenizer that lies at this path.
    ///
    /// # Errors
    /// When it has a step that needs the whole text, or is of another family.
    pub(crate) fn of(tokenizer: &Tokenizer, path: &Path) -> Result<Self, LoadError> {
        let mut letters = Self { steps: Vec::new(), lead: None, by_byte: false };
        let all = match tokenizer.get_decoder() {
            None => {
                letters.steps.push(Step::Between);
                &[][..]
            }
            Some(DecoderWrapper::Sequence(all)) => all.get_decoders(),
            Some(one) => std::slice::from_ref(one),
        };
        let mut is_joined = false;
        for decoder in all {
            letters.add(decoder, &mut is_joined).map_err(|(found, remedy)| {
                LoadError::unsupported(path, "decoder", found, remedy)
            })?;
        }
        Ok(letters)
    }

    /// Adds a step; behind one that joins all tokens there is only the beginning of the text.
    fn add(
        &mut self,
        decoder: &DecoderWrapper,
        is_joined: &mut bool,
    ) -> Result<(), (&'static str, &'static str)> {
        const KNOWN: &str =
            "known are ByteLevel, Metaspace, Replace, ByteFallback, Fuse, Strip and Sequence";
        match decoder {
            DecoderWrapper::Fuse(_) => *is_joined = true,
            DecoderWrapper::Strip(strip) if strip.stop > 0 => {
                return Err(("Strip with stop", "the end of a text that grows is not known"));
            }
            DecoderWrapper::Strip(strip) if *is_joined => {
                self.lead = Some((strip.content, strip.start));
            }
            _ if *is_joined => return Err(("a step behind one that joins all tokens", KNOWN)),
            DecoderWrapper::ByteLevel(_) => {
                self.steps.push(Step::Alphabet(alphabet()));
                *is_joined = true;
            }
            DecoderWrapper::ByteFallback(_) => {
                self.steps.push(Step::Byte);
                self.by_byte = true;
            }
            DecoderWrapper::Metaspace(space) => self.steps.push(Step::Space {
                letter: space.get_replacement(),
                is_dropped_first: space.prepend_scheme != PrependScheme::Never,
            }),
            DecoderWrapper::Replace(_) | DecoderWrapper::Strip(_) => {
                self.steps.push(Step::Each(Box::new(decoder.clone())));
            }
            DecoderWrapper::BPE(_) => return Err(("BPEDecoder", KNOWN)),
            DecoderWrapper::WordPiece(_) => return Err(("WordPiece", KNOWN)),
            DecoderWrapper::CTC(_) => return Err(("CTC", KNOWN)),
            DecoderWrapper::Sequence(_) => return Err(("a Sequence in a Sequence", KNOWN)),
        }
        Ok(())
    }

    /// The bytes that a token stands for; `is_first` at the beginning of a text.
    pub(crate) fn of_token(&self, token: String, is_first: bool) -> Vec<u8> {
        let step = |form, step: &Step| match form {
            Form::Text(text) => step.take(text, is_first),
            bytes @ Form::Bytes(_) => bytes,
        };
        match self.steps.iter().fold(Form::Text(token), step) {
            Form::Text(text) => text.into_bytes(),
            Form::Bytes(bytes) => bytes,
        }
    }

    /// What is dropped at the beginning of a text, and how often at most.
    pub(crate) fn lead(&self) -> Option<(char, usize)> {
        self.lead
    }

    /// How many signs stand for so many bytes that are no text.
    pub(crate) fn n_signs(&self, n_bytes: usize) -> usize {
        // Where a byte is a token the library has one for each, else one for all that belong together.
        if self.by_byte { n_bytes } else { 1 }
    }
}

impl Step {
    fn take(&self, text: String, is_first: bool) -> Form {
        match self {
            Self::Each(decoder) => {
                // Neither a replacement nor a strip can fail on a text.
                let taken = decoder.decode_chain(vec![text.clone()]);
                Form::Text(taken.map_or(text, |all| all.concat()))
            }
            Self::Space { letter, is_dropped_first } if is_first && *is_dropped_first => {
                Form::Text(text.replace(*letter, ""))
            }
            Self::Space { letter, .. } => Form::Text(text.replace(*letter, " ")),
            Self::Byte => byte(&text).map_or(Form::Text(text), |byte| Form::Bytes(vec![byte])),
            Self::Alphabet(alphabet) => {
                let bytes: Option<_> = text.chars().map(|c| alphabet.get(&c).copied()).collect();
                bytes.map_or(Form::Text(text), Form::Bytes)
            }
            Self::Between if is_first => Form::Text(text),
            Self::Between => Form::Text(format!(" {text}")),
        }
    }
}

/// The byte that `<0x0A>` means.
fn byte(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() == 2 { u8::from_str_radix(hex, 16).ok() } else { None }
}

/// The letters that stand for bytes since GPT-2: those that print stand for themselves, and the others
/// for letters from 256 on, in their order.
fn alphabet() -> HashMap<char, u8> {
    let prints = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let hidden = (0..=u8::MAX).filter(|byte| !prints(byte));
    let hidden = hidden.zip(256u32..).map(|(byte, letter)| (char::from_u32(letter), byte));
    let shown = (0..=u8::MAX).filter(prints).map(|byte| (Some(char::from(byte)), byte));
    shown.chain(hidden).filter_map(|(letter, byte)| Some((letter?, byte))).collect()
}

#[cfg(test)]
mod tests {
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;

    use super::*;

    #[test]
    fn the_alphabet_is_that_of_the_library() {
        let ours = alphabet();
        assert_eq!(ours.len(), 256);
        assert_eq!(ours.keys().copied().collect::<std::collections::HashSet<_>>().len(), 256);
        let library = ByteLevel::default();
        for (letter, byte) in ours {
            let text = library.decode_chain(vec![letter.to_string()]).unwrap().concat();
            assert_eq!(text, String::from_utf8_lossy(&[byte]), "{letter}");
        }
    }

    #[test]
    fn only_two_digits_make_a_byte() {
        for (token, expected) in [
            ("<0x0A>", Some(10)),
            ("<0xff>", Some(255)),
            ("<0x1>", None),
            ("<0x00A>", None),
            ("0x0A", None),
        ] {
            assert_eq!(byte(token), expected, "{token}");
        }
    }
}
