//! Connections to the server that has the queue.

use std::path::Path;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, IntoConnectionInfo,
    RedisConnectionInfo, RedisError, TlsCertificates, Value,
};

use super::failure;
use super::value;
use crate::{Error, ErrorKind, RedisAddress, Result, dial};

/// One try to connect takes no longer.
const CONNECT: Duration = Duration::from_secs(5);

/// A command takes no longer, a large body included.
const RESPONSE: Duration = Duration::from_secs(10);

/// Nodes of a cluster that a search for the queue goes through.
const HOPS: usize = 5;

/// Where a queue is, or a stream of others.
#[derive(Debug)]
pub(super) struct Place {
    address: RedisAddress,
    /// Its name.
    pub(super) queue: String,
    /// The stream that plain producers write to; all other keys begin with its name.
    pub(super) inbox: String,
    is_foreign: bool,
}

/// A connection to the server that has the queue.
#[derive(Debug)]
pub(super) struct Dialed {
    pub(super) client: Client,
    pub(super) connection: MultiplexedConnection,
    /// Its version, as it says at the door.
    pub(super) version: String,
}

impl Place {
    pub(super) fn new(address: &RedisAddress, queue: &str) -> Self {
        let inbox = format!("ebb:{{{queue}}}");
        Self { address: address.clone(), queue: queue.to_owned(), inbox, is_foreign: false }
    }

    /// A stream of others, which has no other keys.
    pub(super) fn foreign(address: &RedisAddress, stream: &str) -> Self {
        let (queue, inbox) = (stream.to_owned(), stream.to_owned());
        Self { address: address.clone(), queue, inbox, is_foreign: true }
    }

    pub(super) fn shown(&self) -> String {
        self.address.server.shown()
    }

    /// The name of another key or channel of the queue.
    pub(super) fn key(&self, name: &str) -> String {
        format!("{}:{name}", self.inbox)
    }

    /// A command that tells whether a server has loaded its data, and has the slot of the queue.
    pub(super) fn probe(&self) -> Cmd {
        if self.is_foreign {
            return redis::cmd("XLEN").arg(&self.inbox).clone();
        }
        redis::cmd("HGET").arg(self.key("meta")).arg("layout").clone()
    }

    pub(super) fn told(&self, error: RedisError) -> Error {
        failure::told(error, &self.shown())
    }

    /// Connects to the first server that answers as a master and has the queue's slot.
    pub(super) async fn dial(&self) -> Result<Dialed> {
        let hosts = self.address.server.hosts.iter();
        let calls = hosts.map(|(host, port)| self.dial_from(host, *port)).collect();
        // Of many reasons the one that nobody can wait out says most.
        dial::first(calls, |error| error.kind() != ErrorKind::Unavailable).await
    }

    /// Goes from node to node of a cluster until one has the queue.
    async fn dial_from(&self, host: &str, port: u16) -> Result<Dialed> {
        let (mut host, mut port) = (host.to_owned(), port);
        for _ in 0..HOPS {
            let client = self.client(&host, port)?;
            let mut connection = connected(&client, Some(RESPONSE)).await.map_err(|error| {
                let told = failure::told(error, &format!("{host}:{port}"));
                if told.kind() != ErrorKind::Unavailable {
                    return told;
                }
                let words = format!(
                    "redis at {host}:{port} does not answer; is it running, and are host and port \
                     right?"
                );
                Error::new(ErrorKind::Unavailable, words).caused_by(told)
            })?;
            let at = format!("{host}:{port}");
            let version = greet(&mut connection, &at).await?;
            let error = match self.probe().query_async::<Value>(&mut connection).await {
                Ok(_) => return Ok(Dialed { client, connection, version }),
                // Whose key that is, is looked into later.
                Err(error) if error.code() == Some("WRONGTYPE") => {
                    return Ok(Dialed { client, connection, version });
                }
                Err(error) => error,
            };
            let next = error.redirect_node().and_then(|(node, _)| node.rsplit_once(':'));
            let next = next.map(|(node, port)| (node.to_owned(), port.parse().ok()));
            let Some((node, Some(next_port))) = next else {
                return Err(failure::told(error, &at));
            };
            // A node that does not know its own name leaves it out.
            host = if node.is_empty() { host } else { node };
            port = next_port;
        }
        let words = format!("redis at {}: its cluster moves the queue about", self.shown());
        Err(Error::new(ErrorKind::Unavailable, words))
    }

    fn client(&self, host: &str, port: u16) -> Result<Client> {
        let server = &self.address.server;
        let mut who = RedisConnectionInfo::default()
            .set_db(self.address.database.into())
            .set_skip_set_lib_name();
        if let Some(user) = &server.user {
            who = who.set_username(user);
        }
        if let Some(secret) = server.secret()? {
            who = who.set_password(secret.reveal());
        }
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let addr = match &server.tls {
            None => ConnectionAddr::Tcp(host, port),
            Some(_) => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
        };
        let cannot = |error: RedisError| {
            let words = format!("redis at {}: the connection cannot be set up", self.shown());
            Error::new(ErrorKind::Invalid, words).caused_by(error)
        };
        let info = addr.into_connection_info().map_err(cannot)?;
        let info =
            info.set_redis_settings(who).set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let Some(tls) = &server.tls else { return Client::open(info).map_err(cannot) };
        let root_cert = tls.ca.as_deref().map(|path| pem("tls_ca", path)).transpose()?;
        let identity = tls.identity.as_ref();
        let client_tls = identity.map(|(cert, key)| {
            let (client_cert, client_key) = (pem("tls_cert", cert)?, pem("tls_key", key)?);
            Ok::<_, Error>(ClientTlsConfig { client_cert, client_key })
        });
        let certificates = TlsCertificates { client_tls: client_tls.transpose()?, root_cert };
        Client::build_with_tls(info, certificates).map_err(cannot)
    }
}

/// A connection; without a limit on responses for those that block.
pub(super) async fn connected(
    client: &Client,
    response: Option<Duration>,
) -> Result<MultiplexedConnection, RedisError> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT))
        .set_response_timeout(response);
    client.get_multiplexed_async_connection_with_config(&config).await
}

/// Asks who is there: everybody may.
async fn greet(connection: &mut MultiplexedConnection, at: &str) -> Result<String> {
    let answer: Value = redis::cmd("HELLO")
        .query_async(connection)
        .await
        .map_err(|error| failure::told(error, at))?;
    let (mut role, mut version) = (String::new(), String::new());
    let fields = match answer {
        Value::Map(pairs) => pairs,
        Value::Array(flat) => {
            let mut flat = flat.into_iter();
            std::iter::from_fn(|| Some((flat.next()?, flat.next()?))).collect()
        }
        _ => Vec::new(),
    };
    for (name, field) in fields {
        match &*value::text(name)? {
            "role" => role = value::text(field)?,
            "version" => version = value::text(field)?,
            _ => {}
        }
    }
    if role == "replica" || role == "slave" {
        let words = format!("redis at {at} is a replica; name its master");
        return Err(Error::new(ErrorKind::Unavailable, words));
    }
    let major = version.split('.').next().and_then(|major| major.parse().ok());
    if major.is_some_and(|major: u32| major < 7) {
        let words = format!("redis at {at} is version {version}; use 7.0 or newer, or valkey");
        return Err(Error::new(ErrorKind::Incompatible, words));
    }
    Ok(version)
}

fn pem(option: &str, path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| {
        let words = format!("option {option}: cannot read {}", path.display());
        Error::new(ErrorKind::Invalid, words).caused_by(error)
    })
}
