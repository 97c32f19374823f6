//! Clients that do harm by being slow, on connections as they make them.

use std::net::SocketAddr;
use std::time::Duration;

use ebb_queue::{Job, JobResult, OpenOptions, Outcome, Queue, QueueUrl, Timestamp};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep, timeout};

use crate::running::{PATIENCE, Running, ask, page};

/// A gateway with these flags, and its queue.
async fn running(flags: &[&str]) -> (Running, Queue, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let url = QueueUrl::sqlite(folder.path().join("queue.db"));
    let queue = ebb_queue::open(&url, OpenOptions::default()).await.unwrap();
    (Running::start(&url, flags).await, queue, folder)
}

/// Sends a header now and then until the gateway has closed the connection.
async fn trickle(mut stream: TcpStream) {
    let begun = Instant::now();
    stream.write_all(b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n").await.unwrap();
    while stream.write_all(b"x-more: x\r\n").await.is_ok() {
        let mut said = [0; 64];
        match timeout(Duration::from_millis(50), stream.read(&mut said)).await {
            Err(_) => assert!(begun.elapsed() < PATIENCE, "it is waited for"),
            Ok(Ok(n)) if n > 0 => {}
            Ok(_) => return,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_the_headers_of_a_request_slowly_is_not_waited_for() {
    let (running, _queue, _folder) = running(&["--header-timeout", "1s"]).await;
    trickle(TcpStream::connect(running.listen).await.unwrap()).await;
    assert_eq!(running.figure("gateway_connections_closed_total{reason=\"late\"}").await, 1.0);
    // Nor is who says nothing at all.
    let mut silent = TcpStream::connect(running.listen).await.unwrap();
    let read = timeout(PATIENCE, silent.read(&mut [0; 8])).await.expect("it is closed");
    assert!(!matches!(read, Ok(1..)), "{read:?}");
    assert!(ask(running.listen, page("/v1/models")).await.unwrap().starts_with("HTTP/1.1 200"));
    running.becomes("gateway_connections", 0.0).await;
}

/// Asks for the models, and keeps the connection.
async fn keep(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut said = String::new();
    while !said.ends_with("}]}") {
        let mut part = [0; 4096];
        let n = stream.read(&mut part).await.unwrap();
        assert!(n > 0, "it closes behind {said}");
        said.push_str(std::str::from_utf8(&part[..n]).unwrap());
    }
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_idle_is_closed_after_a_while_and_not_before() {
    let flags = ["--header-timeout", "1s", "--idle-timeout", "3s"];
    let (running, _queue, _folder) = running(&flags).await;
    // Before it is idle, which it is while a busy machine opens the other.
    let begun = Instant::now();
    let (mut idle, slow) = (keep(running.listen).await, keep(running.listen).await);
    let slow = tokio::spawn(trickle(slow));
    let read = timeout(PATIENCE, idle.read(&mut [0; 8])).await.expect("it is closed");
    assert!(!matches!(read, Ok(1..)), "{read:?}");
    assert!(begun.elapsed() > Duration::from_secs(2), "{:?}", begun.elapsed());
    slow.await.unwrap();
    // Both had asked something before.
    assert_eq!(running.figure("gateway_connections_closed_total{reason=\"late\"}").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn further_connections_than_there_may_be_are_told_to_come_again() {
    let (running, _queue, _folder) = running(&["--max-connections", "2"]).await;
    let kept = [keep(running.listen).await, keep(running.listen).await];
    let told = ask(running.listen, page("/v1/models")).await.unwrap();
    let (head, body) = told.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 503") && head.contains("\r\nretry-after: 1"), "{told}");
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(body["error"]["code"], "too_many_connections");
    assert_eq!(running.figure("gateway_connections_closed_total{reason=\"full\"}").await, 1.0);
    assert_eq!(running.figure("gateway_connections").await, 2.0);
    drop(kept);
    let begun = Instant::now();
    while !ask(running.listen, page("/v1/models")).await.unwrap().starts_with("HTTP/1.1 200") {
        assert!(begun.elapsed() < PATIENCE, "who leaves makes no room");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_refused_hears_it_however_much_he_sends_and_however_late() {
    let (running, _queue, _folder) = running(&["--max-connections", "1"]).await;
    let _kept = keep(running.listen).await;
    let mut stream = TcpStream::connect(running.listen).await.unwrap();
    let n_bytes = 64 * 1024;
    let head = "POST /v1/embeddings HTTP/1.1\r\nhost: localhost";
    let head = format!("{head}\r\ncontent-length: {n_bytes}\r\n\r\n");
    for part in [head.as_bytes(), &vec![b' '; n_bytes / 2], &vec![b' '; n_bytes / 2]] {
        sleep(Duration::from_millis(100)).await;
        stream.write_all(part).await.unwrap();
    }
    sleep(Duration::from_millis(100)).await;
    let mut told = String::new();
    stream.read_to_string(&mut told).await.unwrap();
    assert!(told.contains("too_many_connections"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_sent_a_part_of_a_request_holds_nobody_up_who_ends_the_gateway() {
    let (running, _queue, _folder) = running(&["--grace", "40s"]).await;
    let mut stream = TcpStream::connect(running.listen).await.unwrap();
    stream.write_all(b"GET /v1/models HTTP/1.1\r\nhost: local").await.unwrap();
    running.becomes("gateway_connections", 1.0).await;
    let begun = Instant::now();
    running.stop.cancel();
    running.ends().await;
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    drop(stream);
}

/// An answer of a megabyte, whose client reads its head and no more.
async fn unread_answer(running: &Running, queue: &Queue) -> TcpStream {
    let id = queue.publish(vec![Job::new("x", Timestamp::now())]).await.unwrap().pop().unwrap().id;
    let delivery = queue.receive(1.try_into().unwrap(), PATIENCE).await.unwrap().pop().unwrap();
    let body = vec![b' '; 1 << 20].into();
    let outcome = Outcome::Completed { content_type: "text/plain".to_owned(), body };
    let finished_at = Timestamp::now();
    let result = JobResult { id: id.clone(), attempt: 1, outcome, finished_at, queue: None };
    queue.put(&result).await.unwrap();
    queue.settle(&[delivery.ack()]).await.unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(running.listen).await.unwrap();
    let request = format!("GET /v1/jobs/{id} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut said = String::new();
    while !said.ends_with("\r\n\r\n") {
        said.push(stream.read_u8().await.unwrap().into());
    }
    assert!(said.starts_with("HTTP/1.1 200") && said.contains("content-length: 1048576"), "{said}");
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_answer_keeps_its_place_until_it_is_read_or_its_client_cut_off() {
    let (running, queue, _folder) = running(&["--stall-timeout", "3s"]).await;
    let mut read = unread_answer(&running, &queue).await;
    assert_eq!(running.figure("gateway_requests_in_flight").await, 1.0);
    read.read_exact(&mut vec![0; 1 << 20]).await.unwrap();
    running.becomes("gateway_requests_in_flight", 0.0).await;
    assert_eq!(running.figure("gateway_connections_closed_total{reason=\"stalled\"}").await, 0.0);
    let stalled = unread_answer(&running, &queue).await;
    assert_eq!(running.figure("gateway_requests_in_flight").await, 1.0);
    running.becomes("gateway_requests_in_flight", 0.0).await;
    assert_eq!(running.figure("gateway_connections_closed_total{reason=\"stalled\"}").await, 1.0);
    drop(stalled);
}

/// A stream of a chat, whose client reads its head and no more.
async fn unread(address: SocketAddr) -> (TcpStream, String) {
    let body = json!({"stream": true, "messages": [{"role": "user", "content": "a"}]}).to_string();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost";
    let request = format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut said = String::new();
    while !said.contains("\r\n\r\n") {
        said.push(stream.read_u8().await.unwrap().into());
    }
    let (_, id) = said.split_once("ebb-id: ").unwrap();
    (stream, id.split_once('\r').unwrap().0.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_whose_client_stops_reading_ends_and_its_job_is_cancelled() {
    let flags = ["--stall-timeout", "1s", "--keep-alive", "100ms"];
    let (running, queue, _folder) = running(&flags).await;
    let (stream, id) = unread(running.listen).await;
    let delivery = queue.receive(1.try_into().unwrap(), PATIENCE).await.unwrap().pop().unwrap();
    assert_eq!(delivery.job.id.as_str(), id);
    let choice = json!({"index": 0, "delta": {"content": "x".repeat(32 * 1024)}});
    let piece = format!("{}\n", json!({"object": "chat.completion.chunk", "choices": [choice]}));
    let (begun, mut seq) = (Instant::now(), 0);
    let result = loop {
        if let Some(result) = queue.get(&delivery.job.id).await.unwrap() {
            break result;
        }
        assert!(begun.elapsed() < PATIENCE, "a client is told what it does not take");
        queue.chunk(&delivery.job.id, 1, seq, piece.clone().into()).await.unwrap();
        seq += 1;
        sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(result.outcome, Outcome::Cancelled);
    assert_eq!(running.figure("gateway_connections_closed_total{reason=\"stalled\"}").await, 1.0);
    let left = "gateway_streams_total{outcome=\"left\",route=\"chat_completions\"}";
    assert_eq!(running.figure(left).await, 1.0);
    assert_eq!(running.figure("gateway_jobs_waiting").await, 0.0);
    drop(stream);
}

#[tokio::test(flavor = "multi_thread")]
async fn http_2_whose_streams_no_limit_here_counts_is_not_spoken() {
    let (running, _queue, _folder) = running(&[]).await;
    let mut stream = TcpStream::connect(running.listen).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut said = Vec::new();
    // It may be closed with an error: what it was told is not read.
    timeout(PATIENCE, stream.read_to_end(&mut said)).await.expect("it is closed").ok();
    assert!(said.is_empty() || said.starts_with(b"HTTP/1.1 400"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_refused_hears_it_though_the_body_is_not_wanted() {
    let (running, _queue, _folder) = running(&["--max-body", "1000"]).await;
    let n_bytes = 4 << 20;
    let length = format!("content-length: {n_bytes}");
    for (path, host, header, told) in [
        ("/v1/embeddings", "localhost", &*length, "body_too_large"),
        ("/v1/embeddings", "localhost", "transfer-encoding: chunked", "body_too_large"),
        ("/v1/embeddings", "rebound.example", &length, "foreign_origin"),
        ("/v1/nothing", "localhost", &length, "not_found"),
        ("/v1/models", "localhost", &length, "method_not_allowed"),
    ] {
        let mut stream = TcpStream::connect(running.listen).await.unwrap();
        let head = format!("POST {path} HTTP/1.1\r\nhost: {host}\r\n{header}\r\n\r\n");
        let is_chunked = !header.contains("length");
        let (chunk, last) = (format!("{n_bytes:x}\r\n"), "\r\n0\r\n\r\n");
        let (before, behind) = if is_chunked { (&*chunk, last) } else { ("", "") };
        let sent = [head.as_bytes(), before.as_bytes(), &vec![b' '; n_bytes], behind.as_bytes()];
        stream.write_all(&sent.concat()).await.unwrap_or_else(|error| panic!("{told}: {error}"));
        let mut said = Vec::new();
        while !String::from_utf8_lossy(&said).contains(told) {
            let n =
                stream.read_buf(&mut said).await.unwrap_or_else(|error| panic!("{told}: {error}"));
            assert!(n > 0, "{told}: {}", String::from_utf8_lossy(&said));
        }
    }
}
