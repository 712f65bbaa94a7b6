//! Promises about which endpoint a stream gets: dials, failures, replays, GOAWAY, limits, and a table that changes.

use std::time::Duration;

use sluice_agent::splitter::Limits;

use crate::script::{Peer, Script, in_all_chunks};
use crate::wire::*;

/// What a gRPC client hears where no endpoint serves it.
fn unavailable(got: &[Got], stream: u32, half_open: bool) {
    let Got::Headers { stream: of, end: END, fields } = &got[0] else { panic!("{got:?}") };
    assert_eq!(*of, stream);
    let fields: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(fields[..2], *OK);
    assert_eq!(fields[2], ("grpc-status", "14"));
    assert_eq!(got[1..], [was_reset(stream, NO_ERROR)][..usize::from(half_open)]);
}

fn answer(s: &mut Script, server: &Peer, stream: u32) {
    s.send(server, [headers(stream, MORE, OK), headers(stream, END, DONE)].concat());
}

fn answered(stream: u32) -> [Got; 2] {
    [heard(stream, MORE, OK), heard(stream, END, DONE)]
}

#[test]
fn a_refused_dial_sends_the_request_to_another_endpoint() {
    in_all_chunks(2, |mut s| {
        s.refuse(1);
        let client = s.client();
        for n in 0..4 {
            s.send(&client, headers(1 + 2 * n, END, CALL));
        }
        let (n, mut server) = s.server_with(&[]);
        assert_eq!((n, server.got().len()), (2, 4));
    });
}

#[test]
fn where_every_dial_fails_the_client_is_told_unavailable() {
    in_all_chunks(3, |mut s| {
        (1..=3).for_each(|n| s.refuse(n));
        let mut client = s.client();
        s.send(&client, headers(1, END, CALL));
        unavailable(&client.got(), 1, false);
        s.send(&client, headers(3, MORE, CALL));
        unavailable(&client.got(), 3, true);
        s.send(&client, headers(5, END, PLAIN));
        assert_eq!(client.got(), [heard(5, END, &[(":status", "503"), ("content-length", "0")])]);
        assert_eq!(s.open_streams(), 0);
    });
}

#[test]
fn where_there_is_no_endpoint_the_client_is_told_unavailable() {
    in_all_chunks(0, |mut s| {
        let mut client = s.client();
        s.send(&client, headers(1, END, CALL));
        unavailable(&client.got(), 1, false);
        s.send(&client, headers(3, END, PLAIN));
        assert_eq!(client.got(), [heard(3, END, &[(":status", "503"), ("content-length", "0")])]);
    });
}

#[test]
fn a_connection_lost_before_the_response_is_unavailable() {
    in_all_chunks(2, |mut s| {
        let (mut client, server) = s.call();
        drop(server);
        s.run();
        unavailable(&client.got(), 1, true);
        assert!(s.accept_any().is_none(), "the endpoint may have processed it");
        assert_eq!(s.open_streams(), 0);
    });
}

#[test]
fn a_connection_lost_inside_the_response_resets_the_stream() {
    in_all_chunks(2, |mut s| {
        let (mut client, server) = s.call();
        s.send(&server, [headers(1, MORE, OK), data(1, MORE, b"half")].concat());
        drop(server);
        s.run();
        assert_eq!(client.got(), [heard(1, MORE, OK), bytes(1, MORE, b"half"), was_reset(1, INTERNAL_ERROR)]);
    });
}

#[test]
fn no_stream_is_opened_before_the_endpoint_s_settings() {
    in_all_chunks(1, |mut s| {
        let client = s.client();
        s.send(&client, [headers(1, MORE, CALL), data(1, END, b"early")].concat());
        let (_, mut server) = s.accept_any().unwrap();
        assert_eq!(server.got(), []);
        server.settings(&[(INITIAL_WINDOW_SIZE, 3)]);
        s.run();
        assert_eq!(server.got(), [heard(1, MORE, CALL), bytes(1, MORE, b"ear")]);
    });
}

#[test]
fn an_endpoint_that_never_sends_settings_is_given_up_for_another() {
    in_all_chunks(2, |mut s| {
        let client = s.client();
        s.send(&client, headers(1, END, CALL));
        let (first, mut silent) = s.accept_any().unwrap();
        s.pass(Limits::default().settings_timeout);
        assert_eq!(silent.got(), [bye(0, SETTINGS_TIMEOUT), Got::Closed]);
        let (second, mut server) = s.server_with(&[]);
        assert_ne!(first, second);
        assert_eq!(server.got(), [heard(1, END, CALL)]);
    });
}

