//! Promises about memory: what waits for a peer that does not take it, and what is remembered of those that are gone, is
//! bounded for each connection and for the whole pod, and nobody else waits for it.

use std::time::Duration;

use sluice_agent::splitter::{Bound, Floods, Limits};

use crate::limits::{stage, still_served};
use crate::script::{Peer, Script, and};
use crate::wire::*;
use crate::world::Chunks;

/// A call that ends with its head.
const DONE_AT_ONCE: Fields<'static> = &[(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "0")];

/// The largest count of this name in the splitter's own picture of itself.
fn largest(s: &Script, name: &str) -> usize {
    let picture = format!("{:?}", s.world.splitter);
    let name = format!(" {name}: ");
    let counts = picture.match_indices(&name).map(|(at, _)| &picture[at + name.len()..]);
    let number = |text: &str| text.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap();
    counts.map(number).max().unwrap()
}

#[test]
fn answers_that_have_ended_and_wait_for_their_client_are_within_the_pods_budget() {
    let budget = 1 << 20;
    let mut s = Script::with(Limits { pod_budget: budget, ..Limits::default() }, 1);
    let (mut client, mut server) = s.call_with(&[(INITIAL_WINDOW_SIZE, 0)], &[]);
    let mut window = 65_535 + server.credit(0) as usize;
    let mut sent = 0;
    // Each answer ends, and none is taken: the endpoint runs out of leave to send.
    for n in 0..1_000u32 {
        let stream = 1 + 2 * n;
        if n > 0 {
            s.send(&client, headers(stream, END, CALL));
            let apart = s.accept_any();
            if apart.is_some() {
                break;
            }
        }
        server.got();
        if window < 16_384 {
            break;
        }
        s.send(&server, [headers(stream, MORE, OK), data(stream, END, &[0; 16_384])].concat());
        sent += 16_384;
        window = window - 16_384 + server.credit(0) as usize;
    }
    assert!(sent <= budget + (1 << 20), "{sent}");
    // Those who do take theirs go over another connection, and are served.
    let mut good = s.client();
    s.send(&good, headers(1, END, CALL));
    let (_, server) = s.server_with(&[]);
    s.send(&server, [headers(1, MORE, OK), headers(1, END, DONE)].concat());
    s.send(&server, [headers(3, MORE, OK), headers(3, END, DONE)].concat());
    assert_eq!(good.got(), [heard(1, MORE, OK), heard(1, END, DONE)]);
    drop(client.got());
}

/// What another client of the pod has in flight on the same endpoint connection does not wait for one that reads nothing:
/// of that one's answers, what waits in the pod beyond its budget ends.
#[test]
fn a_call_in_flight_is_answered_whatever_a_neighbour_leaves_unread() {
    let mut s = Script::with(Limits { pod_budget: 1 << 20, ..Limits::default() }, 1);
    let (mut good, mut server) = s.call();
    let mut bad = s.client_with(&[(INITIAL_WINDOW_SIZE, 0)]);
    for n in 0..400u32 {
        s.send(&bad, headers(1 + 2 * n, END, CALL));
    }
    server.got();
    let mut window = 65_535 + server.credit(0) as usize;
    for n in 0..400u32 {
        if window < 16_384 {
            break;
        }
        s.send(&server, [headers(3 + 2 * n, MORE, OK), data(3 + 2 * n, END, &[0; 16_384])].concat());
        window = window - 16_384 + server.credit(0) as usize;
    }
    assert!(window > 1 << 19, "the endpoint may send {window} bytes");
    still_served(&mut s, &mut good, &server);
    // Those within the budget wait for it; and the good one has not ended its request.
    let kept = s.open_streams() - 1;
    assert!((60..100).contains(&kept), "{kept}");
    let resets = s.all(&mut bad).iter().filter(|got| matches!(got, Got::Reset { code: ENHANCE_YOUR_CALM, .. })).count();
    assert_eq!(resets as u64, 400 - kept);
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
        s.send(&client, headers(3 + 2 * n, END, CALL));
        s.pass(Duration::from_millis(10));
        s.send(&client, reset(3 + 2 * n, CANCEL));
    }
    assert!(largest(&s, "waiting") < 20, "{:?}", s.world.splitter);
    s.send(&client, headers(9_001, END, CALL));
    s.send(&client, reset(1, CANCEL));
    assert_eq!(server.got(), [was_reset(1, CANCEL), heard(3, END, CALL)]);
}

#[test]
fn timers_of_connections_that_are_gone_are_not_kept() {
    let mut s = Script::with(Limits::default(), 1);
    let (client, mut server) = s.call();
    for n in 1..500u32 {
        // An endpoint that takes its leave after each request.
        s.send(&server, [headers(1, END, DONE_AT_ONCE), goaway(1, NO_ERROR)].concat());
        s.send(&client, headers(1 + 2 * n, END, CALL));
        server = s.server_with(&[]).1;
    }
    assert!(largest(&s, "timers") < 150, "{:?}", s.world.splitter);
}

#[test]
fn header_lists_that_wait_are_bounded_in_the_whole_pod() {
    let mut s = Script::with(Limits { waiting_heads: 2 << 20, ..Limits::default() }, 1);
    s.world.dials_wait = true;
    let long = "v".repeat(30_000);
    let long = [("long", &*long)];
    let fields = and(CALL, &long);
    let mut clients: Vec<Peer> = (0..10).map(|_| s.client()).collect();
    for client in &clients {
        for n in 0..50 {
            let block = block(&fields);
            let (first, rest) = block.split_at(16_000);
            let head = frame(HEADERS, END_STREAM, 1 + 2 * n, first);
            s.send(client, [head, frame(CONTINUATION, END_HEADERS, 1 + 2 * n, rest)].concat());
        }
    }
    let held = largest(&s, "heads");
    assert!(held > 2_000_000 && held <= 2 << 20, "{held}");
    assert_eq!(s.world.stats().limited.get(Bound::WaitingHeads), 500 - s.open_streams());
    assert_eq!(clients[9].got()[0], was_reset(1, REFUSED_STREAM));
    // Sent, they are kept no more than a replay is worth; ended, not at all.
    s.world.dials_wait = false;
    s.world.answer_dials();
    let mut server = s.server();
    s.all(&mut server);
    assert!(largest(&s, "heads") <= 1 << 20);
    drop(clients);
    s.run();
    assert_eq!((largest(&s, "heads"), s.open_streams()), (0, 0));
}

#[test]
fn hundreds_of_clients_that_read_nothing_are_within_the_pods_budget() {
    // A turn is 20,000 bytes at most.
    let mut s = Script::new(Chunks::Random, Limits { pod_budget: 4 << 20, ..Limits::default() }, 1);
    let (mut good, server) = s.call();
    let bad: Vec<Peer> = (0..500).map(|_| s.client()).collect();
    for client in &bad {
        client.put(ping(0, b"12345678").repeat(10_000));
        client.put([headers(1, MORE, CALL), headers(3, MORE, CALL)].concat());
    }
    s.run();
    let waiting: usize = bad.iter().map(|client| s.world.splitter.output(client.conn.unwrap()).len()).sum();
    assert!(waiting > 1 << 20 && waiting < (4 << 20) + 500 * 20_000, "{waiting}");
    still_served(&mut s, &mut good, &server);
}
