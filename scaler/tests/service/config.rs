//! A scaler with a configuration file: profiles, the policy, and changes while it runs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ebb_proto::keda::{GetMetricsRequest, ScaledObjectRef};
use ebb_scaler::ScalerArgs;
use tonic::Code;

use crate::kit::{Kit, args, ends_with_ok, object, page, page_says, publish, said};

/// A configuration as Kubernetes mounts it: a link to a folder, and a new link for a new content.
struct Mounted {
    folder: tempfile::TempDir,
    n_versions: usize,
}

impl Mounted {
    fn new(text: &str) -> Self {
        let mut mounted = Self { folder: tempfile::tempdir().unwrap(), n_versions: 0 };
        mounted.swap(&[("scaler.toml", text)]);
        std::os::unix::fs::symlink("..data/scaler.toml", mounted.file()).unwrap();
        mounted
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("scaler.toml")
    }

    fn swap(&mut self, files: &[(&str, &str)]) {
        self.n_versions += 1;
        let version = format!("..{}", self.n_versions);
        let at = |name: &str| self.folder.path().join(name);
        std::fs::create_dir(at(&version)).unwrap();
        for (name, text) in files {
            std::fs::write(at(&version).join(name), text).unwrap();
        }
        std::os::unix::fs::symlink(&version, at("..tmp")).unwrap();
        std::fs::rename(at("..tmp"), at("..data")).unwrap();
    }
}

fn with(config: &Path) -> ScalerArgs {
    ScalerArgs { queue: None, config: Some(config.to_owned()), ..args() }
}

fn in_namespace(namespace: &str, metadata: &[(&str, &str)]) -> ScaledObjectRef {
    ScaledObjectRef { namespace: namespace.into(), ..object(metadata) }
}

#[tokio::test]
async fn a_broken_profile_harms_no_other_and_the_pod_stays_ready() {
    let mounted = Mounted::new(
        "[profiles.day]\nurl = \"sqlite:/day\"\n\
         [profiles.night]\nurl = \"sqlite:/night?queue=embeddings\"\n\
         [profiles.bad]\nurl = \"sqlite:/broken\"\n\
         [profiles.unused]\nurl = \"sqlite:/unused\"\n",
    );
    // The bad profile is down when this has passed, so a slow machine may lose sight of the others.
    let max_age = Duration::from_secs(1);
    let kit = Kit::start(ScalerArgs { max_age, ..with(&mounted.file()) }).await;
    publish(&kit.broker.queue("/day#jobs"), 2).await;
    publish(&kit.broker.queue("/night#embeddings"), 5).await;
    let (day, night) = (object(&[("profile", "day")]), object(&[("profile", "night")]));
    assert_eq!(kit.known_value(&day).await, 2);
    assert_eq!(kit.known_value(&night).await, 5);
    let told = kit.is_active(&object(&[("profile", "bad")])).await.unwrap_err();
    assert_eq!(told.code(), Code::Unavailable);

    let lines = "profile bad: down (unavailable)\nprofile day: up, 1 of 1 queues known\n";
    let page = page_says(kit.http, "/readyz", lines).await;
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    assert!(page.contains("profile unused: no trigger asks for it"), "{page}");
    page_says(kit.http, "/metrics", "scaler_profile_up{profile=\"bad\"} 0").await;
    page_says(kit.http, "/metrics", "scaler_profile_up{profile=\"day\"} 1").await;
    assert_eq!(kit.known_value(&day).await, 2);
    kit.stop().await;
}

