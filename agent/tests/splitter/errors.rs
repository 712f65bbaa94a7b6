//! Promises about breaches of RFC 9113 §3–§6: which end a connection and with which code, which end a stream, and that
//! neither reaches anybody else.

use crate::script::{Peer, Script, in_all_chunks};
use crate::wire::*;

/// A client with stream 1 open, 3 completed, and 5 cancelled by the client.
fn stage(s: &mut Script) -> (Peer, Peer) {
    let (mut client, mut server) = s.call();
    s.send(&client, headers(3, END, CALL));
    s.send(&server, [headers(3, MORE, OK), headers(3, END, DONE)].concat());
    s.send(&client, [headers(5, MORE, CALL), reset(5, CANCEL)].concat());
    client.got();
    server.got();
    (client, server)
}

/// `bytes` from a client end its connection with `code`; its open call is cancelled, the endpoint hears nothing else.
fn ends_client(why: &str, bytes: &[u8], code: u32) {
    in_all_chunks(1, |mut s| {
        let (mut client, mut server) = stage(&mut s);
        let mut other = s.client();
        s.send(&client, bytes);
        let got = client.got();
        let [Got::GoAway { code: said, .. }, Got::Closed] = got[..] else { panic!("{why}: {got:?}") };
        assert_eq!(said, code, "{why}");
        assert_eq!(server.got(), [was_reset(1, CANCEL)], "{why}");
        assert_eq!(s.open_streams(), 0, "{why}");
        s.send(&other, headers(1, END, CALL));
        assert_eq!(server.got(), [heard(7, END, CALL)], "{why}");
        s.send(&server, headers(7, END, OK));
        assert_eq!(other.got(), [heard(1, END, OK)], "{why}");
    });
}

/// `bytes` from an endpoint end its connection with `code`; its call fails, the client's connection goes on.
fn ends_server(why: &str, bytes: &[u8], code: u32) {
    in_all_chunks(1, |mut s| {
        let (mut client, mut server) = stage(&mut s);
        s.send(&server, bytes);
        let got = server.got();
        let Some([Got::GoAway { code: said, .. }, ..]) = got.get(..2) else { panic!("{why}: {got:?}") };
        assert_eq!((*said, got.last()), (code, Some(&Got::Closed)), "{why}: {got:?}");
        let got = client.got();
        let [Got::Headers { end: END, .. }, Got::Reset { stream: 1, code: NO_ERROR }] = got[..] else {
            panic!("{why}: {got:?}")
        };
        assert_eq!(s.open_streams(), 0, "{why}");
        s.send(&client, headers(7, END, CALL));
        assert_eq!(s.server().got(), [heard(1, END, CALL)], "{why}");
    });
}

/// `bytes` of a client end its stream 1 with `code` and nothing else.
fn ends_stream(why: &str, bytes: &[u8], code: u32) {
    in_all_chunks(1, |mut s| {
        let (mut client, mut server) = stage(&mut s);
        s.send(&client, bytes);
        assert_eq!(client.got(), [was_reset(1, code)], "{why}");
        assert_eq!(server.got(), [was_reset(1, CANCEL)], "{why}");
        s.send(&client, headers(7, END, CALL));
        assert_eq!(server.got(), [heard(7, END, CALL)], "{why}");
    });
}

/// `bytes` change nothing for either side.
fn is_ignored(why: &str, bytes: &[u8]) {
    in_all_chunks(1, |mut s| {
        let (mut client, mut server) = stage(&mut s);
        s.send(&client, bytes);
        assert_eq!((client.got(), server.got()), (vec![], vec![]), "{why}");
        s.send(&client, data(1, END, b"on"));
        assert_eq!(server.got(), [bytes_of(b"on")], "{why}");
    });
}

fn bytes_of(body: &[u8]) -> Got {
    bytes(1, END, body)
}

