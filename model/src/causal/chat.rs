//! How a conversation is written: the chat template of a model, which is Jinja as Python knows it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{AutoEscape, Environment, ErrorKind, State, Value, context};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::Serialize;
use serde_json::Map;

use super::Settings;
use super::settings::Template;
use crate::bert::check_length;
use crate::{ItemError, LoadError};

/// Work that a template may do for one prompt: about a step each, or 64 bytes written.
const FUEL: u64 = 5_000_000;
/// Bytes that a template writes for a step of it.
const BYTES_A_STEP: u64 = 64;

/// Messages of one conversation.
pub const MAX_MESSAGES: usize = 2048;

/// The one template of an environment.
const NAME: &str = "chat_template";

/// One message of a conversation, as templates see it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Message {
    /// Who speaks, such as `user`.
    pub role: String,
    /// What was said.
    pub content: String,
    /// What else some templates ask for.
    #[serde(flatten)]
    pub rest: Map<String, serde_json::Value>,
}

impl Message {
    /// Whether it is of those that each template is there to write.
    fn is_plain(&self) -> bool {
        self.rest.is_empty() && matches!(&*self.role, "system" | "user" | "assistant")
    }
}

/// A model's way to write a conversation.
pub struct ChatTemplate {
    environment: Environment<'static>,
    special: BTreeMap<String, String>,
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("special", &self.special).finish_non_exhaustive()
    }
}

/// What a template itself says of the messages, by `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

impl ChatTemplate {
    /// The template of a model that has one.
    ///
    /// # Errors
    /// When it is no template: where in which file.
    pub fn of(settings: &Settings) -> Result<Option<Self>, LoadError> {
        let compiled = |template| Self::compile(template, settings.special.clone());
        settings.template.as_ref().map(compiled).transpose()
    }

    fn compile(template: &Template, special: BTreeMap<String, String>) -> Result<Self, LoadError> {
        let malformed = |error: minijinja::Error| LoadError::malformed(&template.path, error);
        let mut environment = environment();
        let source = without_marks(&unix_lines(&template.source)).into_owned();
        environment.add_template_owned(NAME, source).map_err(malformed)?;
        Ok(Self { environment, special })
    }

    /// Writes a conversation up to where the answer begins; `field` is what the job has it in.
    ///
    /// A template may also read the special tokens, the variables of `more`, and the date, which it
    /// is told as UTC.
    ///
    /// # Errors
    /// When the template refuses the messages, in its own words, or does not get done with them.
    pub fn write(
        &self,
        (field, messages): (&str, &[Message]),
        more: &Map<String, serde_json::Value>,
        now: Timestamp,
    ) -> Result<String, ItemError> {
        if messages.is_empty() || messages.len() > MAX_MESSAGES {
            let n = messages.len();
            return Err(ItemError::new(format!("{field} has {n}; send 1 to {MAX_MESSAGES}")));
        }
        for (index, message) in messages.iter().enumerate() {
            let place =
                if field == "messages" { format!("[{index}].content") } else { String::new() };
            check_length(&format!("{field}{place}"), &message.content)?;
        }
        let strftime_now = move |format: &str| date(now, format);
        let own = context! {
            messages => Serde(messages),
            add_generation_prompt => true,
            tools => (),
            documents => (),
            strftime_now => Value::from_function(strftime_now),
        };
        // Of two of the same name the one that stands further to the left counts.
        let all = context! { ..own, ..Serde(more), ..Serde(&self.special) };
        let template = self.environment.get_template(NAME);
        template.and_then(|template| template.render(all)).map_err(|error| {
            let is_plain = more.is_empty() && messages.iter().all(Message::is_plain);
            refused(field, &error, is_plain)
        })
    }
}

/// What transformers gives a template, but for what depends on the job.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(unknown_method_callback);
    let mut syntax = SyntaxConfig::builder();
    syntax.trim_blocks(true).lstrip_blocks(true);
    environment.set_syntax(syntax.build().expect("the delimiters are the usual ones"));
    environment.add_function("raise_exception", |message: String| -> Result<Value, _> {
        let error = minijinja::Error::new(ErrorKind::InvalidOperation, "raised");
        Err(error.with_source(Raised(message)))
    });
    environment.add_filter("tojson", tojson);
    environment
}

