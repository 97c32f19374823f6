//! A purge of many jobs, which takes several steps.

use futures::StreamExt;

use crate::{eventually, handle, job, server, url};

/// More than one step takes.
const MANY: usize = 600;

#[tokio::test]
async fn a_purge_skips_no_delayed_job_when_newer_ones_before_it_fall_due() {
    let server = server("").await;
    let queue = handle(&url(&server)).await;
    let delayed = |from: usize, n: usize, delay: &str| {
        let jobs = (from..from + n).map(|nth| {
            let mut job = job(&format!("delayed-{nth}"));
            job.set("ebb-delay", delay).unwrap();
            job
        });
        jobs.collect::<Vec<_>>()
    };
    queue.publish(delayed(0, MANY, "1h")).await.unwrap();
    let mut steps = queue.purge_waiting().await.unwrap();
    // That of the inbox, which is empty.
    let mut n_purged = steps.next().await.unwrap().unwrap().n_jobs;
    queue.publish(delayed(MANY, 200, "1s")).await.unwrap();
    n_purged += steps.next().await.unwrap().unwrap().n_jobs;
    assert_eq!(n_purged, 300, "the newer ones come first, and stay");
    eventually("the newer ones are due", async || queue.depth().await.unwrap().ready == 200).await;
    while let Some(step) = steps.next().await {
        n_purged += step.unwrap().n_jobs;
    }
    let depth = queue.depth().await.unwrap();
    assert_eq!((n_purged, depth.ready, depth.delayed), (MANY as u64, 200, 0));
}
