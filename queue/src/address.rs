//! Where a broker is, and who we are to it: what a URL says before its question mark.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::job::parse_span;
use crate::server::{Secret, Server, Tls, decoded, encoded};

/// Which broker, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A file on a local disk.
    Sqlite {
        /// The file; created when missing.
        path: PathBuf,
        /// What a commit waits for.
        synchronous: Synchronous,
    },
    /// NATS JetStream.
    Nats(NatsAddress),
    /// RabbitMQ, over AMQP 0-9-1.
    Amqp(AmqpAddress),
    /// Redis Streams, also on Valkey.
    Redis(RedisAddress),
}

/// What a commit of the embedded queue waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Synchronous {
    /// The disk: an accepted job survives a loss of power.
    #[default]
    Full,
    /// The operating system: an accepted job survives a crash of any process, and the last moments
    /// before a loss of power may be lost. Several times faster.
    Normal,
}

/// NATS JetStream: `nats://[USER:PASSWORD@|TOKEN@]HOST[:4222][,HOST…]`, `tls://…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NatsAddress {
    /// The servers.
    pub server: Server,
    /// A credentials file (JWT and seed).
    pub creds: Option<PathBuf>,
    /// A file with an `NKey` seed.
    pub nkey: Option<PathBuf>,
    /// How many servers keep each stream that we create.
    pub replicas: u8,
}

/// RabbitMQ: `amqp://[USER:PASSWORD@]HOST[:5672][,HOST…][/VHOST]`, `amqps://…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AmqpAddress {
    /// The servers.
    pub server: Server,
    /// The virtual host.
    pub vhost: String,
    /// After how long a silent peer is taken for gone.
    pub heartbeat: Duration,
}

/// Redis: `redis://[[USER]:PASSWORD@]HOST[:6379][,HOST…][/DATABASE]`, `rediss://…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisAddress {
    /// The servers.
    pub server: Server,
    /// The number of the database.
    pub database: u32,
}

