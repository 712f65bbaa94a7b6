//! Promises that only an intermediary makes: an endpoint that is lost or ends, messages that wait, and what time alone never
//! does to a stream.

use std::time::Duration;

use sluice_agent::splitter::{Floods, Limits};

use crate::script::{Script, and, in_all_chunks};
use crate::wire::*;

/// Lost by an end or by a failure, as the world's chance has it: the seeds see both.
fn in_many_worlds(scene: impl Fn(Script)) {
    for seed in 0..8 {
        scene(Script::seeded(seed, crate::world::Chunks::Random, Limits::default(), 2));
    }
}

#[test]
fn a_response_that_broke_off_is_a_reset_with_an_error_and_never_an_end() {
    let parts: [&[Vec<u8>]; 4] = [
        &[],
        &[data(1, MORE, b"")],
        &[data(1, MORE, b"half a mess")],
        // More than the client's window takes: some of it waits in us.
        &[data(1, MORE, &[7; 16_384]), data(1, MORE, &[7; 16_384])],
    ];
    for part in parts {
        in_many_worlds(|mut s| {
            let (mut client, server) = s.call_with(&[(INITIAL_WINDOW_SIZE, 20_000)], &[]);
            s.send(&client, data(1, END, b"ask"));
            s.send(&server, [headers(1, MORE, OK), part.concat()].concat());
            drop(server);
            let got = s.all(&mut client);
            let ends = |got: &&Got| matches!(got, Got::Headers { end: END, .. } | Got::Data { end: END, .. });
            assert_eq!(got.iter().filter(ends).count(), 0, "{got:?}");
            assert_eq!(got.last(), Some(&was_reset(1, INTERNAL_ERROR)), "{got:?}");
            assert_eq!(s.open_streams(), 0);
            // The connection goes on.
            s.send(&client, headers(3, END, CALL));
            let server = s.server();
            s.send(&server, headers(1, END, OK));
            assert_eq!(client.got(), [heard(3, END, OK)]);
        });
    }
}

#[test]
fn a_breach_of_an_endpoint_inside_a_response_is_a_reset_with_an_error() {
    in_many_worlds(|mut s| {
        let (mut client, mut server) = s.call();
        s.send(&server, [headers(1, MORE, OK), data(1, MORE, b"half"), frame(PING, 0, 1, &[0; 8])].concat());
        assert_eq!(client.got(), [heard(1, MORE, OK), bytes(1, MORE, b"half"), was_reset(1, INTERNAL_ERROR)]);
        let got = server.got();
        assert_eq!((&got[0], got.last()), (&bye(0, PROTOCOL_ERROR), Some(&Got::Closed)));
    });
}

#[test]
fn an_endpoint_that_ends_after_a_whole_response_is_no_error() {
    for answer in [
        headers(1, END, &and(OK, DONE)),
        [headers(1, MORE, OK), data(1, END, b"all")].concat(),
        [headers(1, MORE, OK), data(1, MORE, b"all"), headers(1, END, DONE)].concat(),
        [headers(1, MORE, OK), headers(1, END, DONE), goaway(1, NO_ERROR)].concat(),
    ] {
        in_many_worlds(|mut s| {
            let (mut client, server) = s.call();
            s.send(&client, data(1, END, b"ask"));
            server.put(&answer);
            drop(server);
            let got = s.all(&mut client);
            assert!(matches!(got.last(), Some(Got::Headers { end: END, .. } | Got::Data { end: END, .. })), "{got:?}");
            assert!(!got.iter().any(|got| matches!(got, Got::Reset { .. })), "{got:?}");
            assert_eq!(s.open_streams(), 0);
        });
    }
}

/// Servers say so after many resets, of whatever client: what they have not processed is not to blame, nor is it in doubt.
#[test]
fn an_endpoint_that_asks_for_calm_costs_no_request_that_it_has_not_processed() {
    in_all_chunks(1, |mut s| {
        let (mut client, mut old) = s.call();
        s.send(&client, [headers(3, MORE, CALL), data(3, END, b"ask")].concat());
        s.send(&old, goaway(1, ENHANCE_YOUR_CALM));
        assert_eq!(old.got(), [heard(3, MORE, CALL), bytes(3, END, b"ask")]);
        let mut new = s.server();
        assert_eq!(new.got(), [heard(1, MORE, CALL), bytes(1, END, b"ask")]);
        s.send(&new, headers(1, END, OK));
        assert_eq!(client.got(), [heard(3, END, OK)]);
        // What it may have processed is not sent twice.
        drop(old);
        s.run();
        let got = client.got();
        let [Got::Headers { stream: 1, end: END, fields }, Got::Reset { stream: 1, code: NO_ERROR }] = &got[..] else {
            panic!("{got:?}")
        };
        assert_eq!((fields[2].1.as_str(), new.got()), ("14", vec![]));
    });
}

