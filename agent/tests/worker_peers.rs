//! Peers that are gone and peers that only pause, on real sockets between real network namespaces: the first are noticed
//! on every side and their calls end, the second are waited for. Needs root (CAP_SYS_ADMIN) and `ip`.

use std::io::{ErrorKind, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{Request, Response};
use tokio::sync::watch;

#[path = "worker/nodes.rs"]
mod nodes;
#[path = "worker/support.rs"]
mod support;

use nodes::{Nodes, OTHER, POD};
use support::*;

/// A peer that is silent for so long is gone.
const GONE: Duration = Duration::from_secs(1);
const MEBIBYTE: usize = 1024 * 1024;

struct Scene {
    world: World,
    nodes: Nodes,
    /// The pod's listener, on the wire.
    pod: SocketAddr,
}

impl Scene {
    fn new() -> Self {
        Self::that_gives_up_after(GONE)
    }

    fn that_gives_up_after(gone: Duration) -> Self {
        let (world, nodes) = (World::that_gives_up_after(gone), Nodes::new());
        let listener = nodes.in_pod(|| TcpListener::bind((POD, 0)).unwrap());
        let pod = world.enrol(listener, nodes.pod.try_clone().unwrap());
        Self { world, nodes, pod }
    }

    fn backend(&self, in_pod: bool) -> TcpListener {
        let listener = if in_pod {
            self.nodes.in_pod(|| TcpListener::bind((POD, 0)))
        } else {
            self.nodes.in_other(|| TcpListener::bind((OTHER, 0)))
        };
        let listener = listener.unwrap();
        // So that a reader that stops is felt soon.
        socket2::SockRef::from(&listener).set_recv_buffer_size(64 * 1024).unwrap();
        self.world.set_endpoints(&[listener.local_addr().unwrap()]);
        listener
    }

    fn client(&self, in_pod: bool) -> TcpStream {
        let connect = || connect(self.pod);
        if in_pod { self.nodes.in_pod(connect) } else { self.nodes.in_other(connect) }
    }

    /// An opaque connection with one end on the other node.
    fn relayed(&self, endpoint_is_far: bool) -> (TcpStream, TcpStream) {
        let backend = self.backend(!endpoint_is_far);
        let mut client = self.client(endpoint_is_far);
        socket2::SockRef::from(&client).set_recv_buffer_size(64 * 1024).unwrap();
        send(&mut client, b"hello");
        let mut server = patient(backend.accept().unwrap().0);
        assert_eq!(receive(&mut server, 5), b"hello");
        (client, server)
    }

    /// Several times the bound: by the worker's own clock.
    fn wait_much_longer(&self) {
        let (beats, begin) = (self.world.beats.load(Ordering::Relaxed), std::time::Instant::now());
        eventually(|| self.world.beats.load(Ordering::Relaxed) > beats + 10 && begin.elapsed() > 4 * GONE);
    }
}

/// Writes until nothing more is taken for several of the worker's beats: the count of bytes.
fn fill(world: &World, stream: &TcpStream) -> usize {
    stream.set_nonblocking(true).unwrap();
    let (mut sent, mut refused) = (0, 0);
    while refused < 3 {
        match (&*stream).write(&[7; 64 * 1024]) {
            Ok(n) => (sent, refused) = (sent + n, 0),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                let beats = world.beats.load(Ordering::Relaxed);
                eventually(|| world.beats.load(Ordering::Relaxed) > beats + 1);
                refused += 1;
            }
        }
    }
    stream.set_nonblocking(false).unwrap();
    sent
}

#[test]
fn an_opaque_connection_breaks_when_the_endpoint_is_gone() {
    let scene = Scene::new();
    let (mut client, _server) = scene.relayed(true);
    scene.nodes.other_vanishes();
    send(&mut client, b"are you there?");
    assert!(was_reset(&mut client));
    scene.world.until(|pod| pod.opaque_connections == 0);
}

#[test]
fn an_opaque_connection_breaks_when_the_client_is_gone() {
    let scene = Scene::new();
    let (_client, mut server) = scene.relayed(false);
    scene.nodes.other_vanishes();
    send(&mut server, b"are you there?");
    assert!(was_reset(&mut server));
    scene.world.until(|pod| pod.opaque_connections == 0);
}

#[test]
fn an_idle_connection_breaks_when_one_side_is_gone() {
    for endpoint_is_far in [true, false] {
        let scene = Scene::new();
        let (mut client, mut server) = scene.relayed(endpoint_is_far);
        scene.nodes.other_vanishes();
        assert!(was_reset(if endpoint_is_far { &mut client } else { &mut server }));
    }
}

