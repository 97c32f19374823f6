//! Texts that end an answer, found while it is written.

/// Sequences of a job, and how much of each the end of the text may be the beginning of.
///
/// The text is looked at byte by byte, and each byte once: how it was cut into tokens and turns is
/// no matter.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Stops(Vec<Stop>);

/// A text that ends an answer, with the tables of Knuth, Morris and Pratt.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stop {
    text: Vec<u8>,
    /// The longest beginning of the text that also ends its first `n` bytes, and is not these, by
    /// `n - 1`.
    borders: Vec<usize>,
    /// How many of its bytes end what was read.
    n_read: usize,
}

impl Stops {
    /// Looks for these; an empty one is never found.
    pub(crate) fn new(texts: impl IntoIterator<Item = String>) -> Self {
        let texts = texts.into_iter().filter(|text| !text.is_empty());
        Self(texts.map(|text| Stop::new(text.into_bytes())).collect())
    }

    /// Reads on until a sequence is complete: how many bytes of `text` were read then, and how long
    /// the sequence is. Of two that are complete at once it is the longer one.
    pub(crate) fn read(&mut self, text: &str) -> Option<(usize, usize)> {
        if self.0.is_empty() {
            return None;
        }
        text.bytes().enumerate().find_map(|(at, byte)| {
            let complete = self.0.iter_mut().filter_map(|stop| stop.read(byte)).max()?;
            Some((at + 1, complete))
        })
    }

    /// Bytes at the end of what was read that may turn out to begin a sequence.
    pub(crate) fn n_held(&self) -> usize {
        self.0.iter().map(|stop| stop.n_read).max().unwrap_or(0)
    }
}

impl Stop {
    fn new(text: Vec<u8>) -> Self {
        let mut borders = vec![0; text.len()];
        let mut length = 0;
        for at in 1..text.len() {
            while length > 0 && text[at] != text[length] {
                length = borders[length - 1];
            }
            length += usize::from(text[at] == text[length]);
            borders[at] = length;
        }
        Self { text, borders, n_read: 0 }
    }

    /// Its length, if this byte completes it.
    fn read(&mut self, byte: u8) -> Option<usize> {
        let mut n_read = self.n_read;
        while n_read > 0 && self.text[n_read] != byte {
            n_read = self.borders[n_read - 1];
        }
        n_read += usize::from(self.text[n_read] == byte);
        let is_complete = n_read == self.text.len();
        self.n_read = if is_complete { 0 } else { n_read };
        is_complete.then_some(n_read)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stops(texts: &[&str]) -> Stops {
        Stops::new(texts.iter().map(|text| (*text).to_owned()))
    }

    #[test]
    fn the_first_sequence_that_is_complete_is_found() {
        for (texts, text, found) in [
            (&["b"][..], "aabb", Some((3, 1))),
            (&["abcd", "bc"], "xabcd", Some((4, 2))),
            (&["bc", "abc"], "abc", Some((3, 3))),
            (&["aab"], "aaaab", Some((5, 3))),
            (&["ß"], "a\u{dd}ß", Some((5, 2))),
            (&["", "x"], "abc", None),
            (&[], "abc", None),
        ] {
            assert_eq!(stops(texts).read(text), found, "{texts:?} in {text}");
        }
    }

    #[test]
    fn what_may_begin_a_sequence_is_held() {
        let mut stops = stops(&["\n\nUser:", "\nend"]);
        for (text, held) in [("a\n", 1), ("\nUse", 5), (" \n", 1), ("en", 3), ("t", 0)] {
            assert_eq!((stops.read(text), stops.n_held()), (None, held), "{text}");
        }
    }

    proptest! {
        #[test]
        fn it_is_found_where_a_plain_search_finds_it(
            texts in prop::collection::vec("[ab]{1,4}", 0..4),
            parts in prop::collection::vec("[ab]{0,5}", 0..8),
        ) {
            let whole = parts.concat();
            let ends = |text: &String| whole.find(text).map(|at| (at + text.len(), text.len()));
            let first = texts.iter().filter_map(ends).min_by_key(|(end, n)| (*end, usize::MAX - n));
            let mut stops = Stops::new(texts.clone());
            let mut n_before = 0;
            let mut found = None;
            for part in &parts {
                if let Some((n_read, length)) = stops.read(part) {
                    found = Some((n_before + n_read, length));
                    break;
                }
                n_before += part.len();
                let read = &whole[..n_before];
                let is_held = |n: &usize| {
                    texts.iter().any(|text| text.starts_with(&read[n_before - n..]))
                };
                let held = (1..=n_before.min(4)).rev().find(is_held).unwrap_or(0);
                prop_assert_eq!(stops.n_held(), held);
            }
            prop_assert_eq!(found, first);
        }
    }
}
