//! RabbitMQ, with a name service of its own and without the distribution's wrapper: it runs as
//! whoever runs the tests.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;

use crate::program::Program;
use crate::server::Server;
use crate::{Error, Port, Result, TlsFiles, ports, probe};

const PROGRAM: Program = Program {
    name: "rabbitmq-server",
    variable: "EBB_RABBITMQ_SERVER",
    remedy: "install it (Debian: apt-get install rabbitmq-server), or set EBB_RABBITMQ_SERVER to \
             the script sbin/rabbitmq-server of an unpacked one",
};

/// The name service of Erlang stays in the foreground, so that it ends with its server. The
/// server's own script takes its place here.
const START: &str = r#"epmd -address 127.0.0.1 -port "$ERL_EPMD_PORT" & exec "$0""#;

/// How a server is set.
#[derive(Debug, Clone, Default)]
pub struct RabbitMqOptions {
    /// Where its data goes; to a folder that is gone with it when missing.
    pub data: Option<PathBuf>,
    /// Its only user, an administrator; `guest` with the password `guest` when missing.
    pub user: Option<(String, String)>,
    /// Plugins, such as `rabbitmq_management`; set their ports in `extra_config`.
    pub plugins: Vec<String>,
    /// Encrypts the port that the URL names.
    pub tls: Option<TlsFiles>,
    /// Appended to its configuration.
    pub extra_config: String,
}

/// A RabbitMQ server of our own.
#[derive(Debug)]
pub struct RabbitMq {
    server: Server,
    program: PathBuf,
    options: RabbitMqOptions,
    port: Port,
    tls_port: Port,
    /// Of the name service, and of the other nodes that there are not.
    inner_ports: [Port; 2],
}

