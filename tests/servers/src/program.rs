//! Where a server's program is.

use std::env;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// A program that is looked for in a few places.
pub(crate) struct Program {
    /// As it is called on the PATH.
    pub(crate) name: &'static str,
    /// The environment variable that names it.
    pub(crate) variable: &'static str,
    /// How one gets it.
    pub(crate) remedy: &'static str,
}

impl Program {
    /// The one that the variable names, else the first on the PATH, else the first of `others`.
    pub(crate) fn find(&self, others: &[PathBuf]) -> Result<PathBuf> {
        if let Some(path) = self.named()? {
            return Ok(path);
        }
        let on_path = env::var_os("PATH").unwrap_or_default();
        let on_path = env::split_paths(&on_path).map(|folder| folder.join(self.name));
        let found = on_path.chain(others.iter().cloned()).find(|path| is_ours(path));
        found.ok_or_else(|| {
            let others: Vec<_> = others.iter().map(|path| path.display().to_string()).collect();
            let places = [vec!["the PATH".to_owned()], others].concat().join(", ");
            let Self { name, variable, remedy } = self;
            Error(format!("{name} is missing: looked at {variable} (not set), {places}; {remedy}"))
        })
    }

    /// The one that the variable names, if it is set.
    pub(crate) fn named(&self) -> Result<Option<PathBuf>> {
        let Some(path) = env::var_os(self.variable).filter(|path| !path.is_empty()) else {
            return Ok(None);
        };
        let path = PathBuf::from(path);
        if path.is_file() {
            return Ok(Some(path));
        }
        let Self { variable, remedy, .. } = self;
        let shown = path.display();
        Err(Error(format!("{variable} names {shown}, which is no file; {remedy}")))
    }
}

/// Debian's wrapper around RabbitMQ wants to be root or the user rabbitmq, and is no use here.
fn is_ours(path: &Path) -> bool {
    let real = path.canonicalize().unwrap_or_default();
    real.is_file() && !real.ends_with("rabbitmq-script-wrapper")
}

/// The folders `VERSION` below the cache that hold this file, oldest version first.
pub(crate) fn cached(kind: &str, file: &str) -> Vec<PathBuf> {
    let mut versions: Vec<(Vec<u64>, PathBuf)> = Vec::new();
    for entry in std::fs::read_dir(cache(kind)).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let numbers: std::result::Result<Vec<u64>, _> = name.split('.').map(str::parse).collect();
        let path = entry.path().join(file);
        if let (Ok(numbers), true) = (numbers, path.is_file()) {
            versions.push((numbers, path));
        }
    }
    versions.sort();
    versions.into_iter().map(|(_, path)| path).collect()
}

/// Where `tests/run` puts servers that the distribution does not have.
pub(crate) fn cache(kind: &str) -> PathBuf {
    let given = env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()).map(PathBuf::from);
    let home = || PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".cache");
    given.unwrap_or_else(home).join("ebb").join("servers").join(kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named_with_the_places_and_the_remedy() {
        let program = Program {
            name: "ebb-no-such-server",
            variable: "EBB_NO_SUCH_SERVER",
            remedy: "install it",
        };
        let words = program.find(&["/opt/nowhere/server".into()]).unwrap_err().to_string();
        for part in [program.name, program.variable, "the PATH", "/opt/nowhere/server", "install"] {
            assert!(words.contains(part), "{part}: {words}");
        }
    }

    #[test]
    fn a_wrapper_that_wants_to_be_root_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let wrapper = folder.path().join("rabbitmq-script-wrapper");
        std::fs::write(&wrapper, "").unwrap();
        let server = folder.path().join("rabbitmq-server");
        std::os::unix::fs::symlink(&wrapper, &server).unwrap();
        assert!(!is_ours(&server));
        std::fs::remove_file(&server).unwrap();
        std::fs::write(&server, "").unwrap();
        assert!(is_ours(&server));
    }
}
