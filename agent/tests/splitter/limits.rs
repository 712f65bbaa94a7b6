//! Promises about floods and bounds: a client that floods ends its own connection and nobody else's, endpoints see no
//! more than a direct client could do to them, and claims cost nothing.

use std::time::Duration;

use sluice_agent::splitter::{Floods, Limits};

use crate::script::{Peer, Script};
use crate::wire::*;

/// Each kind at most 10 in a second.
fn strict() -> Limits {
    let floods = Floods {
        resets: 10,
        provoked_resets: 10,
        pings: 10,
        settings: 10,
        empty_data: 10,
        priorities: 10,
        window_updates: 10,
    };
    Limits { floods, ..Limits::default() }
}

/// A stage with a client that behaves and one that will not, on one endpoint connection.
fn stage(limits: Limits) -> (Script, Peer, Peer, Peer) {
    let mut s = Script::with(limits, 1);
    let (good, mut server) = s.call();
    let bad = s.client();
    s.send(&bad, headers(1, MORE, CALL));
    assert_eq!(server.got(), [heard(3, MORE, CALL)]);
    (s, good, bad, server)
}

fn still_served(s: &mut Script, good: &mut Peer, server: &Peer) {
    s.send(server, [headers(1, MORE, OK), headers(1, END, DONE)].concat());
    assert_eq!(good.got(), [heard(1, MORE, OK), heard(1, END, DONE)]);
}

#[test]
fn a_flood_ends_its_own_connection_and_no_other() {
    let floods: Vec<(&str, Vec<u8>)> = vec![
        ("PING", ping(0, b"12345678")),
        ("SETTINGS", settings(&[])),
        ("empty DATA", data(1, MORE, b"")),
        ("DATA of padding", padded_data(1, MORE, b"", 3)),
        ("PRIORITY", frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1])),
        ("WINDOW_UPDATE", window(0, 1)),
        ("WINDOW_UPDATE on a stream", window(1, 1)),
    ];
    for (why, flood) in floods {
        // One that had leave to send SETTINGS has used one up.
        let allowed = if why == "SETTINGS" { 9 } else { 10 };
        let (mut s, mut good, mut bad, mut server) = stage(strict());
        (0..allowed).for_each(|_| bad.flood(&flood));
        s.run();
        assert!(!bad.got().contains(&Got::Closed), "{why}: within the limit");
        // In the next second as many again.
        s.pass(Duration::from_secs(1));
        (0..10).for_each(|_| bad.flood(&flood));
        s.run();
        assert!(!bad.got().contains(&Got::Closed), "{why}: the next second");
        bad.flood(&flood);
        s.run();
        let got = bad.got();
        assert!(got.ends_with(&[bye(1, ENHANCE_YOUR_CALM), Got::Closed]), "{why}: {got:?}");
        assert_eq!(server.got(), [was_reset(3, CANCEL)], "{why}");
        assert_eq!(s.world.stats().floods, 1, "{why}");
        still_served(&mut s, &mut good, &server);
    }
}

#[test]
fn a_rapid_reset_reaches_the_endpoint_no_more_often_than_allowed() {
    let (mut s, mut good, mut bad, mut server) = stage(strict());
    let burst = |n: u32| [headers(3 + 2 * n, END, CALL), reset(3 + 2 * n, CANCEL)].concat();
    s.send(&bad, (0..1_000).flat_map(burst).collect::<Vec<u8>>());
    assert_eq!(bad.got(), [bye(23, ENHANCE_YOUR_CALM), Got::Closed]);
    let heads = server.got().iter().filter(|got| matches!(got, Got::Headers { .. })).count();
    assert_eq!(heads, 11);
    still_served(&mut s, &mut good, &server);
}