#[test]
fn a_side_that_does_not_read_is_waited_for_and_loses_nothing() {
    for endpoint_pauses in [true, false] {
        let scene = Scene::new();
        let (client, server) = scene.relayed(endpoint_pauses);
        let (writer, mut reader) = if endpoint_pauses { (client, server) } else { (server, client) };
        let sent = fill(&scene.world, &writer);
        scene.wait_much_longer();
        writer.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(receive_all(&mut reader).len(), sent);
    }
}

#[test]
fn a_side_that_pauses_and_then_is_gone_is_noticed() {
    for endpoint_is_far in [true, false] {
        let scene = Scene::new();
        let (client, server) = scene.relayed(endpoint_is_far);
        let mut writer = if endpoint_is_far { &client } else { &server };
        fill(&scene.world, writer);
        scene.nodes.other_vanishes();
        scene.world.until(|pod| pod.opaque_connections == 0);
        assert!(writer.write_all(&[7; MEBIBYTE]).is_err());
    }
}

/// An HTTP/2 client's stream, and what the endpoint has of it.
struct Call {
    response: h2::client::ResponseFuture,
    request: SendStream<Bytes>,
    received: RecvStream,
    respond: SendResponse<Bytes>,
    /// False: that side's process stands still.
    client_runs: watch::Sender<bool>,
    server_runs: watch::Sender<bool>,
}

/// Windows far above what sockets hold, so that TCP is what stops.
const WINDOW: u32 = 1 << 30;

async fn call(scene: &Scene, endpoint_is_far: bool) -> Call {
    let backend = scene.backend(!endpoint_is_far);
    let stream = scene.client(endpoint_is_far);
    socket2::SockRef::from(&stream).set_recv_buffer_size(64 * 1024).unwrap();
    let mut builder = h2::client::Builder::new();
    let builder = builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW);
    let (client, connection) = builder.handshake(tokio_stream(stream)).await.unwrap();
    let client_runs = run(connection);
    let mut client = client.ready().await.unwrap();
    let request = Request::post("http://echo/x").header("te", "trailers").header("content-type", "application/grpc");
    let (response, request) = client.send_request(request.body(()).unwrap(), false).unwrap();
    let accepted = tokio::task::spawn_blocking(move || backend.accept().unwrap().0).await.unwrap();
    let mut builder = h2::server::Builder::new();
    let builder = builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW);
    let mut server = builder.handshake::<_, Bytes>(tokio_stream(accepted)).await.unwrap();
    let (received, respond) = within(server.accept()).await.unwrap().unwrap();
    let server_runs = run(Box::pin(async move { std::future::poll_fn(|cx| server.poll_closed(cx)).await }));
    Call { response, request, received: received.into_body(), respond, client_runs, server_runs }
}

/// Drives a connection while the switch is on.
fn run<T: Send>(mut connection: impl Future<Output = T> + Unpin + Send + 'static) -> watch::Sender<bool> {
    let (switch, mut runs) = watch::channel(true);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = &mut connection => return,
                changed = runs.wait_for(|runs| !runs) => if changed.is_err() { return },
            }
            if runs.wait_for(|runs| *runs).await.is_err() {
                return;
            }
        }
    });
    switch
}

fn tokio_stream(stream: TcpStream) -> tokio::net::TcpStream {
    stream.set_nonblocking(true).unwrap();
    tokio::net::TcpStream::from_std(stream).unwrap()
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(HANG, future).await.expect("it did not come about")
}

#[tokio::test]
async fn the_streams_of_an_endpoint_that_is_gone_end_with_unavailable() {
    let scene = Scene::new();
    let mut call = call(&scene, true).await;
    scene.nodes.other_vanishes();
    call.request.send_data("are you there?".into(), false).unwrap();
    let response = within(call.response).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "14");
    assert!(response.into_body().is_end_stream(), "trailers only");
}

