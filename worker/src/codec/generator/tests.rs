//! A generator's jobs from request to answer: with turns that are given, and with tiny models.

use std::path::Path;

use ebb_model::causal::{Generator, Sampling, Source};
use ebb_model::{DeviceChoice, Model};
use ebb_proto::ebb::v1::{ChatMessage, FinishReason, GenerationPiece, GenerationRequest};
use ebb_proto::ebb::v1::{GenerationResponse, Usage};
use ebb_queue::{FailureKind, JobId, Timestamp};
use prost::Message as _;
use serde_json::{Value, json};

use super::*;
use crate::codec::{binary, fixture};

fn codec_in(dir: &Path, most_new: usize) -> GeneratorCodec {
    let settings = Settings::read(dir).unwrap();
    let template = ChatTemplate::of(&settings).unwrap();
    let tokenizer = Tokenizer::load(dir).unwrap();
    GeneratorCodec::new(tokenizer, template, &settings, "tiny".into(), most_new)
}

fn codec() -> GeneratorCodec {
    codec_in(&fixture("tiny-llama"), 100)
}

/// What transformers made of a tiny model.
fn reference() -> Value {
    serde_json::from_slice(&std::fs::read(fixture("tiny-llama.json")).unwrap()).unwrap()
}

fn job(body: &Value) -> Job {
    let mut job = Job::new(body.to_string(), Timestamp::from_second(1_700_000_000).unwrap());
    job.id = "tide-1".parse::<JobId>().unwrap();
    job
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

/// Takes a job through its turns, each of them as `turn` makes it; the pieces and the answer.
fn run(
    codec: &GeneratorCodec,
    job: &Job,
    mut turn: impl FnMut(&Sequence) -> Turn,
) -> Result<(Vec<bytes::Bytes>, Answer), BadJob> {
    let (mut sequence, mut asked) = codec.decode(job)?;
    let mut pieces = Vec::new();
    loop {
        let turn = turn(&sequence);
        let step = codec.advance(sequence, turn, &mut asked, job)?;
        pieces.extend(step.piece);
        match step.next {
            Next::Turn(next) | Next::Wait(next) => sequence = next,
            Next::Answer(turn) => {
                let spent = Spent { seconds: 0.25, share: 0.5 };
                return Ok((pieces, codec.encode(turn, asked, job, &spent)));
            }
        }
    }
}

/// Reads a prompt in two turns, and then writes these tokens, so many in a turn.
fn writes(tokens: &[u32], n_each: usize, ended: Ended) -> impl FnMut(&Sequence) -> Turn {
    let tokens = tokens.to_vec();
    let mut n_turns = 0;
    move |sequence| {
        n_turns += 1;
        if n_turns == 1 {
            return Turn { n_read: sequence.n_prompt / 2, ..Turn::default() };
        }
        let n_written = sequence.tokens.len() - sequence.n_prompt;
        let left = &tokens[n_written..];
        let new = left[..n_each.min(left.len())].to_vec();
        let ended = (new.len() == left.len()).then_some(ended);
        Turn { tokens: new, ended, n_read: sequence.tokens.len(), ..Turn::default() }
    }
}

fn body(answer: &Answer) -> Value {
    serde_json::from_slice(&answer.body).unwrap()
}

/// The objects of a stream.
fn lines(pieces: &[bytes::Bytes]) -> Vec<Value> {
    let text = String::from_utf8(pieces.concat()).unwrap();
    assert!(text.ends_with('\n'));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The text of a stream's pieces.
fn said(lines: &[Value]) -> String {
    let choice = |line: &Value| {
        let choice = &line["choices"][0];
        let text = choice["text"].as_str().or(choice["delta"]["content"].as_str());
        text.unwrap().to_owned()
    };
    lines.iter().map(choice).collect()
}

#[test]
fn a_conversation_is_cut_as_transformers_cuts_it() {
    let codec = codec();
    for chat in reference()["chats"].as_array().unwrap() {
        let (sequence, _) = codec.decode(&job(&json!({"messages": chat["messages"]}))).unwrap();
        assert_eq!(sequence.tokens, ids(&chat["ids"]));
        assert_eq!(sequence.n_prompt, sequence.tokens.len());
        assert_eq!(sequence.ends[..], [0, 2]);
    }
    for prompt in reference()["prompts"].as_array().unwrap() {
        let (sequence, _) = codec.decode(&job(&json!({"prompt": prompt["text"]}))).unwrap();
        assert_eq!(sequence.tokens, ids(&prompt["ids"]));
    }
    let words = json!({"messages": [{"role": "user", "content": "a pump"}]});
    let (from_messages, _) = codec.decode(&job(&words)).unwrap();
    let (from_input, _) = codec.decode(&job(&json!({"input": "a pump"}))).unwrap();
    assert_eq!(from_messages.tokens, from_input.tokens);
    assert_ne!(from_messages.key, from_input.key);
}

#[test]
fn an_answer_has_the_shape_of_openais() {
    let words = [72, 79, 80];
    let request = json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 9});
    let (pieces, answer) = run(&codec(), &job(&request), writes(&words, 2, Ended::Stop)).unwrap();
    assert_eq!((pieces.len(), answer.n_cut), (0, 0));
    let told = body(&answer);
    let n_prompt = codec().decode(&job(&request)).unwrap().0.n_prompt;
    let text = told["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    assert_eq!(text.chars().count(), 3);
    let expected = json!({
        "id": "tide-1", "object": "chat.completion", "created": 1_700_000_000, "model": "tiny",
        "choices": [{
            "index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop",
            "truncated": false,
        }],
        "usage": {
            "prompt_tokens": n_prompt, "completion_tokens": 3, "total_tokens": n_prompt + 3,
            "prompt_tokens_details": {"cached_tokens": 0},
            "device_seconds": 0.25, "batch_share": 0.5,
        },
    });
    assert_eq!((told, answer.tokens), (expected, n_prompt + 3));

    let request = json!({"prompt": "a", "max_tokens": 3});
    let (_, answer) = run(&codec(), &job(&request), writes(&words, 2, Ended::Length)).unwrap();
    let told = body(&answer);
    assert_eq!(
        (&told["object"], &told["choices"][0]["text"]),
        (&"text_completion".into(), &Value::from(text))
    );
    assert_eq!(told["choices"][0]["finish_reason"], "length");
}

#[test]
fn a_stream_is_lines_whose_texts_add_up_to_the_answer() {
    let greedy = ids(&reference()["prompts"][2]["greedy"]);
    for n_each in [1, 3, 80] {
        for (kind, request) in [
            ("chat.completion.chunk", json!({"input": "a", "stream": true})),
            (
                "text_completion",
                json!({"prompt": "a", "stream": true, "stream_options": {"include_usage": true}}),
            ),
        ] {
            let (pieces, answer) =
                run(&codec(), &job(&request), writes(&greedy, n_each, Ended::Length)).unwrap();
            let (mut lines, told) = (lines(&pieces), body(&answer));
            let whole = &told["choices"][0];
            let whole = whole["text"].as_str().or(whole["message"]["content"].as_str()).unwrap();
            assert!(lines.iter().all(|line| line["object"] == kind && line["id"] == "tide-1"));
            if kind == "text_completion" {
                let usage = lines.pop().unwrap();
                assert_eq!(usage["choices"], json!([]));
                let counts = ["prompt_tokens", "completion_tokens", "total_tokens"];
                assert!(counts.iter().all(|name| usage["usage"][name] == told["usage"][name]));
                assert!(lines.iter().all(|line| line.get("usage") == Some(&Value::Null)));
            } else {
                assert!(lines.iter().all(|line| line.get("usage").is_none()));
            }
            assert_eq!(said(&lines), whole, "{n_each} {kind}");
            let (last, before) = lines.split_last().unwrap();
            assert!(before.iter().all(|it| it["choices"][0]["finish_reason"].is_null()));
            assert_eq!(last["choices"][0]["finish_reason"], "length");
            let role = &lines[0]["choices"][0]["delta"]["role"];
            assert_eq!(role == "assistant", kind != "text_completion");
            let roles = lines.iter().filter(|it| it["choices"][0]["delta"]["role"].is_string());
            assert_eq!(roles.count(), usize::from(kind != "text_completion"));
        }
    }
}

#[test]
fn an_answer_ends_before_a_stop_however_turns_cut_it() {
    let greedy = ids(&reference()["prompts"][0]["greedy"]);
    let answer_to = |request: &Value, n_each| {
        let (pieces, answer) =
            run(&codec(), &job(request), writes(&greedy, n_each, Ended::Length)).unwrap();
        (pieces, body(&answer))
    };
    let text = |told: &Value| told["choices"][0]["text"].as_str().unwrap().to_owned();
    let whole = text(&answer_to(&json!({"prompt": "a"}), 80).1);
    let places: Vec<usize> = whole.char_indices().map(|(at, _)| at).skip(5).step_by(7).collect();
    for start in places.iter().take(6) {
        let stop: String = whole[*start..].chars().take(3).collect();
        let expected = &whole[..whole.find(&stop).unwrap()];
        for n_each in [1, 2, 80] {
            let request = json!({"prompt": "a", "stop": [stop], "stream": true});
            let (pieces, told) = answer_to(&request, n_each);
            assert_eq!(text(&told), expected, "{stop:?}");
            assert_eq!(said(&lines(&pieces)), expected, "{stop:?}");
            assert_eq!(told["choices"][0]["finish_reason"], "stop");
            let n_tokens = told["usage"]["completion_tokens"].as_u64().unwrap();
            assert!(n_tokens < 80, "{n_tokens}");
        }
    }
}

/// A prompt of so many tokens.
fn words(n: usize) -> String {
    "a".to_owned() + &" a".repeat(n - 1)
}

/// How long prompt and answer are then, and whether the prompt was cut.
fn fitted(codec: &GeneratorCodec, request: &Value) -> Result<(usize, usize, bool), String> {
    let decoded = codec.decode(&job(request)).map_err(|error| error.to_string());
    decoded.map(|(it, asked)| (it.n_prompt, it.max_new, asked.is_cut))
}

#[test]
fn how_long_an_answer_may_be_follows_from_the_room_there_is() {
    let roomy = codec_in(&fixture("tiny-llama"), 300);
    let (long, too_long) = (words(250), words(300));
    for (request, expected) in [
        (json!({"prompt": "a"}), (1, 255, false)),
        (json!({"prompt": long}), (250, 6, false)),
        (json!({"prompt": long, "max_tokens": 6}), (250, 6, false)),
        (json!({"prompt": long, "max_tokens": 7, "truncate": true}), (249, 7, true)),
        (json!({"prompt": "a", "truncate": true}), (1, 255, false)),
        // What fits is not cut, however short its answer becomes.
        (json!({"prompt": long, "truncate": true}), (250, 6, false)),
        (json!({"prompt": words(255), "truncate": true}), (255, 1, false)),
        (json!({"prompt": words(256), "truncate": true}), (128, 128, true)),
        (json!({"prompt": too_long, "truncate": true}), (128, 128, true)),
    ] {
        assert_eq!(fitted(&roomy, &request), Ok(expected), "{request}");
    }
    assert_eq!(
        fitted(&codec(), &json!({"prompt": "a"})),
        Ok((1, 100, false)),
        "the worker's limit"
    );
    let cut = json!({"prompt": too_long + " fox", "truncate": true, "max_tokens": 200});
    let (sequence, asked) = roomy.decode(&job(&cut)).unwrap();
    assert_eq!((sequence.n_prompt, sequence.max_new, asked.is_cut), (56, 200, true));
    let end = roomy.tokenizer.tokenize("prompt", " fox").unwrap();
    assert!(sequence.tokens.ends_with(&end), "its beginning is cut off");
}

#[test]
fn what_is_too_long_is_told_with_a_remedy_that_helps() {
    let roomy = codec_in(&fixture("tiny-llama"), 300);
    let (long, too_long) = (words(250), words(300));
    let cut_off = "or truncate: true to have its beginning cut off";
    for (request, says) in [
        (
            json!({"prompt": long, "max_tokens": 7}),
            format!(
                "prompt has 250 tokens; the model takes 256 tokens with its answer: max_tokens is \
                     7, and 6 are left: ask for less, {cut_off}"
            ),
        ),
        (
            json!({"prompt": too_long}),
            format!(
                "prompt has 300 tokens; the model takes 256 tokens with its answer: send less, \
                     {cut_off}"
            ),
        ),
        (
            json!({"prompt": too_long, "max_tokens": 256, "truncate": true}),
            "max_tokens is 256; the model takes 256 tokens with the prompt: ask for less".into(),
        ),
        (
            json!({"messages": [{"role": "user", "content": "a"}], "truncate": true}),
            "truncate is true; it is for a prompt; of a conversation send less".into(),
        ),
        (json!({"prompt": ""}), "prompt has no tokens; send a text".into()),
    ] {
        assert_eq!(fitted(&roomy, &request), Err(says), "{request}");
    }
    for (request, field) in [
        (json!({"messages": [{"role": "user", "content": too_long}]}), "messages"),
        (json!({"input": too_long}), "input"),
    ] {
        let error = fitted(&roomy, &request).unwrap_err();
        assert!(error.starts_with(&format!("{field} has 3")), "{error}");
        assert!(
            error.ends_with("the model takes 256 tokens with its answer: send less"),
            "{error}"
        );
    }
}

#[test]
fn a_worker_with_little_memory_takes_less_than_its_model_and_says_so() {
    let small = codec_in(&fixture("tiny-llama"), 300).with_room_for(64);
    let here = "this worker has memory for 64 tokens (--kv-memory; the model takes 256)";
    for (request, expected) in [
        (json!({"prompt": words(60)}), Ok((60, 4, false))),
        (json!({"prompt": words(70), "truncate": true}), Ok((32, 32, true))),
        (
            json!({"prompt": words(64)}),
            Err(format!(
                "prompt has 64 tokens; {here} with its answer: send less, or truncate: true \
                         to have its beginning cut off"
            )),
        ),
        (
            json!({"prompt": "a", "max_tokens": 64}),
            Err(format!("max_tokens is 64; {here} with the prompt: ask for less")),
        ),
    ] {
        assert_eq!(fitted(&small, &request), expected, "{request}");
    }
    let ample = codec_in(&fixture("tiny-llama"), 300).with_room_for(10_000);
    assert_eq!(fitted(&ample, &json!({"prompt": words(250)})), Ok((250, 6, false)));
}

#[test]
fn a_model_without_a_template_takes_prompts_alone() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "tokenizer.json"] {
        std::fs::copy(fixture("tiny-llama").join(name), dir.path().join(name)).unwrap();
    }
    let codec = codec_in(dir.path(), 100);
    let (sequence, asked) = codec.decode(&job(&json!({"input": "a"}))).unwrap();
    assert_eq!((sequence.n_prompt, asked.is_chat), (1, false));
    let error = codec.decode(&job(&json!({"messages": [{"role": "user", "content": "a"}]})));
    let error = error.unwrap_err().to_string();
    assert_eq!(error, "messages: the model has no chat template; send a prompt");
}