impl Address {
    /// The kind of broker, as [`crate::Info`] names it.
    #[must_use]
    pub fn broker(&self) -> &'static str {
        match self {
            Self::Sqlite { .. } => "sqlite",
            Self::Nats(_) => "nats",
            Self::Amqp(_) => "amqp",
            Self::Redis(_) => "redis",
        }
    }

    /// Reads the part after `scheme://` up to the question mark.
    pub(crate) fn parse(scheme: &str, rest: &str) -> Result<Self, String> {
        let rest = rest.strip_prefix("//").ok_or_else(|| format!("write {scheme}://HOST"))?;
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let with_tls = |mut server: Server| {
            server.tls = matches!(scheme, "tls" | "amqps" | "rediss").then(Tls::default);
            server
        };
        match scheme {
            "nats" | "tls" => {
                if !path.is_empty() {
                    return Err(
                        "a NATS address has no path; name the queue by queue=NAME".to_owned()
                    );
                }
                let mut server = with_tls(Server::parse(authority, 4222)?);
                // A single word before the @ is a token.
                if server.secret.is_none() {
                    server.secret = server.user.take().map(Secret);
                }
                Ok(Self::Nats(NatsAddress { server, creds: None, nkey: None, replicas: 1 }))
            }
            "amqp" | "amqps" => {
                let port = if scheme == "amqp" { 5672 } else { 5671 };
                let server = with_tls(Server::parse(authority, port)?);
                let vhost = if path.is_empty() { "/".to_owned() } else { decoded(path)? };
                Ok(Self::Amqp(AmqpAddress { server, vhost, heartbeat: Duration::from_secs(10) }))
            }
            _ => {
                let server = with_tls(Server::parse(authority, 6379)?);
                let database = if path.is_empty() { Ok(0) } else { path.parse() };
                let database =
                    database.map_err(|_| "its path is the number of a database".to_owned())?;
                Ok(Self::Redis(RedisAddress { server, database }))
            }
        }
    }

    /// Takes an option of this broker; false when it is not one.
    pub(crate) fn set(&mut self, key: &str, value: &str) -> Result<bool, String> {
        match self {
            Self::Sqlite { synchronous, .. } if key == "synchronous" => {
                *synchronous = match value {
                    "full" => Synchronous::Full,
                    "normal" => Synchronous::Normal,
                    _ => return Err("option synchronous is full or normal".to_owned()),
                };
            }
            Self::Sqlite { .. } => return Ok(false),
            Self::Nats(nats) => match key {
                // Beside a password's file, that word is the user.
                "password_file" if nats.server.user.is_none() => {
                    nats.server.user = nats.server.secret.take().map(|word| word.0);
                    return nats.server.set(key, value);
                }
                "creds" => nats.creds = Some(value.into()),
                "nkey" => nats.nkey = Some(value.into()),
                "replicas" => {
                    let replicas = value.parse().ok().filter(|n| [1, 3, 5].contains(n));
                    nats.replicas = replicas.ok_or("option replicas is 1, 3 or 5")?;
                }
                _ => return nats.server.set(key, value),
            },
            Self::Amqp(amqp) => match key {
                "heartbeat" => {
                    let span = parse_span("option heartbeat", value);
                    let span = span.map_err(|error| error.to_string())?;
                    let fits = (1..=600).contains(&span.as_secs()) && span.subsec_millis() == 0;
                    amqp.heartbeat =
                        fits.then_some(span).ok_or("option heartbeat is 1s to 10m, in seconds")?;
                }
                _ => return amqp.server.set(key, value),
            },
            Self::Redis(redis) => return redis.server.set(key, value),
        }
        Ok(true)
    }

    /// The options that a URL of this broker may have.
    pub(crate) fn options(&self) -> &'static str {
        match self {
            Self::Sqlite { .. } => "synchronous",
            Self::Nats(_) => "replicas, creds, nkey, password_file, tls_ca, tls_cert, tls_key",
            Self::Amqp(_) => "heartbeat, password_file, tls_ca, tls_cert, tls_key",
            Self::Redis(_) => "password_file, tls_ca, tls_cert, tls_key",
        }
    }

    /// What is wrong with the whole, once all of it was read.
    pub(crate) fn check(&self) -> Result<(), String> {
        let Some(server) = self.server() else { return Ok(()) };
        if let Self::Nats(nats) = self {
            let n_ways = [
                server.secret.is_some() || server.password_file.is_some(),
                nats.creds.is_some(),
                nats.nkey.is_some(),
            ];
            if n_ways.into_iter().filter(|given| *given).count() > 1 {
                return Err("give one of a password or token, creds, and nkey".to_owned());
            }
        }
        server.check()
    }

    fn server(&self) -> Option<&Server> {
        match self {
            Self::Sqlite { .. } => None,
            Self::Nats(NatsAddress { server, .. })
            | Self::Amqp(AmqpAddress { server, .. })
            | Self::Redis(RedisAddress { server, .. }) => Some(server),
        }
    }

    /// The part before the question mark, with the secret where it is wanted.
    pub(crate) fn write(&self, f: &mut impl fmt::Write, with_secret: WithSecret) -> fmt::Result {
        let Some(server) = self.server() else {
            let Self::Sqlite { path, .. } = self else { return Ok(()) };
            // Two slashes at the front are taken for the start of a URL.
            let slashes = if path.to_string_lossy().starts_with("//") { "//" } else { "" };
            return write!(f, "sqlite:{slashes}{}", path.display());
        };
        let scheme = match (self, server.tls.is_some()) {
            (Self::Nats(_), false) => "nats",
            (Self::Nats(_), true) => "tls",
            (Self::Amqp(_), false) => "amqp",
            (Self::Amqp(_), true) => "amqps",
            (_, false) => "redis",
            (_, true) => "rediss",
        };
        write!(f, "{scheme}://")?;
        let user = server.user.as_deref().map(encoded);
        let secret = server.secret.as_ref().filter(|_| with_secret == WithSecret::Yes);
        match (user, secret.map(|secret| encoded(secret.reveal()))) {
            (None, None) => {}
            (Some(user), None) => write!(f, "{user}@")?,
            (None, Some(token)) if matches!(self, Self::Nats(_)) => write!(f, "{token}@")?,
            (user, Some(secret)) => write!(f, "{}:{secret}@", user.unwrap_or_default())?,
        }
        f.write_str(&server.shown())?;
        match self {
            Self::Amqp(amqp) if amqp.vhost != "/" => write!(f, "/{}", encoded(&amqp.vhost)),
            Self::Redis(redis) if redis.database != 0 => write!(f, "/{}", redis.database),
            _ => Ok(()),
        }
    }

    /// The options of this broker that are not what they are by default, each after a `&`.
    pub(crate) fn write_options(&self, f: &mut impl fmt::Write) -> fmt::Result {
        match self {
            Self::Sqlite { synchronous: Synchronous::Normal, .. } => {
                f.write_str("&synchronous=normal")?;
            }
            Self::Nats(nats) => {
                write_path(f, "creds", nats.creds.as_ref())?;
                write_path(f, "nkey", nats.nkey.as_ref())?;
                if nats.replicas != 1 {
                    write!(f, "&replicas={}", nats.replicas)?;
                }
            }
            Self::Amqp(amqp) if amqp.heartbeat != Duration::from_secs(10) => {
                write!(f, "&heartbeat={}s", amqp.heartbeat.as_secs())?;
            }
            _ => {}
        }
        let Some(server) = self.server() else { return Ok(()) };
        write_path(f, "password_file", server.password_file.as_ref())?;
        let Some(tls) = &server.tls else { return Ok(()) };
        write_path(f, "tls_ca", tls.ca.as_ref())?;
        write_path(f, "tls_cert", tls.identity.as_ref().map(|(cert, _)| cert))?;
        write_path(f, "tls_key", tls.identity.as_ref().map(|(_, key)| key))
    }
}

