//! URLs as somebody typed them, which nobody shows.

use std::fmt;
use std::str::FromStr;

use crate::claim::PayloadsUrl;
use crate::{Error, QueueUrl, Result};

/// A URL as somebody typed it: it may hold a password, so nobody shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct TypedUrl(String);

impl TypedUrl {
    /// The URL.
    ///
    /// # Errors
    /// Names the flag and the remedy, and no password.
    pub fn read(&self, flag: &str) -> Result<QueueUrl> {
        self.parse(flag)
    }

    /// The URL of a store of payloads.
    ///
    /// # Errors
    /// Names the flag and the remedy, and no key.
    pub fn read_payloads(&self, flag: &str) -> Result<PayloadsUrl> {
        self.parse(flag)
    }

    fn parse<T: FromStr<Err = Error>>(&self, flag: &str) -> Result<T> {
        let named = |error: Error| Error::new(error.kind(), format!("{flag}: {error}"));
        self.0.parse().map_err(named)
    }
}

impl fmt::Debug for TypedUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl From<String> for TypedUrl {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&QueueUrl> for TypedUrl {
    fn from(url: &QueueUrl) -> Self {
        Self(url.with_secrets())
    }
}
