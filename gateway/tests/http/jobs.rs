//! Jobs as they are, over HTTP.

use std::time::Duration;

use axum::http::StatusCode;
use ebb_queue::claim::REFERENCE;
use ebb_queue::faulty::Faults;
use ebb_queue::{
    Backlog, Behavior, Broker, DeadLetters, ErrorKind, Failure, FailureKind, Job, JobResult,
    Outcome, Priority, ResultStore, Timestamp,
};

use crate::scene::{Scene, Setting, embed, end, end_as, get, plan, post, request};

#[tokio::test(start_paused = true)]
async fn a_job_is_its_body_and_its_headers_and_its_answer_comes_back_as_it_is() {
    let scene = Scene::new(Setting::default());
    let headers = [("ebb-priority", "high"), ("content-type", "text/plain"), ("ebb-tenant", "t")];
    let reply = scene.ask(request("POST", "/v1/jobs", &headers, "a body")).await;
    assert_eq!((reply.status, &reply.json()["state"]), (StatusCode::ACCEPTED, &"waiting".into()));
    let place = reply.header("location").unwrap().to_owned();
    let delivery = scene.take().await;
    let Job { headers, body, id, .. } = delivery.job.clone();
    assert_eq!((headers.priority, &body[..]), (Priority::High, &b"a body"[..]));
    assert_eq!(headers.content_type.as_deref(), Some("text/plain"));
    assert_eq!(headers.tenant.as_deref(), Some("t"));
    assert_eq!(scene.ask(get(&place)).await.json()["state"], "running");
    let outcome =
        Outcome::Completed { content_type: "image/png".to_owned(), body: vec![0, 255].into() };
    let finished_at = Timestamp::UNIX_EPOCH;
    let result = JobResult { id: id.clone(), attempt: 1, outcome, finished_at, queue: None };
    scene.queue.put(&result).await.unwrap();
    scene.queue.settle(&[delivery.ack()]).await.unwrap();
    let told = scene.ask(get(&place)).await;
    assert_eq!((told.status, &told.body[..]), (StatusCode::OK, &[0, 255][..]));
    assert_eq!(told.header("content-type"), Some("image/png"));
    assert_eq!((told.header("ebb-id"), told.header("ebb-attempt")), (Some(id.as_str()), Some("1")));
}