fn date(now: Timestamp, format: &str) -> Result<String, minijinja::Error> {
    let now = now.to_zoned(TimeZone::UTC);
    let wrong = |error| {
        let message = format!("strftime_now: {format:?}: {error}");
        minijinja::Error::new(ErrorKind::InvalidOperation, message)
    };
    jiff::fmt::strtime::format(format, &now).map_err(wrong)
}

/// As transformers has it: Python's `json.dumps`, with its options in their order.
#[expect(clippy::needless_pass_by_value, reason = "filters take their options so")]
fn tojson(
    state: &State<'_, '_>,
    value: &Value,
    by_place: &[Value],
    named: Kwargs,
) -> Result<String, minijinja::Error> {
    let style = Style::of(by_place, &named)?;
    let mut json = Vec::new();
    let wrong = |error: serde_json::Error| {
        minijinja::Error::new(ErrorKind::BadSerialization, format!("tojson: {error}"))
    };
    let mut writer = serde_json::Serializer::with_formatter(&mut json, style.formatter());
    if style.sort_keys {
        // Its objects have their keys in order.
        let sorted = serde_json::to_value(value).map_err(wrong)?;
        sorted.serialize(&mut writer).map_err(wrong)?;
    } else {
        value.serialize(&mut writer).map_err(wrong)?;
    }
    state.consume_fuel(json.len() as u64 / BYTES_A_STEP)?;
    let json = String::from_utf8(json).expect("JSON is text");
    Ok(if style.ensure_ascii { ascii(&json) } else { json })
}

/// Options of `tojson`.
struct Style {
    ensure_ascii: bool,
    /// Spaces a level; without it all stands on one line.
    indent: Option<usize>,
    /// Between two values, and behind a key.
    separators: [String; 2],
    sort_keys: bool,
}

impl Style {
    /// From options by their place, or by name.
    fn of(by_place: &[Value], named: &Kwargs) -> Result<Self, minijinja::Error> {
        const NAMES: [&str; 4] = ["ensure_ascii", "indent", "separators", "sort_keys"];
        if by_place.len() > NAMES.len() {
            return Err(ErrorKind::TooManyArguments.into());
        }
        let mut options = [const { None }; NAMES.len()];
        for (place, (option, name)) in options.iter_mut().zip(NAMES).enumerate() {
            let named: Option<Value> = named.get(name)?;
            *option = by_place.get(place).cloned().or(named).filter(|value| !value.is_none());
        }
        named.assert_all_used()?;
        let [ensure_ascii, indent, separators, sort_keys] = options;
        let indent = indent.map(usize::try_from).transpose()?;
        let separators = match separators {
            Some(given) => pair(&given)?,
            // Nothing stands at the end of a line.
            None if indent.is_some() => [",".into(), ": ".into()],
            None => [", ".into(), ": ".into()],
        };
        let is_on = |option: Option<Value>| option.is_some_and(|value| value.is_true());
        let (ensure_ascii, sort_keys) = (is_on(ensure_ascii), is_on(sort_keys));
        Ok(Self { ensure_ascii, indent: indent.map(|n| n.min(16)), separators, sort_keys })
    }

    fn formatter(&self) -> Python<'_> {
        Python { style: self, level: 0, is_empty: true }
    }
}

fn pair(given: &Value) -> Result<[String; 2], minijinja::Error> {
    let texts = given.try_iter()?.map(|one| one.as_str().map(str::to_owned));
    let texts: Option<Vec<String>> = texts.collect();
    texts.and_then(|texts| texts.try_into().ok()).ok_or_else(|| {
        let message = format!("tojson: separators is {given}, not two texts");
        minijinja::Error::new(ErrorKind::InvalidOperation, message)
    })
}

/// JSON whose letters beyond ASCII are escaped, in two halves where one does not do.
fn ascii(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    let mut halves = [0; 2];
    for letter in json.chars() {
        if letter.is_ascii() && letter != '\u{7f}' {
            out.push(letter);
        } else {
            let halves = letter.encode_utf16(&mut halves);
            out.extend(halves.iter().map(|half| format!("\\u{half:04x}")));
        }
    }
    out
}

