//! A connection to the first server that answers, and what it says of itself.

use std::time::Duration;

use futures::{AsyncReadExt, AsyncWriteExt};
use lapin::tcp::{AMQPUriTcpExt, OwnedIdentity, OwnedTLSConfig};
use lapin::types::FieldTable;
use lapin::types::parsing::parse_field_table;
use lapin::uri::{
    AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo, SASLMechanism,
};
use lapin::{Connection, ConnectionProperties};
use tokio::time::timeout;

use super::errors;
use crate::{AmqpAddress, Error, ErrorKind, Result, dial};

/// The start of a connection, and of AMQP 0-9-1.
const GREETING: &[u8; 8] = b"AMQP\x00\x00\x09\x01";
/// The longest answer to it that we read: a frame is no longer before its size is negotiated.
const MAX_ANSWER: usize = 128 * 1024;

/// What a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Version {
    /// In its own words.
    pub(super) text: String,
    pub(super) number: (u32, u32),
}

/// Everything that a connect needs, read anew each time: files may have changed.
#[derive(Debug)]
pub(super) struct Door {
    uris: Vec<AMQPUri>,
    tls: OwnedTLSConfig,
}

impl Door {
    /// # Errors
    /// [`ErrorKind::Invalid`] when a file that an option names cannot be read.
    pub(super) fn open(address: &AmqpAddress) -> Result<Self> {
        let server = &address.server;
        let secret = server.secret()?;
        let identity = server.tls.as_ref().and_then(|tls| tls.identity.as_ref());
        // Who shows a certificate and no name is known by the certificate.
        let by_certificate = identity.is_some() && server.user.is_none();
        let guest = || "guest".to_owned();
        let userinfo = AMQPUserInfo {
            username: server.user.clone().unwrap_or_else(guest),
            password: secret.map_or_else(guest, |secret| secret.reveal().to_owned()),
        };
        let scheme = if server.tls.is_some() { AMQPScheme::AMQPS } else { AMQPScheme::AMQP };
        let query = AMQPQueryString {
            heartbeat: Some(u16::try_from(address.heartbeat.as_secs()).unwrap_or(u16::MAX)),
            auth_mechanism: by_certificate.then_some(SASLMechanism::External),
            ..AMQPQueryString::default()
        };
        let uris = server.hosts.iter().map(|(host, port)| AMQPUri {
            scheme: scheme.clone(),
            authority: AMQPAuthority {
                userinfo: userinfo.clone(),
                host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
                port: *port,
            },
            vhost: address.vhost.clone(),
            query: query.clone(),
        });
        let uris = uris.collect();
        let mut tls = OwnedTLSConfig::default();
        if let Some(ca) = server.tls.as_ref().and_then(|tls| tls.ca.as_ref()) {
            tls.cert_chain = Some(String::from_utf8_lossy(&read("tls_ca", ca)?).into_owned());
        }
        if let Some((cert, key)) = identity {
            let (pem, key) = (read("tls_cert", cert)?, read("tls_key", key)?);
            tls.identity = Some(OwnedIdentity::PKCS8 { pem, key });
        }
        Ok(Self { uris, tls })
    }

    /// Both connections to the first server that answers: one to receive by, one to publish by,
    /// since a broker that is short of room stops reading from those who publish.
    pub(super) async fn enter(&self, name: &str, limit: Duration) -> Result<Pair> {
        let calls = self.uris.iter().map(|uri| async move {
            let entered = timeout(limit, self.enter_one(uri, name)).await;
            entered.unwrap_or_else(|_| {
                let words = format!("{} did not answer in time", shown(uri));
                Err(Error::new(ErrorKind::Unavailable, words))
            })
        });
        // Another server of the same broker would say the same.
        let is_final =
            |error: &Error| matches!(error.kind(), ErrorKind::Invalid | ErrorKind::Denied);
        dial::first(calls.collect(), is_final).await
    }

