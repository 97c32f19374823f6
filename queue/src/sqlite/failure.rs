//! What SQLite says, in the words of the seam.

use std::path::Path;

use rusqlite::ErrorCode;

use crate::{Error, ErrorKind};

/// Why a command was not carried out.
#[derive(Debug)]
pub(super) enum Failure {
    /// SQLite could not.
    Sql(rusqlite::Error),
    /// We would not.
    Refused(Error),
}

/// What commands return.
pub(super) type Outcome<T> = Result<T, Failure>;

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

impl Failure {
    /// Stored text or numbers that this version would not have stored.
    pub(super) fn garbled(
        what: &str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        let words = format!("stored {what} cannot be read");
        Self::Refused(Error::new(ErrorKind::Incompatible, words).caused_by(source))
    }

    /// What is wrong with one row, which says nothing of those beside it; any other failure as it was.
    pub(super) fn of_one_row(self) -> Outcome<Error> {
        use rusqlite::Error::{
            FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType, Utf8Error,
        };
        match self {
            Self::Refused(error) => Ok(error),
            Self::Sql(
                error @ (FromSqlConversionFailure(..)
                | IntegralValueOutOfRange(..)
                | InvalidColumnType(..)
                | Utf8Error(..)),
            ) => {
                let words = "a stored job cannot be read";
                Ok(Error::new(ErrorKind::Incompatible, words).caused_by(error))
            }
            Self::Sql(error) => Err(Self::Sql(error)),
        }
    }

    /// The error for the caller; names the file.
    pub(super) fn into_error(self, path: &Path) -> Error {
        match self {
            Self::Refused(error) => error,
            Self::Sql(error) => {
                let (kind, words) = explain(&error);
                Error::new(kind, format!("queue file {}: {words}", path.display())).caused_by(error)
            }
        }
    }
}

fn explain(error: &rusqlite::Error) -> (ErrorKind, &'static str) {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            (ErrorKind::Unavailable, "another process has kept it locked for too long")
        }
        Some(ErrorCode::DiskFull) => (ErrorKind::Unavailable, "the disk is full; make room"),
        Some(ErrorCode::CannotOpen) => {
            (ErrorKind::Unavailable, "it cannot be opened; check that its folder may be written")
        }
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
            (ErrorKind::Unavailable, "it cannot be written; check the rights of file and folder")
        }
        Some(ErrorCode::SystemIoFailure) => (ErrorKind::Unavailable, "the disk failed"),
        Some(ErrorCode::NotADatabase) => {
            (ErrorKind::Incompatible, "it is not a database; use another file")
        }
        Some(ErrorCode::DatabaseCorrupt) => {
            (ErrorKind::Incompatible, "it is damaged; restore it from a copy")
        }
        Some(ErrorCode::TooBig) => (ErrorKind::Invalid, "a body is too large; store it elsewhere"),
        // It has no code of its own.
        _ if error.to_string().starts_with("no such table") => {
            (ErrorKind::Incompatible, "a table of it is gone; restore it from a copy")
        }
        _ => (ErrorKind::Internal, "unexpected failure"),
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;

    #[test]
    fn a_file_without_a_table_is_told_apart_from_what_nobody_expects() {
        let db = Connection::open_in_memory().unwrap();
        db.execute("CREATE TABLE jobs (id TEXT)", ()).unwrap();
        let kind = |sql| explain(&db.execute(sql, ()).unwrap_err()).0;
        assert_eq!(kind("DELETE FROM results"), ErrorKind::Incompatible);
        assert_eq!(kind("DELETE FROM jobs WHERE number = 1"), ErrorKind::Internal);
    }
}
