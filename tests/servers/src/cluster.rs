//! Three NATS servers that are one, on the loopback.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::{Error, Nats, NatsOptions, NatsVersion, Port, Result, ports};

/// Far longer than they take to find each other, since tests share few cores.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long one server may take to answer.
const ANSWER: Duration = Duration::from_secs(2);
/// A stream that can be made when all three are there.
const READY: &str = r#"{"name":"ready","subjects":["ready"],"storage":"memory","num_replicas":3}"#;

/// A cluster: each server keeps its data in a folder of its own, which outlives its kill.
#[derive(Debug)]
pub struct NatsCluster {
    nodes: [Nats; 3],
    /// On which they meet.
    _routes: [Port; 3],
}

impl NatsCluster {
    /// Starts three and waits until they are one.
    ///
    /// # Errors
    /// As [`Nats::start`], and when they do not find each other.
    pub async fn start(version: NatsVersion) -> Result<Self> {
        let routes: [Port; 3] = ports::draw()?;
        let [first, second, third] = ports::draw()?;
        let urls = routes.each_ref().map(|port| format!("\"nats://127.0.0.1:{}\"", port.number()));
        let node = |nth: usize, port| {
            let extra_config = format!(
                "server_name: n{nth}\ncluster {{\n  name: ebb\n  listen: \"127.0.0.1:{}\"\n  \
                 routes: [{}]\n}}\n",
                routes[nth].number(),
                urls.join(", ")
            );
            let options = NatsOptions { version, extra_config, ..NatsOptions::default() };
            Nats::at(options, port)
        };
        let nodes = [node(0, first)?, node(1, second)?, node(2, third)?];
        let mut cluster = Self { nodes, _routes: routes };
        cluster.mend().await?;
        Ok(cluster)
    }

    /// What `EBB_QUEUE` would be, without a queue: all three, in their order.
    #[must_use]
    pub fn url(&self) -> String {
        let hosts: Vec<_> =
            self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
        format!("nats://{}", hosts.join(","))
    }

    /// The servers; the name of each is `n` and its place.
    #[must_use]
    pub fn nodes(&self) -> &[Nats; 3] {
        &self.nodes
    }

    /// The same, to be killed and started.
    pub fn nodes_mut(&mut self) -> &mut [Nats; 3] {
        &mut self.nodes
    }

    /// Starts those that do not run, and waits until all of them see a leader, and it sees all of
    /// them.
    ///
    /// # Errors
    /// When one does not come up, or they do not find each other.
    pub async fn mend(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            if node.pid().is_none() {
                node.restart().await?;
            }
        }
        let end = Instant::now() + PATIENCE;
        for node in &self.nodes {
            while !is_ready(node.port()).await {
                if Instant::now() > end {
                    return Err(Error(format!("{} finds the others not in time", node.url())));
                }
                sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    }
}

/// Whether a stream that all three keep can be made through this server.
async fn is_ready(port: u16) -> bool {
    let made = api(port, "STREAM.CREATE.ready", READY).await;
    if made.is_none_or(|answer| answer.contains("\"error\"")) {
        return false;
    }
    api(port, "STREAM.DELETE.ready", "").await.is_some()
}

/// What JetStream answers, in time.
async fn api(port: u16, what: &str, body: &str) -> Option<String> {
    let asked = async {
        let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", port)).await?);
        let words = format!(
            "CONNECT {{\"verbose\":false}}\r\nSUB answer 1\r\nPUB $JS.API.{what} answer {}\r\n\
             {body}\r\n",
            body.len()
        );
        stream.write_all(words.as_bytes()).await?;
        let mut line = String::new();
        while !line.starts_with('{') {
            line.clear();
            if stream.read_line(&mut line).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        std::io::Result::Ok(line)
    };
    timeout(ANSWER, asked).await.ok()?.ok()
}
