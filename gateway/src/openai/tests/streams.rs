//! From pieces to events.

use proptest::prelude::*;

use super::*;

/// What a generator says, turn by turn, as the lines of its pieces.
fn pieces(route: Route, texts: &[&str]) -> Vec<String> {
    let line = |said: Value| {
        let object = if route == Route::ChatCompletions { "chat.completion.chunk" } else { "x" };
        let mut choice = json!({"index": 0, "finish_reason": null});
        choice.as_object_mut().unwrap().extend(said.as_object().unwrap().clone());
        json!({"id": "job", "object": object, "model": "own", "choices": [choice]}).to_string()
            + "\n"
    };
    let said = texts.iter().map(|text| match route {
        Route::ChatCompletions => line(json!({"delta": {"role": "assistant", "content": text}})),
        _ => line(json!({"text": text})),
    });
    let usage =
        json!({"id": "job", "choices": [], "usage": {"prompt_tokens": 1}}).to_string() + "\n";
    said.chain([usage]).collect()
}

fn result(route: Route, text: &str) -> Ended {
    let mut choice = json!({"index": 0, "finish_reason": "stop", "truncated": false});
    let said = match route {
        Route::ChatCompletions => json!({"message": {"role": "assistant", "content": text}}),
        _ => json!({"text": text}),
    };
    choice.as_object_mut().unwrap().extend(said.as_object().unwrap().clone());
    let usage = json!({"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5});
    completed(&json!({"choices": [choice], "usage": usage}))
}

fn streamed(route: Route, with_usage: bool) -> Streamed {
    answer(route, with_usage).stream(&about())
}

fn answer(route: Route, with_usage: bool) -> Answer {
    let mut body = match route {
        Route::ChatCompletions => json!({"messages": [{"role": "user", "content": "a"}]}),
        _ => json!({"prompt": "a"}),
    };
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": with_usage});
    asked(route, &body).unwrap().answer
}

/// The text that a client reads, and why the stream ended.
fn heard(events: &[Bytes]) -> (String, Result<(), String>) {
    let mut text = String::new();
    for (index, event) in events.iter().enumerate() {
        if &event[..] == b"[DONE]" {
            assert_eq!(index + 1, events.len(), "nothing comes behind the end");
            return (text, Ok(()));
        }
        let event = parsed(event);
        if let Some(error) = event.get("error") {
            assert_eq!(index + 1, events.len(), "nothing comes behind an error");
            return (text, Err(error["code"].as_str().unwrap().to_owned()));
        }
        let choice = &event["choices"][0];
        let said = choice["delta"]["content"].as_str().or(choice["text"].as_str());
        text.push_str(said.unwrap_or_default());
    }
    (text, Err("no end".to_owned()))
}

fn told(events: &[Bytes]) -> String {
    events.iter().map(|event| String::from_utf8_lossy(event) + "\n").collect()
}

#[test]
fn a_conversation_is_streamed_as_openai_does() {
    let route = Route::ChatCompletions;
    let mut stream = streamed(route, true);
    let mut events = stream.begin();
    assert_eq!(stream.begin(), Vec::<Bytes>::new());
    for piece in pieces(route, &["The ", "tide"]) {
        events.extend(stream.piece(piece.as_bytes()));
    }
    events.extend(stream.end(&result(route, "The tide.")));
    assert_eq!(stream.end(&result(route, "The tide.")), Vec::<Bytes>::new());
    insta::assert_snapshot!(told(&events));
}

#[test]
fn a_completion_is_streamed_as_openai_does() {
    let route = Route::Completions;
    let mut stream = streamed(route, false);
    let piece = pieces(route, &[" The", " tide"]).concat();
    let mut events = stream.piece(piece.as_bytes());
    events.extend(stream.end(&result(route, " The tide")));
    insta::assert_snapshot!(told(&events));
}

#[test]
fn an_answer_that_is_not_written_piece_by_piece_is_one_event() {
    let asked = asked(Route::Classify, &json!({"input": "a"})).unwrap();
    let usage = json!({"prompt_tokens": 3, "total_tokens": 3});
    let result = completed(&json!({"data": [{"index": 0, "scores": []}], "usage": usage}));
    let mut stream = asked.answer.stream(&about());
    assert_eq!(stream.piece(b"word "), Vec::<Bytes>::new());
    let whole = asked.answer.whole(&about(), std::slice::from_ref(&result)).unwrap();
    assert_eq!(stream.end(&result), [whole, Bytes::from_static(b"[DONE]")]);
}

#[test]
fn a_job_that_fails_midway_ends_its_stream_with_an_error() {
    let route = Route::ChatCompletions;
    for (ended, code) in [
        (failed(FailureKind::Attempts, "attempt 5 of 5 failed: no device"), "attempts_spent"),
        (Ended::Cancelled, "job_cancelled"),
        (failed(FailureKind::Expired, "expired"), "deadline_passed"),
        (completed(&json!({"output": "a"})), "model_not_supported"),
    ] {
        let mut stream = streamed(route, true);
        let mut events = stream.piece(pieces(route, &["The "])[0].as_bytes());
        events.extend(stream.end(&ended));
        events.extend(stream.piece(b"more\n"));
        assert_eq!(heard(&events), ("The ".to_owned(), Err(code.to_owned())));
    }
}

#[test]
fn pieces_of_another_model_end_the_stream() {
    let mut stream = streamed(Route::ChatCompletions, false);
    let mut events = stream.piece(b"a word\n");
    assert!(stream.is_ended(), "nobody waits for more");
    events.extend(stream.end(&result(Route::ChatCompletions, "a word")));
    assert_eq!(heard(&events), (String::new(), Err("model_not_supported".to_owned())));
}

#[test]
fn whoever_closes_a_stream_says_why() {
    let mut stream = streamed(Route::ChatCompletions, false);
    let mut events = stream.begin();
    events.extend(stream.fail(&Refused::new(503, "shutting_down", "job tide-1 goes on")));
    events.extend(stream.fail(&Refused::new(503, "shutting_down", "job tide-1 goes on")));
    assert_eq!(heard(&events), (String::new(), Err("shutting_down".to_owned())));
}

/// An answer in the parts in which an attempt says it.
fn parts() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec("[aé漢😀\n\" ]{0,3}", 0..8)
}

/// Cuts bytes at these places.
fn cut<'a>(bytes: &'a [u8], at: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut places: Vec<usize> = at.iter().map(|it| it.index(bytes.len() + 1)).collect();
    places.extend([0, bytes.len()]);
    places.sort_unstable();
    places.windows(2).map(|two| &bytes[two[0]..two[1]]).collect()
}

