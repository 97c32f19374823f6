//! What is not answered, and what is said then.

use proptest::prelude::*;

use super::*;

#[track_caller]
fn refuses(route: Route, body: &Value, param: &str, says: &str) {
    let refused = asked(route, body).expect_err(says);
    assert!(refused.message.starts_with(says), "{body}: {refused}");
    assert_eq!((refused.status, refused.param.as_deref()), (400, Some(param)), "{body}: {refused}");
}

#[test]
fn texts_that_are_none_are_named_by_their_places() {
    let embeddings = |body: Value, param, says| refuses(Route::Embeddings, &body, param, says);
    embeddings(json!({"model": "m"}), "input", "input is missing; send a text or a list");
    embeddings(json!({"input": []}), "input", "input has 0; send 1 to 16");
    embeddings(json!({"input": vec!["a"; 17]}), "input", "input has 17; send 1 to 16");
    embeddings(json!({"input": [1, 2]}), "input[0]", "input[0] is 1; send texts, not tokens");
    embeddings(json!({"input": ["a", [1, 2]]}), "input[1]", "input[1] is [1,2]; send texts");
    embeddings(json!({"input": {"text": "a"}}), "input", "input is an object; send a text or a");
    embeddings(json!({"input": 7}), "input", "input is a number; send a text or a list");
    let rerank = |body: Value, param, says| refuses(Route::Rerank, &body, param, says);
    rerank(json!({"documents": ["a"]}), "query", "query is missing; send a text");
    rerank(json!({"query": "q"}), "documents", "documents is missing");
    rerank(json!({"query": "q", "documents": "a"}), "documents", "documents is a text; send");
    rerank(
        json!({"query": "q", "documents": ["a"], "texts": ["b"]}),
        "texts",
        "documents and texts",
    );
    let odd = json!({"query": "q", "documents": ["a", {"title": "b"}]});
    rerank(odd, "documents[1]", r#"documents[1] is {"title":"b"}; send a text or {"text""#);
    let classify = |body: Value, param, says| refuses(Route::Classify, &body, param, says);
    classify(json!({"inputs": ["a", "b"]}), "inputs[0]", r#"inputs[0] is "a"; send a text, or [["#);
    classify(
        json!({"inputs": [["a", "b"]]}),
        "inputs[0]",
        r#"inputs[0] is ["a","b"]; send a text"#,
    );
    classify(json!({"inputs": "a", "input": "b"}), "inputs", "input and inputs are both given");
}

#[test]
fn what_would_change_the_answer_and_is_not_there_is_refused_by_name() {
    let chat = |more: Value, param, says| {
        let mut body = json!({"messages": [{"role": "user", "content": "a"}]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        refuses(Route::ChatCompletions, &body, param, says);
    };
    chat(json!({"tools": [{"type": "function"}]}), "tools", "tools is [{\"type\"");
    chat(json!({"tool_choice": "required"}), "tool_choice", "tool_choice is \"required\"; a model");
    chat(
        json!({"response_format": {"type": "json_object"}}),
        "response_format",
        "response_format is",
    );
    chat(json!({"logprobs": true}), "logprobs", "logprobs is true; probabilities are not told");
    chat(json!({"logit_bias": {"7": 1}}), "logit_bias", "logit_bias is {\"7\":1}; it is not known");
    chat(json!({"documents": ["a"]}), "documents", "documents is not for this route; write them");
    chat(json!({"web_search_options": {}}), "web_search_options", "web_search_options is {}");
    chat(json!({"do_sample": false}), "do_sample", "do_sample is false; say it by temperature");
    chat(json!({"temprature": 1}), "temprature", "temprature is not known here; leave it out");
    chat(json!({"input": "a"}), "input", "input is not known here");
    let prompt = |name: &str, value: Value| {
        let says = format!("{name} is {value}; ");
        refuses(Route::Completions, &json!({"prompt": "a", name: value}), name, &says);
    };
    prompt("echo", json!(true));
    prompt("suffix", json!("b"));
    prompt("logprobs", json!(0));
    prompt("best_of", json!(2));
    let rerank = json!({"query": "q", "documents": ["a"], "rank_fields": ["title"]});
    refuses(Route::Rerank, &rerank, "rank_fields", "rank_fields is [\"title\"]; send the texts");
}

#[test]
fn numbers_that_no_worker_takes_are_refused_at_once() {
    for (name, value, says) in [
        ("temperature", json!(2.5), "temperature is 2.5; send a number from 0 to 2"),
        ("temperature", json!("hot"), "temperature is \"hot\"; send a number"),
        ("top_p", json!(-1), "top_p is -1; send a number from 0 to 1"),
        ("max_tokens", json!(0), "max_tokens is 0; send a whole number from 1 on"),
        ("n", json!(0), "n is 0; send a whole number from 1 on"),
        ("n", json!(17), "n is 17; send 1 to 16"),
        ("n", json!(u64::MAX), "n is 18446744073709551615; send 1 to 16"),
        ("seed", json!(0.5), "seed is 0.5; send a whole number of 64 bits"),
        ("stop", json!(["a", "b", "c", "d", "e"]), "stop is [\"a\","),
        ("stop", json!(""), "stop is \"\"; send a text or a list"),
        ("stream", json!("yes"), "stream is \"yes\"; send true or false"),
        ("stream_options", json!({"include_usage": 1}), "stream_options is {"),
        ("model", json!(7), "model is 7; send a text"),
    ] {
        refuses(Route::Completions, &json!({"prompt": "a", name: value}), name, says);
    }
    let two = json!({"prompt": ["a", "b"], "stream": true});
    refuses(
        Route::Completions,
        &two,
        "prompt",
        "stream is true and 2 answers are asked for; a stream",
    );
    let two = json!({"prompt": "a", "n": 2, "stream": true});
    refuses(Route::Completions, &two, "n", "stream is true and 2 answers are asked for; a stream");
}

#[test]
fn what_is_wrong_with_a_message_is_named_by_its_place() {
    let part = |part: Value| json!([{"role": "user", "content": [part]}]);
    for (messages, param, says) in [
        (json!("hello"), "messages", "messages is a text; send a list of objects with role"),
        (json!([]), "messages", "messages has none; send a list"),
        (json!(["hello"]), "messages[0]", "messages[0] is a text; send a list"),
        (json!([{"content": "a"}]), "messages[0].role", "messages[0].role is missing; send a text"),
        (json!([{"role": "user"}]), "messages[0].content", "messages[0].content is missing"),
        (json!([{"role": 1, "content": "a"}]), "messages[0].role", "messages[0].role is 1; send"),
        (
            part(json!("a")),
            "messages[0].content",
            "messages[0].content is [\"a\"]; send a text, or",
        ),
        (
            part(json!({"type": "image_url"})),
            "messages[0].content[0].type",
            "messages[0].content[0]",
        ),
        (
            part(json!({"type": "text"})),
            "messages[0].content[0].text",
            "messages[0].content[0].text",
        ),
        (
            json!([{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}]),
            "messages[0].tool_calls",
            "messages[0].tool_calls is [{\"id\":\"1\"}]; a model calls no tools",
        ),
    ] {
        refuses(Route::ChatCompletions, &json!({"messages": messages}), param, says);
    }
    refuses(Route::ChatCompletions, &json!({}), "messages", "messages is missing; send a list");
}

#[test]
fn a_body_that_is_no_object_or_too_large_or_says_a_thing_twice_is_refused() {
    for (body, status, says) in [
        (&b"not JSON"[..], 400, "body: expected ident at line 1"),
        (b"[]", 400, "body: invalid type: sequence, expected an object"),
        (b"{\"input\": \"a\"", 400, "body: EOF while parsing an object"),
        (b"{\"input\": \"\xff\"}", 400, "body: invalid unicode code point"),
        (b"{\"input\": \"a\", \"input\": \"b\"}", 400, "body: input is there twice"),
        (
            b"{\"model\": \"a\", \"model\": \"b\", \"input\": \"b\"}",
            400,
            "body: model is there twice",
        ),
        (&[b' '; (1 << 20) + 1], 413, "body has 1048577 bytes; send at most 1048576"),
    ] {
        let refused = read(Route::Embeddings, body, &BOUNDS).expect_err(says);
        assert!(refused.message.starts_with(says), "{refused}");
        assert_eq!((refused.status, refused.param), (status, None));
    }
}

#[test]
fn what_is_the_same_of_many_jobs_is_not_multiplied_without_bounds() {
    let bounds = Bounds { max_inputs: 1000, max_body: 4000 };
    let long = "a".repeat(1000);
    let prompt = |n: u64| json!({"prompt": long, "n": n});
    let named = |n: usize| json!({"input": vec!["a"; n], "prompt_name": long});
    for (route, fits, does_not) in [
        (Route::Completions, prompt(7), prompt(8)),
        (Route::Embeddings, named(7), named(8)),
        (
            Route::Classify,
            json!({"input": ["a"]}),
            json!({"input": vec!["a"; 8], "aggregation": long}),
        ),
    ] {
        let read = |body: &Value| read(route, body.to_string().as_bytes(), &bounds);
        assert!(read(&fits).is_ok(), "{route:?}");
        let refused = read(&does_not).unwrap_err();
        assert_eq!((refused.status, refused.code), (413, "jobs_too_large"), "{refused}");
        assert!(refused.message.starts_with("the 8 jobs of this request have 8"), "{refused}");
    }
}

#[test]
fn an_error_has_the_shape_of_openais() {
    let refused = asked(Route::Embeddings, &json!({"input": [1]})).unwrap_err();
    let expected = json!({"error": {
        "message": "input[0] is 1; send texts, not tokens", "type": "invalid_request_error",
        "param": "input[0]", "code": "invalid_value",
    }});
    assert_eq!(parsed(&refused.body()), expected);
    let kinds = [401, 403, 404, 429, 503].map(|status| Refused::new(status, "x", "y").kind);
    let expected = [
        "authentication_error",
        "permission_error",
        "invalid_request_error",
        "rate_limit_error",
        "server_error",
    ];
    assert_eq!(kinds, expected);
}

#[test]
fn a_job_that_ended_otherwise_is_told_with_the_place_of_its_text() {
    let body = json!({"input": ["a", "b", "c"]});
    let answer = asked(Route::Embeddings, &body).unwrap().answer;
    let fine = completed(
        &json!({"data": [{"embedding": [1]}], "usage": {"prompt_tokens": 1, "total_tokens": 1}}),
    );
    for (ended, status, param, message) in [
        (
            failed("input[0] has 72 tokens; send less"),
            400,
            Some("input[1]"),
            "input[1] has 72 tokens; send less",
        ),
        (
            failed("dimensions is 9; ask for 1 to 8"),
            400,
            Some("dimensions"),
            "dimensions is 9; ask for 1 to 8",
        ),
        (
            failed("attempt 5 of 5 failed: no"),
            500,
            Some("input[1]"),
            "input[1]: attempt 5 of 5 failed: no",
        ),
        (
            failed("too late: the deadline"),
            504,
            Some("input[1]"),
            "input[1]: too late: the deadline",
        ),
        (
            failed("expired"),
            504,
            Some("input[1]"),
            "input[1]: nobody ran the job before its deadline",
        ),
        (Ended::Expired, 504, Some("input[1]"), "input[1]: nobody ran the job before its deadline"),
        (Ended::Cancelled, 410, Some("input[1]"), "input[1]: the job was cancelled"),
    ] {
        let results = [fine.clone(), ended.clone(), failed("later")];
        let refused = answer.whole(&about(), &results).unwrap_err();
        let Refused { status: found, param: place, message: words, .. } = &refused;
        assert_eq!(
            (*found, place.as_deref(), words.as_str()),
            (status, param, message),
            "{ended:?}"
        );
        assert_eq!(refused.is_worth_another_try(), status == 504, "{ended:?}");
    }
}

#[test]
fn a_reason_speaks_of_the_fields_that_the_client_has() {
    let texts = json!({"query": "q", "texts": ["a", "b"]});
    for (route, body, reason, param, message) in [
        (
            Route::Rerank,
            texts,
            "documents[1] with the query has 9",
            "texts[1]",
            "texts[1] with the query has 9",
        ),
        (Route::Classify, json!({"inputs": "a"}), "input[0] has 9", "inputs", "inputs has 9"),
        (
            Route::Completions,
            json!({"prompt": "a"}),
            "prompt has 9 tokens",
            "prompt",
            "prompt has 9 tokens",
        ),
        (
            Route::Completions,
            json!({"prompt": ["a", "b"], "n": 2}),
            "prompt has 9 tokens",
            "prompt[0]",
            "prompt[0] has 9 tokens",
        ),
        (
            Route::ChatCompletions,
            json!({"messages": [{"role": "user", "content": "a"}]}),
            "messages: the model has no chat template",
            "messages",
            "messages: the model has no chat template",
        ),
    ] {
        let asked = asked(route, &body).unwrap();
        let results = vec![failed(reason); asked.bodies.len()];
        let refused = asked.answer.whole(&about(), &results).unwrap_err();
        assert_eq!((refused.status, refused.message.as_str()), (400, message), "{body}");
        assert_eq!(refused.param.as_deref(), Some(param), "{body}");
    }
}

/// JSON of any shape, with the names that a request has.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
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
    leaf.prop_recursive(4, 32, 6, move |inner| {
        let name = prop_oneof![4 => name.clone(), 1 => ".{0,4}"];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(name, inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_body_panics_and_what_is_read_is_jobs_of_json(
        body in prop_oneof![any_json().prop_map(|it| it.to_string()), ".{0,64}"],
        results in prop::collection::vec(any_json(), 0..4),
    ) {
        for route in ROUTES {
            let Ok(asked) = read(route, body.as_bytes(), &BOUNDS) else { continue };
            prop_assert!((1..=16).contains(&asked.bodies.len()));
            for body in &asked.bodies {
                prop_assert!(parsed(body).is_object());
            }
            let results: Vec<Ended> = results.iter().map(completed).collect();
            prop_assert!(asked.answer.whole(&about(), &results).is_err() || results.is_empty());
            let mut stream = asked.answer.stream(&about());
            stream.piece(body.as_bytes());
            stream.end(&failed(&body));
        }
    }

    #[test]
    fn no_bytes_panic(body in prop::collection::vec(any::<u8>(), 0..64)) {
        for route in ROUTES {
            prop_assert!(read(route, &body, &BOUNDS).is_err());
        }
    }
}
