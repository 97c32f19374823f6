//! Bodies by key: in an object store, or in pieces in the result store of the queue.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use sha2::{Digest, Sha256};

use super::payloads::{Payloads, PayloadsUrl};
use super::reference::{Reference, hex};
use crate::{Error, ErrorKind, Frame, Job, JobId, JobResult, Outcome, Queue, Result, Timestamp};

/// The longest piece of a body in a result store: fits what any broker takes unless set otherwise.
const PIECE: usize = 256 << 10;

/// Why a body is not to be had.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It is gone, or another one: why, in words. Time does not heal it.
    Gone(String),
    /// The store answers and refuses it: this one alone, where it answers for others, and else all.
    Refused(Error),
    /// The store does not answer.
    Away(Error),
}

impl Trouble {
    /// What the result store of a queue says: one that it cannot read is none of the others.
    fn of_queue(error: Error) -> Self {
        match error.kind() {
            ErrorKind::Incompatible => Self::Refused(error),
            _ => Self::Away(error),
        }
    }
}

/// The folder of the bodies.
const BODIES: &str = "bodies";

/// What tells that a bucket lets us read. It lies where bodies lie, since rights may be given by folder.
const PROBE: &str = "bodies/ebb-probe";

/// Files of a folder of which one is to be readable, where one of them is not.
const OTHERS: usize = 16;

/// Where bodies lie by reference.
pub(super) struct Store {
    payloads: Payloads,
    queue: Queue,
    piece: usize,
}

impl Store {
    /// `max_body` is what the broker takes at most.
    pub(super) fn new(payloads: Payloads, queue: Queue, max_body: usize) -> Self {
        Self { payloads, queue, piece: PIECE.min(max_body / 2).max(1) }
    }

    /// Stores a body; the same again under the same key does no harm.
    pub(super) async fn put(&self, key: &str, body: &Bytes) -> Result<()> {
        match &self.payloads.objects {
            Some(objects) => {
                let put = objects.put(&Path::from(key), body.clone().into()).await;
                put.map(drop).map_err(|error| self.away(error))
            }
            None => self.put_pieces(key.parse()?, body.clone()).await,
        }
    }

    /// Refuses a job that is not to run before its body is gone.
    pub(super) fn check_wait(&self, job: &Job, now: Timestamp) -> Result<()> {
        let Some(due) = job.headers.not_before else { return Ok(()) };
        let delay = Duration::try_from(due.duration_since(now)).unwrap_or_default();
        let kept = self.queue.result_ttl();
        if self.payloads.objects.is_some() || delay < kept {
            return Ok(());
        }
        let words = format!(
            "job {} waits until {due}, and its body, which travels by reference, is kept for {kept:?} \
             as a result is; raise result_ttl, or let --payloads name a directory or a bucket",
            job.id
        );
        Err(Error::new(ErrorKind::Invalid, words))
    }

    /// Fetches what a reference names, if it is that.
    pub(super) async fn get(&self, reference: &Reference) -> Result<Bytes, Trouble> {
        let body = match &self.payloads.objects {
            Some(objects) => self.get_object(&**objects, reference).await?,
            None => self.get_pieces(reference).await?,
        };
        body.check(self, reference)
    }

    /// Whether the store lets us read something beside a body that it refused. That it says of another
    /// that it is not there tells nothing: it also does so where it lets nobody read what is there.
    pub(super) async fn lets_others_be_read(&self) -> bool {
        let Some(objects) = &self.payloads.objects else { return false };
        match &self.payloads.url {
            PayloadsUrl::S3 { .. } => {
                let probe = Path::from(PROBE);
                objects.put(&probe, Bytes::from_static(b"ebb").into()).await.is_ok()
                    && is_readable(&**objects, &probe).await
            }
            PayloadsUrl::File(_) => {
                let others = objects.list(Some(&Path::from(BODIES))).take(OTHERS);
                let mut others = std::pin::pin!(others);
                while let Some(Ok(other)) = others.next().await {
                    if is_readable(&**objects, &other.location).await {
                        return true;
                    }
                }
                false
            }
            PayloadsUrl::Results => false,
        }
    }