    async fn enter_one(&self, uri: &AMQPUri, name: &str) -> Result<Pair> {
        let connect = async |role: &str| {
            let options = ConnectionProperties::default()
                .with_connection_name(format!("ebb {name} {role}").into());
            let runtime = lapin::runtime::default_runtime()?;
            let (uri, tls) = (uri.clone(), self.tls.clone());
            Connection::connect_uri_with_config(uri, options, tls, runtime).await
        };
        let refused = |error| errors::connect(&error, uri, &shown(uri));
        let (version, intake, outlet) =
            tokio::join!(self.ask_version(uri), connect("receives"), connect("publishes"));
        // What is wrong with the place comes before what is wrong with us.
        let version = version?;
        let (intake, outlet) = (intake.map_err(refused)?, outlet.map_err(refused)?);
        Ok(Pair { intake, outlet, version })
    }

    /// What the server says of itself when a connection begins; the client keeps it for itself.
    async fn ask_version(&self, uri: &AMQPUri) -> Result<Version> {
        let unreachable = |error: std::io::Error| {
            let words = format!("cannot reach RabbitMQ at {}", shown(uri));
            Error::new(ErrorKind::Unavailable, words).caused_by(error)
        };
        let runtime = lapin::runtime::default_runtime()
            .map_err(|error| Error::new(ErrorKind::Internal, "no runtime").caused_by(error))?;
        let stream = uri.connect_with_config_async(self.tls.as_ref(), &runtime).await;
        let mut stream = stream.map_err(unreachable)?;
        stream.write_all(GREETING).await.map_err(unreachable)?;
        stream.flush().await.map_err(unreachable)?;
        let mut head = [0; 7];
        stream.read_exact(&mut head).await.map_err(unreachable)?;
        let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
        // Method 10 of class 10 begins a connection.
        if head[0] != 1 || size > MAX_ANSWER {
            let words = format!("{} does not speak AMQP 0-9-1; is it RabbitMQ?", shown(uri));
            return Err(Error::new(ErrorKind::Invalid, words));
        }
        let mut frame = vec![0; size];
        stream.read_exact(&mut frame).await.map_err(unreachable)?;
        Ok(Version::parse(&frame))
    }
}

/// Two connections to one server.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) intake: Connection,
    pub(super) outlet: Connection,
    pub(super) version: Version,
}

impl Version {
    /// From the frame that begins a connection: class, method, protocol version, a table.
    fn parse(frame: &[u8]) -> Self {
        let table = frame.get(6..).and_then(|rest| parse_field_table(rest).ok());
        let table = table.map_or_else(FieldTable::default, |(_, table)| table);
        let say = |name: &str| table.inner().get(name).and_then(super::parcel::text);
        let product = say("product").unwrap_or_else(|| "unknown".to_owned());
        let version = say("version").unwrap_or_default();
        let mut parts = version.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().ok());
        let mut next = || parts.next().flatten().unwrap_or(0);
        let number = (next(), next());
        Self { text: format!("{product} {version}").trim_end().to_owned(), number }
    }
}

fn shown(uri: &AMQPUri) -> String {
    format!("{}:{}", uri.authority.host, uri.authority.port)
}

fn read(option: &str, path: &std::path::Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| {
        let words = format!("option {option}: cannot read {}", path.display());
        Error::new(ErrorKind::Invalid, words).caused_by(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_says_nothing_of_itself_is_unknown() {
        for frame in [&b""[..], b"\x00\x0a", b"\x00\x0a\x00\x0a\x00\x09\xff\xff\xff\xff", &[0; 64]]
        {
            let version = Version::parse(frame);
            assert_eq!((version.number, version.text.as_str()), ((0, 0), "unknown"));
        }
    }

    #[test]
    fn the_version_is_two_numbers_whatever_follows() {
        let mut frame = b"\x00\x0a\x00\x0a\x00\x09".to_vec();
        let table = b"\x07productS\x00\x00\x00\x08RabbitMQ\x07versionS\x00\x00\x00\x0a4.3.6-rc.1";
        frame.extend((table.len() as u32).to_be_bytes());
        frame.extend(table);
        let version = Version::parse(&frame);
        assert_eq!((version.number, version.text.as_str()), ((4, 3), "RabbitMQ 4.3.6-rc.1"));
    }
}
