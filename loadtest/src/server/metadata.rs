//! The rules of echo.proto that concern metadata: who answered, the fixed trailer, and `x-echo-*` coming back. Wraps
//! tonic's service at the HTTP level, because tonic offers handlers no trailers on success. Reads no message.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tower_service::Service;

use super::echo::{Deadline, Echo};
use super::{Failure, Link};
use crate::proto::echo_server::EchoServer;

const POD: HeaderName = HeaderName::from_static("x-sluice-pod");
const ENDPOINT: HeaderName = HeaderName::from_static("x-sluice-endpoint");
const TRAILER: HeaderName = HeaderName::from_static("x-sluice-trailer");
const GRPC_STATUS: &str = "grpc-status";

/// Answers one call.
pub(super) async fn answer(
    mut grpc: EchoServer<Echo>,
    link: Arc<Link>,
    mut request: Request<Incoming>,
) -> Result<Response<WithTrailers>, Infallible> {
    let is_grpc = |value: &HeaderValue| value.as_bytes().starts_with(b"application/grpc");
    if !request.headers().get(CONTENT_TYPE).is_some_and(is_grpc) {
        return Ok(not_grpc(&link, request.into_body()).await);
    }
    let headers = echoed(request.headers(), |name| !name.starts_with("x-echo-trailer-"));
    let mut trailers = echoed(request.headers(), |name| name.starts_with("x-echo-trailer-"));
    trailers.insert(TRAILER, HeaderValue::from_static("end"));
    if let Some(failure) = link.shared.failure() {
        return Ok(failed(&link, failure, request.into_body(), headers, trailers).await);
    }
    if let Some(deadline) = Deadline::of(request.headers()) {
        request.extensions_mut().insert(deadline);
    }

    let (mut head, body) = grpc.call(request).await?.into_parts();
    head.headers.insert(POD, link.pod.clone());
    head.headers.insert(ENDPOINT, link.endpoint.clone());
    head.headers.extend(headers);
    // Trailers-Only: the one header block is headers and trailers at once.
    let trailers = if head.headers.contains_key(GRPC_STATUS) {
        head.headers.extend(trailers);
        None
    } else {
        Some(trailers)
    };
    Ok(Response::from_parts(head, WithTrailers { body, trailers }))
}

/// Plain HTTP/2, as load generators and conformance suites speak it, is answered with a body when all of it has come.
async fn not_grpc(link: &Link, mut body: Incoming) -> Response<WithTrailers> {
    while let Some(Ok(_)) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {}
    let body = tonic::body::Body::new("this server speaks gRPC\n".to_owned());
    let mut response = Response::new(WithTrailers { body, trailers: None });
    response.headers_mut().insert(POD, link.pod.clone());
    response.headers_mut().insert(ENDPOINT, link.endpoint.clone());
    response
}

/// What a server that was told to fail answers, as soon as there is a message.
async fn failed(
    link: &Link,
    failure: Failure,
    mut body: Incoming,
    headers: HeaderMap,
    mut trailers: HeaderMap,
) -> Response<WithTrailers> {
    // A whole unary request is read by that, so that the answer's end is the call's and needs no reset.
    let _ = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
    trailers.insert(GRPC_STATUS, HeaderValue::from(failure.code.index()));
    trailers.insert("grpc-message", HeaderValue::from_static("told to fail by the control listener"));
    let mut response = Response::new(WithTrailers { body: tonic::body::Body::empty(), trailers: None });
    let head = response.headers_mut();
    head.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    head.insert(POD, link.pod.clone());
    head.insert(ENDPOINT, link.endpoint.clone());
    head.extend(headers);
    if failure.after_headers {
        response.body_mut().trailers = Some(trailers);
    } else {
        response.headers_mut().extend(trailers);
    }
    response
}

/// The `x-echo-*` fields whose names pass, values untouched, duplicates in order.
fn echoed(headers: &HeaderMap, passes: impl Fn(&str) -> bool) -> HeaderMap {
    let mut echoed = HeaderMap::new();
    for (name, value) in headers {
        if name.as_str().starts_with("x-echo-") && passes(name.as_str()) {
            echoed.append(name.clone(), value.clone());
        }
    }
    echoed
}

/// A response body with more trailers than tonic knows of, or with trailers alone.
pub(super) struct WithTrailers {
    body: tonic::body::Body,
    /// None once sent, or in a Trailers-Only response.
    trailers: Option<HeaderMap>,
}

impl Body for WithTrailers {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)?).map(Frame::into_trailers) {
            Some(Ok(mut own)) => {
                own.extend(self.trailers.take().unwrap_or_default());
                Some(Frame::trailers(own))
            }
            Some(Err(data)) => Some(data),
            None => self.trailers.take().map(Frame::trailers),
        };
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.trailers.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // An exact size would become a content-length, which a response that ends in trailers does not have.
        if self.trailers.is_some() { SizeHint::default() } else { self.body.size_hint() }
    }
}
