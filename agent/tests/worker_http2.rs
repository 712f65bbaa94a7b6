//! The worker and the splitter on real sockets, between clients and servers of an independent HTTP/2 implementation.
//! Needs root (CAP_SYS_ADMIN).

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request, Response, StatusCode};
use sluice_agent::detect::{PREFACE, Patience};
use sluice_agent::worker::PodReport;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

#[path = "worker/support.rs"]
mod support;

use support::{HANG, World, black_hole, connect, eventually, gone, listed, nobody, noise, send, service_addr};

/// A server that answers each call with its own address once it may, and `/echo` with the request's body.
struct Server {
    addr: SocketAddr,
    /// One permit is taken by each call before it is answered.
    may_answer: Arc<Semaphore>,
    /// One permit is added by each call that arrives.
    arrived: Arc<Semaphore>,
}

impl Server {
    /// Answers at once.
    async fn new() -> Self {
        let server = Self::that_waits().await;
        server.may_answer.add_permits(1_000_000);
        server
    }

    async fn that_waits() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let may_answer = Arc::new(Semaphore::new(0));
        let arrived = Arc::new(Semaphore::new(0));
        let (permits, arrives) = (Arc::clone(&may_answer), Arc::clone(&arrived));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (permits, arrives) = (Arc::clone(&permits), Arc::clone(&arrives));
                tokio::spawn(async move {
                    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        arrives.add_permits(1);
                        tokio::spawn(answer(addr, Arc::clone(&permits), request, respond));
                    }
                });
            }
        });
        Self { addr, may_answer, arrived }
    }

    async fn has_a_call(&self) {
        within(self.arrived.acquire()).await.unwrap().forget();
    }
}

async fn answer(
    addr: SocketAddr,
    may_answer: Arc<Semaphore>,
    request: Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
) {
    may_answer.acquire().await.unwrap().forget();
    let echoes = request.uri().path() == "/echo";
    let response = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    let Ok(mut stream) = respond.send_response(response, false) else { return };
    if echoes {
        let mut body = request.into_body();
        while let Some(Ok(bytes)) = body.data().await {
            let _ = body.flow_control().release_capacity(bytes.len());
            send_all(&mut stream, bytes).await;
        }
    } else {
        send_all(&mut stream, addr.to_string().into()).await;
    }
    let _ = stream.send_trailers(HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]));
}

async fn send_all(stream: &mut h2::SendStream<Bytes>, mut bytes: Bytes) {
    while !bytes.is_empty() {
        stream.reserve_capacity(bytes.len());
        let Some(Ok(room)) = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await else { return };
        if stream.send_data(bytes.split_to(room.min(bytes.len())), false).is_err() {
            return;
        }
    }
}

type Client = (SendRequest<Bytes>, JoinHandle<Result<(), h2::Error>>);

async fn client(pod: SocketAddr) -> Client {
    let (client, connection) = h2::client::handshake(TcpStream::connect(pod).await.unwrap()).await.unwrap();
    (client, tokio::spawn(connection))
}

fn request(path: &str) -> Request<()> {
    let request = Request::post(format!("http://echo.default{path}")).header("te", "trailers");
    request.header("content-type", "application/grpc").body(()).unwrap()
}

/// The whole answer: body and trailers.
async fn collect(response: h2::client::ResponseFuture) -> (Vec<u8>, HeaderMap) {
    let response = within(response).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    while let Some(chunk) = within(body.data()).await {
        let chunk = chunk.unwrap();
        body.flow_control().release_capacity(chunk.len()).unwrap();
        bytes.extend_from_slice(&chunk);
    }
    (bytes, within(body.trailers()).await.unwrap().unwrap_or_default())
}

/// One call: the address of the server that answered.
async fn call(client: &SendRequest<Bytes>) -> SocketAddr {
    let mut client = within(client.clone().ready()).await.unwrap();
    let (response, _) = client.send_request(request("/name"), true).unwrap();
    let (body, trailers) = collect(response).await;
    assert_eq!(trailers["grpc-status"], "0");
    String::from_utf8(body).unwrap().parse().unwrap()
}

async fn calls(client: &SendRequest<Bytes>, count: usize) -> BTreeMap<SocketAddr, usize> {
    let mut counts = BTreeMap::new();
    for _ in 0..count {
        *counts.entry(call(client).await).or_default() += 1;
    }
    counts
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(HANG, future).await.expect("it did not come about")
}