#[test]
fn what_crosses_the_resets_of_many_calls_at_once_is_no_offence() {
    let mut s = Script::with(Limits::default(), 1);
    let (mut client, mut server) = s.call();
    let streams = || (1..400).map(|n| 1 + 2 * n);
    s.send(&client, streams().flat_map(|stream| headers(stream, MORE, CALL)).collect::<Vec<u8>>());
    assert_eq!(server.got().len(), 399);
    s.send(&server, streams().flat_map(|stream| reset(stream, CANCEL)).collect::<Vec<u8>>());
    assert_eq!(client.got().len(), 399);
    client.distrust();
    let late = |stream| [data(stream, MORE, b"on its way"), headers(stream, END, DONE)].concat();
    s.send(&client, streams().flat_map(late).collect::<Vec<u8>>());
    let got = client.got();
    assert!(got.iter().all(|got| matches!(got, Got::Reset { code: STREAM_CLOSED, .. })), "{got:?}");
    s.send(&client, data(1, END, b"and on"));
    assert_eq!(server.got(), [bytes(1, END, b"and on")]);
}

#[test]
fn ten_thousand_tiny_messages_wait_for_an_endpoint_that_stalls_and_all_arrive() {
    let mut s = Script::with(Limits::default(), 1);
    let (mut client, mut server) = s.call_with(&[], &[(INITIAL_WINDOW_SIZE, 0)]);
    let message = |n: u32| [&[0, 0, 0, 0, 1][..], &[n as u8]].concat();
    for n in 0..10_000 {
        client.put(data(1, MORE, &message(n)));
    }
    s.send(&client, data(1, END, b""));
    assert_eq!((client.got(), server.got()), (vec![], vec![]));
    // Another stream is not concerned.
    s.send(&client, headers(3, END, CALL));
    assert_eq!(server.got(), [heard(3, END, CALL)]);
    server.grant(1, 1_000_000);
    let mut came = Vec::new();
    let mut ended = false;
    for got in s.all(&mut server) {
        let Got::Data { stream: 1, end, body } = got else { panic!("{got:?}") };
        came.extend(body);
        ended |= end;
    }
    assert!(ended && came == (0..10_000).flat_map(message).collect::<Vec<u8>>(), "{} bytes", came.len());
    // The same in the other direction, against a client that takes nothing for a while.
    let mut client = s.client_with(&[(INITIAL_WINDOW_SIZE, 0)]);
    s.send(&client, headers(1, MORE, CALL));
    assert_eq!(server.got(), [heard(5, MORE, CALL)]);
    s.send(&server, headers(5, MORE, OK));
    (0..10_000).for_each(|n| server.put(data(5, MORE, &message(n))));
    s.send(&server, headers(5, END, DONE));
    assert_eq!(client.got(), [heard(1, MORE, OK)]);
    client.grant(1, 1_000_000);
    let got = s.all(&mut client);
    let length = |got: &Got| if let Got::Data { body, .. } = got { body.len() } else { 0 };
    assert_eq!((got.iter().map(length).sum::<usize>(), got.last()), (60_000, Some(&heard(1, END, DONE))));
}

#[test]
fn a_deadline_crosses_as_it_was_said_and_ends_nothing_here() {
    in_all_chunks(1, |mut s| {
        let timed = and(CALL, &[("grpc-timeout", "1m")]);
        let mut client = s.client();
        s.send(&client, headers(1, END, &timed));
        let mut server = s.server();
        assert_eq!(server.got(), [heard(1, END, &timed)]);
        s.pass(Duration::from_secs(3_600));
        assert_eq!((client.got(), server.got()), (vec![], vec![]), "whoever said it keeps it");
        s.send(&server, headers(1, END, OK));
        assert_eq!(client.got(), [heard(1, END, OK)]);
    });
}

