//! Promises about header sections: what crosses unchanged, what is malformed (RFC 9113 §8), what is too large.

use sluice_agent::splitter::Limits;

use crate::script::{Script, and, in_all_chunks};
use crate::wire::*;

const PATH: Fields<'static> = &[(":path", "/")];

#[test]
fn order_and_duplicates_stay() {
    let more =
        [("b", "1"), ("a", "1"), ("b", "2"), ("a", "1"), ("c-bin", "AAAA,BBBB"), ("c-bin", ""), ("cookie", "x; y")];
    in_all_chunks(1, |mut s| {
        let client = s.client();
        s.send(&client, headers(1, END, &and(CALL, &more)));
        let mut server = s.server();
        assert_eq!(server.got(), [heard(1, END, &and(CALL, &more))]);
        s.send(&server, [headers(1, MORE, &and(OK, &more)), headers(1, END, &and(DONE, &more))].concat());
        let mut client = client;
        assert_eq!(client.got(), [heard(1, MORE, &and(OK, &more)), heard(1, END, &and(DONE, &more))]);
    });
}

#[test]
fn never_indexed_stays_never_indexed_in_every_section() {
    let secret = [("!authorization", "Bearer abc"), ("x", "y"), ("!x", "y"), ("!:authority", "not twice")];
    let secret = &secret[..3];
    in_all_chunks(1, |mut s| {
        let mut client = s.client();
        // Twice: the second time a table could be tempting.
        for stream in [1, 3] {
            s.send(&client, headers(stream, MORE, &and(CALL, secret)));
            s.send(&client, headers(stream, END, secret));
        }
        let mut server = s.server();
        for (stream, got) in [1, 3].into_iter().zip(server.got().chunks(2)) {
            assert_eq!(got, [heard(stream, MORE, &and(CALL, secret)), heard(stream, END, secret)]);
            s.send(&server, [headers(stream, MORE, &and(OK, secret)), headers(stream, END, secret)].concat());
            assert_eq!(client.got(), [heard(stream, MORE, &and(OK, secret)), heard(stream, END, secret)]);
        }
    });
}

#[test]
fn both_hpack_contexts_stay_in_step_whatever_enters_the_tables() {
    in_all_chunks(2, |mut s| {
        let client = s.client();
        for n in 0..60_u32 {
            let value = format!("{:0width$}", n % 7, width = 1 + (n as usize * 37) % 900);
            let more = [("+x-index", value.as_str()), ("+x-fixed", "always"), ("x-plain", value.as_str())];
            s.send(&client, headers(1 + 2 * n, END, &and(CALL, &more)));
        }
        let mut seen = 0;
        for _ in 0..2 {
            for got in s.server_with(&[(HEADER_TABLE_SIZE, 300)]).1.got() {
                let Got::Headers { fields, .. } = got else { panic!("{got:?}") };
                let names: Vec<&str> = fields.iter().map(|(name, _)| name.as_str()).collect();
                assert_eq!(names[6..], ["x-index", "x-fixed", "x-plain"]);
                assert_eq!((fields[6].1.as_str(), fields[7].1.as_str()), (fields[8].1.as_str(), "always"));
                seen += 1;
            }
        }
        assert_eq!(seen, 60);
    });
}

#[test]
fn blocks_of_many_frames_cross_both_ways() {
    let long = "v".repeat(40_000);
    let more: &[(&str, &str)] = &[("x-long", &long), ("x-last", "1")];
    in_all_chunks(1, |mut s| {
        let (mut client, mut server) = s.call();
        let block = block(&and(CALL, more));
        let mut frames = frame(HEADERS, END_STREAM, 3, &block[..1]);
        frames.extend(frame(CONTINUATION, 0, 3, &[]));
        for part in block[1..].chunks(9_999) {
            frames.extend(frame(CONTINUATION, 0, 3, part));
        }
        frames.extend(frame(CONTINUATION, END_HEADERS, 3, &[]));
        s.send(&client, frames);
        assert_eq!(server.got(), [heard(3, END, &and(CALL, more))]);
        let block = crate::wire::block(&and(OK, more));
        let (first, rest) = block.split_at(16_384);
        let (second, third) = rest.split_at(16_384);
        s.send(&server, frame(HEADERS, 0, 3, first));
        s.send(&server, frame(CONTINUATION, 0, 3, second));
        s.send(&server, [frame(CONTINUATION, END_HEADERS, 3, third), headers(3, END, DONE)].concat());
        assert_eq!(client.got(), [heard(3, MORE, &and(OK, more)), heard(3, END, DONE)]);
    });
}

