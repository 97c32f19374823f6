//! Files that the process may have open: each connection is one.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::warn;

/// Beside the connections of clients: those of brokers and probes, and files that are read again.
const OTHERS: u64 = 256;

/// Lets the process have as many files open as so many connections need, as far as it may by itself:
/// shells and service managers begin with fewer, for programs that have never heard of more.
pub(crate) fn make_room(n_connections: usize) {
    let wanted = (n_connections as u64).saturating_add(OTHERS);
    match raise(wanted) {
        Ok(most) if most < wanted => warn!(
            most,
            wanted,
            "fewer files may be open than --max-connections needs; raise the limit (ulimit -n)"
        ),
        Ok(_) => {}
        Err(error) => warn!(%error, wanted, "the limit of open files stays as it is"),
    }
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
