//! The rules of echo.proto, asked one by one by a plain h2 client.

mod peer;

use bytes::Bytes;
use loadtest::proto::EchoRequest;
use loadtest::server::ServerOptions;
use peer::{End, Peer, TestServer};

async fn call(method: &str, headers: &[(&str, &str)], messages: &[EchoRequest]) -> End {
    let server = TestServer::start(ServerOptions { pod: "pod-7".into(), ..Default::default() }).await;
    Peer::connect(server.address).await.call(method, headers, messages).await
}

fn payload(text: &'static str) -> EchoRequest {
    EchoRequest { payload: Bytes::from_static(text.as_bytes()), ..Default::default() }
}

fn failing(text: &'static str) -> EchoRequest {
    let fail_details = Bytes::from_static(b"\x00\xffdetails");
    EchoRequest { fail_code: 9, fail_message: "no ünit".into(), fail_details, ..payload(text) }
}

#[tokio::test]
async fn every_answer_names_the_pod_and_ends_with_the_trailer() {
    for method in ["Unary", "ClientStream", "ServerStream", "BidiStream"] {
        let end = call(method, &[], &[payload("x")]).await;
        assert_eq!((end.header("x-sluice-pod"), end.trailer("x-sluice-trailer")), ("pod-7", "end"), "{method}");
        assert!(end.header("x-sluice-endpoint").starts_with("127.0.0.1:"));
        assert_eq!((end.status(), end.messages.len()), ("0", 1), "{method}");
        assert_eq!(end.messages[0].pod, "pod-7");
        assert_eq!(end.messages[0].peer, end.client.to_string());
    }
}

#[tokio::test]
async fn echo_metadata_comes_back_in_order_and_untouched() {
    let sent = [
        ("x-echo-a", "1"),
        ("x-echo-b-bin", "AAH/"),
        ("x-echo-a", "2"),
        ("x-echo-b-bin", "AAE,Ag"),
        ("x-echo-trailer-c", "3"),
        ("x-echo-trailer-c", "4"),
        ("x-echo-trailer-d-bin", "/w"),
        ("x-other", "5"),
    ];
    let end = call("BidiStream", &sent, &[payload("x")]).await;
    assert_eq!(end.headers_of("x-echo-a"), ["1", "2"]);
    assert_eq!(end.headers_of("x-echo-b-bin"), ["AAH/", "AAE,Ag"]);
    assert_eq!(end.trailers_of("x-echo-trailer-c"), ["3", "4"]);
    assert_eq!(end.trailers_of("x-echo-trailer-d-bin"), ["/w"]);
    assert!(end.headers_of("x-echo-trailer-c").is_empty() && end.headers_of("x-other").is_empty());
    assert!(end.trailers_of("x-echo-a").is_empty());
}

#[tokio::test]
async fn a_failure_has_status_message_details_and_all_metadata_in_one_block() {
    let end = call("Unary", &[("x-echo-a", "1"), ("x-echo-trailer-b", "2")], &[failing("x")]).await;
    assert!(end.trailers.is_none() && end.messages.is_empty());
    assert_eq!((end.status(), end.header("grpc-message")), ("9", "no%20%C3%BCnit"));
    assert_eq!(end.header("grpc-status-details-bin").trim_end_matches('='), "AP9kZXRhaWxz");
    for (name, value) in
        [("x-sluice-trailer", "end"), ("x-sluice-pod", "pod-7"), ("x-echo-a", "1"), ("x-echo-trailer-b", "2")]
    {
        assert_eq!(end.header(name), value);
    }
}

#[tokio::test]
async fn in_streams_the_failure_comes_after_the_messages() {
    let end = call("ServerStream", &[], &[EchoRequest { response_count: 3, ..failing("x") }]).await;
    assert_eq!((end.status(), end.messages.len(), end.trailer("x-sluice-trailer")), ("9", 3, "end"));
    let end = call("BidiStream", &[], &[payload("a"), failing("b"), payload("c")]).await;
    assert_eq!((end.status(), end.messages.len()), ("9", 2));
    let end = call("ClientStream", &[], &[failing("a"), payload("b")]).await;
    assert_eq!((end.status(), end.messages.len()), ("9", 0));
}

#[tokio::test]
async fn messages_and_bytes_are_counted_over_the_call() {
    let end = call("ClientStream", &[], &[payload("a"), payload("bcd")]).await;
    let answer = &end.messages[0];
    assert_eq!((answer.received_messages, answer.received_bytes, &answer.payload[..]), (2, 4, &b"bcd"[..]));
    let end = call("BidiStream", &[], &[payload("a"), payload("bcd")]).await;
    let counts: Vec<_> = end.messages.iter().map(|m| (m.received_messages, m.received_bytes)).collect();
    assert_eq!(counts, [(1, 1), (2, 4)]);
    assert_eq!(end.messages[0].payload, "a");
}

#[tokio::test]
async fn response_size_and_count_are_as_asked() {
    for size in [1, 65_536, 65_537] {
        let asked = EchoRequest { response_size: size, response_count: 2, ..payload("x") };
        let end = call("ServerStream", &[], &[asked]).await;
        assert_eq!(end.messages.iter().map(|m| m.payload.len()).collect::<Vec<_>>(), [size as usize; 2]);
    }
    let end = call("ServerStream", &[], &[payload("x")]).await;
    assert_eq!(end.messages.len(), 1);
}

#[tokio::test]
async fn the_server_sees_the_deadline_and_keeps_it() {
    let end = call("Unary", &[("grpc-timeout", "60S")], &[payload("x")]).await;
    assert_eq!(end.messages[0].deadline_ms, Some(60_000));
    let end = call("Unary", &[], &[payload("x")]).await;
    assert_eq!(end.messages[0].deadline_ms, None);
    let late = EchoRequest { delay_ms: 60_000, ..payload("x") };
    let end = call("Unary", &[("grpc-timeout", "20m")], &[late]).await;
    assert_eq!(end.status(), "4");
}

#[tokio::test]
async fn an_unknown_method_is_unimplemented() {
    assert_eq!(call("Nothing", &[], &[payload("x")]).await.status(), "12");
}
