//! Where the URL of a queue is: in a configuration file itself, or apart from it, since it may hold a
//! password.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::{Error, ErrorKind, QueueUrl, Result};

/// A URL is no longer than this, in bytes.
const MAX_URL: u64 = 1 << 20;

/// Where the URL of a queue is.
#[derive(Clone, PartialEq, Eq)]
pub enum UrlFrom {
    /// In the configuration itself.
    Here(String),
    /// In a file of its own, such as a mounted Secret.
    File(PathBuf),
    /// In a variable of the environment.
    Env(String),
}

/// The URL may hold a password.
impl fmt::Debug for UrlFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Here(_) => f.write_str("Here(***)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Env(name) => f.debug_tuple("Env").field(name).finish(),
        }
    }
}

impl UrlFrom {
    /// The URL. `key` is the key of the configuration that has it, and with `_file` or `_env` behind it
    /// the one that says where it is.
    ///
    /// # Errors
    /// Names the key, where it leads, and the remedy, and no password.
    pub fn read(&self, key: &str) -> Result<QueueUrl> {
        match self {
            Self::Here(text) => parse(text, key),
            Self::File(path) => {
                is_no_url(
                    &format!("{key}_file"),
                    "the path of a file",
                    &path.to_string_lossy(),
                    key,
                )?;
                let at = format!("{key}_file: {}", path.display());
                parse(&text_of(path, &at)?, &at)
            }
            Self::Env(name) => {
                is_no_url(&format!("{key}_env"), "the name of a variable", name, key)?;
                let text = std::env::var(name).map_err(|error| {
                    invalid(format!("{key}_env: the variable {name} cannot be read: {error}"))
                })?;
                parse(&text, &format!("{key}_env: {name}"))
            }
        }
    }
}

/// A URL in the place of a name may hold a password, which no error shall show.
fn is_no_url(own: &str, wanted: &str, value: &str, key: &str) -> Result<()> {
    let is_path = value.starts_with(['/', '.']);
    if value.contains("://") || (value.contains('@') && !is_path) {
        let words = format!("{own} is {wanted}, and this is none; a URL belongs into `{key}`");
        return Err(invalid(words));
    }
    Ok(())
}

/// Shows only the remedy of a mistake: what is no URL may be a password that was put in its place.
fn parse(text: &str, at: &str) -> Result<QueueUrl> {
    text.trim().parse().map_err(|error: Error| {
        let words = error.to_string();
        let remedy = words.split_once("is not valid: ").map(|(_, remedy)| remedy);
        invalid(format!("{at}: {}", remedy.unwrap_or("an option of the URL is not valid")))
    })
}

fn text_of(path: &Path, at: &str) -> Result<String> {
    let unread = |error| invalid(format!("{at}: cannot be read: {error}"));
    let n_bytes = std::fs::metadata(path).map_err(unread)?.len();
    if n_bytes > MAX_URL {
        return Err(invalid(format!("{at}: {n_bytes} bytes are too many; use {MAX_URL} at most")));
    }
    std::fs::read_to_string(path).map_err(unread)
}

fn invalid(words: String) -> Error {
    Error::new(ErrorKind::Invalid, words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_read_from_where_it_is_and_no_mistake_shows_a_password() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("url");
        std::fs::write(&path, "nats://me:hunter2@host?queue=q\n").unwrap();
        assert_eq!(UrlFrom::File(path.clone()).read("queue").unwrap().queue, "q");
        assert!(UrlFrom::Here("sqlite:q.db".into()).read("queue").is_ok());
        std::fs::write(&path, "nats://me:hunter2@host?colour=q\n").unwrap();
        for (from, told) in [
            (UrlFrom::File(path), "option colour is not known"),
            (UrlFrom::File("/no/such".into()), "queue_file: /no/such: cannot be read"),
            (UrlFrom::File("nats://a:hunter2@b".into()), "a URL belongs into `queue`"),
            (UrlFrom::Env("EBB_NO_SUCH".into()), "queue_env: the variable EBB_NO_SUCH cannot"),
            (UrlFrom::Env("nats://a:hunter2@b".into()), "queue_env is the name of a variable"),
            (UrlFrom::Here("hunter2".into()), "queue: it has no scheme"),
        ] {
            let error = from.read("queue").unwrap_err().to_string();
            assert!(error.contains(told) && !error.contains("hunter2"), "{error}");
        }
        assert_eq!(format!("{:?}", UrlFrom::Here("hunter2".into())), "Here(***)");
    }
}
