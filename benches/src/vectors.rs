//! Vectors of an encoder, and how far they are from somebody else's.

use anyhow::Result;
use ebb_model::Model;
use ebb_model::bert::{Encoder, Tokens};

/// The vectors of these texts, one after the other.
pub(crate) fn vectors(encoder: &mut Encoder, texts: &[Vec<Tokens>]) -> Result<Vec<Vec<f32>>> {
    let results = encoder.infer(texts)?.into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok(results.into_iter().flatten().map(|embedding| embedding.vector).collect())
}

/// The largest difference of two numbers in the same place. What is not a number is as far off as can be,
/// and so are vectors that are not there or not as long.
pub(crate) fn difference(found: &[Vec<f32>], expected: &[Vec<f32>]) -> f32 {
    let are_alike = found.iter().map(Vec::len).eq(expected.iter().map(Vec::len));
    if !are_alike {
        return f32::INFINITY;
    }
    let numbers = found.iter().flatten().zip(expected.iter().flatten());
    numbers.fold(0.0, |largest, (found, expected)| {
        let difference = (found - expected).abs();
        if difference.is_nan() { f32::INFINITY } else { largest.max(difference) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_differ_by_their_largest_number_and_by_all_where_any_is_missing() {
        let ours = [vec![0.5, -0.5], vec![0.25, 0.0]];
        assert_eq!(difference(&ours, &ours), 0.0);
        assert_eq!(difference(&ours, &[vec![0.5, -0.25], vec![0.25, 0.0]]), 0.25);
        for theirs in [
            &[vec![0.5, -0.5]][..],
            &[vec![0.5, -0.5], vec![0.25]],
            &[vec![0.5], vec![-0.5, 0.25, 0.0]],
            &[vec![0.5, -0.5], vec![0.25, 0.0], vec![]],
            &[],
            &[vec![0.5, -0.5], vec![0.25, f32::NAN]],
            &[vec![0.5, f32::NAN], vec![0.25, 0.0]],
        ] {
            assert_eq!(difference(&ours, theirs), f32::INFINITY, "{theirs:?}");
            assert_eq!(difference(theirs, &ours), f32::INFINITY, "{theirs:?}");
        }
    }
}