#[tokio::test]
async fn what_the_policy_does_not_allow_is_denied_on_every_call() {
    let mounted = Mounted::new(
        "[profiles.day]\nurl = \"sqlite:/day\"\n\
         [[policy]]\nnamespaces = [\"team-a-*\"]\nprofiles = [\"day\"]\nqueues = [\"a-*\"]\n",
    );
    let kit = Kit::start(with(&mounted.file())).await;
    let metadata = [("profile", "day"), ("queue", "a-1")];
    assert!(!kit.is_active(&in_namespace("team-a-x", &metadata)).await.unwrap());

    let denied = [
        in_namespace("team-b", &metadata),
        in_namespace("team-a-x", &[("profile", "day"), ("queue", "b-1")]),
        in_namespace("team-a-x", &[("profile", "dawn"), ("queue", "a-1")]),
    ];
    for object in denied {
        let mut client = kit.client.clone();
        let request = GetMetricsRequest {
            scaled_object_ref: Some(object.clone()),
            metric_name: "ebb-jobs-a-1".into(),
        };
        let told = [
            client.get_metric_spec(object.clone()).await.unwrap_err(),
            client.get_metrics(request).await.unwrap_err(),
            client.is_active(object.clone()).await.unwrap_err(),
            client.stream_is_active(object.clone()).await.unwrap_err(),
            client.stream_metric_spec(object.clone()).await.unwrap_err(),
        ];
        for status in told {
            assert_eq!(status.code(), Code::PermissionDenied, "{status}");
            assert!(status.message().contains("operator"), "{status}");
        }
    }
    assert_eq!(*kit.broker.opened.borrow(), 1, "what is denied is not looked at");
    kit.stop().await;
}

#[tokio::test]
async fn a_changed_option_reaches_open_streams_at_once_and_get_metric_spec_agrees() {
    let text = |jobs: &str| {
        format!(
            "[profiles.day]\nurl = \"sqlite:/day\"\n[profiles.day.defaults]\njobsPerReplica = {jobs}\n"
        )
    };
    let mut mounted = Mounted::new(&text("5"));
    let kit = Kit::start(with(&mounted.file())).await;
    let mut client = kit.client.clone();
    let day = object(&[("profile", "day")]);
    let own = object(&[("profile", "day"), ("jobsPerReplica", "3")]);
    let mut stream = client.stream_metric_spec(day.clone()).await.unwrap().into_inner();
    let mut of_own = client.stream_metric_spec(own.clone()).await.unwrap().into_inner();
    let mut activity = kit.stream(&day).await;
    let spec = stream.message().await.unwrap().unwrap();
    assert_eq!(spec.metric_specs[0].target_size_float, 5.0);
    assert_eq!(of_own.message().await.unwrap().unwrap().metric_specs[0].target_size, 3);

    mounted.swap(&[("scaler.toml", &text("8"))]);
    let spec = stream.message().await.unwrap().unwrap();
    assert_eq!(spec.metric_specs[0].target_size_float, 8.0);
    assert_eq!(client.get_metric_spec(day.clone()).await.unwrap().into_inner(), spec);

    // A broken file changes nothing, and says so.
    mounted.swap(&[("scaler.toml", &text("\"many\""))]);
    page_says(kit.http, "/metrics", "scaler_config_reloads_total{outcome=\"failed\"} 1").await;
    page_says(kit.http, "/metrics", "scaler_reload_broken{what=\"config\"} 1").await;
    mounted.swap(&[("scaler.toml", &text("8"))]);
    page_says(kit.http, "/metrics", "scaler_reload_broken{what=\"config\"} 0").await;
    mounted.swap(&[("scaler.toml", &text("\"many\""))]);
    page_says(kit.http, "/metrics", "scaler_reload_broken{what=\"config\"} 1").await;
    assert_eq!(client.get_metric_spec(day.clone()).await.unwrap().into_inner(), spec);
    mounted.swap(&[("scaler.toml", &text("9"))]);
    let spec = stream.message().await.unwrap().unwrap();
    assert_eq!(spec.metric_specs[0].target_size_float, 9.0);
    let metrics = page(kit.http, "/metrics").await;
    assert!(metrics.contains("scaler_config_reloads_total{outcome=\"ok\"} 2"), "{metrics}");
    assert!(metrics.contains("scaler_config_reloads_total{outcome=\"failed\"} 2"), "{metrics}");
    page_says(kit.http, "/metrics", "scaler_reload_broken{what=\"config\"} 0").await;

    // Where the profile goes, streams end as KEDA likes it, and the next ones hear why.
    mounted.swap(&[("scaler.toml", "[profiles.night]\nurl = \"sqlite:/night\"\n")]);
    assert!(stream.message().await.unwrap().is_none());
    // What the metadata say for themselves was never told anew.
    assert!(of_own.message().await.unwrap().is_none());
    ends_with_ok(&mut activity).await;
    let told = client.stream_is_active(day).await.unwrap_err();
    assert_eq!(told.code(), Code::InvalidArgument);
    drop(client);
    kit.stop().await;
}

