//! Promises about streams (RFC 9113 §5.1, §5.4.2, §8.5): ids, what may still come when one direction or both have ended,
//! and the limits on how many there are.

use sluice_agent::splitter::Limits;

use crate::script::{Script, and, in_all_chunks};
use crate::wire::*;

#[test]
fn a_reset_is_never_answered_by_a_reset() {
    in_all_chunks(1, |mut s| {
        let (mut client, mut server) = s.call();
        s.send(&client, [reset(1, CANCEL), reset(1, CANCEL)].concat());
        assert_eq!((client.got(), server.got()), (vec![], vec![was_reset(1, CANCEL)]));
        s.send(&client, headers(3, MORE, CALL));
        assert_eq!(server.got(), [heard(3, MORE, CALL)]);
        s.send(&server, [reset(3, CANCEL), reset(3, CANCEL), reset(1, CANCEL)].concat());
        assert_eq!((client.got(), server.got()), (vec![was_reset(3, CANCEL)], vec![]));
    });
}

#[test]
fn updates_priorities_and_resets_may_come_for_a_stream_that_its_sender_has_ended() {
    let late = |stream| [window(stream, 10), frame(PRIORITY, 0, stream, &[0, 0, 0, 0, 1])].concat();
    in_all_chunks(1, |mut s| {
        let (mut client, mut server) = s.call();
        // Half-closed by the client, then by both.
        s.send(&client, [data(1, END, b""), late(1)].concat());
        assert_eq!((client.got(), server.got()), (vec![], vec![bytes(1, END, b"")]));
        s.send(&server, [headers(1, END, OK), late(1), reset(1, CANCEL)].concat());
        s.send(&client, [late(1), reset(1, CANCEL)].concat());
        assert_eq!((client.got(), server.got()), (vec![heard(1, END, OK)], vec![]));
        // Half-closed by the endpoint.
        s.send(&client, headers(3, MORE, CALL));
        s.send(&server, [headers(3, END, OK), late(3)].concat());
        assert_eq!((client.got(), server.got()), (vec![heard(3, END, OK)], vec![heard(3, MORE, CALL)]));
        s.send(&client, reset(3, CANCEL));
        assert_eq!((client.got(), server.got()), (vec![], vec![was_reset(3, CANCEL)]));
    });
}

#[test]
fn an_id_that_was_passed_over_is_closed() {
    in_all_chunks(1, |mut s| {
        let (mut client, mut server) = s.call();
        s.send(&client, headers(9, MORE, CALL));
        assert_eq!(server.got(), [heard(3, MORE, CALL)]);
        s.send(&client, [window(5, 1), reset(5, CANCEL), frame(PRIORITY, 0, 5, &[0, 0, 0, 0, 1])].concat());
        assert_eq!(client.got(), []);
        s.send(&client, data(7, MORE, b"x"));
        assert_eq!(client.got(), [was_reset(7, STREAM_CLOSED)]);
        s.send(&client, headers(5, MORE, CALL));
        assert_eq!(client.got(), [bye(9, PROTOCOL_ERROR), Got::Closed]);
    });
}

#[test]
fn the_last_id_of_all_serves_and_none_comes_after_it() {
    in_all_chunks(1, |mut s| {
        let mut client = s.client();
        s.send(&client, headers(0x7fff_ffff, END, CALL));
        let server = s.server();
        s.send(&server, headers(1, END, OK));
        assert_eq!(client.got(), [heard(0x7fff_ffff, END, OK)]);
        s.send(&client, headers(1, END, CALL));
        assert_eq!(client.got(), [bye(0x7fff_ffff, PROTOCOL_ERROR), Got::Closed]);
    });
}

/// Its header block enters the table, its DATA is credited: nothing else on the connection suffers.
#[test]
fn what_follows_on_a_refused_stream_is_taken_in_and_thrown_away() {
    let mut s = Script::with(Limits { client_streams: 1, ..Limits::default() }, 1);
    let (mut client, mut server) = s.call();
    s.send(&client, headers(3, MORE, &and(CALL, &[("+x-stored", "kept")])));
    assert_eq!(client.got(), [was_reset(3, REFUSED_STREAM)]);
    client.credit(0);
    for _ in 0..64 {
        s.send(&client, data(3, MORE, &[0; 16_384]));
    }
    s.send(&client, [headers(3, END, &[("+x-late", "kept too")]), window(3, 1)].concat());
    assert_eq!((client.got(), server.got()), (vec![], vec![]));
    assert!(client.credit(0) >= 48 * 16_384, "the connection's window was given back");
    s.send(&client, reset(1, CANCEL));
    assert_eq!(server.got(), [was_reset(1, CANCEL)]);
    let indexed = [&block(CALL)[..], &[0x80 | 63, 0x80 | 62]].concat();
    s.send(&client, frame(HEADERS, END_HEADERS | END_STREAM, 5, &indexed));
    assert_eq!(server.got(), [heard(3, END, &and(CALL, &[("x-stored", "kept"), ("x-late", "kept too")]))]);
}

