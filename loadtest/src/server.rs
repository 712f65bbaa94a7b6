//! `loadtest server`: TCP connections in, gRPC answers out. Owns the listeners, a connection's age and the graceful end
//! (GOAWAY, finish what runs, close); what a call means is in `echo`, metadata in `metadata`, how many calls are worked on
//! at a time in `slots`. With a control listener it misbehaves on demand: `control` hears what, `behaviour` does it.

mod behaviour;
mod control;
mod echo;
mod metadata;
mod slots;

use std::convert::Infallible;
use std::future::{Future, pending};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use http::HeaderValue;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::BufReader;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::args::ServerArgs;
use crate::code::Code;
use crate::proto::echo_server::EchoServer;
use crate::units::DelaySpan;
use behaviour::Conduct;
pub use behaviour::{Behaviour, Failure};
pub use control::Account;
use slots::Slots;

/// Connect storms overflow a short queue, and each overflow costs a client a second of SYN retries.
const BACKLOG: i32 = 4096;

/// Larger than gRPC's usual 4 MiB, so that tests can push large messages through.
const MAX_MESSAGE: usize = 64 << 20;

/// Above HTTP/2's 64 KiB, so that what is measured is not the wait for window updates.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

/// Calls given up before they were seen that a connection may bring at a time. As many as arrive at once when a black hole
/// ends; h2's own limit of 20 would close the connection then, which other gRPC servers do not.
const RESETS: usize = 1 << 20;

/// Out of descriptors, the kernel keeps connections queued: waiting loses nothing.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How the server answers, beside what each request asks for.
#[derive(Clone, Debug, Default)]
pub struct ServerOptions {
    /// Name in `x-sluice-pod` and in every message.
    pub pod: String,
    /// Extra wait before the first answer of each call.
    pub delay: DelaySpan,
    /// Share of the calls, 0 to 1, that end with `error_code` instead.
    pub error_rate: f64,
    /// UNAVAILABLE if absent.
    pub error_code: Option<Code>,
    /// GOAWAY after this long; running calls finish.
    pub max_connection_age: Option<Duration>,
    /// SETTINGS_MAX_CONCURRENT_STREAMS; none: no limit, as gRPC servers have it.
    pub max_concurrent_streams: Option<u32>,
    /// Calls that are worked on at a time; the others wait in order. None: all at once.
    pub slots: Option<usize>,
    /// How long a call is worked on before its first answer.
    pub service_time: DelaySpan,
}

/// Bound listeners, not yet serving.
pub struct Server {
    listeners: Vec<TcpListener>,
    control: Option<TcpListener>,
    options: ServerOptions,
}

/// What all connections share.
struct Shared {
    options: ServerOptions,
    slots: Option<Slots>,
    /// Only where there is a control listener.
    conduct: Option<Arc<Conduct>>,
}

impl Server {
    /// Binds every address. `[::]` also takes IPv4; on a host without IPv6 it means `0.0.0.0`.
    pub fn bind(addresses: &[SocketAddr], options: ServerOptions) -> anyhow::Result<Self> {
        let listeners = addresses
            .iter()
            .map(|&address| {
                listen(address)
                    .with_context(|| format!("cannot listen on {address}; choose a free address with --listen"))
            })
            .collect::<anyhow::Result<_>>()?;
        Ok(Self { listeners, control: None, options })
    }

    /// Adds the listener by which tests change how the server behaves. Gives its address.
    pub fn add_control(&mut self, address: SocketAddr) -> anyhow::Result<SocketAddr> {
        let listener = listen(address)
            .with_context(|| format!("cannot listen on {address}; choose a free address with --control"))?;
        let bound = listener.local_addr()?;
        self.control = Some(listener);
        Ok(bound)
    }

    /// Where it listens, with the ports that the kernel chose for port 0.
    pub fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        self.listeners.iter().map(TcpListener::local_addr).collect()
    }

    /// Serves until `stop`, then sends GOAWAY everywhere and returns once the last running call has ended.
    pub async fn serve(self, stop: impl Future<Output = ()>) {
        let (drain, draining) = watch::channel(());
        // Every connection holds a sender: when `closed` yields None, the last one is gone.
        let (alive, mut closed) = mpsc::channel::<Infallible>(1);
        let shared = Arc::new(Shared {
            slots: self.options.slots.map(Slots::new),
            conduct: self.control.is_some().then(Arc::default),
            options: self.options,
        });
        let mut accepting = tokio::task::JoinSet::new();
        for listener in self.listeners {
            accepting.spawn(accept(listener, shared.clone(), draining.clone(), alive.clone()));
        }
        if let (Some(listener), Some(conduct)) = (self.control, shared.conduct.clone()) {
            accepting.spawn(control::accept(listener, control::Control { shared, conduct }));
        }
        drop((alive, draining));
        stop.await;
        accepting.shutdown().await;
        let _ = drain.send(());
        closed.recv().await;
    }
}

