//! Promises about what holds for a whole connection (RFC 9113 §6.5, §6.7, §6.8): SETTINGS, and how GOAWAY ends it.

use std::time::Duration;

use crate::script::{and, in_all_chunks};
use crate::wire::*;

#[test]
fn settings_hold_in_the_order_in_which_they_stand() {
    in_all_chunks(1, |mut s| {
        let (mut client, server) = s.call();
        client.settings(&[(INITIAL_WINDOW_SIZE, 70_000), (MAX_FRAME_SIZE, 20_000), (INITIAL_WINDOW_SIZE, 3)]);
        s.run();
        s.send(&server, [headers(1, MORE, OK), data(1, MORE, b"12345")].concat());
        assert_eq!(client.got(), [heard(1, MORE, OK), bytes(1, MORE, b"123")]);
    });
}

#[test]
fn each_settings_frame_is_acknowledged_once_and_an_acknowledgement_by_nothing() {
    in_all_chunks(1, |mut s| {
        let (mut client, mut server) = s.call();
        for peer in [&mut client, &mut server] {
            peer.noise.clear();
            (0..3).for_each(|n| peer.settings(&[(INITIAL_WINDOW_SIZE, 65_535 + n)]));
            peer.put(frame(SETTINGS, ACK, 0, &[]));
            peer.put(frame(SETTINGS, ACK, 0, &[]));
        }
        s.run();
        for peer in [&mut client, &mut server] {
            assert_eq!(peer.got(), []);
            assert_eq!(peer.noise, [Got::SettingsAck, Got::SettingsAck, Got::SettingsAck]);
        }
    });
}

#[test]
fn a_server_may_say_that_it_does_not_push() {
    in_all_chunks(1, |mut s| {
        let (client, mut server) = s.call_with(&[(ENABLE_PUSH, 1), (ENABLE_PUSH, 0)], &[(ENABLE_PUSH, 0)]);
        s.send(&client, data(1, END, b"ask"));
        assert_eq!(server.got(), [bytes(1, END, b"ask")]);
    });
}

#[test]
fn no_setting_moves_the_connection_s_window() {
    in_all_chunks(1, |mut s| {
        let (mut client, server) = s.call_with(&[(INITIAL_WINDOW_SIZE, 1 << 20)], &[]);
        s.send(&server, headers(1, MORE, OK));
        (0..5).for_each(|_| server.put(data(1, MORE, &[1; 16_384])));
        let came = |client: &mut crate::script::Peer, s: &mut crate::script::Script| -> usize {
            let lengths = |got: &Got| if let Got::Data { body, .. } = got { body.len() } else { 0 };
            s.all(client).iter().map(lengths).sum()
        };
        assert_eq!(came(&mut client, &mut s), 65_535);
        client.settings(&[(INITIAL_WINDOW_SIZE, 1 << 24)]);
        assert_eq!(came(&mut client, &mut s), 0);
        client.grant(0, 100_000);
        assert_eq!(came(&mut client, &mut s), 5 * 16_384 - 65_535);
    });
}

#[test]
fn a_window_that_settings_would_push_above_the_maximum_ends_the_connection() {
    in_all_chunks(1, |mut s| {
        let (mut client, mut server) = s.call();
        client.grant(1, 0x7fff_ffff - 65_535);
        client.settings(&[(INITIAL_WINDOW_SIZE, 65_536)]);
        s.run();
        assert_eq!(client.got(), [bye(1, FLOW_CONTROL_ERROR), Got::Closed]);
        assert_eq!(server.got(), [was_reset(1, CANCEL)]);
    });
    in_all_chunks(1, |mut s| {
        let (_client, mut server) = s.call();
        server.grant(1, 0x7fff_ffff - 65_535);
        server.settings(&[(INITIAL_WINDOW_SIZE, 65_536)]);
        s.run();
        let got = server.got();
        assert_eq!((&got[0], got.last()), (&bye(0, FLOW_CONTROL_ERROR), Some(&Got::Closed)));
    });
}

/// A drain's final GOAWAY names stream 3; what the client opens after it is not ours, and still counts for the connection.
#[test]
fn streams_above_our_goaway_are_ignored_and_leave_the_connection_in_step() {
    in_all_chunks(1, |mut s| {
        let (mut client, mut server) = s.call();
        s.send(&client, headers(3, MORE, &and(CALL, &[("+x-stored", "3")])));
        let until = s.world.now + Duration::from_secs(60);
        s.world.splitter.drain(s.world.now, None, until);
        s.run();
        s.send(&client, ping(ACK, b"sluice\0\0"));
        let said = [bye(0x7fff_ffff, NO_ERROR), Got::Ping { ack: false, opaque: *b"sluice\0\0" }, bye(3, NO_ERROR)];
        assert_eq!((client.got(), server.got().len()), (said.to_vec(), 1));
        client.credit(0);
        s.send(&client, headers(5, MORE, &and(CALL, &[("+x-stored", "5")])));
        for _ in 0..64 {
            s.send(&client, data(5, MORE, &[0; 16_384]));
        }
        s.send(&client, [window(5, 1), headers(5, END, DONE), headers(7, MORE, CALL), reset(7, CANCEL)].concat());
        assert_eq!((client.got(), server.got()), (vec![], vec![]));
        assert!(client.credit(0) >= 48 * 16_384, "the connection's window was given back");
        // Trailers that refer to what the ignored block stored.
        s.send(&client, frame(HEADERS, END_HEADERS | END_STREAM, 3, &[0x80 | 62, 0x80 | 63]));
        assert_eq!(server.got(), [heard(3, END, &[("x-stored", "5"), ("x-stored", "3")])]);
    });
}

#[test]
fn the_last_stream_that_goaway_names_never_rises() {
    in_all_chunks(1, |mut s| {
        let (mut client, _server) = s.call();
        let until = s.world.now + Duration::from_secs(60);
        s.world.splitter.drain(s.world.now, None, until);
        s.run();
        s.send(&client, ping(ACK, b"sluice\0\0"));
        s.send(&client, [headers(3, END, CALL), headers(5, END, CALL), ping(0, b"12345678")].concat());
        s.send(&client, frame(PING, 0, 1, &[0; 8]));
        let lasts: Vec<u32> = client
            .got()
            .iter()
            .filter_map(|got| match got {
                Got::GoAway { last, .. } => Some(*last),
                _ => None,
            })
            .collect();
        assert_eq!(lasts, [0x7fff_ffff, 1, 1]);
    });
}

#[test]
fn a_client_that_says_goodbye_is_served_to_the_end() {
    in_all_chunks(1, |mut s| {
        let (mut client, mut server) = s.call();
        s.send(&client, [goaway(0, NO_ERROR), data(1, END, b"last")].concat());
        assert_eq!(server.got(), [bytes(1, END, b"last")]);
        s.send(&server, [headers(1, MORE, OK), headers(1, END, DONE)].concat());
        assert_eq!(client.got(), [heard(1, MORE, OK), heard(1, END, DONE)]);
    });
}

#[test]
fn an_endpoint_s_goaway_with_debug_data_counts_like_any() {
    in_all_chunks(1, |mut s| {
        let (client, mut old) = s.call();
        let payload = [&1_u32.to_be_bytes()[..], &NO_ERROR.to_be_bytes(), b"max_age"].concat();
        s.send(&old, frame(GOAWAY, 0, 0, &payload));
        s.send(&client, headers(3, END, CALL));
        assert_eq!((s.server().got(), old.got()), (vec![heard(1, END, CALL)], vec![]));
    });
}