#[test]
fn streams_above_an_endpoint_s_goaway_are_replayed_in_full_and_those_below_finish() {
    in_all_chunks(1, |mut s| {
        let (mut client, mut old) = s.call();
        s.send(&client, [headers(3, MORE, CALL), data(3, MORE, b"some"), data(3, MORE, b"thing")].concat());
        assert_eq!(old.got(), [heard(3, MORE, CALL), bytes(3, MORE, b"some"), bytes(3, MORE, b"thing")]);
        s.send(&old, goaway(1, NO_ERROR));
        s.send(&client, data(3, END, b" more"));
        let mut new = s.server();
        assert_eq!(new.got()[0], heard(1, MORE, CALL));
        s.send(&client, data(1, END, b"last"));
        assert_eq!(old.got(), [bytes(1, END, b"last")]);
        answer(&mut s, &new, 1);
        assert_eq!(client.got(), answered(3));
        answer(&mut s, &old, 1);
        assert_eq!(client.got(), answered(1));
        // With its last stream it closes.
        assert_eq!(old.got(), [bye(0, NO_ERROR), Got::Closed]);
    });
}

#[test]
fn a_replayed_request_has_all_its_bytes_and_its_end() {
    in_all_chunks(1, |mut s| {
        let (client, old) = s.call();
        s.send(&client, data(1, MORE, b"some"));
        s.send(&client, data(1, END, b"thing"));
        for _ in 0..3 {
            s.send(&old, goaway(0, NO_ERROR));
        }
        let mut new = s.server();
        assert_eq!(new.got()[0], heard(1, MORE, CALL));
        drop(old);
        s.send(&new, goaway(0, NO_ERROR));
        let mut newest = s.server();
        assert_eq!(newest.got(), [heard(1, MORE, CALL), bytes(1, END, b"something")]);
        // The client paid for its bytes once.
        let mut client = client;
        assert_eq!((client.got(), client.credit(1)), (vec![], 0));
    });
}

#[test]
fn a_graceful_goaway_in_two_steps_loses_no_stream() {
    in_all_chunks(1, |mut s| {
        let (mut client, mut old) = s.call();
        s.send(&old, [goaway(0x7fff_ffff, NO_ERROR), ping(0, b"graceful")].concat());
        assert_eq!(old.got(), [Got::Ping { ack: true, opaque: *b"graceful" }]);
        s.send(&client, headers(3, END, CALL));
        let mut new = s.server();
        assert_eq!(new.got(), [heard(1, END, CALL)]);
        s.send(&old, goaway(1, NO_ERROR));
        answer(&mut s, &old, 1);
        answer(&mut s, &new, 1);
        assert_eq!(client.got(), [answered(1), answered(3)].concat());
    });
}

#[test]
fn a_request_too_large_for_replay_is_refused_by_goaway() {
    let mut s = Script::with(Limits { replay_stream: 5, ..Limits::default() }, 2);
    let (mut client, server) = s.call();
    s.send(&client, data(1, MORE, b"123456"));
    s.send(&server, goaway(0, NO_ERROR));
    assert_eq!(client.got(), [was_reset(1, REFUSED_STREAM)]);
    assert!(s.accept_any().is_none());
    assert_eq!(s.open_streams(), 0);
}

#[test]
fn what_made_an_endpoint_give_up_does_not_go_to_the_next_one() {
    in_all_chunks(2, |mut s| {
        let (mut client, server) = s.call();
        s.send(&server, goaway(0, COMPRESSION_ERROR));
        // It was not processed: whether to try again is the client's choice.
        assert_eq!(client.got(), [was_reset(1, REFUSED_STREAM)]);
        assert!(s.accept_any().is_none());
    });
}

#[test]
fn an_answered_request_leaves_its_room_for_replays_to_others() {
    let mut s = Script::with(Limits { replay_pod: 10, ..Limits::default() }, 1);
    let (mut client, server) = s.call();
    s.send(&client, data(1, MORE, b"0123456789"));
    s.send(&server, headers(1, MORE, OK));
    assert_eq!(client.got(), [heard(1, MORE, OK)]);
    s.send(&client, [headers(3, MORE, CALL), data(3, END, b"abcdefghij")].concat());
    s.send(&server, goaway(1, NO_ERROR));
    assert_eq!(s.server().got(), [heard(1, MORE, CALL), bytes(1, END, b"abcdefghij")]);
}

