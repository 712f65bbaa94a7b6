//! One of a run's connections as its calls share it: dials, speaks the HTTP/2 preface, hands out senders, and with
//! `--reconnect` dials again, once for all calls that wait. Counts nothing and retries no call.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use h2::client::SendRequest;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// Above HTTP/2's 64 KiB, so that what is measured is not the wait for window updates.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// Between failed dials; doubles up to the second.
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LAST_BACKOFF: Duration = Duration::from_secs(1);

/// How long one dial may take: longer than two SYN retries.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// A sender, and which of the slot's connections it belongs to.
#[derive(Clone)]
pub(crate) struct Lease {
    pub(crate) sender: SendRequest<Bytes>,
    generation: u64,
}

/// Why there is no connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NoConnection {
    /// Lost, and not to be dialled again.
    Gone,
    /// The dial that this call waited for failed; a later one may succeed.
    DialFailed,
}

/// A connection and its successors.
pub(crate) struct Slot {
    target: Arc<str>,
    reconnect: bool,
    /// Failed dials so far: tells a waiting call that the dial it waited for has failed.
    failures: AtomicU64,
    state: Mutex<State>,
}

struct State {
    lease: Lease,
    backoff: Duration,
    not_before: Instant,
}

impl Slot {
    /// Dials the first connection.
    pub(crate) async fn open(target: Arc<str>, reconnect: bool) -> anyhow::Result<Self> {
        let sender = dial(&target).await?;
        let state =
            State { lease: Lease { sender, generation: 0 }, backoff: FIRST_BACKOFF, not_before: Instant::now() };
        Ok(Self { target, reconnect, failures: AtomicU64::new(0), state: Mutex::new(state) })
    }

    /// The connection as it is now, alive or not.
    pub(crate) async fn lease(&self) -> Lease {
        self.state.lock().await.lease.clone()
    }

    /// A connection younger than `old`, which takes no more calls.
    pub(crate) async fn successor(&self, old: &Lease) -> Result<Lease, NoConnection> {
        let failures = self.failures.load(Ordering::Relaxed);
        let mut state = self.state.lock().await;
        if state.lease.generation > old.generation {
            return Ok(state.lease.clone());
        }
        if !self.reconnect {
            return Err(NoConnection::Gone);
        }
        if self.failures.load(Ordering::Relaxed) != failures {
            return Err(NoConnection::DialFailed);
        }
        tokio::time::sleep_until(state.not_before).await;
        match dial(&self.target).await {
            Ok(sender) => {
                state.lease = Lease { sender, generation: old.generation + 1 };
                state.backoff = FIRST_BACKOFF;
                Ok(state.lease.clone())
            }
            Err(_) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
                state.not_before = Instant::now() + state.backoff;
                state.backoff = (state.backoff * 2).min(LAST_BACKOFF);
                Err(NoConnection::DialFailed)
            }
        }
    }

    /// Connections dialled so far.
    pub(crate) async fn opened(&self) -> u64 {
        self.state.lock().await.lease.generation + 1
    }
}

async fn dial(target: &str) -> anyhow::Result<SendRequest<Bytes>> {
    let dialled = tokio::time::timeout(DIAL_TIMEOUT, connect(target)).await;
    let stream =
        dialled.map_err(|_| io::Error::from(io::ErrorKind::TimedOut)).and_then(|result| result).with_context(|| {
            format!("cannot reach {target}; check the address and that a server listens there (loadtest server)")
        })?;
    let mut http = h2::client::Builder::new();
    http.initial_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW).enable_push(false);
    let (sender, connection) =
        http.handshake(stream).await.with_context(|| format!("{target} does not speak HTTP/2 without TLS"))?;
    // Its end shows in every call on it.
    tokio::spawn(connection);
    Ok(sender)
}

async fn connect(target: &str) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(target).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
