//! From the words of the server to ours.

use redis::{ErrorKind as Kind, RedisError, ServerErrorKind};

use crate::{Error, ErrorKind};

/// What an error of the client or the server means, said for the server at `place`.
pub(super) fn told(error: RedisError, place: &str) -> Error {
    let (kind, words) = meaning(&error);
    Error::new(kind, format!("redis at {place}: {words}")).caused_by(error)
}

fn meaning(error: &RedisError) -> (ErrorKind, &'static str) {
    let code = error.code().unwrap_or_default();
    let detail = error.detail().unwrap_or_default();
    let says = |words: &str| detail.contains(words) || error.to_string().contains(words);
    match code {
        "OOM" => {
            return (
                ErrorKind::Full,
                "its memory is full; let workers drain the queue, or raise maxmemory",
            );
        }
        "WRONGPASS" | "NOAUTH" => {
            return (ErrorKind::Denied, "it does not know us; check user and password");
        }
        "NOPERM" => return (ErrorKind::Denied, "the user lacks a permission; see its ACL"),
        "WRONGTYPE" => {
            return (ErrorKind::Incompatible, "a key of the queue is of another type");
        }
        "BUSY" | "MISCONF" | "NOREPLICAS" => {
            return (ErrorKind::Unavailable, "it takes no commands for now");
        }
        _ => {}
    }
    match error.kind() {
        Kind::AuthenticationFailed => {
            (ErrorKind::Denied, "it does not know us; check user and password")
        }
        Kind::Server(
            ServerErrorKind::BusyLoading
            | ServerErrorKind::TryAgain
            | ServerErrorKind::ClusterDown
            | ServerErrorKind::MasterDown
            | ServerErrorKind::Ask
            | ServerErrorKind::Moved,
        ) => (ErrorKind::Unavailable, "it is not ready yet"),
        Kind::Server(ServerErrorKind::ReadOnly) => {
            (ErrorKind::Unavailable, "it is a replica; name the master")
        }
        _ if says("AUTH") && says("password") => {
            (ErrorKind::Denied, "it does not know us; check user and password")
        }
        _ if says("DB index is out of range") || says("SELECT is not allowed") => {
            (ErrorKind::Invalid, "it has no such database; check the number in the URL")
        }
        _ if says("can't run this command") || says("can't access") || says("no permissions") => {
            (ErrorKind::Denied, "the user lacks a permission; see its ACL")
        }
        Kind::Io => (ErrorKind::Unavailable, "the connection failed"),
        Kind::InvalidClientConfig => (ErrorKind::Invalid, "the connection cannot be set up"),
        _ => (ErrorKind::Internal, "it refused a command"),
    }
}

/// Whether the server asks to come again: nothing was done.
pub(super) fn is_for_later(error: &RedisError) -> bool {
    matches!(
        error.kind(),
        Kind::Server(
            ServerErrorKind::BusyLoading
                | ServerErrorKind::TryAgain
                | ServerErrorKind::ClusterDown
                | ServerErrorKind::MasterDown
        )
    ) || error.code() == Some("BUSY")
}

/// Whether another node of the cluster has the key, or none has all the keys of a command.
pub(super) fn is_elsewhere(error: &RedisError) -> bool {
    is_moving(error)
        || matches!(error.kind(), Kind::Server(ServerErrorKind::Moved | ServerErrorKind::CrossSlot))
}

/// Whether the key is on its way from this node of the cluster to another: soon it has arrived, or all of
/// its slot has, or none.
pub(super) fn is_moving(error: &RedisError) -> bool {
    error.kind() == Kind::Server(ServerErrorKind::Ask)
}

/// Whether the connection is of no use any more, or leads to the wrong server.
pub(super) fn is_broken(error: &RedisError) -> bool {
    error.is_io_error()
        || error.is_unrecoverable_error()
        || matches!(
            error.kind(),
            Kind::Server(ServerErrorKind::Moved | ServerErrorKind::Ask | ServerErrorKind::ReadOnly)
        )
}

/// Whether the server does not know the script yet.
pub(super) fn is_unknown_script(error: &RedisError) -> bool {
    error.kind() == Kind::Server(ServerErrorKind::NoScript)
}
