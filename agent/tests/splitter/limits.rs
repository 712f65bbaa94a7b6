//! Promises about floods and bounds: a peer that floods slows its own connection and nobody else's, endpoints see no
//! more than a direct client could do to them, bursts that mean no harm pass, and claims cost nothing.

use std::time::Duration;

use sluice_agent::splitter::{Bound, Floods, Limits};

use crate::script::{Peer, Script};
use crate::wire::*;

/// Each kind at most 10 in a second.
fn strict() -> Limits {
    let floods = Floods {
        resets: 10,
        stream_errors: 10,
        pings: 10,
        settings: 10,
        empty_data: 10,
        priorities: 10,
        window_updates: 10,
        large_heads: 10,
        new_fields: 100,
    };
    Limits { floods, header_list: 1_024, ..Limits::default() }
}

/// A stage with a client that behaves and one that will not, on one endpoint connection.
pub fn stage(limits: Limits) -> (Script, Peer, Peer, Peer) {
    let mut s = Script::with(limits, 1);
    let (good, mut server) = s.call();
    let bad = s.client();
    s.send(&bad, headers(1, MORE, CALL));
    assert_eq!(server.got(), [heard(3, MORE, CALL)]);
    (s, good, bad, server)
}

pub fn still_served(s: &mut Script, good: &mut Peer, server: &Peer) {
    s.send(server, [headers(1, MORE, OK), headers(1, END, DONE)].concat());
    assert_eq!(good.got(), [heard(1, MORE, OK), heard(1, END, DONE)]);
}

#[test]
fn a_flood_is_not_read_for_a_tenth_of_a_second_again_and_again_and_nobody_else_waits() {
    let floods: Vec<(Bound, Vec<u8>)> = vec![
        (Bound::Pings, ping(0, b"12345678")),
        (Bound::Settings, settings(&[])),
        (Bound::EmptyData, data(1, MORE, b"")),
        (Bound::EmptyData, padded_data(1, MORE, b"", 3)),
        (Bound::Priorities, frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1])),
        (Bound::Priorities, frame(0xfb, 0, 1, b"")),
        (Bound::WindowUpdates, window(0, 1)),
        (Bound::WindowUpdates, window(1, 1)),
        (Bound::StreamErrors, headers(2_000_001, END, &[(":method", "GET")])),
        (Bound::LargeHeads, headers(2_000_001, END, CALL)),
    ];
    let large = "a".repeat(1_024);
    let too_large = [CALL, &[("x-large", &large)]].concat();
    for (bound, flood) in floods {
        // One that had leave to send SETTINGS has used one up.
        let allowed = if bound == Bound::Settings { 9 } else { 10 };
        let (mut s, mut good, mut bad, mut server) = stage(strict());
        let conn = bad.conn.unwrap();
        let mut next = 3;
        let mut send = |bad: &mut Peer| {
            match bound {
                Bound::StreamErrors => bad.put(headers(next, END, &[(":method", "GET")])),
                Bound::LargeHeads => bad.put(headers(next, END, &too_large)),
                _ => bad.flood(&flood),
            }
            next += 2;
        };
        (0..allowed).for_each(|_| send(&mut bad));
        s.run();
        assert!(s.world.splitter.wants_read(conn), "{bound:?}: within the limit");
        send(&mut bad);
        for pause in 1..=3 {
            s.run();
            assert!(!s.world.splitter.wants_read(conn), "{bound:?}: one too many");
            assert_eq!(s.world.stats().limited.get(bound), pause, "{bound:?}");
            // It may go on, but nobody listens.
            bad.got();
            (0..2).for_each(|_| send(&mut bad));
            s.pass(Duration::from_millis(99));
            assert_eq!(bad.got(), [], "{bound:?}");
            // A tenth of the limit is a tenth of a second's: the next one is too many again.
            s.pass(Duration::from_millis(1));
        }
        s.pass(Duration::from_secs(1));
        assert!(s.world.splitter.wants_read(conn), "{bound:?}: it has stopped");
        assert!(!bad.got().contains(&Got::Closed), "{bound:?}");
        assert_eq!(s.world.stats().floods, 0, "{bound:?}");
        assert_eq!(server.got(), [], "{bound:?}: the endpoint hears nothing of it");
        still_served(&mut s, &mut good, &server);
    }
}

