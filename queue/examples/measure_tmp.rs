use std::num::NonZeroUsize;
use std::time::{Duration, Instant};
use ebb_queue::*;
use futures::future::join_all;
use futures::StreamExt;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let dir = std::path::PathBuf::from(std::env::args().nth(1).unwrap());
    for mode in [Synchronous::Normal, Synchronous::Full, Synchronous::Normal, Synchronous::Full] {
        let path = dir.join(format!("m-{}.db", JobId::fresh()));
        let mut url = QueueUrl::sqlite(&path);
        url.address = Address::Sqlite { path: path.clone(), synchronous: mode };
        let q = open(&url, OpenOptions::default()).await.unwrap();
        let n = 20_000usize;
        let body = vec![b'x'; 1024];
        let t = Instant::now();
        for _ in 0..n / 64 {
            let jobs = (0..64).map(|_| Job::new(body.clone(), Timestamp::now())).collect();
            q.publish(jobs).await.unwrap();
        }
        let publish = (n / 64 * 64) as f64 / t.elapsed().as_secs_f64();
        let t = Instant::now();
        for _ in 0..200 { q.depth().await.unwrap(); }
        let depth = t.elapsed().as_secs_f64() / 200.0 * 1e6;
        let t = Instant::now();
        let mut done = 0usize;
        loop {
            let ds = q.receive(NonZeroUsize::new(64).unwrap(), Duration::ZERO).await.unwrap();
            if ds.is_empty() { break; }
            let results: Vec<_> = ds.iter().map(|d| JobResult { id: d.job.id.clone(), attempt: d.attempt, outcome: Outcome::Completed { content_type: "application/json".into(), body: vec![b'y'; 1024].into() }, finished_at: Timestamp::now() }).collect();
            for r in join_all(results.iter().map(|r| q.put(r))).await { assert_eq!(r.unwrap(), Stored::Stored); }
            let s: Vec<_> = ds.into_iter().map(Delivery::ack).collect();
            done += s.len();
            q.settle(&s).await.unwrap();
        }
        let consume = done as f64 / t.elapsed().as_secs_f64();
        // one by one
        let t = Instant::now();
        let m = 500;
        for _ in 0..m { q.publish(vec![Job::new(body.clone(), Timestamp::now())]).await.unwrap(); }
        let single = m as f64 / t.elapsed().as_secs_f64();
        let t = Instant::now();
        for _ in 0..m {
            let d = q.receive(NonZeroUsize::MIN, Duration::ZERO).await.unwrap().remove(0);
            let r = JobResult { id: d.job.id.clone(), attempt: 1, outcome: Outcome::Failed { reason: "x".into() }, finished_at: Timestamp::now() };
            q.put(&r).await.unwrap();
            q.settle(&[d.ack()]).await.unwrap();
        }
        let one = m as f64 / t.elapsed().as_secs_f64();
        // notify
        let q2 = open(&url, OpenOptions::default()).await.unwrap();
        let mut a = q2.arrivals().await.unwrap();
        let mut lat = Vec::new();
        for _ in 0..200 {
            let t = Instant::now();
            q.publish(vec![Job::new(body.clone(), Timestamp::now())]).await.unwrap();
            let _ = tokio::time::timeout(Duration::from_secs(2), a.next()).await.unwrap();
            lat.push(t.elapsed().as_secs_f64() * 1e3);
            tokio::time::sleep(Duration::from_millis(8)).await;
            while futures::FutureExt::now_or_never(a.next()).is_some() {}
        }
        lat.sort_by(f64::total_cmp);
        println!("{mode:?}: publish64 {publish:.0}/s consume64 {consume:.0}/s publish1 {single:.0}/s loop1 {one:.0}/s depth {depth:.0} us notify(incl publish) p50 {:.2} p99 {:.2} ms", lat[100], lat[197]);
    }
}
