//! Promises about windows: what a receiver allows is kept to, what a sender gets back is what has gone on, and a
//! receiver that stalls one stream stalls that stream alone.

use sluice_agent::splitter::Limits;

use crate::script::{Peer, Script, in_all_chunks};
use crate::wire::*;

const MEGA: u32 = 1 << 20;

fn body(length: usize) -> Vec<u8> {
    (0..length).map(|i| i as u8).collect()
}

/// DATA of `length` bytes in frames of at most 16 KiB.
fn frames(stream: u32, length: usize, end: bool) -> Vec<u8> {
    let whole = body(length);
    let mut out = Vec::new();
    let mut chunks = whole.chunks(16_384).peekable();
    while let Some(chunk) = chunks.next() {
        out.extend(data(stream, end && chunks.peek().is_none(), chunk));
    }
    out
}

/// All DATA that comes to a peer, which is of one stream.
fn all(s: &mut Script, peer: &mut Peer) -> Vec<u8> {
    let part = |got| if let Got::Data { body, .. } = got { body } else { panic!("{got:?} among DATA") };
    s.all(peer).into_iter().flat_map(part).collect()
}

#[test]
fn data_waits_for_the_endpoint_s_stream_window_and_goes_on_with_its_updates() {
    in_all_chunks(1, |mut s| {
        let (client, mut server) = s.call_with(&[], &[(INITIAL_WINDOW_SIZE, 4)]);
        s.send(&client, data(1, END, b"0123456789"));
        assert_eq!(server.got(), [bytes(1, MORE, b"0123")]);
        server.grant(1, 3);
        s.run();
        assert_eq!(server.got(), [bytes(1, MORE, b"456")]);
        server.grant(1, 3);
        s.run();
        assert_eq!(server.got(), [bytes(1, END, b"789")]);
    });
}

#[test]
fn an_end_without_bytes_needs_no_window() {
    in_all_chunks(1, |mut s| {
        let (client, mut server) = s.call_with(&[], &[(INITIAL_WINDOW_SIZE, 0)]);
        s.send(&client, data(1, END, b""));
        assert_eq!(server.got(), [bytes(1, END, b"")]);
    });
}

#[test]
fn data_waits_for_the_connection_s_window() {
    in_all_chunks(1, |mut s| {
        let (mut client, server) = s.call_with(&[(INITIAL_WINDOW_SIZE, MEGA)], &[]);
        s.send(&server, [headers(1, MORE, OK), frames(1, 100_000, MORE), headers(1, END, DONE)].concat());
        assert_eq!(s.all(&mut client).iter().map(length).sum::<usize>(), 65_535);
        client.grant(0, 10_000);
        s.run();
        assert_eq!(client.body(1).0.len(), 10_000);
        client.grant(0, MEGA);
        let rest = s.all(&mut client);
        assert_eq!(rest.iter().map(length).sum::<usize>(), 100_000 - 75_535);
        assert_eq!(rest.last(), Some(&heard(1, END, DONE)));
    });
}

fn length(got: &Got) -> usize {
    if let Got::Data { body, .. } = got { body.len() } else { 0 }
}

#[test]
fn a_raised_initial_window_lets_waiting_data_go() {
    in_all_chunks(1, |mut s| {
        let (client, mut server) = s.call_with(&[], &[(INITIAL_WINDOW_SIZE, 4)]);
        s.send(&client, data(1, END, b"0123456789"));
        assert_eq!(server.got(), [bytes(1, MORE, b"0123")]);
        server.settings(&[(INITIAL_WINDOW_SIZE, 8)]);
        s.run();
        assert_eq!(server.got(), [bytes(1, MORE, b"4567")]);
    });
}

#[test]
fn a_lowered_initial_window_may_make_a_window_negative_and_updates_fill_it_up() {
    in_all_chunks(1, |mut s| {
        let (client, mut server) = s.call_with(&[], &[(INITIAL_WINDOW_SIZE, 8)]);
        s.send(&client, data(1, END, b"0123456789"));
        assert_eq!(server.got(), [bytes(1, MORE, b"01234567")]);
        server.settings(&[(INITIAL_WINDOW_SIZE, 3)]);
        s.run();
        server.grant(1, 5);
        s.run();
        assert_eq!(server.got(), []);
        server.grant(1, 1);
        s.run();
        assert_eq!(server.got(), [bytes(1, MORE, b"8")]);
        server.grant(1, 1);
        s.run();
        assert_eq!(server.got(), [bytes(1, END, b"9")]);
    });
}

