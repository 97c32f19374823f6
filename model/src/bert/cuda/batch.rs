//! A run of texts as the kernels want them: tables of numbers, one behind the other.

use std::ops::Range;

use crate::bert::Tokens;
use crate::bert::weights::Embeddings;

/// Tokens of a run: enough for every processor of the largest cards. More are several runs, so that
/// the card works while the host reads what the last one made.
#[cfg(feature = "cuda")]
pub(super) const MOST_TOKENS: usize = 16384;
/// Tokens of a text that one warp attends for.
const SHORT: usize = 16;
/// Tokens of a longer text that a block attends for.
const LONG: usize = 64;

/// The tables, and where each begins.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) table: Vec<i32>,
    pub(super) n_tokens: usize,
    pub(super) n_texts: usize,
    /// Where texts begin, and the last one ends.
    pub(super) starts: usize,
    /// Four numbers for each block: where its text begins, how long that is, its first token in it.
    pub(super) short: Range<usize>,
    pub(super) long: Range<usize>,
}

impl Batch {
    pub(super) fn new(texts: &[&Tokens], embeddings: &Embeddings) -> Self {
        let n_tokens = texts.iter().map(|text| text.len()).sum();
        let mut table = Vec::with_capacity(4 * n_tokens + 5 * texts.len() + 8);
        table.extend(texts.iter().flat_map(|text| text.ids()).map(|id| *id as i32));
        let places = texts.iter().flat_map(|text| embeddings.places(text));
        table.extend(places.map(|place| place as i32));
        for text in texts {
            let end = table.len() + text.len();
            // A text of the first type alone does not list it.
            table.extend(text.types().iter().take(text.len()).map(|of| *of as i32));
            table.resize(end, 0);
        }
        let starts = table.len();
        let begins = texts.iter().scan(0, |start, text| {
            let begin = *start;
            *start += text.len();
            Some(begin)
        });
        let begins: Vec<usize> = begins.collect();
        table.extend(begins.iter().map(|start| *start as i32));
        table.push(n_tokens as i32);
        // Blocks are read four numbers at once.
        table.resize(table.len().next_multiple_of(4), 0);
        let mut blocks = |is_short: bool, step: usize| {
            let from = table.len();
            for (start, text) in begins.iter().zip(texts) {
                if (text.len() <= SHORT) == is_short {
                    let block = |first| [*start as i32, text.len() as i32, first as i32, 0];
                    table.extend((0..text.len()).step_by(step).flat_map(block));
                }
            }
            from..table.len()
        };
        let (short, long) = (blocks(true, SHORT), blocks(false, LONG));
        Self { table, n_tokens, n_texts: texts.len(), starts, short, long }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each text of this many tokens, told apart by their ids.
    fn texts(lengths: &[usize]) -> Vec<Tokens> {
        let of = |(nth, n): (usize, &usize)| Tokens::from_ids(vec![nth as u32; *n]);
        lengths.iter().enumerate().map(of).collect()
    }

    #[test]
    fn tables_lie_one_behind_the_other() {
        let texts = texts(&[2, 70, 16]);
        let texts: Vec<&Tokens> = texts.iter().collect();
        let batch = Batch::new(&texts, &Embeddings::of_positions(0));
        let Batch { table, n_tokens, n_texts, starts, short, long } = &batch;
        assert_eq!((*n_tokens, *n_texts, *starts), (88, 3, 3 * 88));
        assert_eq!(table[..3], [0, 0, 1]);
        assert_eq!(table[88..][..4], [0, 1, 0, 1], "each text has places of its own");
        assert_eq!(table[*starts..][..4], [0, 2, 72, 88]);
        assert_eq!(table[short.clone()], [0, 2, 0, 0, 72, 16, 0, 0]);
        assert_eq!(table[long.clone()], [2, 70, 0, 0, 2, 70, 64, 0]);
        // Four at once are read from where a block begins.
        assert!(short.start.is_multiple_of(4) && long.start.is_multiple_of(4));
    }

    proptest::proptest! {
        #[test]
        fn every_token_is_attended_for_once(
            lengths in proptest::collection::vec(1usize..600, 1..20),
        ) {
            let texts = texts(&lengths);
            let texts: Vec<&Tokens> = texts.iter().collect();
            let batch = Batch::new(&texts, &Embeddings::of_positions(2));
            let mut seen = vec![0; batch.n_tokens];
            for (range, rows) in [(&batch.short, SHORT), (&batch.long, LONG)] {
                for block in batch.table[range.clone()].chunks_exact(4) {
                    let [start, length, first] = [0, 1, 2].map(|n| block[n] as usize);
                    let end = length.min(first + rows);
                    seen[start + first..start + end].iter_mut().for_each(|times| *times += 1);
                }
            }
            proptest::prop_assert!(seen.iter().all(|times| *times == 1), "{:?}", seen);
        }
    }
}
