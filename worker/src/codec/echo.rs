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
        Answer { content_type: JSON, body: body.into(), alert: None, tokens: 0 }
    }
}
