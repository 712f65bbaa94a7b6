//! A worker with pods in the test's own network namespace, and endpoints on loopback ports.
#![allow(dead_code, reason = "each of the tests' binaries uses its part")]

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use sluice_agent::addr::{EndpointAddr, NetnsCookie, OriginalDst, ServiceAddr};
use sluice_agent::detect::Patience;
use sluice_agent::splitter::Limits;
use sluice_agent::table::{Change, Endpoint, Policy, Scope, Service, ServicePortName};
use tokio::sync::oneshot::error::TryRecvError;

use sluice_agent::worker::{Answer, Pod, PodReport, Settings, WorkerHandle, spawn};

/// No test waits for this long unless it fails.
pub(crate) const HANG: Duration = Duration::from_secs(30);

/// The ClusterIP that pods dial unless a test says otherwise. Nothing listens there.
pub(crate) fn service_addr() -> ServiceAddr {
    ServiceAddr::new("10.96.0.10:50051".parse().unwrap())
}

pub(crate) struct World {
    pub(crate) handle: WorkerHandle,
    pub(crate) thread: JoinHandle<()>,
    pub(crate) beats: Arc<AtomicU64>,
    /// What the kernel would remember of a pod's connections; a pod that is not in here has no flow.
    flows: Arc<Mutex<HashMap<NetnsCookie, OriginalDst>>>,
    next_cookie: AtomicU64,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(Patience { silence: Duration::from_millis(20), partial: Duration::from_millis(50) })
    }

    pub(crate) fn with(patience: Patience) -> Self {
        // However busy the machine is, an endpoint that works is waited for.
        let limits = Limits { dial_patience: HANG, ..Limits::default() };
        Self::of(Settings { seed: 7, patience, limits, ..Settings::default() })
    }

    /// Endpoints that do not answer are not waited for, and their dials do not fail while a test runs.
    pub(crate) fn impatient() -> Self {
        let patience = Patience { silence: Duration::from_millis(20), partial: Duration::from_millis(50) };
        Self::of(Settings { seed: 7, patience, dial_timeout: 10 * HANG, ..Settings::default() })
    }

    /// Peers are gone when they are silent for so long.
    pub(crate) fn that_gives_up_after(gone_after: Duration) -> Self {
        let patience = Patience { silence: Duration::from_millis(20), partial: Duration::from_millis(50) };
        let limits = Limits { dial_patience: HANG, ..Limits::default() };
        Self::of(Settings { seed: 7, patience, limits, gone_after, ..Settings::default() })
    }

    fn of(settings: Settings) -> Self {
        let flows: Arc<Mutex<HashMap<NetnsCookie, OriginalDst>>> = Arc::default();
        let beats = Arc::new(AtomicU64::new(0));
        let (remembered, beating) = (Arc::clone(&flows), Arc::clone(&beats));
        let (handle, thread) = spawn(
            0,
            settings,
            Box::new(move |cookie, _| remembered.lock().unwrap().get(&cookie).copied()),
            Box::new(move || {
                beating.fetch_add(1, Ordering::Relaxed);
            }),
        )
        .unwrap();
        Self { handle, thread, beats, flows, next_cookie: AtomicU64::new(1) }
    }

    /// The Service at `service_addr` gets these endpoints.
    pub(crate) fn set_endpoints(&self, endpoints: &[SocketAddr]) {
        wait(self.handle.change_services(listed(endpoints)));
    }

    /// A pod whose connections all go to the Service.
    pub(crate) fn pod(&self) -> SocketAddr {
        self.pod_that_dials(service_addr().socket_addr()).1
    }

    pub(crate) fn pod_that_dials(&self, to: SocketAddr) -> (NetnsCookie, SocketAddr) {
        let cookie = NetnsCookie(self.next_cookie.fetch_add(1, Ordering::Relaxed));
        self.flows.lock().unwrap().insert(cookie, OriginalDst::new(to));
        let listener = self.listen(cookie);
        (cookie, listener)
    }

    /// A pod with this listener in its namespace, whose connections all go to the Service.
    pub(crate) fn enrol(&self, listener: TcpListener, netns: File) -> SocketAddr {
        let cookie = NetnsCookie(self.next_cookie.fetch_add(1, Ordering::Relaxed));
        self.flows.lock().unwrap().insert(cookie, OriginalDst::new(service_addr().socket_addr()));
        let addr = listener.local_addr().unwrap();
        wait(self.handle.add_pod(Pod { netns: netns.into(), ..pod(cookie, listener) }));
        addr
    }

    pub(crate) fn pod_without_flows(&self) -> SocketAddr {
        let (cookie, listener) = self.pod_that_dials(service_addr().socket_addr());
        self.flows.lock().unwrap().remove(&cookie);
        listener
    }

    /// While this is held the worker stands still at the next connection that it accepts.
    pub(crate) fn hold(&self) -> impl Sized {
        self.flows.lock().unwrap()
    }

    /// New listeners for a pod's namespace.
    pub(crate) fn listen(&self, cookie: NetnsCookie) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        wait(self.handle.add_pod(pod(cookie, listener)));
        addr
    }

    pub(crate) fn pod_report(&self) -> PodReport {
        wait(self.handle.report()).pods.remove(0)
    }

    /// Looks at the pod's report until it is as wanted.
    pub(crate) fn until(&self, mut wanted: impl FnMut(&PodReport) -> bool) {
        eventually(|| wanted(&self.pod_report()));
    }
}

