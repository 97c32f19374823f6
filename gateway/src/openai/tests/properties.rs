//! What holds of any request and any answer.

use proptest::prelude::*;
use proptest::sample::Index;

use super::fields::says_nothing;
use super::*;

/// JSON of any shape, with the names that a request or an answer has.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(vec!["", "text", "user", "words", "stop"]).prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(any_name(), inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn any_name() -> impl Strategy<Value = String> {
    let names: Vec<&str> = ROUTES.into_iter().flat_map(Route::passed).collect();
    let own = [
        "input",
        "inputs",
        "prompt",
        "messages",
        "documents",
        "texts",
        "model",
        "n",
        "stream",
        "seed",
        "role",
        "content",
        "type",
        "text",
        "tools",
        "stream_options",
        "data",
        "choices",
        "usage",
    ];
    let name = prop::sample::select([&names[..], &own].concat()).prop_map(str::to_owned);
    prop_oneof![4 => name, 1 => ".{0,4}"]
}

/// A request that is answered, and the result of a job of it.
fn valid(route: Route) -> (Value, Value) {
    let usage = json!({"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4});
    let (body, mut result) = match route {
        Route::Embeddings => (
            json!({"model": "m", "input": ["a", "b"], "encoding_format": "float", "dimensions": 8}),
            json!({"data": [{"embedding": [0.5], "index": 0, "truncated": false}]}),
        ),
        Route::Embed => (
            json!({"inputs": ["a", "b"], "normalize": true, "dimensions": 8}),
            json!({"data": [{"embedding": [0.5], "index": 0, "truncated": false}]}),
        ),
        Route::ChatCompletions => (
            json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
                "temperature": 1, "stop": ["b"], "n": 2, "seed": 7, "stream_options": {}}),
            json!({"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]}),
        ),
        Route::Completions => (
            json!({"prompt": ["a", "b"], "max_tokens": 3, "top_p": 0.5, "stream": false}),
            json!({"choices": [{"text": "a", "finish_reason": "length", "truncated": true}]}),
        ),
        Route::Rerank => (
            json!({"query": "q", "documents": ["a", {"text": "b"}], "top_n": 1}),
            json!({"results": [{"index": 0, "relevance_score": 0.5, "document": {"text": "a"}}]}),
        ),
        Route::Classify => (
            json!({"inputs": [["a"], ["b"]], "top_k": 1, "truncate": true}),
            json!({"data": [{"index": 0, "scores": [{"label": "a", "score": 1}]}]}),
        ),
    };
    result["usage"] = usage;
    (body, result)
}

/// A change somewhere in a value.
#[derive(Debug, Clone)]
struct Change {
    way: Vec<Index>,
    name: String,
    to: Option<Value>,
}

impl Change {
    fn any() -> impl Strategy<Value = Self> {
        let way = prop::collection::vec(any::<Index>(), 0..5);
        (way, any_name(), prop::option::of(any_json())).prop_map(|(way, name, to)| Self {
            way,
            name,
            to,
        })
    }

    /// Goes down as far as the way does, and puts, replaces or takes something away there.
    fn make(&self, mut value: &mut Value) {
        for step in &self.way {
            let inner: Vec<&mut Value> = match value {
                Value::Array(items) => items.iter_mut().collect(),
                Value::Object(fields) => fields.values_mut().collect(),
                _ => break,
            };
            let n = inner.len();
            let Some(next) = (n > 0).then(|| inner.into_iter().nth(step.index(n))).flatten() else {
                return;
            };
            value = next;
        }
        match (value, &self.to) {
            (Value::Object(fields), Some(to)) => {
                fields.insert(self.name.clone(), to.clone());
            }
            (Value::Object(fields), None) => {
                fields.remove(&self.name);
            }
            (Value::Array(items), Some(to)) => items.push(to.clone()),
            (Value::Array(items), None) => {
                items.pop();
            }
            (other, Some(to)) => *other = to.clone(),
            (other, None) => *other = Value::Null,
        }
    }
}

fn changed(mut value: Value, changes: &[Change]) -> Value {
    changes.iter().for_each(|change| change.make(&mut value));
    value
}

#[test]
fn what_the_properties_begin_with_is_answered() {
    for route in ROUTES {
        let (body, result) = valid(route);
        let asked = asked(route, &body).unwrap();
        let results = vec![completed(&result); asked.bodies.len()];
        asked.answer.whole(&about(), &results).unwrap();
    }
}

/// Whether a refusal is one, and no larger than people read.
fn is_told_well(refused: &Refused) -> bool {
    let is_status = matches!(refused.status, 400 | 410 | 413 | 500 | 504);
    is_status && !refused.message.is_empty() && refused.body().len() < 4000
}

proptest! {
    #[test]
    fn a_request_is_jobs_of_json_or_is_refused_however_it_is_changed(
        changes in prop::collection::vec(Change::any(), 0..3),
        of_results in prop::collection::vec(Change::any(), 0..3),
    ) {
        for route in ROUTES {
            let (body, result) = valid(route);
            let asked = match asked(route, &changed(body, &changes)) {
                Ok(asked) => asked,
                Err(refused) => {
                    prop_assert!(is_told_well(&refused), "{refused:?}");
                    continue;
                }
            };
            prop_assert!((1..=16).contains(&asked.bodies.len()));
            for body in &asked.bodies {
                prop_assert!(parsed(body).is_object());
            }
            let result = completed(&changed(result, &of_results));
            match asked.answer.whole(&about(), &vec![result; asked.bodies.len()]) {
                Ok(whole) => prop_assert!(serde_json::from_slice::<Value>(&whole).is_ok()),
                Err(refused) => prop_assert!(is_told_well(&refused), "{refused:?}"),
            }
        }
    }

    #[test]
    fn a_stream_ends_once_whatever_pieces_and_whichever_result_come(
        lines in prop::collection::vec(prop_oneof![
            any_json(),
            ".{0,4}".prop_map(|text| json!({"choices": [{"text": text}]})),
            ".{0,4}".prop_map(|text| json!({"choices": [{"delta": {"content": text}}]})),
        ], 0..5),
        cut in any::<Index>(),
        of_result in prop::collection::vec(Change::any(), 0..2),
    ) {
        let lines: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let (first, second) = lines.as_bytes().split_at(cut.index(lines.len() + 1));
        for route in ROUTES {
            let (mut body, result) = valid(route);
            if let Some(fields) = body.as_object_mut() {
                fields.remove("n");
            }
            let mut stream = asked(route, &body).unwrap().answer.stream(&about());
            let mut events = stream.piece(first);
            events.extend(stream.piece(second));
            events.extend(stream.end(&completed(&changed(result, &of_result))));
            prop_assert!(stream.is_ended());
            prop_assert_eq!(stream.piece(b"more\n"), Vec::<Bytes>::new());
            let (last, before) = events.split_last().unwrap();
            let is_error = |event: &Bytes| parsed(event).get("error").is_some();
            prop_assert!(last == "[DONE]" || is_error(last));
            prop_assert!(!before.iter().any(|event| event == "[DONE]" || is_error(event)));
        }
    }

    #[test]
    fn whether_a_value_says_nothing_is_seen_from_how_it_is_written(
        value in prop_oneof![any_json(), Just(json!({})), Just(json!([])), Just(json!(-0.0)), Just(json!(0))],
        is_spaced in any::<bool>(),
    ) {
        let written = if is_spaced { format!("{value:#}") } else { value.to_string() };
        let raw: Box<serde_json::value::RawValue> = serde_json::from_str(&written).unwrap();
        let expected = match &value {
            Value::Null | Value::Bool(false) => true,
            Value::Bool(true) => false,
            Value::Number(number) => number.as_f64() == Some(0.0),
            Value::String(text) => text.is_empty(),
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
        };
        prop_assert_eq!(says_nothing(&raw), expected, "{}", written);
    }

    #[test]
    fn no_text_panics(body in prop_oneof![any_json().prop_map(|it| it.to_string()), ".{0,64}"]) {
        for route in ROUTES {
            if let Err(refused) = read(route, body.as_bytes(), &BOUNDS) {
                prop_assert!(is_told_well(&refused), "{refused:?}");
            }
        }
    }

    #[test]
    fn no_bytes_panic(body in prop::collection::vec(any::<u8>(), 0..64)) {
        for route in ROUTES {
            prop_assert!(read(route, &body, &BOUNDS).is_err());
        }
    }
}