async fn report(world: &World) -> PodReport {
    world.handle.report().await.unwrap().pods.remove(0)
}

async fn until(world: &World, mut wanted: impl FnMut(&PodReport) -> bool) {
    within(async { while !wanted(&report(world).await) {} }).await;
}

/// A world in which the Service has these servers, and a pod.
async fn world(servers: &[&Server]) -> (World, SocketAddr) {
    let world = World::new();
    set_servers(&world, servers).await;
    let pod = world.pod();
    (world, pod)
}

async fn set_servers(world: &World, servers: &[&Server]) {
    let addrs: Vec<_> = servers.iter().map(|server| server.addr).collect();
    world.handle.change_services(listed(&addrs)).await.unwrap();
}

#[tokio::test]
async fn the_streams_of_one_connection_are_spread_over_all_endpoints() {
    let (a, b, c) = (Server::new().await, Server::new().await, Server::new().await);
    let (world, pod) = world(&[&a, &b, &c]).await;
    let (client, _connection) = client(pod).await;
    let counts = calls(&client, 300).await;
    assert_eq!(counts, BTreeMap::from([(a.addr, 100), (b.addr, 100), (c.addr, 100)]));
    let report = report(&world).await;
    assert_eq!((report.accepted, report.http2_connections), (1, 4));
    assert_eq!((report.splitter.streams, report.splitter.open_streams), (300, 0));
}

#[tokio::test]
async fn an_open_connection_follows_the_endpoints() {
    let (a, b) = (Server::new().await, Server::new().await);
    let (world, pod) = world(&[&a]).await;
    let (client, _connection) = client(pod).await;
    assert_eq!(calls(&client, 10).await, BTreeMap::from([(a.addr, 10)]));
    set_servers(&world, &[&a, &b]).await;
    assert_eq!(calls(&client, 100).await, BTreeMap::from([(a.addr, 50), (b.addr, 50)]));
    set_servers(&world, &[&b]).await;
    assert_eq!(calls(&client, 10).await, BTreeMap::from([(b.addr, 10)]));
    // The connection to the endpoint that left is closed.
    until(&world, |pod| pod.http2_connections == 2).await;
}

/// A call that has reached the server and waits there for its answer.
async fn running_call(client: &SendRequest<Bytes>, server: &Server) -> tokio::task::JoinHandle<SocketAddr> {
    let client = client.clone();
    let running = tokio::spawn(async move { call(&client).await });
    server.has_a_call().await;
    running
}

#[tokio::test]
async fn a_stream_on_an_endpoint_that_leaves_finishes() {
    let (slow, other) = (Server::that_waits().await, Server::new().await);
    let (world, pod) = world(&[&slow]).await;
    let (client, _connection) = client(pod).await;
    let running = running_call(&client, &slow).await;
    set_servers(&world, &[&other]).await;
    assert_eq!(call(&client).await, other.addr);
    slow.may_answer.add_permits(1);
    assert_eq!(running.await.unwrap(), slow.addr);
}

#[tokio::test]
async fn an_endpoint_that_cannot_be_dialled_costs_no_call() {
    let alive = Server::new().await;
    let (dead, _held) = nobody();
    let world = World::new();
    world.handle.change_services(listed(&[dead, alive.addr])).await.unwrap();
    let (client, _connection) = client(world.pod()).await;
    assert_eq!(calls(&client, 20).await, BTreeMap::from([(alive.addr, 20)]));
    let report = report(&world).await;
    assert!(report.dials_failed >= 1);
    assert_eq!(report.ejected.iter().map(|ejected| ejected.addr.socket_addr()).collect::<Vec<_>>(), [dead]);
}

#[tokio::test]
async fn an_endpoint_that_does_not_answer_dials_costs_no_call() {
    let alive = Server::new().await;
    let (silent, _held) = black_hole();
    let world = World::impatient();
    world.handle.change_services(listed(&[silent, alive.addr])).await.unwrap();
    let (client, _connection) = client(world.pod()).await;
    assert_eq!(calls(&client, 20).await, BTreeMap::from([(alive.addr, 20)]));
    let report = report(&world).await;
    assert_eq!((report.dials_failed, report.ejected.len()), (0, 0), "the one dial is still under way");
}

