//! Endpoints of an independent HTTP/2 implementation, and the calls that they understand: hold a stream, take bytes, give
//! bytes, each in step with a pattern that tells a lost or changed byte. Slow readers pause after each mebibyte.

use std::cell::Cell;
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use tokio::sync::watch;

use crate::scene::soon;

/// A window above what anything between holds.
pub(crate) const OPEN: u32 = 1 << 24;
/// How long a slow reader pauses after each mebibyte.
const PAUSE: Duration = Duration::from_millis(20);
/// Bytes of the pattern; prime, so that no chunk's size divides it.
const PERIOD: usize = 65_521;
const MEBIBYTE: usize = 1024 * 1024;

thread_local! {
    /// Bytes that the servers of this thread, and so of one test, have taken.
    pub(crate) static TAKEN: Cell<usize> = const { Cell::new(0) };
}

pub(crate) fn tokio(stream: TcpStream) -> Result<tokio::net::TcpStream> {
    stream.set_nonblocking(true)?;
    Ok(tokio::net::TcpStream::from_std(stream)?)
}

/// Serves on all listeners. Streams may send what `window` says; it may change.
pub(crate) fn serve(listeners: Vec<TcpListener>, window: &watch::Sender<u32>) -> Result<()> {
    for listener in listeners {
        listener.set_nonblocking(true)?;
        let (listener, window) = (tokio::net::TcpListener::from_std(listener)?, window.subscribe());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(connection(stream, window.clone()));
            }
        });
    }
    Ok(())
}

/// Serves with open windows.
pub(crate) fn serve_openly(listeners: Vec<TcpListener>) -> Result<()> {
    serve(listeners, &watch::channel(OPEN).0)
}

async fn connection(stream: tokio::net::TcpStream, mut window: watch::Receiver<u32>) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut builder = h2::server::Builder::new();
    let initial = *window.borrow_and_update();
    builder.initial_window_size(initial).initial_connection_window_size(OPEN).max_concurrent_streams(100_000);
    let mut connection = builder.handshake(stream).await.ok()?;
    loop {
        tokio::select! {
            Ok(()) = window.changed() => connection.set_initial_window_size(*window.borrow_and_update()).ok()?,
            request = connection.accept() => {
                let (request, respond) = request?.ok()?;
                tokio::spawn(answer(request, respond));
            }
        }
    }
}

async fn answer(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) -> Result<()> {
    let path = request.uri().path().trim_start_matches('/').to_owned();
    let response = Response::builder().header("content-type", "application/grpc").body(())?;
    let mut stream = respond.send_response(response, false)?;
    let mut status = "0".parse()?;
    match path.split_once('/').unwrap_or((&path, "")) {
        ("take", pace) => {
            // Whether all was right is the client's to know.
            let outcome = take(request.into_body(), pace == "slowly").await;
            status = outcome.map_or("15".parse()?, |bytes| format!("0-{bytes}").parse().unwrap_or(status));
        }
        ("give", count) => give(&mut stream, count.parse()?, usize::MAX).await?,
        ("drip", count) => give(&mut stream, count.parse()?, 1).await?,
        // Until the client has ended the call.
        _ => drop(take(request.into_body(), false).await),
    }
    stream.send_trailers(HeaderMap::from_iter([("grpc-status".parse()?, status)]))?;
    Ok(())
}

/// A call with a body to follow.
pub(crate) async fn call(
    client: &SendRequest<Bytes>,
    path: &str,
    end: bool,
) -> Result<(ResponseFuture, SendStream<Bytes>)> {
    let request = Request::post(format!("http://echo.default{path}")).header("te", "trailers");
    let request = request.header("content-type", "application/grpc").body(())?;
    Ok(soon(client.clone().ready()).await??.send_request(request, end)?)
}

/// The body of a response, once its head has come.
pub(crate) async fn body(response: ResponseFuture) -> Result<RecvStream> {
    Ok(soon(response).await??.into_body())
}

/// What the trailers say.
pub(crate) async fn status(body: &mut RecvStream) -> Result<String> {
    let trailers = soon(body.trailers()).await??.context("no trailers")?;
    Ok(trailers["grpc-status"].to_str()?.to_owned())
}

/// One whole call.
pub(crate) async fn ask(client: &SendRequest<Bytes>) -> Result<()> {
    let (response, _) = call(client, "/hold", true).await?;
    let mut body = body(response).await?;
    ensure!(take(&mut body, false).await? == 0 && status(&mut body).await? == "0", "the call failed");
    Ok(())
}

/// Sends so many bytes of the pattern in frames of `most` bytes at most.
pub(crate) async fn give(stream: &mut SendStream<Bytes>, count: usize, most: usize) -> Result<()> {
    let pattern: Bytes = (0..2 * PERIOD).map(pattern_at).collect();
    let (mut sent, mut frames) = (0, 0);
    while sent < count {
        stream.reserve_capacity(most.min(count - sent).min(PERIOD));
        let room = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await.context("the stream has ended")??;
        let at = sent % PERIOD;
        let chunk = room.min(most).min(count - sent).min(PERIOD);
        stream.send_data(pattern.slice(at..at + chunk), false)?;
        sent += chunk;
        frames += 1;
        if frames % 16 == 0 {
            // The other tasks of this thread are peers that may be slower.
            tokio::task::yield_now().await;
        }
    }
    Ok(())
}

/// Receives to the end of the data: the count of bytes, all of them right.
pub(crate) async fn take(mut stream: impl std::borrow::BorrowMut<RecvStream>, slowly: bool) -> Result<usize> {
    let (stream, mut received, mut pause_at) = (stream.borrow_mut(), 0, MEBIBYTE);
    let pattern: Bytes = (0..2 * PERIOD).map(pattern_at).collect();
    while let Some(bytes) = stream.data().await {
        let bytes = bytes?;
        for part in bytes.chunks(PERIOD) {
            let at = received % PERIOD;
            ensure!(part == &pattern[at..at + part.len()], "not the pattern around byte {received}");
            received += part.len();
            TAKEN.set(TAKEN.get() + part.len());
        }
        stream.flow_control().release_capacity(bytes.len())?;
        if slowly && received >= pause_at {
            pause_at += MEBIBYTE;
            tokio::time::sleep(PAUSE).await;
        }
    }
    Ok(received)
}

fn pattern_at(index: usize) -> u8 {
    let index = index % PERIOD;
    (index ^ (index >> 8)) as u8
}
