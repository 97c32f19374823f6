//! The body of a request: read within its bounds of bytes, of time and of what all requests hold.

use std::time::Duration;

use axum::body::Body;
use axum::http::header::CONTENT_LENGTH;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use tokio::time::sleep_until;

use super::Visit;
use crate::openai::Refused;
use crate::refusal::Refusal;

/// How long a client may take to send its body.
const LONGEST: Duration = Duration::from_secs(60);

/// Bytes that a body has room for before they are there.
const AHEAD: usize = 64 * 1024;

impl Visit {
    /// The whole body, for which the request holds memory until that is released.
    ///
    /// # Errors
    /// When it is too large or comes too slowly, when all requests together hold as much as they may,
    /// or the client has gone.
    pub(crate) async fn read(&mut self, body: Body) -> Result<Bytes, Refusal> {
        let most = self.site.parts.limits.max_body;
        let said = self.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
        let said: usize = said.and_then(|value| value.parse().ok()).unwrap_or(0);
        if said > most {
            return Err(Refusal::too_large(most));
        }
        let closing = self.site.parts.closing.clone();
        let slow = sleep_until(self.begun + LONGEST);
        tokio::select! { biased;
            body = self.collect(body, said) => body,
            () = slow => {
                let words = format!("the body was not there within {} s", LONGEST.as_secs());
                Err(Refused::new(408, "body_too_slow", words).into())
            }
            () = closing.cancelled() => Err(Refusal::ending(&[])),
        }
    }

    async fn collect(&mut self, body: Body, said: usize) -> Result<Bytes, Refusal> {
        let most = self.site.parts.limits.max_body;
        let mut stream = body.into_data_stream();
        // Of what a client says that it will send it holds nothing: it may never send it.
        let mut body = BytesMut::with_capacity(said.min(AHEAD));
        while let Some(part) = stream.next().await {
            let part = part.map_err(|error| {
                Refused::new(400, "invalid_body", format!("the body broke off: {error}"))
            })?;
            let n_bytes = body.len() + part.len();
            if n_bytes > most {
                return Err(Refusal::too_large(most));
            }
            if !self.held.grow_to(n_bytes) {
                return Err(Refusal::no_room());
            }
            body.extend_from_slice(&part);
        }
        Ok(body.freeze())
    }
}
