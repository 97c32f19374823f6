//! The file of weights, from text to typed values. Pure.
//!
//! ```toml
//! [weights]              # by queue, on the broker of the intake
//! jobs-stable = 95
//! jobs-canary = 5
//! ```

use ebb_telemetry::{Text, TextError};
use toml::de::DeValue;

use crate::weights::{Share, Weights};

/// Reads the text of a file.
///
/// # Errors
/// Names the line, and what to write instead.
pub(crate) fn parse(text: &str) -> Result<Weights, TextError> {
    let text = Text(text);
    let root = text.root()?;
    let (mut shares, mut place) = (Vec::new(), 0..0);
    for (key, value) in root.get_ref() {
        if key.get_ref() != "weights" {
            let TextError { line, words } = text.unknown("", key, &["weights"]);
            let words = format!("{words}; write [weights], and QUEUE = WEIGHT below it");
            return Err(TextError { line, words });
        }
        place = value.span();
        for (queue, value) in text.table("weights", value)? {
            let queue = queue.get_ref().as_ref();
            let number = match value.get_ref() {
                DeValue::Integer(number) if number.radix() == 10 => number.as_str().parse().ok(),
                DeValue::Float(number) => number.as_str().parse().ok(),
                _ => None,
            };
            let words = || format!("weights.{queue} is a number, such as 5");
            let weight = number.ok_or_else(|| text.error(&value.span(), words()))?;
            shares.push(Share { queue: queue.to_owned(), weight });
        }
    }
    Weights::new(shares).map_err(|wrong| text.error(&place, format!("weights: {wrong}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_read_by_queue() {
        let weights = parse("[weights]\njobs-stable = 95\njobs-canary = 5.0 # new\n").unwrap();
        assert_eq!(weights.queues().collect::<Vec<_>>(), ["jobs-canary", "jobs-stable"]);
        assert!((weights.share("jobs-canary") - 0.05).abs() < 1e-12);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line_and_the_remedy() {
        for (text, told) in [
            ("", "line 1: weights: no queue has a weight above 0"),
            ("\n[weights]\na = 0", "line 2: weights: no queue has a weight above 0"),
            ("[weights]\na = \"5\"", "line 2: weights.a is a number, such as 5"),
            ("[weights]\na = -5", "weights: a: a weight is a number from 0 to"),
            ("[weights]\n\"a b\" = 5", "weights: queue name"),
            ("\n[weight]\na = 5", "line 2: key \"weight\" is not known; use weights"),
            ("jobs-stable = 5", "line 1: key \"jobs-stable\" is not known; the keys are weights"),
            ("jobs-stable = 5", "write [weights], and QUEUE = WEIGHT below it"),
            ("weights = 5", "line 1: weights is a table; write [weights]"),
            ("a = 5 = 5", "line 1: this is not TOML"),
        ] {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.starts_with(told) || error.contains(told), "{text:?}: {error}");
        }
    }
}
