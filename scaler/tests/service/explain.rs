//! `/explain`: why an object has the replicas that it has.

use ebb_queue::Phase;
use serde_json::Value;

use crate::kit::{Kit, Mood, args, object, page, page_says, publish, report, said};

fn body(page: &str) -> &str {
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    page.split_once("\r\n\r\n").unwrap().1
}

async fn json(kit: &Kit, path: &str) -> Value {
    serde_json::from_str(body(&page(kit.http, path).await)).unwrap()
}

#[tokio::test]
async fn an_object_is_explained_in_numbers_and_in_words() {
    let kit = Kit::start(args()).await;
    publish(&kit.queue(), 12).await;
    report(&kit.queue(), Phase::Idle, 0).await;
    let object = object(&[("scalerAddress", "ebb:6000"), ("jobsPerReplica", "5")]);
    assert_eq!(kit.value(&object).await.unwrap().metric_value, 12);
    assert!(kit.is_active(&object).await.unwrap());
    let mut stream = kit.stream(&object).await;
    assert_eq!(said(&mut stream).await, Some(true));

    let list = json(&kit, "/explain").await;
    assert_eq!(list["objects"][0]["name"], "encoder");
    let told = json(&kit, "/explain/ml/encoder").await;
    let [trigger] = &told["triggers"].as_array().unwrap()[..] else { panic!("{told}") };
    assert_eq!(trigger["profile"], "default");
    assert_eq!(trigger["queue"], "jobs");
    assert_eq!(trigger["metric"], "ebb-jobs-jobs");
    let option = serde_json::json!({"key": "jobsPerReplica", "value": "5", "from": "metadata"});
    assert_eq!(trigger["options"], serde_json::json!([option]));
    let seen = &trigger["seen"];
    assert_eq!(seen["depth"]["ready"], 12);
    assert_eq!(seen["workers"]["idle"], 1);
    assert_eq!(seen["replicas"], 3.0);
    assert_eq!(seen["active"], true);
    assert!(seen["why"].as_str().unwrap().contains("12 ready"), "{seen}");
    let expected: [(&str, Value); 3] =
        [("target", 5.0.into()), ("value", 12.0.into()), ("active", true.into())];
    for (what, said) in expected {
        assert_eq!(trigger["told"][what]["said"], said, "{told}");
        assert!(trigger["told"][what]["seconds_ago"].as_f64().unwrap() < 60.0, "{told}");
    }
    assert_eq!(trigger["told"]["pushed"]["said"], true);

    let words = page(kit.http, "/explain/ml/encoder?format=text").await;
    for part in ["ml/encoder", "jobsPerReplica = 5", "12 ready", "1 idle", "asks for 3 replicas"] {
        assert!(words.contains(part), "{words}");
    }
    let nobody = page(kit.http, "/explain/ml/nobody").await;
    assert!(nobody.starts_with("HTTP/1.1 404"), "{nobody}");
    assert!(nobody.contains("/explain lists") && nobody.contains("another replica"), "{nobody}");
    assert!(body(&page(kit.http, "/explain?format=text").await).contains("ml/encoder"));
    kit.stop().await;
}

#[tokio::test]
async fn what_has_less_effect_than_it_says_is_explained() {
    let kit = Kit::start(args()).await;
    publish(&kit.queue(), 1).await;
    let object = object(&[
        ("mode", "slo"),
        ("sloSeconds", "120"),
        ("coldStartSeconds", "110"),
        ("activationJobs", "7"),
    ]);
    assert!(kit.is_active(&object).await.unwrap(), "one job wakes the pool");
    let told = json(&kit, "/explain/ml/encoder").await;
    let warning = "activationJobs has no effect: sloSeconds leaves no time to wait";
    assert!(told["triggers"][0]["warning"].as_str().unwrap().contains(warning), "{told}");
    let words = page(kit.http, "/explain/ml/encoder?format=text").await;
    assert!(words.contains(&format!("warning: {warning}")), "{words}");
    kit.stop().await;
}

#[tokio::test]
async fn two_objects_that_scale_on_one_queue_are_explained() {
    let kit = Kit::start(args()).await;
    publish(&kit.queue(), 1).await;
    let (one, mut other) = (object(&[]), object(&[]));
    other.name = "reranker".to_owned();
    assert!(kit.is_active(&one).await.unwrap());
    let alone = json(&kit, "/explain/ml/encoder").await;
    assert!(alone["triggers"][0].get("warning").is_none(), "{alone}");
    assert!(kit.is_active(&other).await.unwrap());
    let renamed = json(&kit, "/explain/ml/reranker").await;
    assert!(renamed["triggers"][0].get("warning").is_none(), "one may have become the other");
    assert!(kit.is_active(&one).await.unwrap());
    for (name, of) in [("encoder", "ml/reranker"), ("reranker", "ml/encoder")] {
        let told = json(&kit, &format!("/explain/ml/{name}")).await;
        let warning = told["triggers"][0]["warning"].as_str().unwrap();
        assert!(warning.contains(&format!("the same queue scales {of}:")), "{told}");
    }
    kit.stop().await;
}

#[tokio::test]
async fn nothing_that_came_from_an_environment_is_explained() {
    let kit = Kit::start(args()).await;
    let object = object(&[("queueFromEnv", "hunter2"), ("jobsPerReplicaFromEnv", "4242")]);
    assert!(!kit.is_active(&object).await.unwrap());
    for path in ["/explain/ml/encoder", "/explain/ml/encoder?format=text", "/explain"] {
        let page = page(kit.http, path).await;
        assert!(!page.contains("hunter2"), "{page}");
    }
    let told = json(&kit, "/explain/ml/encoder").await;
    let options = told["triggers"][0]["options"].as_array().unwrap();
    assert_eq!(options.len(), 2);
    assert!(options.iter().all(|option| option["value"].is_null()), "{told}");
    // Nor told to KEDA, whose log others read.
    kit.broker.feel(Mood::Broken);
    let other = crate::kit::object(&[("queueFromEnv", "hunter3")]);
    let told = kit.is_active(&other).await.unwrap_err();
    assert!(told.message().contains("the queue that queueFromEnv names"), "{told}");
    assert!(!told.message().contains("hunter3"), "{told}");
    kit.stop().await;
}

#[tokio::test]
async fn an_outage_and_a_refusal_are_explained_too() {
    let kit = Kit::start(args()).await;
    kit.broker.feel(Mood::Broken);
    assert!(kit.is_active(&object(&[])).await.is_err());
    let mut client = kit.client.clone();
    client.get_metric_spec(object(&[])).await.unwrap();
    client.get_metric_spec(object(&[("jobPerReplica", "1")])).await.unwrap_err();
    let words = page_says(kit.http, "/explain/ml/encoder?format=text", "UNAVAILABLE").await;
    assert!(words.contains("was never reached (unavailable)"), "{words}");
    assert!(words.contains("refused") && words.contains("use jobsPerReplica"), "{words}");
    drop(client);
    kit.stop().await;
}
