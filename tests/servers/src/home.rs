//! The folder of a server: its data, its configuration, its log. Swept when its owner is dead.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::{Error, Result};

const PREFIX: &str = "ebb-server-";
/// The file that says whose folder it is: a process and when it was started.
const OWNER: &str = "owner";

/// A folder that is gone with its owner, or at the next start after that.
#[derive(Debug)]
pub(crate) struct Home(TempDir);

impl Home {
    pub(crate) fn new() -> Result<Self> {
        sweep();
        let failed = |error| Error::because("cannot make a folder for a server", error);
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir().map_err(failed)?;
        let home = Self(folder);
        home.write(OWNER, &owner(std::process::id()).unwrap_or_default())?;
        Ok(home)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file and returns where it is.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.path().join(name);
        std::fs::write(&path, text)
            .map_err(|error| Error::because(&format!("cannot write {}", path.display()), error))?;
        Ok(path)
    }
}

/// The process and when it was started: a number alone is used again.
fn owner(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // After the name, which may hold anything, the start is the twentieth.
    let start = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?;
    Some(format!("{pid} {start}"))
}

/// Ends the servers of owners that are dead, and removes their folders.
fn sweep() {
    for entry in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let home = entry.path();
        // One without the file is being made at this moment.
        let Ok(text) = std::fs::read_to_string(home.join(OWNER)) else { continue };
        let pid = text.split_once(' ').and_then(|(pid, _)| pid.parse().ok());
        let is_alive = pid.and_then(owner).as_deref() == Some(&*text);
        if !text.is_empty() && !is_alive {
            end_all_in(&home);
            // Another sweep may have been faster.
            drop(std::fs::remove_dir_all(&home));
        }
    }
}

/// Ends every process that was started for this folder.
fn end_all_in(home: &Path) {
    let mark = [b"EBB_SERVER_HOME=", home.as_os_str().as_encoded_bytes()].concat();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let environ = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        let works_here = std::fs::read_link(entry.path().join("cwd"))
            .is_ok_and(|folder| folder.as_os_str() != OsStr::new("/") && folder.starts_with(home));
        if works_here || environ.split(|byte| *byte == 0).any(|pair| pair == mark) {
            // Gone by itself meanwhile is as good.
            kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap_or_default();
        }
    }
}