#[test]
fn resets_that_a_client_provokes_are_counted_too() {
    let (mut s, mut good, mut bad, mut server) = stage(strict());
    let burst = |n: u32| [headers(3 + 2 * n, MORE, CALL), window(3 + 2 * n, 0)].concat();
    s.send(&bad, (0..1_000).flat_map(burst).collect::<Vec<u8>>());
    assert!(bad.got().ends_with(&[bye(23, ENHANCE_YOUR_CALM), Got::Closed]));
    let heads = server.got().iter().filter(|got| matches!(got, Got::Headers { .. })).count();
    assert_eq!(heads, 11);
    still_served(&mut s, &mut good, &server);
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
fn a_peer_that_does_not_take_its_answers_is_not_read_until_it_does() {
    let floods = Floods { pings: 1_000_000, ..Limits::default().floods };
    let limits = Limits { output_high: 32_768, output_stop: 40_000, floods, ..Limits::default() };
    let (mut s, mut good, mut bad, server) = stage(limits);
    let conn = bad.conn.unwrap();
    for _ in 0..10_000 {
        s.send(&bad, ping(0, b"12345678"));
    }
    assert!(!s.world.splitter.wants_read(conn));
    assert!(s.world.splitter.output(conn).len() < 41_000);
    still_served(&mut s, &mut good, &server);
    let mut answers = 0;
    for got in s.all(&mut bad) {
        assert_eq!(got, Got::Ping { ack: true, opaque: *b"12345678" });
        answers += 1;
    }
    assert_eq!(answers, 10_000);
    assert!(s.world.splitter.wants_read(conn));
}

#[test]
fn a_client_that_takes_no_response_s_head_is_given_up_before_they_fill_the_memory() {
    let limits = Limits { output_high: 32_768, output_stop: 40_000, output_limit: 100_000, ..Limits::default() };
    let (mut s, mut good, mut bad, mut server) = stage(limits);
    let long = "v".repeat(10_000);
    let conn = bad.conn.unwrap();
    for _ in 0..1_000 {
        s.send(&server, headers(3, MORE, &[(":status", "103"), ("link", &long)]));
        assert!(s.world.splitter.output(conn).len() < 120_000);
    }
    assert_eq!(server.got(), [was_reset(3, CANCEL)]);
    assert_eq!(s.all(&mut bad).last(), Some(&Got::Closed));
    still_served(&mut s, &mut good, &server);
}

#[test]
fn a_frame_that_claims_to_be_large_is_refused_by_its_head_alone() {
    let (mut s, mut good, mut bad, server) = stage(Limits::default());
    s.send(&bad, [0xff, 0xff, 0xff, DATA, 0, 0, 0, 0, 1]);
    assert_eq!(bad.got(), [bye(1, FRAME_SIZE_ERROR), Got::Closed]);
    still_served(&mut s, &mut good, &server);
}

/// The largest count of this name in the splitter's own picture of itself.
fn largest(s: &Script, name: &str) -> usize {
    let picture = format!("{:?}", s.world.splitter);
    let name = format!(" {name}: ");
    let counts = picture.match_indices(&name).map(|(at, _)| &picture[at + name.len()..]);
    let number = |text: &str| text.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap();
    counts.map(number).max().unwrap()
}

#[test]
fn streams_that_ended_while_they_waited_are_not_kept() {
    // For the client's window.
    let mut s = Script::with(Limits::default(), 1);
    let (mut client, server) = s.call_with(&[(INITIAL_WINDOW_SIZE, 1 << 20)], &[]);
    let fill = data(1, MORE, &[0; 16_384]).repeat(5);
    s.send(&server, [headers(1, MORE, OK), fill].concat());
    for n in 0..1_000 {
        let stream = 3 + 2 * n;
        s.send(&client, headers(stream, END, CALL));
        s.send(&server, [headers(stream, MORE, OK), data(stream, MORE, b"waits")].concat());
        s.send(&client, reset(stream, CANCEL));
        s.all(&mut client);
    }
    assert!(largest(&s, "blocked") < 20, "{:?}", s.world.splitter);
    // For a place at the endpoint.
    let floods = Floods { resets: 10_000, ..Limits::default().floods };
    let mut s = Script::with(Limits { connections_per_endpoint: 1, floods, ..Limits::default() }, 1);
    let (client, mut server) = s.call_with(&[], &[(MAX_CONCURRENT_STREAMS, 1)]);
    for n in 0..1_000 {
        s.send(&client, [headers(3 + 2 * n, END, CALL), reset(3 + 2 * n, CANCEL)].concat());
    }
    assert!(largest(&s, "waiting") < 20, "{:?}", s.world.splitter);
    s.send(&client, headers(9_001, END, CALL));
    s.send(&client, reset(1, CANCEL));
    assert_eq!(server.got(), [was_reset(1, CANCEL), heard(3, END, CALL)]);
}