#[tokio::test]
async fn a_changed_address_moves_the_observers_of_its_profile_under_open_streams() {
    let text = "[profiles.day]\nurl = \"sqlite:/day\"\n[profiles.night]\nurl_file = \"SECRET\"\n";
    let mut mounted = Mounted::new("");
    let secret = mounted.folder.path().join("..data/secret");
    let text = text.replace("SECRET", secret.to_str().unwrap());
    let mut swap = |url: &str| mounted.swap(&[("scaler.toml", &text), ("secret", url)]);
    swap("sqlite:/one\n");
    let kit = Kit::start(with(&mounted.folder.path().join("scaler.toml"))).await;
    let (day, night) = (object(&[("profile", "day")]), object(&[("profile", "night")]));
    let (_of_day, mut of_night) = (kit.idle_stream(&day).await, kit.idle_stream(&night).await);
    let slo = object(&[("profile", "night"), ("mode", "slo"), ("sloSeconds", "600")]);
    let spec = kit.client.clone().get_metric_spec(slo.clone()).await.unwrap().into_inner();
    let metric_name = spec.metric_specs[0].metric_name.clone();
    let request = GetMetricsRequest { scaled_object_ref: Some(slo), metric_name };
    let replicas = async || {
        let values = kit.client.clone().get_metrics(request.clone()).await.unwrap().into_inner();
        values.metric_values[0].metric_value_float
    };
    assert_eq!(replicas().await, 0.0);
    publish(&kit.broker.queue("/two#jobs"), 400).await;
    assert_eq!(*kit.broker.opened.borrow(), 2);

    let mut swap = |url: &str| mounted.swap(&[("scaler.toml", &text), ("secret", url)]);
    swap("sqlite:/two\n");
    assert_eq!(said(&mut of_night).await, Some(true));
    assert_eq!(kit.value(&night).await.unwrap().metric_value, 400);
    // What waited there before is a backlog, and nothing that arrives.
    let asked = replicas().await;
    assert!(asked > 0.5 && asked < 1.0, "{asked} replicas for 400 jobs of a second in 540 s");
    let metrics = page(kit.http, "/metrics").await;
    let rate =
        "scaler_queue_arrivals_per_second{over=\"minutes\",profile=\"night\",queue=\"jobs\"} ";
    assert!(metrics.contains(&format!("{rate}0\n")), "{metrics}");
    assert_eq!(*kit.broker.opened.borrow(), 3, "the other profile is left alone");
    kit.stop().await;
}

#[tokio::test]
async fn a_file_that_is_broken_at_the_start_is_told_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("scaler.toml");
    let told = ebb_scaler::Scaler::bind(with(&file)).await.unwrap_err();
    assert!(format!("{told:#}").contains("cannot be read"), "{told:#}");
    std::fs::write(&file, "[profiles.a]\nurll = \"sqlite:/a\"\n").unwrap();
    let told = ebb_scaler::Scaler::bind(with(&file)).await.unwrap_err();
    let told = format!("{told:#}");
    assert!(told.contains("scaler.toml: line 2: key \"profiles.a.urll\""), "{told}");
    assert!(told.contains("use url"), "{told}");
}
