//! Encrypted connections, and servers that want to know who we are.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ebb_queue::{ErrorKind, OpenOptions, QueueUrl};
use ebb_servers::{Redis, RedisOptions, TlsFiles};

use crate::{handle, job, refusal, take};

/// Runs openssl in a folder, with the words of one line.
fn openssl(folder: &Path, line: &str) {
    let output = Command::new("openssl").args(line.split(' ')).current_dir(folder).output();
    let output = output.expect("openssl is installed (Debian: apt-get install openssl)");
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Makes an authority, and certificates of it for the server and for us.
fn certificates(folder: &Path) {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(folder, &format!("req -x509 {key} -keyout ca.key -out ca.pem -subj /CN=ca -days 2"));
    std::fs::write(folder.join("names"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    for who in ["server", "client"] {
        openssl(folder, &format!("req {key} -keyout {who}.key -out {who}.csr -subj /CN={who}"));
        let sign = "-CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names";
        openssl(folder, &format!("x509 -req -in {who}.csr {sign} -out {who}.pem"));
    }
}

#[tokio::test]
async fn a_connection_is_encrypted_and_both_ends_are_known() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    certificates(folder);
    let tls = TlsFiles {
        cert: folder.join("server.pem"),
        key: folder.join("server.key"),
        client_ca: Some(folder.join("ca.pem")),
    };
    let options = RedisOptions { tls: Some(tls), ..RedisOptions::default() };
    let server = Redis::start(options).await.unwrap();
    let file = |name: &str| folder.join(name).display().to_string();
    let ours = format!("&tls_cert={}&tls_key={}", file("client.pem"), file("client.key"));
    let url = |query: &str| format!("{}?{query}", server.url()).parse::<QueueUrl>().unwrap();
    let trusted = url(&format!("tls_ca={}{ours}", file("ca.pem")));
    let queue = handle(&trusted).await;
    let mut told = queue.arrivals().await.unwrap();
    queue.publish(vec![job("a")]).await.unwrap();
    futures::StreamExt::next(&mut told).await.unwrap();
    assert_eq!(take(&queue, 9, Duration::ZERO).await.len(), 1);

    let quick =
        OpenOptions { connect_timeout: Duration::from_millis(700), ..OpenOptions::default() };
    // Whom we do not trust, and who does not know us.
    let error = refusal(&url(ours.trim_start_matches('&')), OpenOptions::default()).await;
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert!(error.to_string().contains("not trusted"), "{error}");
    let error = refusal(&url(&format!("tls_ca={}", file("ca.pem"))), quick.clone()).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let error = refusal(&url("tls_ca=/nowhere.pem"), quick).await;
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert!(error.to_string().contains("tls_ca"), "{error}");
}
