//! Writes the body of a job.

use std::borrow::Cow;

use bytes::Bytes;
use serde::Serialize;

use super::fields::Fields;
use super::{Bounds, Refused, Route};

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

    /// As many bodies as there are texts times answers, each with a text by this name; `more` adds
    /// what the answer of a number has of its own.
    ///
    /// # Errors
    /// When all of them would have far more bytes than the request may: what is the same of all jobs is
    /// there in each.
    pub(super) fn each(
        self,
        (name, texts): (&str, &[Cow<'_, str>]),
        n_of_each: usize,
        bounds: &Bounds,
        more: impl Fn(&mut Self, u64),
    ) -> Result<Vec<Bytes>, Refused> {
        let n_texts: usize = texts.iter().map(|text| text.len()).sum();
        let n_jobs = texts.len().saturating_mul(n_of_each);
        let n_bytes = n_jobs.saturating_mul(self.0.len());
        let n_bytes = n_bytes.saturating_add(n_texts.saturating_mul(n_of_each));
        let most = bounds.max_body.saturating_mul(2);
        if n_bytes > most {
            let message = format!(
                "the {n_jobs} jobs of this request have {n_bytes} bytes; {most} are taken: ask for \
                 less at once"
            );
            return Err(Refused::new(413, "jobs_too_large", message));
        }
        let mut bodies = Vec::with_capacity(n_jobs);
        for text in texts {
            for answer in 0..n_of_each as u64 {
                let mut body = self.clone();
                more(&mut body, answer);
                body.put(name, text);
                bodies.push(body.end());
            }
        }
        Ok(bodies)
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