/// Breaches that both faces of the splitter answer alike.
fn by_either_side() -> Vec<(&'static str, Vec<u8>, u32)> {
    let head = block(OK);
    vec![
        ("DATA on stream 0", frame(DATA, 0, 0, b"x"), PROTOCOL_ERROR),
        ("HEADERS on stream 0", frame(HEADERS, END_HEADERS, 0, &head), PROTOCOL_ERROR),
        ("PRIORITY on stream 0", frame(PRIORITY, 0, 0, &[0; 5]), PROTOCOL_ERROR),
        ("RST_STREAM on stream 0", reset(0, CANCEL), PROTOCOL_ERROR),
        ("SETTINGS on a stream", frame(SETTINGS, 0, 1, &[]), PROTOCOL_ERROR),
        ("PING on a stream", frame(PING, 0, 1, &[0; 8]), PROTOCOL_ERROR),
        ("GOAWAY on a stream", frame(GOAWAY, 0, 1, &[0; 8]), PROTOCOL_ERROR),
        ("PUSH_PROMISE", frame(PUSH_PROMISE, END_HEADERS, 1, &[&[0, 0, 0, 2], &head[..]].concat()), PROTOCOL_ERROR),
        ("a frame of 16,385 bytes", frame(DATA, 0, 1, &[0; 16_385]), FRAME_SIZE_ERROR),
        ("an unknown frame of 16,385 bytes", frame(77, 0, 1, &[0; 16_385]), FRAME_SIZE_ERROR),
        ("RST_STREAM of 3 bytes", frame(RST_STREAM, 0, 1, &[0; 3]), FRAME_SIZE_ERROR),
        ("SETTINGS of 5 bytes", frame(SETTINGS, 0, 0, &[0; 5]), FRAME_SIZE_ERROR),
        ("an acknowledgement with a payload", frame(SETTINGS, ACK, 0, &[0; 6]), FRAME_SIZE_ERROR),
        ("PING of 7 bytes", frame(PING, 0, 0, &[0; 7]), FRAME_SIZE_ERROR),
        ("GOAWAY of 7 bytes", frame(GOAWAY, 0, 0, &[0; 7]), FRAME_SIZE_ERROR),
        ("WINDOW_UPDATE of 3 bytes", frame(WINDOW_UPDATE, 0, 0, &[0; 3]), FRAME_SIZE_ERROR),
        ("HEADERS too short for its priority", frame(HEADERS, END_HEADERS | PRIORITIZED, 1, &[0; 4]), FRAME_SIZE_ERROR),
        ("WINDOW_UPDATE of 0", window(0, 0), PROTOCOL_ERROR),
        ("a connection window above the maximum", window(0, 0x7fff_ffff), FLOW_CONTROL_ERROR),
        ("a stream window above the maximum", settings(&[(INITIAL_WINDOW_SIZE, 0x8000_0000)]), FLOW_CONTROL_ERROR),
        ("a frame size below the minimum", settings(&[(MAX_FRAME_SIZE, 16_383)]), PROTOCOL_ERROR),
        ("a frame size above the maximum", settings(&[(MAX_FRAME_SIZE, 1 << 24)]), PROTOCOL_ERROR),
        ("ENABLE_PUSH of 2", settings(&[(ENABLE_PUSH, 2)]), PROTOCOL_ERROR),
        ("DATA with more padding than bytes", frame(DATA, PADDED, 1, &[3, 0, 0]), PROTOCOL_ERROR),
        ("DATA without its padding's length", frame(DATA, PADDED, 1, &[]), PROTOCOL_ERROR),
        ("HEADERS with more padding than bytes", frame(HEADERS, END_HEADERS | PADDED, 1, &[9, 0]), PROTOCOL_ERROR),
        ("CONTINUATION without HEADERS", frame(CONTINUATION, END_HEADERS, 1, &head), PROTOCOL_ERROR),
        ("DATA inside a header block", [frame(HEADERS, 0, 1, &head), data(1, END, b"")].concat(), PROTOCOL_ERROR),
        ("PING inside a header block", [frame(HEADERS, 0, 1, &head), ping(0, &[0; 8])].concat(), PROTOCOL_ERROR),
        (
            "an unknown frame inside a header block",
            [frame(HEADERS, 0, 1, &head), frame(77, 0, 1, b"")].concat(),
            PROTOCOL_ERROR,
        ),
        (
            "CONTINUATION of another stream",
            [frame(HEADERS, 0, 1, &head), frame(CONTINUATION, END_HEADERS, 3, &[])].concat(),
            PROTOCOL_ERROR,
        ),
        ("an index that names nothing", frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0x80]), COMPRESSION_ERROR),
        ("an index past the table", frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0xff, 0x40]), COMPRESSION_ERROR),
        ("a header block cut short", frame(HEADERS, END_HEADERS | END_STREAM, 1, &head[..5]), COMPRESSION_ERROR),
        (
            "a table size above ours",
            frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0x3f, 0xe2, 0x1f]),
            COMPRESSION_ERROR,
        ),
        ("DATA on an idle stream", data(99, MORE, b"x"), PROTOCOL_ERROR),
        ("RST_STREAM on an idle stream", reset(99, CANCEL), PROTOCOL_ERROR),
        ("WINDOW_UPDATE on an idle stream", window(99, 1), PROTOCOL_ERROR),
        ("PRIORITY of 4 bytes on an idle stream", frame(PRIORITY, 0, 99, &[0; 4]), FRAME_SIZE_ERROR),
        ("PRIORITY of an idle stream on itself", frame(PRIORITY, 0, 99, &[0, 0, 0, 99, 0]), PROTOCOL_ERROR),
        ("DATA on an even stream", data(2, MORE, b"x"), PROTOCOL_ERROR),
        ("WINDOW_UPDATE on an even stream", window(2, 1), PROTOCOL_ERROR),
    ]
}

