//! What a job of a generator asks, in the words of OpenAI's API.

use std::ops::RangeInclusive;

use ebb_model::causal::{Defaults, Message, Sampling};
use ebb_queue::Job;
use serde_json::{Map, Value};

use super::super::body::{Shape, refuse_slips, says_nothing};
use super::super::{BadJob, is_protobuf, message};
use super::binary::from_message;

/// Texts that may end an answer, as many as OpenAI takes.
const MAX_STOPS: usize = 4;
/// Bytes of such a text.
const MAX_STOP_BYTES: usize = 256;
/// Letters of a value that an error shows.
const SHOWN: usize = 60;

/// A request, checked as far as it can be without the model's tokens.
#[derive(Debug, PartialEq)]
pub(super) struct Request {
    pub(super) prompt: Prompt,
    pub(super) sampling: Sampling,
    /// Tokens of the answer at most, and the field that said so.
    pub(super) max_new: Option<(&'static str, usize)>,
    pub(super) stops: Vec<String>,
    /// Whether the beginning of a prompt may be cut off.
    pub(super) truncate: bool,
    pub(super) stream: Option<Stream>,
    /// Variables for the chat template.
    pub(super) variables: Map<String, Value>,
}

/// What is to be answered or gone on with.
#[derive(Debug, PartialEq)]
pub(super) enum Prompt {
    Messages(Vec<Message>),
    Text(String),
    /// A message of a user where the model converses, and else a text.
    Input(String),
}

/// How an answer is told while it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stream {
    pub(super) with_usage: bool,
}

const SHAPE: Shape = Shape {
    example: r#"{"messages": [{"role": "user", "content": "text"}]}"#,
    // Slips are looked for where all the fields are known that are refused.
    fields: &[],
};