#[test]
fn a_stalled_stream_stops_no_other_stream_to_the_same_endpoint() {
    let mut s = Script::with(Limits::default(), 1);
    let (client, mut server) = s.call_with(&[], &[(INITIAL_WINDOW_SIZE, 10)]);
    server.grant(0, MEGA);
    s.run();
    // Three streams fill all that they may; none of them is read.
    for stream in [1, 3, 5] {
        if stream > 1 {
            s.send(&client, headers(stream, MORE, CALL));
        }
        s.send(&client, frames(stream, 262_144, MORE));
    }
    let _ = server.got();
    s.send(&client, [headers(7, MORE, CALL), data(7, END, b"through")].concat());
    assert_eq!(server.got(), [heard(7, MORE, CALL), bytes(7, END, b"through")]);
    let mut client = client;
    assert_eq!(client.got(), []);
}

#[test]
fn a_stalled_stream_stops_no_other_stream_to_the_same_client() {
    let mut s = Script::with(Limits::default(), 1);
    let (mut client, server) = s.call_with(&[(INITIAL_WINDOW_SIZE, 10)], &[]);
    s.send(&server, [headers(1, MORE, OK), frames(1, 262_144, MORE)].concat());
    let _ = client.got();
    for stream in [3, 5, 7, 9] {
        s.send(&client, headers(stream, END, CALL));
        s.send(
            &server,
            [headers(stream, MORE, OK), data(stream, MORE, b"through"), headers(stream, END, DONE)].concat(),
        );
        assert_eq!(client.got(), [heard(stream, MORE, OK), bytes(stream, MORE, b"through"), heard(stream, END, DONE)]);
    }
}

#[test]
fn waiting_streams_share_the_connection_s_window_in_turn() {
    let mut s = Script::with(Limits::default(), 1);
    let (mut client, server) = s.call_with(&[(INITIAL_WINDOW_SIZE, MEGA)], &[]);
    s.send(&client, headers(3, END, CALL));
    s.send(&server, [headers(1, MORE, OK), headers(3, MORE, OK)].concat());
    s.send(&server, frames(1, 200_000, MORE));
    s.send(&server, frames(3, 200_000, MORE));
    s.all(&mut client);
    let mut shares = [0, 0];
    for _ in 0..10 {
        client.grant(0, 20_000);
        for got in s.all(&mut client) {
            let Got::Data { stream, ref body, .. } = got else { panic!("{got:?}") };
            shares[usize::from(stream == 3)] += body.len();
        }
    }
    assert_eq!(shares[0] + shares[1], 200_000);
    assert!(shares.iter().all(|share| *share > 60_000), "{shares:?}");
}

#[test]
fn a_sender_gets_credit_only_for_what_has_gone_on() {
    let mut s = Script::with(Limits::default(), 1);
    let (mut client, mut server) = s.call_with(&[], &[(INITIAL_WINDOW_SIZE, 0)]);
    server.grant(0, MEGA);
    s.send(&client, frames(1, 262_144, MORE));
    assert_eq!(client.credit(1), 0);
    server.grant(1, 131_072);
    assert_eq!(all(&mut s, &mut server), body(262_144)[..131_072]);
    let credit = client.credit(1) as usize;
    assert!(credit > 65_536 && credit <= 131_072, "{credit}");
    server.grant(1, MEGA);
    all(&mut s, &mut server);
    let credit = credit + client.credit(1) as usize;
    assert!(credit > 196_608 && credit <= 262_144, "{credit}");
}

#[test]
fn a_sender_beyond_its_stream_s_window_ends_that_stream_alone_and_keeps_the_connection_s_window_whole() {
    let mut s = Script::with(Limits::default(), 1);
    let (mut client, mut server) = s.call_with(&[], &[(INITIAL_WINDOW_SIZE, 0)]);
    let mut window = 65_535 + client.credit(0);
    // Each round costs a quarter of the connection's window: it would be used up by the fourth.
    for stream in (1..80).step_by(2) {
        if stream > 1 {
            s.send(&client, headers(stream, MORE, CALL));
        }
        // In haste it would get an endpoint connection apart.
        s.pass(std::time::Duration::from_millis(10));
        s.send(&client, [frames(stream, 262_144, MORE), data(stream, MORE, &[0; 16_384])].concat());
        assert_eq!(client.got(), [was_reset(stream, FLOW_CONTROL_ERROR)]);
        assert_eq!(server.got().last(), Some(&was_reset(stream, CANCEL)));
        assert_eq!(s.open_streams(), 0);
        window = window - 262_144 - 16_384 + client.credit(0);
        assert!(window > MEGA - MEGA / 4, "{window}");
    }
}

#[test]
fn a_sender_beyond_the_connection_s_window_ends_its_connection() {
    let limits = Limits { pod_budget: 0, ..Limits::default() };
    let mut s = Script::with(limits, 1);
    let (mut client, _server) = s.call_with(&[], &[(INITIAL_WINDOW_SIZE, 0)]);
    for stream in [3, 5, 7, 9] {
        s.send(&client, headers(stream, MORE, CALL));
    }
    for stream in [1, 3, 5, 7] {
        s.send(&client, frames(stream, 262_144, MORE));
    }
    assert_eq!(client.got(), []);
    s.send(&client, data(9, MORE, b"x"));
    assert_eq!(client.got(), [bye(9, FLOW_CONTROL_ERROR), Got::Closed]);
    assert_eq!(s.open_streams(), 0);
}

