//! Which store takes large bodies, and from what size on.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::client::ClientConfigKey;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, RetryConfig};

use crate::{Error, ErrorKind, Result};

/// A body above this many bytes travels by reference, unless set otherwise.
pub const INLINE_LIMIT: usize = 256 << 10;

/// The largest body that is fetched, unless set otherwise.
const LARGEST: usize = 256 << 20;

/// Where large bodies lie: `file:///DIR`, `s3://BUCKET/PREFIX`, or `results` for the result store
/// of the queue itself, where they live as long as a result does.
///
/// The credentials, region and endpoint of S3 come from the usual `AWS_*` variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PayloadsUrl {
    /// A folder that all who share the queue see; created when missing.
    File(PathBuf),
    /// A bucket of S3 or of what speaks its protocol.
    S3 {
        /// The bucket; it must be there.
        bucket: String,
        /// What stands before each key, without slashes at its ends; may be empty.
        prefix: String,
    },
    /// The result store of the queue itself.
    Results,
}

impl FromStr for PayloadsUrl {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "results" {
            return Ok(Self::Results);
        }
        if let Some(place) = text.strip_prefix("file:") {
            let path = place.strip_prefix("//").unwrap_or(place);
            if path.is_empty() {
                return Err(invalid("file: names no folder"));
            }
            return Ok(Self::File(path.into()));
        }
        let place = text.strip_prefix("s3://").ok_or_else(|| invalid("its scheme is not known"))?;
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(is_name) {
            // Whoever writes keys before an @ shall not find them in a log.
            return Err(invalid("its bucket is no name of 3 to 63 of a-z 0-9 . -"));
        }
        let prefix = prefix.trim_matches('/');
        if Path::parse(prefix).is_err() || prefix.contains(['?', '#', '@']) {
            return Err(invalid("its prefix is no path; options come from AWS_* variables"));
        }
        Ok(Self::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }
}

/// Parses back to the same.
impl fmt::Display for PayloadsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) if path.is_absolute() => write!(f, "file://{}", path.display()),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
            Self::Results => f.write_str("results"),
        }
    }
}

fn invalid(why: &str) -> Error {
    let remedy = "use file:///DIR, s3://BUCKET/PREFIX or results";
    Error::new(ErrorKind::Invalid, format!("payload store is not valid: {why}; {remedy}"))
}

/// A store for large bodies, and from what size on it is used; clones share it.
#[derive(Clone)]
pub struct Payloads {
    /// A body of more bytes travels by reference; less where the broker takes less.
    pub inline: usize,
    /// A body of more bytes is neither published nor fetched.
    pub largest: usize,
    pub(super) url: PayloadsUrl,
    /// None for the result store of the queue.
    pub(super) objects: Option<Arc<dyn ObjectStore>>,
}

// The client of S3 would show its credentials.
impl fmt::Debug for Payloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { inline, largest, url, .. } = self;
        let mut shown = f.debug_struct("Payloads");
        shown.field("url", url).field("inline", inline).field("largest", largest).finish()
    }
}

impl Payloads {
    /// Makes a store ready; what is in it is not looked at.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] for a folder that cannot be made, [`ErrorKind::Invalid`] for
    /// `AWS_*` variables that cannot be right.
    pub fn open(url: &PayloadsUrl) -> Result<Self> {
        let variables = std::env::vars_os();
        let texts =
            variables.filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
        Self::open_with(url, texts)
    }

