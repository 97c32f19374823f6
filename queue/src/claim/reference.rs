//! What travels in the place of a large body.

use std::borrow::Cow;
use std::fmt::Write;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{Delivery, Job, JobId, JobResult, Outcome, Receipt};

/// The content type of a result whose body is a reference to the answer.
pub const REFERENCE: &str = "application/vnd.ebb.reference+json";

/// Whether the answer is not here: a reference to it is. A queue that has the store of payloads never
/// gives such a result.
#[must_use]
pub fn lies_elsewhere(result: &JobResult) -> bool {
    matches!(&result.outcome, Outcome::Completed { content_type, .. } if content_type == REFERENCE)
}

/// Where a body lies, and how to know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reference {
    pub(super) key: String,
    pub(super) size: u64,
    pub(super) sha256: String,
    /// What the body of a result is; that of a job says so in its headers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
}

impl Reference {
    pub(super) fn new(key: String, body: &Bytes, sha256: String) -> Self {
        Self { key, size: body.len() as u64, sha256, content_type: None }
    }

    /// A key that no other body has or had: one may be deleted with its job.
    pub(super) fn fresh_key() -> String {
        format!("bodies/{}", JobId::fresh())
    }

    /// The key of a result, the same when it is offered again.
    pub(super) fn result_key(result: &JobResult, sha256: &str) -> String {
        let name = format!("{}\n{}\n{sha256}", result.id, result.attempt);
        format!("results/{}", sha256_of(name.as_bytes()))
    }

    /// The job with this in the place of its body.
    pub(super) fn replace_body(&self, job: &mut Job) {
        job.headers.body_ref = Some(self.key.clone());
        job.body = self.json();
    }

    /// Where the body of a job lies that names a key; why not, in words.
    pub(super) fn of_job(job: &Job, key: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("ebb-body-ref: the body is no reference: {why}");
        let reference: Self =
            serde_json::from_slice(&job.body).map_err(|error| wrong(&error.to_string()))?;
        if reference.key != key {
            return Err(wrong("it names another key than the header"));
        }
        // Else a job could read what is not meant for it, or have it deleted.
        if !is_key(key, "bodies/") {
            return Err(wrong("its key is not bodies/NAME"));
        }
        Ok(reference)
    }

    /// The result with this in the place of its body.
    pub(super) fn replace_answer(mut self, result: &JobResult, content_type: &str) -> JobResult {
        self.content_type = Some(content_type.to_owned());
        let (content_type, body) = (REFERENCE.to_owned(), self.json());
        JobResult { outcome: Outcome::Completed { content_type, body }, ..result.clone() }
    }

    /// Where the body of a result lies, and what it is; nothing if it is no reference.
    pub(super) fn of_result(result: &JobResult) -> Option<(Self, String)> {
        let Outcome::Completed { content_type, body } = &result.outcome else { return None };
        if content_type != REFERENCE {
            return None;
        }
        let reference: Self = serde_json::from_slice(body).ok()?;
        let content_type = reference.content_type.clone()?;
        is_key(&reference.key, "results/").then_some((reference, content_type))
    }

    fn json(&self) -> Bytes {
        serde_json::to_vec(self).expect("texts and a number have a JSON form").into()
    }
}

fn is_key(key: &str, folder: &str) -> bool {
    let name = key.strip_prefix(folder).unwrap_or_default();
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=200).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(is_plain)
}

/// The hash in hexadecimal digits.
pub(super) fn sha256_of(bytes: &[u8]) -> String {
    hex(Sha256::digest(bytes).as_slice())
}

pub(super) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing into a string cannot fail.
        write!(text, "{byte:02x}").unwrap_or_default();
    }
    text
}

const MARK: &str = "body-ref ";

/// The delivery with its body, and a receipt that says what to delete with the job.
///
/// It stands in the receipt because that goes where the delivery goes and ends when it does.
pub(super) fn deliver(delivery: Delivery, key: &str, body: Bytes) -> Delivery {
    let Receipt { job: id, token } = delivery.receipt();
    let receipt = Receipt { job: id.clone(), token: format!("{MARK}{key} {token}").into() };
    let (mut job, attempt) = (delivery.job, delivery.attempt);
    job.body = body;
    job.headers.body_ref = None;
    Delivery::new(job, attempt, receipt)
}

/// The broker's own receipt, and the key of the body.
pub(super) fn parse_receipt(receipt: &Receipt) -> (Cow<'_, Receipt>, Option<&str>) {
    let marked = receipt.token.strip_prefix(MARK).and_then(|rest| rest.split_once(' '));
    match marked {
        Some((key, token)) => {
            let own = Receipt { job: receipt.job.clone(), token: token.into() };
            (Cow::Owned(own), Some(key))
        }
        None => (Cow::Borrowed(receipt), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Timestamp;

    #[test]
    fn a_reference_names_its_key_twice_and_nothing_outside_its_folder() {
        let mut job = Job::new("{}", Timestamp::UNIX_EPOCH);
        for (key, body, why) in [
            ("bodies/a", r#"{"key":"bodies/a","size":1,"sha256":"00"}"#, None),
            ("bodies/b", r#"{"key":"bodies/a","size":1,"sha256":"00"}"#, Some("another key")),
            ("results/a", r#"{"key":"results/a","size":1,"sha256":"00"}"#, Some("bodies/NAME")),
            ("bodies/..", r#"{"key":"bodies/..","size":1,"sha256":"00"}"#, Some("bodies/NAME")),
            ("bodies/a/b", r#"{"key":"bodies/a/b","size":1,"sha256":"00"}"#, Some("bodies/NAME")),
            ("bodies/a", r#"{"key":"bodies/a"}"#, Some("missing field")),
            ("bodies/a", "a body", Some("expected")),
        ] {
            job.body = body.into();
            let error = Reference::of_job(&job, key).err();
            match why {
                None => assert_eq!(error, None),
                Some(why) => assert!(error.as_ref().unwrap().contains(why), "{error:?}"),
            }
        }
    }

    #[test]
    fn a_receipt_of_a_broker_comes_back_as_it_was() {
        let own = Receipt { job: JobId::fresh(), token: "a token of.two words".into() };
        let delivery = Delivery::new(Job::new("", Timestamp::UNIX_EPOCH), 1, own.clone());
        let marked = deliver(delivery, "bodies/a", "body".into());
        let (receipt, key) = parse_receipt(marked.receipt());
        assert_eq!((&*receipt, key), (&own, Some("bodies/a")));
        assert_eq!(parse_receipt(&own), (Cow::Borrowed(&own), None));
    }
}
