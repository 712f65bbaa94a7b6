//! The Echo service: what each of the four kinds of call does with the messages of echo.proto. Metadata that is not in a
//! message is left to `metadata`.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use http::HeaderMap;
use tokio::time::Instant;
use tonic::{Code, Request, Response, Status, Streaming};

use super::{Link, MAX_MESSAGE};
use crate::proto::{self, EchoRequest, EchoResponse};

/// Response payloads up to this size are a slice of one static block.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// The service as one connection's calls see it.
pub(super) struct Echo {
    link: Arc<Link>,
}

impl Echo {
    pub(super) fn new(link: Arc<Link>) -> Self {
        Self { link }
    }

    /// `--delay`, `--error-rate`, and the work of `--service-time`, before anything else of a call.
    async fn admit<T>(&self, request: &Request<T>) -> Result<Call, Status> {
        let call = Call {
            link: self.link.clone(),
            deadline: request.extensions().get().copied(),
            received_messages: 0,
            received_bytes: 0,
        };
        let options = &self.link.shared.options;
        let (delay, fails) = fastrand_with(|rng| {
            (options.delay.sample(rng), options.error_rate > 0.0 && rng.f64() < options.error_rate)
        });
        call.wait(delay).await?;
        if fails {
            let code = options.error_code.map_or(Code::Unavailable, |code| Code::from_i32(code.index() as i32));
            return Err(Status::new(code, "one of the failures that --error-rate asks for"));
        }
        call.work().await?;
        Ok(call)
    }
}

#[tonic::async_trait]
impl proto::echo_server::Echo for Echo {
    async fn unary(&self, request: Request<EchoRequest>) -> Result<Response<EchoResponse>, Status> {
        let mut call = self.admit(&request).await?;
        let message = request.into_inner();
        call.receive(&message);
        call.wait_as_asked(&message).await?;
        failure(&message)?;
        Ok(Response::new(call.answer(message)?))
    }

    async fn client_stream(&self, request: Request<Streaming<EchoRequest>>) -> Result<Response<EchoResponse>, Status> {
        let mut call = self.admit(&request).await?;
        let mut messages = request.into_inner();
        let mut last = EchoRequest::default();
        let mut outcome = Ok(());
        while let Some(message) = messages.message().await? {
            call.receive(&message);
            outcome = outcome.and(failure(&message));
            last = message;
        }
        call.wait_as_asked(&last).await?;
        outcome?;
        Ok(Response::new(call.answer(last)?))
    }

    type ServerStreamStream = Answers;

    async fn server_stream(&self, request: Request<EchoRequest>) -> Result<Response<Answers>, Status> {
        let mut call = self.admit(&request).await?;
        let message = request.into_inner();
        call.receive(&message);
        let count = message.response_count.max(1);
        Ok(Response::new(Box::pin(stream::unfold(Some((call, message, 0)), move |state| async move {
            let (call, message, sent) = state?;
            if sent == count {
                return Some((Err(failure(&message).err()?), None));
            }
            match call.answer_as_asked(&message).await {
                Ok(answer) => Some((Ok(answer), Some((call, message, sent + 1)))),
                Err(status) => Some((Err(status), None)),
            }
        }))))
    }

    type BidiStreamStream = Answers;

