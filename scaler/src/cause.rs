//! Why a broker was asked.

/// What makes an observer look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The queue was opened.
    Open,
    /// The broker told of an arrival.
    Arrival,
    /// A delay or a lease ended.
    Due,
    /// A while has passed.
    Refresh,
}

impl Cause {
    /// As metrics and spans have it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Arrival => "arrival",
            Self::Due => "due",
            Self::Refresh => "refresh",
        }
    }
}
