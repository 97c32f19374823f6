//! Streams and consumers that others made, and whose messages others take: looked at, and left as
//! they are.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::{self, AckKind, Context, stream};
use ebb_queue::{Backlog, ErrorKind, Foreign, OpenOptions, QueueUrl, Result, look_at};
use ebb_servers::{Nats, NatsOptions, NatsVersion};
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::time::{Instant, timeout};

use crate::{block_on, on_each, until};

/// Within this an arrival is told, also where it has to be looked for and the machine is busy.
const SOON: Duration = Duration::from_secs(15);

async fn stranger(server: &Nats) -> Context {
    jetstream::new(async_nats::connect(server.url()).await.unwrap())
}

async fn js_version(server: &Nats) -> String {
    async_nats::connect(server.url()).await.unwrap().server_info().version
}

pub async fn looked_at(url: &str, reader: &str) -> Result<Arc<dyn Backlog>> {
    let url: QueueUrl = url.parse()?;
    let foreign = Foreign { stream: "WORK".into(), reader: reader.into() };
    look_at(&url, &foreign, OpenOptions::default()).await
}

/// The stream `WORK` of two kinds of subjects, as this says.
pub async fn work(js: &Context, config: stream::Config) -> stream::Stream {
    let subjects = vec!["work.>".to_owned(), "more.*".to_owned()];
    let config = stream::Config { name: "WORK".into(), subjects, ..config };
    js.create_stream(config).await.unwrap()
}

pub async fn reader(stream: &stream::Stream, name: &str, config: pull::Config) -> PullConsumer {
    let config = pull::Config { durable_name: Some(name.into()), ..config };
    stream.create_consumer(config).await.unwrap()
}

pub async fn publish(js: &Context, subject: &str) {
    js.publish(subject.to_owned(), "{}".into()).await.unwrap().await.unwrap();
}

async fn take(consumer: &PullConsumer, n: usize) -> Vec<jetstream::Message> {
    let fetched = consumer.fetch().max_messages(n).expires(SOON).messages().await.unwrap();
    fetched.map(std::result::Result::unwrap).collect().await
}

/// What waits and what is in flight.
async fn seen(backlog: &Arc<dyn Backlog>) -> (u64, u64) {
    let depth = backlog.depth().await.unwrap();
    (depth.ready, depth.in_flight)
}

/// How long it takes until something is told.
async fn told(arrivals: &mut BoxStream<'static, ()>) -> Duration {
    let since = Instant::now();
    timeout(SOON, arrivals.next()).await.expect("an arrival is told").unwrap();
    since.elapsed()
}

/// Takes what is told until nothing is for a while.
async fn hush(arrivals: &mut BoxStream<'static, ()>) {
    while let Ok(Some(())) = timeout(Duration::from_millis(700), arrivals.next()).await {}
}

/// Of a few times one takes less than this: in the others somebody else may have had the processor.
async fn assert_one_takes_less(limit: Duration, mut once: impl AsyncFnMut() -> Duration) {
    let mut fastest = Duration::MAX;
    for _ in 0..5 {
        fastest = fastest.min(once().await);
        if fastest < limit {
            return;
        }
    }
    panic!("the fastest took {fastest:?}");
}