/// Writes as Python does.
struct Python<'a> {
    style: &'a Style,
    level: usize,
    /// Whether the list or object that was begun last has nothing in it yet.
    is_empty: bool,
}

impl Python<'_> {
    fn begin<W: ?Sized + Write>(&mut self, writer: &mut W, with: &[u8]) -> io::Result<()> {
        (self.level, self.is_empty) = (self.level + 1, true);
        writer.write_all(with)
    }

    fn end<W: ?Sized + Write>(&mut self, writer: &mut W, with: &[u8]) -> io::Result<()> {
        self.level -= 1;
        if !std::mem::replace(&mut self.is_empty, false) {
            self.line(writer)?;
        }
        writer.write_all(with)
    }

    fn next<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.is_empty = false;
        if !first {
            writer.write_all(self.style.separators[0].as_bytes())?;
        }
        self.line(writer)
    }

    fn line<W: ?Sized + Write>(&self, writer: &mut W) -> io::Result<()> {
        let Some(n) = self.style.indent else { return Ok(()) };
        writer.write_all(b"\n")?;
        writer.write_all(" ".repeat(n * self.level).as_bytes())
    }
}

impl serde_json::ser::Formatter for Python<'_> {
    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.begin(writer, b"[")
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.end(writer, b"]")
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.begin(writer, b"{")
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.end(writer, b"}")
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.next(out, first)
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.next(out, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.style.separators[1].as_bytes())
    }

    fn write_f64<W: ?Sized + Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(repr(value).as_bytes())
    }
}

/// A number as Python's `repr` has it: the fewest digits that mean it, with an exponent below 0.0001
/// and from 1e16 on.
fn repr(value: f64) -> String {
    let plain = 1e-4..1e16;
    if value == 0.0 || plain.contains(&value.abs()) {
        return format!("{value:?}");
    }
    let scientific = format!("{value:e}");
    let (digits, power) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let (sign, power) = power.strip_prefix('-').map_or(('+', power), |power| ('-', power));
    format!("{digits}e{sign}{power:0>2}")
}

/// An error of a template, for whoever sent the messages.
///
/// Where a plain conversation cannot be written the template is wrong. Of any other the job may have
/// brought what does not suit it, unless what is missing is nothing that a job can bring.
fn refused(field: &str, error: &minijinja::Error, is_plain: bool) -> ItemError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(one) = cause {
        if let Some(Raised(words)) = one.downcast_ref() {
            return ItemError::new(format!("{field}: the chat template says: {words}"));
        }
        cause = one.source();
    }
    if error.kind() == ErrorKind::OutOfFuel {
        let message = format!("{field}: the chat template does not get done with it; send less");
        return ItemError::new(message);
    }
    let (kind, line) = (error.kind(), error.line().unwrap_or(0));
    let detail = error.detail().map_or_else(String::new, |detail| format!(": {detail}"));
    let message = format!("{field}: the chat template fails in line {line}: {kind}{detail}");
    let lacks = matches!(
        kind,
        ErrorKind::UnknownFilter | ErrorKind::UnknownFunction | ErrorKind::UnknownTest
    );
    if is_plain || lacks { ItemError::of_model(message) } else { ItemError::new(message) }
}

/// Lines end as Jinja has them, wherever the file was written.
fn unix_lines(source: &str) -> Cow<'_, str> {
    if source.contains('\r') {
        Cow::Owned(source.replace("\r\n", "\n").replace('\r', "\n"))
    } else {
        Cow::Borrowed(source)
    }
}

