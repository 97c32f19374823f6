//! Calls that have come in and are not read to their end: each client has room for so many, and each of
//! them has so much time.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::future::BoxFuture;
use http_body::{Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Bytes, Service, http};
use tonic::server::NamedService;

use crate::connection::Peer;

/// A service that begins with a call once its client has room for it, which the call holds until it
/// is read or given up.
#[derive(Debug, Clone)]
pub(crate) struct Bounded<S>(pub(crate) S);

/// The body of a call, and the room that it holds.
struct Unread {
    body: Body,
    room: Option<OwnedSemaphorePermit>,
    begun: Instant,
    /// Set only where it is waited for: most calls come whole.
    late: Option<Pin<Box<Sleep>>>,
}

/// Until a call is read to its end: what was not even sent by then never will be.
pub(crate) const READ: Duration = Duration::from_secs(5);

impl<S: NamedService> NamedService for Bounded<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Bounded<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    type Response = S::Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<S::Response, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let another = self.0.clone();
        // The one that is ready, and not its copy.
        let mut service = std::mem::replace(&mut self.0, another);
        Box::pin(async move {
            let Some(peer) = request.extensions().get::<Peer>().cloned() else {
                return service.call(request).await;
            };
            let room = match peer.room_for_a_call().await {
                Ok(room) => Some(room),
                Err(full) => {
                    return Ok(Status::resource_exhausted(full.to_string()).into_http());
                }
            };
            let unread = |body| Unread { body, room, begun: Instant::now(), late: None };
            service.call(request.map(|body| Body::new(unread(body)))).await
        })
    }
}

impl http_body::Body for Unread {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
            let end = self.begun + READ;
            let late = self.late.get_or_insert_with(|| Box::pin(sleep_until(end)));
            ready!(late.as_mut().poll(cx));
            self.room = None;
            return Poll::Ready(Some(Err(Status::deadline_exceeded(
                "the call was not sent whole",
            ))));
        };
        if frame.is_none() || self.body.is_end_stream() {
            self.room = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