#[test]
fn priority_and_padding_of_headers_are_left_out() {
    in_all_chunks(1, |mut s| {
        let client = s.client();
        let payload = [&[7][..], &[0x80, 0, 0, 0, 200], &block(CALL), &[0; 7]].concat();
        s.send(&client, frame(HEADERS, END_HEADERS | END_STREAM | PADDED | PRIORITIZED, 1, &payload));
        assert_eq!(s.server().got(), [heard(1, END, CALL)]);
    });
}

/// A malformed request ends its stream, nothing of it reaches an endpoint, and the connection goes on.
#[test]
fn a_malformed_request_is_reset_and_reaches_no_endpoint() {
    let cases: Vec<(&str, Vec<(&str, &str)>)> = vec![
        ("an upper-case name", and(CALL, &[("X-Upper", "1")])),
        ("an empty name", and(CALL, &[("", "1")])),
        ("a space in a name", and(CALL, &[("a b", "1")])),
        ("a colon in a name", and(CALL, &[("a:b", "1")])),
        ("NUL in a value", and(CALL, &[("a", "1\0")])),
        ("CR in a value", and(CALL, &[("a", "1\r2")])),
        ("LF in a value", and(CALL, &[("a", "1\n2")])),
        ("connection", and(CALL, &[("connection", "close")])),
        ("proxy-connection", and(CALL, &[("proxy-connection", "keep-alive")])),
        ("keep-alive", and(CALL, &[("keep-alive", "1")])),
        ("transfer-encoding", and(CALL, &[("transfer-encoding", "chunked")])),
        ("upgrade", and(CALL, &[("upgrade", "h2c")])),
        ("te of another kind", and(PLAIN, &[("te", "trailers, deflate")])),
        ("no :method", CALL[1..].to_vec()),
        ("no :scheme", and(&CALL[..1], &CALL[2..])),
        ("no :path", and(&CALL[..2], &CALL[3..])),
        ("an empty :path", and(&CALL[..2], &[(":path", "")])),
        ("two :method", and(&CALL[..1], CALL)),
        ("two :scheme", and(&CALL[1..2], CALL)),
        ("two :path", and(PATH, CALL)),
        ("two :authority", and(&CALL[3..4], CALL)),
        ("a response's :status", and(&[(":status", "200")], CALL)),
        ("an unknown pseudo-header", and(&[(":what", "1")], CALL)),
        (":protocol without the setting", and(&[(":protocol", "websocket")], CALL)),
        ("a pseudo-header behind a field", and(&[("a", "b")], CALL)),
        ("CONNECT with :path", vec![(":method", "CONNECT"), (":authority", "a"), (":path", "/")]),
        ("CONNECT without :authority", vec![(":method", "CONNECT")]),
        ("no fields at all", vec![]),
        ("a content-length of words", and(CALL, &[("content-length", "many")])),
        ("two content-length that differ", and(CALL, &[("content-length", "1"), ("content-length", "2")])),
        ("an end before content-length", and(CALL, &[("content-length", "1")])),
    ];
    for (why, fields) in cases {
        in_all_chunks(1, |mut s| {
            let (mut client, mut server) = s.call();
            s.send(&client, headers(3, END, &fields));
            assert_eq!(client.got(), [was_reset(3, PROTOCOL_ERROR)], "{why}");
            assert_eq!(server.got(), [], "{why}");
            s.send(&client, headers(5, END, CALL));
            assert_eq!(server.got(), [heard(3, END, CALL)], "{why}");
        });
    }
}

#[test]
fn a_request_that_names_itself_as_its_dependency_is_reset() {
    in_all_chunks(1, |mut s| {
        let mut client = s.client();
        let payload = [&[0, 0, 0, 1, 0][..], &block(CALL)].concat();
        s.send(&client, frame(HEADERS, END_HEADERS | END_STREAM | PRIORITIZED, 1, &payload));
        assert_eq!(client.got(), [was_reset(1, PROTOCOL_ERROR)]);
        assert!(s.accept_any().is_none());
    });
}

#[test]
fn malformed_trailers_of_a_request_reset_it_on_both_sides() {
    for trailers in [&[(":path", "/")], &[("connection", "close")], &[("Upper", "1")]] {
        in_all_chunks(1, |mut s| {
            let (mut client, mut server) = s.call();
            s.send(&client, headers(1, END, trailers));
            assert_eq!((client.got(), server.got()), (vec![was_reset(1, PROTOCOL_ERROR)], vec![was_reset(1, CANCEL)]));
        });
    }
}