#[test]
fn no_stream_ends_by_time_and_no_endpoint_is_pinged() {
    in_all_chunks(1, |mut s| {
        let (mut client, mut server) = s.call();
        // One that nobody has answered, one inside its response, one that waits for a window.
        s.send(&client, headers(3, MORE, CALL));
        s.send(&server, headers(3, MORE, OK));
        server.settings(&[(INITIAL_WINDOW_SIZE, 0)]);
        s.run();
        s.send(&client, [headers(5, MORE, CALL), data(5, MORE, b"waits")].concat());
        let heads = [heard(3, MORE, CALL), heard(5, MORE, CALL)];
        assert_eq!((client.got(), server.got()), (vec![heard(3, MORE, OK)], heads.to_vec()));
        for _ in 0..7 {
            s.pass(Duration::from_secs(86_400));
        }
        assert_eq!((client.got(), server.got(), s.open_streams()), (vec![], vec![], 3));
        server.grant(5, 100);
        s.run();
        assert_eq!(server.got(), [bytes(5, MORE, b"waits")]);
    });
}

#[test]
fn pings_of_a_client_are_answered_many_times_a_second_and_reach_nobody() {
    in_all_chunks(1, |mut s| {
        let (mut client, mut server) = s.call();
        for n in 0..100_u64 {
            client.put(ping(0, &n.to_be_bytes()));
        }
        s.run();
        let pongs: Vec<Got> = (0..100_u64).map(|n| Got::Ping { ack: true, opaque: n.to_be_bytes() }).collect();
        assert_eq!((client.got(), server.got()), (pongs, vec![]));
    });
}

/// grpc-go and grpc-java do so, on both sides, to size their windows: one PING for each DATA, as fast as the way allows.
#[test]
fn a_peer_that_measures_the_way_by_pings_is_no_flood() {
    let floods = Floods { pings: 10, ..Limits::default().floods };
    let mut s = Script::with(Limits { floods, ..Limits::default() }, 1);
    let (mut client, mut server) = s.call();
    s.send(&server, headers(1, MORE, OK));
    assert_eq!(client.got(), [heard(1, MORE, OK)]);
    for n in 0..1_000_u64 {
        let opaque = n.to_be_bytes();
        let pong = Got::Ping { ack: true, opaque };
        s.send(&server, data(1, MORE, b"down"));
        s.send(&client, ping(0, &opaque));
        assert_eq!(client.got(), [bytes(1, MORE, b"down"), pong.clone()]);
        s.send(&client, data(1, MORE, b"up"));
        s.send(&server, ping(0, &opaque));
        assert_eq!(server.got(), [bytes(1, MORE, b"up"), pong]);
    }
}

/// gRPC servers do not encode the last space of `grpc-message: failed: `, and clients but for a few read it. RFC 9113 §8.2.1
/// forbids it, and a reset in its place would take the status from the client.
#[test]
fn a_space_at_a_value_s_end_is_left_to_its_receiver() {
    in_all_chunks(1, |mut s| {
        let head = and(CALL, &[("x-a", " 1"), ("+x-b", "2\t")]);
        let heard_head = and(CALL, &[("x-a", " 1"), ("x-b", "2\t")]);
        let trailers: Fields<'_> = &[("grpc-status", "13"), ("grpc-message", "failed: ")];
        let mut client = s.client();
        s.send(&client, headers(1, END, &head));
        let mut server = s.server();
        assert_eq!(server.got(), [heard(1, END, &heard_head)]);
        s.send(&server, [headers(1, MORE, OK), headers(1, END, trailers)].concat());
        assert_eq!(client.got(), [heard(1, MORE, OK), heard(1, END, trailers)]);
    });
}

#[test]
fn what_grpc_says_in_its_headers_crosses_as_it_is() {
    let more = [
        ("te", "trailers"),
        ("grpc-timeout", "99999999n"),
        ("grpc-encoding", "gzip"),
        ("grpc-accept-encoding", "identity,deflate,gzip"),
        ("user-agent", "grpc-go/1.85.0"),
        ("trace-bin", "AAECAw"),
        ("trace-bin", "BAUG,BwgJ"),
        ("x-empty", ""),
        ("cookie", "a=1"),
        ("cookie", "b=2"),
        ("host", "other"),
    ];
    let head = [&CALL[..5], &more[..]].concat();
    let trailers: Fields<'_> = &[
        ("grpc-status", "9"),
        ("grpc-message", "not%20now%0A"),
        ("grpc-status-details-bin", "CAkSA25vdw"),
        ("retry", "1"),
        ("retry", "2"),
    ];
    in_all_chunks(1, |mut s| {
        let mut client = s.client();
        s.send(&client, headers(1, END, &head));
        let mut server = s.server();
        assert_eq!(server.got(), [heard(1, END, &head)]);
        s.send(&server, [headers(1, MORE, OK), headers(1, END, trailers)].concat());
        assert_eq!(client.got(), [heard(1, MORE, OK), heard(1, END, trailers)]);
    });
}
