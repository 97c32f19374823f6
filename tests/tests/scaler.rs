//! KEDA's protocol through the real binary: calls in KEDA's order, from a client of ours and from
//! one that was not written by us.

#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::process::Command;
use std::time::Duration;

use e2e::{PATIENCE, Process, Workplace, eventually, get, run, workspace_root};
use ebb_proto::keda::external_scaler_client::ExternalScalerClient;
use ebb_proto::keda::{
    GetMetricSpecResponse, GetMetricsRequest, IsActiveResponse, MetricSpec, MetricValue,
    ScaledObjectRef,
};
use ebb_queue::{Delivery, Job, OpenOptions, Queue, Timestamp, open};
use ebb_servers::Port;
use nix::sys::signal::Signal;
use tonic::transport::Channel;
use tonic::{Code, Response, Status, Streaming};

/// A scaler process on a queue, and a client that asks it as KEDA would.
struct Scene {
    workplace: Workplace,
    scaler: Process,
    /// Held, since one that is killed comes back to it.
    _port: Port,
    address: String,
    queue: Queue,
    client: ExternalScalerClient<Channel>,
}

impl Scene {
    async fn new() -> Self {
        let workplace = Workplace::new();
        let port = Port::draw().unwrap();
        let mut scaler = workplace.start(&[
            "scaler",
            "--listen",
            &format!("127.0.0.1:{}", port.number()),
            "--http-listen",
            "127.0.0.1:0",
            "--grace",
            "30s",
        ]);
        let address = scaler.says("its address", |said| word_after(said, "listen="));
        let client = ExternalScalerClient::connect(format!("http://{address}")).await.unwrap();
        let url = workplace.queue().parse().unwrap();
        let queue = open(&url, OpenOptions::default()).await.unwrap();
        Self { workplace, scaler, _port: port, address, queue, client }
    }

    async fn publish(&self, n_jobs: usize) {
        let jobs = (0..n_jobs).map(|_| Job::new("{}", Timestamp::now())).collect();
        self.queue.publish(jobs).await.unwrap();
    }

    async fn receive(&self, n_jobs: usize) -> Vec<Delivery> {
        let max = NonZeroUsize::new(n_jobs).unwrap();
        let received = self.queue.receive(max, Duration::ZERO).await.unwrap();
        assert_eq!(received.len(), n_jobs);
        received
    }

    /// One look of KEDA's polling loop: GetMetricSpec, GetMetrics, IsActive. None as long as the
    /// scaler has not seen the queue.
    async fn look(&mut self) -> Option<(f64, bool)> {
        let spec = self.spec(pool()).await;
        let request = GetMetricsRequest {
            scaled_object_ref: Some(pool()),
            metric_name: spec.metric_name.clone(),
        };
        let values = known(self.client.get_metrics(request).await)?.metric_values;
        let active = known(self.client.is_active(pool()).await)?.result;
        let [MetricValue { metric_name, metric_value, metric_value_float }] = &values[..] else {
            panic!("not one value: {values:?}");
        };
        assert_eq!((metric_name, *metric_value as f64), (&spec.metric_name, *metric_value_float));
        Some((*metric_value_float, active))
    }

    async fn spec(&mut self, object: ScaledObjectRef) -> MetricSpec {
        the_one(&self.client.get_metric_spec(object).await.unwrap().into_inner())
    }

    /// Looks until the answers are these: a snapshot may be a moment old.
    async fn answers(&mut self, expected: (f64, bool)) {
        let look = async {
            while self.look().await != Some(expected) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, look).await.is_err() {
            panic!("never answered {expected:?} but {:?}", self.look().await);
        }
    }

    async fn activity(&mut self) -> Streaming<IsActiveResponse> {
        self.client.stream_is_active(pool()).await.unwrap().into_inner()
    }
}

/// What KEDA sends of a ScaledObject.
fn pool() -> ScaledObjectRef {
    pool_with(&[("scalerAddress", "ebb-scaler:6000"), ("jobsPerReplica", "5")])
}

fn pool_with(metadata: &[(&str, &str)]) -> ScaledObjectRef {
    let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    ScaledObjectRef {
        name: "pool".to_owned(),
        namespace: "default".to_owned(),
        scaler_metadata: metadata.iter().map(own).collect::<HashMap<_, _>>(),
    }
}

fn known<T>(answer: Result<Response<T>, Status>) -> Option<T> {
    match answer {
        Ok(answer) => Some(answer.into_inner()),
        Err(status) if status.code() == Code::Unavailable => None,
        Err(status) => panic!("{status}"),
    }
}

fn the_one(specs: &GetMetricSpecResponse) -> MetricSpec {
    let [spec] = &specs.metric_specs[..] else { panic!("not one metric: {specs:?}") };
    spec.clone()
}

fn word_after(said: &str, mark: &str) -> Option<String> {
    let rest = &said[said.find(mark)? + mark.len()..];
    let end = rest.find(char::is_whitespace)?;
    Some(rest[..end].to_owned())
}

