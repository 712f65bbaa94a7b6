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
