//! Encrypted connections to real brokers that ask for our certificate, and what is said when the
//! trust is missing.

#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

use std::path::PathBuf;

use e2e::Workplace;
use ebb_servers::{Nats, NatsOptions, RabbitMq, RabbitMqOptions, Redis, RedisOptions, TlsFiles};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

/// An authority, a server's certificate and a client's, as PEM files.
struct Papers {
    ca: PathBuf,
    server: (PathBuf, PathBuf),
    client: (PathBuf, PathBuf),
}

impl Papers {
    fn issue(workplace: &Workplace) -> Self {
        let write = |name: &str, text: String| {
            let path = workplace.path(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "authority of a test");
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let pair = |name: &str, names: &[&str]| {
            let key = KeyPair::generate().unwrap();
            let names: Vec<_> = names.iter().map(ToString::to_string).collect();
            let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &ca).unwrap();
            let key = write(&format!("{name}.key"), key.serialize_pem());
            (write(&format!("{name}.pem"), certificate.pem()), key)
        };
        Self {
            server: pair("server", &["127.0.0.1", "localhost"]),
            client: pair("client", &["client"]),
            ca: write("ca.pem", ca.pem()),
        }
    }

    fn for_server(&self) -> TlsFiles {
        let (cert, key) = self.server.clone();
        TlsFiles { cert, key, client_ca: Some(self.ca.clone()) }
    }

    /// A URL with these parts of our papers.
    fn with(&self, url: &str, parts: &[&str]) -> String {
        let options = parts.iter().map(|part| match *part {
            "tls_ca" => format!("tls_ca={}", self.ca.display()),
            "tls_cert" => format!("tls_cert={}", self.client.0.display()),
            _ => format!("tls_key={}", self.client.1.display()),
        });
        format!("{url}?{}", options.collect::<Vec<_>>().join("&"))
    }
}

fn check(workplace: &Workplace, papers: &Papers, url: &str) {
    let within = |limit: &str, url: &str, args: &[&str]| {
        let args = [args, &["--queue", url, "--connect-timeout", limit]].concat();
        workplace.ebb(&args)
    };
    // Who is refused tries again until the time is over.
    let ebb = |url: &str, args: &[&str]| within("10s", url, args);
    let trusted = papers.with(url, &["tls_ca", "tls_cert", "tls_key"]);
    within("30s", &trusted, &["enqueue", "hello"]).ok();
    let depth = within("30s", &trusted, &["queue", "depth", "--json"]).ok().json();
    assert_eq!(depth["ready"], 1, "{depth}");

    let stranger = ebb(&papers.with(url, &["tls_ca"]), &["queue", "depth"]).failed();
    assert!(stranger.stderr.contains("127.0.0.1"), "{stranger}");
    // The system's authorities do not know ours.
    let wary = ebb(&papers.with(url, &["tls_cert", "tls_key"]), &["queue", "depth"]).failed();
    let words = wary.stderr.to_lowercase();
    assert!(words.contains("certificate") && words.contains("tls_ca"), "{wary}");
    let lost = format!("{url}?tls_ca=/nowhere/ca.pem");
    let lost = ebb(&lost, &["queue", "depth"]).failed();
    assert!(lost.stderr.contains("tls_ca") && lost.stderr.contains("o such file"), "{lost}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_knows_us_by_our_certificate() {
    let workplace = Workplace::new();
    let papers = Papers::issue(&workplace);
    let options = NatsOptions { tls: Some(papers.for_server()), ..NatsOptions::default() };
    let nats = Nats::start(options).await.unwrap();
    check(&workplace, &papers, &nats.url());
}

#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_knows_us_by_our_certificate() {
    let workplace = Workplace::new();
    let papers = Papers::issue(&workplace);
    let options = RabbitMqOptions { tls: Some(papers.for_server()), ..RabbitMqOptions::default() };
    let rabbitmq = RabbitMq::start(options).await.unwrap();
    check(&workplace, &papers, &rabbitmq.url());
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_knows_us_by_our_certificate() {
    let workplace = Workplace::new();
    let papers = Papers::issue(&workplace);
    let options = RedisOptions { tls: Some(papers.for_server()), ..RedisOptions::default() };
    let redis = Redis::start(options).await.unwrap();
    check(&workplace, &papers, &redis.url());
}