#[tokio::test]
async fn a_draining_worker_lets_streams_finish_and_then_ends_the_connection() {
    let server = Server::that_waits().await;
    let (world, pod) = world(&[&server]).await;
    let (client, connection) = client(pod).await;
    let running = running_call(&client, &server).await;
    let mut done = world.handle.drain(Instant::now() + 10 * HANG);
    until(&world, |pod| pod.listeners == 0).await;
    assert!(done.try_recv().is_err(), "a stream is still open");
    server.may_answer.add_permits(1);
    assert_eq!(running.await.unwrap(), server.addr);
    drop(client);
    within(connection).await.unwrap().unwrap();
    within(done).await.unwrap();
}

#[tokio::test]
async fn a_drain_that_takes_too_long_ends_with_the_grace_period() {
    let server = Server::that_waits().await;
    let (world, pod) = world(&[&server]).await;
    let (client, connection) = client(pod).await;
    let mut client = client.ready().await.unwrap();
    let (response, _) = client.send_request(request("/name"), true).unwrap();
    server.has_a_call().await;
    within(world.handle.drain(Instant::now() + Duration::from_millis(400))).await.unwrap();
    within(response).await.unwrap_err();
    drop(client);
    let _ = within(connection).await.unwrap();
}

#[tokio::test]
async fn a_service_that_leaves_the_table_lets_its_streams_finish_and_takes_no_new_ones() {
    let server = Server::that_waits().await;
    let (world, pod) = world(&[&server]).await;
    let (client, connection) = client(pod).await;
    let running = running_call(&client, &server).await;
    world.handle.change_services(gone()).await.unwrap();
    // The client learns of it by GOAWAY.
    within(async {
        while client.clone().ready().await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    server.may_answer.add_permits(1);
    assert_eq!(running.await.unwrap(), server.addr);
    drop(client);
    within(connection).await.unwrap().unwrap();
    until(&world, |pod| pod.http2_connections <= 1).await;
}

#[tokio::test]
async fn a_removed_pods_connections_end() {
    let server = Server::new().await;
    let (world, _) = world(&[&server]).await;
    let (cookie, pod) = world.pod_that_dials(service_addr().socket_addr());
    let (client, connection) = client(pod).await;
    call(&client).await;
    world.handle.remove_pod(cookie).await.unwrap();
    let _ = within(connection).await.unwrap();
}

#[tokio::test]
async fn a_preface_that_comes_byte_by_byte_is_http2_all_the_same() {
    let server = Server::new().await;
    let (world, pod) = world(&[&server]).await;
    let mut stream = TcpStream::connect(pod).await.unwrap();
    stream.set_nodelay(true).unwrap();
    for byte in PREFACE {
        stream.write_all(&[*byte]).await.unwrap();
        report(&world).await;
    }
    stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
    let mut frame = [0; 9];
    within(stream.read_exact(&mut frame)).await.unwrap();
    assert_eq!(frame[3], 4, "our SETTINGS");
    assert_eq!(report(&world).await.http2_connections, 1);
}

#[tokio::test]
async fn a_client_that_hesitates_is_split_even_if_the_server_spoke_first() {
    let (a, b) = (Server::new().await, Server::new().await);
    let (world, pod) = world(&[&a, &b]).await;
    let stream = TcpStream::connect(pod).await.unwrap();
    let beats = world.beats.load(Ordering::Relaxed);
    // Long past the patience with a silent client: an endpoint is connected and has sent its SETTINGS.
    until(&world, |pod| pod.undetected_connections == 1 && world.beats.load(Ordering::Relaxed) > beats + 3).await;
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    assert_eq!(calls(&client, 10).await, BTreeMap::from([(a.addr, 5), (b.addr, 5)]));
    assert_eq!(report(&world).await.undetected_connections, 0);
}

#[tokio::test]
async fn large_bodies_cross_both_ways_on_many_streams_at_once() {
    let (a, b, c) = (Server::new().await, Server::new().await, Server::new().await);
    let (_world, pod) = world(&[&a, &b, &c]).await;
    let (client, _connection) = client(pod).await;
    let mut running = Vec::new();
    for seed in 0..8 {
        let client = client.clone();
        running.push(tokio::spawn(async move {
            let body = noise(seed, 2 * 1024 * 1024 + seed as usize);
            let mut client = client.ready().await.unwrap();
            let (response, mut stream) = client.send_request(request("/echo"), false).unwrap();
            let sent = Bytes::from(body.clone());
            tokio::spawn(async move {
                send_all(&mut stream, sent).await;
                stream.send_data(Bytes::new(), true).unwrap();
            });
            let (echoed, trailers) = collect(response).await;
            assert!(echoed == body, "stream {seed} came back changed");
            assert_eq!(trailers["grpc-status"], "0");
        }));
    }
    for stream in running {
        stream.await.unwrap();
    }
}

#[tokio::test]
async fn many_connections_with_many_streams_share_the_endpoints() {
    let (a, b, c, d) = (Server::new().await, Server::new().await, Server::new().await, Server::new().await);
    let (world, pod) = world(&[&a, &b, &c, &d]).await;
    let mut running = Vec::new();
    for _ in 0..50 {
        let (client, connection) = client(pod).await;
        for _ in 0..20 {
            let client = client.clone();
            running.push(tokio::spawn(async move { calls(&client, 4).await }));
        }
        drop(connection);
    }
    let mut counts = BTreeMap::new();
    for counted in running {
        for (addr, count) in counted.await.unwrap() {
            *counts.entry(addr).or_insert(0) += count;
        }
    }
    assert_eq!(counts.values().sum::<usize>(), 4_000);
    for (addr, count) in &counts {
        assert!((990..=1_010).contains(count), "{addr} got {count}");
    }
    assert_eq!(report(&world).await.splitter.open_streams, 0);
}

#[tokio::test]
async fn the_heartbeat_goes_on_while_calls_come_without_end() {
    let server = Server::new().await;
    let (world, pod) = world(&[&server]).await;
    let (client, _connection) = client(pod).await;
    for _ in 0..50 {
        let client = client.clone();
        tokio::spawn(async move {
            loop {
                call(&client).await;
            }
        });
    }
    let beats = world.beats.load(Ordering::Relaxed);
    until(&world, |_| world.beats.load(Ordering::Relaxed) > beats + 10).await;
    assert!(report(&world).await.splitter.streams > 0);
}

/// Its number goes to the next one, and must not do so while the worker still has the socket.
#[test]
fn a_connection_that_ends_just_before_another_is_accepted_is_closed() {
    let world = World::with(Patience { silence: HANG, partial: HANG });
    world.set_endpoints(&[nobody().0]);
    let pod = world.pod();
    let greeting = [&PREFACE[..], &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat();
    let mut first = connect(pod);
    send(&mut first, &greeting);
    let mut second = connect(pod);
    world.until(|report| report.http2_connections == 1 && report.undetected_connections == 1);

    let held = world.hold();
    let _third = connect(pod);
    let mut beats = u64::MAX;
    eventually(|| {
        std::thread::sleep(Duration::from_millis(300));
        // It stands still: what comes now it finds at once, in this order.
        std::mem::replace(&mut beats, world.beats.load(Ordering::Relaxed)) == world.beats.load(Ordering::Relaxed)
    });
    first.shutdown(std::net::Shutdown::Write).unwrap();
    send(&mut second, &greeting);
    drop(held);
    world.until(|report| report.undetected_connections == 1 && report.http2_connections == 1);
    drop(second);
    world.until(|report| report.http2_connections == 0);
}

/// What it sends is read for a while, or our last words would be lost, but not for as long as it likes.
#[test]
fn who_goes_on_sending_after_its_connections_end_is_cut_off() {
    let world = World::with(Patience { silence: HANG, partial: HANG });
    world.set_endpoints(&[nobody().0]);
    let mut client = connect(world.pod());
    // DATA on stream 0.
    send(&mut client, &[&PREFACE[..], &[0, 0, 0, 4, 0, 0, 0, 0, 0], &[0; 9]].concat());
    let mut heard = Vec::new();
    client.read_to_end(&mut heard).unwrap();
    assert!(heard.ends_with(b"DATA on stream 0"), "no GOAWAY in {heard:02x?}");
    let mut sent = 0;
    let error = loop {
        match client.write(&[0; 16 * 1024]) {
            Ok(n) => sent += n,
            Err(error) => break error,
        }
        // Many times what fits into the sockets' buffers.
        assert!(sent < 64 << 20, "it is still listened to");
    };
    assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
    world.until(|report| report.http2_connections == 0);
}