/// Answers every call on every connection at once.
async fn answer_all(listener: TcpListener) {
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        tokio::spawn(async move {
            let mut server = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((_, mut respond))) = server.accept().await {
                let response = Response::builder().header("grpc-status", "0").body(()).unwrap();
                respond.send_response(response, true).unwrap();
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_no_longer_answers_gets_no_new_calls_long_before_it_is_given_up() {
    let scene = Scene::that_gives_up_after(Duration::from_secs(3600));
    let far = scene.nodes.in_other(|| TcpListener::bind((OTHER, 0))).unwrap();
    let near = scene.nodes.in_pod(|| TcpListener::bind((POD, 0))).unwrap();
    scene.world.set_endpoints(&[far.local_addr().unwrap(), near.local_addr().unwrap()]);
    let servers = [far, near].map(|listener| tokio::spawn(answer_all(listener)));
    let (client, connection) = h2::client::handshake(tokio_stream(scene.client(true))).await.unwrap();
    let _runs = run(connection);
    let mut client = client.ready().await.unwrap();
    let mut call = || {
        let request =
            Request::post("http://echo/x").header("te", "trailers").header("content-type", "application/grpc");
        client.send_request(request.body(()).unwrap(), true).unwrap().0
    };
    for _ in 0..4 {
        within(call()).await.unwrap();
    }
    scene.nodes.other_vanishes();
    let mut caught: Vec<_> = (0..4).map(|_| call()).collect();
    let ejected = || scene.world.pod_report().ejected.len();
    tokio::task::block_in_place(|| eventually(|| ejected() == 1));
    for _ in 0..20 {
        within(call()).await.unwrap();
    }
    let mut waiting = 0;
    for call in &mut caught {
        waiting += usize::from(futures_util::poll!(call).is_pending());
    }
    assert_eq!(waiting, 2, "half of those that came before it was noticed");
    drop(servers);
}

#[tokio::test]
async fn a_stream_that_waits_for_a_gone_endpoint_s_answer_ends_too() {
    let scene = Scene::new();
    let call = call(&scene, true).await;
    scene.nodes.other_vanishes();
    let response = within(call.response).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "14");
}

#[tokio::test]
async fn a_response_that_breaks_off_is_not_taken_for_a_whole_one() {
    let scene = Scene::new();
    let mut call = call(&scene, true).await;
    let mut body = call.respond.send_response(Response::new(()), false).unwrap();
    body.send_data("half a".into(), false).unwrap();
    let mut heard = within(call.response).await.unwrap().into_body();
    assert_eq!(within(heard.data()).await.unwrap().unwrap(), "half a");
    scene.nodes.other_vanishes();
    call.request.send_data("are you there?".into(), false).unwrap();
    let error = within(heard.data()).await.unwrap().unwrap_err();
    assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR));
}

#[tokio::test]
async fn the_streams_of_a_client_that_is_gone_are_cancelled_at_the_endpoint() {
    let scene = Scene::new();
    let mut call = call(&scene, false).await;
    let mut body = call.respond.send_response(Response::new(()), false).unwrap();
    scene.nodes.other_vanishes();
    body.send_data("are you there?".into(), false).unwrap();
    let reason = within(std::future::poll_fn(|cx| body.poll_reset(cx))).await.unwrap();
    assert_eq!(reason, Reason::CANCEL);
}

/// Sends until the other side's pause is felt, pauses long, and counts what arrives in the end.
async fn survives_a_pause(
    scene: &Scene,
    mut sender: SendStream<Bytes>,
    reader: watch::Sender<bool>,
    body: impl Future<Output = RecvStream>,
) {
    const TOTAL: usize = 12 * MEBIBYTE;
    reader.send_replace(false);
    let sending = tokio::spawn(async move {
        let mut left = TOTAL;
        while left > 0 {
            sender.reserve_capacity(left.min(256 * 1024));
            let room = std::future::poll_fn(|cx| sender.poll_capacity(cx)).await.unwrap().unwrap().min(left);
            left -= room;
            sender.send_data(vec![7; room].into(), left == 0).unwrap();
        }
    });
    let begin = std::time::Instant::now();
    while begin.elapsed() < 4 * GONE {
        scene.world.handle.report().await.unwrap();
        tokio::time::sleep(GONE / 20).await;
    }
    assert!(!sending.is_finished(), "the pause was not felt");
    assert_eq!(scene.world.handle.report().await.unwrap().pods[0].http2_connections, 2);
    reader.send_replace(true);
    let (mut body, mut received) = (within(body).await, 0);
    while let Some(bytes) = within(body.data()).await {
        let bytes = bytes.unwrap();
        body.flow_control().release_capacity(bytes.len()).unwrap();
        received += bytes.len();
    }
    assert_eq!(received, TOTAL);
}

#[tokio::test]
async fn an_endpoint_that_pauses_keeps_its_calls() {
    let scene = Scene::new();
    let Call { request, received, server_runs, response: _response, client_runs: _client_runs, .. } =
        call(&scene, true).await;
    survives_a_pause(&scene, request, server_runs, std::future::ready(received)).await;
}

#[tokio::test]
async fn a_client_that_pauses_keeps_its_calls() {
    let scene = Scene::new();
    let mut call = call(&scene, false).await;
    let body = call.respond.send_response(Response::new(()), false).unwrap();
    let response = async { call.response.await.unwrap().into_body() };
    survives_a_pause(&scene, body, call.client_runs, response).await;
}
