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
