//! Pieces of an answer, as a generator's jobs send them: lines of JSON that hold a little text each.

use std::borrow::Cow;

use serde_json::Value;

/// The JSON objects that a piece is made of, one a line; none where it is something else.
#[must_use]
pub(crate) fn objects(piece: &[u8]) -> Option<Vec<Value>> {
    let lines = std::str::from_utf8(piece).ok()?.lines().filter(|line| !line.trim().is_empty());
    let objects: Vec<Value> = lines.map(serde_json::from_str).collect::<Result<_, _>>().ok()?;
    (!objects.is_empty() && objects.iter().all(Value::is_object)).then_some(objects)
}

/// What a piece says to people: the text of the chunks of a chat or a completion, else itself.
#[must_use]
pub(crate) fn spoken(piece: &[u8]) -> Cow<'_, [u8]> {
    let texts = objects(piece)
        .and_then(|objects| objects.iter().map(text_of).collect::<Option<Vec<String>>>());
    texts.map_or(Cow::Borrowed(piece), |texts| Cow::Owned(texts.concat().into_bytes()))
}

/// The text of one chunk of OpenAI's formats; none where it is something else.
fn text_of(chunk: &Value) -> Option<String> {
    let pointer = match chunk["object"].as_str()? {
        "chat.completion.chunk" => "/choices/0/delta/content",
        "text_completion" => "/choices/0/text",
        _ => return None,
    };
    // The first and the last chunk of a chat have none.
    Some(chunk.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(piece: &str, said: &str, n_objects: Option<usize>) {
        assert_eq!(spoken(piece.as_bytes()), said.as_bytes(), "{piece}");
        assert_eq!(objects(piece.as_bytes()).map(|all| all.len()), n_objects, "{piece}");
    }

    #[test]
    fn chunks_of_a_chat_say_their_text_and_all_else_is_itself() {
        let chat = |delta: &str| {
            format!(
                r#"{{"object":"chat.completion.chunk","choices":[{{"index":0,"delta":{delta}}}]}}"#
            )
        };
        let [role, tide, turns] = [
            chat(r#"{"role":"assistant"}"#),
            chat(r#"{"content":"The tide\n"}"#),
            chat(r#"{"content":" turns."}"#),
        ];
        check(&format!("{role}\n{tide}\n{turns}\n"), "The tide\n turns.", Some(3));
        check(&format!("{}\n", chat("{}")), "", Some(1));
        let text = r#"{"object":"text_completion","choices":[{"text":"ebbs"}]}"#;
        check(text, "ebbs", Some(1));
        for (other, n_objects) in [
            ("The tide ", None),
            ("7", None),
            ("", None),
            (r#"{"label":"flood"}"#, Some(1)),
            (&format!("{tide}\nand more"), None),
        ] {
            check(other, other, n_objects);
        }
        assert_eq!(spoken(&[255, 0]), &[255, 0][..]);
    }
}
