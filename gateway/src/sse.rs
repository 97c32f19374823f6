//! Server-sent events as bytes, as the HTML standard has them. Pure.

use bytes::Bytes;

/// What a stream is, for the header `content-type`.
pub(crate) const EVENT_STREAM: &str = "text/event-stream";

/// Keeps a connection open that has nothing to say.
pub(crate) const COMMENT: Bytes = Bytes::from_static(b": waiting\n\n");

/// An event without a name, which clients of OpenAI's API expect.
pub(crate) fn data(data: &[u8]) -> Bytes {
    event(None, None, data)
}

/// An event; `id` comes back in the header `Last-Event-ID` when the client connects again.
pub(crate) fn event(id: Option<&str>, name: Option<&str>, data: &[u8]) -> Bytes {
    let mut event = Vec::with_capacity(data.len() + 32);
    for (field, value) in [("id", id), ("event", name)] {
        if let Some(value) = value {
            event.extend_from_slice(field.as_bytes());
            event.extend_from_slice(b": ");
            event.extend_from_slice(value.as_bytes());
            event.push(b'\n');
        }
    }
    for line in lines(data) {
        event.extend_from_slice(b"data: ");
        event.extend_from_slice(line);
        event.push(b'\n');
    }
    event.push(b'\n');
    event.into()
}

/// A line ends with LF, CR or both; a reader puts LF between them.
fn lines(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(data);
    std::iter::from_fn(move || {
        let data = rest?;
        let Some(end) = data.iter().position(|byte| matches!(byte, b'\n' | b'\r')) else {
            rest = None;
            return Some(data);
        };
        let is_pair = data[end..].starts_with(b"\r\n");
        rest = Some(&data[end + 1 + usize::from(is_pair)..]);
        Some(&data[..end])
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, prop_assert_eq, proptest};

    use super::*;

    #[test]
    fn an_event_has_a_line_of_data_for_each_line() {
        let told = event(Some("1.7"), Some("piece"), b"a\r\n\nb\n");
        let expected = "id: 1.7\nevent: piece\ndata: a\ndata: \ndata: b\ndata: \n\n";
        assert_eq!(told, expected);
        assert_eq!(data(b"[DONE]"), "data: [DONE]\n\n");
        assert_eq!(data(b""), "data: \n\n");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_reader_gets_back_what_was_told(text in "[a-z:\n ]{0,40}") {
            let told = String::from_utf8(data(text.as_bytes()).to_vec()).unwrap();
            let body = told.strip_suffix("\n\n").unwrap();
            let read: Vec<_> =
                body.split('\n').map(|line| line.strip_prefix("data: ").unwrap()).collect();
            prop_assert_eq!(read.join("\n"), text);
        }
    }
}
