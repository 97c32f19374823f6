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

/// A piece as a JSON value where it is no object: its text, never what that would be as JSON.
#[must_use]
pub(crate) fn plain(piece: &[u8]) -> Value {
    std::str::from_utf8(piece).map_or_else(|_| Value::from(piece), Value::from)
}

/// What pieces of one attempt have said.
#[derive(Debug, Default)]
pub(crate) struct Said {
    attempt: Option<u32>,
    spoken: Vec<u8>,
}

impl Said {
    /// Adds a piece, and gives what it says; and whether it is of another attempt than those before,
    /// which are void then.
    pub(crate) fn add<'a>(&mut self, attempt: u32, piece: &'a [u8]) -> (Cow<'a, [u8]>, bool) {
        let begins_anew = self.attempt.is_some_and(|known| known != attempt);
        if begins_anew {
            self.spoken.clear();
        }
        self.attempt = Some(attempt);
        let spoken = spoken(piece);
        self.spoken.extend_from_slice(&spoken);
        (spoken, begins_anew)
    }

    /// Whether nothing was said.
    pub(crate) fn is_nothing(&self) -> bool {
        self.attempt.is_none()
    }

    /// Whether it is of this attempt.
    pub(crate) fn is_of(&self, attempt: u32) -> bool {
        self.attempt == Some(attempt)
    }

    /// Whether it is the answer of this attempt, as far as the body tells: the text of a chat or a
    /// completion, the body itself, or one of the strings in it. Of another format it is believed.
    pub(crate) fn is_all_of(&self, attempt: u32, body: &[u8]) -> bool {
        if !self.is_of(attempt) {
            return false;
        }
        let Ok(body_value) = serde_json::from_slice::<Value>(body) else {
            return self.spoken == body;
        };
        if let Some(text) = whole_text_of(&body_value) {
            return self.spoken == text.as_bytes();
        }
        let strings: Vec<&str> = match &body_value {
            Value::Object(fields) => fields.values().filter_map(Value::as_str).collect(),
            one => one.as_str().into_iter().collect(),
        };
        let is_whole = strings.iter().any(|text| text.as_bytes() == self.spoken);
        let is_cut = strings.iter().any(|text| text.as_bytes().starts_with(&self.spoken));
        is_whole || self.spoken == body || !(is_cut || body.starts_with(&self.spoken))
    }
}

/// The text of a whole answer in OpenAI's formats, as [`spoken`] pieces have it; none where it is
/// something else.
fn whole_text_of(answer: &Value) -> Option<&str> {
    let pointer = match answer["object"].as_str()? {
        "chat.completion" => "/choices/0/message/content",
        "text_completion" => "/choices/0/text",
        _ => return None,
    };
    Some(answer.pointer(pointer).and_then(Value::as_str).unwrap_or_default())
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

    fn check_all(pieces: &[(u32, &str)], body: &str, is_all: bool) {
        let mut said = Said::default();
        for (attempt, piece) in pieces {
            said.add(*attempt, piece.as_bytes());
        }
        assert_eq!(said.is_all_of(2, body.as_bytes()), is_all, "{pieces:?} of {body}");
    }

    #[test]
    fn pieces_are_held_against_the_answer() {
        let chunk = |text: &str| {
            format!(r#"{{"object":"text_completion","choices":[{{"text":"{text}"}}]}}"#)
        };
        let (tide, turns) = (chunk("The tide"), chunk(" turns."));
        let chat =
            r#"{"object":"chat.completion","choices":[{"message":{"content":"The tide turns."}}]}"#;
        let echo = r#"{"output":"The tide turns."}"#;
        for body in
            [chat, &chunk("The tide turns."), echo, r#""The tide turns.""#, "The tide turns."]
        {
            check_all(&[(2, &tide), (2, &turns)], body, true);
            check_all(&[(2, "The tide"), (2, " turns.")], body, true);
            check_all(&[(1, "The ebb"), (2, "The tide turns.")], body, true);
            check_all(&[(2, "The tide")], body, false);
            check_all(&[(1, "The tide turns.")], body, false);
            check_all(&[], body, false);
        }
        check_all(&[(2, "The ebb")], "The tide turns.", false);
        check_all(&[(2, r#"{"label":"flood"}"#)], r#"{"labels":["flood"]}"#, true);
        check_all(&[(2, "7"), (2, "5")], "[7,5]", true);
        assert_eq!(
            [plain(b"7"), plain(&[255])],
            [serde_json::json!("7"), serde_json::json!([255])]
        );
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
