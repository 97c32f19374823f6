//! Who is let in, and what they may see.

use std::time::Duration;

use axum::http::StatusCode;
use ebb_queue::Backlog;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::scene::{Events, Scene, Setting, embed, get, plan, post, request};
use crate::streams::say;

const EMBEDDINGS: &str = "/v1/embeddings";

/// A key of this name, which is `secret-NAME`.
fn key(name: &str, more: &str) -> String {
    let digest = Sha256::digest(format!("secret-{name}"));
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("[keys.{name}]\nsha256 = \"{digest}\"\n{more}\n")
}

fn guarded(keys: &[(&str, &str)]) -> Setting {
    let keys = keys.iter().map(|(name, more)| key(name, more)).collect();
    Setting { keys: Some(keys), models: vec![plan("m"), plan("n")], ..Setting::default() }
}

const A: (&str, &str) = ("authorization", "Bearer secret-a");
const B: (&str, &str) = ("authorization", "Bearer secret-b");

fn input() -> String {
    json!({"model": "m", "input": "abc"}).to_string()
}

#[tokio::test(start_paused = true)]
async fn nobody_gets_in_without_a_key_that_is_known() {
    let scene = Scene::new(guarded(&[("a", "")]));
    let _worker = scene.answers(embed);
    for headers in [
        &[][..],
        &[("authorization", "Bearer secret-b")],
        &[("authorization", "Basic secret-a")],
        &[("authorization", "Bearer ")],
    ] {
        for (method, path) in [("POST", EMBEDDINGS), ("GET", "/v1/models"), ("GET", "/v1/jobs/x")] {
            let reply = scene.ask(request(method, path, headers, input())).await;
            assert_eq!(reply.error(), (401, "invalid_api_key".to_owned()), "{path} {headers:?}");
            assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
            assert!(!reply.text().contains("secret"), "{}", reply.text());
        }
    }
    assert_eq!(scene.queue.depth().await.unwrap().ready, 0);
    let reply = scene.ask(request("POST", EMBEDDINGS, &[A], input())).await;
    assert_eq!(reply.status, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_job_is_of_the_tenant_of_its_key_and_nobody_else_sees_it() {
    let scene =
        Scene::new(guarded(&[("a", "tenant = \"team\""), ("b", ""), ("c", "tenant = \"team\"")]));
    let headers = [A, ("ebb-model", "m"), ("ebb-id", "order-7")];
    let reply = scene.ask(request("POST", "/v1/jobs", &headers, "body")).await;
    assert_eq!(reply.status, StatusCode::ACCEPTED, "{}", reply.text());
    let place = reply.header("location").unwrap().to_owned();
    let delivery = scene.take().await;
    assert_eq!(delivery.job.headers.tenant.as_deref(), Some("team"));
    assert!(delivery.job.id.as_str().starts_with("order-7."));
    for (path, status) in [(place.clone(), 202), (format!("{place}/events"), 200)] {
        let own = scene.send(request("GET", &path, &[A], "")).await;
        assert_eq!(own.status().as_u16(), status);
        let other = scene.ask(request("GET", &path, &[B], "")).await;
        assert_eq!(other.error(), (404, "job_not_found".to_owned()), "{path}");
    }
    // What b makes of the same name is b's own.
    let headers = [B, ("ebb-model", "m"), ("ebb-id", "order-7")];
    let other = scene.ask(request("POST", "/v1/jobs", &headers, "body")).await;
    assert_ne!(other.header("location"), Some(place.as_str()));
    let c = ("authorization", "Bearer secret-c");
    assert_eq!(scene.ask(request("GET", &place, &[c], "")).await.status, StatusCode::ACCEPTED);
    // An id that another producer chose is nobody's here, even where it exists.
    let own = scene.ask(request("GET", "/v1/jobs/order-7", &[A], "")).await;
    assert_eq!(own.status, StatusCode::NOT_FOUND);
    let forged = [A, ("ebb-model", "m"), ("ebb-tenant", "b")];
    let reply = scene.ask(request("POST", "/v1/jobs", &forged, "body")).await;
    assert_eq!(reply.status, StatusCode::BAD_REQUEST);
}

#[tokio::test(start_paused = true)]
async fn a_key_uses_its_own_models_and_hears_of_no_others() {
    let scene = Scene::new(guarded(&[("a", "models = [\"n\"]")]));
    let reply = scene.ask(request("POST", EMBEDDINGS, &[A], input())).await;
    assert_eq!(reply.error(), (404, "model_not_found".to_owned()));
    assert!(reply.text().contains("there are alias-of-n, n"), "{}", reply.text());
    let told = scene.ask(request("GET", "/v1/models", &[A], "")).await.json();
    assert_eq!(told["data"].as_array().unwrap().len(), 2);
    let reply = scene.ask(request("POST", "/v1/jobs?queue=m", &[A], "body")).await;
    assert_eq!(reply.json()["error"]["param"], "queue");
}

#[tokio::test(start_paused = true)]
async fn a_key_has_its_rate_and_its_room() {
    let scene =
        Scene::new(guarded(&[("a", "requests_per_minute = 2"), ("b", "max_in_flight = 1")]));
    let models = || request("GET", "/v1/models", &[A], "");
    assert_eq!(scene.ask(models()).await.status, StatusCode::OK);
    assert_eq!(scene.ask(models()).await.status, StatusCode::OK);
    let reply = scene.ask(models()).await;
    assert_eq!(reply.error(), (429, "rate_limit_exceeded".to_owned()));
    assert_eq!(reply.header("retry-after"), Some("30"));
    tokio::time::advance(Duration::from_secs(30)).await;
    assert_eq!(scene.ask(models()).await.status, StatusCode::OK);

    let waits = scene.begin(request("POST", EMBEDDINGS, &[B], input()));
    let held = scene.take().await;
    let reply = scene.ask(request("POST", EMBEDDINGS, &[B], input())).await;
    assert_eq!(reply.error(), (429, "key_busy".to_owned()));
    drop(waits);
    tokio::task::yield_now().await;
    let reply = scene.ask(request("GET", "/v1/models", &[B], "")).await;
    assert_eq!(reply.status, StatusCode::OK, "who has gone leaves room");
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn who_is_told_that_a_model_is_busy_keeps_the_rate_of_his_key() {
    let mut setting = guarded(&[("a", "requests_per_minute = 3")]);
    setting.models[0].max_in_flight = Some(1);
    let scene = Scene::new(setting);
    let waits = scene.begin(request("POST", EMBEDDINGS, &[A], input()));
    let held = scene.take().await;
    for _ in 0..9 {
        let reply = scene.ask(request("POST", EMBEDDINGS, &[A], input())).await;
        assert_eq!(reply.error(), (429, "model_busy".to_owned()));
    }
    let models = || request("GET", "/v1/models", &[A], "");
    assert_eq!(scene.ask(models()).await.status, StatusCode::OK);
    assert_eq!(scene.ask(models()).await.status, StatusCode::OK);
    assert_eq!(scene.ask(models()).await.error().1, "rate_limit_exceeded");
    drop((waits, held));
}

#[tokio::test(start_paused = true)]
async fn a_key_that_takes_all_the_memory_it_can_get_leaves_some_to_others() {
    let mut setting = guarded(&[("a", ""), ("b", "")]);
    setting.limits.memory = 32 << 10;
    let scene = Scene::new(setting);
    let _worker = scene.answers(|job| Ok(format!("{}{}", embed(job)?, " ".repeat(3_000))));
    let mut unread = Vec::new();
    let refused = loop {
        let response = scene.send(request("POST", EMBEDDINGS, &[A], input())).await;
        if response.status() != StatusCode::OK {
            break response;
        }
        unread.push(response);
    };
    assert_eq!((refused.status().as_u16(), unread.len()), (503, 5));
    let body = || "x".repeat(6_000);
    let publish = |key| request("POST", "/v1/jobs", &[key, ("ebb-model", "m")], body());
    let reply = scene.ask(publish(A)).await;
    assert_eq!(reply.error(), (429, "key_busy".to_owned()));
    assert_eq!(reply.header("retry-after"), Some("1"));
    assert_eq!(scene.ask(publish(B)).await.status, StatusCode::ACCEPTED);
    let reply = scene.ask(request("POST", EMBEDDINGS, &[B], input())).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
    drop(unread);
    assert_eq!(scene.ask(publish(A)).await.status, StatusCode::ACCEPTED);
    assert_eq!(scene.figure("gateway_held_bytes", &[]), 0.0);
}

#[tokio::test(start_paused = true)]
async fn another_key_comes_and_the_streams_of_the_first_go_on() {
    let mut setting = guarded(&[("a", ""), ("b", "")]);
    setting.limits.memory = 32 << 10;
    let scene = Scene::new(setting);
    let mut streams = Vec::new();
    for (key, n_bytes) in [(A, 10_000), (A, 5_000), (B, 8_000)] {
        let job = request("POST", "/v1/jobs", &[key, ("ebb-model", "m")], "body");
        let place = scene.ask(job).await.header("location").unwrap().to_owned();
        let delivery = scene.take().await;
        say(&scene, &delivery, 1, &[(0, "x".repeat(n_bytes).into())]).await;
        let place = format!("{place}/events");
        let mut events = Events::of(scene.send(request("GET", &place, &[key], "")).await);
        let told = events.next().await.unwrap();
        assert!(told.starts_with("id: 1.0\nevent: piece"), "{told}");
        streams.push((events, delivery));
    }
    // The key has more by now than it would get.
    let body = request("POST", "/v1/jobs", &[A, ("ebb-model", "m")], "body");
    assert_eq!(scene.ask(body).await.error(), (429, "key_busy".to_owned()));
    for (events, delivery) in &mut streams[..2] {
        say(&scene, delivery, 1, &[(1, "x".repeat(10_500).into())]).await;
        let told = events.next().await.unwrap();
        assert!(told.starts_with("id: 1.1\nevent: piece"), "{told}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_no_key_could_ever_have_is_told_for_good() {
    let mut setting = guarded(&[("a", ""), ("b", "")]);
    setting.limits.memory = 32 << 10;
    let scene = Scene::new(setting);
    let _worker = scene.answers(|job| Ok(format!("{}{}", embed(job)?, " ".repeat(17_000))));
    let reply = scene.ask(request("POST", EMBEDDINGS, &[A], input())).await;
    let place = format!("/v1/jobs/{}", reply.header("ebb-id").unwrap());
    for reply in [reply, scene.ask(request("GET", &place, &[A], "")).await] {
        assert_eq!(reply.error(), (503, "answers_too_large".to_owned()));
        assert_eq!(
            (reply.header("retry-after"), reply.header("x-should-retry")),
            (None, Some("false"))
        );
        assert!(reply.text().contains("raises --body-memory"), "{}", reply.text());
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_has_as_many_requests_as_it_can_get_leaves_room_to_others() {
    let mut setting = guarded(&[("a", ""), ("b", "")]);
    setting.limits.max_in_flight = 4;
    let scene = Scene::new(setting);
    let models = |key| request("GET", "/v1/models", &[key], "");
    let unread = [scene.send(events(&scene).await).await, scene.send(events(&scene).await).await];
    assert!(unread.iter().all(|response| response.status() == StatusCode::OK));
    assert_eq!(scene.ask(models(A)).await.error(), (429, "key_busy".to_owned()));
    assert_eq!(scene.ask(models(B)).await.status, StatusCode::OK);
}

/// A request of a's that lasts: the events of a job that nobody runs.
async fn events(scene: &Scene) -> axum::http::Request<axum::body::Body> {
    let job = request("POST", "/v1/jobs", &[A, ("ebb-model", "m")], "body");
    let place = scene.ask(job).await.header("location").unwrap().to_owned();
    request("GET", &format!("{place}/events"), &[A], "")
}

#[tokio::test(start_paused = true)]
async fn there_is_room_for_so_many_and_for_so_many_of_one_model() {
    let mut setting = Setting { models: vec![plan("m"), plan("n")], ..Setting::default() };
    setting.limits.max_in_flight = 2;
    setting.models[0].max_in_flight = Some(1);
    let scene = Scene::new(setting);
    let first = scene.begin(post(EMBEDDINGS, input()));
    let held = scene.take().await;
    assert_eq!(scene.ask(post(EMBEDDINGS, input())).await.error().1, "model_busy");
    let other = json!({"model": "n", "input": "a"}).to_string();
    let second = scene.begin(post(EMBEDDINGS, other));
    let also = scene.take().await;
    let reply = scene.ask(get("/v1/models")).await;
    assert_eq!(reply.error(), (429, "gateway_busy".to_owned()));
    assert_eq!(reply.header("retry-after"), Some("1"));
    drop((first, second, held, also));
}

#[tokio::test(start_paused = true)]
async fn without_keys_a_page_of_another_site_is_not_answered() {
    let scene = Scene::new(Setting::default());
    let _worker = scene.answers(embed);
    for (headers, status) in [
        (&[("origin", "https://evil.example")][..], 403),
        (&[("host", "rebound.example:8000")], 403),
        (&[("host", "localhost:8000"), ("origin", "http://127.0.0.1:3000")], 200),
    ] {
        let reply = scene.ask(request("POST", EMBEDDINGS, headers, input())).await;
        assert_eq!(reply.status.as_u16(), status, "{headers:?}");
    }
    let scene = Scene::new(guarded(&[("a", "")]));
    let headers = [A, ("origin", "https://app.example"), ("host", "gateway.example")];
    let reply = scene.ask(request("GET", "/v1/models", &headers, "")).await;
    assert_eq!(reply.status, StatusCode::OK, "who has a key has shown it");
}