    async fn bidi_stream(&self, request: Request<Streaming<EchoRequest>>) -> Result<Response<Answers>, Status> {
        let call = self.admit(&request).await?;
        let state = Some((call, request.into_inner(), Ok(())));
        Ok(Response::new(Box::pin(stream::unfold(state, |state| async move {
            let (mut call, mut messages, outcome) = state?;
            // A failure ends the call as soon as its message is answered: the client may wait for it before it goes on.
            if let Err(status) = outcome {
                return Some((Err(status), None));
            }
            let message = match messages.message().await.transpose()? {
                Ok(message) => message,
                Err(status) => return Some((Err(status), None)),
            };
            call.receive(&message);
            match call.answer_as_asked(&message).await {
                Ok(answer) => Some((Ok(answer), Some((call, messages, failure(&message))))),
                Err(status) => Some((Err(status), None)),
            }
        }))))
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<EchoResponse, Status>> + Send>>;

/// One call so far.
struct Call {
    link: Arc<Link>,
    deadline: Option<Deadline>,
    received_messages: u32,
    received_bytes: u64,
}

impl Call {
    fn receive(&mut self, message: &EchoRequest) {
        self.received_messages += 1;
        self.received_bytes += message.payload.len() as u64;
    }

    async fn wait_as_asked(&self, message: &EchoRequest) -> Result<(), Status> {
        self.wait(Duration::from_millis(message.delay_ms.into())).await
    }

    /// Is worked on for the service time, in a slot where they are limited; at most until the client's deadline.
    async fn work(&self) -> Result<(), Status> {
        let shared = &self.link.shared;
        let span = shared.options.service_time;
        if span.most.is_zero() {
            return Ok(());
        }
        let takes = || fastrand_with(|rng| span.sample(rng)).mul_f64(shared.slow());
        let Some(slots) = &shared.slots else { return self.wait(takes()).await };
        let work = slots.work(takes);
        match self.deadline {
            Some(deadline) => tokio::time::timeout_at(deadline.at, work)
                .await
                .map_err(|_| Status::deadline_exceeded("the deadline passed before the call was worked on to its end")),
            None => {
                work.await;
                Ok(())
            }
        }
    }

    /// Waits, at most until the client's deadline, which then is the call's end.
    async fn wait(&self, delay: Duration) -> Result<(), Status> {
        if delay.is_zero() {
            return Ok(());
        }
        let until = Instant::now() + delay;
        match self.deadline {
            Some(deadline) if deadline.at < until => {
                tokio::time::sleep_until(deadline.at).await;
                Err(Status::deadline_exceeded("the deadline passed before the asked delay"))
            }
            _ => {
                tokio::time::sleep_until(until).await;
                Ok(())
            }
        }
    }

    async fn answer_as_asked(&self, message: &EchoRequest) -> Result<EchoResponse, Status> {
        self.wait_as_asked(message).await?;
        self.answer(message.clone())
    }

    fn answer(&self, message: EchoRequest) -> Result<EchoResponse, Status> {
        let payload = match message.response_size as usize {
            0 => message.payload,
            size if size <= ZEROS.len() => Bytes::from_static(&ZEROS[..size]),
            size if size <= MAX_MESSAGE => vec![0; size].into(),
            size => return Err(Status::invalid_argument(format!("response_size {size} is above {MAX_MESSAGE}"))),
        };
        Ok(EchoResponse {
            payload,
            pod: self.link.shared.options.pod.clone(),
            peer: self.link.peer.clone(),
            received_messages: self.received_messages,
            received_bytes: self.received_bytes,
            deadline_ms: self.deadline.map(|deadline| deadline.left_ms),
        })
    }
}

/// The failure that a message asks for.
fn failure(message: &EchoRequest) -> Result<(), Status> {
    if message.fail_code == 0 {
        return Ok(());
    }
    let code = Code::from_i32(message.fail_code as i32);
    Err(Status::with_details(code, message.fail_message.clone(), message.fail_details.clone()))
}

/// A client's deadline, as `grpc-timeout` announced it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Deadline {
    at: Instant,
    left_ms: u64,
}

impl Deadline {
    /// The deadline in a request's headers, counted from now.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let left = grpc_timeout(headers.get("grpc-timeout")?.to_str().ok()?)?;
        // 8 digits of hours are beyond what the clock can hold.
        let at = Instant::now().checked_add(left)?;
        Some(Self { at, left_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX) })
    }
}

/// At most 8 digits and a unit (gRPC over HTTP/2, "Timeout").
fn grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// Lends the thread's random source.
fn fastrand_with<T>(use_it: impl FnOnce(&mut fastrand::Rng) -> T) -> T {
    thread_local!(static RNG: std::cell::RefCell<fastrand::Rng> = std::cell::RefCell::new(fastrand::Rng::new()));
    RNG.with_borrow_mut(use_it)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_timeout_is_read_in_every_unit_and_nothing_else_is() {
        assert_eq!(grpc_timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(grpc_timeout("1S"), Some(Duration::from_secs(1)));
        assert_eq!(grpc_timeout("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(grpc_timeout("5u"), Some(Duration::from_micros(5)));
        for bad in ["", "S", "1", "-1S", "+1S", "123456789S", "1x", "1é"] {
            assert_eq!(grpc_timeout(bad), None, "{bad}");
        }
    }
}
