#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};
use ebb_queue::*;
use futures::StreamExt;
use lapin::options::*;
use lapin::types::FieldTable;

async fn publish(q: &Queue, n: usize) {
    let t = Instant::now();
    for _ in 0..n / 256 {
        let jobs = (0..256).map(|_| Job::new(vec![7u8; 1024], Timestamp::now())).collect();
        q.publish(jobs).await.unwrap();
    }
    println!("publish {:.0}/s", n as f64 / t.elapsed().as_secs_f64());
}
#[tokio::main]
async fn main() {
    let n: usize = 256 * 16;
    let name = format!("scratch-{}", std::process::id());
    let url: QueueUrl = format!("amqp://guest:guest@127.0.0.1:45672?queue={name}").parse().unwrap();
    let t = Instant::now();
    let q = open(&url, OpenOptions::default()).await.unwrap();
    println!("open {:?}", t.elapsed());
    let t = Instant::now();
    let q2 = open(&url, OpenOptions::default()).await.unwrap();
    println!("open again {:?}", t.elapsed());
    let t = Instant::now();
    q2.depth().await.unwrap();
    println!("first depth {:?}", t.elapsed());
    let t = Instant::now();
    q2.depth().await.unwrap();
    println!("depth {:?}", t.elapsed());
    for _ in 0..3 {
        q.publish(vec![Job::new("x", Timestamp::now())]).await.unwrap();
        let t = Instant::now();
        let d = q.receive(NonZeroUsize::new(7).unwrap(), Duration::ZERO).await.unwrap();
        print!("one receive {:?} {}", t.elapsed(), d.len());
        let t = Instant::now();
        let s: Vec<_> = d.into_iter().map(|d| d.ack()).collect();
        q.settle(&s).await.unwrap();
        println!(" settle {:?}", t.elapsed());
    }
    for run in 0..3 {
        let name = format!("{name}-{run}");
        let url: QueueUrl = format!("amqp://guest:guest@127.0.0.1:45672?queue={name}").parse().unwrap();
        let q = open(&url, OpenOptions::default()).await.unwrap();
        publish(&q, n).await;
        let conn = lapin::Connection::connect("amqp://guest:guest@127.0.0.1:45672/%2f", Default::default()).await.unwrap();
        let ch = conn.create_channel().await.unwrap();
        ch.basic_qos(256, BasicQosOptions::default()).await.unwrap();
        let mut c = ch.basic_consume(name.as_str().into(), "".into(), BasicConsumeOptions::default(), FieldTable::default()).await.unwrap();
        let t = Instant::now();
        let mut got = 0;
        while got < n {
            let d = c.next().await.unwrap().unwrap();
            got += 1;
            if got % 64 == 0 { ch.basic_ack(d.delivery_tag, BasicAckOptions { multiple: true }).await.unwrap(); }
        }
        println!("bare {:.0}/s", n as f64 / t.elapsed().as_secs_f64());
        conn.close(200, "x".into()).await.unwrap();
        publish(&q, n).await;
        let (t, mut got, mut calls, mut small) = (Instant::now(), 0, 0, 0);
        let mut slow = Duration::ZERO;
        while got < n {
            let u = Instant::now();
            let d = q.receive(NonZeroUsize::new(64).unwrap(), Duration::from_secs(1)).await.unwrap();
            slow = slow.max(u.elapsed());
            if calls < 8 { print!("[{:?} {}] ", u.elapsed(), d.len()); }
            got += d.len(); calls += 1; small += usize::from(d.len() < 64);
            let s: Vec<_> = d.into_iter().map(|d| d.ack()).collect();
            q.settle(&s).await.unwrap();
        }
        println!("\nebb {run} {:.0}/s, {calls} calls, {small} small, slowest {slow:?}", n as f64 / t.elapsed().as_secs_f64());
    }
    println!("{:?}", q2.depth().await.unwrap());
}
