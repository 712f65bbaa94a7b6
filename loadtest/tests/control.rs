//! A server that misbehaves on demand: its capacity, its failures, its black holes, on sockets of loopback.

mod peer;

use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use http::Request;
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use loadtest::proto::EchoRequest;
use loadtest::server::{Account, Behaviour, ServerOptions};
use peer::{Peer, TestServer};

const MS: Duration = Duration::from_millis(1);

/// One order to the control listener: status and answer.
async fn ask(control: SocketAddr, method: &str, body: &str) -> (u16, String) {
    let stream = tokio::net::TcpStream::connect(control).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::builder().method(method).uri("/").header("host", "server").body(body.to_owned()).unwrap();
    let (head, body) = sender.send_request(request).await.unwrap().into_parts();
    (head.status.as_u16(), String::from_utf8(body.collect().await.unwrap().to_bytes().into()).unwrap())
}

/// The server behaves so when this returns.
async fn behave(server: &TestServer, json: &str) {
    let (status, said) = ask(server.control, "PUT", json).await;
    assert_eq!(status, 200, "{said}");
}

async fn unary(peer: &mut Peer) -> peer::End {
    peer.call("Unary", &[], &[EchoRequest::default()]).await
}

#[tokio::test]
async fn calls_beyond_the_slots_wait_in_order_for_those_before() {
    let options = ServerOptions { slots: Some(2), service_time: "30ms".parse().unwrap(), ..Default::default() };
    let server = TestServer::start(options).await;
    let mut peer = Peer::connect(server.address).await;
    let start = Instant::now();
    let calls: Vec<_> = (0..6).map(|_| peer.send("Unary", &[], &[EchoRequest::default()])).collect();
    let mut ended = Vec::new();
    for call in calls {
        assert_eq!(call.end().await.status(), "0");
        ended.push(start.elapsed());
    }
    // Two at a time: the fifth and the sixth have waited for two before them.
    for (call, least) in [(0, 30), (2, 60), (4, 90)] {
        assert!(ended[call] >= MS * least, "{ended:?}");
    }
}

