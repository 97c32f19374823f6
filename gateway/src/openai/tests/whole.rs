//! From results to a response.

use super::*;

fn whole(route: Route, body: &Value, results: &[Ended]) -> Value {
    let asked = asked(route, body).unwrap();
    assert_eq!(asked.bodies.len(), results.len());
    parsed(&asked.answer.whole(&about(), results).unwrap())
}

fn usage(tokens: u64) -> Value {
    json!({"prompt_tokens": tokens, "total_tokens": tokens, "device_seconds": 0.5, "batch_share": 1})
}

#[test]
fn vectors_of_all_jobs_are_one_list_to_the_last_digit() {
    let body = json!({"input": ["a", "b"]});
    let told = |vector: &str, tokens| {
        let usage = usage(tokens);
        let body = format!(
            r#"{{"object":"list","data":[{{"object":"embedding","index":0,"embedding":{vector},
            "truncated":true}}],"model":"own","usage":{usage}}}"#
        );
        Ended::Completed(body.into())
    };
    let results = [told("[0.10000000149011612, -1e-7]", 3), told(r#""AACAPw==""#, 4)];
    let asked = asked(Route::Embeddings, &body).unwrap();
    let told = asked.answer.whole(&about(), &results).unwrap();
    let expected = concat!(
        r#"{"object":"list","data":["#,
        r#"{"object":"embedding","index":0,"embedding":[0.10000000149011612, -1e-7],"truncated":true},"#,
        r#"{"object":"embedding","index":1,"embedding":"AACAPw==","truncated":true}],"#,
        r#""model":"tiny","usage":{"prompt_tokens":7,"total_tokens":7}}"#,
    );
    assert_eq!(String::from_utf8_lossy(&told), expected);
}

#[test]
fn answers_to_a_conversation_are_choices_and_its_prompt_counts_once() {
    let said = |text: &str, finish: &str, tokens: u64| {
        completed(&json!({
            "id": "job", "object": "chat.completion", "created": 1, "model": "own",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text},
                "finish_reason": finish, "truncated": false}],
            "usage": {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": 5 + tokens,
                "device_seconds": 0.5, "batch_share": 1},
        }))
    };
    let body = json!({"messages": [{"role": "user", "content": "a"}], "n": 2});
    let told =
        whole(Route::ChatCompletions, &body, &[said("Ebb.", "stop", 2), said("é", "length", 3)]);
    insta::assert_json_snapshot!(told);
}

#[test]
fn the_tokens_of_prompts_that_were_not_computed_are_told_and_those_of_one_count_once() {
    let said = |prompt: u64, cached: Option<u64>| {
        let mut usage = json!({"prompt_tokens": prompt, "completion_tokens": 1, "total_tokens": 9});
        if let Some(n) = cached {
            usage["prompt_tokens_details"] = json!({"cached_tokens": n});
        }
        completed(&json!({"choices": [{"text": "a", "finish_reason": "stop"}], "usage": usage}))
    };
    let body = json!({"prompt": ["a", "b"], "n": 2});
    let results = [said(8, Some(5)), said(8, Some(7)), said(4, Some(2)), said(4, None)];
    let told = whole(Route::Completions, &body, &results);
    assert_eq!(
        told["usage"],
        json!({"prompt_tokens": 12, "completion_tokens": 4, "total_tokens": 16,
            "prompt_tokens_details": {"cached_tokens": 7}})
    );
}

#[test]
fn answers_to_prompts_are_choices_in_their_order() {
    let said = |text: &str, tokens: u64| {
        completed(&json!({
            "choices": [{"index": 0, "text": text, "finish_reason": "stop", "truncated": true}],
            "usage": {"prompt_tokens": tokens, "completion_tokens": 1, "total_tokens": 1 + tokens},
        }))
    };
    let body = json!({"prompt": ["a", "b"], "n": 2});
    let results = [said(" 1", 3), said(" 2", 3), said(" 3", 7), said(" 4", 7)];
    insta::assert_json_snapshot!(whole(Route::Completions, &body, &results));
}

#[test]
fn documents_are_told_as_the_server_tells_that_the_request_is_for() {
    let results = [completed(&json!({
        "object": "list", "model": "own", "usage": usage(9),
        "results": [
            {"index": 1, "relevance_score": 0.75, "document": {"text": "b"}, "truncated": false},
            {"index": 0, "relevance_score": 0.25, "truncated": true},
        ],
    }))];
    let documents = json!({"query": "q", "documents": ["a", "b"]});
    let texts = json!({"query": "q", "texts": ["a", "b"]});
    insta::assert_json_snapshot!("rerank-object", whole(Route::Rerank, &documents, &results));
    insta::assert_json_snapshot!("rerank-bare", whole(Route::Rerank, &texts, &results));
}

#[test]
fn labels_are_told_as_the_server_tells_that_the_request_is_for() {
    let labelled = |label: &str| {
        completed(&json!({
            "object": "list", "model": "own", "usage": usage(2),
            "data": [{"index": 0, "label": label, "score": 0.75, "truncated": false,
                "scores": [{"label": label, "score": 0.75}, {"label": "other", "score": 0.25}]}],
        }))
    };
    let results = [labelled("joy"), labelled("fear")];
    let told = whole(Route::Classify, &json!({"input": ["a", "b"]}), &results);
    insta::assert_json_snapshot!("classify-object", told);
    let told = whole(Route::Classify, &json!({"inputs": [["a"], ["b"]]}), &results);
    insta::assert_json_snapshot!("classify-bare", told);
    let told = whole(Route::Classify, &json!({"inputs": "a"}), &results[..1]);
    insta::assert_json_snapshot!("classify-bare-one", told);
    let tagged = completed(&json!({
        "data": [{"index": 0, "entities": [{"label": "PER", "word": "Ada"}], "truncated": false}],
        "usage": usage(2),
    }));
    let told = whole(Route::Classify, &json!({"input": ["a"]}), std::slice::from_ref(&tagged));
    insta::assert_json_snapshot!("classify-entities", told);
    let asked = asked(Route::Classify, &json!({"inputs": "a"})).unwrap();
    let refused = asked.answer.whole(&about(), &[tagged]).unwrap_err();
    assert!(refused.message.contains("does not answer with labels"), "{refused}");
}

#[test]
fn a_model_of_another_kind_is_the_requests_mistake() {
    let echo = [completed(&json!({"output": "a"}))];
    for (route, body) in [
        (Route::Embeddings, json!({"input": "a"})),
        (Route::ChatCompletions, json!({"messages": [{"role": "user", "content": "a"}]})),
        (Route::Completions, json!({"prompt": "a"})),
        (Route::Rerank, json!({"query": "q", "documents": ["a"]})),
        (Route::Classify, json!({"input": "a"})),
    ] {
        let refused = asked(route, &body).unwrap().answer.whole(&about(), &echo).unwrap_err();
        assert_eq!((refused.status, refused.code), (400, "model_not_supported"), "{route:?}");
        assert_eq!(refused.param.as_deref(), Some("model"), "{route:?}");
    }
}
