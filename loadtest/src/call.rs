//! One call, straight over HTTP/2: request out, messages checked, status read wherever it comes (trailers,
//! Trailers-Only, a reset). What provably never reached a server goes out again, and nothing else does.

use std::future::poll_fn;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::header::HeaderName;
use http::{HeaderMap, HeaderValue, Method, Request, Version};
use prost::Message;

use crate::args::Kind;
use crate::code::Code;
use crate::connection::{Lease, NoConnection, Slot};
use crate::proto::{EchoRequest, EchoResponse};

const ENDPOINT: HeaderName = HeaderName::from_static("x-sluice-endpoint");
const POD: HeaderName = HeaderName::from_static("x-sluice-pod");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// A length prefix: one flag byte and four of length.
const PREFIX: usize = 5;

/// What each call of a run is; sizes are of payloads in bytes.
pub(crate) struct CallShape {
    pub(crate) kind: Kind,
    /// Of the streaming kinds.
    pub(crate) messages: u32,
    pub(crate) size: u32,
    /// 0: as the request's.
    pub(crate) response_size: u32,
    /// The server waits so long before each answer.
    pub(crate) delay: Duration,
    /// Zero: none.
    pub(crate) timeout: Duration,
}

/// What every call of a run sends and expects.
pub(crate) struct CallSpec {
    kind: Kind,
    /// Messages up and down.
    up: u32,
    down: u32,
    request: Request<()>,
    /// The request message with its prefix: encoded once, shared by all calls.
    message: Bytes,
    expected: Expected,
}

/// The payload that each answer must have.
enum Expected {
    Echo(Bytes),
    Size(usize),
}

/// How an attempt ended.
enum Attempt {
    /// The call is over.
    Ended(Answer),
    /// It never left: the connection takes no more calls. May go on another one.
    NotStarted,
    /// The server said that it has not processed it (REFUSED_STREAM, above GOAWAY's last id). May be sent once more.
    Unprocessed { connection_ends: bool },
}

/// Told who answers when a response begins.
pub(crate) type OnHead<'a> = &'a mut (dyn FnMut(&Answer) + Send);

/// The end of a call, and who answered, as far as it said so.
pub(crate) struct Answer {
    pub(crate) code: Code,
    pub(crate) endpoint: Option<HeaderValue>,
    pub(crate) pod: Option<HeaderValue>,
}

impl Answer {
    /// An end that no server had a part in.
    pub(crate) fn local(code: Code) -> Self {
        Self { code, endpoint: None, pod: None }
    }
}

impl CallSpec {
    pub(crate) fn new(target: &str, shape: &CallShape) -> anyhow::Result<Self> {
        let &CallShape { kind, messages, size, response_size, delay, timeout } = shape;
        let (method, up, down) = match kind {
            Kind::Unary => ("Unary", 1, 1),
            Kind::ClientStream => ("ClientStream", messages, 1),
            Kind::ServerStream => ("ServerStream", 1, messages),
            Kind::Bidi => ("BidiStream", messages, messages),
        };
        let payload: Bytes = (0..size).map(|i| i as u8).collect::<Vec<_>>().into();
        let expected = match response_size {
            0 => Expected::Echo(payload.clone()),
            size => Expected::Size(size as usize),
        };
        let response_count = if kind == Kind::ServerStream { down } else { 0 };
        let delay_ms = u32::try_from(delay.as_millis())?;
        let message = EchoRequest { payload, response_size, response_count, delay_ms, ..Default::default() };
        let mut framed = BytesMut::zeroed(PREFIX);
        message.encode(&mut framed)?;
        let length = u32::try_from(framed.len() - PREFIX)?;
        framed[1..PREFIX].copy_from_slice(&length.to_be_bytes());

        let mut request = Request::builder()
            .method(Method::POST)
            .version(Version::HTTP_2)
            .uri(format!("http://{target}/sluice.loadtest.v1.Echo/{method}"))
            .header("te", "trailers")
            .header("content-type", "application/grpc")
            .header("user-agent", concat!("sluice-loadtest/", env!("CARGO_PKG_VERSION")));
        if !timeout.is_zero() {
            request = request.header("grpc-timeout", grpc_timeout(timeout));
        }
        Ok(Self { kind, up, down, request: request.body(())?, message: framed.freeze(), expected })
    }