/// The next `true` of a stream, as KEDA waits for it.
async fn pushed(stream: &mut Streaming<IsActiveResponse>) {
    let told =
        async { while !stream.message().await.unwrap().expect("the stream goes on").result {} };
    tokio::time::timeout(PATIENCE, told).await.expect("the stream tells of the job");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answers_follow_the_queue_from_nothing_to_work_and_back() {
    let mut scene = Scene::new().await;
    let spec = scene.spec(pool()).await;
    assert_eq!((spec.target_size, spec.target_size_float), (5, 5.0));
    scene.answers((0.0, false)).await;

    let mut stream = scene.activity().await;
    scene.publish(12).await;
    pushed(&mut stream).await;
    scene.answers((12.0, true)).await;

    // Work in flight holds the pool up when nothing waits any more.
    let held = scene.receive(12).await;
    scene.answers((12.0, true)).await;
    let done: Vec<_> = held.into_iter().map(Delivery::ack).collect();
    scene.queue.settle(&done[..11]).await.unwrap();
    scene.answers((1.0, true)).await;
    scene.queue.settle(&done[11..]).await.unwrap();
    scene.answers((0.0, false)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_that_falls_due_wakes_a_pool_in_which_nobody_runs() {
    let mut scene = Scene::new().await;
    scene.publish(1).await;
    let [delivery] = <[Delivery; 1]>::try_from(scene.receive(1).await).unwrap();
    let retry = delivery.retry(Duration::from_secs(8), "not now");
    scene.queue.settle(&[retry]).await.unwrap();
    scene.answers((0.0, false)).await;
    let mut stream = scene.activity().await;
    pushed(&mut stream).await;
    scene.answers((1.0, true)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_streamed_metric_is_told_at_once_and_is_the_one_that_is_answered() {
    let mut scene = Scene::new().await;
    let answered = scene.spec(pool()).await;
    let mut stream = scene.client.stream_metric_spec(pool()).await.unwrap().into_inner();
    let told = tokio::time::timeout(PATIENCE, stream.message()).await.unwrap().unwrap();
    assert_eq!(the_one(&told.expect("a message")), answered);
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_that_cannot_be_right_is_refused_with_its_remedy() {
    let mut scene = Scene::new().await;
    for (key, value) in [("jobsPerReplica", "0"), ("mode", "guess"), ("quue", "jobs")] {
        let object = pool_with(&[(key, value)]);
        let refused = scene.client.get_metric_spec(object).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{key}={value}");
        assert!(refused.message().contains(key), "{key}={value}: {}", refused.message());
        assert!(refused.message().contains("use "), "{key}={value}: {}", refused.message());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_sigterm_streams_end_with_ok_and_the_process_with_0() {
    let mut scene = Scene::new().await;
    let mut activity = scene.activity().await;
    let mut specs = scene.client.stream_metric_spec(pool()).await.unwrap().into_inner();
    assert!(specs.message().await.unwrap().is_some());
    scene.scaler.signal(Signal::SIGTERM);
    // Anything but OK makes KEDA come back ever later.
    let ended = async {
        while activity.message().await.expect("ends with OK").is_some() {}
        while specs.message().await.expect("ends with OK").is_some() {}
    };
    tokio::time::timeout(PATIENCE, ended).await.expect("the streams end");
    drop((activity, specs));
    scene.client = ExternalScalerClient::new(
        tonic::transport::Endpoint::from_static("http://127.0.0.1:9").connect_lazy(),
    );
    assert!(scene.scaler.ends().success(), "{}", scene.scaler.output());
}

#[tokio::test(flavor = "multi_thread")]
async fn our_scaler_keeps_every_rule_of_the_conformance_suite() {
    // A rule that is broken is broken each time; a machine that is busy elsewhere makes some answer
    // late in some.
    for round in 1.. {
        let mut scene = Scene::new().await;
        scene.publish(3).await;
        scene.answers((3.0, true)).await;
        let pid = scene.scaler.pid().to_string();
        // Its own connection would keep the scaler from ending.
        drop(scene.client);
        let args = ["scaler", "conformance", "--address", &scene.address, "--json"];
        let trigger = ["--metadata", "queue=jobs", "--metadata", "jobsPerReplica=2.5"];
        let end = ["--expect-active", "--nonsense", "quue=jobs", "--signal", &pid];
        let ran = scene.workplace.ebb(&[&args[..], &trigger, &end].concat());
        let report = ran.json();
        assert!(scene.scaler.ends().success(), "{}", scene.scaler.output());
        assert_eq!(report["skipped"], 0, "{report:#}");
        if report["failed"] == 0 {
            assert!(ran.status.success() && report["passed"].as_u64() > Some(20), "{report:#}");
            return;
        }
        assert!(round < 3, "{report:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_that_is_broken_is_told_with_its_remedy_and_an_exit_code() {
    let mut scene = Scene::new().await;
    scene.answers((0.0, false)).await;
    let args = ["scaler", "conformance", "--address", &scene.address, "--streams", "10"];
    // In some rounds a busy machine breaks rules about time as well, as above.
    for round in 1.. {
        // Nothing is in the queue, so that no scaler could call it active.
        let broken = scene.workplace.ebb(&[&args[..], &["--expect-active"]].concat()).failed();
        assert_eq!(broken.status.code(), Some(1), "{broken}");
        for words in ["expected-activity", "FAILED", "  mend  count work in flight"] {
            assert!(broken.stdout.contains(words), "{words}: {broken}");
        }
        // Without the expectation the same scaler is as it should be.
        let kept = scene.workplace.ebb(&args);
        if broken.stdout.contains(" 1 failed") && kept.stdout.contains(" 0 failed") {
            assert!(kept.status.success(), "{kept}");
            break;
        }
        assert!(round < 3, "{broken}\n{kept}");
    }

    let nobody = ["scaler", "conformance", "--address", "127.0.0.1:9"];
    let nobody = scene.workplace.ebb(&nobody).failed();
    assert_eq!(nobody.status.code(), Some(69), "{nobody}");
    assert!(nobody.stderr.contains("nothing answers at 127.0.0.1:9"), "{nobody}");
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_and_metrics_answer_beside_the_protocol() {
    let mut scene = Scene::new().await;
    scene.publish(3).await;
    scene.answers((3.0, true)).await;
    let address = scene.scaler.says("its address", |said| word_after(said, "http="));
    for path in ["/livez", "/readyz", "/startupz"] {
        assert_eq!(get(&address, path).unwrap().status, 200, "{path}");
    }
    let page = get(&address, "/metrics").unwrap().body;
    let depth = page
        .lines()
        .find(|line| line.starts_with("scaler_queue_depth{") && line.contains("state=\"ready\""));
    assert!(depth.is_some_and(|line| line.ends_with(" 3")), "{page}");
    assert!(page.contains("scaler_request_seconds"), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_was_not_written_by_us_gets_right_answers() {
    let Some(python) = std::env::var_os("EBB_TEST_PYTHON") else {
        e2e::skipped(
            "a_client_that_was_not_written_by_us_gets_right_answers",
            "name a Python with grpcio-tools and grpcio-reflection in EBB_TEST_PYTHON, as \
             tests/run does",
        );
        return;
    };
    let mut scene = Scene::new().await;
    let ask = |address: &str| {
        let root = workspace_root();
        let mut client = Command::new(&python);
        client.arg(root.join("tests/python/keda_client.py")).arg(address);
        client.arg(root.join("proto/proto/externalscaler.proto"));
        run(client.arg("jobsPerReplica=4").arg("mode=waiting"), "").ok().json()
    };
    scene.answers((0.0, false)).await;
    let idle = ask(&scene.address);
    assert_eq!(idle["IsActive"]["result"], false, "{idle}");
    assert_eq!(idle["GetMetrics"]["metricValues"][0]["metricValueFloat"], 0.0, "{idle}");

    scene.publish(7).await;
    scene.answers((7.0, true)).await;
    let busy = ask(&scene.address);
    let spec = &busy["GetMetricSpec"]["metricSpecs"];
    assert_eq!(spec.as_array().map(Vec::len), Some(1), "{busy}");
    assert_eq!(spec[0]["targetSizeFloat"], 4.0, "{busy}");
    assert_eq!(busy["StreamMetricSpec"], busy["GetMetricSpec"], "{busy}");
    let value = &busy["GetMetrics"]["metricValues"][0];
    assert_eq!((&value["metricValueFloat"], &value["metricValue"]), (&7.0.into(), &"7".into()));
    assert_eq!(value["metricName"], spec[0]["metricName"], "{busy}");
    assert_eq!(busy["IsActive"]["result"], true, "{busy}");
    assert_eq!(busy["StreamIsActive"]["result"], true, "{busy}");

    // The same through nothing but what the server tells of itself.
    assert_eq!(busy["differ"].as_array().map(Vec::len), Some(0), "{busy}");
    let services = busy["services"].to_string();
    assert!(services.contains("externalscaler.ExternalScaler"), "{busy}");
    assert!(services.contains("grpc.health.v1.Health"), "{busy}");
    assert_eq!(busy["health"], "SERVING", "{busy}");
    assert_eq!(busy["refusal"], "INVALID_ARGUMENT", "{busy}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scaler_that_was_killed_comes_back_to_the_same_answers() {
    let mut scene = Scene::new().await;
    scene.publish(4).await;
    scene.answers((4.0, true)).await;
    scene.scaler.signal(Signal::SIGKILL);
    assert!(!scene.scaler.ends().success());
    let gone = eventually(PATIENCE, || get(&scene.address, "/").is_none().then_some(()));
    assert!(gone.is_some(), "the port is free again");
    let address = scene.address.clone();
    scene.scaler =
        scene.workplace.start(&["scaler", "--listen", &address, "--http-listen", "127.0.0.1:0"]);
    scene.scaler.says("that it listens", |said| word_after(said, "listen="));
    scene.client = ExternalScalerClient::connect(format!("http://{address}")).await.unwrap();
    scene.answers((4.0, true)).await;
}
