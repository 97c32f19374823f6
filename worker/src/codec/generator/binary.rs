//! A request in protobuf, as JSON has it.

use ebb_proto::ebb::v1::GenerationRequest;
use serde_json::{Map, Value, json};

use super::super::{BadJob, given};

/// The same request as JSON has it; what protobuf leaves out is not there.
pub(super) fn from_message(request: GenerationRequest) -> Result<Map<String, Value>, BadJob> {
    let messages = request.messages.into_iter();
    let messages = messages.map(|it| json!({"role": it.role, "content": it.content}));
    let messages: Vec<Value> = messages.collect();
    let mut fields = Map::new();
    let mut put = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            fields.insert(name.to_owned(), value);
        }
    };
    put("messages", Some(messages).filter(|all| !all.is_empty()).map(Value::from));
    put("prompt", request.prompt.map(Value::from));
    put("input", request.input.map(Value::from));
    put("max_tokens", given(request.max_tokens).map(Value::from));
    put("top_k", request.top_k.map(Value::from));
    put("seed", request.seed.map(Value::from));
    put("stop", Some(request.stop.into()));
    put("stream", Some(request.stream.into()));
    put("stream_options", Some(json!({"include_usage": request.include_usage})));
    put("truncate", Some(request.truncate.into()));
    put("chat_template_kwargs", object_in(&request.chat_template_kwargs)?);
    for (name, number) in [
        ("temperature", request.temperature),
        ("top_p", request.top_p),
        ("frequency_penalty", request.frequency_penalty),
        ("presence_penalty", request.presence_penalty),
        ("repetition_penalty", request.repetition_penalty),
    ] {
        // JSON has no such numbers, and would take them for fields that are not there.
        if let Some(number) = number.filter(|number| !number.is_finite()) {
            return Err(BadJob::new(format!("{name} is {number}; send a number that is finite")));
        }
        put(name, number.map(Value::from));
    }
    Ok(fields)
}

/// The variables of a chat template, which protobuf has as JSON.
fn object_in(text: &str) -> Result<Option<Value>, BadJob> {
    if text.is_empty() {
        return Ok(None);
    }
    let wrong =
        |error| BadJob::new(format!("chat_template_kwargs is not JSON ({error}); send an object"));
    serde_json::from_str(text).map(Some).map_err(wrong)
}
