//! An answer as it is written: from tokens to text, whole characters at a time.

use super::Tokenizer;
use super::stops::Stops;

/// The text of an answer, which grows with its tokens and ends before a stop sequence.
///
/// What [`news`](Self::news) gives adds up to [`text`](Self::text), however the tokens came. Each
/// token is looked at once.
#[derive(Debug)]
pub struct Transcript {
    tokenizer: Tokenizer,
    stops: Stops,
    text: String,
    /// Bytes of the text that were told.
    n_told: usize,
    /// Bytes of a character of which more are to come.
    part: Vec<u8>,
    /// What is dropped before the first letter, and how often yet.
    lead: Option<(char, usize)>,
    is_beginning: bool,
    is_over: bool,
    is_stopped: bool,
    n_tokens: usize,
}

impl Transcript {
    /// An empty one. `goes_on` where the text is the end of another, and keeps the space before it.
    pub fn new(
        tokenizer: Tokenizer,
        goes_on: bool,
        stops: impl IntoIterator<Item = String>,
    ) -> Self {
        let lead = tokenizer.letters().lead().filter(|_| !goes_on);
        Self {
            tokenizer,
            stops: Stops::new(stops),
            text: String::new(),
            n_told: 0,
            part: Vec::new(),
            lead,
            is_beginning: !goes_on,
            is_over: false,
            is_stopped: false,
            n_tokens: 0,
        }
    }

    /// Reads on; whether a stop sequence has ended the text, behind which nothing is read.
    pub fn read(&mut self, tokens: &[u32]) -> bool {
        for token in tokens {
            if self.is_over {
                break;
            }
            self.n_tokens += 1;
            let Some(shown) = self.tokenizer.shown(*token) else { continue };
            let bytes = self.tokenizer.letters().of_token(shown, self.is_beginning);
            self.is_beginning = false;
            let start = self.text.len();
            self.write(&bytes);
            self.look_for_stops(start);
        }
        self.is_over
    }

    /// Ends the text: a character that is not whole becomes a sign that says so. Whether a stop
    /// sequence was found, here or before.
    pub fn end(&mut self) -> bool {
        if !self.is_over {
            let start = self.text.len();
            let n_bytes = std::mem::take(&mut self.part).len();
            if n_bytes > 0 {
                self.write_signs(n_bytes);
            }
            self.look_for_stops(start);
            self.is_over = true;
        }
        self.is_stopped
    }

    /// What was written since the last call and can no longer become part of a stop sequence.
    pub fn news(&mut self) -> &str {
        let n_held = if self.is_over { 0 } else { self.stops.n_held() };
        let start = self.n_told;
        self.n_told = self.text.len() - n_held;
        &self.text[start..self.n_told]
    }

    /// All that was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Tokens that were read, to the last of a stop sequence.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// Cuts the text off before a stop sequence in what stands from here on, or ends in it.
    fn look_for_stops(&mut self, start: usize) {
        if let Some((n_read, length)) = self.stops.read(&self.text[start..]) {
            self.text.truncate(start + n_read - length);
            (self.is_over, self.is_stopped) = (true, true);
        }
    }

    /// Adds bytes, as far as they are whole characters.
    fn write(&mut self, bytes: &[u8]) {
        let mut part = std::mem::take(&mut self.part);
        part.extend_from_slice(bytes);
        let mut rest = &part[..];
        while let Some(chunk) = rest.utf8_chunks().next() {
            self.write_text(chunk.valid());
            let (n_valid, n_bytes) = (chunk.valid().len(), chunk.invalid().len());
            let is_cut_off = std::str::from_utf8(&rest[n_valid..])
                .is_err_and(|error| error.error_len().is_none());
            if is_cut_off {
                self.part = rest[n_valid..].to_vec();
                break;
            }
            if n_bytes > 0 {
                self.write_signs(n_bytes);
            }
            rest = &rest[n_valid + n_bytes..];
        }
    }

    fn write_signs(&mut self, n_bytes: usize) {
        for _ in 0..self.tokenizer.letters().n_signs(n_bytes) {
            self.write_text("\u{fffd}");
        }
    }