#[test]
fn what_a_template_refuses_is_the_jobs_fault() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "tokenizer.json"] {
        std::fs::copy(fixture("tiny-llama").join(name), dir.path().join(name)).unwrap();
    }
    let template = "{{ raise_exception('After ' + messages[0].role + ' nobody speaks') }}";
    std::fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
    let codec = codec_in(dir.path(), 100);
    let error = codec.decode(&job(&json!({"input": "a"}))).unwrap_err().to_string();
    assert_eq!(error, "input: the chat template says: After user nobody speaks");
    let messages = json!({"messages": [{"role": "system", "content": "a"}]});
    let error = codec.decode(&job(&messages)).unwrap_err().to_string();
    assert_eq!(error, "messages: the chat template says: After system nobody speaks");
}

#[test]
fn a_template_that_does_not_suit_its_model_is_the_models_fault() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(fixture("tiny-llama").join("config.json"), dir.path().join("config.json"))
        .unwrap();
    let mut tokenizer: Value = serde_json::from_slice(
        &std::fs::read(fixture("tiny-llama").join("tokenizer.json")).unwrap(),
    )
    .unwrap();
    let token = json!({"id": 384, "content": "<more>", "single_word": false, "lstrip": false,
                       "rstrip": false, "normalized": false, "special": true});
    tokenizer["added_tokens"].as_array_mut().unwrap().push(token);
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let refused = |template: &str, content: &str| {
        std::fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
        let refused = codec_in(dir.path(), 100).decode(&job(&json!({"input": content})));
        let failure = refused.unwrap_err().failure();
        (failure.kind, failure.reason)
    };
    let (kind, reason) = refused("{{ messages[0].content.shout() }}", "a");
    assert_eq!(kind, FailureKind::Model, "{reason}");
    let (kind, reason) = refused("<more>{{ messages[0].content }}", "a");
    assert_eq!(kind, FailureKind::Model, "{reason}");
    assert!(reason.starts_with("input: the chat template writes <more>, a token"), "{reason}");
    let (kind, reason) = refused("{{ messages[0].content }}", "a<more>");
    assert_eq!(kind, FailureKind::Invalid, "{reason}");
    assert!(reason.ends_with("leave it out"), "{reason}");
}

