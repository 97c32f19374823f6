//! Echo: `{"input": "text"}` in, `{"output": "text"}` out; with `"stream": true` a word at a time.

use ebb_model::echo::EchoInput;
use ebb_queue::{JSON, Job};

use super::body::Shape;
use super::{Answer, BadJob, Codec, Next, Spent, Step};
use crate::batcher::Size;

pub(super) const SHAPE: Shape = Shape {
    example: r#"{"input": "text"}"#,
    fields: &[
        "input",
        "sleep_ms",
        "fail",
        "poison",
        "lose_device",
        "panic",
        "stream",
        "turn_ms",
        "poison_at",
        "panic_at",
    ],
};

/// Speaks for [`ebb_model::echo::Echo`].
#[derive(Debug, Clone, Copy, Default)]
pub struct EchoCodec;

impl Codec for EchoCodec {
    type Input = EchoInput;
    type Output = String;
    type Asked = ();

    fn decode(&self, job: &Job) -> Result<(EchoInput, ()), BadJob> {
        Ok((SHAPE.read(job)?, ()))
    }

    fn size(&self, _: &EchoInput) -> Size {
        Size::ONE
    }

    fn advance(
        &self,
        input: EchoInput,
        output: String,
        (): &mut (),
        _: &Job,
    ) -> Result<Step<EchoInput, String>, BadJob> {
        if !input.stream {
            return Ok(Step { next: Next::Answer(output), piece: None });
        }
        let next = input.after_a_turn().map_or_else(Next::Answer, Next::Turn);
        let piece = Some(output).filter(|word| !word.is_empty()).map(Into::into);
        Ok(Step { next, piece })
    }

    fn encode(&self, output: String, (): (), _: &Job, _: &Spent) -> Answer {
        let body = serde_json::json!({ "output": output }).to_string();
        Answer {
            content_type: JSON,
            body: body.into(),
            alert: None,
            tokens: 0,
            n_cut: 0,
            n_reused: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use ebb_queue::Timestamp;

    use super::*;

    #[test]
    fn what_is_streamed_ends_with_the_whole() {
        let job = Job::new(r#"{"input": "a b", "stream": true}"#, Timestamp::UNIX_EPOCH);
        let (first, ()) = EchoCodec.decode(&job).unwrap();
        let step = EchoCodec.advance(first.clone(), "a ".into(), &mut (), &job).unwrap();
        assert_eq!(step.piece.as_deref(), Some(&b"a "[..]));
        let Next::Turn(second) = step.next else { panic!("there is another word") };
        let step = EchoCodec.advance(second, "b".into(), &mut (), &job).unwrap();
        assert_eq!(step, Step { next: Next::Answer("a b".into()), piece: Some("b".into()) });
        let whole = EchoInput { stream: false, ..first };
        let step = EchoCodec.advance(whole, "a b".into(), &mut (), &job).unwrap();
        assert_eq!(step, Step { next: Next::Answer("a b".into()), piece: None });
    }

    #[test]
    fn a_body_that_is_not_json_is_told_in_plain_words() {
        for (body, told) in [
            ("not JSON", "body: not JSON, at line 1, column 2; send {\"input\""),
            ("The tide turns.", "body: not JSON, at line 1, column 1; send {\"input\""),
            ("", "body: not JSON, at line 1, column 0 (EOF while parsing a value); send {"),
            ("{\n  \"input\": \"a\",\n}", "line 3, column 1 (trailing comma); send {"),
            ("{}", "missing field `input` at line 1 column 2; send {\"input\": \"text\"}"),
            (r#"{"input": 7}"#, "body: invalid type: integer `7`, expected a string at line 1"),
        ] {
            let job = Job::new(body.to_owned(), Timestamp::UNIX_EPOCH);
            let words = EchoCodec.decode(&job).expect_err(body).to_string();
            assert!(words.contains(told), "{body}: {words}");
        }
    }
}