#[test]
fn who_floods_for_ten_seconds_without_a_break_is_ended() {
    let (mut s, mut good, mut bad, server) = stage(strict());
    for second in 1..=21 {
        for _ in 0..11 {
            bad.put(ping(0, b"12345678"));
        }
        s.run();
        bad.got();
        // With a break after the ninth.
        s.pass(Duration::from_secs(if second == 9 { 3 } else { 1 }));
        assert_eq!(bad.got().last() == Some(&Got::Closed), second == 20, "{second}");
        if second == 20 {
            break;
        }
    }
    assert_eq!(s.world.stats().floods, 1);
    still_served(&mut s, &mut good, &server);
}

#[test]
fn requests_full_of_new_fields_go_on_one_by_one_and_such_as_repeat_theirs_as_they_come() {
    let (mut s, mut good, bad, mut server) = stage(Limits { floods: strict().floods, ..Limits::default() });
    let conn = bad.conn.unwrap();
    let names: Vec<String> = (0..50).map(|n| format!("+x-{n}")).collect();
    let fields: Vec<_> = CALL.iter().copied().chain(names.iter().map(|name| (&**name, "v"))).collect();
    // What was read at once is dealt with and paid for afterwards: of 52 to 56 new fields each, 20 to 24 are too many.
    (0..3).for_each(|n| bad.put(headers(2 * n + 3, END, &fields)));
    s.run();
    assert_eq!(server.got().len(), 3);
    assert_eq!(s.world.stats().limited.get(Bound::NewFields), 3);
    bad.put(headers(9, END, CALL));
    s.pass(Duration::from_millis(599));
    assert!(s.world.splitter.is_paused(conn) && !s.world.splitter.wants_read(conn));
    assert_eq!(server.got(), [], "nobody listens");
    s.pass(Duration::from_millis(3 * 40 + 2));
    assert_eq!(server.got(), [heard(11, END, CALL)]);
    // The same again, now that the table has them.
    let repeated: Vec<u8> = (62..=111).map(|index| 0x80 | index).collect();
    for n in 0..100 {
        let block = [block(CALL), repeated.clone()].concat();
        bad.put(frame(HEADERS, END_HEADERS | END_STREAM, 11 + 2 * n, &block));
    }
    s.run();
    assert_eq!(server.got().len(), 100);
    assert!(s.world.splitter.wants_read(conn));
    assert_eq!(s.world.stats().limited.get(Bound::NewFields), 3);
    still_served(&mut s, &mut good, &server);
}

#[test]
fn requests_taken_back_in_haste_by_many_connections_reach_the_endpoint_later() {
    let (mut s, mut good, _bad, mut server) = stage(Limits::default());
    let clients: Vec<Peer> = (0..30).map(|_| s.client()).collect();
    for client in &clients {
        s.send(client, headers(1, END, CALL));
        s.send(client, reset(1, CANCEL));
    }
    // Those beyond a few live as long as an endpoint takes to look at them, and no longer.
    assert_eq!(requests_and_resets(&server.got()), (30, 10));
    s.pass(Duration::from_millis(99));
    assert_eq!(server.got(), []);
    s.pass(Duration::from_millis(1));
    assert_eq!(requests_and_resets(&server.got()), (0, 20));
    still_served(&mut s, &mut good, &server);
}

#[test]
fn a_request_whose_reset_is_held_back_keeps_its_place_at_the_endpoint() {
    let mut s = Script::with(Limits { connections_per_endpoint: 1, ..Limits::default() }, 1);
    let (client, mut server) = s.call_with(&[], &[(MAX_CONCURRENT_STREAMS, 12)]);
    let others: Vec<Peer> = (0..12).map(|_| s.client()).collect();
    for other in &others[..11] {
        s.send(other, [headers(1, END, CALL), reset(1, CANCEL)].concat());
    }
    assert_eq!(requests_and_resets(&server.got()), (11, 10));
    // Stream 1 and the one held back are open, ten places are free.
    (0..11).for_each(|n| s.send(&client, headers(3 + 2 * n, END, CALL)));
    assert_eq!(requests_and_resets(&server.got()), (10, 0));
    s.pass(Duration::from_millis(100));
    assert_eq!(requests_and_resets(&server.got()), (1, 1));
}

#[test]
fn an_endpoint_that_floods_is_not_read_for_a_tenth_of_a_second() {
    let (mut s, mut good, _bad, mut server) = stage(strict());
    for _ in 0..11 {
        server.put(ping(0, b"12345678"));
    }
    s.run();
    server.got();
    server.put([headers(1, MORE, OK), headers(1, END, DONE)].concat());
    s.run();
    assert_eq!(good.got(), []);
    s.pass(Duration::from_millis(100));
    assert_eq!(good.got(), [heard(1, MORE, OK), heard(1, END, DONE)]);
    assert_eq!(s.world.stats().limited.get(Bound::Pings), 1);
}