    /// Makes one call to its end. As gRPC clients do: what never left goes out again on the next connection, what the
    /// server says it has not processed goes out once more. None: it never left, and there is no other connection.
    /// `resent` counts the repetitions.
    pub(crate) async fn complete(
        &self,
        slot: &Slot,
        lease: &mut Lease,
        on_head: OnHead<'_>,
        mut resent: impl FnMut(),
    ) -> Option<Answer> {
        let mut processed_never = false;
        loop {
            let (left, connection_ends) = match self.attempt(&mut lease.sender, on_head).await {
                Attempt::Ended(answer) => return Some(answer),
                Attempt::NotStarted => (false, true),
                Attempt::Unprocessed { .. } if processed_never => return Some(Answer::local(Code::UNAVAILABLE)),
                Attempt::Unprocessed { connection_ends } => (true, connection_ends),
            };
            processed_never |= left;
            if connection_ends {
                match slot.successor(lease).await {
                    Ok(successor) => *lease = successor,
                    Err(NoConnection::Gone) if !left => return None,
                    Err(_) => return Some(Answer::local(Code::UNAVAILABLE)),
                }
            }
            resent();
        }
    }

    /// Makes the call once; `on_head` sees who answers as soon as the response begins.
    async fn attempt(&self, sender: &mut SendRequest<Bytes>, on_head: OnHead<'_>) -> Attempt {
        if poll_fn(|cx| sender.poll_ready(cx)).await.is_err() {
            return Attempt::NotStarted;
        }
        let Ok((response, body)) = sender.send_request(self.request.clone(), false) else {
            return Attempt::NotStarted;
        };
        // Ready again means that the stream is open; until then it waits for MAX_CONCURRENT_STREAMS and has not left.
        if poll_fn(|cx| sender.poll_ready(cx)).await.is_err() {
            return Attempt::NotStarted;
        }
        let mut answer = Answer::local(Code::OK);
        match self.exchange(response, body, &mut answer, on_head).await {
            Ok(code) => {
                answer.code = code;
                Attempt::Ended(answer)
            }
            Err(error) if error.is_remote() && error.is_go_away() => Attempt::Unprocessed { connection_ends: true },
            Err(error) if error.is_remote() && error.reason() == Some(Reason::REFUSED_STREAM) => {
                Attempt::Unprocessed { connection_ends: false }
            }
            Err(error) => {
                answer.code = Code::from_h2(&error);
                Attempt::Ended(answer)
            }
        }
    }

    async fn exchange(
        &self,
        mut response: ResponseFuture,
        mut body: SendStream<Bytes>,
        answer: &mut Answer,
        on_head: OnHead<'_>,
    ) -> Result<Code, h2::Error> {
        match self.kind {
            // A failed send shows as the end of the response.
            Kind::Unary | Kind::ServerStream => {
                let _ = body.send_data(self.message.clone(), true);
            }
            Kind::ClientStream => {
                // A server may answer before it has heard everything.
                tokio::select! {
                    biased;
                    early = &mut response => return self.receive(early?, answer, on_head).await,
                    () = self.send_all(&mut body) => {}
                }
            }
            Kind::Bidi => return self.ping_pong(response, body, answer, on_head).await,
        }
        self.receive(response.await?, answer, on_head).await
    }

    async fn send_all(&self, body: &mut SendStream<Bytes>) {
        for left in (0..self.up).rev() {
            body.reserve_capacity(self.message.len());
            while body.capacity() == 0 {
                match poll_fn(|cx| body.poll_capacity(cx)).await {
                    Some(Ok(_)) => {}
                    // Over; the response says why.
                    _ => return std::future::pending().await,
                }
            }
            if body.send_data(self.message.clone(), left == 0).is_err() {
                return std::future::pending().await;
            }
        }
    }

