//! The request header `Prefer`, as RFC 7240 has it. Pure.

use std::time::Duration;

/// What a client would rather have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Preference {
    /// To be told where the answer will be, and not to wait for it.
    pub(crate) respond_async: bool,
    /// To be answered within so long.
    pub(crate) wait: Option<Duration>,
}

impl Preference {
    /// Reads the values of the header in their order. Of a preference that is given twice the first
    /// counts; what is not known is passed over, as the RFC wants it.
    pub(crate) fn read<'a>(values: impl IntoIterator<Item = &'a str>) -> Self {
        let mut read = Self::default();
        for preference in values.into_iter().flat_map(|value| parts(value, b',')) {
            // Parameters may follow, of which none is known.
            let Some(first) = parts(preference, b';').next() else { continue };
            let (name, value) = first.split_once('=').unwrap_or((first, ""));
            let value = value.trim().trim_matches('"');
            match name.trim().to_ascii_lowercase().as_str() {
                "respond-async" => read.respond_async = true,
                "wait" if read.wait.is_none() => {
                    read.wait = value.parse().ok().map(Duration::from_secs);
                }
                _ => {}
            }
        }
        read
    }
}

/// The parts between separators that do not stand in quotes.
fn parts(text: &str, separator: u8) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let (mut is_quoted, mut is_escaped) = (false, false);
        let end = text.bytes().position(|byte| {
            let was_escaped = std::mem::take(&mut is_escaped);
            match byte {
                b'\\' if is_quoted && !was_escaped => is_escaped = true,
                b'"' if !was_escaped => is_quoted = !is_quoted,
                _ => {}
            }
            byte == separator && !is_quoted
        });
        rest = end.map(|end| &text[end + 1..]);
        Some(text[..end.unwrap_or(text.len())].trim())
    })
    .filter(|part| !part.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, prop_assert_eq, proptest};

    use super::*;

    #[test]
    fn what_is_preferred_is_read_wherever_it_stands() {
        let seconds = |n| Some(Duration::from_secs(n));
        for (values, respond_async, wait) in [
            (&["respond-async"][..], true, None),
            (&["Respond-Async, wait=10"], true, seconds(10)),
            (&["wait=\"10\"; foo=bar", "respond-async;x"], true, seconds(10)),
            (&["handling=lenient, wait = 5 , wait=7"], false, seconds(5)),
            (&["foo=\"a, respond-async\""], false, None),
            (&["foo=\"a\\\", respond-async\", return=minimal"], false, None),
            (&["wait=soon, ,;"], false, None),
            (&[], false, None),
        ] {
            let read = Preference::read(values.iter().copied());
            assert_eq!(read, Preference { respond_async, wait }, "{values:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_header_makes_it_panic_and_others_do_not_hide_one(text in "[ -~]{0,40}") {
            Preference::read([text.as_str()]);
            let both = Preference::read([text.as_str(), "respond-async"]);
            prop_assert_eq!(both.respond_async, true);
        }
    }
}