fn lines(route: Route, parts: &[String]) -> String {
    pieces(route, &parts.iter().map(String::as_str).collect::<Vec<_>>()).concat()
}

proptest! {
    #[test]
    fn however_pieces_are_cut_and_joined_the_text_is_that_of_the_whole_answer(
        parts in parts(),
        at in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        is_chat in any::<bool>(),
    ) {
        let route = if is_chat { Route::ChatCompletions } else { Route::Completions };
        let mut stream = streamed(route, is_chat);
        let mut events = Vec::new();
        for piece in cut(lines(route, &parts).as_bytes(), &at) {
            events.extend(stream.piece(piece));
        }
        let ended = result(route, &parts.concat());
        events.extend(stream.end(&ended));
        let (text, end) = heard(&events);
        prop_assert_eq!(end, Ok(()));
        let whole = answer(route, is_chat).whole(&about(), &[ended]).unwrap();
        let choice = &parsed(&whole)["choices"][0];
        let said = choice["message"]["content"].as_str().or(choice["text"].as_str());
        prop_assert_eq!(Some(text.as_str()), said);
    }

    #[test]
    fn an_attempt_that_begins_anew_goes_on_seamlessly_or_ends_the_stream_with_an_error(
        (first, second) in (parts(), parts(), any::<bool>())
            .prop_map(|(one, other, is_same)| (one.clone(), if is_same { one } else { other })),
        whole_of in any::<bool>(),
        at in any::<prop::sample::Index>(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let route = Route::ChatCompletions;
        let mut stream = streamed(route, false);
        let said = lines(route, &first);
        let mut events = stream.piece(&said.as_bytes()[..at.index(said.len() + 1)]);
        let (before, _) = heard(&events);
        stream.void();
        // The second may be lost too, so that only the result tells.
        if whole_of {
            for piece in cut(lines(route, &second).as_bytes(), &cuts) {
                events.extend(stream.piece(piece));
            }
        }
        events.extend(stream.end(&result(route, &second.concat())));
        let (text, end) = heard(&events);
        if second.concat().starts_with(&before) {
            prop_assert_eq!((text, end), (second.concat(), Ok(())));
        } else {
            prop_assert_eq!(end, Err("answer_changed".to_owned()));
            prop_assert!(text.starts_with(&before));
        }
    }
}
