//! How a command ends, for whoever called it from a script.

use std::process::ExitCode;

use ebb_model::pull::PullError;
use ebb_telemetry::in_words;

/// How a command ended; its number is the exit code of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// All is well.
    Done = 0,
    /// A job failed or was cancelled, a promise was broken, or something went wrong that has no number of its own.
    Failed = 1,
    /// A flag or an input is wrong; trying again will not help.
    Usage = 2,
    /// What was asked for is not there.
    Missing = 66,
    /// The queue or the hub does not answer, or is full; a later try may succeed.
    Unavailable = 69,
    /// Time ran out.
    Timeout = 75,
    /// Somebody pressed Ctrl-C; the number that shells give it.
    Interrupted = 130,
}

/// What `--help` says about exit codes.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
   0  all is well
   1  a job failed or was cancelled, a promise was broken, or something else went wrong
   2  a flag or an input is wrong, the queue is not there, or the broker does not permit it
  66  what was asked for is not there
  69  the queue does not answer or is full, or no hub of models can be reached
  75  time ran out
 130  interrupted while waiting; the jobs stay";

impl Exit {
    /// What went wrong first.
    #[must_use]
    pub(crate) fn or(self, next: Self) -> Self {
        if self == Self::Done { next } else { self }
    }

    /// The end that an error means.
    #[must_use]
    pub(crate) fn of(error: &anyhow::Error) -> Self {
        for cause in error.chain() {
            if let Some(stop) = cause.downcast_ref::<Stop>() {
                return stop.exit;
            }
            if let Some(code) = ebb_queue::Error::exit_code(cause) {
                let exits = [Self::Usage, Self::Unavailable];
                return exits.into_iter().find(|exit| *exit as u8 == code).unwrap_or(Self::Failed);
            }
            if let Some(error) = cause.downcast_ref::<PullError>() {
                return match error {
                    PullError::Source(_) => Self::Usage,
                    PullError::NotFound(_) | PullError::Lacks { .. } => Self::Missing,
                    PullError::Unreachable { .. }
                    | PullError::Offline(_)
                    | PullError::Partial { .. } => Self::Unavailable,
                    _ => Self::Failed,
                };
            }
            // Whoever read our output has seen enough: `ebb dlq list | head`.
            if let Some(error) = cause.downcast_ref::<std::io::Error>()
                && error.kind() == std::io::ErrorKind::BrokenPipe
            {
                return Self::Done;
            }
        }
        Self::Failed
    }
}

/// The error of a service: what is no trouble with a queue, a device or a port was found wrong with
/// its flags before anything started.
pub(crate) fn of_service(error: anyhow::Error) -> anyhow::Error {
    let known = ebb_worker::Error::exit_code;
    if ebb_telemetry::trouble(&error, known).is_some() { error } else { usage(in_words(&error)) }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// An error with an exit code of its own.
#[derive(Debug, thiserror::Error)]
#[error("{words}")]
pub(crate) struct Stop {
    exit: Exit,
    words: String,
}

/// The error of a user who gave something wrong.
pub(crate) fn usage(words: impl Into<String>) -> anyhow::Error {
    Stop { exit: Exit::Usage, words: words.into() }.into()
}

/// The error of something that is not there.
pub(crate) fn missing(words: impl Into<String>) -> anyhow::Error {
    Stop { exit: Exit::Missing, words: words.into() }.into()
}

/// The error of somebody who does not answer.
pub(crate) fn unavailable(words: impl Into<String>) -> anyhow::Error {
    Stop { exit: Exit::Unavailable, words: words.into() }.into()
}

/// The error of somebody who pressed Ctrl-C.
pub(crate) fn interrupted(words: impl Into<String>) -> anyhow::Error {
    Stop { exit: Exit::Interrupted, words: words.into() }.into()
}

/// The error of waiting for too long.
pub(crate) fn timeout(words: impl Into<String>) -> anyhow::Error {
    Stop { exit: Exit::Timeout, words: words.into() }.into()
}

#[cfg(test)]
mod tests {
    use std::io;

    use anyhow::Context;
    use ebb_queue::ErrorKind;

    use super::*;

    #[test]
    fn an_error_keeps_its_exit_code_under_any_context() {
        let queue = |kind| anyhow::Error::new(ebb_queue::Error::new(kind, "words"));
        for (error, exit) in [
            (usage("words"), Exit::Usage),
            (missing("words"), Exit::Missing),
            (unavailable("words"), Exit::Unavailable),
            (timeout("words"), Exit::Timeout),
            (interrupted("words"), Exit::Interrupted),
            (queue(ErrorKind::Invalid), Exit::Usage),
            (queue(ErrorKind::Denied), Exit::Usage),
            (queue(ErrorKind::Unavailable), Exit::Unavailable),
            (queue(ErrorKind::Full), Exit::Unavailable),
            (queue(ErrorKind::Internal), Exit::Failed),
            (PullError::Source("x".into()).into(), Exit::Usage),
            (PullError::NotFound("a/b".into()).into(), Exit::Missing),
            (PullError::Offline("a/b".into()).into(), Exit::Unavailable),
            (std::io::Error::from(std::io::ErrorKind::BrokenPipe).into(), Exit::Done),
            (anyhow::anyhow!("words"), Exit::Failed),
        ] {
            let error = Err::<(), _>(error).context("more words").unwrap_err();
            assert_eq!(Exit::of(&error), exit, "{error:?}");
            // The services alone in a binary end with the same number.
            let alone = error.chain().find_map(ebb_queue::Error::exit_code);
            assert!(alone.is_none_or(|code| code == exit as u8), "{error:?}");
        }
    }

    #[test]
    fn a_service_that_does_not_start_says_whether_its_flags_were_wrong() {
        let io = |kind: io::ErrorKind| anyhow::Error::new(io::Error::from(kind));
        let queue = |kind| anyhow::Error::new(ebb_queue::Error::new(kind, "words"));
        for (error, exit) in [
            (anyhow::anyhow!("--model is missing"), Exit::Usage),
            (io(io::ErrorKind::NotFound), Exit::Usage),
            (io(io::ErrorKind::AddrInUse), Exit::Failed),
            (queue(ErrorKind::Denied), Exit::Usage),
            (queue(ErrorKind::Unavailable), Exit::Unavailable),
            (queue(ErrorKind::Internal), Exit::Failed),
            (ebb_worker::Error::Device("it burns".into()).into(), Exit::Failed),
        ] {
            let error = of_service(error.context("--flag"));
            assert_eq!(Exit::of(&error), exit, "{error:?}");
            assert!(in_words(&error).contains("--flag"), "{error:?}");
        }
    }

    #[test]
    fn the_help_names_each_code() {
        use Exit::{Failed, Interrupted, Missing, Timeout, Unavailable, Usage};
        for exit in [Failed, Usage, Missing, Unavailable, Timeout, Interrupted] {
            let code = (exit as u8).to_string();
            assert!(EXIT_CODES.lines().any(|line| line.trim_start().starts_with(&code)), "{code}");
        }
    }
}
