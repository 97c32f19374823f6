//! A generator's directory, opened: what it says is read, and the disk is at its weights.

use std::path::Path;

use super::config::Config;
use super::settings::{GENERATION, unheeded};
use super::weights::Reader;
use crate::LoadError;
use crate::checkpoint::Checkpoint;
use crate::json::Fields;

/// A generator on its way to a device, which may start meanwhile.
pub struct Source {
    pub(crate) config: Config,
    pub(crate) reader: Reader,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Source {
    /// Reads and checks the configuration, maps the weights, which the system reads from now on, and
    /// holds their shapes against it.
    ///
    /// # Errors
    /// When a file is missing or is not what it should be: which, and what to do.
    pub fn open(dir: &Path) -> Result<Self, LoadError> {
        let config = Config::read(&dir.join("config.json"))?;
        let unheeded = unheeded(&Fields::read_if_there(&dir.join(GENERATION))?);
        if !unheeded.is_empty() {
            let (dir, fields) = (dir.display(), unheeded.join(", "));
            tracing::warn!(%dir, fields, "generation_config.json asks for what is not done here");
        }
        let reader = Reader::new(Checkpoint::open(dir)?, &config)?;
        if config.tied && !reader.is_tied() {
            let dir = dir.display();
            tracing::warn!(
                %dir,
                "the weights have an lm_head.weight that is not the table of embeddings, and it is \
                 used: in config.json tie_word_embeddings should be false"
            );
        }
        Ok(Self { config, reader })
    }
}
