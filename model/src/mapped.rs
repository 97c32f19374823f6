//! Files mapped into memory: their pages are read when they are needed, in whatever order, and
//! nothing is copied on the way.
#![allow(unsafe_code, reason = "the system cannot promise that nobody writes to a file")]

use std::fs::File;
use std::io;
use std::path::Path;

#[cfg(feature = "cpu")]
use memmap2::Advice;
use memmap2::Mmap;

/// A file in memory.
#[derive(Debug)]
pub(crate) struct Mapped(Mmap);

impl Mapped {
    /// Maps a file. Whoever changes a model puts new files in place of the old ones; one that is
    /// written to, or cut short, while a model is read from it gives a model of chance, or ends the
    /// process.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: The bytes are read as numbers of which every pattern is one, and as text that is
        // checked once it is copied, so that no value depends on their staying the same.
        Ok(Self(unsafe { Mmap::map(&file) }?))
    }

    /// Tells the system that all of it will be read, so that the disk is busy before it is.
    #[cfg(feature = "cpu")]
    pub(crate) fn read_ahead(&self) {
        // Without it the pages come one after the other.
        if let Err(error) = self.0.advise(Advice::WillNeed) {
            tracing::debug!(%error, "the weights are not read ahead");
        }
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
