//! What scripts answer, read with care: another version may have written it.

use redis::Value;

use crate::{Error, ErrorKind, Result, Timestamp};

/// An answer that this version does not understand.
pub(super) fn garbled(what: &str) -> Error {
    let words = format!("redis: {what} cannot be read; was it written by another version?");
    Error::new(ErrorKind::Incompatible, words)
}

pub(super) fn list(value: Value) -> Result<Vec<Value>> {
    match value {
        Value::Array(values) => Ok(values),
        _ => Err(garbled("a list")),
    }
}

pub(super) fn bytes(value: Value) -> Result<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Ok(bytes),
        Value::SimpleString(text) => Ok(text.into_bytes()),
        Value::Int(number) => Ok(number.to_string().into_bytes()),
        _ => Err(garbled("a text")),
    }
}

pub(super) fn text(value: Value) -> Result<String> {
    String::from_utf8(bytes(value)?).map_err(|error| garbled("a text").caused_by(error))
}

pub(super) fn texts(value: Value) -> Result<Vec<String>> {
    list(value)?.into_iter().map(text).collect()
}

pub(super) fn int(value: &Value) -> Result<i64> {
    let text = match value {
        Value::Int(number) => return Ok(*number),
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(&**text),
        _ => None,
    };
    text.and_then(|text| text.parse().ok()).ok_or_else(|| garbled("a number"))
}

/// A count of attempts or the like.
pub(super) fn small(value: &Value) -> Result<u32> {
    u32::try_from(int(value)?).map_err(|error| garbled("a number").caused_by(error))
}

/// The moment that was stored.
pub(super) fn moment(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(millis).unwrap_or(Timestamp::MAX)
}