#[test]
fn a_body_that_differs_from_its_content_length_is_reset() {
    for (bodies, length) in
        [(vec![data(1, MORE, b"123")], "2"), (vec![data(1, END, b"1")], "2"), (vec![headers(1, END, DONE)], "2")]
    {
        in_all_chunks(1, |mut s| {
            let mut client = s.client();
            s.send(&client, headers(1, MORE, &and(CALL, &[("content-length", length)])));
            let mut server = s.server();
            server.got();
            s.send(&client, bodies.concat());
            assert_eq!((client.got(), server.got()), (vec![was_reset(1, PROTOCOL_ERROR)], vec![was_reset(1, CANCEL)]));
        });
        in_all_chunks(1, |mut s| {
            let (mut client, mut server) = s.call();
            s.send(&server, headers(1, MORE, &and(OK, &[("content-length", length)])));
            s.send(&server, bodies.concat());
            assert_eq!(server.got(), [was_reset(1, PROTOCOL_ERROR)]);
            let got = client.got();
            assert_eq!(got.last(), Some(&was_reset(1, INTERNAL_ERROR)), "{got:?}");
        });
    }
}

#[test]
fn a_body_as_long_as_its_content_length_passes() {
    in_all_chunks(1, |mut s| {
        let client = s.client();
        let head = and(CALL, &[("content-length", "4")]);
        s.send(&client, [headers(1, MORE, &head), padded_data(1, MORE, b"12", 9), data(1, END, b"34")].concat());
        let mut server = s.server();
        assert_eq!(server.got().first(), Some(&heard(1, MORE, &head)));
        // A HEAD's response has a length and no body.
        s.send(&client, headers(3, END, &[(":method", "HEAD"), (":scheme", "http"), (":path", "/")]));
        let head = [(":status", "200"), ("content-length", "99")];
        s.send(&server, headers(3, END, &head));
        let mut client = client;
        assert_eq!(client.got(), [heard(3, END, &head)]);
    });
}

#[test]
fn a_malformed_response_is_an_internal_error_for_its_client_and_a_reset_for_its_endpoint() {
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("no :status", headers(1, END, DONE)),
        (":status of two digits", headers(1, END, &[(":status", "20")])),
        (":status 101", headers(1, MORE, &[(":status", "101")])),
        ("two :status", headers(1, END, &[(":status", "200"), (":status", "200")])),
        (":status behind a field", headers(1, END, &[("a", "b"), (":status", "200")])),
        ("a request's :path", headers(1, END, &and(OK, PATH))),
        ("connection", headers(1, END, &and(OK, &[("connection", "close")]))),
        ("an upper-case name", headers(1, END, &and(OK, &[("Upper", "1")]))),
        ("an interim response that ends", headers(1, END, &[(":status", "103")])),
        ("an end before content-length", headers(1, END, &and(OK, &[("content-length", "7")]))),
        ("DATA before HEADERS", data(1, MORE, b"x")),
        ("an empty DATA before HEADERS", data(1, END, b"")),
        ("DATA after an interim response", [headers(1, MORE, &[(":status", "100")]), data(1, END, b"")].concat()),
    ];
    for (why, answer) in cases {
        in_all_chunks(2, |mut s| {
            let (mut client, mut server) = s.call();
            s.send(&server, answer.clone());
            assert_eq!(server.got(), [was_reset(1, PROTOCOL_ERROR)], "{why}");
            let got = client.got();
            let [.., Got::Headers { end: END, fields, .. }, Got::Reset { code: NO_ERROR, .. }] = &got[..] else {
                panic!("{why}: {got:?}")
            };
            assert_eq!(fields[2], ("grpc-status".into(), "13".into()), "{why}");
            assert_eq!(s.open_streams(), 0, "{why}");
            s.send(&client, headers(3, END, CALL));
            assert!(s.accept(1).is_some() || s.accept(2).is_some() || !server.got().is_empty(), "{why}");
        });
    }
}

#[test]
fn malformed_trailers_of_a_response_reset_the_stream() {
    for trailers in [headers(1, MORE, DONE), headers(1, END, &[(":status", "200")]), headers(1, END, &[("te", "gzip")])]
    {
        in_all_chunks(1, |mut s| {
            let (mut client, mut server) = s.call();
            s.send(&server, [headers(1, MORE, OK), trailers.clone()].concat());
            assert_eq!(server.got(), [was_reset(1, PROTOCOL_ERROR)]);
            assert_eq!(client.got(), [heard(1, MORE, OK), was_reset(1, INTERNAL_ERROR)]);
        });
    }
}