/// Of what endpoints heard: requests and resets.
fn requests_and_resets(got: &[Got]) -> (usize, usize) {
    let heads = got.iter().filter(|got| matches!(got, Got::Headers { .. })).count();
    (heads, got.iter().filter(|got| matches!(got, Got::Reset { .. })).count())
}

/// Plays a flood of hasty ends a second, in chunks as sockets give them, and gives what endpoints heard of it on the
/// connection of the client that behaves, and on the one apart.
fn hasty(s: &mut Script, bad: &Peer, server: &mut Peer, burst: &dyn Fn(u32) -> Vec<u8>) -> [(usize, usize); 2] {
    for chunk in 0..100 {
        s.send(bad, (0..10).flat_map(|n| burst(3 + 2 * (10 * chunk + n))).collect::<Vec<u8>>());
    }
    let (_, mut apart) = s.server_with(&[]);
    s.run();
    assert!(s.accept_any().is_none(), "one connection apart");
    [requests_and_resets(&server.got()), requests_and_resets(&apart.got())]
}

#[test]
fn a_rapid_reset_is_slowed_and_kept_apart_from_others() {
    let (mut s, mut good, bad, mut server) = stage(strict());
    let burst = |stream: u32| [headers(stream, END, CALL), reset(stream, CANCEL)].concat();
    let [(shared, resets), (apart, _)] = hasty(&mut s, &bad, &mut server, &burst);
    assert!(shared <= 11 && resets <= 11 && shared + apart <= 20, "{shared} {resets} {apart}");
    assert_eq!(s.world.stats().limited.get(Bound::Resets), 1);
    still_served(&mut s, &mut good, &server);
}

#[test]
fn resets_that_a_client_provokes_are_slowed_and_kept_apart_too() {
    let floods = Floods { stream_errors: 1_000, window_updates: 1_000, ..strict().floods };
    let (mut s, mut good, bad, mut server) = stage(Limits { floods, ..Limits::default() });
    let burst = |stream: u32| [headers(stream, MORE, CALL), window(stream, 0)].concat();
    let [(shared, resets), (apart, _)] = hasty(&mut s, &bad, &mut server, &burst);
    assert!(shared <= 11 && resets <= 11 && shared + apart <= 20, "{shared} {resets} {apart}");
    assert_eq!(s.world.stats().limited.get(Bound::Resets), 1);
    still_served(&mut s, &mut good, &server);
}

#[test]
fn an_endpoint_that_ends_the_connection_of_hasty_clients_ends_no_other() {
    let (mut s, mut good, bad, mut server) = stage(Limits::default());
    for n in 0..20 {
        s.send(&bad, [headers(3 + 2 * n, END, CALL), reset(3 + 2 * n, CANCEL)].concat());
    }
    let (_, mut apart) = s.server_with(&[]);
    s.send(&bad, [headers(101, END, CALL), reset(101, CANCEL)].concat());
    s.pass(Duration::from_millis(100));
    assert_eq!(requests_and_resets(&apart.got()), (1, 1));
    s.send(&apart, goaway(1, ENHANCE_YOUR_CALM));
    s.world.pass_time(Duration::from_secs(1));
    server.got();
    still_served(&mut s, &mut good, &server);
}

#[test]
fn ten_thousand_deadlines_that_expire_at_once_are_no_flood() {
    let (mut s, _good, client, mut server) = stage(Limits::default());
    let streams = 3..3 + 9_990u32;
    s.send(&client, streams.clone().flat_map(|n| headers(2 * n + 1, END, CALL)).collect::<Vec<u8>>());
    s.pass(Duration::from_millis(10));
    s.send(&client, streams.clone().flat_map(|n| reset(2 * n + 1, CANCEL)).collect::<Vec<u8>>());
    let (heads, resets) = requests_and_resets(&s.all(&mut server));
    assert!(heads > 1_000 && heads == resets, "{heads} {resets}");
    assert_eq!(s.world.stats().limited, Default::default());
    assert!(s.world.splitter.wants_read(client.conn.unwrap()));
}