#[tokio::test]
async fn a_call_that_is_given_up_while_it_waits_leaves_its_slot_to_the_others() {
    let options = ServerOptions { slots: Some(1), service_time: "1h".parse().unwrap(), ..Default::default() };
    let server = TestServer::start(options).await;
    let mut peer = Peer::connect(server.address).await;
    let waiting: Vec<_> = (0..3).map(|_| peer.send("Unary", &[], &[EchoRequest::default()])).collect();
    let late = peer.call("Unary", &[("grpc-timeout", "20m")], &[EchoRequest::default()]).await;
    assert_eq!(late.status(), "4", "the server keeps the deadline of a call that waits");
    drop(waiting);
    behave(&server, r#"{"slow": 0.000001}"#).await;
    assert_eq!(unary(&mut peer).await.status(), "0");
}

#[tokio::test]
async fn the_account_says_what_the_server_can_do_and_how_it_behaves() {
    let service_time = "4ms..6ms".parse().unwrap();
    let server =
        TestServer::start(ServerOptions { pod: "echo-1".into(), slots: Some(4), service_time, ..Default::default() })
            .await;
    let (status, said) = ask(server.control, "GET", "").await;
    let account: Account = serde_json::from_str(&said).unwrap();
    let behaviour = Behaviour::default();
    let expected = Account { pod: "echo-1".into(), slots: Some(4), service_time_us: 5000, behaviour };
    assert_eq!((status, account), (200, expected));
    behave(&server, r#"{"slow": 20}"#).await;
    let account: Account = serde_json::from_str(&ask(server.control, "GET", "").await.1).unwrap();
    assert_eq!(account.behaviour.slow, 20.0);
}

#[tokio::test]
async fn an_order_that_has_no_meaning_is_refused_and_changes_nothing() {
    let server = TestServer::start(ServerOptions::default()).await;
    behave(&server, r#"{"slow": 3}"#).await;
    for (method, body, cure) in [
        ("PUT", "slow", "for_ms"),
        ("PUT", r#"{"slow": -1}"#, "factor"),
        ("PUT", r#"{"hole": 1}"#, "black_hole"),
        ("POST", "", "PUT"),
    ] {
        let (status, said) = ask(server.control, method, body).await;
        assert!(status == 400 && said.contains(cure), "{body}: {said}");
    }
    let (status, _) = ask(server.control, "PUT", &" ".repeat(10_000)).await;
    assert_eq!(status, 400);
    assert!(ask(server.control, "GET", "").await.1.contains(r#""slow":3"#));
}

#[tokio::test]
async fn failures_come_as_trailers_only_or_after_headers_as_told_and_end_when_told() {
    let server = TestServer::start(ServerOptions { pod: "echo-1".into(), ..Default::default() }).await;
    let mut peer = Peer::connect(server.address).await;
    behave(&server, r#"{"fail": {}}"#).await;
    let end = unary(&mut peer).await;
    assert!(end.trailers.is_none() && end.messages.is_empty());
    assert_eq!((end.status(), end.header("x-sluice-pod"), end.header("x-sluice-trailer")), ("14", "echo-1", "end"));

    behave(&server, r#"{"fail": {"code": "resource-exhausted", "after_headers": true}}"#).await;
    for method in ["Unary", "ServerStream"] {
        let end = peer.call(method, &[], &[EchoRequest::default()]).await;
        assert!(end.messages.is_empty() && end.headers_of("grpc-status").is_empty());
        assert_eq!((end.trailer("grpc-status"), end.trailer("x-sluice-trailer")), ("8", "end"));
        assert_eq!((end.header("x-sluice-pod"), end.headers_of("content-length").len()), ("echo-1", 0));
    }

    behave(&server, r#"{"fail": {"share": 0}}"#).await;
    assert_eq!(unary(&mut peer).await.status(), "0");
    behave(&server, "{}").await;
    assert_eq!(unary(&mut peer).await.status(), "0");
}

/// Bytes that were sent and that the peer's kernel has not acknowledged, in segments.
fn unacknowledged(stream: &TcpStream) -> u32 {
    // SAFETY: all of its fields are integers.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the pointers are to locals that outlive the call, and the length is the first one's own.
    let result = unsafe {
        libc::getsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &raw mut length)
    };
    assert_eq!(result, 0);
    info.tcpi_unacked
}

#[tokio::test]
async fn a_black_hole_acknowledges_nothing_takes_no_connection_and_gives_both_back_when_it_ends() {
    let server = TestServer::start(ServerOptions::default()).await;
    let mut peer = Peer::connect(server.address).await;
    assert_eq!(unary(&mut peer).await.status(), "0");
    let mut open = TcpStream::connect(server.address).unwrap();

    behave(&server, r#"{"black_hole": true}"#).await;
    let error = TcpStream::connect_timeout(&server.address, 300 * MS).unwrap_err();
    assert!([ErrorKind::TimedOut, ErrorKind::WouldBlock].contains(&error.kind()), "{error}");
    open.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    let call = peer.send("Unary", &[], &[EchoRequest::default()]);
    tokio::time::sleep(100 * MS).await;
    assert!(unacknowledged(&open) > 0, "its kernel has seen the bytes");

    behave(&server, "{}").await;
    assert_eq!(call.end().await.status(), "0", "what was sent meanwhile is sent again by TCP");
    assert!(TcpStream::connect(server.address).is_ok());
    while unacknowledged(&open) > 0 {
        tokio::time::sleep(10 * MS).await;
    }
}

#[tokio::test]
async fn in_a_black_hole_nothing_that_was_under_way_is_answered() {
    let server = TestServer::start(ServerOptions::default()).await;
    let mut peer = Peer::connect(server.address).await;
    let mut call = Box::pin(peer.send("Unary", &[], &[EchoRequest { delay_ms: 1000, ..Default::default() }]).end());
    // The call has arrived once a later one is answered.
    unary(&mut Peer::connect(server.address).await).await;
    tokio::select! {
        biased;
        _ = &mut call => panic!("answered too early"),
        () = tokio::time::sleep(10 * MS) => {}
    }
    behave(&server, r#"{"black_hole": true}"#).await;
    assert!(tokio::time::timeout(1500 * MS, &mut call).await.is_err(), "answered out of a black hole");
    behave(&server, "{}").await;
    assert_eq!(call.await.status(), "0");
}

#[tokio::test]
async fn a_behaviour_ends_by_itself_after_the_time_that_it_was_given() {
    let server = TestServer::start(ServerOptions::default()).await;
    behave(&server, r#"{"black_hole": true, "for_ms": 200}"#).await;
    let start = Instant::now();
    // A later order is not ended by the time of an earlier one.
    behave(&server, r#"{"fail": {}, "for_ms": 300}"#).await;
    let mut peer = Peer::connect(server.address).await;
    while unary(&mut peer).await.status() != "0" {
        tokio::time::sleep(10 * MS).await;
    }
    assert!(start.elapsed() >= 300 * MS, "well again too early");
    assert!(ask(server.control, "GET", "").await.1.contains(r#""fail":null"#));
}
