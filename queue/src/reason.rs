//! Why a job failed, in words that are no longer than somebody reads.

use std::borrow::Cow;

/// Characters of a reason at most: it goes into the log, the result, the history of the job and,
/// with some brokers, into headers.
const LONGEST: usize = 500;

/// Of those the last so many are of the end of the text, where the remedy often stands.
const END: usize = 200;

/// A reason with its middle left out where it is too long, as one that repeats what a client sent.
#[must_use]
pub fn short_reason(reason: &str) -> Cow<'_, str> {
    // A character is a byte at least, so most need no counting.
    let n_chars = if reason.len() <= LONGEST { 0 } else { reason.chars().count() };
    if n_chars <= LONGEST {
        return Cow::Borrowed(reason);
    }
    let place = |n_chars| reason.char_indices().nth(n_chars).map_or(reason.len(), |(at, _)| at);
    // The mark has no more digits than this, and so the whole no more characters.
    let mark = |n_left_out: usize| format!(" [{n_left_out} characters left out] ");
    let begin = LONGEST - END - mark(n_chars).len();
    let end = n_chars - END;
    Cow::Owned(format!("{}{}{}", &reason[..place(begin)], mark(end - begin), &reason[place(end)..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_that_is_read_whole_stays_whole() {
        for reason in ["", "the model has no such prompt", &"\u{e4}".repeat(LONGEST)] {
            assert_eq!(short_reason(reason), reason);
        }
    }

    #[test]
    fn of_a_long_one_beginning_and_end_stay_and_cutting_it_again_changes_nothing() {
        for n_chars in [LONGEST + 1, 1000, 1_000_000] {
            let long = format!("body: {}; send less", "\u{1f600}".repeat(n_chars));
            let short = short_reason(&long);
            assert!(short.chars().count() <= LONGEST, "{}", short.chars().count());
            assert!(
                short.starts_with("body: \u{1f600}") && short.ends_with("\u{1f600}; send less")
            );
            assert_eq!(short_reason(&short), short);
            let n_left: usize = short.chars().filter(|one| *one == '\u{1f600}').count();
            let told = format!(" [{} characters left out] ", n_chars - n_left);
            assert!(short.contains(&told), "{short}");
        }
    }
}
