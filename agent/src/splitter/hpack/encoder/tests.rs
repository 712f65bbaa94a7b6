//! Lists in, and the very bytes that go out.

use super::super::{Decoder, ListLimits};
use super::*;

const SEED: u64 = 7;

fn list(fields: &[(&str, &str, Indexing)]) -> HeaderList {
    let mut list = HeaderList::new();
    for (name, value, indexing) in fields {
        list.push(name.as_bytes(), value.as_bytes(), *indexing);
    }
    list
}

fn block(encoder: &mut Encoder, list: &HeaderList) -> Vec<u8> {
    let mut out = Vec::new();
    encoder.encode(list, &mut out);
    encoder.check();
    out
}

fn decoded(decoder: &mut Decoder, block: &[u8]) -> HeaderList {
    let mut list = HeaderList::new();
    decoder.decode(block, ListLimits { max_size: usize::MAX, max_fields: usize::MAX }, &mut list).unwrap();
    list
}

use Indexing::{NeverIndexed, WithIndexing, WithoutIndexing};

#[test]
fn a_stored_field_is_sent_in_full_once_and_then_as_an_index() {
    let mut encoder = Encoder::new(SEED);
    let list = list(&[(":method", "POST", WithIndexing), ("x-a", "1", WithIndexing)]);
    assert_eq!(block(&mut encoder, &list), b"\x83\x40\x03x-a\x011");
    assert_eq!(block(&mut encoder, &list), [0x83, 0xbe]);
}

fn shared(encoder: &mut Encoder, list: &Rc<HeaderList>) -> Vec<u8> {
    let mut out = Vec::new();
    encoder.encode_shared(list, &mut out);
    encoder.check();
    out
}

#[test]
fn a_list_that_comes_again_is_the_same_block_until_the_table_changes() {
    let mut encoder = Encoder::new(SEED);
    let [one, other] = ["1", "2"].map(|value| Rc::new(list(&[("x-a", value, WithIndexing)])));
    one.set_known();
    assert_eq!(shared(&mut encoder, &one), b"\x40\x03x-a\x011");
    for _ in 0..3 {
        assert_eq!(shared(&mut encoder, &one), [0xbe]);
    }
    assert_eq!(shared(&mut encoder, &other), b"\x7e\x012");
    assert_eq!(shared(&mut encoder, &one), [0xbf]);
    encoder.set_max_table_size(0);
    assert_eq!(shared(&mut encoder, &one), b"\x20\x00\x03x-a\x011");
    assert_eq!(shared(&mut encoder, &one), b"\x00\x03x-a\x011");
}

#[test]
fn a_list_that_is_not_known_to_come_again_is_not_kept() {
    let mut encoder = Encoder::new(SEED);
    let list = Rc::new(list(&[("x-a", "1", WithIndexing)]));
    for _ in 0..3 {
        shared(&mut encoder, &list);
    }
    assert_eq!(Rc::strong_count(&list), 1);
}

#[test]
fn each_new_field_makes_the_blocks_before_it_unknown() {
    let mut encoder = Encoder::new(SEED);
    let lists: Vec<_> = (0..100)
        .map(|number| {
            let list = Rc::new(list(&[("x-a", &number.to_string(), WithIndexing)]));
            list.set_known();
            (0..3).for_each(|_| _ = shared(&mut encoder, &list));
            list
        })
        .collect();
    assert_eq!(lists.iter().filter(|list| Rc::strong_count(list) > 1).count(), 1);
}

#[test]
fn fields_of_two_connections_meet_in_one_entry() {
    let mut encoder = Encoder::new(SEED);
    let from = |decoder: &mut Decoder| decoded(decoder, b"\x40\x03x-a\x011");
    let (mut one, mut two) = (Decoder::new(4096, SEED), Decoder::new(4096, SEED));
    assert_eq!(block(&mut encoder, &from(&mut one)), b"\x40\x03x-a\x011");
    assert_eq!(block(&mut encoder, &from(&mut two)), [0xbe]);
    assert_eq!(encoder.table.len(), 1);
    drop((one, two));
    assert_eq!(block(&mut encoder, &list(&[("x-a", "1", WithIndexing)])), [0xbe]);
}

#[test]
fn the_entry_is_shared_with_the_table_it_came_from_and_freed_with_the_last_holder() {
    let mut encoder = Encoder::new(SEED);
    let mut decoder = Decoder::new(4096, SEED);
    let list = decoded(&mut decoder, b"\x40\x03x-a\x011");
    block(&mut encoder, &list);
    let entry = Rc::downgrade(encoder.table.get(0).unwrap());
    assert_eq!(entry.strong_count(), 3, "two tables and the list");
    drop(decoder);
    drop(list);
    assert_eq!(entry.strong_count(), 1);
    encoder.set_max_table_size(0);
    assert_eq!(entry.strong_count(), 0);
}

