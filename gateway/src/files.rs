//! Files that the process may have open: each connection is one.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::warn;

use crate::connections::REFUSED;

/// Beside the connections of clients: those of brokers and probes, files that are read again, and
/// clients that are refused.
const OTHERS: u64 = 256 + REFUSED as u64;

/// Lets the process have as many files open as so many connections need, as far as it may by itself:
/// shells and service managers begin with fewer, for programs that have never heard of more. Says how
/// many connections there is room for.
pub(crate) fn make_room(n_connections: usize) -> usize {
    let wanted = wanted(n_connections);
    match raise(wanted) {
        Ok(most) if most < wanted => {
            let fitting = fitting(most).min(n_connections);
            warn!(
                most,
                wanted,
                fitting,
                "fewer files may be open than --max-connections needs, so that fewer connections are \
                 taken; raise the limit (ulimit -n)"
            );
            fitting
        }
        Ok(_) => n_connections,
        Err(error) => {
            warn!(%error, wanted, "the limit of open files stays as it is");
            n_connections
        }
    }
}

fn wanted(n_connections: usize) -> u64 {
    (n_connections as u64).saturating_add(OTHERS)
}

/// How many connections there may be where so many files may be open. One is taken in any case.
fn fitting(most: u64) -> usize {
    usize::try_from(most.saturating_sub(OTHERS)).unwrap_or(usize::MAX).max(1)
}

/// Raises the limit to this, or as far as it goes; says what it is then.
fn raise(wanted: u64) -> nix::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft >= wanted {
        return Ok(soft);
    }
    let most = wanted.min(hard);
    setrlimit(Resource::RLIMIT_NOFILE, most, hard)?;
    Ok(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_no_more_connections_than_there_may_be_files() {
        assert_eq!(fitting(wanted(8192)), 8192);
        assert_eq!(fitting(1024), 512);
        assert_eq!((fitting(100), fitting(0)), (1, 1));
        assert_eq!(make_room(1), 1, "a few are within any limit");
    }
}