#[test]
fn what_waits_and_what_is_held_is_counted_and_nothing_is_changed() {
    on_each(async |server| {
        let js = stranger(&server).await;
        // Where there are no direct gets the first message is asked for in another way.
        let allow_direct = js_version(&server).await.starts_with("2.10");
        let stream = work(&js, stream::Config { allow_direct, ..Default::default() }).await;
        let ack_wait = Duration::from_millis(500);
        let config = pull::Config { ack_wait, ..Default::default() };
        let consumer = reader(&stream, "embedder", config).await;
        let backlog = looked_at(&server.url(), "embedder").await.unwrap();
        let mut arrivals = backlog.arrivals().await.unwrap();
        let depth = backlog.depth().await.unwrap();
        assert_eq!((depth.ready, depth.in_flight, depth.done), (0, 0, Some(0)));
        assert_eq!(backlog.info().await.unwrap().warnings, [], "arrivals are told");
        publish(&js, "work.a").await;
        told(&mut arrivals).await;
        publish(&js, "work.b.c").await;
        publish(&js, "more.x").await;
        until("all three are seen", async || seen(&backlog).await == (3, 0)).await;
        let depth = backlog.depth().await.unwrap();
        assert!(depth.oldest_age().unwrap() < SOON, "{depth:?}");

        let held = take(&consumer, 2).await;
        until("two are held", async || seen(&backlog).await == (1, 2)).await;
        held[0].double_ack().await.unwrap();
        until("one is done", async || seen(&backlog).await == (1, 1)).await;
        assert_eq!(backlog.depth().await.unwrap().done, Some(1));
        // It is never gone from sight until it is handed out again, and acknowledged.
        tokio::time::sleep(2 * ack_wait).await;
        assert_eq!(seen(&backlog).await, (1, 1));
        for again in take(&consumer, 2).await {
            assert_eq!(seen(&backlog).await.0, 0);
            again.double_ack().await.unwrap();
        }
        until("nothing is left", async || seen(&backlog).await == (0, 0)).await;
        assert_eq!(backlog.depth().await.unwrap().oldest_ready, None);
        assert_eq!(backlog.workers().await.unwrap(), []);

        let streams: Vec<_> = js.stream_names().map(|name| name.unwrap()).collect().await;
        let readers: Vec<_> = stream.consumer_names().map(|name| name.unwrap()).collect().await;
        assert_eq!((streams, readers), (vec!["WORK".to_owned()], vec!["embedder".to_owned()]));
        // Where they are looked for once a second, the next look is still to come when it is quiet.
        assert_one_takes_less(Duration::from_millis(250), async || {
            hush(&mut arrivals).await;
            publish(&js, "work.a").await;
            told(&mut arrivals).await
        })
        .await;
    });
}

async fn newest(extra_config: &str) -> Nats {
    let extra_config = extra_config.to_owned();
    let version = NatsVersion::Newest;
    Nats::start(NatsOptions { version, extra_config, ..NatsOptions::default() }).await.unwrap()
}

#[test]
fn of_a_consumer_with_filters_only_its_own_messages_count_and_are_told() {
    block_on(async {
        let server = newest("").await;
        let js = stranger(&server).await;
        let stream = work(&js, stream::Config::default()).await;
        let filter_subjects = vec!["work.a".to_owned(), "work.c.*".to_owned()];
        let config = pull::Config { filter_subjects, ..Default::default() };
        let consumer = reader(&stream, "some", config).await;
        let backlog = looked_at(&server.url(), "some").await.unwrap();
        let mut arrivals = backlog.arrivals().await.unwrap();
        publish(&js, "work.b").await;
        publish(&js, "more.x").await;
        assert!(timeout(Duration::from_millis(300), arrivals.next()).await.is_err());
        assert_eq!(seen(&backlog).await, (0, 0));
        let since = jiff_now();
        publish(&js, "work.c.d").await;
        told(&mut arrivals).await;
        until("it is seen", async || seen(&backlog).await == (1, 0)).await;
        // Not that of the first message of the stream.
        let oldest = backlog.depth().await.unwrap().oldest_ready.unwrap();
        assert!(oldest >= since, "{oldest} {since}");
        // Told again after the first time, and of the other filter too.
        let mut n_jobs = 1;
        // What rings again and again is told less often.
        assert_one_takes_less(Duration::from_secs(1), async || {
            hush(&mut arrivals).await;
            publish(&js, "work.a").await;
            n_jobs += 1;
            told(&mut arrivals).await
        })
        .await;
        assert_eq!(backlog.info().await.unwrap().warnings, [], "arrivals are told");
        take(&consumer, n_jobs).await;
        until("all are held", async || seen(&backlog).await == (0, n_jobs as u64)).await;
    });
}

/// A moment ago: servers and we have the same clock here, and not the same precision.
fn jiff_now() -> ebb_queue::Timestamp {
    ebb_queue::Timestamp::now() - Duration::from_millis(5)
}

