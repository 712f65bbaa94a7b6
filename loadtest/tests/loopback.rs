//! Server and client over loopback in one process: every rule of echo.proto, what a run counts, and that a connection's
//! end costs no call. A plain h2 client asks for what the load generator never sends.

mod peer;

use std::time::Duration;

use clap::Parser;
use loadtest::args::{Cli, Command, LoadArgs};
use loadtest::code::Code;
use loadtest::proto::EchoRequest;
use loadtest::run::{Outcome, run};
use loadtest::server::ServerOptions;
use loadtest::stats::Endpoint;
use peer::{Peer, TestServer};

/// The load that these flags ask for.
fn load(flags: &str) -> LoadArgs {
    let line = "loadtest run host:1".split(' ').chain(flags.split_whitespace());
    match Cli::try_parse_from(line).unwrap().command {
        Command::Run(args) => args.load,
        other => panic!("{other:?}"),
    }
}

async fn run_against(server: &TestServer, flags: &str) -> Outcome {
    run("test", &server.address.to_string(), &load(flags)).await.unwrap()
}

#[tokio::test]
async fn every_kind_of_call_succeeds_and_is_counted_once() {
    let server = TestServer::start(ServerOptions::default()).await;
    for kind in ["unary", "client-stream", "server-stream", "bidi"] {
        for flags in ["--size 0", "--size 100 --response-size 7", "--size 70000", "--response-size 70000"] {
            let outcome = run_against(&server, &format!("--rpcs 40 --kind {kind} --messages 5 {flags}")).await;
            let tally = outcome.tally;
            assert_eq!((tally.rpcs, tally.failed()), (40, 0), "{kind} {flags}: {:?}", tally.by_code);
            assert_eq!((outcome.not_started, outcome.resent, outcome.cut_short), (0, 0, None));
        }
    }
}

#[tokio::test]
async fn the_endpoint_is_the_address_that_the_server_was_reached_at_and_its_pod_is_beside_it() {
    let server = TestServer::start(ServerOptions { pod: "backend-1".into(), ..Default::default() }).await;
    let tally = run_against(&server, "--rpcs 30 --connections 3").await.tally;
    let answered = &tally.endpoints[&Endpoint::Address(server.address)];
    assert_eq!((answered.calls, answered.pod.as_str(), tally.endpoints.len()), (30, "backend-1", 1));
}

#[tokio::test]
async fn an_open_loop_makes_exactly_the_calls_of_its_schedule() {
    let server = TestServer::start(ServerOptions::default()).await;
    let outcome = run_against(&server, "--rate 2000 --rpcs 300 --connections 2 --streams 5").await;
    assert_eq!((outcome.tally.rpcs, outcome.tally.failed(), outcome.not_started), (300, 0, 0));
    assert!(outcome.elapsed >= Duration::from_micros(299 * 500));
}

#[tokio::test]
async fn in_an_open_loop_a_slow_server_shows_in_the_latency_of_the_calls_that_had_to_wait() {
    let delay = "20ms".parse().unwrap();
    let server = TestServer::start(ServerOptions { delay, ..Default::default() }).await;
    // One at a time, due all at once: the tenth has waited for nine.
    let outcome = run_against(&server, "--rate 1000000 --rpcs 10 --streams 1").await;
    assert!(outcome.tally.latency.max() >= 195_000_000, "{}", outcome.tally.latency.max());
    let outcome = run_against(&server, "--rpcs 10 --streams 1").await;
    assert!(outcome.tally.latency.min() >= 19_000_000);
}

#[tokio::test]
async fn a_run_by_duration_ends_and_counts_what_it_did() {
    let server = TestServer::start(ServerOptions::default()).await;
    let outcome = run_against(&server, "--duration 100ms").await;
    assert!(outcome.tally.rpcs > 0 && outcome.tally.failed() == 0);
    assert!(outcome.elapsed >= Duration::from_millis(100));
}