#[test]
fn what_follows_a_whole_response_does_not_take_it_back() {
    in_all_chunks(1, |mut s| {
        let (mut client, mut server) = s.call_with(&[(INITIAL_WINDOW_SIZE, 1)], &[]);
        s.send(&server, [headers(1, MORE, OK), data(1, END, b"all")].concat());
        s.send(&server, [data(1, MORE, b"and more"), headers(1, END, DONE)].concat());
        assert_eq!(server.got(), [was_reset(1, STREAM_CLOSED)]);
        client.grant(1, 9);
        s.run();
        assert_eq!(
            client.got(),
            [heard(1, MORE, OK), bytes(1, MORE, b"a"), bytes(1, END, b"ll"), was_reset(1, NO_ERROR)]
        );
        assert_eq!(s.open_streams(), 0);
    });
}

#[test]
fn request_headers_that_are_too_large_are_resource_exhausted_for_that_stream_alone() {
    let limits = Limits { header_list: 2_000, ..Limits::default() };
    let mut s = Script::with(limits, 1);
    let (mut client, mut server) = s.call();
    let long = "v".repeat(2_000);
    // It enters the table all the same: the next block refers to it.
    let more = [("+x-stored", "kept"), ("x-long", long.as_str())];
    s.send(&client, headers(3, END, &and(CALL, &more)));
    let got = client.got();
    let [Got::Headers { stream: 3, end: END, fields }] = &got[..] else { panic!("{got:?}") };
    assert_eq!(fields[2], ("grpc-status".into(), "8".into()));
    s.send(&client, headers(5, MORE, &and(PLAIN, &more)));
    let full = &[(":status", "431"), ("content-length", "0")];
    assert_eq!(client.got(), [heard(5, END, full), was_reset(5, NO_ERROR)]);
    s.send(&client, data(5, END, b"on its way"));
    assert_eq!((client.got(), server.got()), (vec![], vec![]));
    let block = [&block(CALL)[..], &[0x80 | 62]].concat();
    s.send(&client, frame(HEADERS, END_HEADERS | END_STREAM, 7, &block));
    assert_eq!(server.got(), [heard(3, END, &and(CALL, &[("x-stored", "kept")]))]);
}

#[test]
fn a_request_beyond_its_endpoint_s_own_limit_is_refused_before_it_can_cost_the_connection() {
    let mut s = Script::with(Limits::default(), 1);
    let (mut client, mut server) = s.call_with(&[], &[(MAX_HEADER_LIST_SIZE, 4_000)]);
    let big = "b".repeat(5_000);
    s.send(&client, headers(3, END, &and(CALL, &[("big", &big)])));
    let got = client.got();
    let [Got::Headers { stream: 3, end: true, fields }] = got.as_slice() else { panic!("{got:?}") };
    assert_eq!(fields[2], ("grpc-status".into(), "8".into()));
    // As trailers too; the other stream and later ones go on.
    s.send(&client, [headers(5, MORE, CALL), headers(5, END, &[("big", &big)])].concat());
    assert_eq!(server.got(), [heard(3, MORE, CALL), was_reset(3, CANCEL)]);
    assert!(matches!(client.got().as_slice(), [Got::Headers { stream: 5, end: true, .. }]));
    s.send(&server, [headers(1, MORE, OK), headers(1, END, DONE)].concat());
    assert_eq!(client.got(), [heard(1, MORE, OK), heard(1, END, DONE)]);
}

#[test]
fn response_headers_that_are_too_large_are_resource_exhausted_for_that_stream_alone() {
    let limits = Limits { header_list: 2_000, ..Limits::default() };
    let long = "v".repeat(2_000);
    let mut s = Script::with(limits, 1);
    let (mut client, mut server) = s.call();
    s.send(&client, headers(3, MORE, CALL));
    server.got();
    s.send(&server, headers(1, MORE, &and(OK, &[("+x-stored", "kept"), ("x-long", &long)])));
    let got = client.got();
    let [Got::Headers { stream: 1, end: END, fields }, Got::Reset { code: NO_ERROR, .. }] = &got[..] else {
        panic!("{got:?}")
    };
    assert_eq!(fields[2], ("grpc-status".into(), "8".into()));
    assert_eq!(server.got(), [was_reset(1, CANCEL)]);
    let block = [&block(OK)[..], &[0x80 | 62]].concat();
    s.send(&server, frame(HEADERS, END_HEADERS, 3, &block));
    assert_eq!(client.got(), [heard(3, MORE, &and(OK, &[("x-stored", "kept")]))]);
    // gRPC clients read this code as RESOURCE_EXHAUSTED.
    s.send(&server, headers(3, END, &and(DONE, &[("x-long", &long)])));
    assert_eq!(client.got(), [was_reset(3, ENHANCE_YOUR_CALM)]);
    assert_eq!(s.open_streams(), 0);
}
