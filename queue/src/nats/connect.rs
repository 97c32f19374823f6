//! How a connection comes about, and what is told of its life.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::{
    Auth, AuthError, Client, ConnectError, ConnectErrorKind, ConnectOptions, Event, ServerAddr,
};
use nkeys::KeyPair;
use rand::Rng;
use rand::seq::SliceRandom;
use tokio::time::Instant;

use crate::{Error, ErrorKind, Link, NatsAddress, Result, Secret, dial};

/// A request that is not answered by then has failed.
const ANSWER: Duration = Duration::from_secs(4);

/// A host that does not let us in by then hangs. Where there are others, they are tried sooner, unless
/// none of them let us in as soon as that: a handshake may take longer. The client keeps to it when it
/// connects anew.
const PATIENCE: Duration = Duration::from_secs(5);
const PATIENCE_AMONG_SEVERAL: Duration = Duration::from_secs(2);

/// The longest pause between two tries to connect anew.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// How many refusals are remembered.
const REMEMBERED: usize = 1024;

/// What the server refused lately, which it tells apart from the request.
#[derive(Debug, Clone, Default)]
pub(super) struct Refusal(Arc<Mutex<VecDeque<(Instant, String)>>>);

impl Refusal {
    fn noted(&self) -> MutexGuard<'_, VecDeque<(Instant, String)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, words: String) {
        let mut noted = self.noted();
        noted.push_back((Instant::now(), words));
        if noted.len() > REMEMBERED {
            noted.pop_front();
        }
    }

    /// What was refused last since.
    pub(super) fn since(&self, begin: Instant) -> Option<String> {
        self.find(begin, |_| true)
    }

    /// What was refused since of what is asked on this subject.
    pub(super) fn of(&self, subject: &str, begin: Instant) -> Option<String> {
        self.find(begin, |words| concerns(words, subject))
    }

    /// Whether anything was refused since that somebody wanted to listen to.
    pub(super) fn is_deaf_since(&self, begin: Instant) -> bool {
        self.find(begin, is_of_listening).is_some()
    }

    /// Whether it was refused since to listen to one of these subjects.
    pub(super) fn is_deaf_to(&self, subjects: &[String], begin: Instant) -> bool {
        let is_one = |words: &str| {
            is_of_listening(words)
                && subjects.iter().any(|subject| words.contains(&format!("\"{subject}\"")))
        };
        self.find(begin, is_one).is_some()
    }

    fn find(&self, begin: Instant, is_it: impl Fn(&str) -> bool) -> Option<String> {
        let noted = self.noted();
        let mut late = noted.iter().rev().take_while(|(at, _)| *at >= begin);
        late.find(|(_, words)| is_it(words)).map(|(_, words)| words.clone())
    }
}

/// Whether a refusal may be why nobody answers what is asked on a subject. Those of another request, or of
/// what somebody else wants to hear, are not; those that name neither may be.
fn concerns(words: &str, subject: &str) -> bool {
    let is_of_another =
        words.contains("for Publish to") && !words.contains(&format!("\"{subject}\""));
    !is_of_another && !is_of_listening(words)
}

/// Whether it is refused to listen, to other things than answers to requests.
fn is_of_listening(words: &str) -> bool {
    words.contains("for Subscription to") && !words.contains("_INBOX.")
}

/// Connects to one of the hosts, trying again until the time is over.
pub(super) async fn connect(
    address: &NatsAddress,
    limit: Duration,
    link: &Arc<Link>,
) -> Result<(Client, Refusal)> {
    let refusal = Refusal::default();
    let mut servers = servers(address)?;
    // Clients are to spread over the servers of a cluster.
    servers.shuffle(&mut rand::rng());
    let begin = Instant::now();
    let mut patience = if servers.len() > 1 { PATIENCE_AMONG_SEVERAL } else { PATIENCE };
    loop {
        let left = limit.saturating_sub(begin.elapsed());
        let mut calls = Vec::with_capacity(servers.len());
        for nth in 0..servers.len() {
            let options = options(address, left.min(patience), link, &refusal)?;
            calls.push(call(address, &servers, nth, options, left));
        }
        match dial::first(calls, is_final).await {
            Ok(client) => return Ok((client, refusal)),
            Err(error) if is_final(&error) || begin.elapsed() + LONGEST_PAUSE >= limit => {
                return Err(error);
            }
            Err(_) => tokio::time::sleep(LONGEST_PAUSE / 2).await,
        }
        if begin.elapsed() >= patience {
            patience = PATIENCE;
        }
    }
}

/// Whether the other hosts would say the same.
fn is_final(error: &Error) -> bool {
    error.kind() != ErrorKind::Unavailable
}