    fn write_text(&mut self, mut text: &str) {
        while let Some((letter, n_times)) = self.lead
            && !text.is_empty()
        {
            match text.strip_prefix(letter) {
                Some(rest) if n_times > 0 => {
                    text = rest;
                    self.lead = Some((letter, n_times - 1));
                }
                _ => self.lead = None,
            }
        }
        self.text.push_str(text);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn byte_level() -> Tokenizer {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
        Tokenizer::load(&data.join("tiny-llama")).unwrap()
    }

    /// One that writes spaces as letters and bytes as tokens, with this decoder.
    fn by_pieces(decoder: &Value) -> Tokenizer {
        let tokens =
            ["<unk>", "<s>", "</s>", "\u{2581}", "a", "b", "ab", "\u{2581}a", "\u{2581}ab"];
        let bytes = (0..=255).map(|byte| format!("<0x{byte:02X}>"));
        let tokens = tokens.map(str::to_owned).into_iter().chain(bytes);
        let vocabulary: serde_json::Map<_, _> =
            tokens.zip(0..).map(|(token, id)| (token, Value::from(id))).collect();
        let special = |id: u32, content: &str| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false, "special": true})
        };
        let file = json!({
            "added_tokens": [special(1, "<s>"), special(2, "</s>")],
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "\u{2581}"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"},
            ]},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
            },
            "decoder": decoder,
            "model": {"type": "BPE", "unk_token": "<unk>", "byte_fallback": true, "fuse_unk": true,
                      "vocab": vocabulary, "merges": ["a b", "\u{2581} a", "\u{2581} ab"]},
        });
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer.json"), file.to_string()).unwrap();
        Tokenizer::load(dir.path()).unwrap()
    }

    fn llama_like() -> Tokenizer {
        by_pieces(&json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]}))
    }

    fn metaspace() -> Tokenizer {
        let space =
            json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always"});
        by_pieces(&json!({"type": "Sequence", "decoders": [{"type": "ByteFallback"}, space]}))
    }

    /// What was told, piece by piece, and the whole.
    fn told(mut transcript: Transcript, parts: &[Vec<u32>]) -> (Vec<String>, String) {
        let mut pieces = Vec::new();
        for part in parts {
            transcript.read(part);
            pieces.push(transcript.news().to_owned());
        }
        transcript.end();
        pieces.push(transcript.news().to_owned());
        (pieces, transcript.text().to_owned())
    }

    /// The bytes that tokens of the tokenizer like Llama's stand for, from its own table.
    fn bytes_of(tokens: &[u32]) -> Vec<u8> {
        let words: [&[u8]; 9] = [b"<unk>", b"", b"", b" ", b"a", b"b", b"ab", b" a", b" ab"];
        let of = |token: &u32| match usize::try_from(*token).unwrap() {
            word @ 0..9 => words[word].to_vec(),
            byte => vec![(byte - 9) as u8],
        };
        tokens.iter().flat_map(of).collect()
    }

    /// Whole characters as they are, and a sign for each byte of what is none.
    fn in_signs(mut bytes: &[u8]) -> String {
        let mut text = String::new();
        while !bytes.is_empty() {
            let whole = (1..=4.min(bytes.len())).find_map(|n| {
                let character = std::str::from_utf8(&bytes[..n]).ok()?;
                Some((character.to_owned(), n))
            });
            let (character, n) = whole.unwrap_or_else(|| ("\u{fffd}".to_owned(), 1));
            text.push_str(&character);
            bytes = &bytes[n..];
        }
        text
    }

    fn parts(n_tokens: u32) -> impl Strategy<Value = Vec<Vec<u32>>> {
        prop::collection::vec(prop::collection::vec(0..n_tokens, 0..4), 0..12)
    }

    proptest! {
        #[test]
        fn pieces_add_up_to_the_text_of_the_library(parts in parts(390)) {
            let tokenizer = byte_level();
            let (pieces, text) = told(Transcript::new(tokenizer.clone(), false, []), &parts);
            prop_assert_eq!(pieces.concat(), &*text);
            prop_assert_eq!(text, tokenizer.decode(&parts.concat()));
        }

        #[test]
        fn pieces_of_words_add_up_to_it_where_all_bytes_are_letters(parts in parts(265)) {
            for tokenizer in [llama_like(), metaspace()] {
                let (pieces, text) = told(Transcript::new(tokenizer.clone(), false, []), &parts);
                prop_assert_eq!(pieces.concat(), &*text);
                let library = tokenizer.decode(&parts.concat());
                if !library.contains('\u{fffd}') {
                    prop_assert_eq!(&text, &library);
                }
            }
            let (_, text) = told(Transcript::new(llama_like(), true, []), &parts);
            prop_assert_eq!(text, in_signs(&bytes_of(&parts.concat())));
        }

        #[test]
        fn a_text_that_was_cut_is_written_as_it_was(text in "[ab ßÅ🚀温\n]{0,12}", n in 1..5usize) {
            for tokenizer in [byte_level(), llama_like(), metaspace()] {
                let tokens = tokenizer.tokenize("text", &text).unwrap();
                let parts: Vec<_> = tokens.chunks(n).map(<[u32]>::to_vec).collect();
                let (pieces, found) = told(Transcript::new(tokenizer, false, []), &parts);
                prop_assert_eq!(pieces.concat(), &*found);
                prop_assert_eq!(found, &*text);
            }
        }

        #[test]
        fn nothing_is_told_that_a_stop_takes_back(
            parts in parts(390),
            at in 0..30usize,
            n in 1..4usize,
            other in "[a-e]{1,2}",
        ) {
            let tokenizer = byte_level();
            let whole = tokenizer.decode(&parts.concat());
            let mut stops: Vec<String> = vec![other];
            stops.extend(Some(whole.chars().skip(at).take(n).collect()).filter(|it: &String| !it.is_empty()));
            let end = |stop: &String| whole.find(stop).map(|start| (start + stop.len(), stop.len()));
            let first = stops.iter().filter_map(end).min_by_key(|(end, n)| (*end, usize::MAX - n));
            let expected = first.map_or(&*whole, |(end, n)| &whole[..end - n]);
            let (pieces, text) = told(Transcript::new(tokenizer, false, stops), &parts);
            prop_assert_eq!(pieces.concat(), &*text);
            prop_assert_eq!(text, expected);
        }
    }

    #[test]
    fn the_end_of_a_text_keeps_its_space() {
        for tokenizer in [llama_like(), metaspace()] {
            let words = [7, 8].map(|token| vec![token]);
            let text = |goes_on| told(Transcript::new(tokenizer.clone(), goes_on, []), &words).1;
            assert_eq!((&*text(false), &*text(true)), ("a ab", " a ab"));
        }
    }

    #[test]
    fn a_character_is_told_once_it_is_whole() {
        let tokenizer = llama_like();
        let byte = |byte: u8| 9 + u32::from(byte);
        let parts: Vec<_> =
            "é".bytes().map(|it| vec![byte(it)]).chain([vec![byte(0xf0)]]).collect();
        let (pieces, _) = told(Transcript::new(tokenizer, false, []), &parts);
        assert_eq!(pieces, ["", "é", "", "\u{fffd}"]);
    }

    #[test]
    fn a_stop_of_signs_is_found_at_the_end_too() {
        let read = |stop: &str| {
            let mut transcript = Transcript::new(llama_like(), false, [stop.to_owned()]);
            // The first byte of a letter of two.
            assert!(!transcript.read(&[8, 9 + 0xc3]));
            let is_stopped = transcript.end();
            (is_stopped, transcript.text().to_owned(), transcript.end())
        };
        assert_eq!(read("\u{fffd}"), (true, "ab".to_owned(), true));
        assert_eq!(read("x"), (false, "ab\u{fffd}".to_owned(), false));
    }

    #[test]
    fn nothing_is_read_behind_a_stop() {
        let mut transcript = Transcript::new(llama_like(), false, ["b a".to_owned()]);
        assert!(!transcript.read(&[8]));
        assert_eq!(transcript.news(), "a");
        assert!(transcript.read(&[7, 8, 8]));
        assert_eq!(transcript.news(), "");
        assert!(transcript.read(&[8]));
        transcript.end();
        assert_eq!((transcript.text(), transcript.n_tokens()), ("a", 2));
    }

    #[test]
    fn a_decoder_that_needs_the_whole_text_is_refused() {
        for (decoder, says) in [
            (json!({"type": "WordPiece", "prefix": "##", "cleanup": true}), "decoder is WordPiece"),
            (
                json!({"type": "Strip", "content": " ", "start": 0, "stop": 1}),
                "decoder is Strip with",
            ),
        ] {
            let file = json!({"decoder": decoder, "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}});
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("tokenizer.json"), file.to_string()).unwrap();
            let error = Tokenizer::load(dir.path()).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn without_a_decoder_a_space_stands_between_tokens() {
        let tokenizer = by_pieces(&Value::Null);
        let (_, text) =
            told(Transcript::new(tokenizer.clone(), false, []), &[vec![4, 1], vec![5, 6]]);
        assert_eq!((&*text, text.clone()), ("a b ab", tokenizer.decode(&[4, 1, 5, 6])));
    }
}
