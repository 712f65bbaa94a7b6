//! Promises about header compression on the wire (RFC 7541, RFC 9113 §4.3): what no block may hold, and that both tables stay
//! in step. Single integers, strings and tables are tested where they are made, in `hpack`.

use crate::script::{Script, and, in_all_chunks};
use crate::wire::*;

/// What is wrong, and the bytes that follow a block which is right.
const WRONG: [(&str, &[u8]); 15] = [
    ("index 0", &[0x80]),
    ("an index past both tables", &[0xbe]),
    ("a far index", &[0xff, 0xff, 0x7f]),
    ("a name's index past both tables", &[0x7e, 0x01, b'v']),
    ("a name's index past both tables, not stored", &[0x0f, 0x2f, 0x01, b'v']),
    ("a name's index past both tables, never stored", &[0x1f, 0x2f, 0x01, b'v']),
    ("an integer above 32 bits", &[0xff, 0x80, 0xff, 0xff, 0xff, 0xff, 0x01]),
    ("an integer of zeros without end", &[0xff, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x00]),
    ("an integer cut short", &[0xff, 0x80]),
    ("a string longer than its block", &[0x00, 0x05, b'n']),
    ("a Huffman string with 8 bits of padding", &[0x00, 0x01, b'n', 0x82, 0x1f, 0xff]),
    ("a Huffman string padded with zeros", &[0x00, 0x01, b'n', 0x81, 0x18]),
    ("a Huffman string with EOS inside", &[0x00, 0x01, b'n', 0x84, 0xff, 0xff, 0xff, 0xff]),
    ("a table size behind a field", &[0x20]),
    ("a table size above ours behind a field", &[0x3f, 0xe2, 0x1f]),
];

#[test]
fn a_block_that_cannot_be_decoded_ends_its_client_s_connection_and_reaches_no_endpoint() {
    for (why, wrong) in WRONG {
        in_all_chunks(1, |mut s| {
            let (mut client, mut server) = s.call();
            let head = [&block(CALL)[..], wrong].concat();
            s.send(&client, frame(HEADERS, END_HEADERS | END_STREAM, 3, &head));
            assert_eq!(client.got(), [bye(1, COMPRESSION_ERROR), Got::Closed], "{why}");
            assert_eq!(server.got(), [was_reset(1, CANCEL)], "{why}");
        });
    }
}

#[test]
fn a_block_of_an_endpoint_that_cannot_be_decoded_ends_its_connection_and_reaches_no_client() {
    for (why, wrong) in WRONG {
        in_all_chunks(1, |mut s| {
            let (mut client, mut server) = s.call();
            let head = [&block(OK)[..], wrong].concat();
            s.send(&server, frame(HEADERS, END_HEADERS, 1, &head));
            let got = server.got();
            assert_eq!((&got[0], got.last()), (&bye(0, COMPRESSION_ERROR), Some(&Got::Closed)), "{why}");
            let got = client.got();
            let [Got::Headers { end: END, fields, .. }, Got::Reset { code: NO_ERROR, .. }] = &got[..] else {
                panic!("{why}: {got:?}")
            };
            assert_eq!(fields[2], ("grpc-status".into(), "14".into()), "{why}");
        });
    }
}

/// Also where the stream is of no interest any more (RFC 9113 §4.3).
#[test]
fn a_block_that_cannot_be_decoded_is_an_error_on_any_stream() {
    in_all_chunks(1, |mut s| {
        let (mut client, server) = s.call();
        s.send(&server, reset(1, CANCEL));
        s.send(&client, frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0x80]));
        assert_eq!(client.got(), [was_reset(1, CANCEL), bye(1, COMPRESSION_ERROR), Got::Closed]);
    });
    in_all_chunks(1, |mut s| {
        let (client, mut server) = s.call();
        s.send(&client, reset(1, CANCEL));
        s.send(&server, frame(HEADERS, END_HEADERS, 1, &[0x80]));
        assert_eq!(server.got(), [was_reset(1, CANCEL), bye(0, COMPRESSION_ERROR), Got::Closed]);
    });
}

