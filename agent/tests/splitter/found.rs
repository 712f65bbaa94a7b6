//! What fuzzing has found, each as a scene of its own.

use std::time::Duration;

use sluice_agent::splitter::Limits;

use crate::script::Script;
use crate::wire::*;
use crate::world::endpoint;

#[test]
fn a_place_that_becomes_free_is_taken_by_a_request_that_waits_for_another_dial() {
    let mut s = Script::with(Limits::default(), 1);
    let (mut client, mut server) = s.call_with(&[], &[(MAX_CONCURRENT_STREAMS, 1)]);
    s.world.black_holes.insert(endpoint(1));
    s.send(&client, headers(3, END, CALL));
    assert_eq!(server.got(), [], "the first connection is full, a second one is dialled");
    s.send(&server, headers(1, END, OK));
    s.send(&client, data(1, END, b""));
    assert_eq!(client.got(), [heard(1, END, OK)]);
    assert_eq!(server.got(), [bytes(1, END, b""), heard(3, END, CALL)]);
    s.pass(Duration::from_secs(1));
    s.send(&server, headers(3, END, OK));
    assert_eq!(client.got(), [heard(3, END, OK)]);
}

#[test]
fn whole_responses_that_a_client_does_not_take_stay_within_the_budget() {
    let limits = Limits { stream_window: 65_535, connection_window: 65_535, pod_budget: 50_000, ..Limits::default() };
    let mut s = Script::with(limits, 1);
    let mut client = s.client_with(&[(INITIAL_WINDOW_SIZE, 0)]);
    s.send(&client, (0..20).flat_map(|n| headers(1 + 2 * n, END, CALL)).collect::<Vec<u8>>());
    let mut server = s.server();
    server.got();
    let mut window = 65_535;
    let mut sent = 0;
    for stream in (1..40).step_by(2) {
        window += server.credit(0);
        if window < 16_000 {
            break;
        }
        s.send(&server, [headers(stream, MORE, OK), data(stream, END, &[0; 16_000])].concat());
        window -= 16_000;
        sent += 1;
    }
    assert!((3..=7).contains(&sent), "{sent} responses of 16,000 bytes held");
    client.grant_all(1 << 20);
    (1..40).step_by(2).for_each(|stream| client.grant(stream, 1 << 20));
    let ends = s.all(&mut client).iter().filter(|got| matches!(got, Got::Data { end: true, .. })).count();
    assert_eq!(ends, sent, "responses that came whole");
    assert!(server.credit(0) > 0, "what went on is credited");
}

#[test]
fn a_place_that_a_refused_request_leaves_is_taken_by_one_that_waits() {
    let mut s = Script::with(Limits { connections_per_endpoint: 1, ..Limits::default() }, 2);
    let client = s.client();
    let calls = ["one", "two", "three"].map(|name| [CALL, &[("x-call", name)][..]].concat());
    // By turns: the first and the third go to the same endpoint, which takes one at a time.
    s.send(&client, [1, 3, 5].iter().zip(&calls).flat_map(|(id, call)| headers(*id, END, call)).collect::<Vec<u8>>());
    let servers = [(); 2].map(|()| s.server_with(&[(MAX_CONCURRENT_STREAMS, 1)]).1);
    let got = servers.map(|mut server| (server.got(), server));
    let (_, mut first) = got.into_iter().find(|(got, _)| *got == [heard(1, END, &calls[0])]).expect("the first call");
    s.send(&first, reset(1, REFUSED_STREAM));
    assert_eq!(first.got(), [heard(3, END, &calls[2])], "the third takes its place");
}
