//! The agent's local socket: all admin pages, and what shows calls or changes something. An abstract socket, so that no file
//! is left behind; it is seen in the agent's own network namespace only, and answers only processes of the agent's own user
//! (or root). In: requests; out: pages, and calls as they happen.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as LocalAddr, UnixListener as StdListener};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use http_body_util::StreamBody;
use http_body_util::combinators::BoxBody;
use hyper::body::{Bytes, Frame, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::Value;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};

use super::{Body, Pages, ask, connection, respond, text};
use crate::tapping;
use crate::worker::{TapLine, TapRequest};

/// Pages that only this socket has.
pub(super) const PAGES: [&str; 3] = ["/tap", "/log-level", "/maps.json"];

/// Lines of a tap that wait for a reader; more are lost, and counted.
const LINES: usize = 512;

/// What only this socket asks the control loop for.
#[derive(Debug)]
pub enum Ask {
    /// Show these calls.
    Tap(TapRequest, oneshot::Sender<()>),
    /// Set what is said from now on, where a level is given: the kernel programs' (`off` to `trace`) and the agent's (a filter
    /// as for `--log`). The answer is what holds then.
    LogLevel { bpf: Option<String>, log: Option<String>, reply: oneshot::Sender<anyhow::Result<Levels>> },
    /// The kernel's maps, decoded.
    Maps(oneshot::Sender<anyhow::Result<Value>>),
}

/// What is said.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Levels {
    /// By the kernel programs.
    pub bpf: String,
    /// By the agent.
    pub log: String,
}

/// Where an agent with this admin address listens.
pub fn address(admin: SocketAddr) -> std::io::Result<LocalAddr> {
    LocalAddr::from_abstract_name(name(admin))
}

/// Opens the socket.
pub fn listen(admin: SocketAddr) -> anyhow::Result<UnixListener> {
    let listen = || {
        let listener = StdListener::bind_addr(&address(admin)?)?;
        listener.set_nonblocking(true)?;
        UnixListener::from_std(listener)
    };
    listen().with_context(|| format!("cannot listen on the local socket sluice-agent/{admin}"))
}

/// Connects to an agent. Does not wait for one that hangs with a full queue: that would block.
pub async fn connect(admin: SocketAddr) -> std::io::Result<tokio::net::UnixStream> {
    tokio::net::UnixStream::connect(format!("\0{}", name(admin))).await
}

fn name(admin: SocketAddr) -> String {
    format!("sluice-agent/{admin}")
}

/// Serves the socket for ever. To be spawned on the runtime.
pub async fn serve(listener: UnixListener, pages: Arc<Pages>) {
    let own = rustix::process::geteuid().as_raw();
    loop {
        let Ok(place) = Arc::clone(&pages.places).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a local connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        match stream.peer_cred() {
            Ok(peer) if peer.uid() == own || peer.uid() == 0 => {
                tokio::spawn(connection(stream, place, Arc::clone(&pages), true));
            }
            peer => {
                tracing::warn!(uid = ?peer.map(|it| it.uid()).ok(), "a local connection of another user was refused")
            }
        }
    }
}

/// None: no page of this socket alone.
pub(super) async fn answer(request: &Request<Incoming>, pages: &Pages) -> Option<Response<Body>> {
    let query = request.uri().query().unwrap_or_default();
    let answered = match (request.method(), request.uri().path()) {
        (&Method::GET, "/tap") => tap(query, pages).await,
        (&Method::GET, "/log-level") => log_level(None, None, pages).await,
        (&Method::PUT, "/log-level") => log_level(parameter(query, "bpf"), parameter(query, "log"), pages).await,
        (&Method::GET, "/maps.json") => maps(pages).await,
        (_, path) if PAGES.contains(&path) => Ok(text(StatusCode::METHOD_NOT_ALLOWED, "no such method here\n")),
        _ => return None,
    };
    Some(answered.unwrap_or_else(|error| text(StatusCode::BAD_REQUEST, format!("{error:#}\n"))))
}

async fn tap(query: &str, pages: &Pages) -> anyhow::Result<Response<Body>> {
    let (sink, lines) = mpsc::channel(LINES);
    let request = tapping::request(|name| parameter(query, name), sink)?;
    ask(&pages.asks, |sender| super::Ask::Local(Ask::Tap(request, sender))).await?;
    let body = StreamBody::new(Lines(lines));
    let mut response = Response::new(BoxBody::new(body));
    let kind = hyper::header::HeaderValue::from_static("application/x-ndjson");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, kind);
    Ok(response)
}

/// A tap's lines as they come. Dropped, when the reader is gone: the workers see that the channel is closed.
struct Lines(mpsc::Receiver<TapLine>);

impl futures_util::Stream for Lines {
    type Item = Result<Frame<Bytes>, Infallible>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|line| {
            let line = line?;
            Some(Ok(Frame::data(format!("{}\n", tapping::json(&line)).into())))
        })
    }
}

async fn log_level(bpf: Option<String>, log: Option<String>, pages: &Pages) -> anyhow::Result<Response<Body>> {
    let question = |reply| super::Ask::Local(Ask::LogLevel { bpf, log, reply });
    let levels = ask(&pages.asks, question).await??;
    Ok(respond(StatusCode::OK, "application/json", serde_json::to_string(&levels)? + "\n"))
}

async fn maps(pages: &Pages) -> anyhow::Result<Response<Body>> {
    let maps = ask(&pages.asks, |sender| super::Ask::Local(Ask::Maps(sender))).await??;
    Ok(respond(StatusCode::OK, "application/json", format!("{maps}\n")))
}

/// The value of a query's parameter, percent-decoded.
fn parameter(query: &str, name: &str) -> Option<String> {
    let value = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))?;
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        let hex = |byte: Option<u8>| char::from(byte?).to_digit(16);
        bytes.push(match byte {
            b'%' => (hex(rest.next())? * 16 + hex(rest.next())?) as u8,
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

/// A parameter's value for a query.
pub fn encoded(value: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/:*".contains(&byte);
    value.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_a_query() {
        let value = "shop/we b&=%ü*";
        let query = format!("a=1&pod={}&x=", encoded(value));
        assert_eq!(parameter(&query, "pod").as_deref(), Some(value));
        assert_eq!((parameter(&query, "x").as_deref(), parameter(&query, "y")), (Some(""), None));
        assert_eq!(parameter("pod=%4", "pod"), None);
    }
}