/// The template without the marks around answers that only training asks for.
fn without_marks(source: &str) -> Cow<'_, str> {
    const OPEN: &str = "{%";
    let mut rest = source;
    let mut out = String::new();
    while let Some(start) = rest.find(OPEN) {
        let Some(end) = rest[start..].find("%}").map(|n| start + n) else { break };
        let inner = &rest[start + OPEN.len()..end];
        let tag = inner.trim_matches(['-', '+', ' ', '\t', '\r', '\n']);
        let instead = match tag {
            "generation" => Some("if true"),
            "endgeneration" => Some("endif"),
            _ => None,
        };
        // Behind the opening only, since a text in a tag may hold another one.
        let next = if instead.is_some() { end } else { start + OPEN.len() };
        match instead {
            Some(instead) => {
                out.push_str(&rest[..start + OPEN.len()]);
                out.push_str(&inner.replacen(tag, &format!(" {instead} "), 1));
            }
            None => out.push_str(&rest[..next]),
        }
        rest = &rest[next..];
    }
    if out.is_empty() { Cow::Borrowed(source) } else { Cow::Owned(out + rest) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn template(source: &str) -> ChatTemplate {
        let template = Template { path: "chat_template.jinja".into(), source: source.to_owned() };
        let special = [("bos_token", "<s>"), ("eos_token", "</s>")];
        let special = special.map(|(purpose, token)| (purpose.to_owned(), token.to_owned()));
        ChatTemplate::compile(&template, special.into()).unwrap()
    }

    fn message(role: &str, content: &str) -> Message {
        Message { role: role.to_owned(), content: content.to_owned(), rest: Map::new() }
    }

    fn tried(source: &str, more: &serde_json::Value) -> Result<String, ItemError> {
        let messages = [message("user", "Where is  Ångström?\n"), message("assistant", "There.")];
        let now: Timestamp = "2026-02-03T23:59:00Z".parse().unwrap();
        template(source).write(("messages", &messages), more.as_object().unwrap(), now)
    }

    fn written_with(source: &str, more: &serde_json::Value) -> Result<String, String> {
        tried(source, more).map_err(|error| error.to_string())
    }

    fn written(source: &str) -> Result<String, String> {
        written_with(source, &json!({}))
    }

    #[test]
    fn a_template_reads_what_transformers_gives_it() {
        for (source, expected) in [
            ("{{ bos_token }}{{ messages[0].role }}{{ eos_token }}", "<s>user</s>"),
            ("{{ messages[0]['content'] | trim }}|", "Where is  Ångström?|"),
            ("{{ messages[0].content.strip().split('  ')[-1] }}", "Ångström?"),
            ("{{ messages[-1].content.startswith('There') }}", "True"),
            ("{% if tools is none and not documents %}none{% endif %}", "none"),
            ("{% if pad_token is not defined %}unknown{% endif %}", "unknown"),
            ("{{ strftime_now('%d %b %Y') }}", "03 Feb 2026"),
            ("{% if add_generation_prompt %}on{% endif %}", "on"),
            ("{% for m in messages[::-1] %}{{ loop.index0 }}{{ m.role[0] }}{% endfor %}", "0a1u"),
            ("{% for k, v in messages[1].items() %}{{ k }},{% endfor %}", "role,content,"),
            ("{{ messages | map(attribute='role') | join('+') }}", "user+assistant"),
            (
                "{% set ns = namespace(n=1) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}\
              {% endfor %}{{ ns.n }}",
                "3",
            ),
            (
                "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
                "user",
            ),
            (
                "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% endfor %}",
                "assistant",
            ),
            ("{% macro say(m) %}[{{ m.role }}]{% endmacro %}{{ say(messages[0]) }}", "[user]"),
            ("{{ nothing }}{{ messages[0].nothing }}.", "."),
            ("{{ '<b> & \"' }}", "<b> & \""),
        ] {
            assert_eq!(written(source), Ok(expected.to_owned()), "{source}");
        }
    }

    #[test]
    fn a_template_may_write_the_tokens_that_only_the_class_of_the_tokenizer_has() {
        let data = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-llama");
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(data.join("config.json"), dir.path().join("config.json")).unwrap();
        let source =
            "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}";
        for (class, expected) in [("LlamaTokenizer", "<s>a</s>"), ("PreTrainedTokenizerFast", "a")]
        {
            let config = json!({"chat_template": source, "tokenizer_class": class}).to_string();
            std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
            let template = ChatTemplate::of(&Settings::read(dir.path()).unwrap()).unwrap().unwrap();
            let messages = [message("user", "a")];
            let written =
                template.write(("messages", &messages), &Map::new(), Timestamp::UNIX_EPOCH);
            assert_eq!(written.unwrap(), expected, "{class}");
        }
    }

    #[test]
    fn lines_of_blocks_alone_leave_nothing() {
        let source = "  {% for m in messages %}\n{{ m.role }}\n  {% endfor %}\nend\n";
        assert_eq!(written(source), Ok("user\nassistant\nend".to_owned()));
        let source = source.replace('\n', "\r\n");
        assert_eq!(written(&source), Ok("user\nassistant\nend".to_owned()));
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        let more =
            json!({"x": {"b": [1, 2.5, null, true], "a": "Å\n<"}, "y": {"b": [1, []], "c": {}}});
        for (source, expected) in [
            ("{{ x | tojson }}", r#"{"a": "Å\n<", "b": [1, 2.5, null, true]}"#),
            ("{{ y | tojson(indent=2) }}", "{\n  \"b\": [\n    1,\n    []\n  ],\n  \"c\": {}\n}"),
            ("{{ [1, 2] | tojson(false, 1) }}", "[\n 1,\n 2\n]"),
            ("{{ [1, 2] | tojson(indent=none) }}", "[1, 2]"),
            ("{{ [1, 2] | tojson(indent=0) }}", "[\n1,\n2\n]"),
            ("{{ y | tojson(separators=(',', ':')) }}", r#"{"b":[1,[]],"c":{}}"#),
            (
                "{{ {'b': 1, 'a': {'d': 2, 'c': 3}} | tojson }}",
                r#"{"b": 1, "a": {"d": 2, "c": 3}}"#,
            ),
            (
                "{{ {'b': 1, 'a': {'d': 2, 'c': 3}} | tojson(sort_keys=true) }}",
                r#"{"a": {"c": 3, "d": 2}, "b": 1}"#,
            ),
            ("{{ 'Å🚀\u{7f}' | tojson(ensure_ascii=true) }}", r#""\u00c5\ud83d\ude80\u007f""#),
            ("{{ messages[1] | tojson }}", r#"{"role": "assistant", "content": "There."}"#),
        ] {
            assert_eq!(written_with(source, &more), Ok(expected.to_owned()), "{source}");
        }
        for wrong in ["tojson(separators=[1, 2])", "tojson(separators=['a'])", "tojson(other=1)"] {
            let error = written_with(&format!("{{{{ x | {wrong} }}}}"), &more).expect_err(wrong);
            assert!(error.contains("the chat template fails in line 1"), "{error}");
        }
    }

    #[test]
    fn numbers_in_json_are_written_as_python_writes_them() {
        let numbers = [
            (1e20, "1e+20"),
            (1e16, "1e+16"),
            (1e15, "1000000000000000.0"),
            (9_007_199_254_740_992.0, "9007199254740992.0"),
            (12_345_678_901_234_567_000.0, "1.2345678901234567e+19"),
            (123_456_789.5, "123456789.5"),
            (0.0001, "0.0001"),
            (0.000_012, "1.2e-05"),
            (-1.5e-7, "-1.5e-07"),
            (2.5e-10, "2.5e-10"),
            (1e300, "1e+300"),
            (5e-324, "5e-324"),
            (1.0, "1.0"),
            (-0.0, "-0.0"),
        ];
        for (number, expected) in numbers {
            let found = written_with("{{ x | tojson }}", &json!({"x": number}));
            assert_eq!(found, Ok(expected.to_owned()));
        }
    }

    #[test]
    fn long_json_is_paid_for_as_other_text_is() {
        let long = json!({"x": "a".repeat(1 << 20)});
        let source = "{% for n in range(100) %}{% set y = x | tojson %}{% endfor %}.";
        assert_eq!(written_with(source, &long), Ok(".".to_owned()));
        let source = source.replace("100", "1000");
        assert!(written_with(&source, &long).unwrap_err().contains("does not get done"));
    }

    #[test]
    fn what_a_job_adds_is_read_but_takes_nothing_away() {
        let more = json!({"enable_thinking": false, "messages": [], "bos_token": "<x>"});
        let source = "{{ enable_thinking }} {{ messages | length }} {{ bos_token }}";
        assert_eq!(written_with(source, &more), Ok("False 2 <x>".to_owned()));
    }

    #[test]
    fn marks_for_training_change_nothing() {
        let source = "{%- for m in messages %}{% generation %}{{ m.role }} {%- endgeneration -%} \n {{ '{%' }}\
                      {% endfor %}";
        assert_eq!(written(source), Ok("user{%assistant{%".to_owned()));
        assert!(matches!(without_marks("{{ a }}{% if b %}{% endif %}"), Cow::Owned(text)
            if text == "{{ a }}{% if b %}{% endif %}"));
    }

    #[test]
    fn what_goes_wrong_is_named() {
        for (source, says) in [
            (
                "{{ raise_exception('Roles must alternate!') }}",
                "template says: Roles must alternate!",
            ),
            (
                "{% macro m() %}{{ raise_exception('inside') }}{% endmacro %}{{ m() }}",
                "template says: inside",
            ),
            ("a\n{{ messages[0].a.b }}", "fails in line 2: undefined value"),
            ("{{ messages[0].content.no_method() }}", "fails in line 1: unknown method"),
            ("{{ nothing() }}", "fails in line 1: unknown function"),
            (
                "{% for a in range(9999) %}{% for b in range(9999) %}{{ b }}{% endfor %}{% endfor %}",
                "does not get done",
            ),
            ("{{ 'x' * 999999999 }}", "does not get done"),
            ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion limit"),
            ("{{ strftime_now('%Q%') }}", "strftime_now"),
        ] {
            let error = written(source).expect_err(source);
            assert!(error.starts_with("messages: the chat template "), "{source}: {error}");
            assert!(error.contains(says), "{source}: {error}");
        }
        for n in [0, MAX_MESSAGES + 1] {
            let messages = vec![message("user", "a"); n];
            let error =
                template("").write(("messages", &messages), &Map::new(), Timestamp::UNIX_EPOCH);
            let expected = format!("messages has {n}; send 1 to 2048");
            assert_eq!(error.unwrap_err().to_string(), expected);
        }
        let long = [message("user", "a"), message("user", &"a".repeat(2 << 20))];
        for (field, says) in [("messages", "messages[1].content"), ("input", "input")] {
            let error = template("").write((field, &long), &Map::new(), Timestamp::UNIX_EPOCH);
            let error = error.unwrap_err().to_string();
            assert!(error.starts_with(&format!("{says} is a text of 2097152")), "{error}");
        }
    }

    #[test]
    fn a_template_that_fails_is_the_models_fault_unless_the_job_may_have_brought_it_about() {
        let (plain, more) = (json!({}), json!({"n": 1}));
        for (source, of_plain, of_more) in [
            ("{{ raise_exception('Roles must alternate!') }}", false, false),
            ("{{ 'x' * 999999999 }}", false, false),
            ("{{ messages[0].content | shout }}", true, true),
            ("{{ nothing() }}", true, true),
            ("{{ messages[0].content is loud }}", true, true),
            ("{{ messages[0].content.shout() }}", true, false),
            ("{{ messages[0].name.upper() }}", true, false),
            ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", true, false),
        ] {
            for (more, expected) in [(&plain, of_plain), (&more, of_more)] {
                let error = tried(source, more).expect_err(source);
                assert_eq!(error.is_models(), expected, "{source} with {more}: {error}");
            }
        }
        let broken = template("{{ messages[0].content.shout() }}");
        let named = Map::from_iter([("name".to_owned(), "a".into())]);
        for odd in [message("tool", "a"), Message { rest: named, ..message("user", "a") }] {
            let error = broken.write(("messages", &[odd]), &Map::new(), Timestamp::UNIX_EPOCH);
            assert!(!error.unwrap_err().is_models());
        }
    }

    #[test]
    fn what_is_no_template_is_named_with_its_file() {
        let wrong = Template { path: "chat_template.jinja".into(), source: "{% if %}".into() };
        let error = ChatTemplate::compile(&wrong, BTreeMap::new()).unwrap_err().to_string();
        assert!(error.starts_with("chat_template.jinja: syntax error"), "{error}");
    }
}
