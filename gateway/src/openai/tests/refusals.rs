//! What is not answered, and what is said then.

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
    embeddings(
        json!({"input": [1, 2]}),
        "input[0]",
        "input[0] is 1; send texts, not tokens (LangChain: check_",
    );
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
        ("stop", json!([["a"]]), "stop is [[\"a\"]]; send a text or a list"),
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
        (json!([]), "messages", "messages has 0; send 1 to 2048"),
        (json!(["hello"]), "messages[0]", "messages[0] is \"hello\"; send a list"),
        (json!([{"content": "a"}]), "messages[0].role", "messages[0].role is missing; send a text"),
        (json!([{"role": "user"}]), "messages[0].content", "messages[0].content is missing"),
        (json!([{"role": 1, "content": "a"}]), "messages[0].role", "messages[0].role is 1; send"),
        (
            json!([{"role": "user", "content": 7}]),
            "messages[0].content",
            "messages[0].content is 7; send a text, or a list of parts",
        ),
        (
            part(json!("a")),
            "messages[0].content[0]",
            "messages[0].content[0] is \"a\"; send parts of type text",
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
    for (route, fits, does_not) in
        [(Route::Completions, prompt(7), prompt(8)), (Route::Embeddings, named(7), named(8))]
    {
        let read = |body: &Value| read(route, body.to_string().as_bytes(), &bounds);
        assert!(read(&fits).is_ok(), "{route:?}");
        let refused = read(&does_not).unwrap_err();
        assert_eq!((refused.status, refused.code), (413, "jobs_too_large"), "{refused}");
        assert!(refused.message.starts_with("the 8 jobs of this request have 8"), "{refused}");
    }
}

#[test]
fn a_long_name_or_value_is_told_by_its_beginning() {
    let long = "ä".repeat(100_000);
    let message = r#"{"role": "user", "content": "a""#;
    for body in [
        format!("\"{long}\""),
        format!("{{\"{long}\": 0}}"),
        format!("{{\"{long}\": 1, \"{long}\": 0}}"),
        format!("{{\"messages\": [{message}, \"{long}\": 1, \"{long}\": 0}}]}}"),
        format!("{{\"messages\": [{message}}}], \"tools\": \"{long}\"}}"),
    ] {
        let refused = read(Route::ChatCompletions, body.as_bytes(), &BOUNDS).unwrap_err();
        assert!(refused.body().len() < 1000, "{refused}");
        assert!(refused.message.contains(&long[..40]), "{refused}");
    }
}

#[test]
fn a_field_that_is_for_models_of_another_kind_is_refused_and_not_dropped() {
    let labelled = json!({"data": [{"index": 0, "label": "a", "score": 1, "scores": []}],
        "usage": {"prompt_tokens": 1, "total_tokens": 1}});
    let tagged = json!({"data": [{"index": 0, "entities": []}],
        "usage": {"prompt_tokens": 1, "total_tokens": 1}});
    for (field, value, own, other, found) in [
        ("top_k", json!(1), &labelled, &tagged, "entities"),
        ("aggregation", json!("words"), &tagged, &labelled, "labels"),
    ] {
        let answer = asked(Route::Classify, &json!({"input": "a", field: value})).unwrap().answer;
        answer.whole(&about(), &[completed(own)]).unwrap();
        let refused = answer.whole(&about(), &[completed(other)]).unwrap_err();
        let says = format!("{field} is of no effect: the model tiny finds {found}; leave it out");
        assert_eq!((refused.status, &refused.message), (400, &says));
        assert_eq!(refused.param.as_deref(), Some(field));
    }
    let classify = |body: Value, param, says| refuses(Route::Classify, &body, param, says);
    classify(
        json!({"input": "a", "aggregation": "max"}),
        "aggregation",
        "aggregation is \"max\"; se",
    );
    classify(json!({"input": "a", "top_k": 0}), "top_k", "top_k is 0; send a whole number");
    let both = json!({"input": "a", "top_k": 1, "aggregation": "words"});
    classify(both, "aggregation", "top_k is for labels and aggregation for entities");
}