/// Fields that are taken.
const TAKEN: [&str; 19] = [
    "messages",
    "prompt",
    "input",
    "temperature",
    "top_p",
    "top_k",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "seed",
    "max_tokens",
    "max_completion_tokens",
    "max_new_tokens",
    "stop",
    "stream",
    "stream_options",
    "truncate",
    "chat_template_kwargs",
    "n",
];
/// Fields of OpenAI's and of other servers that would make another answer, with values that would not
/// and a remedy. What is empty, zero or false says nothing.
const UNKNOWN: [(&str, &[&str], &str); 31] = [
    ("tools", &[], NO_TOOLS),
    ("tool_choice", &[r#""none""#, r#""auto""#], NO_TOOLS),
    ("functions", &[], NO_TOOLS),
    ("function_call", &[r#""none""#, r#""auto""#], NO_TOOLS),
    ("web_search_options", &[], NO_TOOLS),
    ("documents", &[], "write them into a message"),
    ("response_format", &[r#"{"type":"text"}"#], ONLY_TEXT),
    ("structured_outputs", &[], ONLY_TEXT),
    ("logit_bias", &[], NOT_KNOWN),
    ("logprobs", &[], "probabilities are not told"),
    ("top_logprobs", &[], "probabilities are not told"),
    ("suffix", &[], "text is only written behind a prompt"),
    ("echo", &[], "the prompt is not repeated"),
    ("modalities", &[r#"["text"]"#], "only text is written"),
    ("audio", &[], "only text is written"),
    ("reasoning_effort", &[r#""none""#], IN_KWARGS),
    ("verbosity", &[r#""medium""#], "ask for it in words"),
    ("chat_template", &[], "the model's own template is used; leave it out"),
    ("continue_final_message", &[], "send a prompt to have a text gone on with"),
    ("min_p", &[], NOT_KNOWN),
    ("min_tokens", &[], NOT_KNOWN),
    ("min_new_tokens", &[], NOT_KNOWN),
    ("top_a", &[], NOT_KNOWN),
    ("ignore_eos", &[], NOT_KNOWN),
    ("stop_token_ids", &[], "stop takes texts"),
    ("stop_sequences", &[], "stop takes such texts"),
    ("include_stop_str_in_output", &[], "an answer ends before a text of stop"),
    ("bad_words", &[], NOT_KNOWN),
    ("length_penalty", &["1", "1.0"], NOT_KNOWN),
    ("use_beam_search", &[], NOT_KNOWN),
    ("num_beams", &["1"], NOT_KNOWN),
];
/// Fields that would make another answer where they are not true.
const ALWAYS: [(&str, &str); 2] = [
    ("skip_special_tokens", "special tokens are never part of an answer"),
    ("add_generation_prompt", "a conversation is always written up to where the answer begins"),
];
/// What a job cannot give to a chat template by this name, since it has a meaning of its own.
const OWN_VARIABLES: [(&str, &str); 4] = [
    ("messages", "send messages beside it"),
    ("tools", NO_TOOLS),
    ("documents", "write them into a message"),
    ("add_generation_prompt", ALWAYS[1].1),
];
const IN_KWARGS: &str = "chat_template_kwargs has what the model's template reads";
const ONLY_TEXT: &str = "only text is written; ask for a form in words";
const NO_TOOLS: &str = "a worker calls no tools; leave it out";
const NOT_KNOWN: &str = "it is not known here; leave it out";

impl Request {
    /// Reads a job; `most` is what an answer may have at most, and `defaults` the model's.
    pub(super) fn read(job: &Job, defaults: &Defaults, most: usize) -> Result<Self, BadJob> {
        let map = if is_protobuf(job) { from_message(message(job)?)? } else { SHAPE.read(job)? };
        let fields = Fields(map);
        fields.refuse_what_is_not_known()?;
        Ok(Self {
            prompt: fields.prompt()?,
            sampling: fields.sampling(defaults, job)?,
            max_new: fields.max_new(most)?,
            stops: fields.stops()?,
            truncate: fields.flag("truncate")?,
            stream: fields.stream()?,
            variables: fields.variables()?,
        })
    }
}

/// The fields of a body; one that is `null` is not there.
struct Fields(Map<String, Value>);

impl Fields {
    fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    fn refuse_what_is_not_known(&self) -> Result<(), BadJob> {
        for (name, harmless, remedy) in UNKNOWN {
            if let Some(value) = self.get(name)
                && !says_nothing(value)
                && !harmless.contains(&value.to_string().as_str())
            {
                return Err(wrong(name, value, remedy));
            }
        }
        for (name, remedy) in ALWAYS {
            if let Some(value) = self.get(name).filter(|value| **value != Value::Bool(true)) {
                return Err(wrong(name, value, remedy));
            }
        }
        if let Some(value) = self.get("do_sample") {
            let remedy = "say it by temperature, where 0 takes the likeliest token";
            return Err(wrong("do_sample", value, remedy));
        }
        let mut guided = self.0.iter().filter(|(name, _)| name.starts_with("guided_"));
        if let Some((name, value)) = guided.find(|(_, value)| !says_nothing(value)) {
            return Err(wrong(name, value, ONLY_TEXT));
        }
        for name in ["n", "best_of"] {
            if let Some(value) = self.get(name).filter(|n| n.as_u64() != Some(1)) {
                return Err(wrong(name, value, "a job has one answer, send several jobs"));
            }
        }
        let fields = self.0.iter().map(|(name, value)| (name.as_str(), value));
        let refused = UNKNOWN.map(|(name, ..)| name);
        // Those that are harmless are no slips.
        refuse_slips(fields.filter(|(name, _)| !refused.contains(name)), &TAKEN)
    }

    /// What the chat template reads beside the messages.
    fn variables(&self) -> Result<Map<String, Value>, BadJob> {
        const NAME: &str = "chat_template_kwargs";
        let variables = self.object(NAME)?;
        for (name, remedy) in OWN_VARIABLES {
            if let Some(value) = variables.get(name) {
                return Err(wrong(&format!("{NAME}.{name}"), value, remedy));
            }
        }
        Ok(variables)
    }

    fn prompt(&self) -> Result<Prompt, BadJob> {
        let names = ["messages", "prompt", "input"].into_iter();
        let given: Vec<(&str, &Value)> =
            names.filter_map(|name| Some((name, self.get(name)?))).collect();
        match given[..] {
            [("messages", value)] => Ok(Prompt::Messages(messages(value)?)),
            [(name, value)] => {
                let remedy = "send one text; several texts are several jobs";
                let text = value.as_str().ok_or_else(|| wrong(name, value, remedy))?.to_owned();
                Ok(if name == "prompt" { Prompt::Text(text) } else { Prompt::Input(text) })
            }
            [] => Err(BadJob::new("messages is missing; send messages, a prompt or an input")),
            [(one, _), (other, _), ..] => {
                Err(BadJob::new(format!("{one} and {other} are both given; send one of them")))
            }
        }
    }

    fn sampling(&self, defaults: &Defaults, job: &Job) -> Result<Sampling, BadJob> {
        let own = defaults.sampling();
        let (top_p, top_k) = (self.number("top_p", 0.0..=1.0)?, self.top_k()?);
        // Who narrows what chance may choose from asks for chance.
        let narrows = top_p.is_some_and(|share| share < 1.0) || matches!(top_k, Some(Some(_)));
        let temperature = if narrows { defaults.temperature } else { own.temperature };
        let penalty = |name| self.number(name, -2.0..=2.0).map(|number| number.unwrap_or(0.0));
        Ok(Sampling {
            temperature: self.number("temperature", 0.0..=2.0)?.unwrap_or(temperature),
            top_k: top_k.unwrap_or(own.top_k),
            top_p: top_p.unwrap_or(own.top_p),
            frequency_penalty: penalty("frequency_penalty")?,
            presence_penalty: penalty("presence_penalty")?,
            repetition_penalty: self
                .number("repetition_penalty", 0.1..=10.0)?
                .unwrap_or(own.repetition_penalty),
            seed: self.seed()?.unwrap_or_else(|| seed_of(job.id.as_str())),
        })
    }

    /// `Some(None)` where all tokens are candidates, whatever the model says.
    fn top_k(&self) -> Result<Option<Option<usize>>, BadJob> {
        match self.get("top_k").and_then(Value::as_i64) {
            Some(-1 | 0) => Ok(Some(None)),
            _ => Ok(self.size("top_k", 1..=1_000_000)?.map(Some)),
        }
    }

    fn seed(&self) -> Result<Option<u64>, BadJob> {
        let Some(value) = self.get("seed") else { return Ok(None) };
        // The same bits, so that two seeds are never one.
        let seed = value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned));
        seed.map(Some).ok_or_else(|| wrong("seed", value, "send a whole number of 64 bits"))
    }

    fn max_new(&self, most: usize) -> Result<Option<(&'static str, usize)>, BadJob> {
        for name in ["max_completion_tokens", "max_tokens", "max_new_tokens"] {
            if let Some(n) = self.size(name, 1..=most)? {
                return Ok(Some((name, n)));
            }
        }
        Ok(None)
    }

    fn stops(&self) -> Result<Vec<String>, BadJob> {
        let remedy = format!("send a text or a list of at most {MAX_STOPS}");
        let Some(value) = self.get("stop") else { return Ok(Vec::new()) };
        let texts = match value {
            Value::Array(texts) if texts.len() <= MAX_STOPS => &texts[..],
            Value::Array(_) => return Err(wrong("stop", value, &remedy)),
            one => std::slice::from_ref(one),
        };
        let text = |text: &Value| {
            let text = text.as_str().ok_or_else(|| wrong("stop", value, &remedy))?;
            if (1..=MAX_STOP_BYTES).contains(&text.len()) {
                return Ok(text.to_owned());
            }
            let n = text.len();
            Err(BadJob::new(format!("stop has a text of {n} bytes; send 1 to {MAX_STOP_BYTES}")))
        };
        texts.iter().map(text).collect()
    }

    fn stream(&self) -> Result<Option<Stream>, BadJob> {
        let options = Self(self.object("stream_options")?);
        let with_usage = options.flag("include_usage")?;
        Ok(self.flag("stream")?.then_some(Stream { with_usage }))
    }

    fn number(&self, name: &str, within: RangeInclusive<f64>) -> Result<Option<f32>, BadJob> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_f64().filter(|number| within.contains(number)) {
            Some(number) => Ok(Some(number as f32)),
            None => {
                let remedy = format!("send a number from {} to {}", within.start(), within.end());
                Err(wrong(name, value, &remedy))
            }
        }
    }

    fn size(&self, name: &str, within: RangeInclusive<usize>) -> Result<Option<usize>, BadJob> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
        let size = size.filter(|size| within.contains(size));
        size.map(Some).ok_or_else(|| {
            let (least, most) = (within.start(), within.end());
            wrong(name, value, &format!("send a whole number from {least} to {most}"))
        })
    }

    fn flag(&self, name: &str) -> Result<bool, BadJob> {
        let Some(value) = self.get(name) else { return Ok(false) };
        value.as_bool().ok_or_else(|| wrong(name, value, "send true or false"))
    }

    fn object(&self, name: &str) -> Result<Map<String, Value>, BadJob> {
        match self.get(name) {
            None => Ok(Map::new()),
            Some(Value::Object(map)) => Ok(map.clone()),
            Some(value) => Err(wrong(name, value, "send an object")),
        }
    }
}

fn messages(value: &Value) -> Result<Vec<Message>, BadJob> {
    const REMEDY: &str = "send a list of objects with role and content";
    let list = value.as_array().ok_or_else(|| wrong("messages", value, REMEDY))?;
    let read = |(index, one): (usize, &Value)| {
        let name = |field: &str| format!("messages[{index}]{field}");
        let Value::Object(map) = one else { return Err(wrong(&name(""), one, REMEDY)) };
        let mut rest = map.clone();
        rest.retain(|_, value| !value.is_null());
        for field in ["tool_calls", "function_call"] {
            if let Some(calls) = rest.remove(field).filter(|calls| !says_nothing(calls)) {
                return Err(wrong(&name(&format!(".{field}")), &calls, NO_TOOLS));
            }
        }
        let role = text(rest.remove("role"), &name(".role"), "send a text such as user")?;
        let content = match rest.remove("content") {
            Some(Value::Array(parts)) => joined(&parts, &name(".content"))?,
            content => text(content, &name(".content"), "send a text")?,
        };
        Ok(Message { role, content, rest })
    };
    list.iter().enumerate().map(read).collect()
}

/// The texts of a message that comes in parts, each on a line of its own.
fn joined(parts: &[Value], name: &str) -> Result<String, BadJob> {
    let read = |(index, part): (usize, &Value)| {
        let (name, get) = (format!("{name}[{index}]"), |field: &str| part.get(field).cloned());
        let kind = text(get("type"), &format!("{name}.type"), "send parts of type text")?;
        if kind != "text" {
            return Err(BadJob::new(format!(
                "{name}.type is {kind}; only parts of type text are read"
            )));
        }
        text(get("text"), &format!("{name}.text"), "send a text")
    };
    let texts: Vec<String> = parts.iter().enumerate().map(read).collect::<Result<_, _>>()?;
    Ok(texts.join("\n"))
}

fn text(value: Option<Value>, name: &str, remedy: &str) -> Result<String, BadJob> {
    match value {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(wrong(name, &other, remedy)),
        None => Err(BadJob::new(format!("{name} is missing; {remedy}"))),
    }
}

fn wrong(name: &str, value: &Value, remedy: &str) -> BadJob {
    let text = value.to_string();
    let shown = text.char_indices().nth(SHOWN);
    let shown = shown.map_or_else(|| text.clone(), |(end, _)| format!("{}…", &text[..end]));
    BadJob::new(format!("{name} is {shown}; {remedy}"))
}

/// The seed of a job that has none: from its id, so that another attempt says the same.
///
/// By FNV-1a of 64 bits, which stays the same from one build to the next.
fn seed_of(id: &str) -> u64 {
    let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    id.bytes().fold(0xcbf2_9ce4_8422_2325, mix)
}

#[cfg(test)]
mod tests {
    use ebb_proto::ebb::v1::{ChatMessage, GenerationRequest};
    use ebb_queue::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::codec::binary;

    const DEFAULTS: Defaults = Defaults {
        do_sample: false,
        temperature: 0.5,
        top_k: Some(20),
        top_p: 0.9,
        repetition_penalty: 1.25,
    };

    fn job(body: &str) -> Job {
        Job::new(body.to_owned(), Timestamp::UNIX_EPOCH)
    }

    fn read(body: &Value) -> Result<Request, String> {
        Request::read(&job(&body.to_string()), &DEFAULTS, 100).map_err(|error| error.to_string())
    }

    /// A request that goes on with a text, and more.
    fn with(more: &Value) -> Result<Request, String> {
        let mut body = json!({"prompt": "a"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        read(&body)
    }

    #[test]
    fn a_prompt_is_a_conversation_a_text_or_an_input() {
        let message = |role: &str, content: &str, rest: Value| {
            let Value::Object(rest) = rest else { panic!("{rest}") };
            Message { role: role.to_owned(), content: content.to_owned(), rest }
        };
        let conversation = json!({"model": "x", "user": "y", "messages": [
            {"role": "system", "content": "Be brief.", "name": null, "tool_calls": []},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
             "name": "ada"},
        ]});
        let expected = vec![
            message("system", "Be brief.", json!({})),
            message("user", "a\nb", json!({"name": "ada"})),
        ];
        for (body, expected) in [
            (conversation, Prompt::Messages(expected)),
            (json!({"prompt": "a", "messages": null}), Prompt::Text("a".into())),
            (json!({"input": ""}), Prompt::Input(String::new())),
        ] {
            assert_eq!(read(&body).unwrap().prompt, expected, "{body}");
        }
    }

    #[test]
    fn what_a_job_says_counts_before_what_the_model_says() {
        let id = job("").id;
        let seed = seed_of(id.as_str());
        let sampling = |more: Value| {
            let mut job = job(&{
                let mut body = json!({"prompt": "a"});
                body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
                body.to_string()
            });
            job.id = id.clone();
            Request::read(&job, &DEFAULTS, 100).unwrap().sampling
        };
        let own = Sampling { seed, ..DEFAULTS.sampling() };
        assert_eq!((own.temperature, own.top_k), (0.0, Some(20)));
        let nothing = json!({"top_p": null, "temperature": null, "n": 1, "stream": false});
        assert_eq!(sampling(nothing), own);
        let all = json!({
            "temperature": 1.5, "top_p": 0.25, "top_k": 3, "seed": -1, "frequency_penalty": 0.5,
            "presence_penalty": -0.5, "repetition_penalty": 2,
        });
        let expected = Sampling {
            temperature: 1.5,
            top_k: Some(3),
            top_p: 0.25,
            frequency_penalty: 0.5,
            presence_penalty: -0.5,
            repetition_penalty: 2.0,
            seed: u64::MAX,
        };
        assert_eq!(sampling(all), expected);
        // Who narrows the choice asks for chance, at the model's temperature.
        assert_eq!(sampling(json!({"top_p": 1})), Sampling { top_p: 1.0, ..own });
        assert_eq!(sampling(json!({"top_k": -1})), Sampling { top_k: None, ..own });
        let narrow = Sampling { top_p: 0.5, temperature: 0.5, ..own };
        assert_eq!(sampling(json!({"top_p": 0.5})), narrow);
        assert_eq!(sampling(json!({"top_p": 0.5, "temperature": 0})).temperature, 0.0);
    }

    #[test]
    fn a_seed_is_the_jobs_own_and_the_same_every_time() {
        assert_eq!(seed_of(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(seed_of("a"), 0xaf63_dc4c_8601_ec8c);
        assert_ne!(seed_of("tide-1"), seed_of("tide-2"));
    }

    #[test]
    fn lengths_stops_and_streams_are_read() {
        let request = with(&json!({"max_tokens": 7, "stop": "\n", "truncate": true})).unwrap();
        assert_eq!((request.max_new, request.truncate), (Some(("max_tokens", 7)), true));
        assert_eq!((request.stops, request.stream), (vec!["\n".to_owned()], None));
        let request = with(&json!({
            "max_tokens": 7, "max_completion_tokens": 9, "stop": ["a", "b"], "stream": true,
            "stream_options": {"include_usage": true}, "chat_template_kwargs": {"x": 1},
        }));
        let request = request.unwrap();
        assert_eq!(request.max_new, Some(("max_completion_tokens", 9)));
        assert_eq!(request.stops, ["a", "b"]);
        assert_eq!(request.stream, Some(Stream { with_usage: true }));
        assert_eq!(request.variables["x"], 1);
        assert_eq!(with(&json!({"stop": []})).unwrap().stops, [""; 0]);
    }

    #[test]
    fn what_is_wrong_is_named_with_a_remedy() {
        for (more, says) in [
            (json!({"messages": []}), "messages and prompt are both given; send one of them"),
            (json!({"prompt": null}), "messages is missing; send messages, a prompt or an input"),
            (json!({"prompt": ["a", "b"]}), r#"prompt is ["a","b"]; send one text"#),
            (json!({"temperature": 3}), "temperature is 3; send a number from 0 to 2"),
            (json!({"temperature": "hot"}), r#"temperature is "hot"; send a number from 0 to 2"#),
            (json!({"top_p": -0.1}), "top_p is -0.1; send a number from 0 to 1"),
            (json!({"top_k": -2}), "top_k is -2; send a whole number from 1 to 1000000"),
            (
                json!({"presence_penalty": 2.5}),
                "presence_penalty is 2.5; send a number from -2 to 2",
            ),
            (json!({"repetition_penalty": 0}), "repetition_penalty is 0; send a number from 0.1"),
            (json!({"seed": 0.5}), "seed is 0.5; send a whole number of 64 bits"),
            (json!({"max_tokens": 0}), "max_tokens is 0; send a whole number from 1 to 100"),
            (json!({"max_completion_tokens": 101}), "max_completion_tokens is 101; send a whole"),
            (json!({"n": 2}), "n is 2; a job has one answer, send several jobs"),
            (json!({"n": 0}), "n is 0; a job has one answer"),
            (json!({"stop": 7}), "stop is 7; send a text or a list of at most 4"),
            (json!({"stop": ["a", "b", "c", "d", "e"]}), "send a text or a list of at most 4"),
            (json!({"stop": ""}), "stop has a text of 0 bytes; send 1 to 256"),
            (json!({"stream": "yes"}), r#"stream is "yes"; send true or false"#),
            (json!({"stream_options": true}), "stream_options is true; send an object"),
            (json!({"truncate": 1}), "truncate is 1; send true or false"),
            (json!({"tools": [{"type": "function"}]}), "tools is [{"),
            (json!({"tool_choice": "required"}), "tool_choice is \"required\"; a worker calls no"),
            (json!({"response_format": {"type": "json_object"}}), "response_format is {\"type\""),
            (json!({"logit_bias": {"7": 100}}), "logit_bias is {\"7\":100}; it is not known here"),
            (json!({"logprobs": true}), "logprobs is true; probabilities are not told"),
            (json!({"echo": true}), "echo is true; the prompt is not repeated"),
            (json!({"verbosity": "low"}), "verbosity is \"low\"; ask for it in words"),
            (json!({"max_new_tokens": 101}), "max_new_tokens is 101; send a whole number"),
            (json!({"do_sample": false}), "do_sample is false; say it by temperature"),
            (json!({"stop_sequences": ["a"]}), "stop_sequences is [\"a\"]; stop takes such texts"),
            (json!({"guided_regex": "a+"}), "guided_regex is \"a+\"; only text is written"),
            (json!({"bad_words": ["a"]}), "bad_words is [\"a\"]; it is not known here"),
            (json!({"length_penalty": 0.5}), "length_penalty is 0.5; it is not known here"),
            (json!({"include_stop_str_in_output": true}), "output is true; an answer ends before"),
            (json!({"skip_special_tokens": false}), "skip_special_tokens is false; special"),
            (json!({"add_generation_prompt": false}), "add_generation_prompt is false; a conv"),
            (json!({"continue_final_message": true}), "final_message is true; send a prompt"),
            (json!({"chat_template": "x"}), "chat_template is \"x\"; the model's own"),
            (
                json!({"chat_template_kwargs": {"messages": []}}),
                "chat_template_kwargs.messages is []; send messages beside it",
            ),
            (json!({"chat_template_kwargs": {"tools": null}}), "kwargs.tools is null; a worker"),
        ] {
            let error = with(&more).expect_err(says);
            assert!(error.contains(says), "{more}: {error}");
        }
        let harmless = json!({
            "tools": [], "tool_choice": "auto", "response_format": {"type": "text"}, "logprobs": false,
            "logit_bias": {}, "store": true, "metadata": {"a": "b"}, "service_tier": "flex",
            "verbosity": "medium", "length_penalty": 1.0, "skip_special_tokens": true,
            "user": "u", "prompt_cache_key": "k", "min_p": 0, "min_new_tokens": 0, "top_a": 0.0, "top_logprobs": null, "model": "m",
            "add_generation_prompt": true, "guided_json": null, "continue_final_message": false,
        });
        assert!(with(&harmless).is_ok());
    }

    #[test]
    fn a_field_with_a_slip_in_it_is_refused_with_the_right_name() {
        for (field, known) in [("max_token", "max_tokens"), ("temprature", "temperature")] {
            let error = with(&json!({field: 1})).unwrap_err();
            assert_eq!(error, format!("{field} is not known; use {known}"));
            assert!(with(&json!({field: null})).is_ok(), "{field}");
        }
        for field in ["step", "need", "speed", "top_n", "top_p", "top_k", "fall"] {
            assert!(with(&json!({field: 1})).is_ok(), "{field}");
        }
        for field in ["min_new_tokens", "top_a"] {
            let error = with(&json!({field: 5})).unwrap_err();
            assert_eq!(error, format!("{field} is 5; {NOT_KNOWN}"));
        }
    }

    #[test]
    fn what_is_wrong_with_a_message_is_named_by_its_place() {
        let part = |part: Value| json!([{"role": "user", "content": [part]}]);
        for (messages, says) in [
            (
                json!("hello"),
                r#"messages is "hello"; send a list of objects with role and content"#,
            ),
            (json!(["hello"]), r#"messages[0] is "hello"; send a list"#),
            (json!([{"content": "a"}]), "messages[0].role is missing; send a text such as user"),
            (json!([{"role": "user"}]), "messages[0].content is missing; send a text"),
            (json!([{"role": "user", "content": null}]), "messages[0].content is missing"),
            (part(json!({"type": "image_url"})), "messages[0].content[0].type is image_url; only"),
            (part(json!({"type": "text"})), "messages[0].content[0].text is missing"),
            (part(json!("a")), "messages[0].content[0].type is missing"),
            (
                json!([{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}]),
                "messages[0].tool_calls is [{\"id\":\"1\"}]; a worker calls no tools",
            ),
        ] {
            let error = read(&json!({"messages": messages})).expect_err(says);
            assert!(error.contains(says), "{messages}: {error}");
        }
    }

    #[test]
    fn protobuf_asks_the_same() {
        let message = ChatMessage { role: "user".into(), content: "a".into() };
        let request = GenerationRequest {
            messages: vec![message],
            max_tokens: 7,
            temperature: Some(0.5),
            top_k: Some(0),
            seed: Some(3),
            stop: vec!["b".into()],
            stream: true,
            ..GenerationRequest::default()
        };
        let written = json!({
            "messages": [{"role": "user", "content": "a"}], "max_tokens": 7, "temperature": 0.5,
            "top_k": 0, "seed": 3, "stop": "b", "stream": true,
        });
        let found = Request::read(&binary(&request), &DEFAULTS, 100).unwrap();
        assert_eq!(Ok(found), read(&written));
        let none = Request::read(&binary(&GenerationRequest::default()), &DEFAULTS, 100);
        assert!(none.unwrap_err().to_string().contains("messages is missing"));
    }

    #[test]
    fn protobuf_has_variables_usage_negative_seeds_and_empty_inputs_too() {
        let request = GenerationRequest {
            input: Some(String::new()),
            seed: Some(-3),
            include_usage: true,
            stream: true,
            chat_template_kwargs: r#"{"enable_thinking": false}"#.into(),
            ..GenerationRequest::default()
        };
        let written = json!({
            "input": "", "seed": -3, "stream": true, "stream_options": {"include_usage": true},
            "chat_template_kwargs": {"enable_thinking": false},
        });
        let found = Request::read(&binary(&request), &DEFAULTS, 100).unwrap();
        assert_eq!(Ok(found), read(&written));
    }

    #[test]
    fn what_protobuf_alone_can_say_wrongly_is_named() {
        let prompt = || GenerationRequest { prompt: Some("a".into()), ..Default::default() };
        for (request, says) in [
            (
                GenerationRequest { temperature: Some(f32::NAN), ..prompt() },
                "temperature is NaN; send a number that is finite",
            ),
            (
                GenerationRequest { presence_penalty: Some(f32::NEG_INFINITY), ..prompt() },
                "presence_penalty is -inf; send a number that is finite",
            ),
            (
                GenerationRequest { chat_template_kwargs: "{a}".into(), ..prompt() },
                "chat_template_kwargs is not JSON (",
            ),
            (
                GenerationRequest { chat_template_kwargs: "7".into(), ..prompt() },
                "chat_template_kwargs is 7; send an object",
            ),
        ] {
            let error = Request::read(&binary(&request), &DEFAULTS, 100).expect_err(says);
            assert!(error.to_string().starts_with(says), "{error}");
        }
    }
}
