//! A model's directory, opened: what it says is read, and the disk is at its weights.

use std::path::Path;

use super::Settings;
use super::weights::Reader;
use crate::checkpoint::Checkpoint;
use crate::{LoadError, pull};

/// A model on its way to a device, which may start meanwhile.
pub struct Source {
    pub(crate) settings: Settings,
    pub(crate) reader: Reader,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Source {
    /// Reads and checks the settings, and maps the weights, which the system reads from now on.
    ///
    /// # Errors
    /// When a file is missing or is not what it should be: which, and what to do.
    pub fn open(dir: &Path) -> Result<Self, LoadError> {
        let settings = Settings::read(dir)?;
        if let Some(file) = pull::unsettled(dir) {
            let dir = dir.display();
            tracing::warn!(
                %dir,
                file,
                "the hub's cache has the model without a file that it may have; its answers may be \
                 others, ebb model pull fetches it"
            );
        }
        let weights = Checkpoint::open(dir)?;
        settings.check_labels(&weights)?;
        let reader = Reader::new(weights, settings.config.family)?;
        Ok(Self { settings, reader })
    }
}
