//! What a receipt's token says: which row, and which of its leases.

use std::sync::Arc;

/// One lease of one job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    /// The row of the job.
    pub(super) n: i64,
    /// What tells this lease from all others of the job.
    pub(super) lease: i64,
}

impl Mark {
    pub(super) fn token(self) -> Arc<str> {
        format!("{:x}.{:x}", self.n, self.lease).into()
    }

    /// `None` for a token that was never ours: a lease that nobody holds.
    pub(super) fn parse(token: &str) -> Option<Self> {
        let (n, lease) = token.split_once('.')?;
        let n = u64::from_str_radix(n, 16).ok()?.cast_signed();
        let lease = u64::from_str_radix(lease, 16).ok()?.cast_signed();
        Some(Self { n, lease })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_token_says_which_lease_it_marks(n: i64, lease: i64) {
            let mark = Mark { n, lease };
            prop_assert_eq!(Mark::parse(&mark.token()), Some(mark));
        }

        #[test]
        fn any_text_is_a_token_or_none(text: String) {
            if let Some(mark) = Mark::parse(&text) {
                prop_assert_eq!(Mark::parse(&mark.token()), Some(mark));
            }
        }
    }
}
