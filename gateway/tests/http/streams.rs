//! Answers that come piece by piece.

use std::time::Duration;

use axum::body::Body;
use axum::http::StatusCode;
use bytes::Bytes;
use ebb_queue::{
    Broker, DeadLetters, Delivery, JSON, JobResult, Outcome, ResultStore, Stored, Timestamp,
};
use futures::{StreamExt, stream};
use serde_json::{Value, json};
use tokio_util::task::AbortOnDropHandle;

use crate::scene::{Events, Scene, Setting, end, get, plan, post, request};

/// A piece as a generator tells it.
fn piece(text: &str) -> Bytes {
    let choice =
        json!({"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": null});
    let piece = json!({"id": "j", "object": "chat.completion.chunk", "choices": [choice]});
    format!("{piece}\n").into()
}

/// A whole answer as a generator tells it.
fn whole(text: &str) -> String {
    let message = json!({"role": "assistant", "content": text});
    let choice = json!({"index": 0, "message": message, "finish_reason": "stop"});
    let usage = json!({"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5});
    json!({"choices": [choice], "usage": usage}).to_string()
}

fn chat() -> String {
    let messages = json!([{"role": "user", "content": "hello"}]);
    json!({"model": "m", "stream": true, "messages": messages}).to_string()
}

pub(crate) async fn say(scene: &Scene, delivery: &Delivery, attempt: u32, pieces: &[(u64, Bytes)]) {
    for (seq, body) in pieces {
        let stored = scene.queue.chunk(&delivery.job.id, attempt, *seq, body.clone()).await;
        assert_eq!(stored.unwrap(), Stored::Stored);
    }
}

/// The text that events tell, and whether they say that it is all.
fn heard(events: &[String]) -> (String, bool) {
    let data = events.iter().filter_map(|event| event.strip_prefix("data: "));
    let (mut text, mut is_done) = (String::new(), false);
    for data in data {
        if data == "[DONE]" {
            is_done = true;
            continue;
        }
        let event: Value = serde_json::from_str(data).unwrap();
        text.push_str(event["choices"][0]["delta"]["content"].as_str().unwrap_or(""));
    }
    (text, is_done)
}

/// Begins a stream whose first piece is `Hel`; gives the job as its worker has it.
async fn begun(scene: &Scene) -> (Events, Delivery) {
    let (response, delivery) =
        tokio::join!(scene.send(post("/v1/chat/completions", chat())), async {
            let delivery = scene.take().await;
            say(scene, &delivery, 1, &[(0, piece("Hel"))]).await;
            delivery
        });
    assert_eq!(response.status(), StatusCode::OK);
    (Events::of(response), delivery)
}

#[tokio::test(start_paused = true)]
async fn pieces_are_told_as_they_come() {
    let scene = Scene::new(Setting::default());
    let (mut events, delivery) = begun(&scene).await;
    let mut told = Vec::new();
    while heard(&told).0 != "Hel" {
        told.push(events.next().await.unwrap());
    }
    say(&scene, &delivery, 1, &[(1, piece("lo"))]).await;
    while heard(&told).0 != "Hello" {
        told.push(events.next().await.unwrap());
    }
    end(&scene.queue, delivery, Ok(whole("Hello"))).await;
    told.extend(events.rest().await);
    assert_eq!(heard(&told), ("Hello".to_owned(), true), "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn another_attempt_goes_on_where_the_first_was_lost() {
    let scene = Scene::new(Setting::default());
    let (mut events, lost) = begun(&scene).await;
    drop(lost);
    tokio::time::advance(Duration::from_secs(31)).await;
    let delivery = scene.take().await;
    assert_eq!(delivery.attempt, 2);
    say(&scene, &delivery, 2, &[(0, piece("He")), (1, piece("llo"))]).await;
    end(&scene.queue, delivery, Ok(whole("Hello"))).await;
    assert_eq!(heard(&events.rest().await), ("Hello".to_owned(), true));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_older_than_its_limit_goes_on_where_its_worker_is_lost() {
    let scene = Scene::new(Setting::default());
    let (mut events, lost) = begun(&scene).await;
    let told = AbortOnDropHandle::new(tokio::spawn(async move { events.rest().await }));
    let mut lease = lost.receipt().clone();
    for nth in 1..=10 {
        tokio::time::sleep(Duration::from_secs(10)).await;
        scene.queue.extend(std::slice::from_mut(&mut lease)).await.unwrap();
        say(&scene, &lost, 1, &[(nth, piece(""))]).await;
    }
    drop(lost);
    tokio::time::sleep(Duration::from_secs(31)).await;
    let again = tokio::time::timeout(Duration::from_secs(20), scene.take()).await;
    let delivery = again.expect("its deadline is not that of its stream");
    assert_eq!(delivery.attempt, 2);
    say(&scene, &delivery, 2, &[(0, piece("He")), (1, piece("llo"))]).await;
    end(&scene.queue, delivery, Ok(whole("Hello"))).await;
    assert_eq!(heard(&told.await.unwrap()), ("Hello".to_owned(), true));
    assert!(scene.queue.list(10).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_stream_with_a_time_of_its_own_is_not_begun_anew_after_it() {
    let cases: [(&[_], _); 2] =
        [(&[("ebb-ttl", "30s")], 40), (&[("ebb-ttl", "30s"), ("idempotency-key", "k")], 30)];
    for (headers, expected) in cases {
        let scene = Scene::new(Setting::default());
        let ask = request("POST", "/v1/chat/completions", headers, chat());
        let (response, lost) = tokio::join!(scene.send(ask), async {
            let delivery = scene.take().await;
            say(&scene, &delivery, 1, &[(0, piece("Hel"))]).await;
            delivery
        });
        let deadline = lost.job.headers.deadline.unwrap().as_second();
        assert_eq!(deadline, expected, "the client's own");
        let mut events = Events::of(response);
        let told = AbortOnDropHandle::new(tokio::spawn(async move { events.rest().await }));
        let mut lease = lost.receipt().clone();
        for nth in 1..=5 {
            tokio::time::sleep(Duration::from_secs(10)).await;
            scene.queue.extend(std::slice::from_mut(&mut lease)).await.unwrap();
            say(&scene, &lost, 1, &[(nth, piece(""))]).await;
        }
        drop(lost);
        let again = tokio::time::timeout(Duration::from_secs(60), scene.take()).await;
        assert!(again.is_err(), "its answer is worth nothing by now");
        let told = told.await.unwrap();
        assert_eq!(heard(&told), ("Hel".to_owned(), false));
        assert!(told.iter().any(|event| event.contains("\"error\"")), "{told:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_job_of_a_stream_may_begin_for_as_long_as_its_cancel_is_known() {
    let scene = Scene::new(Setting::default());
    let (_events, delivery) = begun(&scene).await;
    assert_eq!(delivery.job.headers.deadline.unwrap().as_second(), 23 * 3_600);
}

#[tokio::test(start_paused = true)]
async fn another_attempt_that_says_something_else_ends_the_stream_with_an_error() {
    let scene = Scene::new(Setting::default());
    let (mut events, lost) = begun(&scene).await;
    drop(lost);
    tokio::time::advance(Duration::from_secs(31)).await;
    let delivery = scene.take().await;
    say(&scene, &delivery, 2, &[(0, piece("Goodbye"))]).await;
    let told = events.rest().await;
    assert!(told.last().unwrap().contains("answer_changed"), "{told:?}");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let id = delivery.job.id.clone();
    end(&scene.queue, delivery, Ok(whole("Goodbye"))).await;
    let result = scene.queue.get(&id).await.unwrap().unwrap();
    assert!(result.outcome.is_completed(), "its result is whole: {result:?}");
    assert_eq!(scene.figure("gateway_streams_total", &[("outcome", "failed")]), 1.0);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_fails_at_once_is_an_error_as_any_other() {
    let scene = Scene::new(Setting::default());
    let _worker = scene.answers(|_| Err("the conversation is bad".to_owned()));
    let reply = scene.ask(post("/v1/chat/completions", chat())).await;
    assert!(reply.status.as_u16() >= 400, "{}", reply.text());
    assert!(reply.text().contains("the conversation is bad"));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_has_nothing_to_say_is_kept_open_until_its_time_is_over() {
    let scene = Scene::new(Setting::default());
    let response = scene.send(post("/v1/chat/completions", chat())).await;
    let told = Events::of(response).rest().await;
    let comments = told.iter().filter(|event| *event == ": waiting").count();
    assert!((10..=12).contains(&comments), "every five seconds of a minute: {told:?}");
    let last = told.last().unwrap();
    assert!(last.contains("\"code\":\"timeout\""), "{last}");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_has_begun_may_take_longer_as_long_as_something_comes() {
    let scene = Scene::new(Setting::default());
    let (mut events, delivery) = begun(&scene).await;
    let mut lease = delivery.receipt().clone();
    for (nth, text) in (1..).zip(["l", "o", "", "", "", "", "", "", "", ""]) {
        let wait = async {
            for _ in 0..5 {
                tokio::time::sleep(Duration::from_secs(10)).await;
                scene.queue.extend(std::slice::from_mut(&mut lease)).await.unwrap();
            }
            say(&scene, &delivery, 1, &[(nth, piece(text))]).await;
        };
        let heard = async { while events.next().await.as_deref() == Some(": waiting") {} };
        if text.is_empty() { wait.await } else { tokio::join!(wait, heard).0 }
    }
    end(&scene.queue, delivery, Ok(whole("Hello"))).await;
    let told = events.rest().await;
    assert!(heard(&told).1, "{told:?}");
    assert_eq!(scene.figure("gateway_streams_total", &[("outcome", "completed")]), 1.0);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_falls_silent_ends() {
    let scene = Scene::new(Setting::default());
    let (mut events, delivery) = begun(&scene).await;
    let start = tokio::time::Instant::now();
    let told = events.rest().await;
    assert!(told.last().unwrap().contains("\"code\":\"timeout\""), "{told:?}");
    assert!((55..=65).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    assert_eq!(scene.figure("gateway_streams_total", &[("outcome", "late")]), 1.0);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let result = scene.queue.get(&delivery.job.id).await.unwrap().unwrap();
    assert_eq!(result.outcome, Outcome::Cancelled);
}

#[tokio::test(start_paused = true)]
async fn events_of_a_job_that_is_never_heard_of_end() {
    let scene = Scene::new(Setting::default());
    let reply = scene.ask(post("/v1/jobs", "x")).await;
    let place = format!("{}/events", reply.header("location").unwrap());
    let start = tokio::time::Instant::now();
    let told = Events::of(scene.send(get(&place)).await).rest().await;
    assert_eq!(start.elapsed().as_secs(), 600);
    assert!(told.last().unwrap().contains("\"code\":\"silence\""), "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn who_comes_back_goes_on_behind_the_last_piece() {
    let scene = Scene::new(Setting::default());
    let reply = scene.ask(post("/v1/jobs", "x")).await;
    let place = format!("{}/events", reply.header("location").unwrap());
    let delivery = scene.take().await;
    let mut first = Events::of(scene.send(get(&place)).await);
    say(&scene, &delivery, 3, &[(0, "a".into()), (1, "b".into())]).await;
    assert_eq!(first.next().await.unwrap(), "id: 3.0\nevent: piece\ndata: a");
    drop(first);
    let again = request("GET", &place, &[("last-event-id", "3.0")], "");
    let mut again = Events::of(scene.send(again).await);
    assert_eq!(again.next().await.unwrap(), "id: 3.1\nevent: piece\ndata: b");
    say(&scene, &delivery, 4, &[(0, "c".into()), (1, "d".into())]).await;
    assert_eq!(again.next().await.unwrap(), "event: void\ndata: {}");
    assert_eq!(again.next().await.unwrap(), "id: 4.0\nevent: piece\ndata: c");
    // Whoever was away when another attempt began has missed its beginning.
    let late = request("GET", &place, &[("last-event-id", "3.0")], "");
    let mut late = Events::of(scene.send(late).await);
    assert_eq!(late.next().await.unwrap(), "event: void\ndata: {}");
    assert_eq!(late.next().await.unwrap(), "id: 4.0\nevent: piece\ndata: c");
    let wrong = request("GET", &place, &[("last-event-id", "x")], "");
    assert_eq!(scene.ask(wrong).await.json()["error"]["param"], "last-event-id");
    // A result of an earlier attempt than that of the pieces is not taken.
    let outcome = Outcome::Completed { content_type: JSON.to_owned(), body: "{}".into() };
    let (id, finished_at) = (delivery.job.id.clone(), Timestamp::UNIX_EPOCH);
    let result = JobResult { id, attempt: 3, outcome, finished_at, queue: None };
    assert_eq!(scene.queue.put(&result).await.unwrap(), Stored::Stale);
}

#[tokio::test(start_paused = true)]
async fn who_comes_back_to_another_attempt_hears_of_it_however_far_the_one_before_had_come() {
    let scene = Scene::new(Setting::default());
    let reply = scene.ask(post("/v1/jobs", "x")).await;
    let place = format!("{}/events", reply.header("location").unwrap());
    let delivery = scene.take().await;
    say(&scene, &delivery, 3, &[(0, "a".into()), (1, "b".into())]).await;
    say(&scene, &delivery, 4, &[(0, "c".into())]).await;
    let again = request("GET", &place, &[("last-event-id", "3.1")], "");
    let mut events = Events::of(scene.send(again).await);
    assert_eq!(events.next().await.unwrap(), "event: void\ndata: {}");
    assert_eq!(events.next().await.unwrap(), "id: 4.0\nevent: piece\ndata: c");
}

#[tokio::test(start_paused = true)]
async fn events_end_with_the_result() {
    let scene = Scene::new(Setting::default());
    let reply = scene.ask(post("/v1/jobs", "x")).await;
    let place = format!("{}/events", reply.header("location").unwrap());
    let delivery = scene.take().await;
    let mut events = Events::of(scene.send(get(&place)).await);
    say(&scene, &delivery, 1, &[(0, "two\nlines".into())]).await;
    assert_eq!(events.next().await.unwrap(), "id: 1.0\nevent: piece\ndata: two\ndata: lines");
    end(&scene.queue, delivery, Ok("{\"a\": 1.50}".to_owned())).await;
    let last = events.rest().await;
    let [last] = &last[..] else { panic!("{last:?}") };
    let data: Value =
        serde_json::from_str(last.strip_prefix("event: end\ndata: ").unwrap()).unwrap();
    assert_eq!((&data["state"], &data["result"]["a"]), (&json!("completed"), &json!(1.5)));
}

/// A gateway whose requests hold 8 KiB at once.
fn narrow() -> Scene {
    let mut setting = Setting::default();
    setting.limits.memory = 8 << 10;
    Scene::new(setting)
}

#[tokio::test(start_paused = true)]
async fn a_stream_for_whose_answer_there_is_no_room_ends_with_an_error() {
    let scene = narrow();
    let (mut events, delivery) = begun(&scene).await;
    let id = delivery.job.id.clone();
    let long = whole(&format!("Hel{}", "x".repeat(9_000)));
    end(&scene.queue, delivery, Ok(long.clone())).await;
    let told = events.rest().await;
    assert!(told.last().unwrap().contains("answers_too_large"), "{told:?}");
    let result = scene.queue.get(&id).await.unwrap().unwrap();
    assert!(result.outcome.is_completed(), "its result stays: {result:?}");
    let told = Events::of(scene.send(get(&format!("/v1/jobs/{id}/events"))).await).rest().await;
    let last = told.last().unwrap();
    assert!(last.starts_with("event: error") && last.contains("answers_too_large"), "{last}");
    // Where nothing has been told yet it is an error as any other.
    let _worker = scene.answers(move |_| Ok(long.clone()));
    let reply = scene.ask(post("/v1/chat/completions", chat())).await;
    assert_eq!(reply.error(), (503, "answers_too_large".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn the_answer_of_a_stream_counts_until_its_client_has_taken_it() {
    let scene = narrow();
    let reply = scene.ask(post("/v1/jobs", "x")).await;
    let place = reply.header("location").unwrap().to_owned();
    end(&scene.queue, scene.take().await, Ok(whole(&"x".repeat(5_000)))).await;
    let mut events = Events::of(scene.send(get(&format!("{place}/events"))).await);
    let last = events.next().await.unwrap();
    assert!(last.starts_with("event: end"), "{last}");
    let again = || scene.ask(get(&place));
    assert_eq!(again().await.error(), (429, "gateway_busy".to_owned()));
    assert_eq!(events.next().await, None);
    assert_eq!(again().await.status, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn the_pieces_of_a_stream_count_and_so_does_what_it_has_said() {
    let scene = narrow();
    let (mut events, delivery) = begun(&scene).await;
    let id = delivery.job.id.clone();
    let part = piece(&"x".repeat(3_000));
    say(&scene, &delivery, 1, &[(1, part.clone()), (2, part.clone())]).await;
    let mut told = Vec::new();
    while heard(&told).0.len() < 6_003 {
        told.push(events.next().await.unwrap());
    }
    let n_held = scene.figure("gateway_held_bytes", &[]);
    assert!((6_000.0..8_192.0).contains(&n_held), "{n_held}");
    // There is room for the piece alone, and not beside what was said.
    say(&scene, &delivery, 1, &[(3, part)]).await;
    let told = events.rest().await;
    let [last] = &told[..] else { panic!("{told:?}") };
    assert!(last.contains("answers_too_large"), "{last}");
    assert_eq!(scene.figure("gateway_streams_total", &[("outcome", "failed")]), 1.0);
    drop(events);
    assert_eq!(scene.figure("gateway_held_bytes", &[]), 0.0);
    tokio::time::sleep(Duration::from_secs(1)).await;
    end(&scene.queue, delivery, Ok(whole("Hello"))).await;
    let result = scene.queue.get(&id).await.unwrap().unwrap();
    assert!(result.outcome.is_completed(), "its result is whole: {result:?}");
}

#[tokio::test(start_paused = true)]
async fn a_piece_for_which_there_is_no_room_ends_the_events_of_its_job() {
    let scene = narrow();
    let reply = scene.ask(post("/v1/jobs", "x")).await;
    let place = format!("{}/events", reply.header("location").unwrap());
    let delivery = scene.take().await;
    let pieces = [(0, "x".repeat(5_000).into()), (1, "x".repeat(9_000).into())];
    say(&scene, &delivery, 1, &pieces).await;
    let told = Events::of(scene.send(get(&place)).await).rest().await;
    let [first, last] = &told[..] else { panic!("{told:?}") };
    assert!(first.starts_with("id: 1.0\nevent: piece"), "{first}");
    assert!(last.starts_with("event: error") && last.contains("answers_too_large"), "{last}");
}

/// A body of which so many bytes come, and then nothing more.
pub(crate) fn unended(n_bytes: usize) -> Body {
    let part = Bytes::from("x".repeat(n_bytes));
    let parts = stream::iter([Ok::<_, std::convert::Infallible>(part)]).chain(stream::pending());
    Body::from_stream(parts)
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_was_begun_waits_for_room_that_others_take() {
    let scene = narrow();
    let (mut events, delivery) = begun(&scene).await;
    let mut told = Vec::new();
    while heard(&told).0 != "Hel" {
        told.push(events.next().await.unwrap());
    }
    let upload = scene.begin(post("/v1/jobs", unended(7_500)));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let part = piece(&"x".repeat(1_000));
    say(&scene, &delivery, 1, &[(1, part.clone())]).await;
    assert_eq!(events.next().await.unwrap(), ": waiting");
    drop(upload);
    let mut told = Vec::new();
    while heard(&told).0.len() < 1_000 {
        told.extend(events.next().await.filter(|event| event != ": waiting"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_finds_no_room_in_time_ends_and_its_job_goes_on() {
    let scene = narrow();
    let reply = scene.ask(post("/v1/jobs", "x")).await;
    let place = format!("{}/events", reply.header("location").unwrap());
    end(&scene.queue, scene.take().await, Ok(whole(&"x".repeat(5_000)))).await;
    let mut unread = Events::of(scene.send(get(&place)).await);
    unread.next().await.unwrap();
    let (mut events, delivery) = begun(&scene).await;
    say(&scene, &delivery, 1, &[(1, piece(&"x".repeat(3_500)))]).await;
    let since = tokio::time::Instant::now();
    let told = events.rest().await;
    let last = told.last().unwrap();
    assert!(last.contains("answers_too_large") && last.contains("the job goes on"), "{last}");
    assert_eq!(since.elapsed().as_secs(), plan("m").timeout.as_secs());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let id = delivery.job.id.clone();
    end(&scene.queue, delivery, Ok(whole("Hello"))).await;
    let result = scene.queue.get(&id).await.unwrap().unwrap();
    assert!(result.outcome.is_completed(), "{result:?}");
}

#[tokio::test(start_paused = true)]
async fn who_is_refused_takes_no_room_while_he_goes_on_sending() {
    let mut setting = Setting::default();
    setting.limits.max_body = 1_000;
    let scene = Scene::new(setting);
    let reply = scene.begin(post("/v1/jobs", unended(1_001)));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(scene.figure("gateway_held_bytes", &[]), 0.0);
    assert_eq!(scene.figure("gateway_requests_in_flight", &[]), 0.0);
    assert!(!reply.is_finished(), "it is heard out");
    assert_eq!(reply.await.unwrap().error(), (413, "body_too_large".to_owned()));
    assert_eq!(scene.figure("gateway_requests_in_flight", &[]), 0.0);
}
