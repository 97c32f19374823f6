//! What is looked at, and where.

use std::sync::Arc;

use ebb_queue::{Foreign, Source};

/// What is looked at on the broker of a profile.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) profile: Arc<str>,
    pub(crate) source: Source,
}

impl Place {
    /// What it is, for a person.
    pub(crate) fn words(&self) -> String {
        match &self.source {
            Source::Queue(name) => format!("queue {name}"),
            Source::Foreign(Foreign { stream, reader }) => {
                format!("stream {stream} as {reader} reads it")
            }
        }
    }
}
