//! Echo: `{"input": "text"}` in, `{"output": "text"}` out.

use ebb_model::echo::EchoInput;
use ebb_queue::{JSON, Job};

use super::{Answer, BadJob, Codec, Spent};
use crate::batcher::Size;

/// Speaks for [`ebb_model::echo::Echo`].
#[derive(Debug, Clone, Copy, Default)]
pub struct EchoCodec;

impl Codec for EchoCodec {
    type Input = EchoInput;
    type Output = String;
    type Asked = ();

    fn decode(&self, job: &Job) -> Result<(EchoInput, ()), BadJob> {
        Ok((super::json(job)?, ()))
    }

    fn size(&self, _: &EchoInput) -> Size {
        Size::ONE
    }

    fn encode(&self, output: String, (): (), _: &Job, _: &Spent) -> Answer {
        let body = serde_json::json!({ "output": output }).to_string();
        Answer { content_type: JSON, body: body.into(), alert: None, tokens: 0, n_cut: 0 }
    }
}

#[cfg(test)]
mod tests {
    use ebb_queue::Timestamp;

    use super::*;

    #[test]
    fn a_body_that_is_not_json_is_told_in_plain_words() {
        for (body, told) in [
            ("not JSON", "body: not JSON, at line 1, column 2; a text is sent as"),
            ("The tide turns.", "body: not JSON, at line 1, column 1; a text is sent as"),
            ("", "body: not JSON, at line 1, column 0 (EOF while parsing a value); a text"),
            ("{\n  \"input\": \"a\",\n}", "line 3, column 1 (trailing comma); a text"),
            (r#"{"input": 7}"#, "body: invalid type: integer `7`, expected a string at line 1"),
        ] {
            let job = Job::new(body.to_owned(), Timestamp::UNIX_EPOCH);
            let BadJob(words) = EchoCodec.decode(&job).expect_err(body);
            assert!(words.contains(told), "{body}: {words}");
        }
    }
}