    async fn ping_pong(
        &self,
        response: ResponseFuture,
        mut body: SendStream<Bytes>,
        answer: &mut Answer,
        on_head: OnHead<'_>,
    ) -> Result<Code, h2::Error> {
        let _ = body.send_data(self.message.clone(), false);
        let mut messages = Messages::of(response.await?, answer, on_head);
        for left in (0..self.up).rev() {
            match messages.next().await? {
                Some(message) if self.is_expected(&message) => {}
                Some(_) => return Ok(Code::DATA_LOSS),
                None => return messages.status(left + 1).await,
            }
            let next = if left == 0 { Bytes::new() } else { self.message.clone() };
            let _ = body.send_data(next, left == 0);
        }
        match messages.next().await? {
            Some(_) => Ok(Code::DATA_LOSS),
            None => messages.status(0).await,
        }
    }

    async fn receive(
        &self,
        response: http::Response<RecvStream>,
        answer: &mut Answer,
        on_head: OnHead<'_>,
    ) -> Result<Code, h2::Error> {
        let mut messages = Messages::of(response, answer, on_head);
        let mut left = self.down;
        while let Some(message) = messages.next().await? {
            if left == 0 || !self.is_expected(&message) {
                return Ok(Code::DATA_LOSS);
            }
            left -= 1;
        }
        messages.status(left).await
    }

    fn is_expected(&self, message: &Bytes) -> bool {
        let Ok(message) = EchoResponse::decode(message.clone()) else { return false };
        match &self.expected {
            Expected::Echo(payload) => message.payload == payload,
            Expected::Size(size) => message.payload.len() == *size,
        }
    }
}

/// The messages of a response, cut out of DATA frames.
struct Messages {
    headers: HeaderMap,
    status: http::StatusCode,
    body: RecvStream,
    buffer: Bytes,
}

impl Messages {
    fn of(response: http::Response<RecvStream>, answer: &mut Answer, on_head: OnHead<'_>) -> Self {
        let (head, body) = response.into_parts();
        answer.endpoint = head.headers.get(ENDPOINT).cloned();
        answer.pod = head.headers.get(POD).cloned();
        on_head(answer);
        Self { headers: head.headers, status: head.status, body, buffer: Bytes::new() }
    }

    /// The next message without its prefix; none after the last.
    async fn next(&mut self) -> Result<Option<Bytes>, h2::Error> {
        loop {
            if let Some(message) = cut(&mut self.buffer) {
                return Ok(Some(message));
            }
            let Some(chunk) = self.body.data().await else { return Ok(None) };
            let chunk = chunk?;
            let _ = self.body.flow_control().release_capacity(chunk.len());
            if self.buffer.is_empty() {
                self.buffer = chunk;
            } else {
                let mut joined = BytesMut::from(std::mem::take(&mut self.buffer));
                joined.extend_from_slice(&chunk);
                self.buffer = joined.freeze();
            }
        }
    }

    /// The call's status. Success with `missing` messages outstanding, or half a message left over, is none.
    async fn status(mut self, missing: u32) -> Result<Code, h2::Error> {
        let trailers = self.body.trailers().await?;
        let status = trailers.as_ref().and_then(|t| t.get(GRPC_STATUS)).or_else(|| self.headers.get(GRPC_STATUS));
        let code = status.map_or_else(|| Code::from_http(self.status), |value| Code::from_header(value.as_bytes()));
        Ok(if code == Code::OK && (missing > 0 || !self.buffer.is_empty()) { Code::DATA_LOSS } else { code })
    }
}

/// Takes the first whole message off the buffer.
fn cut(buffer: &mut Bytes) -> Option<Bytes> {
    let prefix = buffer.get(..PREFIX)?;
    let length = u32::from_be_bytes(prefix[1..].try_into().ok()?) as usize;
    if buffer.len() - PREFIX < length {
        return None;
    }
    let message = buffer.slice(PREFIX..PREFIX + length);
    *buffer = buffer.slice(PREFIX + length..);
    Some(message)
}

/// At most 8 digits in the finest unit that holds the duration, rounded up so that it is never 0.
fn grpc_timeout(timeout: Duration) -> String {
    let micros = timeout.as_nanos().div_ceil(1000);
    [(1, 'u'), (1_000, 'm'), (1_000_000, 'S'), (60_000_000, 'M'), (3_600_000_000, 'H')]
        .into_iter()
        .map(|(size, unit)| (micros.div_ceil(size), unit))
        .find(|(number, _)| *number < 100_000_000)
        .map_or_else(|| "99999999H".to_owned(), |(number, unit)| format!("{number}{unit}"))
}