#[test]
fn a_breach_by_a_client_ends_its_connection_with_the_right_code_and_no_other() {
    for (why, bytes, code) in by_either_side() {
        ends_client(why, &bytes, code);
    }
}

#[test]
fn a_breach_by_an_endpoint_ends_its_connection_with_the_right_code_and_no_client_s() {
    for (why, bytes, code) in by_either_side() {
        ends_server(why, &bytes, code);
    }
    ends_server("a server that turns push on", &settings(&[(ENABLE_PUSH, 1)]), PROTOCOL_ERROR);
    ends_server("HEADERS on an idle stream", &headers(99, MORE, OK), PROTOCOL_ERROR);
    ends_server("HEADERS on an even stream", &headers(2, MORE, OK), PROTOCOL_ERROR);
}

#[test]
fn stream_ids_of_a_client_are_odd_and_rise() {
    ends_client("an even id", &headers(8, END, CALL), PROTOCOL_ERROR);
    ends_client("an id that ended", &headers(3, END, CALL), STREAM_CLOSED);
    in_all_chunks(1, |mut s| {
        let mut client = s.client();
        s.send(&client, headers(9, END, CALL));
        s.send(&client, headers(7, END, CALL));
        assert_eq!(client.got(), [bye(9, PROTOCOL_ERROR), Got::Closed]);
    });
}

#[test]
fn a_connection_that_begins_wrongly_ends_at_once() {
    for bytes in [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r!".to_vec(),
        [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &ping(0, &[0; 8])].concat(),
        [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(SETTINGS, ACK, 0, &[])].concat(),
        [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &headers(1, END, CALL)].concat(),
    ] {
        in_all_chunks(1, |mut s| {
            let mut client = s.silent_client();
            s.send(&client, &bytes);
            assert_eq!(client.got(), [bye(0, PROTOCOL_ERROR), Got::Closed]);
            assert!(s.accept_any().is_none());
        });
    }
    in_all_chunks(1, |mut s| {
        let client = s.client();
        s.send(&client, headers(1, END, CALL));
        let (_, mut server) = s.accept_any().unwrap();
        s.send(&server, ping(0, &[0; 8]));
        assert_eq!(server.got(), [bye(0, PROTOCOL_ERROR), Got::Closed]);
    });
}

#[test]
fn a_breach_on_one_stream_ends_that_stream_alone() {
    ends_stream("WINDOW_UPDATE of 0", &window(1, 0), PROTOCOL_ERROR);
    ends_stream("a window above the maximum", &window(1, 0x7fff_ffff), FLOW_CONTROL_ERROR);
    ends_stream("PRIORITY of 4 bytes", &frame(PRIORITY, 0, 1, &[0; 4]), FRAME_SIZE_ERROR);
    ends_stream("PRIORITY on itself", &frame(PRIORITY, 0, 1, &[0, 0, 0, 1, 0]), PROTOCOL_ERROR);
    ends_stream("trailers that do not end", &headers(1, MORE, DONE), PROTOCOL_ERROR);
}