#[test]
fn a_turn_costs_what_it_reads() {
    let codec = codec();
    let (mut sequence, _) = codec.decode(&job(&json!({"prompt": "a a a a"}))).unwrap();
    assert_eq!(codec.size(&sequence), Size::of([4 + 8]));
    sequence.tokens.push(7);
    assert_eq!(codec.size(&sequence), Size::of([1 + 8]));
    sequence.tokens = vec![7; 1000];
    sequence.n_prompt = 1000;
    assert_eq!(codec.size(&sequence), Size::of([256 + 8]));
}

#[test]
fn a_job_that_waits_for_room_is_not_given_up() {
    let mut n_turns = 0;
    let waits = |sequence: &Sequence| {
        n_turns += 1;
        let tokens = if n_turns > 200_000 { vec![79] } else { Vec::new() };
        Turn { n_read: sequence.tokens.len(), tokens, ..Turn::default() }
    };
    let request = json!({"prompt": "a", "max_tokens": 1});
    let (_, answer) = run(&codec(), &job(&request), waits).unwrap();
    assert_eq!(body(&answer)["usage"]["completion_tokens"], 1);
}

#[test]
fn a_job_waits_where_a_turn_brought_it_nothing() {
    let codec = codec();
    let request = job(&json!({"prompt": "a pump is a pump", "max_tokens": 3}));
    let (mut sequence, mut asked) = codec.decode(&request).unwrap();
    let turn = |n_read, tokens: &[u32]| Turn { n_read, tokens: tokens.into(), ..Turn::default() };
    for (n, (turn, waits)) in [
        (turn(0, &[]), true),
        (turn(2, &[]), false),
        (turn(2, &[]), true),
        (turn(5, &[79]), false),
        (turn(5, &[79]), false),
        // What was read was lost for want of room.
        (turn(0, &[]), false),
        (turn(0, &[]), true),
    ]
    .into_iter()
    .enumerate()
    {
        let step = codec.advance(sequence, turn, &mut asked, &request).unwrap();
        sequence = match step.next {
            Next::Turn(next) if !waits => next,
            Next::Wait(next) if waits => next,
            next => panic!("turn {n}: {next:?}"),
        };
    }
}

