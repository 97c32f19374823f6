//! Calls that are not done: each client has room for so many that are not read to their end, each of which
//! has so much time, and for so many whose answers it has not read.

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

use crate::connection::{Full, Peer};

/// A service that begins with a call once its client has room for it, which the call holds until it
/// is read or given up; and other room, which it holds until its answer is read.
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

/// The body of an answer, and the room that it holds. Where the client reads nothing of it nobody asks
/// for it, so it cannot end by itself.
struct Answer {
    body: Body,
    _room: OwnedSemaphorePermit,
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
            let (room, until_answered) = match rooms(&peer, is_stream(&request)).await {
                Ok(rooms) => rooms,
                Err(full) => {
                    return Ok(Status::resource_exhausted(full.to_string()).into_http());
                }
            };
            let unread =
                |body| Unread { body, room: Some(room), begun: Instant::now(), late: None };
            let answer = service.call(request.map(|body| Body::new(unread(body)))).await?;
            Ok(match until_answered {
                Some(room) => answer.map(|body| Body::new(Answer { body, _room: room })),
                None => answer,
            })
        })
    }
}

/// Room for a call until it is read, and until its answer is.
async fn rooms(
    peer: &Peer,
    is_stream: bool,
) -> Result<(OwnedSemaphorePermit, Option<OwnedSemaphorePermit>), Full> {
    let until_answered = (!is_stream).then(|| peer.room_for_an_answer()).transpose()?;
    Ok((peer.room_for_a_call().await?, until_answered))
}

/// Whether it is one of KEDA's streams, which have room of their own.
fn is_stream(request: &http::Request<Body>) -> bool {
    request.uri().path().rsplit('/').next().is_some_and(|method| method.starts_with("Stream"))
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

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
