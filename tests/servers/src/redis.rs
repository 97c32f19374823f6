//! Redis, or Valkey.

use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::Signal;

use crate::program::Program;
use crate::server::Server;
use crate::{Port, Result, TlsFiles, ports, probe};

const PROGRAM: Program = Program {
    name: "redis-server",
    variable: "EBB_REDIS_SERVER",
    remedy: "install it (Debian: apt-get install redis-server), or set EBB_REDIS_SERVER to one, \
             Valkey too",
};

/// What survives the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Persistence {
    /// Nothing.
    #[default]
    None,
    /// All of it; the last second may be lost with the power.
    EverySecond,
    /// All of it, also a loss of power.
    Always,
}

/// How a server is set.
#[derive(Debug, Clone, Default)]
pub struct RedisOptions {
    /// What survives the process.
    pub persistence: Persistence,
    /// Where its data goes; to a folder that is gone with it when missing.
    pub data: Option<PathBuf>,
    /// The password of the default user.
    pub password: Option<String>,
    /// Encrypts the port that the URL names.
    pub tls: Option<TlsFiles>,
    /// Makes it a node that others can meet.
    pub cluster: bool,
    /// Appended to its configuration.
    pub extra_config: String,
}

/// A Redis server of our own.
#[derive(Debug)]
pub struct Redis {
    server: Server,
    program: PathBuf,
    options: RedisOptions,
    port: Port,
    tls_port: Port,
    bus_port: Port,
}

impl Redis {
    /// Starts one and waits until it answers.
    ///
    /// # Errors
    /// When the program is missing, with where it was looked for and how to get it, or when it does
    /// not come up, with what it said.
    pub async fn start(options: RedisOptions) -> Result<Self> {
        let program = PROGRAM.find(&[])?;
        let [port, tls_port, bus_port] = ports::draw()?;
        let server = Server::new()?;
        let mut redis = Self { server, program, options, port, tls_port, bus_port };
        redis.restart().await?;
        Ok(redis)
    }

    /// What `EBB_QUEUE` would be, without a queue.
    #[must_use]
    pub fn url(&self) -> String {
        let password = self.options.password.as_ref();
        let identity = password.map(|password| format!(":{password}@")).unwrap_or_default();
        let scheme = if self.options.tls.is_some() { "rediss" } else { "redis" };
        format!("{scheme}://{identity}127.0.0.1:{}", self.port())
    }

    /// The port of its clients.
    #[must_use]
    pub fn port(&self) -> u16 {
        if self.options.tls.is_some() { &self.tls_port } else { &self.port }.number()
    }

    /// The port of the other nodes.
    #[must_use]
    pub fn bus_port(&self) -> u16 {
        self.bus_port.number()
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
        let config = self.server.home().write("redis.conf", &self.config())?;
        let mut command = Command::new(&self.program);
        // Newer ones want a locale that is there.
        command.arg(config).env("LC_ALL", "C");
        self.server.launch(&command)?;
        let port = self.port.number();
        let answers = async || {
            let answer = probe::ask(port, b"PING\r\n").await.unwrap_or_default();
            // One that asks for a password is there as well; one that still loads is not.
            answer.starts_with(b"+PONG") || answer.starts_with(b"-NOAUTH")
        };
        self.server.until("redis-server", answers).await
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
        let options = &self.options;
        let (port, tls_port) = (self.port.number(), self.tls_port.number());
        let data = options.data.clone();
        let data = data.unwrap_or_else(|| self.server.home().path().to_owned());
        let persistence = match options.persistence {
            Persistence::None => "appendonly no",
            Persistence::EverySecond => "appendonly yes\nappendfsync everysec",
            Persistence::Always => "appendonly yes\nappendfsync always",
        };
        let mut config = format!(
            "bind 127.0.0.1\nport {port}\ndir {data:?}\nsave \"\"\ndaemonize no\n{persistence}\n"
        );
        if options.cluster {
            // By default 10000 above the other one, where the system hands out ports to clients.
            config += &format!("cluster-enabled yes\ncluster-port {}\n", self.bus_port());
        }
        if let Some(password) = &options.password {
            config += &format!("requirepass {password:?}\n");
        }
        if let Some(TlsFiles { cert, key, client_ca }) = &options.tls {
            config +=
                &format!("tls-port {tls_port}\ntls-cert-file {cert:?}\ntls-key-file {key:?}\n");
            config += &match client_ca {
                Some(ca) => format!("tls-ca-cert-file {ca:?}\ntls-auth-clients yes\n"),
                None => format!("tls-ca-cert-file {cert:?}\ntls-auth-clients no\n"),
            };
        }
        config + &options.extra_config
    }
}