#[tokio::test(start_paused = true)]
async fn an_answer_in_a_store_that_the_gateway_does_not_have_is_no_answer() {
    let scene = Scene::new(Setting::default());
    let of_embeddings = scene.begin(post("/v1/embeddings", r#"{"input": "a"}"#));
    let delivery = scene.take().await;
    let place = format!("/v1/jobs/{}", delivery.job.id);
    let waits = scene.begin(get(&format!("{place}?wait=1m")));
    let follows = scene.begin(get(&format!("{place}/events")));
    tokio::time::sleep(Duration::from_millis(1)).await;
    let body = r#"{"key": "results/7", "size": 4915, "sha256": "0"}"#.into();
    let outcome = Outcome::Completed { content_type: REFERENCE.to_owned(), body };
    let (id, finished_at) = (delivery.job.id.clone(), Timestamp::UNIX_EPOCH);
    let result = JobResult { id, attempt: 1, outcome, finished_at, queue: None };
    scene.queue.put(&result).await.unwrap();
    scene.queue.settle(&[delivery.ack()]).await.unwrap();
    let later = scene.ask(get(&place)).await;
    for told in [of_embeddings.await.unwrap(), waits.await.unwrap(), later] {
        assert_eq!(told.error(), (500, "answer_elsewhere".to_owned()));
        assert_eq!(told.header("x-should-retry"), Some("false"));
        assert!(told.text().contains("--payloads") && !told.text().contains("results/7"));
    }
    let events = follows.await.unwrap().text();
    assert!(events.starts_with("event: error") && events.contains("answer_elsewhere"), "{events}");
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_told_as_soon_as_there_is_an_end() {
    let scene = Scene::new(Setting::default());
    let reply = scene.ask(post("/v1/jobs", "x")).await;
    let place = reply.header("location").unwrap().to_owned();
    let start = tokio::time::Instant::now();
    let waits = scene.begin(get(&format!("{place}?wait=30s")));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let delivery = scene.take().await;
    let told = waits.await.unwrap();
    assert_eq!((told.status, start.elapsed().as_secs()), (StatusCode::ACCEPTED, 30));
    assert_eq!(told.header("retry-after"), Some("1"));
    assert_eq!(told.json()["state"], "running", "as it is now, and not when the question came");
    let waits = scene.begin(get(&format!("{place}?wait=5m")));
    tokio::task::yield_now().await;
    let failure = Failure::new(FailureKind::Model, "no");
    end_as(&scene.queue, delivery, Err(failure)).await;
    let told = waits.await.unwrap();
    assert_eq!(told.error(), (422, "model_failed".to_owned()));
    let headers = ["ebb-outcome", "ebb-kind", "x-should-retry"].map(|name| told.header(name));
    assert_eq!(headers, [Some("failed"), Some("model"), Some("false")]);
    assert_eq!(told.json()["error"]["message"], "no");
    assert_eq!(start.elapsed().as_secs(), 30, "and not in five minutes");
}

#[tokio::test(start_paused = true)]
async fn an_id_that_nobody_knows_is_not_found_and_a_result_that_is_gone_is_gone() {
    let scene = Scene::new(Setting::default());
    for id in ["nothing", "a%20b", "%ff", "nothing.00000000000000000000000000000000"] {
        let told = scene.ask(get(&format!("/v1/jobs/{id}"))).await;
        assert_eq!(told.error(), (404, "job_not_found".to_owned()), "{id}");
        let told = scene.ask(get(&format!("/v1/jobs/{id}/events"))).await;
        assert_eq!(told.status, StatusCode::NOT_FOUND);
    }
    let reply = scene.ask(post("/v1/jobs", "x")).await;
    let place = reply.header("location").unwrap().to_owned();
    let waits = scene.begin(get(&format!("{place}?wait=1m")));
    let delivery = scene.take().await;
    scene.queue.settle(&[delivery.ack()]).await.unwrap();
    assert_eq!(waits.await.unwrap().error(), (410, "result_gone".to_owned()));
    assert_eq!(scene.ask(get(&place)).await.error(), (410, "result_gone".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_model_is_named_where_there_are_several() {
    let models = vec![plan("m"), plan("n")];
    let scene = Scene::new(Setting { models, ..Setting::default() });
    let reply = scene.ask(post("/v1/jobs", "x")).await;
    assert_eq!(reply.error(), (400, "missing_required_parameter".to_owned()));
    let by_queue = scene.ask(post("/v1/jobs?queue=n", "x")).await;
    let by_model = scene.ask(request("POST", "/v1/jobs", &[("ebb-model", "n")], "x")).await;
    for reply in [by_queue, by_model] {
        assert_eq!(reply.status, StatusCode::ACCEPTED);
    }
    let unknown = scene.ask(request("POST", "/v1/jobs", &[("ebb-model", "o")], "x")).await;
    assert_eq!(unknown.error(), (404, "model_not_found".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_job_of_another_producer_is_seen_where_there_are_no_keys() {
    let scene = Scene::new(Setting::default());
    let mut job = Job::new(r#"{"input": "abcd"}"#, Timestamp::UNIX_EPOCH);
    job.id = "theirs".parse().unwrap();
    scene.queue.publish(vec![job]).await.unwrap();
    let _worker = scene.answers(embed);
    let told = scene.ask(get("/v1/jobs/theirs?wait=5")).await;
    assert_eq!(told.json()["data"][0]["embedding"][0], 4);
}

#[tokio::test(start_paused = true)]
async fn an_id_that_a_client_chooses_is_one_job_however_often_it_is_sent() {
    let scene = Scene::new(Setting::default());
    let send = || request("POST", "/v1/jobs", &[("ebb-id", "order-7")], "x");
    let first = scene.ask(send()).await;
    let delivery = scene.take().await;
    let second = scene.ask(send()).await;
    assert_eq!(second.json()["state"], "running");
    assert_eq!(first.header("ebb-id"), second.header("ebb-id"));
    end(&scene.queue, delivery, Err("no".to_owned())).await;
    assert_eq!(scene.queue.list(10).await.unwrap().len(), 1);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(scene.ask(send()).await.json()["state"], "dead");
}

#[tokio::test(start_paused = true)]
async fn a_job_that_may_be_stored_is_told_and_sent_again_by_its_id() {
    let faults = Faults { fail_after: 1.0, kind: ErrorKind::Full, ..Faults::NONE };
    let (scene, broker) = Scene::on_faulty(Setting::default(), faults);
    let reply = scene.ask(post("/v1/jobs", "x")).await;
    assert_eq!(reply.error(), (503, "publish_in_doubt".to_owned()));
    let id = reply.header("ebb-id").unwrap();
    assert!(reply.json()["error"]["message"].as_str().unwrap().contains(id));
    broker.set(Faults::NONE);
    assert_eq!(scene.ask(get(&format!("/v1/jobs/{id}"))).await.json()["state"], "waiting");
    let again = scene.ask(request("POST", "/v1/jobs", &[("ebb-id", id)], "x")).await;
    assert_eq!(again.header("ebb-id"), Some(id));
    assert_eq!(scene.queue.depth().await.unwrap().ready, 1, "it is one job");
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_whose_result_is_forgotten_says_its_kind_all_the_same() {
    let behavior = Behavior { result_ttl: Duration::from_secs(60), ..Behavior::default() };
    let scene = Scene::new(Setting { behavior, ..Setting::default() });
    let place = scene.ask(post("/v1/jobs", "x")).await.header("location").unwrap().to_owned();
    let failure = Failure::new(FailureKind::Model, "no such model");
    end_as(&scene.queue, scene.take().await, Err(failure)).await;
    let mut told = vec![scene.ask(get(&place)).await];
    tokio::time::advance(Duration::from_secs(61)).await;
    let start = tokio::time::Instant::now();
    told.push(scene.ask(get(&place)).await);
    told.push(scene.ask(get(&format!("{place}?wait=5m"))).await);
    let events = scene.ask(get(&format!("{place}/events"))).await.text();
    assert_eq!(start.elapsed(), Duration::ZERO, "nothing more can come");
    assert!(events.starts_with("event: end") && events.contains("no such model"), "{events}");
    for told in told {
        assert_eq!(told.error(), (422, "model_failed".to_owned()));
        let headers = ["ebb-outcome", "ebb-kind", "ebb-attempt"].map(|name| told.header(name));
        assert_eq!(headers, [Some("failed"), Some("model"), Some("1")]);
        assert_eq!(told.json()["error"]["message"], "no such model");
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_answered_in_time_though_the_broker_hangs_or_is_away_by_then() {
    let hangs = Faults { delay: Duration::from_secs(1_000_000), ..Faults::NONE };
    let is_away = Faults { fail_before: 1.0, ..Faults::NONE };
    for faults in [hangs, is_away] {
        let (scene, broker) = Scene::on_faulty(Setting::default(), Faults::NONE);
        let place = scene.ask(post("/v1/jobs", "x")).await.header("location").unwrap().to_owned();
        let start = tokio::time::Instant::now();
        let waits = scene.begin(get(&format!("{place}?wait=5s")));
        tokio::time::sleep(Duration::from_secs(1)).await;
        broker.set(faults);
        let told = waits.await.unwrap();
        assert_eq!(told.status, StatusCode::ACCEPTED, "{}", told.text());
        assert_eq!(told.json()["state"], "waiting", "as it was when it was asked for");
        assert!(start.elapsed() <= Duration::from_secs(6), "{:?}", start.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_that_ends_while_it_is_asked_for_is_not_gone() {
    for half_seconds in 0..50 {
        let (scene, broker) = Scene::on_faulty(Setting::default(), Faults::NONE);
        let place = scene.ask(post("/v1/jobs", "x")).await.header("location").unwrap().to_owned();
        let delivery = scene.take().await;
        // So that the end may come before, between and behind what the gateway asks of its broker.
        broker.set(Faults { delay: Duration::from_secs(10), ..Faults::NONE });
        let asks = scene.begin(get(&place));
        tokio::time::sleep(Duration::from_millis(500 * half_seconds)).await;
        end(&scene.queue, delivery, Ok("{}".to_owned())).await;
        let told = asks.await.unwrap();
        assert!([200, 202].contains(&told.status.as_u16()), "{half_seconds}: {}", told.text());
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_cancelled_does_not_run_and_says_so() {
    let scene = Scene::new(Setting::default());
    let reply = scene.ask(post("/v1/jobs", "x")).await;
    let place = reply.header("location").unwrap().to_owned();
    let waits = scene.begin(get(&format!("{place}?wait=1m")));
    tokio::task::yield_now().await;
    let delete = || request("DELETE", &place, &[], "");
    let told = scene.ask(delete()).await.json();
    assert_eq!((&told["state"], &told["was"]), (&"cancelled".into(), &"waiting".into()));
    assert_eq!(waits.await.unwrap().error(), (410, "job_cancelled".to_owned()));
    assert_eq!(scene.ask(delete()).await.error(), (409, "job_ended".to_owned()));
    let events = scene.ask(get(&format!("{place}/events"))).await.text();
    assert!(events.contains("\"state\":\"cancelled\""), "{events}");
    let max = 10.try_into().unwrap();
    assert!(scene.queue.receive(max, Duration::ZERO).await.unwrap().is_empty());
    let unknown = request("DELETE", "/v1/jobs/nothing", &[], "");
    assert_eq!(scene.ask(unknown).await.error(), (404, "job_not_found".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn one_idempotency_key_is_a_job_of_each_model_of_a_queue() {
    let mut models = vec![plan("m"), plan("n")];
    models[1].url = models[0].url.clone();
    let scene = Scene::new(Setting { models, ..Setting::default() });
    let ask = |model| {
        let headers = [("ebb-model", model), ("idempotency-key", "k")];
        request("POST", "/v1/jobs", &headers, "x")
    };
    let (of_m, of_n) = (scene.ask(ask("m")).await, scene.ask(ask("n")).await);
    assert_ne!(of_m.header("ebb-id"), of_n.header("ebb-id"));
    let again = scene.ask(ask("n")).await;
    assert_eq!(again.header("ebb-id"), of_n.header("ebb-id"));
    assert_eq!(scene.queue.depth().await.unwrap().ready, 2);
}

#[tokio::test(start_paused = true)]
async fn models_that_share_a_queue_are_told_apart() {
    let mut models = vec![plan("m"), plan("n")];
    models[1].url = models[0].url.clone();
    models[1].serves = Some("served".to_owned());
    let scene = Scene::new(Setting { models, ..Setting::default() });
    let both = request("POST", "/v1/jobs?queue=m", &[("ebb-model", "n")], "x");
    let reply = scene.ask(both).await;
    assert_eq!(reply.status, StatusCode::ACCEPTED, "{}", reply.text());
    let delivery = scene.take().await;
    assert_eq!(delivery.job.headers.model.as_deref(), Some("served"));
    let place = reply.header("location").unwrap();
    assert_eq!(scene.ask(get(place)).await.json()["state"], "running");
    let keyed = |name| request("POST", "/v1/jobs", &[("ebb-model", name), ("ebb-key", "k")], "x");
    let (m, n) = (scene.ask(keyed("m")).await, scene.ask(keyed("n")).await);
    assert_ne!(m.header("ebb-id"), n.header("ebb-id"), "nobody gets the other model's answer");
    assert_eq!(scene.ask(keyed("n")).await.header("ebb-id"), n.header("ebb-id"));
    let either = scene.ask(post("/v1/jobs?queue=m", "x")).await;
    assert_eq!(either.error(), (400, "missing_required_parameter".to_owned()));
    let neither = request("POST", "/v1/jobs?queue=n", &[("ebb-model", "n")], "x");
    assert_eq!(scene.ask(neither).await.json()["error"]["param"], "queue");
}
