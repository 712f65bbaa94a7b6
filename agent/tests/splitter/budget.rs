//! Promises about one pod's memory: however many connections it has, what waits in them together is bounded, and it is
//! this pod's waiting streams that pay for too much.

use sluice_agent::splitter::Limits;

use crate::script::{Peer, Script};
use crate::wire::*;

const MEBIBYTE: u32 = 1024 * 1024;

/// What the client may send ahead on its connection.
fn window(client: &mut Peer) -> u32 {
    65_535 + client.credit(0)
}

#[test]
fn the_more_connections_a_pod_has_the_less_each_may_send_ahead() {
    let mut s = Script::with(Limits::default(), 1);
    let mut clients: Vec<_> = (0..100).map(|_| s.client()).collect();
    let windows: Vec<_> = clients.iter_mut().map(window).collect();
    assert!(windows[..4].iter().all(|window| *window == MEBIBYTE), "{windows:?}");
    assert!(windows.is_sorted_by(|a, b| a >= b) && windows[99] >= 65_535, "{windows:?}");
    assert!(windows.iter().sum::<u32>() < 18 * MEBIBYTE, "{windows:?}");
}

#[test]
fn a_pod_in_which_much_waits_grants_new_connections_little() {
    let mut s = Script::with(Limits { pod_budget: 400_000, ..Limits::default() }, 1);
    let (client, _server) = s.call_with(&[], &[(INITIAL_WINDOW_SIZE, 0)]);
    assert_eq!(window(&mut s.client()), MEBIBYTE);
    for _ in 0..15 {
        s.send(&client, data(1, MORE, &[0; 16_384]));
    }
    assert_eq!(window(&mut s.client()), 65_535);
}

#[test]
fn an_endpoint_s_window_does_not_depend_on_the_number_of_clients() {
    let mut s = Script::with(Limits::default(), 1);
    let clients: Vec<_> = (0..50).map(|_| s.client()).collect();
    s.send(&clients[49], headers(1, END, CALL));
    assert_eq!(window(&mut s.server()), MEBIBYTE);
}

#[test]
fn a_pod_far_over_its_budget_loses_the_streams_that_wait_and_no_other() {
    let mut s = Script::with(Limits { pod_budget: 0, ..Limits::default() }, 1);
    let mut clients: Vec<_> = (0..40).map(|_| s.client()).collect();
    let shares: Vec<_> = clients.iter_mut().map(|client| window(client) / 8).collect();
    let mut server = None;
    for (client, share) in clients.iter().zip(&shares) {
        for stream in (1..=15).step_by(2) {
            s.send(client, headers(stream, MORE, CALL));
            if server.is_none() {
                server = Some(s.server_with(&[(INITIAL_WINDOW_SIZE, 0)]).1);
            }
            for part in vec![0; *share as usize].chunks(16_384) {
                s.send(client, data(stream, MORE, part));
            }
        }
    }
    let (sent, mut lost) = (shares.iter().sum::<u32>() * 8, 0);
    for (client, share) in clients.iter_mut().zip(&shares) {
        for got in client.got() {
            if let Got::Headers { end, fields, .. } = got {
                assert!(end && fields.contains(&("grpc-status".into(), "8".into())), "{fields:?}");
                lost += share;
            }
        }
    }
    assert!(lost > 0 && sent - lost <= 12 * MEBIBYTE + 262_144, "{sent} bytes sent, {lost} of them given up");
    let mut server = server.expect("a server");
    let _ = server.got();
    // A call whose bytes go on is none of those.
    let client = s.client();
    s.send(&client, headers(1, MORE, CALL));
    let Some(Got::Headers { stream, .. }) = server.got().pop() else { panic!("no call") };
    server.grant(stream, 10);
    s.run();
    s.send(&client, data(1, END, b"all"));
    assert_eq!(server.got(), [bytes(stream, END, b"all")]);
}

#[test]
fn outputs_that_nobody_takes_leave_room_for_whoever_comes_later() {
    let mut s = Script::with(Limits::default(), 1);
    let mut clients: Vec<_> = (0..30).map(|_| s.client_with(&[(INITIAL_WINDOW_SIZE, MEBIBYTE)])).collect();
    for client in &mut clients {
        client.grant(0, MEBIBYTE);
        s.send(client, headers(1, END, CALL));
    }
    let (_, mut server) = s.server_with(&[]);
    let whole = [0; 16_384];
    let mut granted = 65_535 + server.credit(0) as usize;
    for n in 0..30 {
        s.send(&server, headers(1 + 2 * n, MORE, OK));
        for _ in 0..11 {
            assert!(granted >= whole.len(), "the endpoint may send {granted} bytes to client {n}");
            s.send(&server, data(1 + 2 * n, MORE, &whole));
            granted = granted - whole.len() + server.credit(0) as usize;
        }
    }
    let waiting: Vec<_> = clients.iter().map(|client| s.world.splitter.output(client.conn.unwrap()).len()).collect();
    let (first, last, all) = (waiting[0], waiting[29], waiting.iter().sum::<usize>());
    assert!(first >= 96 * 1024 && (4 * 1024..48 * 1024).contains(&last), "{waiting:?}");
    // A quarter of the pod's budget.
    assert!(all <= 1 << 20, "{all}: {waiting:?}");
    // Those who take theirs get all of it.
    let arrived = |got: Got| if let Got::Data { body, .. } = got { body.len() } else { 0 };
    let taken: usize = s.all(&mut clients[29]).into_iter().map(arrived).sum();
    assert_eq!(taken, 11 * whole.len());
}