#[test]
fn a_secret_is_never_stored_and_never_an_index() {
    let mut encoder = Encoder::new(SEED);
    block(&mut encoder, &list(&[("authorization", "secret", WithIndexing), ("x-key", "secret", WithIndexing)]));
    let secrets =
        list(&[("authorization", "secret", NeverIndexed), ("x-key", "secret", NeverIndexed), ("k", "s", NeverIndexed)]);
    assert_eq!(block(&mut encoder, &secrets), b"\x1f\x08\x06secret\x1f\x2f\x06secret\x10\x01k\x01s");
    assert_eq!(encoder.table.len(), 2);
}

#[test]
fn a_literal_that_its_sender_did_not_store_is_not_stored() {
    let mut encoder = Encoder::new(SEED);
    let list = list(&[(":path", "/a", WithoutIndexing), ("x-a", "1", WithoutIndexing)]);
    for _ in 0..2 {
        assert_eq!(block(&mut encoder, &list), b"\x04\x02/a\x00\x03x-a\x011");
    }
}

#[test]
fn a_name_in_the_table_is_an_index_and_the_newest_entry_is_taken() {
    let mut encoder = Encoder::new(SEED);
    block(&mut encoder, &list(&[("x-a", "1", WithIndexing), ("x-b", "1", WithIndexing), ("x-a", "2", WithIndexing)]));
    assert_eq!(block(&mut encoder, &list(&[("x-a", "3", WithoutIndexing)])), b"\x0f\x2f\x013");
    assert_eq!(block(&mut encoder, &list(&[("x-b", "3", WithoutIndexing)])), b"\x0f\x30\x013");
}

#[test]
fn a_deadline_enters_the_table_only_when_its_sender_repeats_it() {
    let mut encoder = Encoder::new(SEED);
    let mut decoder = Decoder::new(4096, SEED);
    let first = decoded(&mut decoder, b"\x40\x0cgrpc-timeout\x0299");
    assert_eq!(block(&mut encoder, &first), b"\x00\x0cgrpc-timeout\x0299");
    let again = decoded(&mut decoder, &[0xbe]);
    assert_eq!(block(&mut encoder, &again), b"\x40\x0cgrpc-timeout\x0299");
    assert_eq!(block(&mut encoder, &again), [0xbe]);
    assert_eq!(block(&mut encoder, &first), [0xbe]);
}

#[test]
fn a_smaller_and_then_larger_table_is_announced_smallest_and_last() {
    let empty = HeaderList::new();
    for (sizes, announced) in [
        (&[4096][..], &[][..]),
        (&[65536], &[]),
        (&[0], &[0x20]),
        (&[30], &[0x3e]),
        (&[0, 4096], &[0x20, 0x3f, 0xe1, 0x1f]),
        (&[100, 30, 64, 31], &[0x3e, 0x3f, 0x00]),
        (&[100, 64, 30], &[0x3e]),
        (&[30, 65536], &[0x3e, 0x3f, 0xe1, 0x1f]),
    ] {
        let mut encoder = Encoder::new(SEED);
        for &size in sizes {
            encoder.set_max_table_size(size);
        }
        assert_eq!(block(&mut encoder, &empty), announced, "{sizes:?}");
        assert!(block(&mut encoder, &empty).is_empty(), "announced once");
    }
}

#[test]
fn a_table_of_size_zero_makes_every_field_a_plain_literal() {
    let mut encoder = Encoder::new(SEED);
    let list = list(&[("x-a", "1", WithIndexing), (":method", "POST", WithIndexing)]);
    block(&mut encoder, &list);
    encoder.set_max_table_size(0);
    assert_eq!(block(&mut encoder, &list), b"\x20\x00\x03x-a\x011\x83");
    assert_eq!(block(&mut encoder, &list), b"\x00\x03x-a\x011\x83");
}

#[test]
fn a_field_larger_than_the_table_leaves_the_table_as_it_is() {
    let mut encoder = Encoder::new(SEED);
    encoder.set_max_table_size(64);
    block(&mut encoder, &list(&[("a", "1", WithIndexing)]));
    let large = "1".repeat(32);
    assert_eq!(block(&mut encoder, &list(&[("b", &large, WithIndexing)]))[0], 0x00);
    assert_eq!(block(&mut encoder, &list(&[("a", "1", WithIndexing)])), [0xbe]);
}

#[test]
fn a_table_of_the_smallest_entries_holds_128_and_turns_over() {
    let mut encoder = Encoder::new(SEED);
    let mut decoder = Decoder::new(4096, SEED);
    // Entries of 32 and 33 bytes, three times round the table.
    for round in 0..400u32 {
        let name = char::from(b'a' + (round % 23) as u8).to_string();
        let list = list(&[(if round % 7 == 0 { "" } else { &name }, "", WithIndexing)]);
        let out = block(&mut encoder, &list);
        assert_eq!(format!("{:?}", decoded(&mut decoder, &out)), format!("{list:?}"));
    }
    let mut encoder = Encoder::new(SEED);
    for value in 0..1000u32 {
        block(&mut encoder, &list(&[("n", &value.to_string(), WithIndexing)]));
    }
    assert_eq!(encoder.table.len(), 4096 / 36);
    assert_eq!(block(&mut encoder, &list(&[("n", "999", WithIndexing)])), [0xbe]);
    assert_eq!(block(&mut encoder, &list(&[("n", "1", WithIndexing)])), [0x7e, 0x01, b'1']);
}
