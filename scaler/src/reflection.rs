//! Reflection of one question: the first one of a call is answered, and its answer ends the call.
//!
//! Clients that have more to ask begin another call, as they do when a server that they ask is replaced.
//! A call that goes on would be read only as fast as its answers are, that is never by some.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use http_body::Body as _;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;

use crate::limits::MAX_MESSAGE;

/// A service that is given the first message of each call, and nothing after it.
#[derive(Debug, Clone)]
pub(crate) struct First<S>(pub(crate) S);

/// What is before each message: whether it is compressed, and how many bytes it has.
const HEAD: usize = 5;

impl<S: NamedService> NamedService for First<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for First<S>
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
            let (head, body) = request.into_parts();
            match first(body).await {
                Ok(message) => {
                    let body = Body::new(axum::body::Body::from(message));
                    service.call(http::Request::from_parts(head, body)).await
                }
                Err(status) => Ok(status.into_http()),
            }
        })
    }
}

/// The first message of a call with what is before it; all there is where it ends sooner.
async fn first(mut body: Body) -> Result<Vec<u8>, Status> {
    let mut read = Vec::new();
    loop {
        if let Some((head, rest)) = read.split_first_chunk::<HEAD>() {
            let [_, length @ ..] = *head;
            let length = u32::from_be_bytes(length) as usize;
            if length > MAX_MESSAGE {
                return Err(Status::out_of_range(format!(
                    "a message has {MAX_MESSAGE} bytes at most"
                )));
            }
            if rest.len() >= length {
                read.truncate(HEAD + length);
                return Ok(read);
            }
        }
        match poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            Some(frame) => read.extend(frame?.into_data().unwrap_or_default()),
            None => return Ok(read),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Body, Status, first};

    async fn told(body: &[u8]) -> Result<Vec<u8>, Status> {
        first(Body::new(axum::body::Body::from(body.to_vec()))).await
    }

    #[tokio::test]
    async fn a_message_is_read_to_its_end_and_no_further() {
        let (whole, more) = ([0, 0, 0, 0, 2, 7, 8], [0, 0, 0, 0, 1, 9]);
        assert_eq!(told(&[&whole[..], &more[..]].concat()).await.unwrap(), whole);
        assert_eq!(told(&whole).await.unwrap(), whole);
        // What is wrong with these the service says.
        assert_eq!(told(&whole[..6]).await.unwrap(), whole[..6]);
        assert_eq!(told(&whole[..3]).await.unwrap(), whole[..3]);
        assert!(told(&[]).await.unwrap().is_empty());
        let told = told(&[0, 0, 0, 0x80, 1]).await.unwrap_err();
        assert!(told.message().contains("32768 bytes at most"), "{told}");
    }
}
