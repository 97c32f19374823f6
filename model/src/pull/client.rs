//! Speaks HTTP with a hub: redirects, tokens, downloads that go on where they broke off.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use sha1::{Digest, Sha1};
use ureq::http::Response;
use ureq::{Agent, Body};

use super::{Places, Progress, PullError, io};
use crate::catalog;

const MAX_REDIRECTS: usize = 5;
const ATTEMPTS: usize = 4;
/// A download slower than this is given up, and can be taken up again.
const SLOWEST_BYTES_PER_SECOND: u64 = 50_000;

/// Bytes of a file beside the weights; the largest tokenizers have a tenth of that.
const MOST_BESIDE: u64 = 256 << 20;
/// Bytes of weights that nobody has said the size of.
const MOST_UNKNOWN: u64 = 64 << 30;

/// What the hub says of a file before it sends it.
#[derive(Debug)]
pub(super) struct Promise {
    pub(super) url: String,
    /// Names the blob, and is its hash: SHA-256 for large files, git's own for small ones.
    pub(super) etag: String,
    pub(super) bytes: Option<u64>,
}

impl Promise {
    /// Refuses a file that nothing of what is said of it can be held against, or that is too large for
    /// what it is.
    pub(super) fn check(&self, name: &str) -> Result<(), PullError> {
        let wrong = |message: String| {
            Err(PullError::Answer { url: shown(&self.url), message: format!("{name} {message}") })
        };
        match self.bytes {
            None if !self.is_hash() => wrong(
                "has neither a hash nor a size, so that half of it would do; check HF_ENDPOINT"
                    .into(),
            ),
            Some(bytes) if !is_weights(name) && bytes > MOST_BESIDE => wrong(format!(
                "has {bytes} bytes; at most {MOST_BESIDE} are taken of what is no weights"
            )),
            _ => Ok(()),
        }
    }

    fn is_hash(&self) -> bool {
        let Self { etag, .. } = self;
        [40, 64].contains(&etag.len()) && etag.chars().all(|c| c.is_ascii_hexdigit())
    }

    /// Bytes that are taken of it.
    fn most(&self, name: &str) -> u64 {
        let unknown = if is_weights(name) { MOST_UNKNOWN } else { MOST_BESIDE };
        self.bytes.unwrap_or(unknown)
    }
}

fn is_weights(name: &str) -> bool {
    name.ends_with(".safetensors")
}

/// Holds a file against what was promised of it.
pub(super) fn check(path: &Path, name: &str, promise: &Promise) -> Result<(), PullError> {
    let found = match promise.etag.len() {
        64 if promise.is_hash() => catalog::hash(path).map_err(io(path))?.1,
        40 if promise.is_hash() => {
            let content = std::fs::read(path).map_err(io(path))?;
            let header = format!("blob {}\0", content.len());
            catalog::hex(&Sha1::new().chain_update(header).chain_update(content).finalize())
        }
        // Some mirrors name a file by other means; then only its size is known.
        _ => {
            let bytes = std::fs::metadata(path).map_err(io(path))?.len();
            let expected = promise.bytes.unwrap_or(bytes);
            let size = |bytes| format!("{bytes} bytes");
            let (file, found, expected) = (name.to_owned(), size(bytes), size(expected));
            let is_right = found == expected;
            return if is_right {
                Ok(())
            } else {
                Err(PullError::Altered { file, found, expected })
            };
        }
    };
    if found.eq_ignore_ascii_case(&promise.etag) {
        return Ok(());
    }
    let (file, expected) = (name.to_owned(), promise.etag.clone());
    Err(PullError::Altered { file, found, expected })
}

/// How far a redirect is followed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Follow {
    /// To the answer that names the hash: a store behind the hub does not know it.
    ToHash,
    ToContent,
}

pub(super) struct Client<'a> {
    places: &'a Places,
    repository: &'a str,
    has_mirror: bool,
    agent: Agent,
}