#[test]
fn frames_after_a_stream_s_end_by_its_sender_are_errors_of_that_stream() {
    for late in [data(1, MORE, b"x"), data(1, END, b""), headers(1, END, DONE)] {
        in_all_chunks(1, |mut s| {
            let (mut client, mut server) = s.call();
            s.send(&client, data(1, END, b""));
            s.send(&client, &late);
            assert_eq!(client.got(), [was_reset(1, STREAM_CLOSED)]);
            assert_eq!(server.got(), [bytes(1, END, b""), was_reset(1, CANCEL)]);
        });
    }
    in_all_chunks(1, |mut s| {
        let (mut client, _server) = stage(&mut s);
        s.send(&client, data(3, MORE, b"on a stream that ended in both directions"));
        assert_eq!(client.got(), [was_reset(3, STREAM_CLOSED)]);
        s.send(&client, data(5, MORE, b"on a stream that its sender reset"));
        assert_eq!(client.got(), [was_reset(5, STREAM_CLOSED)]);
    });
}

#[test]
fn frames_that_crossed_our_reset_are_ignored() {
    in_all_chunks(1, |mut s| {
        let (mut client, mut server) = s.call();
        s.send(&server, reset(1, CANCEL));
        assert_eq!(client.got(), [was_reset(1, CANCEL)]);
        s.send(&client, [data(1, MORE, b"x"), window(1, 1), headers(1, END, DONE), reset(1, CANCEL)].concat());
        assert_eq!((client.got(), server.got()), (vec![], vec![]));
        s.send(&client, [headers(3, MORE, CALL), reset(3, CANCEL)].concat());
        s.send(&server, [headers(3, MORE, OK), data(3, MORE, b"x"), window(3, 1), headers(3, END, DONE)].concat());
        assert_eq!(server.got(), [heard(3, MORE, CALL), was_reset(3, CANCEL)]);
        assert_eq!(client.got(), []);
    });
}

#[test]
fn what_means_nothing_to_us_is_ignored() {
    is_ignored("an unknown frame", &frame(0xbe, 0xff, 1, b"whatever"));
    is_ignored("an unknown frame on stream 0", &frame(0xbe, 0xff, 0, b""));
    is_ignored("PRIORITY", &frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 7]));
    is_ignored("PRIORITY of an idle stream", &frame(PRIORITY, 0, 9, &[0, 0, 0, 1, 7]));
    is_ignored("PING's acknowledgement", &ping(ACK, b"whatever"));
    is_ignored("a client's GOAWAY", &goaway(0, NO_ERROR));
    is_ignored("WINDOW_UPDATE on a stream that ended", &window(3, 1));
    is_ignored("RST_STREAM on a stream that ended", &reset(3, CANCEL));
    is_ignored("undefined flags", &frame(WINDOW_UPDATE, 0xff, 0, &[0, 0, 0, 1]));
    is_ignored("the reserved bit", &frame(WINDOW_UPDATE, 0, 0x8000_0001, &[0x80, 0, 0, 1]));
}

#[test]
fn ping_and_settings_are_answered_hop_by_hop_and_never_forwarded() {
    in_all_chunks(1, |mut s| {
        let (mut client, mut server) = s.call();
        s.send(&client, ping(0, b"\0\x01abcd\xfe\xff"));
        assert_eq!(client.got(), [Got::Ping { ack: true, opaque: *b"\0\x01abcd\xfe\xff" }]);
        s.send(&server, ping(0, b"from srv"));
        assert_eq!(server.got(), [Got::Ping { ack: true, opaque: *b"from srv" }]);
        client.noise.clear();
        server.noise.clear();
        client.settings(&[
            (INITIAL_WINDOW_SIZE, 7),
            (HEADER_TABLE_SIZE, 100),
            (MAX_CONCURRENT_STREAMS, 1),
            (0x0abc, 7),
        ]);
        s.run();
        assert_eq!((client.got(), server.got()), (vec![], vec![]));
        assert_eq!((&client.noise[..], &server.noise[..]), (&[Got::SettingsAck][..], &[][..]));
    });
}
