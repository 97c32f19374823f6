//! NATS with JetStream.

use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::Signal;

use crate::program::{Program, cached};
use crate::server::Server;
use crate::{Port, Result, TlsFiles, probe};

const NEWEST: Program = Program {
    name: "nats-server",
    variable: "EBB_NATS_SERVER",
    remedy: "run tests/run once, which fetches it, or set EBB_NATS_SERVER to one",
};

const OLDEST: Program = Program {
    variable: "EBB_NATS_SERVER_OLDEST",
    remedy: "run tests/run once, which fetches it, or set EBB_NATS_SERVER_OLDEST to one",
    ..NEWEST
};

/// Which of the servers that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NatsVersion {
    /// `EBB_NATS_SERVER`, else the one on the PATH, else the newest that `tests/run` fetched.
    #[default]
    Newest,
    /// `EBB_NATS_SERVER_OLDEST`, else the oldest that `tests/run` fetched.
    Oldest,
}

/// When JetStream writes to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sync {
    /// Every two minutes, as it is by default.
    #[default]
    Default,
    /// Before each answer: what was accepted survives a loss of power.
    Always,
}

/// How a server is set.
#[derive(Debug, Clone, Default)]
pub struct NatsOptions {
    /// Which program.
    pub version: NatsVersion,
    /// When it writes to the disk.
    pub sync: Sync,
    /// Where its data goes; to a folder that is gone with it when missing.
    pub data: Option<PathBuf>,
    /// A user and a password that it asks for.
    pub user: Option<(String, String)>,
    /// A token that it asks for.
    pub token: Option<String>,
    /// Encrypts the port.
    pub tls: Option<TlsFiles>,
    /// Appended to its configuration.
    pub extra_config: String,
}

/// A NATS server of our own.
#[derive(Debug)]
pub struct Nats {
    server: Server,
    program: PathBuf,
    options: NatsOptions,
    port: Port,
}

impl Nats {
    /// Starts one and waits until it answers.
    ///
    /// # Errors
    /// When the program is missing, with where it was looked for and how to get it, or when it does
    /// not come up, with what it said.
    pub async fn start(options: NatsOptions) -> Result<Self> {
        let mut nats = Self::at(options, Port::draw()?)?;
        nats.restart().await?;
        Ok(nats)
    }

    /// One that is not started yet, on this port.
    pub(crate) fn at(options: NatsOptions, port: Port) -> Result<Self> {
        let program = match options.version {
            NatsVersion::Newest => {
                let fetched: Vec<_> = cached("nats", NEWEST.name).into_iter().rev().collect();
                NEWEST.find(&fetched)?
            }
            NatsVersion::Oldest => {
                let fetched = cached("nats", OLDEST.name).into_iter().next();
                let named = OLDEST.named()?.or(fetched);
                named.ok_or_else(|| {
                    let cache = crate::program::cache("nats");
                    let (variable, remedy) = (OLDEST.variable, OLDEST.remedy);
                    let places = format!("{variable} (not set), {}", cache.display());
                    crate::Error(format!("nats-server is missing: looked at {places}; {remedy}"))
                })?
            }
        };
        Ok(Self { server: Server::new()?, program, options, port })
    }

    /// What `EBB_QUEUE` would be, without a queue.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.options.tls.is_some() { "tls" } else { "nats" };
        let identity = match (&self.options.user, &self.options.token) {
            (Some((user, password)), _) => format!("{user}:{password}@"),
            (None, Some(token)) => format!("{token}@"),
            (None, None) => String::new(),
        };
        format!("{scheme}://{identity}127.0.0.1:{}", self.port())
    }

    /// The port of its clients.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Its process, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.server.pid()
    }

    /// Ends it at once, without a word to its clients.
    pub fn kill(&mut self) {
        self.server.kill();
    }

    /// Ends it if it runs, and starts it again on the same port and data.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn restart(&mut self) -> Result<()> {
        self.server.kill();
        let config = self.server.home().write("nats.conf", &self.config())?;
        let mut command = Command::new(&self.program);
        command.arg("-c").arg(config);
        self.server.launch(&command)?;
        let port = self.port();
        let answers = async || {
            let info = probe::ask(port, b"").await.unwrap_or_default();
            String::from_utf8_lossy(&info).contains("\"jetstream\":true")
        };
        self.server.until("nats-server", answers).await
    }

    /// Holds it as it is: its connections stand and nothing answers.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pause(&self) -> Result<()> {
        self.server.signal(self.pid(), Signal::SIGSTOP)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// When it does not run.
    pub fn resume(&self) -> Result<()> {
        self.server.signal(self.pid(), Signal::SIGCONT)
    }

    fn config(&self) -> String {
        let (options, port) = (&self.options, self.port());
        let data = options.data.clone().unwrap_or_else(|| self.server.home().path().join("data"));
        let sync = match options.sync {
            Sync::Default => "",
            Sync::Always => "  sync_interval: always\n",
        };
        let mut config = format!(
            "listen: \"127.0.0.1:{port}\"\njetstream {{\n  store_dir: {data:?}\n{sync}}}\n"
        );
        if let Some((user, password)) = &options.user {
            config += &format!("authorization {{ user: {user:?}, password: {password:?} }}\n");
        } else if let Some(token) = &options.token {
            config += &format!("authorization {{ token: {token:?} }}\n");
        }
        if let Some(TlsFiles { cert, key, client_ca }) = &options.tls {
            config += &format!("tls {{\n  cert_file: {cert:?}\n  key_file: {key:?}\n");
            if let Some(ca) = client_ca {
                config += &format!("  ca_file: {ca:?}\n  verify: true\n");
            }
            config += "}\n";
        }
        config + &options.extra_config
    }
}
