//! Dead letters that are deleted for their age, by who may and by who may not.

use std::time::Duration;

use ebb_queue::{Elsewhere, ErrorKind, Queue};
use ebb_servers::{Nats, NatsOptions, NatsVersion};

use crate::{VERSIONS, block_on, job, receive, try_open};

/// One may do all, the other may not delete dead letters.
const USERS: &str = r#"
authorization {
  users: [
    { user: all, password: a }
    { user: less, password: l, permissions: {
        publish: { deny: ["$JS.API.STREAM.MSG.DELETE.EBB_DEAD_jobs"] }
    } }
  ]
}
"#;

/// One may do all, the other not delete a dead letter.
async fn two_users(version: NatsVersion) -> (Nats, Queue, Queue) {
    let extra_config = USERS.to_owned();
    let options = NatsOptions { version, extra_config, ..NatsOptions::default() };
    let server = Nats::start(options).await.unwrap();
    let rest = format!("127.0.0.1:{}?queue=jobs&dead_ttl=1ms", server.port());
    let all = try_open(&format!("nats://all:a@{rest}")).await.unwrap();
    let less = try_open(&format!("nats://less:l@{rest}")).await.unwrap();
    (server, all, less)
}

async fn die(queue: &Queue, name: &str) {
    queue.publish(vec![job(name)]).await.unwrap();
    let dead = receive(queue, 1).await.unwrap().remove(0);
    queue.settle(&[dead.reject("bad")]).await.unwrap();
}

#[test]
fn who_may_not_delete_dead_letters_is_told_and_works_on() {
    for version in VERSIONS {
        block_on(async {
            let (_server, all, less) = two_users(version).await;
            die(&less, "a").await;
            tokio::time::sleep(Duration::from_millis(5)).await;
            for _ in 0..2 {
                let error = less.purge_old(Elsewhere::Leave).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
            }
            die(&less, "b").await;
            tokio::time::sleep(Duration::from_millis(5)).await;
            assert_eq!(all.purge_old(Elsewhere::Leave).await.unwrap().n_jobs, 2);
        });
    }
}

#[test]
fn a_redrive_that_was_cut_off_loses_nothing_to_age_and_can_be_done_again() {
    for version in VERSIONS {
        block_on(async {
            let (_server, all, less) = two_users(version).await;
            die(&all, "a").await;
            // The job is back, and its letter cannot be deleted.
            assert_eq!(less.redrive(None).await.unwrap_err().kind(), ErrorKind::Denied);
            tokio::time::sleep(Duration::from_millis(5)).await;
            assert_eq!(all.purge_old(Elsewhere::Take).await.unwrap().n_jobs, 0);
            let depth = all.depth().await.unwrap();
            assert_eq!((depth.ready, depth.dead), (1, 1));
            assert!(all.publish(vec![job("a")]).await.unwrap()[0].duplicate, "it is known");
            assert_eq!(all.redrive(None).await.unwrap(), 1);
            let depth = all.depth().await.unwrap();
            assert_eq!((depth.ready, depth.dead), (1, 0), "it is put back once");
        });
    }
}
