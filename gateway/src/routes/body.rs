//! The body of a request: read within its bounds of bytes, of time and of what all requests hold.

use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_LENGTH, EXPECT};
use bytes::Bytes;
use futures::StreamExt;
use tokio::time::{sleep_until, timeout};

use super::Visit;
use crate::memory::Full;
use crate::openai::Refused;
use crate::refusal::Refusal;

/// How long a client may take to send its body.
const LONGEST: Duration = Duration::from_secs(60);

/// Bytes that a body has room for once the first of them is there, where it is said to have so many.
const AHEAD: usize = 64 * 1024;

/// How long a client that is refused may go on sending.
const HEARD: Duration = Duration::from_secs(1);

/// Reads what a client sends who is refused already, until it has done or for a while: a body that lies
/// unread when its connection is closed would make the kernels take the answer back. One that waits for a
/// word before it sends its body gets the answer in its place.
pub(super) async fn hear_out(headers: &HeaderMap, body: Body) {
    if !headers.contains_key(EXPECT) {
        drain(&mut body.into_data_stream()).await;
    }
}

async fn drain(body: &mut BodyDataStream) {
    let read = async { while let Some(Ok(_)) = body.next().await {} };
    // Who goes on for longer may not hear why he is refused.
    timeout(HEARD, read).await.ok();
}

/// Why there is no room for a body: there is later, since no gateway starts whose memory is below its
/// largest body, and what never fits is an answer.
fn of_body(full: Full) -> Full {
    if full == Full::Never { Full::All } else { full }
}

impl Visit {
    /// The whole body, for which the request holds memory until that is released.
    ///
    /// # Errors
    /// When it is too large or comes too slowly, when all requests together, or those of the key, hold as
    /// much as they may, or the client has gone.
    pub(crate) async fn read(&mut self, body: Body) -> Result<Bytes, Refusal> {
        let most = self.site.parts.limits.max_body;
        let said = self.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
        let said: usize = said.and_then(|value| value.parse().ok()).unwrap_or(0);
        if said > most {
            self.leave();
            hear_out(&self.headers, body).await;
            return Err(Refusal::too_large(most));
        }
        let closing = self.site.parts.closing.clone();
        let slow = sleep_until(self.begun + LONGEST);
        let mut body = body.into_data_stream();
        tokio::select! { biased;
            read = self.collect(&mut body, said) => {
                if read.is_err() {
                    // Who is refused is heard out, and takes no room from others meanwhile.
                    self.leave();
                    drain(&mut body).await;
                }
                read
            }
            () = slow => {
                let words = format!("the body was not there within {} s", LONGEST.as_secs());
                Err(Refused::new(408, "body_too_slow", words).into())
            }
            () = closing.cancelled() => Err(Refusal::ending(&[])),
        }
    }

    /// Gives its place and its memory back; only to be refused from now on.
    fn leave(&mut self) {
        self.held.release();
        self.permit.leave();
    }

    async fn collect(
        &mut self,
        stream: &mut BodyDataStream,
        said: usize,
    ) -> Result<Bytes, Refusal> {
        let most = self.site.parts.limits.max_body;
        let mut body = Vec::new();
        while let Some(part) = stream.next().await {
            let part = part.map_err(|error| {
                Refused::new(400, "invalid_body", format!("the body broke off: {error}"))
            })?;
            let n_bytes = body.len() + part.len();
            if n_bytes > most {
                return Err(Refusal::too_large(most));
            }
            if body.capacity() < n_bytes {
                let room = room(n_bytes, said).min(most);
                // Room ahead is counted as what is there, and done without where there is none.
                let room = match self.held.grow_to(room) {
                    Ok(()) => room,
                    Err(_) => {
                        self.held.grow_to(n_bytes).map_err(of_body)?;
                        n_bytes
                    }
                };
                body.reserve_exact(room - body.len());
            }
            body.extend_from_slice(&part);
        }
        Ok(body.into())
    }
}

/// Bytes to have room for where so many have come, of those that a client has said it will send.
fn room(n_bytes: usize, said: usize) -> usize {
    // It may never send them: a large body is believed once a quarter of it is there.
    if n_bytes <= said && (said <= AHEAD || n_bytes >= said / 4) {
        return said;
    }
    n_bytes.saturating_add(n_bytes / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_has_room_for_what_was_said_once_a_part_is_there() {
        for (n_bytes, said, expected) in [
            (1, 100, 100),
            (100, 100, 100),
            (1, AHEAD, AHEAD),
            (AHEAD, 8 * AHEAD, AHEAD + AHEAD / 4),
            (2 * AHEAD, 8 * AHEAD, 8 * AHEAD),
            // Without a length, or with a wrong one.
            (400, 0, 500),
            (400, 399, 500),
        ] {
            assert_eq!(room(n_bytes, said), expected, "{n_bytes} of {said}");
        }
    }
}