#[test]
fn an_endpoint_that_lowers_its_limit_gets_no_stream_beyond_it() {
    in_all_chunks(1, |mut s| {
        let (client, mut server) = s.call_with(&[], &[(MAX_CONCURRENT_STREAMS, 3)]);
        s.send(&client, headers(3, MORE, CALL));
        server.settings(&[(MAX_CONCURRENT_STREAMS, 1)]);
        s.run();
        assert_eq!(server.got(), [heard(3, MORE, CALL)]);
        s.send(&client, [headers(5, END, CALL), reset(1, CANCEL)].concat());
        assert_eq!(server.got(), [was_reset(1, CANCEL)]);
        assert_eq!(s.server().got(), [heard(1, END, CALL)], "on a connection of its own");
    });
}

#[test]
fn an_endpoint_that_takes_no_stream_is_passed_over_while_another_serves() {
    in_all_chunks(2, |mut s| {
        let mut client = s.client();
        s.send(&client, headers(1, END, CALL));
        let (first, mut full) = s.server_with(&[(MAX_CONCURRENT_STREAMS, 0)]);
        let (second, mut server) = s.server_with(&[]);
        assert_ne!(first, second);
        for n in 1..6 {
            s.send(&client, headers(1 + 2 * n, END, CALL));
        }
        let answers: Vec<u8> = (0..6).flat_map(|n| headers(1 + 2 * n, END, OK)).collect();
        s.send(&server, answers);
        assert_eq!((client.got().len(), server.got().len(), full.got()), (6, 6, vec![]));
        assert!(s.accept_any().is_none(), "one connection to each");
        // As soon as it takes some, it gets its share.
        full.settings(&[(MAX_CONCURRENT_STREAMS, 100)]);
        s.run();
        s.send(&client, [headers(13, END, CALL), headers(15, END, CALL)].concat());
        assert_eq!((server.got().len(), full.got()), (1, vec![heard(1, END, CALL)]));
    });
}

#[test]
fn where_no_endpoint_takes_a_stream_requests_wait_on_one_connection_until_it_does() {
    in_all_chunks(1, |mut s| {
        let client = s.client();
        s.send(&client, headers(1, END, CALL));
        let (_, mut server) = s.server_with(&[(MAX_CONCURRENT_STREAMS, 0)]);
        s.send(&client, (1..40).flat_map(|n| headers(1 + 2 * n, END, CALL)).collect::<Vec<u8>>());
        assert_eq!((server.got(), s.open_streams()), (vec![], 40));
        assert!(s.accept_any().is_none(), "more connections would help as little");
        server.settings(&[(MAX_CONCURRENT_STREAMS, 50)]);
        s.run();
        assert_eq!(server.got().len(), 40);
    });
}

/// A running stream goes on; what waits goes where it is served.
#[test]
fn an_endpoint_that_takes_no_stream_any_more_keeps_those_it_has() {
    in_all_chunks(2, |mut s| {
        let (mut client, mut first) = s.call_with(&[], &[(MAX_CONCURRENT_STREAMS, 1)]);
        first.settings(&[(MAX_CONCURRENT_STREAMS, 0)]);
        s.run();
        s.send(&client, [headers(3, END, CALL), headers(5, END, CALL)].concat());
        let (_, mut second) = s.server_with(&[]);
        assert_eq!(second.got(), [heard(1, END, CALL), heard(3, END, CALL)]);
        s.send(&first, headers(1, END, OK));
        assert_eq!(client.got(), [heard(1, END, OK)]);
    });
}

#[test]
fn a_tunnel_carries_data_and_nothing_else() {
    const TUNNEL: Fields<'static> = &[(":method", "CONNECT"), (":authority", "far:443")];
    // A length in its response's head means nothing.
    let open: Fields<'_> = &[(":status", "200"), ("content-length", "0")];
    let begin = |s: &mut Script| {
        let client = s.client();
        s.send(&client, headers(1, MORE, TUNNEL));
        let server = s.server();
        s.send(&server, headers(1, MORE, open));
        (client, server)
    };
    in_all_chunks(1, |mut s| {
        let (mut client, mut server) = begin(&mut s);
        s.send(&client, data(1, MORE, b"there"));
        s.send(&server, data(1, END, b"and back"));
        assert_eq!(client.got(), [heard(1, MORE, open), bytes(1, END, b"and back")]);
        s.send(&client, headers(1, END, DONE));
        assert_eq!(client.got(), [was_reset(1, PROTOCOL_ERROR)]);
        assert_eq!(server.got(), [heard(1, MORE, TUNNEL), bytes(1, MORE, b"there"), was_reset(1, CANCEL)]);
    });
    in_all_chunks(1, |mut s| {
        let (mut client, mut server) = begin(&mut s);
        s.send(&server, headers(1, END, DONE));
        assert_eq!(client.got(), [heard(1, MORE, open), was_reset(1, INTERNAL_ERROR)]);
        assert_eq!(server.got(), [heard(1, MORE, TUNNEL), was_reset(1, PROTOCOL_ERROR)]);
    });
    // One that was refused is a response like any other.
    in_all_chunks(1, |mut s| {
        let mut client = s.client();
        s.send(&client, headers(1, END, TUNNEL));
        let server = s.server();
        let refused: Fields<'_> = &[(":status", "403")];
        s.send(&server, [headers(1, MORE, refused), headers(1, END, DONE)].concat());
        assert_eq!(client.got(), [heard(1, MORE, refused), heard(1, END, DONE)]);
    });
}
