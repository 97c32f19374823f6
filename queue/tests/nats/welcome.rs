//! Who is let in, and what those are told who are not.

use std::io::Write;
use std::num::NonZeroUsize;
use std::time::Duration;

use async_nats::ConnectOptions;
use ebb_queue::{Backlog, ErrorKind, Phase, WorkerStatus};
use ebb_servers::{Nats, NatsOptions};
use futures::StreamExt;

use crate::way::Way;
use crate::{block_on, job, refusal, try_open, try_open_within};

async fn start(options: NatsOptions) -> (Nats, String) {
    let server = Nats::start(options).await.unwrap();
    let bare = format!("nats://127.0.0.1:{}", server.port());
    (server, bare)
}

#[test]
fn a_user_and_a_token_are_let_in_and_others_are_told_why_not() {
    block_on(async {
        let user = Some(("ann".to_owned(), "s p@ce".to_owned()));
        let (_server, bare) = start(NatsOptions { user, ..NatsOptions::default() }).await;
        let as_user = |who: &str| bare.replace("nats://", &format!("nats://{who}@"));
        assert!(try_open(&as_user("ann:s%20p%40ce")).await.is_ok());
        for (url, named) in [(as_user("ann:wrong"), "user ann"), (bare.clone(), "USER:PASSWORD")] {
            let error = refusal(&url).await;
            assert_eq!(error.kind(), ErrorKind::Denied);
            assert!(error.to_string().contains(named), "{error}");
            assert!(!format!("{error:?}").contains("wrong"), "{error:?}");
        }

        let token = Some("t0ken".to_owned());
        let (_server, bare) = start(NatsOptions { token, ..NatsOptions::default() }).await;
        assert!(try_open(&bare.replace("nats://", "nats://t0ken@")).await.is_ok());
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "t0ken").unwrap();
        let by_file = format!("{bare}?password_file={}", file.path().display());
        assert!(try_open(&by_file).await.is_ok());
        writeln!(file, "more").unwrap();
        assert!(refusal(&by_file).await.to_string().contains("the token"));
    });
}

#[test]
fn nobody_there_is_told_with_the_hosts() {
    block_on(async {
        let (server, bare) = start(NatsOptions::default()).await;
        drop(server);
        let opened = try_open_within(Duration::from_secs(3), &bare).await;
        let error = opened.err().expect("nobody is there");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains(bare.trim_start_matches("nats://")), "{error}");
    });
}

/// What a scaler needs to be allowed, and nothing else.
const SCALER: &str = r#"
authorization {
  users: [
    { user: worker, password: w }
    { user: scaler, password: s, permissions: {
        publish: [
          "$JS.API.STREAM.INFO.*", "$JS.API.CONSUMER.INFO.EBB_JOBS_jobs.*",
          "$JS.API.DIRECT.GET.*"
        ]
        subscribe: ["_INBOX.>", "ebb.jobs.jobs", "ebb.jobs.jobs.>", "ebb.jobs.phase"]
    } }
  ]
}
"#;

#[test]
fn a_scaler_that_may_only_look_sees_all_and_can_touch_nothing() {
    block_on(async {
        let extra_config = SCALER.to_owned();
        let (_server, bare) = start(NatsOptions { extra_config, ..NatsOptions::default() }).await;
        let worker = try_open(&bare.replace("nats://", "nats://worker:w@")).await.unwrap();
        let scaler = try_open(&bare.replace("nats://", "nats://scaler:s@")).await.unwrap();
        let backlog: &dyn Backlog = &*scaler;
        let mut arrivals = backlog.arrivals().await.unwrap();
        worker.publish(vec![job("a")]).await.unwrap();
        arrivals.next().await.unwrap();
        let depth = backlog.depth().await.unwrap();
        assert_eq!((depth.ready, depth.oldest_ready.is_some()), (1, true));
        let status = WorkerStatus {
            id: "one".to_owned(),
            pod: "pod".to_owned(),
            phase: Phase::Idle,
            in_flight: 0,
            slots: 1,
            completed: 0,
            failed: 0,
            batch_time: None,
            cold_start: Vec::new(),
            first_result: None,
            model: "echo".to_owned(),
            at: "2030-01-31T12:00:00Z".parse().unwrap(),
        };
        worker.report(&status).await.unwrap();
        assert_eq!(backlog.workers().await.unwrap(), [status]);
        let error = scaler.publish(vec![job("b")]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        assert!(error.to_string().to_lowercase().contains("permissions"), "{error}");
        assert!(scaler.purge(None).await.is_ok_and(|n| n == 0));
        assert_eq!(backlog.depth().await.unwrap().ready, 1);
    });
}

/// One who may do all but take jobs.
const NO_WORKER: &str = r#"
authorization {
  users: [
    { user: ann, password: a, permissions: {
        publish: { deny: ["$JS.API.CONSUMER.MSG.NEXT.>"] }
    } }
  ]
}
"#;

#[test]
fn a_server_that_does_not_answer_is_not_taken_for_one_that_refuses() {
    block_on(async {
        let extra_config = NO_WORKER.to_owned();
        let (server, bare) = start(NatsOptions { extra_config, ..NatsOptions::default() }).await;
        let options = ConnectOptions::with_user_and_password("ann".to_owned(), "a".to_owned());
        let client = options.connect(&bare).await.unwrap();
        let _nobody = client.subscribe("$JS.API.DIRECT.GET.EBB_SILENCE_jobs").await.unwrap();
        let way = Way::to(server.port()).await;
        let queue = try_open(&format!("nats://ann:a@127.0.0.1:{}", way.port)).await.unwrap();
        way.change("EBB_RESULTS_jobs", "EBB_SILENCE_jobs");
        let id = "a".parse().unwrap();
        let silent = queue.get(&id);
        let refused = queue.receive(NonZeroUsize::MIN, Duration::ZERO);
        let (silent, refused) = tokio::join!(silent, refused);
        let refused = refused.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Denied, "{refused}");
        let silent = silent.unwrap_err();
        assert_eq!(silent.kind(), ErrorKind::Unavailable, "{silent}");
    });
}