#[tokio::test]
async fn failures_are_counted_by_their_status_and_belong_to_the_endpoint_that_gave_them() {
    let options = ServerOptions { error_rate: 1.0, error_code: Some(Code::RESOURCE_EXHAUSTED), ..Default::default() };
    let server = TestServer::start(options).await;
    let tally = run_against(&server, "--rpcs 20").await.tally;
    assert_eq!((tally.rpcs, tally.by_code[Code::RESOURCE_EXHAUSTED.index()]), (20, 20));
    assert_eq!(tally.endpoints[&Endpoint::Address(server.address)].calls, 20);
    assert!(tally.latency.is_empty());
}

#[tokio::test]
async fn a_call_beyond_its_timeout_ends_with_deadline_exceeded() {
    let delay = "10s".parse().unwrap();
    let server = TestServer::start(ServerOptions { delay, ..Default::default() }).await;
    let tally = run_against(&server, "--rpcs 4 --timeout 30ms").await.tally;
    assert_eq!((tally.rpcs, tally.by_code[Code::DEADLINE_EXCEEDED.index()]), (4, 4));
}

#[tokio::test]
async fn a_server_that_ends_its_connections_all_the_time_costs_no_call() {
    let max_connection_age = Some(Duration::from_millis(200));
    let server = TestServer::start(ServerOptions { max_connection_age, ..Default::default() }).await;
    let outcome = run_against(&server, "--duration 1100ms --connections 2 --streams 8 --reconnect").await;
    assert_eq!(outcome.tally.failed(), 0, "{:?}", outcome.tally.by_code);
    assert!(outcome.connections > 2, "only {} connections", outcome.connections);
    assert_eq!(outcome.cut_short, None);
}

#[tokio::test]
async fn without_reconnect_a_run_whose_connections_end_says_so_and_fails_no_call() {
    let max_connection_age = Some(Duration::from_millis(50));
    let server = TestServer::start(ServerOptions { max_connection_age, ..Default::default() }).await;
    let outcome = run_against(&server, "--rpcs 100000000").await;
    assert_eq!(outcome.tally.failed(), 0, "{:?}", outcome.tally.by_code);
    assert_eq!(outcome.not_started, 100_000_000 - outcome.tally.rpcs);
    assert!(outcome.cut_short.unwrap().contains("--reconnect"));
}

#[tokio::test]
async fn more_calls_than_the_server_allows_at_a_time_wait_for_their_turn() {
    let server = TestServer::start(ServerOptions { max_concurrent_streams: Some(2), ..Default::default() }).await;
    let tally = run_against(&server, "--rpcs 500 --streams 20").await.tally;
    assert_eq!((tally.rpcs, tally.failed()), (500, 0), "{:?}", tally.by_code);
}

#[tokio::test]
async fn a_stopping_server_finishes_the_running_call() {
    let mut server = TestServer::start(ServerOptions::default()).await;
    let mut peer = Peer::connect(server.address).await;
    let call = peer.send("Unary", &[], &[EchoRequest { delay_ms: 100, ..Default::default() }]);
    // The call has arrived once a later one is answered.
    peer.call("Unary", &[], &[EchoRequest::default()]).await;
    server.stop();
    assert_eq!(call.end().await.status(), "0");
    server.stopped().await;
}

#[tokio::test]
async fn an_unreachable_target_is_an_error_that_names_it() {
    // Bound and not listening: nobody else can get the port.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let target = socket.local_addr().unwrap().as_socket().unwrap().to_string();
    let error = format!("{:#}", run("test", &target, &load("")).await.unwrap_err());
    assert!(error.contains(&target) && error.contains("check the address") && error.contains("refused"), "{error}");
}

#[tokio::test]
async fn plain_http_2_is_answered_with_a_body() {
    let server = TestServer::start(ServerOptions { pod: "backend-1".into(), ..Default::default() }).await;
    let stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::get("http://server/").body(()).unwrap();
    let response = client.send_request(request, true).unwrap().0.await.unwrap();
    assert_eq!(response.status(), http::StatusCode::OK);
    assert_eq!(response.headers()["x-sluice-pod"], "backend-1");
    let mut body = response.into_body();
    assert!(!body.data().await.unwrap().unwrap().is_empty());
    assert!(body.data().await.is_none() && body.trailers().await.unwrap().is_none());
}