impl RabbitMq {
    /// Starts one and waits until it answers, which takes seconds.
    ///
    /// # Errors
    /// When the program is missing, with where it was looked for and how to get it, or when it does
    /// not come up, with what it said.
    pub async fn start(options: RabbitMqOptions) -> Result<Self> {
        let mut others = vec![PathBuf::from("/usr/lib/rabbitmq/bin/rabbitmq-server")];
        for entry in std::fs::read_dir("/opt").into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with("rabbitmq") {
                others.push(entry.path().join("sbin").join("rabbitmq-server"));
            }
        }
        let program = PROGRAM.find(&others)?;
        let [port, tls_port, epmd, dist] = ports::draw()?;
        let server = Server::new()?;
        let inner_ports = [epmd, dist];
        let mut rabbitmq = Self { server, program, options, port, tls_port, inner_ports };
        rabbitmq.restart().await?;
        Ok(rabbitmq)
    }

    /// What `EBB_QUEUE` would be, without a queue.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.options.tls.is_some() { "amqps" } else { "amqp" };
        let user = self.options.user.as_ref();
        let (user, password) = user.map_or(("guest", "guest"), |(user, word)| (user, word));
        format!("{scheme}://{user}:{password}@127.0.0.1:{}", self.port())
    }

    /// The port of its clients.
    #[must_use]
    pub fn port(&self) -> u16 {
        if self.options.tls.is_some() { &self.tls_port } else { &self.port }.number()
    }

    /// The port that is not encrypted.
    #[must_use]
    pub fn plain_port(&self) -> u16 {
        self.port.number()
    }

    /// Its process, while it runs: the one that does the work, not the scripts around it.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.server.pid()?;
        let text = std::fs::read_to_string(self.server.home().path().join("pid")).ok()?;
        text.trim().parse().ok()
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
        let command = self.command()?;
        self.server.launch(&command)?;
        let tls_port = self.options.tls.as_ref().map(|_| self.tls_port.number());
        let port = self.plain_port();
        let answers = async || {
            let answer = probe::ask(port, b"AMQP\x00\x00\x09\x01").await.unwrap_or_default();
            // A method frame: `connection.start`. The encrypted port opens some time after the
            // plain one.
            answer.first() == Some(&1)
                && match tls_port {
                    Some(port) => probe::is_open(port).await,
                    None => true,
                }
        };
        self.server.until("rabbitmq-server", answers).await
    }

    /// Has `rabbitmqctl` do something, as an operator would, and waits until it is done.
    ///
    /// # Errors
    /// When the server does not run, or the tool fails, with what it said.
    pub fn control(&self, args: &[&str]) -> Result<()> {
        let pid = self.pid().ok_or_else(|| Error("rabbitmq-server does not run".to_owned()))?;
        let path = format!("/proc/{pid}/environ");
        let environment = std::fs::read(&path)
            .map_err(|error| Error::because(&format!("cannot read {path}"), error))?;
        let environment = String::from_utf8_lossy(&environment).into_owned();
        let variables: HashMap<&str, &str> =
            environment.split('\0').filter_map(|variable| variable.split_once('=')).collect();
        // The tool lies beside the plugins of its server.
        let home = variables.get("ERL_LIBS").and_then(|plugins| Path::new(plugins).parent());
        let home = home.ok_or_else(|| Error(format!("{path} has no ERL_LIBS")))?;
        let mut command = Command::new(home.join("sbin").join("rabbitmqctl"));
        for name in ["HOME", "ERL_EPMD_PORT", "RABBITMQ_NODENAME", "RABBITMQ_CONF_ENV_FILE"] {
            command.envs(variables.get_key_value(name));
        }
        let done = command.args(args).output();
        let done = done.map_err(|error| Error::because("cannot run rabbitmqctl", error))?;
        if done.status.success() {
            return Ok(());
        }
        Err(Error(format!("rabbitmqctl {args:?}: {done:?}")))
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

    fn command(&self) -> Result<Command> {
        let home = self.server.home();
        let [epmd, dist] = self.inner_ports.each_ref().map(Port::number);
        let data = self.options.data.clone().unwrap_or_else(|| home.path().join("data"));
        std::fs::create_dir_all(&data)
            .map_err(|error| Error::because(&format!("cannot make {}", data.display()), error))?;
        let plugins = format!("[{}].\n", self.options.plugins.join(","));
        let plugins = home.write("enabled_plugins", &plugins)?;
        let config = home.write("rabbitmq.conf", &self.config())?;
        // The one of the distribution is read where this is not named.
        let environment = home.write("rabbitmq-env.conf", "")?;
        // No schedulers that spin while they wait: tests share few cores. A delayed job that finds no way
        // on while the server starts is in no count until it is tried again.
        let erlang = "+sbwt none +sbwtdcpu none +sbwtdio none \
                      -kernel inet_dist_use_interface {127,0,0,1} \
                      -rabbit dead_letter_worker_publisher_confirm_timeout 5000";
        let mut command = Command::new("/bin/sh");
        command.args(["-c", START]).arg(&self.program);
        // The cookie of Erlang lies there.
        command.env("HOME", home.path());
        // The name is part of where the data lies, so it stays when somebody keeps that.
        command.env("RABBITMQ_NODENAME", "ebb-test@localhost");
        command.env("RABBITMQ_MNESIA_BASE", &data);
        command.env("RABBITMQ_LOG_BASE", home.path().join("log"));
        command.env("RABBITMQ_PID_FILE", home.path().join("pid"));
        command.env("RABBITMQ_ENABLED_PLUGINS_FILE", plugins);
        command.env("RABBITMQ_CONFIG_FILE", config);
        command.env("RABBITMQ_CONF_ENV_FILE", environment);
        command.env("RABBITMQ_GENERATED_CONFIG_DIR", home.path().join("generated"));
        command.env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1");
        command.env("RABBITMQ_NODE_PORT", self.plain_port().to_string());
        command.env("RABBITMQ_DIST_PORT", dist.to_string());
        command.env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", erlang);
        command.env("ERL_EPMD_PORT", epmd.to_string());
        command.env("ERL_EPMD_ADDRESS", "127.0.0.1");
        Ok(command)
    }

    fn config(&self) -> String {
        let mut config = String::new();
        if let Some((user, password)) = &self.options.user {
            config += &format!("default_user = {user}\ndefault_pass = {password}\n");
            config += "default_user_tags.administrator = true\n";
        }
        if let Some(TlsFiles { cert, key, client_ca }) = &self.options.tls {
            let is_asked = client_ca.is_some();
            let ca = client_ca.as_ref().unwrap_or(cert);
            config += &format!("listeners.ssl.1 = 127.0.0.1:{}\n", self.tls_port.number());
            config += &format!("ssl_options.cacertfile = {}\n", ca.display());
            config += &format!("ssl_options.certfile = {}\n", cert.display());
            config += &format!("ssl_options.keyfile = {}\n", key.display());
            config += &format!("ssl_options.fail_if_no_peer_cert = {is_asked}\n");
            let verify = if is_asked { "verify_peer" } else { "verify_none" };
            config += &format!("ssl_options.verify = {verify}\n");
        }
        config + &self.options.extra_config
    }
}