    /// Deletes a body; one that is gone already is deleted. In a result store its time runs out.
    pub(super) async fn delete(&self, key: &str) -> Result<()> {
        let Some(objects) = &self.payloads.objects else { return Ok(()) };
        match objects.delete(&Path::from(key)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.away(error)),
        }
    }

    async fn get_object(
        &self,
        objects: &dyn ObjectStore,
        reference: &Reference,
    ) -> Result<Body, Trouble> {
        let found = match objects.get(&Path::from(&*reference.key)).await {
            Ok(found) => found,
            Err(error) => return Err(self.explain(error, &reference.key)),
        };
        let mut body = Body::default();
        let size = found.meta.size;
        if size != reference.size {
            return Err(Trouble::Gone(self.wrong(reference, &format!("it has {size} bytes"))));
        }
        let mut pieces = found.into_stream();
        while let Some(piece) = pieces.next().await {
            body.push(&piece.map_err(|error| self.explain(error, &reference.key))?);
        }
        Ok(body)
    }

    async fn put_pieces(&self, key: JobId, body: Bytes) -> Result<()> {
        let mut rest = body;
        let mut seq = 0;
        while rest.len() > self.piece {
            let piece = rest.split_to(self.piece);
            self.queue.chunk(&key, 1, seq, piece).await?;
            seq += 1;
        }
        let content_type = "application/octet-stream".to_owned();
        let outcome = Outcome::Completed { content_type, body: rest };
        // Of a body nobody asks when it was made.
        let finished_at = Timestamp::UNIX_EPOCH;
        self.queue
            .put(&JobResult { id: key, attempt: 1, outcome, finished_at, queue: None })
            .await?;
        Ok(())
    }

    async fn get_pieces(&self, reference: &Reference) -> Result<Body, Trouble> {
        let gone = || Trouble::Gone(self.gone(&reference.key));
        let key: JobId = reference.key.parse().map_err(|_| gone())?;
        // Else following it would wait for one that may never come.
        self.queue.get(&key).await.map_err(Trouble::of_queue)?.ok_or_else(gone)?;
        let mut frames = self.queue.follow(&key, 0).await.map_err(Trouble::of_queue)?;
        let mut body = Body::default();
        while let Some(frame) = frames.next().await {
            match frame.map_err(Trouble::of_queue)? {
                Frame::Chunk { body: piece, .. } => body.push(&piece),
                Frame::Final(JobResult {
                    outcome: Outcome::Completed { body: last, .. }, ..
                }) => {
                    body.push(&last);
                    return Ok(body);
                }
                Frame::Final(_) => break,
            }
            if body.bytes.len() as u64 > reference.size {
                break;
            }
        }
        Err(gone())
    }

    fn explain(&self, error: object_store::Error, key: &str) -> Trouble {
        let words = chain(&error);
        let is_there = match &self.payloads.url {
            PayloadsUrl::File(folder) => folder.is_dir(),
            _ => !words.contains("NoSuchBucket"),
        };
        match error {
            object_store::Error::NotFound { .. } if is_there => Trouble::Gone(self.gone(key)),
            error if is_there && is_refusal(&error, &words) => {
                let code = code_of(&words).map(|code| format!(" ({code})")).unwrap_or_default();
                // S3 says the same of a body that is gone where we may not list, and one such job must
                // not end every worker.
                let words = format!(
                    "payload store {} refuses {key}{code}; check its credentials and the rights to \
                     this body (with S3 also s3:ListBucket, without which a body that is gone looks \
                     like this)",
                    self.payloads.url
                );
                Trouble::Refused(Error::new(ErrorKind::Unavailable, words).caused_by(error))
            }
            error => Trouble::Away(self.away(error)),
        }
    }

    fn away(&self, error: object_store::Error) -> Error {
        let (kind, words) = if is_denied(&error) && !is_for_later(&chain(&error)) {
            (ErrorKind::Denied, "refuses; check its credentials and rights")
        } else {
            (ErrorKind::Unavailable, "does not answer; check that it is there")
        };
        let words = format!("payload store {} {words}", self.payloads.url);
        Error::new(kind, words).caused_by(error)
    }

    fn gone(&self, key: &str) -> String {
        format!("body is gone: {key} in {}", self.payloads.url)
    }

    fn wrong(&self, reference: &Reference, why: &str) -> String {
        let Reference { key, size, .. } = reference;
        format!(
            "body is not the one of {size} bytes that was sent: {key} in {}: {why}",
            self.payloads.url
        )
    }
}

