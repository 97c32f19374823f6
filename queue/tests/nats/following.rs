//! Who follows answers: what that costs the server, and that nobody misses anything.

use std::time::Duration;

use bytes::Bytes;
use ebb_queue::{Frame, JobId, JobResult, Outcome, Queue, Result, Timestamp};
use ebb_servers::{Nats, NatsOptions};
use futures::StreamExt;
use futures::future::join_all;
use futures::stream::BoxStream;
use tokio::time::{Instant, timeout};

use crate::way::Way;
use crate::{LONG, block_on, on_each, try_open, until};

/// What a handle listens to for all who follow through it.
const SHARED: usize = 2;

fn id(name: &str) -> JobId {
    name.parse().unwrap()
}

fn answer(name: &str) -> JobResult {
    let content_type = "text/plain".to_owned();
    let outcome = Outcome::Completed { content_type, body: "42".into() };
    let finished_at = Timestamp::from_second(1_900_000_000).unwrap();
    JobResult { id: id(name), attempt: 1, outcome, finished_at, queue: None }
}

async fn chunk(queue: &Queue, name: &str, seq: u64) {
    queue.chunk(&id(name), 1, seq, Bytes::from(seq.to_string())).await.unwrap();
}

/// Places of the pieces, to the end.
async fn places(frames: &mut BoxStream<'static, Result<Frame>>) -> Vec<u64> {
    let mut places = Vec::new();
    loop {
        match timeout(LONG, frames.next()).await.expect("it goes on").expect("it goes on") {
            Ok(Frame::Chunk { seq, .. }) => places.push(seq),
            Ok(Frame::Final(_)) => return places,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn who_waits_for_an_answer_listens_once_however_long_it_takes() {
    on_each(async |server| {
        const N_JOBS: usize = 20;
        let way = Way::to(server.port()).await;
        let there = try_open(&format!("nats://127.0.0.1:{}", way.port)).await.unwrap();
        let here = try_open(&server.url()).await.unwrap();
        way.count();
        let names: Vec<_> = (0..N_JOBS).map(|n| format!("job-{n}")).collect();
        let follow = async |name: &String| {
            let mut frames = there.follow(&id(name), 0).await.unwrap();
            places(&mut frames).await
        };
        let store = async {
            // Each look asks for the answer, and whether the job ended without one.
            until("all have looked twice", async || way.counted().n_requests >= 4 * N_JOBS).await;
            for name in &names {
                here.put(&answer(name)).await.unwrap();
            }
        };
        tokio::join!(join_all(names.iter().map(follow)), store);
        let counted = way.counted();
        println!("{N_JOBS} who wait: {counted:?}");
        assert!(counted.n_subs <= N_JOBS + SHARED, "{counted:?}");
        let gone = async || way.counted().n_unsubs >= N_JOBS;
        until("nobody listens for those who wait no more", gone).await;
    });
}

#[test]
fn who_follows_pieces_listens_to_them_once() {
    on_each(async |server| {
        const N_PIECES: u64 = 50;
        let way = Way::to(server.port()).await;
        let there = try_open(&format!("nats://127.0.0.1:{}", way.port)).await.unwrap();
        let here = try_open(&server.url()).await.unwrap();
        way.count();
        let mut frames = there.follow(&id("a"), 0).await.unwrap();
        for seq in 0..N_PIECES {
            chunk(&here, "a", seq).await;
            let frame = timeout(LONG, frames.next()).await.expect("it is told").unwrap().unwrap();
            assert!(matches!(frame, Frame::Chunk { seq: told, .. } if told == seq), "{frame:?}");
        }
        here.put(&answer("a")).await.unwrap();
        assert!(places(&mut frames).await.is_empty());
        let counted = way.counted();
        println!("{N_PIECES} pieces: {counted:?}");
        assert!(counted.n_subs <= 2 + SHARED, "{counted:?}");
    });
}

#[test]
fn one_who_takes_nothing_holds_up_nobody_and_misses_nothing() {
    on_each(async |server| {
        const N_PIECES: u64 = 300;
        let there = try_open(&server.url()).await.unwrap();
        let here = try_open(&server.url()).await.unwrap();
        let mut slow = there.follow(&id("a"), 0).await.unwrap();
        let mut quick = there.follow(&id("a"), 0).await.unwrap();
        let mut other = there.follow(&id("b"), 0).await.unwrap();
        chunk(&here, "a", 0).await;
        let first = timeout(LONG, slow.next()).await.expect("it is told").unwrap().unwrap();
        assert!(matches!(first, Frame::Chunk { seq: 0, .. }), "{first:?}");
        let store = async {
            for seq in 1..N_PIECES {
                chunk(&here, "a", seq).await;
            }
            here.put(&answer("a")).await.unwrap();
            here.put(&answer("b")).await.unwrap();
        };
        let (told, of_other, ()) = tokio::join!(places(&mut quick), places(&mut other), store);
        assert!(told.into_iter().eq(0..N_PIECES) && of_other.is_empty());
        assert!(places(&mut slow).await.into_iter().eq(1..N_PIECES));
    });
}

#[test]
fn an_answer_that_came_while_the_connection_was_away_is_told_when_it_is_back() {
    const SOON: Duration = Duration::from_secs(6);
    block_on(async {
        let server = Nats::start(NatsOptions::default()).await.unwrap();
        let way = Way::to(server.port()).await;
        let there = try_open(&format!("nats://127.0.0.1:{}", way.port)).await.unwrap();
        let here = try_open(&server.url()).await.unwrap();
        way.count();
        let mut frames = there.follow(&id("a"), 0).await.unwrap();
        let store = async {
            // The next look would come eight seconds later.
            until("it has looked four times", async || way.counted().n_requests >= 8).await;
            way.cut();
            until("the loss is noticed", async || !there.link().is_up()).await;
            here.put(&answer("a")).await.unwrap();
            way.mend();
            Instant::now()
        };
        let (told, mended) = tokio::join!(places(&mut frames), store);
        assert!(told.is_empty() && mended.elapsed() < SOON, "{:?}", mended.elapsed());
    });
}

/// One may do all, one may hear nothing but the answers to its requests, and one not of ends and purges.
const USERS: &str = r#"
authorization {
  users: [
    { user: all, password: a }
    { user: deaf, password: d, permissions: { subscribe: { allow: ["_INBOX.>"] } } }
    { user: half, password: h, permissions: {
      subscribe: { deny: ["ebb.jobs.notes.end.>", "ebb.jobs.purged.>"] } } }
  ]
}
"#;

#[test]
fn who_may_not_listen_looks_often() {
    block_on(async {
        let extra_config = USERS.to_owned();
        let options = NatsOptions { extra_config, ..NatsOptions::default() };
        let server = Nats::start(options).await.unwrap();
        let way = Way::to(server.port()).await;
        let here = format!("nats://all:a@127.0.0.1:{}", server.port());
        let here = try_open(&here).await.unwrap();
        let there = format!("nats://deaf:d@127.0.0.1:{}", way.port);
        let there = try_open(&there).await.unwrap();
        way.count();
        let mut frames = there.follow(&id("a"), 0).await.unwrap();
        let begin = Instant::now();
        let store = async {
            until("it has looked ten times", async || way.counted().n_requests >= 20).await;
            here.put(&answer("a")).await.unwrap();
        };
        tokio::join!(places(&mut frames), store);
        // By naps that grow it would be over a minute.
        assert!(begin.elapsed() < LONG, "{:?}", begin.elapsed());
    });
}

#[test]
fn who_follows_later_by_a_handle_that_may_not_hear_of_ends_looks_often_too() {
    block_on(async {
        let extra_config = USERS.to_owned();
        let options = NatsOptions { extra_config, ..NatsOptions::default() };
        let server = Nats::start(options).await.unwrap();
        let way = Way::to(server.port()).await;
        let here = format!("nats://all:a@127.0.0.1:{}", server.port());
        let _made = try_open(&here).await.unwrap();
        let there = format!("nats://half:h@127.0.0.1:{}", way.port);
        let there = try_open(&there).await.unwrap();
        for name in ["a", "b"] {
            way.count();
            let mut frames = there.follow(&id(name), 0).await.unwrap();
            let looks = until("it has looked ten times", async || way.counted().n_requests >= 20);
            tokio::select! {
                told = frames.next() => panic!("{name}: {told:?}"),
                () = looks => {}
            }
        }
    });
}