/// Connects to this one of the servers; the others are for when it is gone.
async fn call(
    address: &NatsAddress,
    servers: &[ServerAddr],
    nth: usize,
    options: ConnectOptions,
    limit: Duration,
) -> Result<Client> {
    let server = &servers[nth];
    let connecting = async {
        let client = options.connect(server.clone()).await?;
        // Beside those that the server told of.
        let known = client.server_pool().await.map_err(|_| ConnectErrorKind::Io)?;
        let mut pool: Vec<_> = known.into_iter().map(|one| one.addr).collect();
        pool.extend(servers.iter().filter(|one| *one != server).cloned());
        client.set_server_pool(&pool[..]).await.map_err(|_| ConnectErrorKind::Io)?;
        Ok::<_, ConnectError>(client)
    };
    let error = match tokio::time::timeout(limit, connecting).await {
        Ok(Ok(client)) => return Ok(client),
        Ok(Err(error)) => error,
        Err(_) => ConnectErrorKind::TimedOut.into(),
    };
    let host = format!("{}:{}", server.host(), server.port());
    Err(match error.kind() {
        ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
            unwelcome(address, &host).caused_by(error)
        }
        ConnectErrorKind::Tls => {
            let words = format!(
                "cannot agree on TLS with the NATS server at {host}; check the scheme (tls://), \
                 tls_ca, tls_cert and tls_key"
            );
            Error::new(ErrorKind::Invalid, words).caused_by(error)
        }
        _ => {
            let words = format!("cannot reach a NATS server at {host}");
            Error::new(ErrorKind::Unavailable, words).caused_by(error)
        }
    })
}

fn unwelcome(address: &NatsAddress, hosts: &str) -> Error {
    let given = match (&address.creds, &address.nkey, &address.server.user) {
        (Some(path), ..) => format!("the credentials in {}", path.display()),
        (_, Some(path), _) => format!("the key in {}", path.display()),
        (.., Some(user)) => format!("user {user} and its password"),
        _ if address.server.secret.is_some() || address.server.password_file.is_some() => {
            "the token".to_owned()
        }
        _ => "somebody without a name; write nats://USER:PASSWORD@HOST or a token, or give creds \
              or nkey"
            .to_owned(),
    };
    let words = format!("the NATS server at {hosts} does not let in {given}");
    Error::new(ErrorKind::Denied, words)
}

fn servers(address: &NatsAddress) -> Result<Vec<ServerAddr>> {
    let scheme = if address.server.tls.is_some() { "tls" } else { "nats" };
    let hosts = address.server.hosts.iter();
    let parsed = hosts.map(|(host, port)| {
        let url = format!("{scheme}://{host}:{port}");
        url.parse().map_err(|error: std::io::Error| {
            let words = format!("{url} is not the address of a NATS server");
            Error::new(ErrorKind::Invalid, words).caused_by(error)
        })
    });
    parsed.collect()
}

fn options(
    address: &NatsAddress,
    limit: Duration,
    link: &Arc<Link>,
    refusal: &Refusal,
) -> Result<ConnectOptions> {
    let mut options = identified(address)?;
    if let Some(tls) = &address.server.tls {
        options = options.require_tls(true);
        if let Some(ca) = &tls.ca {
            options = options.add_root_certificates(ca.clone());
        }
        if let Some((cert, key)) = &tls.identity {
            options = options.add_client_certificate(cert.clone(), key.clone());
        }
    }
    let (link, refusal) = (link.clone(), refusal.clone());
    Ok(options
        .name("ebb")
        .connection_timeout(limit.max(Duration::from_millis(1)))
        .request_timeout(Some(ANSWER))
        .ping_interval(Duration::from_secs(5))
        .reconnect_delay_callback(|attempts| {
            let steps = u32::try_from(attempts.min(8)).unwrap_or(8);
            let longest = (Duration::from_millis(4) * 2u32.pow(steps)).min(LONGEST_PAUSE);
            longest.mul_f64(rand::rng().random_range(0.5..1.0))
        })
        .event_callback(move |event| {
            let (link, refusal) = (link.clone(), refusal.clone());
            async move { heed(&event, &link, &refusal) }
        }))
}

fn heed(event: &Event, link: &Link, refusal: &Refusal) {
    match event {
        Event::Connected => link.restored(),
        Event::Disconnected => link.lost(event),
        Event::ServerError(error) => {
            tracing::warn!(%error, "the broker refused something");
            refusal.note(error.to_string());
        }
        Event::ClientError(error) => tracing::warn!(%error, "the broker's client failed"),
        // `Closed` is our own end, and no loss.
        Event::Closed | Event::SlowConsumer(_) | Event::LameDuckMode | Event::Draining => {
            tracing::debug!(%event, "the broker says");
        }
    }
}

