//! Calls that have come in and are not read to their end: each client has room for so many.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::future::BoxFuture;
use http_body::{Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;
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
}

impl<S: NamedService> NamedService for Bounded<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Bounded<S>
where
    S: Service<http::Request<Body>, Error = Infallible> + Clone + Send + 'static,
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
            let room = peer.room_for_a_call().await;
            service.call(request.map(|body| Body::new(Unread { body, room }))).await
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
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
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
