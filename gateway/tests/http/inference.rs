//! Requests of OpenAI's API that are answered whole.

use std::num::NonZeroUsize;
use std::time::Duration;

use axum::http::StatusCode;
use ebb_queue::faulty::{Faults, Faulty};
use ebb_queue::memory::MemoryQueue;
use ebb_queue::{
    Backlog, Behavior, Broker, DeadLetters, ErrorKind, Failure, FailureKind, Outcome, ResultStore,
};
use serde_json::json;

use crate::scene::{Scene, Setting, embed, end, end_as, get, plan, post, request};

const EMBEDDINGS: &str = "/v1/embeddings";

/// As many jobs as a test takes at once.
const MAX: NonZeroUsize = NonZeroUsize::new(64).unwrap();

#[tokio::test(start_paused = true)]
async fn inputs_are_jobs_and_their_vectors_come_back_in_their_order() {
    let scene = Scene::new(Setting::default());
    let _worker = scene.answers(embed);
    let body = json!({"model": "alias-of-m", "input": ["a", "bbb", "cc"]}).to_string();
    let reply = scene.ask(post(EMBEDDINGS, body)).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
    let told = reply.json();
    let vectors = told["data"].as_array().unwrap().iter().map(|item| &item["embedding"][0]);
    assert_eq!(vectors.collect::<Vec<_>>(), [1, 3, 2]);
    assert_eq!(told["usage"]["prompt_tokens"], 6);
    assert_eq!(told["model"], "alias-of-m");
    assert_eq!(reply.header("ebb-id").unwrap().split(',').count(), 3);
}

