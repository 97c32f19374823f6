//! The servers of a broker and who we are to them: what stands before the path of a URL.

use std::fmt;
use std::path::PathBuf;

use url::form_urlencoded::byte_serialize;

use crate::{Error, ErrorKind, Result};

/// The servers of a broker, and who we are to them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Server {
    /// Names or addresses with their ports: the first that answers is taken.
    pub hosts: Vec<(String, u16)>,
    /// The user, where there is one.
    pub user: Option<String>,
    /// The password, or the token where there is no user.
    pub secret: Option<Secret>,
    /// A file that holds the password or the token, read at each connect.
    pub password_file: Option<PathBuf>,
    /// How the connection is encrypted; not at all when missing.
    pub tls: Option<Tls>,
}

/// How a connection is encrypted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tls {
    /// The authorities that we trust, a PEM file; the system's when missing.
    pub ca: Option<PathBuf>,
    /// Our certificate and its key, PEM files, where the server wants to know us.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// A password or token. Shown by nobody.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub(crate) String);

impl Secret {
    /// The secret itself, for the broker's client and nobody else.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Server {
    /// The password or token, from the URL or from its file.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn secret(&self) -> Result<Option<Secret>> {
        let Some(path) = &self.password_file else { return Ok(self.secret.clone()) };
        let text = std::fs::read_to_string(path).map_err(|error| {
            let words = format!("option password_file: cannot read {}", path.display());
            Error::new(ErrorKind::Invalid, words).caused_by(error)
        })?;
        Ok(Some(Secret(text.trim_end_matches(['\r', '\n']).to_owned())))
    }

    /// The servers as people write them, without who we are.
    pub(crate) fn shown(&self) -> String {
        let hosts = self.hosts.iter();
        let hosts: Vec<_> = hosts.map(|(host, port)| format!("{host}:{port}")).collect();
        hosts.join(",")
    }

    /// `USER:PASSWORD@HOST:PORT,HOST:PORT`.
    pub(crate) fn parse(authority: &str, default_port: u16) -> Result<Self, String> {
        let (identity, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let mut server = Self::default();
        if let Some((user, secret)) = identity.split_once(':') {
            server.user = (!user.is_empty()).then(|| decoded(user)).transpose()?;
            server.secret = Some(Secret(decoded(secret)?));
        } else if !identity.is_empty() {
            server.user = Some(decoded(identity)?);
        }
        for host in hosts.split(',') {
            server.hosts.push(host_and_port(host, default_port)?);
        }
        Ok(server)
    }

    /// Takes an option that every server knows; false when it is another one.
    pub(crate) fn set(&mut self, key: &str, value: &str) -> Result<bool, String> {
        match key {
            "password_file" => self.password_file = Some(value.into()),
            "tls_ca" => self.encrypted(key)?.ca = Some(value.into()),
            // The pair is complete when the whole has been read.
            "tls_cert" => {
                let identity = self.encrypted(key)?.identity.get_or_insert_default();
                identity.0 = value.into();
            }
            "tls_key" => {
                let identity = self.encrypted(key)?.identity.get_or_insert_default();
                identity.1 = value.into();
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn encrypted(&mut self, key: &str) -> Result<&mut Tls, String> {
        let remedy = "needs an encrypted scheme: tls, amqps or rediss";
        self.tls.as_mut().ok_or_else(|| format!("option {key} {remedy}"))
    }

    pub(crate) fn check(&self) -> Result<(), String> {
        let identity = self.tls.as_ref().and_then(|tls| tls.identity.as_ref());
        if identity
            .is_some_and(|(cert, key)| cert.as_os_str().is_empty() || key.as_os_str().is_empty())
        {
            return Err("options tls_cert and tls_key go together".to_owned());
        }
        if self.secret.is_some() && self.password_file.is_some() {
            return Err("give the password in the URL or by password_file, not both".to_owned());
        }
        Ok(())
    }
}

fn host_and_port(text: &str, default_port: u16) -> Result<(String, u16), String> {
    let (host, port) = match text.rsplit_once(':') {
        // An IPv6 address without a port ends in a bracket.
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    if host.is_empty() || !host.chars().all(|c| c.is_ascii_alphanumeric() || "._-[]:".contains(c)) {
        return Err("it names no host; write HOST or HOST:PORT".to_owned());
    }
    let port = port.map_or(Ok(default_port), str::parse);
    let port = port.ok().filter(|port| *port > 0).ok_or("its port is 1 to 65535")?;
    Ok((host.to_owned(), port))
}

/// Says what to do where a connection failed because we do not trust the server; else the same.
pub(crate) fn distrusted(error: Error) -> Error {
    let first: &dyn std::error::Error = &error;
    let mut chain = std::iter::successors(Some(first), |error| error.source());
    if !chain.any(|error| error.to_string().contains("invalid peer certificate")) {
        return error;
    }
    let words = "the broker's certificate is not trusted; name the authority that signed it by \
                 option tls_ca, and the broker as the certificate does";
    Error::new(ErrorKind::Invalid, words).caused_by(error)
}

pub(crate) fn encoded(text: &str) -> String {
    // A plus means a space in options only, so spaces are written in full.
    byte_serialize(text.as_bytes()).collect::<String>().replace('+', "%20")
}

pub(crate) fn decoded(text: &str) -> Result<String, String> {
    let plain = text.replace('+', "%2B");
    let pair = format!("x={}", plain.replace('&', "%26"));
    let mut pairs = url::form_urlencoded::parse(pair.as_bytes());
    let value = pairs.next().map(|(_, value)| value.into_owned());
    // Text that is not UTF-8 comes back with the mark of what cannot be shown.
    let value = value.filter(|value| !value.contains('\u{fffd}') && !value.is_empty());
    value.ok_or_else(|| "it holds an empty or unreadable part; encode it as %XX".to_owned())
}