#[test]
fn two_hundred_calls_cancelled_as_soon_as_they_began_are_no_flood() {
    let (mut s, _good, mut client, mut server) = stage(Limits::default());
    let streams = 2..202u32;
    let calls = streams.clone().flat_map(|n| headers(2 * n + 1, END, CALL));
    s.send(&client, calls.chain(streams.flat_map(|n| reset(2 * n + 1, CANCEL))).collect::<Vec<u8>>());
    s.pass(Duration::from_millis(100));
    // Those that found no room before they were taken back are not heard of.
    let (heads, resets) = requests_and_resets(&s.all(&mut server));
    assert!(heads <= 200 && heads == resets, "{heads} {resets}");
    assert_eq!(s.world.stats().limited, Default::default());
    // The next call is served, over a connection apart.
    s.send(&client, headers(9_001, END, CALL));
    let (_, mut apart) = s.server_with(&[]);
    assert_eq!(apart.got(), [heard(1, END, CALL)]);
    s.send(&apart, headers(1, END, OK));
    assert_eq!(client.got(), [heard(9_001, END, OK)]);
}

#[test]
fn a_client_that_cancels_answered_calls_is_no_flood() {
    let (mut s, mut good, mut client, mut server) = stage(strict());
    for n in 0..100 {
        let (at_client, at_server) = (3 + 2 * n, 5 + 2 * n);
        s.send(&client, headers(at_client, MORE, CALL));
        s.send(&server, headers(at_server, MORE, OK));
        s.send(&client, reset(at_client, CANCEL));
        assert_eq!(client.got(), [heard(at_client, MORE, OK)]);
        assert_eq!(server.got(), [heard(at_server, MORE, CALL), was_reset(at_server, CANCEL)]);
    }
    still_served(&mut s, &mut good, &server);
}

#[test]
fn a_header_block_without_end_ends_its_connection() {
    let limits = Limits { continuations: 4, header_block: 50_000, ..Limits::default() };
    let begin = frame(HEADERS, END_STREAM, 3, &block(CALL));
    for parts in [vec![frame(CONTINUATION, 0, 3, b""); 5], vec![frame(CONTINUATION, 0, 3, &[0; 16_384]); 4]] {
        let (mut s, mut good, mut bad, server) = stage(limits.clone());
        s.send(&bad, [begin.clone(), parts.concat()].concat());
        assert!(bad.got().ends_with(&[bye(1, ENHANCE_YOUR_CALM), Got::Closed]));
        let counted = [Bound::Continuations, Bound::HeaderBlock].map(|bound| s.world.stats().limited.get(bound));
        assert_eq!((s.world.stats().floods, counted[0] + counted[1]), (1, 1));
        still_served(&mut s, &mut good, &server);
    }
}

#[test]
fn streams_above_a_client_s_limit_are_refused() {
    let mut s = Script::with(Limits { client_streams: 2, ..Limits::default() }, 1);
    let (mut client, mut server) = s.call();
    s.send(&client, [headers(3, MORE, CALL), headers(5, MORE, CALL)].concat());
    assert_eq!((client.got(), server.got()), (vec![was_reset(5, REFUSED_STREAM)], vec![heard(3, MORE, CALL)]));
    s.send(&client, [reset(3, CANCEL), headers(7, MORE, CALL)].concat());
    assert_eq!((client.got(), server.got()), (vec![], vec![was_reset(3, CANCEL), heard(5, MORE, CALL)]));
}

#[test]
fn a_frame_that_claims_to_be_large_is_refused_by_its_head_alone() {
    let (mut s, mut good, mut bad, server) = stage(Limits::default());
    s.send(&bad, [0xff, 0xff, 0xff, DATA, 0, 0, 0, 0, 1]);
    assert_eq!(bad.got(), [bye(1, FRAME_SIZE_ERROR), Got::Closed]);
    still_served(&mut s, &mut good, &server);
}

#[test]
fn streams_beyond_what_a_pod_may_have_open_are_refused_whosever_they_are_and_later_ones_are_not() {
    let mut s = Script::with(Limits { pod_streams: 2, ..Limits::default() }, 1);
    let mut clients = [s.client(), s.client(), s.client()];
    for client in &clients {
        s.send(client, headers(1, MORE, CALL));
    }
    assert_eq!(clients[2].got(), [Got::Reset { stream: 1, code: REFUSED_STREAM }]);
    s.send(&clients[0], reset(1, CANCEL));
    s.send(&clients[2], headers(3, MORE, CALL));
    assert_eq!((clients[1].got(), clients[2].got()), (vec![], vec![]));
    assert_eq!((s.open_streams(), s.world.stats().limited.get(Bound::PodStreams)), (2, 1));
}
