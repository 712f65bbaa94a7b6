//! Promises about frames (RFC 9113 §3.4, §4, §6.1): how a connection begins, what every frame may look like, padding, and
//! the sizes that both sides can rely on. Breaches are in `errors`.

use crate::script::{Script, and, in_all_chunks};
use crate::wire::*;
use sluice_agent::splitter::{Limits, PREFACE};

#[test]
fn each_side_hears_settings_first_and_its_own_acknowledged_after_them() {
    in_all_chunks(1, |mut s| {
        let mut client = s.silent_client();
        client.put(PREFACE);
        client.settings(&[]);
        s.run();
        assert_eq!(client.got(), []);
        let [Got::Settings(list), Got::Window { stream: 0, .. }, Got::SettingsAck] = &client.noise[..] else {
            panic!("{:?}", client.noise)
        };
        let ids: Vec<u16> = list.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, [MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_HEADER_LIST_SIZE]);

        s.send(&client, headers(1, END, CALL));
        // The peer has seen the preface before this.
        let (_, mut server) = s.server_with(&[]);
        server.got();
        let [Got::Settings(list), Got::Window { stream: 0, .. }, Got::SettingsAck] = &server.noise[..] else {
            panic!("{:?}", server.noise)
        };
        assert_eq!(list[0], (ENABLE_PUSH, 0));
        assert!(list.iter().all(|(id, _)| *id != MAX_CONCURRENT_STREAMS), "that would concern pushes");
    });
}

#[test]
fn what_a_client_sends_at_once_with_its_preface_counts() {
    in_all_chunks(1, |mut s| {
        let mut client = s.silent_client();
        client.put(PREFACE);
        client.settings(&[(INITIAL_WINDOW_SIZE, 70_000)]);
        s.send(&client, [headers(1, MORE, CALL), data(1, END, b"early"), ping(0, b"at once!")].concat());
        assert_eq!(client.got(), [Got::Ping { ack: true, opaque: *b"at once!" }]);
        assert_eq!(s.server().got(), [heard(1, MORE, CALL), bytes(1, END, b"early")]);
    });
}

#[test]
fn frames_of_the_largest_size_are_taken_on_either_side() {
    in_all_chunks(1, |mut s| {
        let (mut client, mut server) = s.call();
        let full = [7; 16_384];
        s.send(&client, data(1, END, &full));
        assert_eq!(server.body(1), (full.to_vec(), true));
        s.send(&server, [headers(1, MORE, OK), data(1, MORE, &full), headers(1, END, DONE)].concat());
        assert_eq!(client.got(), [heard(1, MORE, OK), bytes(1, MORE, &full), heard(1, END, DONE)]);
        // HEADERS too.
        let rest = 16_384 - block(&and(CALL, &[("x-pad", "")])).len() - 2;
        let long = "p".repeat(rest);
        let more = [("x-pad", long.as_str())];
        let head = and(CALL, &more);
        assert_eq!(block(&head).len(), 16_384);
        s.send(&client, headers(3, END, &head));
        assert_eq!(server.got(), [heard(3, END, &head)]);
    });
}

#[test]
fn padding_may_be_all_there_is_and_may_hold_anything() {
    in_all_chunks(1, |mut s| {
        let (mut client, mut server) = s.call();
        // Only its length; then 200 bytes that are not zero, which no receiver has to mind (RFC 9113 §6.1).
        s.send(
            &client,
            [frame(DATA, PADDED, 1, &[0]), frame(DATA, PADDED, 1, &[&[200][..], &[9; 200]].concat())].concat(),
        );
        s.send(&client, frame(DATA, PADDED | END_STREAM, 1, b"\x03ask\xff\xff\xff"));
        assert_eq!(server.body(1), (b"ask".to_vec(), true));
        let head = [&[3][..], &block(OK), b"xyz"].concat();
        s.send(&server, frame(HEADERS, END_HEADERS | PADDED, 1, &head));
        s.send(&server, frame(DATA, PADDED | END_STREAM, 1, b"\x01ok\0"));
        assert_eq!(client.got(), [heard(1, MORE, OK), bytes(1, END, b"ok")]);
    });
}

#[test]
fn unknown_frames_flags_and_settings_of_an_endpoint_are_ignored() {
    in_all_chunks(1, |mut s| {
        let (mut client, mut server) = s.call();
        client.noise.clear();
        server.noise.clear();
        let odd = [
            frame(0xbe, 0xff, 1, b"whatever"),
            frame(0xbe, 0xff, 0, b""),
            // ALTSVC and ORIGIN, which extensions define.
            frame(0x0a, 0, 0, b"\0\0"),
            frame(0x0c, 0, 0, b""),
            frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 7]),
            frame(WINDOW_UPDATE, 0xff, 0x8000_0000, &[0x80, 0, 0, 1]),
            ping(ACK, b"no ping!"),
        ];
        s.send(&server, odd.concat());
        server.settings(&[(0x0abc, 7), (8, 1)]);
        s.run();
        assert_eq!((client.got(), server.got()), (vec![], vec![]));
        assert_eq!((&client.noise[..], &server.noise[..]), (&[][..], &[Got::SettingsAck][..]));
        // END_HEADERS, END_STREAM, and flags that HEADERS do not have.
        s.send(&server, frame(HEADERS, 0xd5 & !PRIORITIZED, 1, &block(OK)));
        assert_eq!(client.got(), [heard(1, END, OK)]);
    });
}

#[test]
fn an_empty_data_frame_is_no_end() {
    let mut s = Script::with(Limits::default(), 1);
    let (mut client, mut server) = s.call();
    s.send(&client, data(1, MORE, b""));
    s.send(&server, [headers(1, MORE, OK), data(1, MORE, b"")].concat());
    assert_eq!((client.got(), server.got()), (vec![heard(1, MORE, OK)], vec![]));
    s.send(&client, data(1, END, b"x"));
    assert_eq!(server.got(), [bytes(1, END, b"x")]);
}
