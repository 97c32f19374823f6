//! What the client's errors mean, and what to do about them.

use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::uri::AMQPUri;

use crate::{Error, ErrorKind};

/// Why a server did not let us in.
pub(super) fn connect(error: &lapin::Error, uri: &AMQPUri, server: &str) -> Error {
    let kind = amqp_kind(error);
    let (kind, words) = match kind {
        Some(AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED)) => {
            let user = &uri.authority.userinfo.username;
            let remedy = "check the password in the URL or in password_file";
            (ErrorKind::Denied, format!("RabbitMQ at {server} refuses user {user:?}; {remedy}"))
        }
        Some(AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED)) => {
            let vhost = &uri.vhost;
            let remedy = "create it with rabbitmqctl add_vhost, give the user permissions on it, or \
                          name another one in the path of the URL";
            let words = format!("RabbitMQ at {server} does not let us use vhost {vhost:?}");
            (ErrorKind::Denied, format!("{words}; {remedy}"))
        }
        _ => (ErrorKind::Unavailable, format!("cannot connect to RabbitMQ at {server}")),
    };
    Error::new(kind, words).caused_by(error.clone())
}

/// Why something did not work on a connection that stood.
pub(super) fn op(error: &lapin::Error, what: &str) -> Error {
    let (kind, words) = match amqp_kind(error) {
        Some(AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED)) => {
            let words =
                format!("RabbitMQ does not permit us to {what}; see rabbitmqctl set_permissions");
            (ErrorKind::Denied, words)
        }
        _ => (ErrorKind::Unavailable, format!("RabbitMQ failed to {what}")),
    };
    Error::new(kind, words).caused_by(error.clone())
}

/// Why a part of a queue cannot be had; which part, the broker says.
pub(super) fn topology(error: &lapin::Error, queue: &str) -> Error {
    let said = said(error);
    let (kind, words) = match amqp_kind(error) {
        Some(AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND)) => {
            let remedy = "make it by `ebb queue init`";
            let words = format!("the queue {queue:?} is missing on RabbitMQ ({said}); {remedy}");
            return Error::new(ErrorKind::Invalid, words).of_no_queue();
        }
        Some(AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED)) => {
            let remedy = "delete that part once it is empty, or choose another queue name";
            let words =
                format!("a part of the queue {queue:?} is there with other settings: {said}");
            (ErrorKind::Incompatible, format!("{words}; {remedy}"))
        }
        _ => return op(error, &format!("declare the queue {queue:?}")),
    };
    Error::new(kind, words)
}

/// The queue or exchange that was asked for is not there.
pub(super) fn is_missing(error: &lapin::Error) -> bool {
    matches!(amqp_kind(error), Some(AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND)))
}

/// The same of an error that was told in our words.
pub(super) fn is_of_missing(error: &Error) -> bool {
    let source = std::error::Error::source(error);
    source.and_then(|source| source.downcast_ref()).is_some_and(is_missing)
}

/// The broker took too long.
pub(super) fn late(what: &str) -> Error {
    Error::new(ErrorKind::Unavailable, format!("RabbitMQ did not {what} in time"))
}

/// The connection is down.
pub(super) fn down() -> Error {
    Error::new(ErrorKind::Unavailable, "there is no connection to RabbitMQ at the moment")
}

fn amqp_kind(error: &lapin::Error) -> Option<AMQPErrorKind> {
    match error.kind() {
        lapin::ErrorKind::ProtocolError(error) => Some(error.kind().clone()),
        _ => None,
    }
}

fn said(error: &lapin::Error) -> String {
    match error.kind() {
        lapin::ErrorKind::ProtocolError(error) => error.get_message().as_str().to_owned(),
        _ => error.to_string(),
    }
}
