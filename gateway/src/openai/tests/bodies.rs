//! From a request to jobs.

use super::*;

#[test]
fn each_text_is_a_job_of_its_own_and_is_handed_on_as_it_was_written() {
    let body = r#"{"model": "tiny", "input": ["a \u00e9\n", "b"], "dimensions": 8,
        "encoding_format": "base64", "user": "ada", "truncate": false, "store": null}"#;
    let asked = read(Route::Embeddings, body.as_bytes(), &BOUNDS).unwrap();
    assert_eq!(asked.model.as_deref(), Some("tiny"));
    assert!(!asked.stream);
    let first =
        r#"{"encoding_format":"base64","dimensions":8,"truncate":false,"input":"a \u00e9\n"}"#;
    assert_eq!(asked.bodies[0], first);
    assert_eq!(parsed(&asked.bodies[1])["input"], "b");
    assert_eq!(asked.bodies.len(), 2);
}

#[test]
fn one_text_needs_no_list() {
    for (route, field, own) in [
        (Route::Embeddings, "input", "input"),
        (Route::Completions, "prompt", "prompt"),
        (Route::Classify, "input", "input"),
        (Route::Classify, "inputs", "input"),
    ] {
        assert_eq!(jobs(route, &json!({field: "a \"é\""})), [json!({own: "a \"é\""})], "{route:?}");
    }
}

#[test]
fn a_conversation_is_one_job_with_what_a_worker_reads() {
    let body = json!({
        "model": "tiny", "stream": true, "stream_options": {"include_usage": true}, "temperature": 0.5,
        "top_p": 1, "max_completion_tokens": 7, "stop": ["\n"], "seed": -1, "n": 1, "user": "ada",
        "metadata": {"a": "b"}, "tools": [], "tool_choice": "auto", "logprobs": false,
        "response_format": {"type": "text"}, "chat_template_kwargs": {"enable_thinking": false},
        "messages": [
            {"role": "developer", "content": "Be brief.", "name": null},
            {"role": "user", "content": [{"type": "text", "text": "a"}], "name": "ada"},
        ],
    });
    let asked = asked(Route::ChatCompletions, &body).unwrap();
    assert!(asked.stream);
    let job = json!({
        "temperature": 0.5, "top_p": 1, "max_completion_tokens": 7, "stop": ["\n"], "stream": true,
        "seed": u64::MAX, "chat_template_kwargs": {"enable_thinking": false},
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a"}], "name": "ada"},
        ],
    });
    assert_eq!(asked.bodies.iter().map(|body| parsed(body)).collect::<Vec<_>>(), [job]);
}

#[test]
fn several_answers_are_several_jobs_with_seeds_of_their_own() {
    let seeds = |more: Value| {
        let mut body = json!({"prompt": ["a", "b"], "n": 2});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let jobs = jobs(Route::Completions, &body);
        let told =
            jobs.iter().map(|job| (job["prompt"].as_str().unwrap().to_owned(), job.get("seed")));
        told.map(|(prompt, seed)| (prompt, seed.and_then(Value::as_u64))).collect::<Vec<_>>()
    };
    let told = |all: [(&str, Option<u64>); 4]| all.map(|(prompt, seed)| (prompt.to_owned(), seed));
    let none = [("a", None), ("a", None), ("b", None), ("b", None)];
    assert_eq!(seeds(json!({})), told(none));
    // As the worker has the bits of -1: the next of it is 0.
    let own = [("a", Some(u64::MAX)), ("a", Some(0)), ("b", Some(u64::MAX)), ("b", Some(0))];
    assert_eq!(seeds(json!({"seed": -1})), told(own));
}

#[test]
fn documents_are_one_job_whichever_server_the_request_is_written_for() {
    let job = |more: Value| {
        let mut job = json!({"query": "q", "documents": ["a", "b"]});
        job.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        [job]
    };
    let jobs = |body: Value| jobs(Route::Rerank, &body);
    let cohere = json!({"model": "m", "query": "q", "documents": ["a", {"text": "b"}], "top_n": 1,
        "return_documents": true});
    assert_eq!(jobs(cohere), job(json!({"top_n": 1, "return_documents": true})));
    let bare = json!({"query": "q", "texts": ["a", "b"], "raw_scores": true, "return_text": true,
        "truncation_direction": "Right"});
    assert_eq!(jobs(bare), job(json!({"raw_scores": true, "return_documents": true})));
}

#[test]
fn lists_of_one_text_each_are_texts_to_classify() {
    let body = json!({"inputs": [["a"], ["b"]], "truncate": true, "raw_scores": false});
    let expected =
        [json!({"truncate": true, "input": "a"}), json!({"truncate": true, "input": "b"})];
    assert_eq!(jobs(Route::Classify, &body), expected);
}

#[test]
fn no_field_that_a_worker_reads_is_unknown_or_lost() {
    for (route, field) in [
        (
            Route::Embeddings,
            json!({"input": "a", "encoding_format": "float", "dimensions": 1,
            "prompt_name": "query", "truncate": true}),
        ),
        (
            Route::Rerank,
            json!({"query": "q", "documents": ["a"], "top_n": 1, "return_documents": true,
            "raw_scores": true, "truncate": true}),
        ),
        (Route::Classify, json!({"input": "a", "top_k": 1, "truncate": true})),
        (Route::Classify, json!({"input": "a", "aggregation": "words"})),
        (
            Route::Completions,
            json!({"prompt": "a", "max_completion_tokens": 1, "max_tokens": 1,
            "max_new_tokens": 1, "temperature": 1, "top_p": 1, "top_k": -1, "seed": 1, "stop": "a",
            "frequency_penalty": 0, "presence_penalty": 0, "repetition_penalty": 1, "stream": true,
            "truncate": true}),
        ),
        (
            Route::ChatCompletions,
            json!({"messages": [{"role": "user", "content": "a"}],
            "chat_template_kwargs": {}}),
        ),
    ] {
        assert_eq!(jobs(route, &field), [field], "{route:?}");
    }
}