/// The command: serves until SIGTERM or SIGINT.
pub(crate) async fn main(args: ServerArgs) -> anyhow::Result<ExitCode> {
    let grace = args.grace;
    let mut server = Server::bind(&args.listen, args.options())?;
    for address in server.addresses()? {
        println!("listening on {address} as pod {}", server.options.pod);
    }
    if let Some(address) = args.control {
        println!("control on {}", server.add_control(address)?);
    }
    let mut term = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut int = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let (stopping, stopped) = tokio::sync::oneshot::channel();
    let stop = async {
        tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        let _ = stopping.send(());
    };
    let grace_over = async {
        match stopped.await {
            Ok(()) => tokio::time::sleep(grace).await,
            Err(_) => pending().await,
        }
    };
    tokio::select! {
        () = server.serve(stop) => {}
        () = grace_over => eprintln!("calls still run after {grace:?}: closing their connections (see --grace)"),
    }
    Ok(ExitCode::SUCCESS)
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let any_v6 = address.ip() == Ipv6Addr::UNSPECIFIED;
    match listen_on(address) {
        Err(error)
            if any_v6
                && [Some(Errno::AFNOSUPPORT), Some(Errno::ADDRNOTAVAIL)].contains(&Errno::from_io_error(&error)) =>
        {
            listen_on((Ipv4Addr::UNSPECIFIED, address.port()).into())
        }
        result => result,
    }
}

fn listen_on(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if address.ip() == Ipv6Addr::UNSPECIFIED {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

async fn accept(
    listener: TcpListener,
    shared: Arc<Shared>,
    draining: watch::Receiver<()>,
    alive: mpsc::Sender<Infallible>,
) {
    let entered = shared.conduct.as_ref().map(|conduct| conduct.enter(&listener)).transpose();
    let _entered = entered.inspect_err(|error| eprintln!("a black hole will not swallow the listener: {error}"));
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let (shared, draining, alive) = (shared.clone(), draining.clone(), alive.clone());
                tokio::spawn(async move {
                    // A connection that breaks is its client's business.
                    let _ = serve_connection(stream, peer, shared, draining).await;
                    drop(alive);
                });
            }
            Err(error) => {
                eprintln!("cannot accept: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

impl Shared {
    /// How many times as long a call takes now.
    fn slow(&self) -> f64 {
        self.conduct.as_ref().map_or(1.0, |conduct| conduct.slow())
    }

    /// Whether the next call fails, and how.
    fn failure(&self) -> Option<Failure> {
        self.conduct.as_ref()?.failure()
    }
}

/// What every call on one connection shares.
struct Link {
    shared: Arc<Shared>,
    /// As `x-sluice-pod` and `x-sluice-endpoint` carry them.
    pod: HeaderValue,
    endpoint: HeaderValue,
    /// The client, as the messages carry it.
    peer: String,
}

async fn serve_connection(
    stream: TcpStream,
    peer: SocketAddr,
    shared: Arc<Shared>,
    mut draining: watch::Receiver<()>,
) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let conduct = shared.conduct.as_ref();
    let _entered = conduct.map(|conduct| conduct.enter(&stream)).transpose()?;
    let options = &shared.options;
    let link = Arc::new(Link {
        pod: HeaderValue::from_str(&options.pod)?,
        endpoint: HeaderValue::from_str(&canonical(stream.local_addr()?).to_string())?,
        peer: canonical(peer).to_string(),
        shared: shared.clone(),
    });
    let grpc = EchoServer::new(echo::Echo::new(link.clone())).max_decoding_message_size(MAX_MESSAGE);
    let service = service_fn(move |request| metadata::answer(grpc.clone(), link.clone(), request));
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new())
        .auto_date_header(false)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(options.max_concurrent_streams)
        .max_pending_accept_reset_streams(RESETS);
    // Buffered: bytes left unread in the kernel would turn the close after an invalid preface into a reset.
    let mut connection = pin!(http.serve_connection(TokioIo::new(BufReader::new(stream)), service));
    let old_age = async {
        match options.max_connection_age {
            Some(age) => tokio::time::sleep(age).await,
            None => pending().await,
        }
    };
    let mut ending = pin!(async {
        tokio::select! { () = old_age => {}, _ = draining.changed() => {} }
    });
    let mut told = false;
    loop {
        let swallowed = async {
            match conduct {
                Some(conduct) => conduct.until_swallowed(true).await,
                None => pending().await,
            }
        };
        tokio::select! {
            result = connection.as_mut() => return Ok(result?),
            // All writing is done by the connection's future: while nobody polls it, nothing new leaves.
            () = swallowed => if let Some(conduct) = conduct { conduct.until_swallowed(false).await },
            () = ending.as_mut(), if !told => {
                connection.as_mut().graceful_shutdown();
                told = true;
            }
        }
    }
}

/// `::ffff:10.1.0.3` is shown as `10.1.0.3`.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