#[test]
fn usage_tells_what_of_a_prompt_was_not_computed_for_it() {
    let reuses = |n_reused| {
        move |sequence: &Sequence| {
            let tokens = vec![79];
            Turn { n_read: sequence.tokens.len(), tokens, n_reused, ..Turn::default() }
        }
    };
    let request = json!({
        "prompt": "a pump is a pump", "max_tokens": 2, "stream": true,
        "stream_options": {"include_usage": true},
    });
    let n_prompt = codec().decode(&job(&request)).unwrap().0.n_prompt;
    // Of its own answer nothing counts.
    for (n, cached) in [(0, 0), (2, 2), (n_prompt + 1, n_prompt)] {
        let (pieces, answer) = run(&codec(), &job(&request), reuses(n)).unwrap();
        let told = &body(&answer)["usage"];
        assert_eq!(told["prompt_tokens_details"], json!({"cached_tokens": cached}));
        assert_eq!((told["prompt_tokens"].clone(), answer.n_reused), (n_prompt.into(), cached));
        let lines = lines(&pieces);
        let streamed = &lines.last().unwrap()["usage"];
        assert_eq!(streamed["prompt_tokens_details"], told["prompt_tokens_details"]);
    }
    let mut asks = GenerationRequest {
        prompt: Some("a pump is a pump".into()),
        max_tokens: 2,
        stream: true,
        ..GenerationRequest::default()
    };
    for include_usage in [false, true] {
        asks.include_usage = include_usage;
        let (pieces, answer) = run(&codec(), &binary(&asks), reuses(3)).unwrap();
        assert_eq!(GenerationResponse::decode(answer.body).unwrap().cached_tokens, 3);
        let last = pieces.last().unwrap().clone();
        let last = GenerationPiece::decode_length_delimited(last).unwrap();
        assert_eq!(last.cached_tokens, if include_usage { 3 } else { 0 });
    }
}

