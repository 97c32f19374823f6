//! What can go wrong between us and a broker.

use crate::JobId;

/// Shorthand for this crate's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of a broker, with a kind to branch on and the source kept.
#[derive(Debug, thiserror::Error)]
#[error("{context}")]
pub struct Error {
    kind: ErrorKind,
    context: String,
    is_in_doubt: bool,
    lacks_queue: bool,
    stored: Vec<JobId>,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// What a caller may want to do differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// What the caller gave cannot be right: no retry will help.
    Invalid,
    /// What was named is not there, and not ours to make.
    Missing,
    /// The broker does not let us in or does not permit the call, whatever we ask: a user, a
    /// password, a permission. It is nobody's job that is wrong, and only somebody who changes our
    /// rights will help.
    Denied,
    /// The broker cannot be reached or is busy: a later try may succeed.
    Unavailable,
    /// The queue is full: the producer should slow down. Mostly nothing is stored, and
    /// [`Error::may_be_stored`] says of which refusal that is certain.
    Full,
    /// What the broker stores does not fit this version.
    Incompatible,
    /// Anything else; not expected.
    Internal,
}

impl ErrorKind {
    /// Whether a later try of the same may succeed.
    #[must_use]
    pub fn heals(self) -> bool {
        matches!(self, Self::Unavailable | Self::Full)
    }
}

/// One word, for logs and answers.
impl std::fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Invalid => "invalid",
            Self::Missing => "missing",
            Self::Denied => "denied",
            Self::Unavailable => "unavailable",
            Self::Full => "full",
            Self::Incompatible => "incompatible",
            Self::Internal => "internal",
        })
    }
}

impl Error {
    /// An error with the words to tell it.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        let context = context.into();
        let (is_in_doubt, lacks_queue) = (false, false);
        Self { kind, context, is_in_doubt, lacks_queue, stored: Vec::new(), source: None }
    }

    /// The same, with what caused it.
    #[must_use]
    pub fn caused_by(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The same of a broker that also says so of what it has stored.
    #[must_use]
    pub(crate) fn in_doubt(mut self) -> Self {
        self.is_in_doubt = true;
        self
    }

    /// The same of a publication of which these jobs are known to be stored.
    #[must_use]
    pub(crate) fn but_stored(mut self, stored: Vec<JobId>) -> Self {
        self.stored = stored;
        self
    }

    /// The same, with what there is to know beside it.
    #[must_use]
    pub(crate) fn and(mut self, words: impl std::fmt::Display) -> Self {
        self.context = format!("{}; {words}", self.context);
        self
    }

    /// The same, where it is a queue that is missing; the words end with how it is made.
    #[must_use]
    pub(crate) fn of_no_queue(mut self) -> Self {
        self.lacks_queue = true;
        self
    }

    /// The same to whoever opened the queue at this address: what makes it there, but for a password, which
    /// is shown to nobody.
    #[must_use]
    pub(crate) fn at(mut self, url: &crate::QueueUrl) -> Self {
        if self.lacks_queue {
            let remedy = format!("`ebb queue init --queue '{url}'`");
            self.context = self.context.replace("`ebb queue init`", &remedy);
        }
        self
    }

    /// Whether the broker has answered that it has no such queue, and we may not make it.
    #[must_use]
    pub fn lacks_queue(&self) -> bool {
        self.lacks_queue
    }

    /// Whether the one job that was published, or all of them where the broker stores all or none, may be
    /// stored all the same.
    ///
    /// Where it is not, all that belongs to them can be deleted. Where it may be, that must stay, and who
    /// publishes again does so under the same id: the job may run twice, and has one result.
    #[must_use]
    pub fn may_be_stored(&self) -> bool {
        self.is_in_doubt || !matches!(self.kind, ErrorKind::Full | ErrorKind::Invalid)
    }

    /// Jobs of a publication that are known to be stored although it failed. They need not be published
    /// again, which on a broker that knows no ids would make a copy of each.
    ///
    /// That one is missing here says nothing; see [`Error::may_be_stored`].
    #[must_use]
    pub fn stored(&self) -> &[JobId] {
        &self.stored
    }

    /// Whether the broker has answered, if with a no: that the queue is full, or that what was given is
    /// wrong. Then it has not failed, whatever was asked of it; one that does not say what it has stored has.
    #[must_use]
    pub fn is_answer(&self) -> bool {
        !self.is_in_doubt && matches!(self.kind, ErrorKind::Full | ErrorKind::Invalid)
    }

    /// What to branch on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The exit code of a process that ends by this cause, where it is an error of a broker: 2 when
    /// what was given is wrong, 69 when a later try may succeed, else 1.
    #[must_use]
    pub fn exit_code(cause: &(dyn std::error::Error + 'static)) -> Option<u8> {
        let error: &Self = cause.downcast_ref()?;
        Some(match error.kind {
            ErrorKind::Invalid | ErrorKind::Missing | ErrorKind::Denied => 2,
            ErrorKind::Unavailable | ErrorKind::Full => 69,
            ErrorKind::Incompatible | ErrorKind::Internal => 1,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_that_refuses_has_answered_unless_it_is_in_doubt() {
        assert!(Error::new(ErrorKind::Invalid, "no such id").is_answer());
        assert!(Error::new(ErrorKind::Full, "full").is_answer());
        assert!(!Error::new(ErrorKind::Full, "full").in_doubt().is_answer());
        for kind in [ErrorKind::Unavailable, ErrorKind::Missing, ErrorKind::Internal] {
            assert!(!Error::new(kind, "who knows").is_answer(), "{kind}");
        }
    }

    #[test]
    fn only_a_refusal_without_a_doubt_means_that_nothing_is_stored() {
        let full = || Error::new(ErrorKind::Full, "full");
        assert!(!full().may_be_stored());
        assert!(!Error::new(ErrorKind::Invalid, "too large").may_be_stored());
        assert!(full().in_doubt().caused_by("a word of the broker").may_be_stored());
        for kind in [ErrorKind::Unavailable, ErrorKind::Denied, ErrorKind::Internal] {
            assert!(Error::new(kind, "who knows").may_be_stored(), "{kind}");
        }
    }
}