    /// The same with these variables, for who has them from elsewhere than the environment.
    ///
    /// # Errors
    /// As for [`Payloads::open`].
    pub fn open_with(
        url: &PayloadsUrl,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self> {
        let objects = match url {
            PayloadsUrl::File(path) => Some(folder(path)?),
            PayloadsUrl::S3 { bucket, prefix } => Some(s3(bucket, prefix, variables)?),
            PayloadsUrl::Results => None,
        };
        Ok(Self { inline: INLINE_LIMIT, largest: LARGEST, url: url.clone(), objects })
    }
}

fn folder(path: &std::path::Path) -> Result<Arc<dyn ObjectStore>> {
    let cannot = |source: Box<dyn std::error::Error + Send + Sync>| {
        let words = format!("payload store: cannot use folder {}", path.display());
        Error::new(ErrorKind::Unavailable, words).caused_by(source)
    };
    std::fs::create_dir_all(path).map_err(|error| cannot(error.into()))?;
    let store = LocalFileSystem::new_with_prefix(path).map_err(|error| cannot(error.into()))?;
    // The job is published after its body: the body must be as safe as the job.
    Ok(Arc::new(store.with_fsync(true)))
}

fn s3(
    bucket: &str,
    prefix: &str,
    variables: impl IntoIterator<Item = (String, String)>,
) -> Result<Arc<dyn ObjectStore>> {
    // An HTTP client with no provider of its own wants the one of the process.
    async_nats::rustls::crypto::ring::default_provider().install_default().ok();
    let retry = RetryConfig {
        max_retries: 3,
        retry_timeout: Duration::from_secs(10),
        ..RetryConfig::default()
    };
    let mut builder = AmazonS3Builder::new().with_bucket_name(bucket).with_retry(retry);
    for (name, value) in variables.into_iter().filter(|(name, _)| name.starts_with("AWS_")) {
        let Ok(key) = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>() else { continue };
        if key == AmazonS3ConfigKey::Bucket {
            continue;
        }
        if name.starts_with("AWS_ENDPOINT") && value.starts_with("http://") {
            let allow = AmazonS3ConfigKey::Client(ClientConfigKey::AllowHttp);
            builder = builder.with_config(allow, "true");
        }
        builder = builder.with_config(key, value);
    }
    let store = builder.build().map_err(|error| {
        let words = format!("payload store s3://{bucket}: an AWS_* variable is not valid");
        Error::new(ErrorKind::Invalid, words).caused_by(error)
    })?;
    Ok(Arc::new(PrefixStore::new(store, Path::from(prefix))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_and_written_alike() {
        for (text, written) in [
            ("results", "results"),
            ("file:///var/lib/ebb/bodies", "file:///var/lib/ebb/bodies"),
            ("file:/var/lib/ebb/bodies", "file:///var/lib/ebb/bodies"),
            ("file:bodies", "file:bodies"),
            ("s3://bucket", "s3://bucket"),
            ("s3://bucket/", "s3://bucket"),
            ("s3://my.bucket-1/a/b/", "s3://my.bucket-1/a/b"),
        ] {
            let url: PayloadsUrl = text.parse().unwrap();
            assert_eq!(url.to_string(), written);
            assert_eq!(written.parse::<PayloadsUrl>().unwrap(), url);
        }
    }

    #[test]
    fn a_store_shows_no_credentials() {
        let url = "s3://bucket/prefix".parse().unwrap();
        let variables = [("AWS_ACCESS_KEY_ID", "my-key"), ("AWS_SECRET_ACCESS_KEY", "my-secret")];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let payloads = Payloads::open_with(&url, variables).unwrap();
        let options = crate::OpenOptions { payloads: Some(payloads), ..Default::default() };
        let shown = format!("{options:?}");
        assert!(shown.contains("bucket") && !shown.contains("my-"), "{shown}");
    }

    #[test]
    fn an_address_that_cannot_be_right_is_refused_with_the_remedy_and_without_its_secret() {
        for text in [
            "",
            "result",
            "file:",
            "file://",
            "s3:bucket",
            "s3://",
            "s3://a",
            "https://example.com/bucket",
            "s3://key:secret@host/bucket",
            "s3://bucket/a//b",
            "s3://bucket/a?secret=1",
            "s3://bucket/../a",
        ] {
            let error = text.parse::<PayloadsUrl>().expect_err(text);
            assert_eq!(error.kind(), ErrorKind::Invalid);
            let words = error.to_string();
            assert!(words.contains("use file:///DIR") && !words.contains("secret"), "{words}");
        }
    }
}