#[test]
fn an_answer_ends_where_it_is_full_though_the_model_does_not_say_so() {
    let endless = |_: &Sequence| Turn { tokens: vec![79], n_read: 1, ..Turn::default() };
    let (_, answer) =
        run(&codec(), &job(&json!({"prompt": "a", "max_tokens": 5})), endless).unwrap();
    let told = body(&answer);
    assert_eq!(told["choices"][0]["finish_reason"], "length");
    assert_eq!(told["usage"]["completion_tokens"], 5);
}

#[test]
fn a_stop_in_what_the_end_leaves_of_a_character_is_a_stop() {
    let codec = codec();
    let is_part = |id: &u32| {
        let mut transcript = Transcript::new(codec.tokenizer.clone(), true, []);
        transcript.read(&[*id]);
        let is_held = transcript.text().is_empty();
        transcript.end();
        is_held && transcript.text() == "\u{fffd}"
    };
    let part = (0..384).find(is_part).expect("a byte that begins a character");
    let request = json!({"prompt": "a", "stop": "\u{fffd}", "max_tokens": 1});
    let (_, answer) = run(&codec, &job(&request), writes(&[part], 1, Ended::Length)).unwrap();
    let choice = &body(&answer)["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&"".into(), &"stop".into()));
}

#[test]
fn protobuf_asks_and_is_answered_the_same() {
    let greedy = &ids(&reference()["prompts"][1]["greedy"])[..9];
    let message = ChatMessage { role: "user".into(), content: "a".into() };
    let request = GenerationRequest {
        messages: vec![message],
        max_tokens: 9,
        stream: true,
        include_usage: true,
        ..GenerationRequest::default()
    };
    let mut asks = binary(&request);
    asks.id = "tide-1".parse().unwrap();
    let written = json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 9});
    let (pieces, answer) = run(&codec(), &asks, writes(greedy, 2, Ended::Length)).unwrap();
    let (_, told) = run(&codec(), &job(&written), writes(greedy, 2, Ended::Length)).unwrap();
    let told = body(&told);
    let response = GenerationResponse::decode(answer.body).unwrap();
    assert_eq!(told["choices"][0]["message"]["content"], response.text);
    assert_eq!(response.finish_reason, i32::from(FinishReason::Length));
    let n_prompt = response.prompt_tokens;
    let tokens = n_prompt + 9;
    let usage = Usage { tokens, device_seconds: 0.25, batch_share: 0.5 };
    assert_eq!((response.completion_tokens, response.usage), (9, Some(usage)));
    let stream = pieces.concat();
    let mut stream = &stream[..];
    let mut text = String::new();
    let mut last = FinishReason::Unspecified.into();
    let mut counts = (0, 0);
    while !stream.is_empty() {
        assert_eq!((last, counts), (i32::from(FinishReason::Unspecified), (0, 0)));
        let piece = GenerationPiece::decode_length_delimited(&mut stream).unwrap();
        text.push_str(&piece.text);
        last = piece.finish_reason;
        counts = (piece.prompt_tokens, piece.completion_tokens);
    }
    assert_eq!(counts, (n_prompt, 9));
    assert_eq!((text, last), (response.text, FinishReason::Length.into()));
}