#[test]
fn an_error_has_the_shape_of_openais() {
    let refused = asked(Route::Embeddings, &json!({"input": [1]})).unwrap_err();
    let expected = json!({"error": {
        "message": "input[0] is 1; send texts, not tokens (LangChain: \
            check_embedding_ctx_length=False)",
        "type": "invalid_request_error",
        "param": "input[0]", "code": "invalid_value",
    }});
    assert_eq!(parsed(&refused.body()), expected);
    let kinds = [401, 403, 404, 429, 503].map(|status| Refused::new(status, "x", "y").kind);
    let wrong = "invalid_request_error";
    assert_eq!(kinds, [wrong, wrong, wrong, "requests", "server_error"]);
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
            failed(FailureKind::Invalid, "input[0] has 72 tokens; send less"),
            400,
            Some("input[1]"),
            "input[1] has 72 tokens; send less",
        ),
        (
            failed(FailureKind::Invalid, "dimensions is 9; ask for 1 to 8"),
            400,
            Some("dimensions"),
            "dimensions is 9; ask for 1 to 8",
        ),
        (
            failed(FailureKind::Invalid, "the pair cannot be cut"),
            400,
            Some("input[1]"),
            "input[1]: the pair cannot be cut",
        ),
        // Words alone make it nobody's fault.
        (
            failed(FailureKind::Model, "input[0] is poison"),
            500,
            Some("input[1]"),
            "input[1]: input[0] is poison",
        ),
        (
            failed(FailureKind::Expired, "too late"),
            504,
            Some("input[1]"),
            "input[1]: the job had no answer before its deadline: too late",
        ),
        (Ended::Cancelled, 410, Some("input[1]"), "input[1]: the job was cancelled"),
    ] {
        let results = [fine.clone(), ended.clone(), failed(FailureKind::Model, "later")];
        let refused = answer.whole(&about(), &results).unwrap_err();
        let Refused { status: found, param: place, message: words, .. } = &refused;
        assert_eq!(
            (*found, place.as_deref(), words.as_str()),
            (status, param, message),
            "{ended:?}"
        );
        assert!(!refused.is_worth_another_try(), "{ended:?}");
    }
}

#[test]
fn the_kind_of_a_failure_says_what_a_client_is_to_do() {
    let answer = asked(Route::Embeddings, &json!({"input": "a"})).unwrap().answer;
    for (kind, status, code, r#type, again) in [
        (FailureKind::Invalid, 400, "invalid_value", "invalid_request_error", false),
        (FailureKind::Expired, 504, "deadline_passed", "timeout_error", false),
        (FailureKind::Attempts, 500, "attempts_spent", "server_error", false),
        (FailureKind::Model, 500, "model_failed", "server_error", false),
        (FailureKind::Lost, 500, "body_lost", "server_error", true),
        (FailureKind::Other, 500, "job_failed", "server_error", false),
    ] {
        // Whatever the words are.
        for reason in ["expired", "too late: no", "input: no", "attempt 5 of 5 failed: no"] {
            let refused = answer.whole(&about(), &[failed(kind, reason)]).unwrap_err();
            let found = (refused.status, refused.code, refused.kind);
            assert_eq!(found, (status, code, r#type), "{kind:?}: {reason}");
            assert_eq!(refused.is_worth_another_try(), again, "{kind:?}");
        }
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
        (
            Route::ChatCompletions,
            json!({"messages": [{"role": "user", "content": "a"}]}),
            "messages[0].content has 9 tokens",
            "messages[0].content",
            "messages[0].content has 9 tokens",
        ),
        (
            Route::Embeddings,
            json!({"input": ["a"]}),
            "input[0][0] has 9",
            "input[0][0]",
            "input[0][0] has 9",
        ),
    ] {
        let asked = asked(route, &body).unwrap();
        let results = vec![failed(FailureKind::Invalid, reason); asked.bodies.len()];
        let refused = asked.answer.whole(&about(), &results).unwrap_err();
        assert_eq!((refused.status, refused.message.as_str()), (400, message), "{body}");
        assert_eq!(refused.param.as_deref(), Some(param), "{body}");
    }
}
