//! Promises about a graceful end: two GOAWAYs with a PING between them, streams that finish, a grace period that ends.

use std::rc::Rc;
use std::time::Duration;

use sluice_agent::balance::ServiceLoad;
use sluice_agent::splitter::Limits;

use crate::script::{Peer, Script, in_all_chunks};
use crate::wire::*;
use crate::world::{endpoint, service};

const GRACE: Duration = Duration::from_secs(30);
const OPAQUE: [u8; 8] = *b"sluice\0\0";

fn drain(s: &mut Script, which: Option<&Rc<ServiceLoad>>, grace: Duration) {
    let now = s.world.now;
    s.world.splitter.drain(now, which, now + grace);
    s.run();
}

fn first_step() -> [Got; 2] {
    [bye(0x7fff_ffff, NO_ERROR), Got::Ping { ack: false, opaque: OPAQUE }]
}

fn answer(s: &mut Script, server: &Peer, stream: u32) {
    s.send(server, [headers(stream, MORE, OK), headers(stream, END, DONE)].concat());
}

fn answered(stream: u32) -> [Got; 2] {
    [heard(stream, MORE, OK), heard(stream, END, DONE)]
}

#[test]
fn a_drain_loses_no_stream_that_the_client_opened_before_it_heard_of_it() {
    in_all_chunks(1, |mut s| {
        let (mut client, mut server) = s.call();
        drain(&mut s, None, GRACE);
        assert_eq!(client.got(), first_step());
        // On its way when the client hears of it.
        s.send(&client, headers(3, END, CALL));
        assert_eq!(server.got(), [heard(3, END, CALL)]);
        s.send(&client, ping(ACK, &OPAQUE));
        assert_eq!(client.got(), [bye(3, NO_ERROR)]);
        // What it opens now is not ours; it may be tried again elsewhere.
        s.send(&client, [headers(5, MORE, CALL), data(5, END, b"too late"), reset(5, CANCEL)].concat());
        assert_eq!((client.got(), server.got()), (vec![], vec![]));
        answer(&mut s, &server, 3);
        s.send(&client, data(1, END, b"last"));
        assert_eq!(server.got(), [bytes(1, END, b"last")]);
        answer(&mut s, &server, 1);
        assert_eq!(client.got(), [&answered(3)[..], &answered(1), &[Got::Closed]].concat());
        assert_eq!(server.got(), [bye(0, NO_ERROR), Got::Closed]);
        assert!(s.world.splitter.is_empty());
    });
}

#[test]
fn a_client_that_does_not_answer_the_ping_gets_the_second_step_in_time() {
    in_all_chunks(1, |mut s| {
        let (mut client, server) = s.call();
        drain(&mut s, None, GRACE);
        assert_eq!(client.got(), first_step());
        s.pass(Limits::default().drain_ping - Duration::from_millis(1));
        assert_eq!(client.got(), []);
        s.pass(Duration::from_millis(1));
        assert_eq!(client.got(), [bye(1, NO_ERROR)]);
        s.send(&client, data(1, END, b""));
        answer(&mut s, &server, 1);
        assert_eq!(client.got(), [&answered(1)[..], &[Got::Closed]].concat());
    });
}

#[test]
fn a_quiet_client_is_closed_with_the_second_step() {
    in_all_chunks(1, |mut s| {
        let mut client = s.client();
        drain(&mut s, None, GRACE);
        s.send(&client, ping(ACK, &OPAQUE));
        assert_eq!(client.got(), [&first_step()[..], &[bye(0, NO_ERROR), Got::Closed]].concat());
        assert!(s.world.splitter.is_empty());
    });
}

#[test]
fn at_the_end_of_the_grace_period_what_is_left_is_cancelled() {
    in_all_chunks(1, |mut s| {
        let (mut client, mut server) = s.call();
        drain(&mut s, None, GRACE);
        s.send(&client, ping(ACK, &OPAQUE));
        s.pass(GRACE - Duration::from_millis(1));
        assert_eq!(client.got(), [&first_step()[..], &[bye(1, NO_ERROR)]].concat());
        s.pass(Duration::from_millis(1));
        assert_eq!(client.got(), [bye(1, NO_ERROR), Got::Closed]);
        assert_eq!(server.got(), [was_reset(1, CANCEL), bye(0, NO_ERROR), Got::Closed]);
        assert!(s.world.splitter.is_empty());
    });
}

#[test]
fn a_client_that_comes_while_all_drain_is_told_at_once() {
    in_all_chunks(1, |mut s| {
        let (mut old, _server) = s.call();
        drain(&mut s, None, GRACE);
        assert_eq!(old.got(), first_step());
        let mut new = s.silent_client();
        new.put(sluice_agent::splitter::PREFACE);
        new.settings(&[]);
        s.send(&new, ping(ACK, &OPAQUE));
        assert_eq!(new.got(), [&first_step()[..], &[bye(0, NO_ERROR), Got::Closed]].concat());
        assert_eq!(old.got(), []);
    });
}

#[test]
fn the_nearer_end_of_two_drains_counts() {
    in_all_chunks(1, |mut s| {
        let (mut client, _server) = s.call();
        let service = Rc::clone(&s.world.service);
        drain(&mut s, Some(&service), GRACE);
        drain(&mut s, None, GRACE / 3);
        assert_eq!(client.got(), first_step());
        s.pass(GRACE / 3);
        assert_eq!(client.got(), [bye(1, NO_ERROR), bye(1, NO_ERROR), Got::Closed]);
    });
}

#[test]
fn one_service_drains_and_the_others_go_on() {
    in_all_chunks(1, |mut s| {
        let (mut leaving, mut server) = s.call();
        let mut rng = fastrand::Rng::with_seed(5);
        let other = ServiceLoad::new(service(&[endpoint(1)]), &mut rng);
        let drained = std::mem::replace(&mut s.world.service, other);
        let mut staying = s.client();
        s.send(&staying, headers(1, END, CALL));
        let mut own = s.server();
        assert_eq!(own.got(), [heard(1, END, CALL)]);
        drain(&mut s, Some(&drained), GRACE);
        s.send(&leaving, ping(ACK, &OPAQUE));
        s.send(&leaving, data(1, END, b""));
        answer(&mut s, &server, 1);
        assert_eq!(leaving.got(), [&first_step()[..], &[bye(1, NO_ERROR)], &answered(1), &[Got::Closed]].concat());
        answer(&mut s, &own, 1);
        assert_eq!(staying.got(), answered(1));
        assert_eq!((server.got(), own.got()), (vec![bytes(1, END, b"")], vec![]));
        s.send(&staying, headers(3, END, CALL));
        assert_eq!(own.got(), [heard(3, END, CALL)]);
    });
}

#[test]
fn an_endpoint_dialled_for_a_client_that_left_in_a_drain_is_given_up() {
    in_all_chunks(1, |mut s| {
        s.world.dials_wait = true;
        let client = s.client();
        s.send(&client, headers(1, END, CALL));
        drain(&mut s, None, GRACE);
        drop(client);
        s.run();
        assert!(s.world.splitter.is_empty());
        s.world.answer_dials();
        s.run();
        assert!(s.accept_any().is_none());
    });
}