#[test]
fn what_is_not_there_or_does_not_tell_is_named_with_the_key_and_the_remedy() {
    block_on(async {
        let server = newest("").await;
        let js = stranger(&server).await;
        let refused = async |reader: &str, kind, words: &[&str]| {
            let Err(error) = looked_at(&server.url(), reader).await else { panic!("{reader}") };
            assert_eq!(error.kind(), kind, "{error}");
            let told = error.to_string();
            assert!(words.iter().all(|part| told.contains(part)), "{told}");
        };
        let missing = ErrorKind::Missing;
        refused("embedder", missing, &["stream: ", "no stream \"WORK\"", "make the stream"]).await;
        let stream = work(&js, stream::Config::default()).await;
        let words = ["consumer: ", "no consumer \"embedder\"", "make a durable consumer"];
        refused("embedder", missing, &words).await;
        let ack_policy = AckPolicy::None;
        reader(&stream, "deaf", pull::Config { ack_policy, ..Default::default() }).await;
        refused("deaf", ErrorKind::Invalid, &["consumer: ", "ack_policy none", "explicit"]).await;

        reader(&stream, "embedder", pull::Config::default()).await;
        publish(&js, "work.a").await;
        let backlog = looked_at(&server.url(), "embedder").await.unwrap();
        assert_eq!(seen(&backlog).await, (1, 0));
        stream.delete_consumer("embedder").await.unwrap();
        assert_eq!(backlog.depth().await.unwrap_err().kind(), missing);
        // Made anew, it is another, and may tell less.
        reader(&stream, "embedder", pull::Config { ack_policy, ..Default::default() }).await;
        assert_eq!(backlog.depth().await.unwrap_err().kind(), ErrorKind::Invalid);
        stream.delete_consumer("embedder").await.unwrap();
        reader(&stream, "embedder", pull::Config::default()).await;
        assert_eq!(backlog.depth().await.unwrap_err().kind(), ErrorKind::Unavailable);
        // Filters that it was given since are not those that are listened to.
        let backlog = looked_at(&server.url(), "embedder").await.unwrap();
        assert_eq!(seen(&backlog).await, (1, 0));
        let filter_subject = "work.b".to_owned();
        reader(&stream, "embedder", pull::Config { filter_subject, ..Default::default() }).await;
        assert_eq!(backlog.depth().await.unwrap_err().kind(), ErrorKind::Unavailable);
    });
}

const RIGHTS: &str = r#"
authorization {
  users: [
    { user: admin, password: a }
    { user: least, password: l, permissions: {
        publish: ["$JS.API.CONSUMER.INFO.WORK.embedder"], subscribe: ["_INBOX.>"]
    } }
    { user: scaler, password: s, permissions: {
        publish: [
          "$JS.API.CONSUMER.INFO.WORK.embedder", "$JS.API.STREAM.INFO.WORK",
          "$JS.API.STREAM.MSG.GET.WORK"
        ]
        subscribe: ["_INBOX.>", "work.>", "more.*"]
    } }
  ]
}
"#;

#[test]
fn who_may_see_less_sees_the_jobs_all_the_same() {
    block_on(async {
        let server = newest(RIGHTS).await;
        let url = |who: &str| format!("nats://{who}@127.0.0.1:{}", server.port());
        let admin = async_nats::ConnectOptions::with_user_and_password("admin".into(), "a".into());
        let admin = admin.connect(format!("127.0.0.1:{}", server.port())).await.unwrap();
        let js = jetstream::new(admin);
        let stream = work(&js, stream::Config::default()).await;
        let consumer = reader(&stream, "embedder", pull::Config::default()).await;
        for (who, is_told) in [("scaler:s", true), ("least:l", false)] {
            let backlog = looked_at(&url(who), "embedder").await.unwrap();
            let mut arrivals = backlog.arrivals().await.unwrap();
            let codes = backlog.info().await.unwrap().warnings;
            let codes: Vec<_> = codes.into_iter().map(|warning| warning.code).collect();
            assert_eq!(codes, if is_told { vec![] } else { vec!["no_push"] }, "{who}");
            publish(&js, "work.a").await;
            told(&mut arrivals).await;
            until("it is seen", async || seen(&backlog).await == (1, 0)).await;
            let depth = backlog.depth().await.unwrap();
            assert_eq!(depth.oldest_ready.is_some(), is_told, "{who}");
            // A refusal is not waited out as a server that does not answer is.
            assert_one_takes_less(Duration::from_secs(4), async || {
                let since = Instant::now();
                let backlog = looked_at(&url(who), "embedder").await.unwrap();
                drop(backlog.arrivals().await.unwrap());
                assert_eq!(seen(&backlog).await, (1, 0));
                since.elapsed()
            })
            .await;
            take(&consumer, 1).await[0].ack_with(AckKind::Ack).await.unwrap();
            until("it is done", async || seen(&backlog).await == (0, 0)).await;
        }
    });
}
