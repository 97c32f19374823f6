//! Waiting for a state of another process, which cannot call us back.

use std::time::{Duration, Instant};

/// How long a state may take: far longer than it does, since tests share few cores.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks again and again until there is an answer; panics after [`PATIENCE`], saying what was
/// awaited.
pub fn wait_for<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    eventually(PATIENCE, look).unwrap_or_else(|| panic!("{what}: not within {PATIENCE:?}"))
}

/// The first answer within `patience`, if there is one.
#[allow(
    clippy::disallowed_methods,
    reason = "the one place that sleeps: on a thread of the test, between two looks from outside"
)]
pub fn eventually<T>(patience: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + patience;
    loop {
        if let Some(answer) = look() {
            return Some(answer);
        }
        if Instant::now() > end {
            return None;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_ends_the_wait_and_none_ends_it_late() {
        let mut looks = 0;
        let answer = eventually(PATIENCE, || {
            looks += 1;
            (looks == 3).then_some("here")
        });
        assert_eq!((answer, looks), (Some("here"), 3));
        assert_eq!(eventually(Duration::ZERO, || None::<()>), None);
    }
}