#[test]
fn a_refused_stream_goes_to_another_endpoint_and_never_back() {
    in_all_chunks(2, |mut s| {
        let client = s.client();
        s.send(&client, [headers(1, MORE, CALL), data(1, END, b"ask")].concat());
        let (first, refusing) = s.server_with(&[]);
        s.send(&refusing, reset(1, REFUSED_STREAM));
        let (second, mut server) = s.server_with(&[]);
        assert_ne!(first, second);
        assert_eq!(server.got(), [heard(1, MORE, CALL), bytes(1, END, b"ask")]);
        let mut client = client;
        assert_eq!(client.got(), []);
        s.send(&server, reset(1, REFUSED_STREAM));
        assert_eq!(client.got(), [was_reset(1, REFUSED_STREAM)]);
        assert!(s.accept_any().is_none());
        assert_eq!(s.open_streams(), 0);
    });
}

#[test]
fn a_refused_stream_without_another_endpoint_is_refused_to_the_client() {
    in_all_chunks(1, |mut s| {
        let (mut client, server) = s.call();
        s.send(&server, reset(1, REFUSED_STREAM));
        assert_eq!(client.got(), [was_reset(1, REFUSED_STREAM)]);
    });
}

#[test]
fn what_an_endpoint_answered_is_never_replayed() {
    for head in [&[(":status", "103")], &OK[..1]] {
        in_all_chunks(2, |mut s| {
            let (mut client, server) = s.call();
            s.send(&server, [headers(1, MORE, head), reset(1, REFUSED_STREAM)].concat());
            assert_eq!(client.got(), [heard(1, MORE, head), was_reset(1, REFUSED_STREAM)]);
            assert!(s.accept_any().is_none());
        });
    }
}

#[test]
fn at_an_endpoint_s_stream_limit_another_connection_is_opened() {
    in_all_chunks(1, |mut s| {
        let client = s.client();
        let calls: Vec<u8> = (0..5).flat_map(|n| headers(1 + 2 * n, END, CALL)).collect();
        s.send(&client, calls);
        let mut served = 0;
        for _ in 0..3 {
            served += s.server_with(&[(MAX_CONCURRENT_STREAMS, 2)]).1.got().len();
        }
        assert_eq!(served, 5);
        assert!(s.accept_any().is_none());
    });
}

#[test]
fn a_request_waits_for_no_stream_that_lasts_while_another_connection_has_room() {
    let mut s = Script::with(Limits { connections_per_endpoint: 2, ..Limits::default() }, 1);
    let mut client = s.client();
    s.send(&client, [headers(1, END, CALL), headers(3, END, CALL)].concat());
    let (_, mut lasting) = s.server_with(&[(MAX_CONCURRENT_STREAMS, 1)]);
    let (_, quick) = s.server_with(&[(MAX_CONCURRENT_STREAMS, 1)]);
    // Both are full now, and some of these wait on the first.
    s.send(&client, (2..6).flat_map(|n| headers(1 + 2 * n, END, CALL)).collect::<Vec<u8>>());
    assert!(s.accept_any().is_none(), "no third connection");
    for n in 0..5 {
        answer(&mut s, &quick, 1 + 2 * n);
    }
    assert_eq!(client.got().len(), 10);
    assert_eq!((lasting.got(), s.open_streams()), (vec![heard(1, END, CALL)], 1));
}

#[test]
fn a_client_that_reads_slowly_takes_no_place_at_an_endpoint_that_has_finished() {
    for end in [headers(1, END, DONE), data(1, END, b"")] {
        in_all_chunks(1, |mut s| {
            let (mut client, mut server) = s.call_with(&[(INITIAL_WINDOW_SIZE, 2)], &[(MAX_CONCURRENT_STREAMS, 1)]);
            s.send(&client, data(1, END, b""));
            s.send(&server, [headers(1, MORE, OK), data(1, MORE, b"answer"), end.clone()].concat());
            s.send(&client, headers(3, END, CALL));
            assert_eq!(server.got(), [bytes(1, END, b""), heard(3, END, CALL)]);
            assert!(s.accept_any().is_none(), "no second connection");
            drop(server);
            s.run();
            client.grant(1, 100);
            s.run();
            let got = client.got();
            assert_eq!(got[..2], [heard(1, MORE, OK), bytes(1, MORE, b"an")]);
            assert_eq!(got.iter().filter(|got| matches!(got, Got::Reset { .. })).count(), 0, "{got:?}");
            assert_eq!(s.open_streams(), 0);
        });
    }
}

#[test]
fn a_new_endpoint_takes_its_share_of_new_streams() {
    in_all_chunks(1, |mut s| {
        let (client, mut one) = s.call();
        s.list(&[1, 2]);
        s.send(&client, [headers(3, END, CALL), headers(5, END, CALL)].concat());
        let (n, mut two) = s.server_with(&[]);
        assert_eq!((n, two.got(), one.got()), (2, vec![heard(1, END, CALL)], vec![heard(3, END, CALL)]));
    });
}