pub(crate) fn pod(cookie: NetnsCookie, listener: TcpListener) -> Pod {
    Pod {
        cookie,
        netns: File::open("/proc/self/ns/net").unwrap().into(),
        listener4: Some(listener),
        listener6: None,
        name: "default/client".into(),
    }
}

/// The Service at `service_addr` gets these endpoints.
pub(crate) fn listed(endpoints: &[SocketAddr]) -> Arc<[Change]> {
    let endpoints: Arc<[Endpoint]> = endpoints
        .iter()
        .map(|addr| Endpoint { addr: EndpointAddr::new(*addr), identity: addr.to_string().into(), place: None })
        .collect();
    let service = Service {
        id: 1,
        addr: service_addr(),
        name: ServicePortName { namespace: "default".into(), service: "echo".into(), port: "grpc".into() },
        balancing: Policy::RoundRobin.into(),
        usable: endpoints.len() as u32,
        endpoints,
        scope: Scope::All,
    };
    [Change { addr: service_addr(), service: Some(Arc::new(service)) }].into()
}

/// The Service at `service_addr` is ours no longer.
pub(crate) fn gone() -> Arc<[Change]> {
    [Change { addr: service_addr(), service: None }].into()
}

/// A command's answer, outside of tokio.
pub(crate) fn wait<T>(answer: Answer<T>) -> T {
    let mut answer = answer;
    let mut got = None;
    eventually(|| match answer.try_recv() {
        Ok(value) => {
            got = Some(value);
            true
        }
        Err(TryRecvError::Empty) => false,
        Err(TryRecvError::Closed) => panic!("the worker did not carry the command out"),
    });
    got.unwrap()
}

/// Polls for something that has no event of its own.
pub(crate) fn eventually(mut holds: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !holds() {
        if start.elapsed() > HANG {
            panic!("it did not come about");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) fn connect(to: SocketAddr) -> TcpStream {
    patient(TcpStream::connect(to).unwrap())
}

pub(crate) fn patient(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(HANG)).unwrap();
    stream
}

/// An endpoint that hands its connections to the test.
pub(crate) struct Backend {
    pub(crate) addr: SocketAddr,
    accepted: mpsc::Receiver<TcpStream>,
}

impl Backend {
    pub(crate) fn new() -> Self {
        Self::at("127.0.0.1:0")
    }

    pub(crate) fn at(addr: &str) -> Self {
        let listener = TcpListener::bind(addr).unwrap();
        let addr = listener.local_addr().unwrap();
        let (sender, accepted) = mpsc::channel();
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if sender.send(patient(stream)).is_err() {
                    return;
                }
            }
        });
        Self { addr, accepted }
    }

    pub(crate) fn accept(&self) -> TcpStream {
        self.accepted.recv_timeout(HANG).expect("no connection came")
    }

    pub(crate) fn has_none(&self) -> bool {
        self.accepted.try_recv().is_err()
    }
}

/// An endpoint that sends back what it gets, each connection by itself, and ends when the client has.
pub(crate) fn echo() -> SocketAddr {
    let endpoint = Backend::new();
    let addr = endpoint.addr;
    std::thread::spawn(move || {
        while let Ok(stream) = endpoint.accepted.recv() {
            std::thread::spawn(move || {
                let mut writer = stream.try_clone().unwrap();
                let _ = std::io::copy(&mut &stream, &mut writer);
                let _ = writer.shutdown(Shutdown::Write);
            });
        }
    });
    addr
}

/// A port of loopback at which nobody listens. Bound, so that nobody else gets it while the socket lives.
pub(crate) fn nobody() -> (SocketAddr, socket2::Socket) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    (socket.local_addr().unwrap().as_socket().unwrap(), socket)
}

/// A port of loopback that answers no SYN, as long as the sockets live: its backlog is full.
pub(crate) fn black_hole() -> (SocketAddr, Vec<socket2::Socket>) {
    let socket = || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let listener = socket();
    listener.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    listener.listen(0).unwrap();
    let addr = listener.local_addr().unwrap();
    let mut held = vec![listener];
    loop {
        let filler = socket();
        // Loopback answers in microseconds, if it answers.
        let full = filler.connect_timeout(&addr, Duration::from_millis(100)).is_err();
        held.push(filler);
        assert!(held.len() < 10, "the backlog never fills");
        if full {
            return (addr.as_socket().unwrap(), held);
        }
    }
}

pub(crate) fn send(stream: &mut TcpStream, bytes: &[u8]) {
    stream.write_all(bytes).unwrap();
}

pub(crate) fn receive(stream: &mut TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

pub(crate) fn receive_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Closes with a reset.
pub(crate) fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// The peer has closed, or reset, and nothing more came.
pub(crate) fn is_over(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0]) {
        Ok(n) => n == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

pub(crate) fn was_reset(stream: &mut TcpStream) -> bool {
    stream.read(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
}

/// The same bytes for the same seed.
pub(crate) fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; count];
    rng.fill(&mut bytes);
    bytes
}
