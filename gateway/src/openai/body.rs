//! Writes the body of a job.

use bytes::Bytes;
use serde::Serialize;

use super::Route;
use super::fields::Fields;

/// A body that is being written: an object of JSON.
#[derive(Debug, Clone)]
pub(super) struct Body(Vec<u8>);

impl Body {
    /// With the fields that a worker reads as they are.
    pub(super) fn of(route: Route, fields: &Fields<'_>) -> Self {
        let mut body = Self(vec![b'{']);
        for name in route.passed() {
            if let Some(value) = fields.get(name) {
                body.put(name, value.get());
            }
        }
        body
    }

    /// Adds a field; its value is JSON already.
    pub(super) fn put(&mut self, name: &str, value: &str) {
        if self.0.len() > 1 {
            self.0.push(b',');
        }
        // The names are ours: none has what JSON would write otherwise.
        for part in ["\"", name, "\":", value] {
            self.0.extend_from_slice(part.as_bytes());
        }
    }

    pub(super) fn end(mut self) -> Bytes {
        self.0.push(b'}');
        self.0.into()
    }
}

/// Writes what has no keys but texts, and no number that JSON lacks.
pub(super) fn json(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).expect("all its keys are texts").into()
}