/// Who we are. The client ignores what stands in a URL.
fn identified(address: &NatsAddress) -> Result<ConnectOptions> {
    let read = |path: &Path, option: &str| {
        std::fs::read_to_string(path).map_err(|error| {
            let words = format!("option {option}: cannot read {}", path.display());
            Error::new(ErrorKind::Invalid, words).caused_by(error)
        })
    };
    if let Some(path) = &address.creds {
        ConnectOptions::with_credentials(&read(path, "creds")?).map_err(|error| {
            let words = format!("option creds: {} holds no credentials", path.display());
            Error::new(ErrorKind::Invalid, words).caused_by(error)
        })?;
        return Ok(signed(path, credentials));
    }
    if let Some(path) = &address.nkey {
        read(path, "nkey")?;
        return Ok(signed(path, |text| Some((None, KeyPair::from_seed(text.trim()).ok()?))));
    }
    let server = address.server.clone();
    if server.secret()?.is_none() {
        return Ok(ConnectOptions::new());
    }
    // Read at each connect, as a password that is rotated lies in a file.
    Ok(ConnectOptions::with_auth_callback(move |_| {
        let (secret, user) = (server.secret(), server.user.clone());
        async move {
            let secret = secret.map_err(AuthError::new)?;
            let secret = secret.as_ref().map(|secret: &Secret| secret.reveal().to_owned());
            let mut auth = Auth::new();
            match user {
                Some(user) => (auth.username, auth.password) = (Some(user), secret),
                None => auth.token = secret,
            }
            Ok(auth)
        }
    }))
}

/// A token where there is one, and the key to sign with.
type Identity = (Option<String>, KeyPair);

/// Signs by what a file holds at each connect, as keys are rotated.
fn signed(path: &Path, read: fn(&str) -> Option<Identity>) -> ConnectOptions {
    let path = path.to_owned();
    ConnectOptions::with_auth_callback(move |nonce| {
        let auth = std::fs::read_to_string(&path).map_err(AuthError::new).and_then(|text| {
            let words = || format!("{} holds nothing to sign with", path.display());
            let (jwt, key) = read(&text).ok_or_else(|| AuthError::new(words()))?;
            let mut auth = Auth::new();
            auth.signature = Some(key.sign(&nonce).map_err(AuthError::new)?);
            auth.nkey = jwt.is_none().then(|| key.public_key());
            auth.jwt = jwt;
            Ok(auth)
        });
        async move { auth }
    })
}

/// What stands in the file that `nsc` writes.
fn credentials(text: &str) -> Option<Identity> {
    let block = |name: &str| {
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        lines.find(|line| line.starts_with("---") && line.contains(name))?;
        lines.next()
    };
    let key = KeyPair::from_seed(block("BEGIN USER NKEY SEED")?).ok()?;
    Some((Some(block("BEGIN NATS USER JWT")?.to_owned()), key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_the_answer_to_what_it_names_and_to_nothing_else() {
        let refusal = Refusal::default();
        let begin = Instant::now();
        refusal.note("nats: Permissions Violation for Publish to \"a.b\"".to_owned());
        refusal.note("nats: Permissions Violation for Subscription to \"a.c\"".to_owned());
        assert!(refusal.of("a.b", begin).is_some() && refusal.of("a", begin).is_none());
        assert!(refusal.of("a.c", begin).is_none() && refusal.is_deaf_since(begin));
        assert!(refusal.since(begin).is_some_and(|words| words.contains("a.c")));
        tokio::time::advance(PATIENCE).await;
        let late = Instant::now();
        assert!(refusal.of("a.b", late).is_none() && !refusal.is_deaf_since(late));
        // Without its inbox nobody hears an answer.
        refusal.note("nats: Permissions Violation for Subscription to \"_INBOX.x.*\"".to_owned());
        assert!(refusal.of("a.b", late).is_some() && !refusal.is_deaf_since(late));
        for _ in 0..2 * REMEMBERED {
            refusal.note("nats: Maximum Subscriptions Exceeded".to_owned());
        }
        assert!(refusal.of("a.b", late).is_some_and(|words| words.contains("Maximum")));
        assert_eq!(refusal.noted().len(), REMEMBERED);
    }

    #[test]
    fn our_own_end_is_no_loss() {
        let (link, refusal) = (Link::new("nats"), Refusal::default());
        heed(&Event::Closed, &link, &refusal);
        assert_eq!((link.is_up(), link.n_losses()), (true, 0));
        heed(&Event::Disconnected, &link, &refusal);
        assert_eq!((link.is_up(), link.n_losses()), (false, 1));
    }
}
