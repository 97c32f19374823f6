//! Why a job has no answer: in words for people, and as a kind for programs.

use crate::short_reason;

/// Why a job has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What there is to do about it.
    pub kind: FailureKind,
    /// Why, in words.
    pub reason: String,
}

/// What there is to do about a job that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FailureKind {
    /// The job itself is wrong, and fails again as it is: mend it.
    Invalid,
    /// Its deadline passed, or could not be met: send it again, with more time.
    Expired,
    /// It was given up after its attempts, each of which failed or was lost: another time may do.
    Attempts,
    /// The model is not there, or it or what is around it failed on it and will again: an operator has to
    /// look.
    Model,
    /// Its body is not to be had: send it again, with its body.
    Lost,
    /// None that is known here: it is of an older version or a newer one, or nobody said.
    Other,
}

impl FailureKind {
    /// All kinds.
    pub const ALL: &[Self] =
        &[Self::Invalid, Self::Expired, Self::Attempts, Self::Model, Self::Lost, Self::Other];

    /// One word, as results, replies and dead letters have it; it never changes.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Expired => "expired",
            Self::Attempts => "attempts",
            Self::Model => "model",
            Self::Lost => "lost",
            Self::Other => "other",
        }
    }

    /// The kind of this word; a word that is not known, or none, is [`FailureKind::Other`].
    #[must_use]
    pub fn of_word(word: &str) -> Self {
        Self::ALL.iter().copied().find(|kind| kind.word() == word).unwrap_or(Self::Other)
    }
}

impl serde::Serialize for FailureKind {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.word())
    }
}

impl Failure {
    /// A failure of this kind, with the words to tell it.
    pub fn new(kind: FailureKind, reason: impl Into<String>) -> Self {
        Self { kind, reason: reason.into() }
    }

    /// That of a job whose deadline passed before anybody had answered it.
    #[must_use]
    pub fn expired() -> Self {
        Self::new(FailureKind::Expired, FailureKind::Expired.word())
    }

    /// That of a job which is wrong itself.
    pub fn invalid(reason: impl Into<String>) -> Self {
        Self::new(FailureKind::Invalid, reason)
    }

    /// The same with a reason that is no longer than it may be: it may repeat what the job says.
    #[must_use]
    pub fn shortened(self) -> Self {
        Self { reason: short_reason(&self.reason).into_owned(), ..self }
    }
}

/// A failure of which nothing but words is known.
impl From<String> for Failure {
    fn from(reason: String) -> Self {
        Self::new(FailureKind::Other, reason)
    }
}

/// A failure of which nothing but words is known.
impl From<&str> for Failure {
    fn from(reason: &str) -> Self {
        reason.to_owned().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_known_by_its_word() {
        for kind in FailureKind::ALL.iter().copied() {
            assert_eq!(FailureKind::of_word(kind.word()), kind);
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.word());
        }
        let words: Vec<_> = FailureKind::ALL.iter().map(|kind| kind.word()).collect();
        assert_eq!(words, ["invalid", "expired", "attempts", "model", "lost", "other"]);
    }

    #[test]
    fn a_word_of_another_version_is_read_as_other() {
        // The store of Redis has `cancelled` where a kind would stand: it must never be one.
        for word in ["", "tomorrow", "Invalid", "cancelled"] {
            assert_eq!(FailureKind::of_word(word), FailureKind::Other, "{word:?}");
        }
    }
}