/// Whether a URL is written with its password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WithSecret {
    /// For a process of ours.
    Yes,
    /// For people and logs.
    No,
}

fn write_path(f: &mut impl fmt::Write, key: &str, path: Option<&PathBuf>) -> fmt::Result {
    let Some(path) = path else { return Ok(()) };
    write!(f, "&{key}={}", encoded(&path.to_string_lossy()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::{Address, ErrorKind, QueueUrl};

    fn parse(text: &str) -> crate::Result<QueueUrl> {
        text.parse()
    }

    fn server(text: &str) -> crate::Server {
        parse(text).unwrap().address.server().unwrap().clone()
    }

    #[test]
    fn who_we_are_stands_before_the_hosts() {
        for (text, user, secret) in [
            ("nats://host", None, None),
            ("nats://token@host", None, Some("token")),
            ("nats://me:s%40cret@host", Some("me"), Some("s@cret")),
            ("amqp://me:a+b%20c@host", Some("me"), Some("a+b c")),
            ("redis://:secret@host", None, Some("secret")),
            ("redis://me@host", Some("me"), None),
        ] {
            let server = server(text);
            let seen = (server.user.as_deref(), server.secret.as_ref().map(crate::Secret::reveal));
            assert_eq!(seen, (user, secret), "{text}");
        }
    }

    #[test]
    fn hosts_have_the_port_of_their_broker_unless_they_name_one() {
        for (text, hosts) in [
            ("nats://a,b:5", "a:4222,b:5"),
            ("tls://a", "a:4222"),
            ("amqp://a", "a:5672"),
            ("amqps://a", "a:5671"),
            ("rediss://[::1]", "[::1]:6379"),
            ("redis://[::1]:7", "[::1]:7"),
        ] {
            assert_eq!(server(text).shown(), hosts, "{text}");
        }
    }

    #[test]
    fn the_path_is_a_virtual_host_or_a_database() {
        let vhost = |text| match parse(text).unwrap().address {
            Address::Amqp(amqp) => amqp.vhost,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            ["amqp://h", "amqp://h/", "amqp://h/%2F", "amqp://h/jobs"].map(vhost),
            ["/", "/", "/", "jobs"]
        );
        let Address::Redis(redis) = parse("redis://h/3").unwrap().address else { panic!() };
        assert_eq!(redis.database, 3);
    }

    #[test]
    fn what_is_wrong_is_named_with_the_remedy_and_never_with_the_password() {
        for (text, part) in [
            ("nats:host", "write nats://HOST"),
            ("nats://", "names no host"),
            ("nats://a:secret@", "names no host"),
            ("nats://a:secret@host:0", "port is 1 to 65535"),
            ("nats://a:secret@host/x", "has no path"),
            ("nats://a:secret@host?creds=/c", "one of a password or token, creds, and nkey"),
            ("nats://host?replicas=2", "1, 3 or 5"),
            ("nats://host?synchronous=full", "option synchronous is not known"),
            ("amqp://a:secret@host?tls_ca=/x", "tls, amqps or rediss"),
            ("amqps://a:secret@host?tls_cert=/x", "go together"),
            ("amqp://host?heartbeat=1h", "1s to 10m"),
            ("redis://a:secret@host/x", "number of a database"),
            ("redis://a:secret@host?password_file=/x", "not both"),
            ("redis://a:%ff@host", "encode it"),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{text}");
            assert!(error.to_string().contains(part), "{text}: {error}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_word_before_the_host_is_a_token_on_nats_and_a_user_where_a_file_has_the_password() {
        let server = |text| match parse(text).unwrap().address {
            Address::Nats(nats) => nats.server,
            other => panic!("{other:?}"),
        };
        let token = server("nats://word@host");
        assert_eq!((token.user, token.secret.map(|word| word.0)), (None, Some("word".to_owned())));
        let user = server("nats://word@host?password_file=/x");
        assert_eq!((user.user.as_deref(), user.secret.is_none()), (Some("word"), true));
        assert!(parse("nats://a:b@host?password_file=/x").is_err());
    }

    #[test]
    fn a_password_is_shown_to_our_own_processes_only() {
        let url = parse("amqps://me:s3cret@host/v?queue=q&tls_ca=/ca.pem").unwrap();
        for shown in [format!("{url}"), format!("{url:?}")] {
            assert!(!shown.contains("s3cret"), "{shown}");
        }
        assert_eq!(parse(&url.with_secrets()).unwrap(), url);
    }

    proptest! {
        #[test]
        fn an_address_is_read_back_as_it_was_written(
            scheme in prop::sample::select(&["nats", "tls", "amqp", "amqps", "redis", "rediss"][..]),
            identity in prop::option::of(("[^\u{0}\u{fffd}]{1,8}", "[^\u{fffd}]{1,8}")),
            hosts in prop::collection::vec("[a-z0-9.-]{1,12}(:[1-9][0-9]{0,3})?", 1..4),
            options in prop::sample::select(&["", "?password_file=/p%26q", "?queue=x&lease=5s"][..]),
        ) {
            let identity = identity.filter(|_| !options.contains("password_file"));
            let identity = identity.map_or(String::new(), |(user, secret)| {
                format!("{}:{}@", crate::server::encoded(&user), crate::server::encoded(&secret))
            });
            let url = parse(&format!("{scheme}://{identity}{}{options}", hosts.join(","))).unwrap();
            prop_assert_eq!(parse(&url.with_secrets()).unwrap(), url);
        }

        #[test]
        fn no_text_makes_it_panic(text in "(nats|tls|amqp|redis)://.{0,40}") {
            if let Ok(url) = parse(&text) {
                prop_assert_eq!(parse(&url.with_secrets()).unwrap(), url);
            }
        }
    }
}