#[test]
fn an_endpoint_that_left_gets_no_new_stream_and_finishes_those_it_has() {
    in_all_chunks(1, |mut s| {
        let (mut client, mut old) = s.call();
        s.list(&[2]);
        assert_eq!(old.got(), []);
        s.send(&client, headers(3, END, CALL));
        let (n, new) = s.server_with(&[]);
        assert_eq!(n, 2);
        answer(&mut s, &new, 1);
        s.send(&client, data(1, END, b"rest"));
        answer(&mut s, &old, 1);
        assert_eq!(client.got(), [answered(3), answered(1)].concat());
        assert_eq!(old.got(), [bytes(1, END, b"rest"), bye(0, NO_ERROR), Got::Closed]);
    });
}

#[test]
fn a_request_that_waits_for_an_endpoint_that_left_goes_to_another() {
    in_all_chunks(1, |mut s| {
        s.world.dials_wait = true;
        let client = s.client();
        s.send(&client, headers(1, END, CALL));
        s.world.dials_wait = false;
        s.list(&[2]);
        s.world.answer_dials();
        s.run();
        let (n, mut server) = s.server_with(&[]);
        assert_eq!((n, server.got()), (2, vec![heard(1, END, CALL)]));
        assert!(s.accept_any().is_none());
    });
}

#[test]
fn an_idle_endpoint_connection_is_closed_and_a_busy_one_is_not() {
    in_all_chunks(1, |mut s| {
        let (mut client, mut server) = s.call();
        s.pass(Limits::default().idle_timeout() * 3);
        assert_eq!(server.got(), []);
        s.send(&client, data(1, END, b""));
        answer(&mut s, &server, 1);
        assert_eq!(client.got(), answered(1));
        s.pass(Limits::default().idle_timeout() - Duration::from_millis(1));
        assert_eq!(server.got(), [bytes(1, END, b"")]);
        s.pass(Limits::default().idle_timeout());
        assert_eq!(server.got(), [bye(0, NO_ERROR), Got::Closed]);
        // The next request opens another.
        s.send(&client, headers(3, END, CALL));
        assert_eq!(s.server().got(), [heard(1, END, CALL)]);
    });
}

#[test]
fn a_request_still_in_the_output_of_a_connection_that_fails_is_sent_once() {
    let mut s = Script::with(Limits::default(), 2);
    let client = s.client();
    s.send(&client, headers(1, MORE, CALL));
    let (_, mut stalled) = s.server_with(&[(INITIAL_WINDOW_SIZE, 1 << 20)]);
    stalled.grant(0, 1 << 20);
    s.send(&client, headers(3, END, CALL));
    let (_, mut other) = s.server_with(&[]);
    assert_eq!((stalled.got(), other.got()), (vec![heard(1, MORE, CALL)], vec![heard(1, END, CALL)]));
    // More than the pipe takes, so that the next request cannot leave the output before the connection fails.
    s.send(&client, (0..5).flat_map(|_| data(1, MORE, &[0; 16_384])).collect::<Vec<u8>>());
    s.send(&client, headers(5, END, CALL));
    s.send(&stalled, frame(PING, 0, 3, b"12345678"));
    let heads = |peer: &mut Peer| peer.got().iter().filter(|got| matches!(got, Got::Headers { .. })).count();
    assert_eq!((heads(&mut stalled), heads(&mut other)), (1, 0));
}

#[test]
fn all_has_arrived_when_the_newest_request_is_answered() {
    in_all_chunks(1, |mut s| {
        let (client, server) = s.call();
        let ours = client.conn.expect("a client's");
        let theirs = s.world.conns().into_iter().find(|conn| *conn != ours).expect("an endpoint's");
        let has_answered = |s: &Script| s.world.splitter.has_answered(theirs);
        assert!(!has_answered(&s), "one has gone there");
        s.send(&client, headers(3, END, CALL));
        answer(&mut s, &server, 1);
        assert!(!has_answered(&s), "another has gone there");
        answer(&mut s, &server, 3);
        assert!(has_answered(&s));
        // A reset may never have arrived, and says nothing of an answer.
        s.send(&client, headers(5, END, CALL));
        s.send(&client, reset(5, CANCEL));
        assert!(!has_answered(&s));
        s.send(&client, headers(7, END, CALL));
        answer(&mut s, &server, 7);
        assert!(has_answered(&s));
        assert!(!s.world.splitter.has_answered(ours), "it answers nothing");
    });
}