impl<'a> Client<'a> {
    pub(super) fn new(places: &'a Places, repository: &'a str, has_mirror: bool) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // Followed by hand, for what the first answer says and for the token's sake.
            .max_redirects(0)
            .timeout_resolve(Some(places.connect_limit))
            .timeout_connect(Some(places.connect_limit))
            .timeout_recv_response(Some(Duration::from_secs(20)))
            .user_agent(concat!("ebb/", env!("CARGO_PKG_VERSION")))
            .build();
        Self { places, repository, has_mirror, agent: config.into() }
    }

    pub(super) fn endpoint(&self) -> &'a str {
        self.places.endpoint.trim_end_matches('/')
    }

    /// Asks for what the hub says of a file.
    pub(super) fn head(&self, url: &str) -> Result<(String, Response<Body>), PullError> {
        self.ask(url, Follow::ToHash, |url| {
            let head = self.agent.head(url).header("accept-encoding", "identity");
            self.authorised(url, head).call()
        })
    }

    /// Asks for content from byte `start` on, all of which has to be here within `limit`.
    pub(super) fn get(
        &self,
        url: &str,
        start: u64,
        limit: Duration,
    ) -> Result<(String, Response<Body>), PullError> {
        self.ask(url, Follow::ToContent, |url| {
            let mut get = self.agent.get(url).header("accept-encoding", "identity");
            if start > 0 {
                get = get.header("range", format!("bytes={start}-"));
            }
            self.authorised(url, get).config().timeout_recv_body(Some(limit)).build().call()
        })
    }

    /// Adds to `file` what is missing, going on where a broken transfer ended.
    pub(super) fn download(
        &self,
        promise: &Promise,
        file: &mut File,
        name: &str,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<(), PullError> {
        let write = |error| PullError::Io { path: name.into(), source: error };
        let mut reason = String::new();
        let mut done = 0;
        for _attempt in 0..ATTEMPTS {
            done = file.seek(SeekFrom::End(0)).map_err(write)?;
            if promise.bytes == Some(done) && done > 0 {
                return Ok(());
            }
            let most = promise.most(name);
            let expected = promise.bytes.unwrap_or(1 << 30);
            let limit = Duration::from_secs(30 + expected / SLOWEST_BYTES_PER_SECOND);
            let (_, mut answer) = match self.get(&promise.url, done, limit) {
                Err(PullError::Unreachable { reason: why, .. }) if done > 0 => {
                    reason = why;
                    continue;
                }
                answer => answer?,
            };
            let resumes = answer.status() == 206;
            if !resumes || done > promise.bytes.unwrap_or(u64::MAX) {
                file.set_len(0).map_err(write)?;
                done = 0;
                if answer.status() != 200 {
                    continue;
                }
            }
            let mut body = answer.body_mut().as_reader();
            let mut buffer = vec![0; 1 << 16];
            let ended = loop {
                progress(&Progress { file: name.to_owned(), done, total: promise.bytes });
                match body.read(&mut buffer) {
                    Ok(0) => break None,
                    Ok(n) if done + n as u64 > most => {
                        file.set_len(0).map_err(write)?;
                        return Err(PullError::TooLong { file: name.to_owned(), most });
                    }
                    Ok(n) => file.write_all(&buffer[..n]).map_err(write)?,
                    Err(error) => break Some(error.to_string()),
                }
                done = file.stream_position().map_err(write)?;
            };
            match (ended, promise.bytes) {
                (None, None) => return Ok(()),
                (None, Some(bytes)) if bytes <= done => return Ok(()),
                (ended, _) => reason = ended.unwrap_or_else(|| "the sender hung up".into()),
            }
        }
        Err(PullError::Incomplete { file: name.to_owned(), done, reason })
    }

    /// Adds the token, for the hub alone.
    fn authorised<T>(
        &self,
        url: &str,
        request: ureq::RequestBuilder<T>,
    ) -> ureq::RequestBuilder<T> {
        match &self.places.token {
            Some(token) if origin(url) == origin(self.endpoint()) => {
                request.header("authorization", format!("Bearer {token}"))
            }
            _ => request,
        }
    }

    /// Sends a request, follows where it leads, and reads the status.
    fn ask(
        &self,
        url: &str,
        follow: Follow,
        send: impl Fn(&str) -> Result<Response<Body>, ureq::Error>,
    ) -> Result<(String, Response<Body>), PullError> {
        let mut url = url.to_owned();
        let wrong = |url: &str, message: String| PullError::Answer { url: shown(url), message };
        for _redirect in 0..=MAX_REDIRECTS {
            let answer = send(&url).map_err(|error| PullError::Unreachable {
                host: origin(&url).to_owned(),
                reason: error.to_string(),
                has_mirror: self.has_mirror,
            })?;
            let status = answer.status().as_u16();
            let repository = self.repository.to_owned();
            match status {
                // 416: a part was asked for of a file that has no more; the caller starts over.
                200 | 206 | 416 => return Ok((url, answer)),
                301 | 302 | 303 | 307 | 308 => {
                    if follow == Follow::ToHash && answer.headers().contains_key("x-linked-etag") {
                        return Ok((url, answer));
                    }
                    let to = answer.headers().get("location").and_then(|to| to.to_str().ok());
                    url = match to {
                        Some(to) if to.starts_with('/') => format!("{}{to}", origin(&url)),
                        Some(to) => to.to_owned(),
                        None => return Err(wrong(&url, "redirects to nowhere".into())),
                    };
                }
                401 | 403 => return Err(PullError::Denied { repository, status }),
                404 => return Err(PullError::NotFound(repository)),
                _ => return Err(wrong(&url, format!("the answer was {status}; try again later"))),
            }
        }
        Err(wrong(&url, "redirects in circles".into()))
    }
}

/// Scheme, host and port.
fn origin(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |at| start + at);
    &url[..end]
}

/// A URL without its query, which may hold a signature.
fn shown(url: &str) -> String {
    url.split('?').next().unwrap_or(url).to_owned()
}