#[tokio::test(start_paused = true)]
async fn clients_of_text_embeddings_inference_find_their_routes_and_shapes() {
    let scene = Scene::new(Setting::default());
    let worker = scene.answers(|job| {
        let body: serde_json::Value = serde_json::from_slice(&job.body).unwrap();
        assert_eq!((&body["truncate"], &body["normalize"]), (&json!(true), &json!(null)));
        let vector = if body["input"] == "long" { "[3,4]" } else { "[0.0,1.0]" };
        Ok(format!(
            r#"{{"data":[{{"embedding":{vector}}}],"usage":{{"prompt_tokens":1,"total_tokens":1}}}}"#
        ))
    });
    let embed = |body: serde_json::Value| scene.ask(post("/embed", body.to_string()));
    let told =
        embed(json!({"inputs": ["short", "long"], "truncate": true, "normalize": true})).await;
    assert_eq!((told.status, told.text()), (StatusCode::OK, "[[0.0,1.0],[0.6,0.8]]".to_owned()));
    let told = embed(json!({"inputs": "long", "truncate": true})).await;
    assert_eq!(told.text(), "[[0.6,0.8]]", "of one text there is a list, too");
    let told = embed(json!({"inputs": "long", "normalize": false})).await;
    assert_eq!(told.json()["error"]["param"], "normalize");
    drop(worker);
    let _worker = scene.answers(|job| {
        Ok(if job.body.windows(5).any(|part| part == b"query") {
            r#"{"results":[{"index":0,"relevance_score":0.5}],"usage":{"prompt_tokens":1,"total_tokens":1}}"#
        } else {
            r#"{"data":[{"scores":[{"label":"good","score":0.5}]}],"usage":{"prompt_tokens":1,"total_tokens":1}}"#
        }
        .to_owned())
    });
    let ranked = post("/rerank", json!({"query": "q", "texts": ["a"]}).to_string());
    assert_eq!(scene.ask(ranked).await.text(), r#"[{"index":0,"score":0.5}]"#);
    let predicted = post("/predict", json!({"inputs": "a"}).to_string());
    let predicted = scene.ask(predicted).await;
    assert_eq!(predicted.status, StatusCode::OK, "{}", predicted.text());
    assert_eq!(predicted.json()[0]["label"], "good");
    let embedded = [("route", "embed"), ("status", "200")];
    assert_eq!(scene.figure("gateway_requests_total", &embedded), 2.0);
}

#[tokio::test(start_paused = true)]
async fn an_input_that_fails_is_named() {
    let scene = Scene::new(Setting::default());
    let _worker = scene.answers(embed);
    let body = json!({"model": "m", "input": ["a", "bad", "c"]}).to_string();
    let reply = scene.ask(post(EMBEDDINGS, body)).await;
    let error = &reply.json()["error"];
    assert!(error["message"].as_str().unwrap().contains("input[1]"), "{error}");
    assert_eq!(error["param"], "input[1]");
    assert_eq!(reply.error(), (400, "invalid_value".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn what_is_not_answered_in_time_is_not_run_any_more() {
    let scene = Scene::new(Setting::default());
    let body = json!({"model": "m", "input": "a"}).to_string();
    let request = request("POST", EMBEDDINGS, &[("ebb-ttl", "2s")], body);
    let reply = scene.ask(request).await;
    assert_eq!(reply.error(), (504, "timeout".to_owned()));
    let id = reply.header("ebb-id").unwrap();
    let message = reply.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains(id) && message.contains("is given up"), "{message}");
    let max = 10.try_into().unwrap();
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(scene.queue.receive(max, Duration::ZERO).await.unwrap().is_empty());
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(scene.queue.receive(max, Duration::ZERO).await.unwrap().is_empty());
    assert!(scene.queue.list(10).await.unwrap().is_empty(), "what nobody waits for is no trouble");
    let told = scene.ask(get(&format!("/v1/jobs/{id}"))).await;
    assert_eq!(told.error(), (410, "job_cancelled".to_owned()));
    let of = |status| scene.figure("gateway_requests_total", &[("route", "embeddings"), status]);
    assert_eq!((of(("status", "504_own")), of(("status", "504"))), (1.0, 0.0));
}

#[tokio::test(start_paused = true)]
async fn the_timeout_of_a_model_counts_where_the_request_says_nothing() {
    let scene = Scene::new(Setting::default());
    let start = tokio::time::Instant::now();
    let reply = scene.ask(post(EMBEDDINGS, json!({"input": "a"}).to_string())).await;
    assert_eq!(reply.status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(start.elapsed().as_secs(), 60);
    assert_eq!(scene.figure("gateway_requests_total", &[("status", "504")]), 1.0);
}

#[tokio::test(start_paused = true)]
async fn who_prefers_it_is_told_where_the_answer_will_be() {
    let scene = Scene::new(Setting::default());
    let body = json!({"model": "m", "input": "abc"}).to_string();
    let asked = request("POST", EMBEDDINGS, &[("prefer", "respond-async")], body.clone());
    let reply = scene.ask(asked).await;
    assert_eq!(reply.status, StatusCode::ACCEPTED);
    assert_eq!(reply.header("preference-applied"), Some("respond-async"));
    let place = reply.header("location").unwrap().to_owned();
    assert_eq!(scene.ask(get(&place)).await.json()["state"], "waiting");
    // Nobody waits, so nothing limits it.
    tokio::time::advance(Duration::from_secs(3600)).await;
    let _worker = scene.answers(embed);
    let told = scene.ask(get(&format!("{place}?wait=5s"))).await;
    assert_eq!((told.status, told.header("ebb-outcome")), (StatusCode::OK, Some("completed")));
    assert_eq!(told.json()["data"][0]["embedding"][0], 3);
    let quick = request("POST", EMBEDDINGS, &[("prefer", "respond-async, wait=5")], body);
    let reply = scene.ask(quick).await;
    assert_eq!(reply.status, StatusCode::OK, "it was there in time");
}

#[tokio::test(start_paused = true)]
async fn the_same_key_twice_is_one_job() {
    let scene = Scene::new(Setting::default());
    let body = json!({"model": "m", "input": ["a", "b"]}).to_string();
    let ask = || request("POST", EMBEDDINGS, &[("idempotency-key", "k")], body.clone());
    let (first, second) = (scene.begin(ask()), scene.begin(ask()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(scene.queue.depth().await.unwrap().ready, 2);
    let _worker = scene.answers(embed);
    let (first, second) = (first.await.unwrap(), second.await.unwrap());
    assert_eq!(first.json()["data"], second.json()["data"]);
    assert_eq!(first.header("ebb-id"), second.header("ebb-id"));
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_is_full_and_a_broker_that_is_away_say_when_to_come_again() {
    let behavior = Behavior { max_ready: Some(1), ..Behavior::default() };
    let scene = Scene::new(Setting { behavior, ..Setting::default() });
    let body = json!({"model": "m", "input": ["a", "b"]}).to_string();
    let reply = scene.ask(post(EMBEDDINGS, body.clone())).await;
    assert_eq!(reply.error(), (429, "queue_full".to_owned()));
    assert_eq!(reply.header("retry-after"), Some("1"));
    let faults = Faults { fail_before: 1.0, ..Faults::NONE };
    let (scene, _) = Scene::on_faulty(Setting::default(), faults);
    let reply = scene.ask(post(EMBEDDINGS, body)).await;
    assert_eq!(reply.error(), (503, "broker_unavailable".to_owned()));
    assert_eq!(reply.header("retry-after"), Some("1"));
}

/// A gateway whose broker stores what it is given, and then says this.
fn doubtful(kind: ErrorKind) -> (Scene, Faulty<MemoryQueue>) {
    Scene::on_faulty(Setting::default(), Faults { fail_after: 1.0, kind, ..Faults::NONE })
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_jobs_may_be_stored_is_told_so_and_is_one_job_when_it_comes_again() {
    for (kind, status, code) in [
        (ErrorKind::Full, 503, "publish_in_doubt"),
        (ErrorKind::Unavailable, 503, "broker_unavailable"),
        (ErrorKind::Internal, 500, "broker_refuses"),
    ] {
        let (scene, broker) = doubtful(kind);
        let ask = || {
            let body = json!({"input": ["a", "bb"]}).to_string();
            request("POST", EMBEDDINGS, &[("idempotency-key", "k")], body)
        };
        let reply = scene.ask(ask()).await;
        assert_eq!(reply.error(), (status, code.to_owned()));
        assert_eq!(reply.header("retry-after"), (status == 503).then_some("1"));
        let message = reply.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains("the idempotency-key or the ebb-id that it had"), "{message}");
        assert!(!message.contains("this ebb-id"), "two ids are no name of two jobs: {message}");
        let failed = [("call", "publish")];
        assert_eq!(scene.figure("gateway_broker_errors_total", &failed), 1.0);
        broker.set(Faults::NONE);
        let _worker = scene.answers(embed);
        let again = scene.ask(ask()).await;
        assert_eq!(again.status, StatusCode::OK, "{}", again.text());
        assert_eq!(reply.header("ebb-id"), again.header("ebb-id"));
        assert_eq!(scene.figure("gateway_jobs_published_total", &[]), 0.0, "they were there");
    }
}

#[tokio::test(start_paused = true)]
async fn the_ids_of_several_jobs_are_no_id_of_ones_own() {
    let scene = Scene::new(Setting::default());
    let body = json!({"input": ["a", "bb"]}).to_string();
    let ask = |name, value: &str| request("POST", EMBEDDINGS, &[(name, value)], body.clone());
    let first = scene.ask(ask("prefer", "respond-async")).await;
    let ids = first.header("ebb-id").unwrap();
    let again = scene.ask(ask("ebb-id", ids)).await;
    assert_eq!(again.error(), (400, "invalid_value".to_owned()));
    assert_eq!(again.json()["error"]["param"], "ebb-id");
    assert_eq!(scene.queue.depth().await.unwrap().ready, 2, "they are not doubled");
}

#[tokio::test(start_paused = true)]
async fn jobs_in_doubt_that_nobody_waits_for_stay_and_are_told() {
    for (inputs, to_do) in [(json!("a"), "with this ebb-id"), (json!(["a", "b"]), "ask for each")] {
        let (scene, broker) = doubtful(ErrorKind::Unavailable);
        let body = json!({"input": inputs}).to_string();
        let asks = [("prefer", "respond-async")];
        let reply = scene.ask(request("POST", EMBEDDINGS, &asks, body.clone())).await;
        assert_eq!(reply.error(), (503, "broker_unavailable".to_owned()));
        let message = reply.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains(to_do), "{message}");
        broker.set(Faults::NONE);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let ids: Vec<&str> = reply.header("ebb-id").unwrap().split(',').collect();
        for id in &ids {
            let told = scene.ask(get(&format!("/v1/jobs/{id}"))).await;
            assert_eq!(told.json()["state"], "waiting", "{id}");
        }
        if let [id] = ids[..] {
            let asks = [("prefer", "respond-async"), ("ebb-id", id)];
            let again = scene.ask(request("POST", EMBEDDINGS, &asks, body)).await;
            assert_eq!(again.header("ebb-id"), Some(id));
        }
        assert_eq!(scene.queue.depth().await.unwrap().ready, ids.len() as u64);
    }
}

#[tokio::test(start_paused = true)]
async fn jobs_that_may_be_stored_and_that_nobody_comes_for_are_cancelled() {
    for kind in [ErrorKind::Full, ErrorKind::Unavailable, ErrorKind::Internal] {
        let (scene, broker) = doubtful(kind);
        let asked = scene.begin(post(EMBEDDINGS, json!({"input": "a"}).to_string()));
        let reply = asked.await.unwrap();
        assert!(reply.status.is_server_error() && reply.header("ebb-id").is_none(), "{kind}");
        broker.set(Faults::NONE);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let depth = scene.queue.depth().await.unwrap();
        assert_eq!((depth.ready, depth.in_flight), (0, 0), "{kind}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_goes_away_while_somebody_waits_is_waited_for() {
    let faults = Faults { fail_before: 0.4, fail_after: 0.0, ..Faults::NONE };
    let (scene, _) = Scene::on_faulty(Setting::default(), faults);
    let _worker = scene.answers(embed);
    let mut statuses = Vec::new();
    for _ in 0..20 {
        let body = json!({"input": "a"}).to_string();
        statuses.push(scene.ask(post(EMBEDDINGS, body)).await.status.as_u16());
    }
    assert!(statuses.iter().all(|status| [200, 503].contains(status)), "{statuses:?}");
    assert!(statuses.iter().filter(|status| **status == 200).count() > 5, "{statuses:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_is_told_in_the_shape_of_openai() {
    let scene = Scene::new(Setting::default());
    for (path, body, status, param) in [
        (EMBEDDINGS, r#"{"model": "other", "input": "a"}"#.to_owned(), 404, Some("model")),
        (EMBEDDINGS, r#"{"model": "m"}"#.to_owned(), 400, Some("input")),
        (EMBEDDINGS, "{".to_owned(), 400, None),
        (EMBEDDINGS, "x".repeat(70_000), 413, None),
        ("/v1/nothing", String::new(), 404, None),
    ] {
        let reply = scene.ask(post(path, body)).await;
        let error = &reply.json()["error"];
        assert_eq!(reply.status.as_u16(), status, "{error}");
        assert!(error["message"].is_string() && error["type"].is_string(), "{error}");
        if let Some(param) = param {
            assert_eq!(error["param"], param);
        }
        assert_eq!(reply.header("x-should-retry"), Some("false"));
    }
    let unknown = scene.ask(post(EMBEDDINGS, r#"{"model": "x", "input": "a"}"#)).await;
    let message = unknown.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.ends_with("there are alias-of-m, m"), "{message}");
    assert_eq!(scene.ask(get(EMBEDDINGS)).await.status, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test(start_paused = true)]
async fn models_are_listed_by_all_their_names() {
    let scene = Scene::new(Setting::default());
    let told = scene.ask(get("/v1/models")).await.json();
    let ids: Vec<_> = told["data"].as_array().unwrap().iter().map(|model| &model["id"]).collect();
    assert_eq!(told["object"], "list");
    assert_eq!(ids, ["alias-of-m", "m"]);
    assert_eq!(scene.ask(get("/v1/models/m")).await.json()["object"], "model");
    assert_eq!(scene.ask(get("/v1/models/org/x")).await.status, StatusCode::NOT_FOUND);
}

/// What became of the only job, some time after its client has gone.
async fn left_behind(headers: &[(&str, &str)], stream: bool) -> Option<Outcome> {
    let scene = Scene::new(Setting::default());
    let messages = json!([{"role": "user", "content": "a"}]);
    let body = json!({"model": "m", "stream": stream, "messages": messages}).to_string();
    let asked = request("POST", "/v1/chat/completions", headers, body);
    let client = scene.begin(asked);
    let delivery = scene.take().await;
    // A stream has begun by then.
    tokio::time::sleep(Duration::from_secs(12)).await;
    drop(client);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let result = scene.queue.get(&delivery.job.id).await.unwrap();
    result.map(|result| result.outcome)
}

#[tokio::test(start_paused = true)]
async fn a_client_that_goes_away_takes_its_jobs_along_unless_somebody_may_come_for_them() {
    for stream in [false, true] {
        assert_eq!(left_behind(&[], stream).await, Some(Outcome::Cancelled));
        assert_eq!(left_behind(&[("idempotency-key", "k")], stream).await, None);
    }
    assert_eq!(left_behind(&[("prefer", "respond-async, wait=60")], false).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_runs_when_time_is_over_is_cancelled() {
    let scene = Scene::new(Setting::default());
    let body = json!({"input": "a"}).to_string();
    let waits = scene.begin(request("POST", EMBEDDINGS, &[("ebb-ttl", "10s")], body));
    let delivery = scene.take().await;
    assert_eq!(waits.await.unwrap().status, StatusCode::GATEWAY_TIMEOUT);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let result = scene.queue.get(&delivery.job.id).await.unwrap().unwrap();
    assert_eq!(result.outcome, Outcome::Cancelled);
}

#[tokio::test(start_paused = true)]
async fn a_key_whose_request_came_too_early_is_answered_when_it_comes_again() {
    let scene = Scene::new(Setting::default());
    let ask = || {
        let body = json!({"input": "abc"}).to_string();
        request("POST", EMBEDDINGS, &[("idempotency-key", "k")], body)
    };
    let late = scene.ask(ask()).await;
    assert_eq!(late.error(), (504, "timeout".to_owned()));
    assert!(late.text().contains("goes on: send the request again"), "{}", late.text());
    tokio::time::sleep(Duration::from_secs(600)).await;
    let _worker = scene.answers(embed);
    let reply = scene.ask(ask()).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
    assert_eq!(reply.header("ebb-id"), late.header("ebb-id"));
    assert!(scene.queue.list(10).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_key_with_a_time_of_its_own_is_told_that_its_job_begins_no_more() {
    let scene = Scene::new(Setting::default());
    let headers = [("idempotency-key", "k"), ("ebb-ttl", "2s")];
    let body = json!({"input": "abc"}).to_string();
    let late = scene.ask(request("POST", EMBEDDINGS, &headers, body)).await;
    assert_eq!(late.error(), (504, "timeout".to_owned()));
    assert!(late.text().contains("goes on only if it has begun"), "{}", late.text());
}

#[tokio::test(start_paused = true)]
async fn the_key_of_a_dead_letter_whose_result_is_forgotten_is_answered_at_once() {
    let behavior = Behavior { result_ttl: Duration::from_secs(60), ..Behavior::default() };
    let scene = Scene::new(Setting { behavior, ..Setting::default() });
    let ask = || {
        let body = json!({"input": ["a", "b"]}).to_string();
        request("POST", EMBEDDINGS, &[("idempotency-key", "k")], body)
    };
    let first = scene.begin(ask());
    for _ in 0..2 {
        tokio::task::yield_now().await;
        for delivery in scene.queue.receive(MAX, Duration::from_secs(5)).await.unwrap() {
            let failure = Failure::new(FailureKind::Model, "no such model");
            end_as(&scene.queue, delivery, Err(failure)).await;
        }
    }
    let mut told = vec![first.await.unwrap()];
    tokio::time::advance(Duration::from_secs(61)).await;
    let start = tokio::time::Instant::now();
    told.push(scene.ask(ask()).await);
    assert_eq!(start.elapsed(), Duration::ZERO, "nothing more can come");
    for told in told {
        assert_eq!(told.error(), (500, "model_failed".to_owned()));
        assert!(told.text().contains("no such model"), "{}", told.text());
    }
}

#[tokio::test(start_paused = true)]
async fn who_does_not_wait_gives_a_slow_broker_the_time_that_it_needs() {
    let mut slow = plan("m");
    slow.timeout = Duration::from_millis(10);
    let setting = Setting { models: vec![slow], ..Setting::default() };
    let faults = Faults { delay: Duration::from_secs(10), ..Faults::NONE };
    let (scene, broker) = Scene::on_faulty(setting, faults);
    let ask = |headers: &[(&str, &str)]| {
        request("POST", EMBEDDINGS, headers, json!({"input": "a"}).to_string())
    };
    let waits = scene.ask(ask(&[])).await;
    assert_eq!(waits.error(), (504, "timeout".to_owned()));
    let doubtful = scene.ask(ask(&[("idempotency-key", "k")])).await;
    assert_eq!(doubtful.error(), (504, "timeout".to_owned()));
    assert!(doubtful.text().contains("may be stored all the same"), "{}", doubtful.text());
    assert!(!doubtful.text().contains("goes on"), "nobody knows: {}", doubtful.text());
    assert!(doubtful.header("ebb-id").is_some());
    let reply = scene.ask(ask(&[("prefer", "respond-async")])).await;
    assert_eq!(reply.status, StatusCode::ACCEPTED, "{}", reply.text());
    broker.set(Faults::NONE);
    let told = scene.ask(get(reply.header("location").unwrap())).await;
    assert_eq!(told.json()["state"], "waiting");
}

#[tokio::test(start_paused = true)]
async fn all_jobs_of_a_request_that_is_refused_are_named() {
    let scene = Scene::new(Setting::default());
    let waits = scene.begin(post(EMBEDDINGS, json!({"input": vec!["a"; 40]}).to_string()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    scene.closing.cancel();
    let reply = waits.await.unwrap();
    assert_eq!(reply.error(), (503, "gateway_ends".to_owned()));
    let told = reply.json();
    let ids: Vec<_> =
        told["ids"].as_array().unwrap().iter().map(|id| id.as_str().unwrap()).collect();
    assert_eq!(ids.len(), 40);
    let header: Vec<_> = reply.header("ebb-id").unwrap().split(',').collect();
    assert_eq!(header, ids[..32], "a header holds no more");
    for id in ids {
        assert_eq!(scene.ask(get(&format!("/v1/jobs/{id}"))).await.json()["state"], "waiting");
    }
}

#[tokio::test(start_paused = true)]
async fn the_jobs_of_all_clients_that_hang_up_at_once_are_cancelled() {
    let mut setting = Setting::default();
    setting.limits.max_in_flight = 2_000;
    let scene = Scene::new(setting);
    let ask = || scene.begin(post(EMBEDDINGS, json!({"input": "a"}).to_string()));
    let clients: Vec<_> = (0..1_500).map(|_| ask()).collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(scene.queue.depth().await.unwrap().ready, 1_500);
    drop(clients);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(scene.queue.depth().await.unwrap().ready, 0);
    assert!(scene.queue.receive(MAX, Duration::ZERO).await.unwrap().is_empty());
    assert_eq!(scene.figure("gateway_jobs_cancelled_total", &[]), 1_500.0);
}

#[tokio::test(start_paused = true)]
async fn answers_are_counted_as_they_come_and_not_when_it_is_their_turn() {
    let mut setting = Setting::default();
    setting.limits.memory = 8 << 10;
    let scene = Scene::new(setting);
    let inputs: Vec<String> = (0..16).map(|nth| format!("text {nth}")).collect();
    let start = tokio::time::Instant::now();
    let waits = scene.begin(post(EMBEDDINGS, json!({"input": inputs}).to_string()));
    tokio::task::yield_now().await;
    let mut deliveries = scene.queue.receive(MAX, Duration::from_secs(5)).await.unwrap();
    assert_eq!(deliveries.len(), 16);
    let _first = deliveries.remove(0);
    for delivery in deliveries {
        let answer = format!("{}{}", embed(&delivery.job).unwrap(), " ".repeat(5_000));
        end(&scene.queue, delivery, Ok(answer)).await;
    }
    assert_eq!(waits.await.unwrap().error(), (503, "answers_too_large".to_owned()));
    assert_eq!(start.elapsed(), Duration::ZERO, "the first is not waited for");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_hangs_up_is_counted() {
    let scene = Scene::new(Setting::default());
    let client = scene.begin(post(EMBEDDINGS, json!({"input": "a"}).to_string()));
    let _delivery = scene.take().await;
    drop(client);
    tokio::task::yield_now().await;
    assert_eq!(scene.figure("gateway_requests_total", &[("status", "499")]), 1.0);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_purged_is_gone() {
    let scene = Scene::new(Setting::default());
    let waits = scene.begin(post(EMBEDDINGS, json!({"input": "a"}).to_string()));
    let delivery = scene.take().await;
    scene.queue.settle(&[delivery.ack()]).await.unwrap();
    assert_eq!(waits.await.unwrap().error(), (410, "result_gone".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn bodies_and_answers_have_only_so_much_memory() {
    let mut setting = Setting::default();
    setting.limits.memory = 8 << 10;
    let scene = Scene::new(setting);
    let large = json!({"input": "a".repeat(10_000)}).to_string();
    let reply = scene.ask(post(EMBEDDINGS, large)).await;
    assert_eq!(reply.error(), (429, "gateway_busy".to_owned()));
    let said = request("POST", EMBEDDINGS, &[("content-length", "70000")], "");
    assert_eq!(scene.ask(said).await.status, StatusCode::PAYLOAD_TOO_LARGE, "before it is read");
    assert_eq!(scene.queue.depth().await.unwrap().ready, 0);
    let _worker = scene.answers(|job| Ok(format!("{}{}", embed(job)?, " ".repeat(5_000))));
    let one = scene.ask(post(EMBEDDINGS, json!({"input": "a"}).to_string())).await;
    assert_eq!(one.status, StatusCode::OK);
    let two = scene.ask(post(EMBEDDINGS, json!({"input": ["a", "b"]}).to_string())).await;
    assert_eq!(two.error(), (503, "answers_too_large".to_owned()));
    let one = scene.ask(post(EMBEDDINGS, json!({"input": "a"}).to_string())).await;
    assert_eq!(one.status, StatusCode::OK, "what was held is released");
}

#[tokio::test(start_paused = true)]
async fn an_answer_counts_until_its_client_has_taken_it() {
    let mut setting = Setting::default();
    (setting.limits.memory, setting.limits.max_in_flight) = (16 << 10, 2);
    let scene = Scene::new(setting);
    let _worker = scene.answers(|job| Ok(format!("{}{}", embed(job)?, " ".repeat(9_000))));
    let ask = || post(EMBEDDINGS, json!({"input": "a"}).to_string());
    let unread = scene.send(ask()).await;
    assert_eq!(unread.status(), StatusCode::OK);
    let length = unread.headers()["content-length"].to_str().unwrap().to_owned();
    let id = unread.headers()["ebb-id"].to_str().unwrap().to_owned();
    assert_eq!(scene.ask(ask()).await.error(), (503, "answers_too_large".to_owned()));
    let again = || get(&format!("/v1/jobs/{id}"));
    assert_eq!(scene.ask(again()).await.error(), (429, "gateway_busy".to_owned()));
    let body = axum::body::to_bytes(unread.into_body(), usize::MAX).await.unwrap();
    assert_eq!(body.len().to_string(), length);
    let (first, second) = (scene.send(get("/v1/models")).await, scene.send(again()).await);
    assert_eq!((first.status(), second.status()), (StatusCode::OK, StatusCode::OK));
    let third = scene.send(ask()).await;
    assert_eq!(third.status(), StatusCode::SERVICE_UNAVAILABLE, "the second is not read");
    drop(second);
    assert_eq!(scene.ask(ask()).await.status, StatusCode::OK, "who hangs up holds nothing");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let scene = Scene::new(Setting::default());
    let never =
        || axum::body::Body::from_stream(futures::stream::pending::<Result<Vec<u8>, String>>());
    let reply = scene.ask(post(EMBEDDINGS, never())).await;
    assert_eq!(reply.error(), (408, "body_too_slow".to_owned()));
    // Nor does it take the room of others, however long it is said to be.
    let promised = [("content-length", "65536")];
    let promises: Vec<_> =
        (0..50).map(|_| scene.begin(request("POST", EMBEDDINGS, &promised, never()))).collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let _worker = scene.answers(embed);
    let other = scene.ask(post(EMBEDDINGS, json!({"input": "a"}).to_string())).await;
    assert_eq!(other.status, StatusCode::OK, "{}", other.text());
    drop(promises);
    let waits = scene.begin(post(EMBEDDINGS, never()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    scene.closing.cancel();
    assert_eq!(waits.await.unwrap().error(), (503, "gateway_ends".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_limit_of_any_length_is_taken_and_another_model_in_a_header_is_not() {
    let scene = Scene::new(Setting::default());
    let _worker = scene.answers(embed);
    let body = || json!({"model": "m", "input": "a"}).to_string();
    let ask = |name, value| request("POST", EMBEDDINGS, &[(name, value)], body());
    // The clock of the scene begins with 1970.
    for (limit, status) in [("9000-01-01T00:00:00Z", 200), ("1969-12-31T23:59:00Z", 504)] {
        let reply = scene.ask(ask("ebb-deadline", limit)).await;
        assert_eq!(reply.status.as_u16(), status, "{}", reply.text());
    }
    assert_eq!(scene.ask(ask("ebb-model", "m")).await.status, StatusCode::OK);
    assert_eq!(scene.ask(ask("ebb-model", "n")).await.json()["error"]["param"], "ebb-model");
}

#[tokio::test(start_paused = true)]
async fn who_prefers_to_wait_is_told_where_the_answer_will_be_when_the_gateway_ends() {
    let scene = Scene::new(Setting::default());
    let prefer = [("prefer", "respond-async, wait=1000000")];
    let ask = || request("POST", EMBEDDINGS, &prefer, json!({"input": "a"}).to_string());
    let start = tokio::time::Instant::now();
    assert_eq!(scene.ask(ask()).await.status, StatusCode::ACCEPTED);
    assert_eq!(start.elapsed().as_secs(), 600);
    let waits = scene.begin(ask());
    tokio::time::sleep(Duration::from_secs(1)).await;
    scene.closing.cancel();
    assert_eq!(waits.await.unwrap().status, StatusCode::ACCEPTED);
}
