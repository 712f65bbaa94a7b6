//! An endpoint and a client on an independent HTTP/2 implementation (h2), with sockets of pods. In: pods, and calls with
//! header fields that say how the endpoint is to answer; out: answers, and what the endpoint saw.

use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::SystemTime;

use anyhow::{Context, Result};
use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use testbed::scene::{PORT, SOON};
use testbed::{Node, Pod, PodSpec, Process};
use tokio::runtime::Handle;

/// A call of no meaning to anybody but the tests.
pub(crate) const ADD: &str = "/shop.Cart/Add";
/// What every call brings, and gets: a message with its prefix.
pub(crate) const MESSAGE: &[u8] = b"\0\0\0\0\x04good";

/// One thread moves the bytes of all peers.
static PEERS: LazyLock<Handle> = LazyLock::new(|| {
    let (sender, handle) = mpsc::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        sender.send(runtime.handle().clone()).expect("somebody waits");
        runtime.block_on(std::future::pending::<()>());
    });
    handle.recv().expect("a runtime")
});

fn soon<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    PEERS.block_on(async { tokio::time::timeout(SOON, work).await.context("a peer does not answer")? })
}

/// A pod that answers with the grpc-status of a call's `x-status` (0 unless given), once the request is whole; or with the
/// HTTP status of `x-http`, then without gRPC.
pub(crate) struct Endpoint {
    pub(crate) pod: Pod,
    seen: Arc<Mutex<Vec<HeaderMap>>>,
}

impl Endpoint {
    pub(crate) fn start(node: &Node, name: &str) -> Result<Self> {
        let pod = node.pod(name)?;
        let listener = pod.run_in_netns(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)))??;
        listener.set_nonblocking(true)?;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&seen);
        PEERS.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&all)));
            }
        });
        Ok(Self { pod, seen })
    }

    /// The header fields of all requests so far.
    pub(crate) fn seen(&self) -> Vec<HeaderMap> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn serve(stream: tokio::net::TcpStream, seen: Arc<Mutex<Vec<HeaderMap>>>) -> Option<()> {
    let mut connection = h2::server::handshake(stream).await.ok()?;
    while let Some(Ok((request, respond))) = connection.accept().await {
        seen.lock().unwrap_or_else(PoisonError::into_inner).push(request.headers().clone());
        tokio::spawn(answer(request, respond));
    }
    Some(())
}

async fn answer(request: Request<RecvStream>, mut respond: h2::server::SendResponse<Bytes>) -> Result<()> {
    let said = |name: &str| request.headers().get(name).cloned();
    let (status, http) = (said("x-status"), said("x-http"));
    _ = drain(request.into_body()).await?;
    if let Some(http) = http {
        respond.send_response(Response::builder().status(http.as_bytes()).body(())?, true)?;
        return Ok(());
    }
    let response = Response::builder().header("content-type", "application/grpc").body(())?;
    let mut body = respond.send_response(response, false)?;
    body.send_data(Bytes::from_static(MESSAGE), false)?;
    let status = status.unwrap_or(http::HeaderValue::from_static("0"));
    body.send_trailers(HeaderMap::from_iter([("grpc-status".parse()?, status)]))?;
    Ok(())
}

async fn drain(mut body: RecvStream) -> Result<RecvStream> {
    while let Some(some) = body.data().await {
        body.flow_control().release_capacity(some?.len())?;
    }
    Ok(body)
}

/// A pod that dials.
pub(crate) struct Client {
    pub(crate) pod: Pod,
    control: UnixStream,
    _process: Process,
}

impl Client {
    pub(crate) fn start(node: &Node, spec: impl Into<PodSpec>) -> Result<Self> {
        let pod = node.pod(spec)?;
        let (control, other) = UnixStream::pair()?;
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/stress/dial.py");
        let process = pod.command("python3").arg(script).stdin(Stdio::from(OwnedFd::from(other))).spawn()?;
        Ok(Self { pod, control, _process: process })
    }

    /// A connection that is the pod's, open until it is dropped. No other process has it: the agent would take it for its own.
    pub(crate) fn dial(&self, to: SocketAddr) -> Result<TcpStream> {
        (&self.control).write_all(format!("{} {} 1", to.ip(), to.port()).as_bytes())?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        recvmsg(&self.control, &mut [IoSliceMut::new(&mut [0])], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
        let descriptor = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        Ok(descriptor.context("the pod could not dial")?.into())
    }

    /// The same as an HTTP/2 client.
    pub(crate) fn connect(&self, to: SocketAddr) -> Result<Connection> {
        let stream = self.dial(to)?;
        stream.set_nonblocking(true)?;
        let sender = soon(async {
            let (sender, connection) = h2::client::handshake(tokio::net::TcpStream::from_std(stream)?).await?;
            tokio::spawn(connection);
            Ok(sender)
        })?;
        Ok(Connection { sender })
    }
}

/// An HTTP/2 connection of a client.
pub(crate) struct Connection {
    sender: SendRequest<Bytes>,
}

/// What came of a call.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) http: u16,
    pub(crate) grpc: Option<String>,
    /// When the client had all of it.
    pub(crate) at: SystemTime,
}

/// A call whose request has not ended.
pub(crate) struct Open {
    response: ResponseFuture,
    body: SendStream<Bytes>,
}

impl Connection {
    /// One call to its end.
    pub(crate) fn call(&self, path: &str, fields: &[(&str, &str)]) -> Result<Answer> {
        self.open(path, fields)?.end()
    }

    /// A call that is open until its request is ended.
    pub(crate) fn open(&self, path: &str, fields: &[(&str, &str)]) -> Result<Open> {
        let mut request = Request::post(format!("http://shop.default{path}"));
        if !fields.iter().any(|(name, _)| *name == "x-http") {
            request = request.header("content-type", "application/grpc").header("te", "trailers");
        }
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        soon(async {
            let (response, mut body) = self.sender.clone().ready().await?.send_request(request.body(())?, false)?;
            // Who answers sooner needs no more of it.
            _ = body.send_data(Bytes::from_static(MESSAGE), false);
            Ok(Open { response, body })
        })
    }
}

impl Open {
    pub(crate) fn end(mut self) -> Result<Answer> {
        _ = self.body.send_data(Bytes::new(), true);
        soon(async {
            let (head, body) = self.response.await?.into_parts();
            let mut body = drain(body).await?;
            let trailers = body.trailers().await?.unwrap_or(head.headers);
            let grpc = trailers.get("grpc-status").map(|status| status.to_str().map(str::to_owned)).transpose()?;
            Ok(Answer { http: head.status.as_u16(), grpc, at: SystemTime::now() })
        })
    }
}