#[test]
fn table_sizes_at_the_head_of_a_block_are_followed() {
    in_all_chunks(1, |mut s| {
        let (client, mut server) = s.call();
        s.send(&client, headers(3, END, &and(CALL, &[("+x", "1"), ("+y", "2")])));
        // Room for one entry of 34 bytes, then for as much as we offer: the older one is gone.
        let head = [&[0x3f, 0x03, 0x3f, 0xe1, 0x1f][..], &block(CALL), &[0x80 | 62]].concat();
        s.send(&client, frame(HEADERS, END_HEADERS | END_STREAM, 5, &head));
        assert_eq!(server.got()[1..], [heard(5, END, &and(CALL, &[("y", "2")]))]);
        let mut client = client;
        s.send(&client, frame(HEADERS, END_HEADERS | END_STREAM, 7, &[0x80 | 63]));
        assert_eq!(client.got(), [bye(5, COMPRESSION_ERROR), Got::Closed]);
    });
}

#[test]
fn a_peer_s_smaller_table_is_confirmed_at_the_head_of_the_next_block() {
    in_all_chunks(1, |mut s| {
        let (mut client, mut server) = s.call();
        let stored = and(CALL, &[("+x-stored", "1")]);
        let plain = and(CALL, &[("x-stored", "1")]);
        let call = |s: &mut Script, client: &crate::script::Peer, server: &mut crate::script::Peer, stream: u32| {
            s.send(client, headers(stream, END, &stored));
            assert_eq!(server.got(), [heard(stream, END, &plain)]);
            server.last_block.clone()
        };
        call(&mut s, &client, &mut server, 3);
        server.settings(&[(HEADER_TABLE_SIZE, 0)]);
        s.run();
        assert_eq!(call(&mut s, &client, &mut server, 5)[0], 0x20, "size 0");
        assert_ne!(call(&mut s, &client, &mut server, 7)[0], 0x20, "said once");
        // The smallest and the last of several (RFC 7541 §4.2); more than we use is not used.
        server.settings(&[(HEADER_TABLE_SIZE, 100), (HEADER_TABLE_SIZE, 10), (HEADER_TABLE_SIZE, 50)]);
        server.settings(&[(HEADER_TABLE_SIZE, 65_536)]);
        s.run();
        let head = call(&mut s, &client, &mut server, 9);
        assert_eq!(head[..4], [0x2a, 0x3f, 0xe1, 0x1f], "10, then 4,096");
        // The same towards a client.
        s.send(&server, headers(1, END, &and(OK, &[("+x-stored", "1")])));
        assert_eq!(client.got().len(), 1);
        client.settings(&[(HEADER_TABLE_SIZE, 10), (HEADER_TABLE_SIZE, 4_096)]);
        s.run();
        s.send(&server, headers(3, END, &and(OK, &[("+x-stored", "1")])));
        assert_eq!(client.got(), [heard(3, END, &and(OK, &[("x-stored", "1")]))]);
        assert_eq!(client.last_block[..4], [0x2a, 0x3f, 0xe1, 0x1f]);
    });
}

/// Blocks that are ours to answer or to throw away fill the tables like any other.
#[test]
fn a_block_fills_the_table_whatever_becomes_of_its_stream() {
    in_all_chunks(1, |mut s| {
        let (mut client, mut server) = s.call();
        s.send(&client, headers(3, END, &and(CALL, &[("+x-malformed", "1"), ("Upper", "1")])));
        s.send(&client, [headers(5, MORE, CALL), reset(5, CANCEL)].concat());
        assert_eq!(client.got(), [was_reset(3, PROTOCOL_ERROR)]);
        assert_eq!(server.got(), [heard(3, MORE, CALL), was_reset(3, CANCEL)]);
        s.send(&server, headers(3, MORE, &and(OK, &[("+x-late", "1")])));
        s.send(&server, frame(HEADERS, END_HEADERS | END_STREAM, 1, &[&block(OK)[..], &[0x80 | 62]].concat()));
        assert_eq!(client.got(), [heard(1, END, &and(OK, &[("x-late", "1")]))]);
        let head = [&block(CALL)[..], &[0x80 | 62]].concat();
        s.send(&client, frame(HEADERS, END_HEADERS | END_STREAM, 7, &head));
        assert_eq!(server.got(), [heard(5, END, &and(CALL, &[("x-malformed", "1")]))]);
    });
}
