//! Which of the vectors of a text's tokens are wanted, or what of them all.

use std::borrow::Cow;

use super::Pooling;

/// What a head gets of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pick {
    /// Every token's vector.
    Tokens,
    /// The first token's.
    First,
    /// The last token's.
    Last,
    /// The average of all.
    Mean,
    /// The largest value of any, per dimension.
    Max,
}

impl From<Pooling> for Pick {
    fn from(pooling: Pooling) -> Self {
        match pooling {
            Pooling::Mean => Self::Mean,
            Pooling::Cls => Self::First,
            Pooling::Max => Self::Max,
            Pooling::LastToken => Self::Last,
        }
    }
}

impl Pick {
    /// Picks from the vectors of a text, which has at least one token.
    pub(crate) fn of_rows(self, rows: &[f32], width: usize) -> Cow<'_, [f32]> {
        let n_tokens = rows.len() / width;
        let (first, others) = rows.split_at(width);
        match self {
            Self::Tokens => Cow::Borrowed(rows),
            Self::First => Cow::Borrowed(first),
            Self::Last => Cow::Borrowed(&rows[(n_tokens - 1) * width..]),
            Self::Mean => {
                let mut vector = first.to_vec();
                for token in others.chunks_exact(width) {
                    vector.iter_mut().zip(token).for_each(|(sum, x)| *sum += x);
                }
                vector.iter_mut().for_each(|sum| *sum /= n_tokens as f32);
                Cow::Owned(vector)
            }
            Self::Max => {
                let mut vector = first.to_vec();
                for token in others.chunks_exact(width) {
                    let pairs = vector.iter_mut().zip(token);
                    // A NaN on either side must not be lost.
                    pairs.for_each(|(max, x)| {
                        *max = if *max >= *x { *max } else { *x + 0.0 * *max }
                    });
                }
                Cow::Owned(vector)
            }
        }
    }
}
