//! How a service ends: the words on standard error, and the exit code.

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

/// A flag, or what it names, is wrong; trying again will not help.
const USAGE: u8 = 2;

/// Anything that has no number of its own.
const FAILED: u8 = 1;

/// Tells what ended a service, if it did not end well, and turns it into an exit code.
///
/// `known` has the codes of the errors of other crates. What is neither one of those nor trouble
/// with the system was found wrong with the flags before anything started.
pub fn exit_code(
    ended: anyhow::Result<()>,
    known: impl Fn(&(dyn Error + 'static)) -> Option<u8>,
) -> ExitCode {
    let Err(error) = ended else { return ExitCode::SUCCESS };
    // A line that nobody can read is not worth an error.
    drop(writeln!(io::stderr().lock(), "error: {}", in_words(&error)));
    trouble(&error, known).unwrap_or(USAGE).into()
}

/// The exit code of trouble with the world; none where a flag was wrong.
pub fn trouble(
    error: &anyhow::Error,
    known: impl Fn(&(dyn Error + 'static)) -> Option<u8>,
) -> Option<u8> {
    let of_system = |cause: &(dyn Error + 'static)| {
        let error = cause.downcast_ref::<io::Error>()?;
        (!is_of_a_path(error.kind())).then_some(FAILED)
    };
    error.chain().find_map(|cause| known(cause).or_else(|| of_system(cause)))
}

/// Whether somebody named a file that cannot be read.
fn is_of_a_path(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{
        InvalidData, InvalidInput, IsADirectory, NotADirectory, NotFound, PermissionDenied,
    };
    matches!(
        kind,
        NotFound | PermissionDenied | IsADirectory | NotADirectory | InvalidData | InvalidInput
    )
}

/// An error and what caused it, each said once: some causes repeat their own.
#[must_use]
pub fn in_words(error: &anyhow::Error) -> String {
    let mut words = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !words.contains(&cause) {
            words.push_str(if words.is_empty() { "" } else { ": " });
            words.push_str(&cause);
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("down")]
    struct Down;

    #[test]
    fn what_is_no_trouble_was_wrong_with_the_flags() {
        let known = |cause: &(dyn Error + 'static)| cause.is::<Down>().then_some(69);
        let io = |kind: io::ErrorKind| anyhow::Error::new(io::Error::from(kind));
        for (error, code) in [
            (anyhow::anyhow!("--model is missing"), 2),
            (io(io::ErrorKind::NotFound), 2),
            (io(io::ErrorKind::AddrInUse), 1),
            (anyhow::Error::new(Down), 69),
        ] {
            let words = format!("{error:?}");
            let ended = exit_code(Err(error.context("--flag")), known);
            assert_eq!(ended, ExitCode::from(code), "{words}");
        }
        assert_eq!(exit_code(Ok(()), known), ExitCode::SUCCESS);
    }

    #[test]
    fn a_cause_that_was_told_is_not_told_again() {
        let error = anyhow::anyhow!("refused").context("cannot reach it: refused");
        assert_eq!(
            in_words(&error.context("cannot open")),
            "cannot open: cannot reach it: refused"
        );
    }
}
