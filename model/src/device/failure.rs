//! What became of a forward on burn's devices, by the words of whoever failed: burn has no kinds of
//! its own.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::{InferError, InferErrorKind};

/// The error that these words tell of.
pub(crate) fn failure(words: &str) -> InferError {
    // The first line; below it come the callers.
    let first = |from: &str| words.lines().find(|line| line.contains(from)).map(str::to_owned);
    let no_memory = ["out of device memory", "can't allocate buffer", "Can't allocate"];
    if let Some(line) = no_memory.iter().find_map(|mark| first(mark)) {
        return InferError::OutOfMemory(line.trim().to_owned());
    }
    let lines: Vec<&str> = words.lines().map(str::trim).take(4).collect();
    InferError::Device(lines.join(" "))
}

/// Runs a forward. Where memory ran out that is an error, also of those of burn's backends that panic
/// then, and `free` is called; any other panic goes on.
pub(crate) fn guarded<T>(
    run: impl FnOnce() -> Result<T, InferError>,
    free: impl FnOnce(),
) -> Result<T, InferError> {
    let ran = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let failure = words(&*panic).map(failure);
        match failure.filter(|it| it.kind() == InferErrorKind::OutOfMemory) {
            Some(out_of_memory) => Err(out_of_memory),
            None => resume_unwind(panic),
        }
    });
    if ran.as_ref().is_err_and(|it| it.kind() == InferErrorKind::OutOfMemory) {
        free();
    }
    ran
}

fn words(panic: &(dyn Any + Send)) -> Option<&str> {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_out_of_memory_is_told_from_other_failures() {
        for (words, kind, says) in [
            (
                "An error happened during execution\nCaused by:\n  out of device memory allocating \
                 4096 bytes\n  at a::b",
                InferErrorKind::OutOfMemory,
                "out of device memory: out of device memory allocating 4096 bytes",
            ),
            (
                "can't allocate buffer of size: 99\nbacktrace",
                InferErrorKind::OutOfMemory,
                "buffer of size: 99",
            ),
            (
                "The device is poisoned\nCaused by:\n  an illegal memory access",
                InferErrorKind::Device,
                "device failed: The device is poisoned Caused by: an illegal memory access",
            ),
        ] {
            let error = failure(words);
            assert_eq!(error.kind(), kind, "{words}");
            assert!(error.to_string().ends_with(says), "{error}");
        }
    }
}