/// Whether we get what is there: that its body begins to come tells.
async fn is_readable(objects: &dyn ObjectStore, path: &Path) -> bool {
    objects.get(path).await.is_ok()
}

/// What S3 calls what passes, whatever the status.
const PASSING: [&str; 3] = ["SlowDown", "RequestTimeout", "RequestTimeTooSkewed"];

fn is_denied(error: &object_store::Error) -> bool {
    use object_store::Error::{PermissionDenied, Unauthenticated};
    matches!(error, PermissionDenied { .. } | Unauthenticated { .. })
}

/// Whether this is a no to what was asked, and no failure that a later try may not meet: no rights, an
/// object that is archived or encrypted with another's key, a file that is not ours to read.
fn is_refusal(error: &object_store::Error, words: &str) -> bool {
    let is_client_error = words.contains("status code: 4");
    !is_for_later(words) && (is_denied(error) || is_client_error || is_no_right(error))
}

/// Whether the server asks to come again, or a clock is wrong, which says nothing of the body.
fn is_for_later(words: &str) -> bool {
    let is_code = |code: &str| code.contains("Throttl") || PASSING.contains(&code);
    ["status code: 408", "status code: 429"].iter().any(|status| words.contains(status))
        || code_of(words).is_some_and(is_code)
}

/// Whether the system does not let us read a file.
fn is_no_right(error: &object_store::Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(one) = cause {
        if let Some(io) = one.downcast_ref::<std::io::Error>() {
            return io.kind() == std::io::ErrorKind::PermissionDenied;
        }
        cause = one.source();
    }
    false
}

/// What S3 calls it.
fn code_of(words: &str) -> Option<&str> {
    let (_, rest) = words.split_once("<Code>")?;
    let (code, _) = rest.split_once("</Code>")?;
    // Those of the keys it encrypts with are such as `KMS.ThrottlingException`.
    let is_of_code = |one: u8| one.is_ascii_alphanumeric() || one == b'.';
    Some(code).filter(|code| code.len() < 64 && code.bytes().all(is_of_code))
}

/// The error and what caused it: a bucket that is missing is told apart by its code alone.
fn chain(error: &object_store::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// A body as it comes in; hashed on the way, so that no piece takes long.
#[derive(Default)]
struct Body {
    bytes: Vec<u8>,
    hash: Sha256,
}

impl Body {
    fn push(&mut self, piece: &[u8]) {
        self.bytes.extend_from_slice(piece);
        self.hash.update(piece);
    }

    fn check(self, store: &Store, reference: &Reference) -> Result<Bytes, Trouble> {
        let wrong = |why: &str| Err(Trouble::Gone(store.wrong(reference, why)));
        let n = self.bytes.len();
        if n as u64 != reference.size {
            return wrong(&format!("it has {n} bytes"));
        }
        if !hex(self.hash.finalize().as_slice()).eq_ignore_ascii_case(&reference.sha256) {
            return wrong("its sha256 is another");
        }
        Ok(self.bytes.into())
    }
}
