//! When who follows a result waits in vain.

/// What a queue knows of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Nothing: it was not published yet, was purged, or was done long ago.
    Unknown,
    /// It waits or runs, or is a dead letter that may be put back.
    Open,
    /// It is done, and known for a while.
    Done,
}

/// Tells from what the queue knows, look by look, whether a result can still come.
#[derive(Debug, Default)]
pub(crate) struct Hope {
    was_open: bool,
}

impl Hope {
    /// Whether no result can come any more, given that there was none when the job stood like this.
    pub(crate) fn is_lost(&mut self, standing: Standing) -> bool {
        self.was_open |= standing == Standing::Open;
        match standing {
            Standing::Unknown => self.was_open,
            Standing::Open => false,
            Standing::Done => true,
        }
    }
}