#[test]
fn a_seed_is_what_the_job_says_or_the_same_in_every_attempt() {
    let sampling = |request: Value| codec().decode(&job(&request)).unwrap().0.sampling;
    let own = sampling(json!({"prompt": "a"}));
    assert_eq!(own, sampling(json!({"prompt": "b"})));
    assert_eq!(sampling(json!({"prompt": "a", "seed": 3})), Sampling { seed: 3, ..own });
    assert_eq!(own.temperature, 0.0, "the model does not say otherwise");
}

/// Has the tiny model of this name take the turns.
fn generate(name: &str, request: &Value) -> (Vec<bytes::Bytes>, Value) {
    let dir = fixture(name);
    let device = DeviceChoice::Cpu.start().unwrap();
    let mut model = Generator::on(Source::open(&dir).unwrap(), &device).unwrap();
    let turn = |sequence: &Sequence| {
        let turns = model.infer(std::slice::from_ref(sequence)).unwrap();
        turns.into_iter().next().unwrap().unwrap()
    };
    let (pieces, answer) = run(&codec_in(&dir, 100), &job(request), turn).unwrap();
    (pieces, body(&answer))
}

#[test]
fn a_text_is_gone_on_with_as_transformers_does() {
    for name in ["tiny-llama", "tiny-mistral", "tiny-qwen2", "tiny-qwen3"] {
        let reference = std::fs::read(fixture(&format!("{name}.json"))).unwrap();
        let reference: Value = serde_json::from_slice(&reference).unwrap();
        let codec = codec_in(&fixture(name), 100);
        for prompt in reference["prompts"].as_array().unwrap() {
            let mut expected = Transcript::new(codec.tokenizer.clone(), true, []);
            let mut greedy = ids(&prompt["greedy"]);
            greedy.truncate(codec.context - ids(&prompt["ids"]).len());
            // What transformers was asked for does not end with an end token.
            let end = greedy.iter().position(|id| [0, 2].contains(id)).unwrap_or(greedy.len());
            expected.read(&greedy[..end]);
            expected.end();
            let request = json!({
                "prompt": prompt["text"], "max_tokens": greedy.len(), "temperature": 0, "stream": true,
            });
            let (pieces, told) = generate(name, &request);
            let choice = &told["choices"][0];
            assert_eq!(choice["text"], expected.text(), "{name} {}", prompt["text"]);
            let finish = if end == greedy.len() { "length" } else { "stop" };
            assert_eq!(choice["finish_reason"], finish);
            assert_eq!(told["usage"]["completion_tokens"], end);
            assert_eq!(said(&lines(&pieces)), expected.text());
        }
    }
}

#[test]
fn chance_is_of_the_seed_alone() {
    let said = |seed: u64| {
        let request =
            json!({"input": "a pump", "max_tokens": 20, "temperature": 1.5, "seed": seed});
        generate("tiny-qwen3", &request).1["choices"][0]["message"]["content"].clone()
    };
    assert_eq!(said(1), said(1));
    assert_ne!(said(1), said(2));
}
