//! Other processes, which are this test binary run again, and their sudden ends.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ebb_queue::Delivery;
use futures::future::join_all;

use crate::{answer, handle, job, take, url};

/// Set in a child: the file to work on. What follows it is the child's name.
const FILE: &str = "EBB_TEST_FILE";

/// Marks the lines that are meant for the parent.
const TELL: &str = "told: ";

/// The file and the name of a child, in a child.
fn role() -> Option<(PathBuf, String)> {
    let role = std::env::var(FILE).ok()?;
    let (file, name) = role.rsplit_once('#').unwrap();
    Some((file.into(), name.to_owned()))
}

/// Runs this very test once more, as a child.
fn child(test: &str, file: &Path, name: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([&format!("processes::{test}"), "--exact", "--nocapture", "--test-threads=1"])
        .env(FILE, format!("{}#{name}", file.display()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Tells the parent.
fn tell(words: &str) {
    let mut out = std::io::stdout().lock();
    // The harness may have begun a line.
    out.write_all(format!("\n{TELL}{words}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

/// What the child tells, until it ends.
fn told(child: &mut Child) -> impl Iterator<Item = String> + use<> {
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // The last line of a killed child may be cut short, but then it has no newline.
    lines.map_while(Result::ok).filter_map(|line| line.strip_prefix(TELL).map(str::to_owned))
}

#[tokio::test]
async fn many_processes_create_the_file_at_once() {
    if let Some((file, name)) = role() {
        let queue = handle(&url(&file)).await;
        queue.publish(vec![job(&name)]).await.unwrap();
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("new").join("queue.db");
    let test = "many_processes_create_the_file_at_once";
    let children: Vec<_> = (0..20).map(|n| child(test, &file, &format!("job-{n}"))).collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
    assert_eq!(handle(&url(&file)).await.depth().await.unwrap().ready, 20);
}

#[tokio::test]
async fn processes_that_race_for_jobs_receive_each_job_once() {
    if let Some((file, _)) = role() {
        let queue = handle(&url(&file)).await;
        loop {
            let deliveries = take(&queue, 3, Duration::ZERO).await;
            if deliveries.is_empty() {
                return;
            }
            let names: Vec<_> = deliveries.iter().map(|one| one.job.id.as_str()).collect();
            tell(&names.join(" "));
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("queue.db");
    let queue = handle(&url(&file)).await;
    queue.publish((0..300).map(|n| job(&format!("job-{n}"))).collect()).await.unwrap();
    let test = "processes_that_race_for_jobs_receive_each_job_once";
    let mut children: Vec<_> = (0..4).map(|_| child(test, &file, "racer")).collect();
    let mut received = Vec::new();
    for child in &mut children {
        for line in told(child) {
            received.extend(line.split(' ').map(str::to_owned));
        }
        assert!(child.wait().unwrap().success());
    }
    let each: BTreeSet<_> = received.iter().collect();
    assert_eq!((received.len(), each.len()), (300, 300));
    let depth = queue.depth().await.unwrap();
    assert_eq!((depth.ready, depth.in_flight), (0, 300));
}

#[tokio::test]
async fn a_killed_producer_loses_no_job_that_it_was_told_is_stored() {
    if let Some((file, name)) = role() {
        let queue = handle(&url(&file)).await;
        for n in 0.. {
            let jobs = (0..5).map(|k| job(&format!("{name}-{n}-{k}"))).collect();
            queue.publish(jobs).await.unwrap();
            tell(&format!("{name}-{n}"));
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("queue.db");
    let test = "a_killed_producer_loses_no_job_that_it_was_told_is_stored";
    let mut stored = BTreeSet::new();
    for round in 0..5 {
        let mut child = child(test, &file, &format!("round-{round}"));
        let mut told = told(&mut child);
        stored.extend(told.by_ref().take(10 + 7 * round));
        child.kill().unwrap();
        // What it told before it died counts as well.
        stored.extend(told);
        child.wait().unwrap();
    }
    let queue = handle(&url(&file)).await;
    let there = take(&queue, 1_000_000, Duration::ZERO).await;
    let there: BTreeSet<_> = there.iter().map(|one| one.job.id.to_string()).collect();
    for batch in &stored {
        for k in 0..5 {
            assert!(there.contains(&format!("{batch}-{k}")), "{batch} was stored");
        }
    }
    assert_eq!(there.len() % 5, 0, "a batch is stored whole or not at all");
}

#[tokio::test]
async fn a_killed_worker_loses_no_job_and_no_answer() {
    const JOBS: usize = 1500;
    /// What a worker does in its life, so that something is left however late it is killed.
    const SHARE: usize = 300;
    if let Some((file, _)) = role() {
        let queue = handle(&with_short_lease(&file)).await;
        let mut n_done = 0;
        loop {
            for delivery in take(&queue, 4, Duration::from_secs(10)).await {
                let id = delivery.job.id.clone();
                queue.put(&answer(&delivery)).await.unwrap();
                queue.settle(&[delivery.ack()]).await.unwrap();
                tell(id.as_str());
                n_done += 1;
                if n_done == SHARE {
                    std::future::pending::<()>().await;
                }
            }
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("queue.db");
    let queue = handle(&with_short_lease(&file)).await;
    queue.publish((0..JOBS).map(|n| job(&format!("job-{n}"))).collect()).await.unwrap();
    let test = "a_killed_worker_loses_no_job_and_no_answer";
    let mut done = Vec::new();
    for round in 0..4 {
        let mut child = child(test, &file, "worker");
        let mut told = told(&mut child);
        done.extend(told.by_ref().take(5 + 11 * round));
        child.kill().unwrap();
        done.extend(told);
        child.wait().unwrap();
    }
    assert!(done.len() < JOBS, "all was done before the last one was killed");
    loop {
        let deliveries = take(&queue, 64, Duration::from_millis(1)).await;
        let answers: Vec<_> = deliveries.iter().map(answer).collect();
        for stored in join_all(answers.iter().map(|answer| queue.put(answer))).await {
            stored.unwrap();
        }
        done.extend(answers.iter().map(|answer| answer.id.to_string()));
        let settlements: Vec<_> = deliveries.into_iter().map(Delivery::ack).collect();
        queue.settle(&settlements).await.unwrap();
        let depth = queue.depth().await.unwrap();
        if depth.ready + depth.in_flight == 0 {
            break;
        }
    }
    let each: BTreeSet<_> = done.iter().collect();
    assert_eq!(each.len(), done.len(), "what was done never came back");
    for n in 0..JOBS {
        let id = format!("job-{n}").parse().unwrap();
        assert!(queue.get(&id).await.unwrap().is_some(), "{id} has its answer");
    }
    // Acked but not told: at most the one that each of the killed had in hand.
    assert!((JOBS - 4..=JOBS).contains(&done.len()), "{} are done", done.len());
}

fn with_short_lease(file: &Path) -> ebb_queue::QueueUrl {
    let mut url = url(file);
    url.behavior.lease = Duration::from_millis(500);
    url
}