#[test]
fn a_pod_over_its_budget_gets_no_credit_until_its_bytes_have_gone_on() {
    let limits = Limits { pod_budget: 100_000, ..Limits::default() };
    let mut s = Script::with(limits, 1);
    let (mut client, mut server) = s.call_with(&[], &[(INITIAL_WINDOW_SIZE, 0)]);
    server.grant(0, 2 * MEGA);
    let _ = client.credit(0);
    for stream in [3, 5, 7] {
        s.send(&client, headers(stream, MORE, CALL));
    }
    for stream in [1, 3, 5, 7] {
        s.send(&client, frames(stream, 262_144, MORE));
    }
    assert_eq!(client.credit(0), 0, "what was taken within the budget is not worth an update yet");
    let _ = server.got();
    for stream in [1, 3, 5, 7] {
        server.grant(stream, MEGA);
        assert_eq!(all(&mut s, &mut server).len(), 262_144);
    }
    let credit = client.credit(0);
    assert!(credit > MEGA - MEGA / 4 && credit <= MEGA, "{credit}");
}

#[test]
fn what_a_cancelled_stream_held_is_credited_to_the_connection() {
    let limits = Limits { pod_budget: 0, ..Limits::default() };
    let mut s = Script::with(limits, 1);
    let (mut client, _server) = s.call_with(&[], &[(INITIAL_WINDOW_SIZE, 0)]);
    let _ = client.credit(0);
    for stream in [3, 5, 7] {
        s.send(&client, headers(stream, MORE, CALL));
    }
    for stream in [1, 3, 5, 7] {
        s.send(&client, frames(stream, 262_144, MORE));
        assert_eq!(client.credit(0), 0);
    }
    for stream in [1, 3, 5, 7] {
        s.send(&client, reset(stream, CANCEL));
        assert_eq!(client.credit(0), 262_144);
    }
}

#[test]
fn padding_is_cut_off_and_credited() {
    in_all_chunks(1, |mut s| {
        let (mut client, mut server) = s.call_with(&[], &[(INITIAL_WINDOW_SIZE, 0)]);
        let _ = client.credit(0);
        for _ in 0..800 {
            client.put(padded_data(1, MORE, b"", 255));
        }
        s.run();
        assert!(client.credit(1) >= 800 * 256 - 65_536, "padding is nobody's: its credit comes at once");
        s.send(&client, padded_data(1, END, b"body", 99));
        server.grant(1, 100);
        s.run();
        assert_eq!(server.got(), [bytes(1, END, b"body")]);
    });
}

#[test]
fn data_is_cut_to_the_receiver_s_frame_size_and_never_joined() {
    in_all_chunks(1, |mut s| {
        let (mut client, server) = s.call_with(&[(MAX_FRAME_SIZE, 30_000)], &[]);
        let parts: Vec<u8> = [data(1, MORE, &[1; 16_384]), data(1, MORE, b"small"), data(1, MORE, b"er")].concat();
        s.send(&server, [headers(1, MORE, OK), parts].concat());
        let lengths: Vec<usize> = client.got()[1..].iter().map(length).collect();
        assert_eq!(lengths, [16_384, 5, 2]);
    });
}

#[test]
fn a_huge_window_is_an_offer_and_costs_nothing() {
    let mut s = Script::with(Limits::default(), 1);
    let (mut client, mut server) =
        s.call_with(&[(INITIAL_WINDOW_SIZE, 0x7fff_ffff)], &[(INITIAL_WINDOW_SIZE, 0x7fff_ffff)]);
    server.grant(0, 0x7fff_ffff - 65_535);
    client.grant(0, 0x7fff_ffff - 65_535);
    s.send(&client, data(1, END, b"ask"));
    s.send(&server, [headers(1, MORE, OK), data(1, END, b"answer")].concat());
    assert_eq!(server.got(), [bytes(1, END, b"ask")]);
    assert_eq!(client.got(), [heard(1, MORE, OK), bytes(1, END, b"answer")]);
}

#[test]
fn a_window_above_the_maximum_is_an_error_of_its_stream_or_its_connection() {
    in_all_chunks(1, |mut s| {
        let (mut client, mut server) = s.call();
        s.send(&client, window(1, 0x7fff_ffff));
        assert_eq!((client.got(), server.got()), (vec![was_reset(1, FLOW_CONTROL_ERROR)], vec![was_reset(1, CANCEL)]));
        s.send(&client, window(0, 0x7fff_ffff));
        assert_eq!(client.got(), [bye(1, FLOW_CONTROL_ERROR), Got::Closed]);
    });
}
