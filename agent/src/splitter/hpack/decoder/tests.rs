//! Blocks as peers may send them, one by one.

use super::*;

const SEED: u64 = 7;
const PLENTY: ListLimits = ListLimits { max_size: 1 << 20, max_fields: 1 << 20 };

fn decoder() -> Decoder {
    Decoder::new(4096, SEED)
}

/// The outcome of one block, and its fields as `name: value`.
fn run(decoder: &mut Decoder, block: &[u8], limits: ListLimits) -> Result<(bool, Vec<String>), Error> {
    let mut list = HeaderList::new();
    let decoded = decoder.decode(block, limits, &mut list);
    decoder.check();
    list.check();
    Ok((decoded?.too_large, list.iter().map(|field| format!("{field:?}")).collect()))
}

fn fields(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<String>, Error> {
    run(decoder, block, PLENTY).map(|(too_large, fields)| {
        assert!(!too_large);
        fields
    })
}

/// A literal with a new name.
fn literal(pattern: u8, name: &str, value: &str) -> Vec<u8> {
    let mut out = vec![pattern];
    for string in [name, value] {
        integer::encode(0, 7, string.len(), &mut out);
        out.extend_from_slice(string.as_bytes());
    }
    out
}

fn size_update(size: usize) -> Vec<u8> {
    let mut out = Vec::new();
    integer::encode(0x20, 5, size, &mut out);
    out
}

/// What the splitter does with a block, and whether it had to decode it.
fn shared(decoder: &mut Decoder, block: &[u8], limits: ListLimits) -> (Rc<HeaderList>, bool) {
    shared_by_all(&mut CommonLists::default(), decoder, block, limits)
}

fn shared_by_all(
    common: &mut CommonLists,
    decoder: &mut Decoder,
    block: &[u8],
    limits: ListLimits,
) -> (Rc<HeaderList>, bool) {
    let mut decoded = false;
    let spare = || {
        decoded = true;
        Rc::default()
    };
    let (list, _) = decoder.decode_shared(block, limits, common, spare).unwrap();
    decoder.check();
    (list, decoded)
}

#[test]
fn connections_that_know_the_same_list_have_one_and_another_is_another() {
    let mut common = CommonLists::default();
    let [mut one, mut two, mut three] = [decoder(), decoder(), decoder()];
    let mut known = |decoder: &mut Decoder, blocks: [&[u8]; 3]| {
        blocks.map(|block| shared_by_all(&mut common, decoder, block, PLENTY).0)[2].clone()
    };
    let spelled = [&[0x83][..], &literal(0x00, "x", "y")].concat();
    let never = [&[0x83][..], &literal(0x10, "x", "y")].concat();
    let first = known(&mut one, [&spelled; 3]);
    assert!(Rc::ptr_eq(&first, &known(&mut two, [&spelled; 3])));
    assert!(!Rc::ptr_eq(&first, &known(&mut three, [&never; 3])), "a secret is another field");
    // By whichever index.
    let (near, far) = (literal(0x40, "a", "b"), literal(0x40, "c", "d"));
    shared(&mut two, &far, PLENTY);
    let indexed = [0x83, 0xbe];
    let first = known(&mut one, [&near, &indexed, &indexed]);
    let further = [0x83, 0xbf];
    shared(&mut two, &near, PLENTY);
    shared(&mut two, &far, PLENTY);
    assert!(Rc::ptr_eq(&first, &known(&mut two, [&further; 3])));
    assert!(!Rc::ptr_eq(&first, &known(&mut two, [&indexed; 3])), "it is c: d there");
}

#[test]
fn a_block_of_indices_that_comes_again_is_the_same_list_until_the_table_changes() {
    let mut decoder = decoder();
    let (stored, _) = shared(&mut decoder, &literal(0x40, "a", "b"), PLENTY);
    shared(&mut decoder, &[0x83, 0xbe], PLENTY);
    let (first, decoded) = shared(&mut decoder, &[0x83, 0xbe], PLENTY);
    assert!(decoded, "it came once before");
    let (second, decoded) = shared(&mut decoder, &[0x83, 0xbe], PLENTY);
    assert!(!decoded && Rc::ptr_eq(&first, &second));
    // The same bytes mean another field now.
    shared(&mut decoder, &literal(0x40, "c", "d"), PLENTY);
    let (third, decoded) = shared(&mut decoder, &[0x83, 0xbe], PLENTY);
    assert!(decoded);
    assert_eq!(format!("{third:?}"), "[:method: POST, c: d]");
    // The last one that held an entry is gone with the table's.
    let entry = match &stored.fields[0] {
        Field::Stored(entry) => Rc::downgrade(entry),
        _ => panic!("{stored:?}"),
    };
    drop((stored, first, second, third));
    shared(&mut decoder, &size_update(0), PLENTY);
    assert_eq!(entry.strong_count(), 0);
}

#[test]
fn what_changes_the_table_or_is_a_secret_is_decoded_again_and_bounds_hold_for_what_is_known() {
    let mut decoder = decoder();
    for block in [literal(0x40, "a", "b"), literal(0x10, "a", "secret"), size_update(100)] {
        for _ in 0..3 {
            assert!(shared(&mut decoder, &block, PLENTY).1, "{block:02x?}");
        }
    }
    for block in [vec![0x83], literal(0x00, "a", "b")] {
        assert!(shared(&mut decoder, &block, PLENTY).1);
        assert!(shared(&mut decoder, &block, PLENTY).1);
        assert!(!shared(&mut decoder, &block, PLENTY).1);
        assert!(shared(&mut decoder, &block, ListLimits { max_size: 10, max_fields: 10 }).1);
        assert!(shared(&mut decoder, &block, ListLimits { max_size: 100, max_fields: 0 }).1);
    }
}

#[test]
fn a_few_short_blocks_are_known_at_a_time_and_none_that_came_once() {
    let mut decoder = decoder();
    let known = |decoder: &Decoder| (1..=20).filter(|i| decoder.known(&[0x80 | i], PLENTY).is_some()).count();
    for index in 1..=20 {
        shared(&mut decoder, &[0x80 | index], PLENTY);
    }
    assert_eq!(known(&decoder), 0);
    for index in 1..=20 {
        shared(&mut decoder, &[0x80 | index], PLENTY);
        shared(&mut decoder, &[0x80 | index], PLENTY);
    }
    assert_eq!(known(&decoder), 4);
    let long = [0x83; 100];
    assert!((0..3).all(|_| shared(&mut decoder, &long, PLENTY).1));
}

#[test]
fn index_zero_is_refused() {
    assert_eq!(fields(&mut decoder(), &[0x80]), Err(Error::ZeroIndex));
}

#[test]
fn an_index_past_the_table_is_refused() {
    let mut decoder = decoder();
    assert_eq!(fields(&mut decoder, &[0xbd]), Ok(vec!["www-authenticate: ".into()]));
    assert_eq!(fields(&mut decoder, &[0xbe]), Err(Error::IndexBeyondTable));
    fields(&mut decoder, &literal(0x40, "a", "b")).unwrap();
    assert_eq!(fields(&mut decoder, &[0xbe]), Ok(vec!["a: b".into()]));
    for block in [&[0xbf][..], &[0x7f, 0x00, 0x00], &[0x0f, 0x30, 0x00], &[0x1f, 0x30, 0x00]] {
        assert_eq!(fields(&mut decoder, block), Err(Error::IndexBeyondTable), "{block:02x?}");
    }
    assert_eq!(fields(&mut decoder, &[0xff, 0xff, 0xff, 0xff, 0xff, 0x0f]), Err(Error::IntegerOverflow));
}

#[test]
fn a_table_size_above_ours_is_refused() {
    assert_eq!(fields(&mut decoder(), &size_update(4096)), Ok(vec![]));
    assert_eq!(fields(&mut decoder(), &size_update(4097)), Err(Error::SizeUpdateTooLarge));
    assert_eq!(fields(&mut Decoder::new(0, SEED), &size_update(1)), Err(Error::SizeUpdateTooLarge));
}

#[test]
fn a_table_size_behind_a_field_is_refused() {
    assert_eq!(fields(&mut decoder(), &[0x20, 0x3f, 0x01, 0x82]), Ok(vec![":method: GET".into()]));
    assert_eq!(fields(&mut decoder(), &[0x82, 0x20]), Err(Error::SizeUpdateTooLate));
}

#[test]
fn a_block_cut_anywhere_inside_a_field_is_refused() {
    for block in [literal(0x40, "name", "value"), literal(0x00, "name", "value"), literal(0x10, "name", "value")] {
        for end in 1..block.len() {
            assert_eq!(fields(&mut decoder(), &block[..end]), Err(Error::Truncated), "{end} bytes of {block:02x?}");
        }
        assert_eq!(fields(&mut decoder(), &block).unwrap().len(), 1);
    }
    for block in
        [&[0xff][..], &[0x7f], &[0x0f], &[0x3f], &[0x41], &[0x41, 0x7f], &[0x41, 0x02, 0x61], &[0x41, 0x82, 0x1f]]
    {
        assert_eq!(fields(&mut decoder(), block), Err(Error::Truncated), "{block:02x?}");
    }
}

#[test]
fn a_wrong_huffman_string_is_refused_in_name_and_value() {
    for (string, error) in [
        (&[0x81, 0xff][..], Error::HuffmanPadding),
        (&[0x81, 0x18], Error::HuffmanPadding),
        (&[0x84, 0xff, 0xff, 0xff, 0xff], Error::HuffmanEndOfString),
    ] {
        for pattern in [0x40, 0x10, 0x00] {
            let name = [&[pattern], string, &[0x00]].concat();
            let value = [&[pattern, 0x01, b'a'], string].concat();
            assert_eq!(fields(&mut decoder(), &name), Err(error));
            assert_eq!(fields(&mut decoder(), &value), Err(error));
        }
    }
}

#[test]
fn an_error_beyond_the_limits_of_the_list_is_still_an_error() {
    let nothing = ListLimits { max_size: 0, max_fields: 0 };
    assert_eq!(run(&mut decoder(), &[0x82, 0x80], nothing), Err(Error::ZeroIndex));
    assert_eq!(run(&mut decoder(), &[0x82, 0x00, 0x81, 0xff, 0x00], nothing), Err(Error::HuffmanPadding));
}

#[test]
fn an_empty_block_is_an_empty_list() {
    assert_eq!(fields(&mut decoder(), &[]), Ok(vec![]));
}

#[test]
fn a_list_over_its_size_stops_growing_and_the_table_stays_in_step() {
    let block = [
        vec![0x82],                  // 42
        literal(0x40, "x-a", "1"),   // 36
        literal(0x00, "x-b", "22"),  // 37
        literal(0x40, "x-c", "333"), // 38
        vec![0xbf],                  // 36
    ]
    .concat();
    let all = [":method: GET", "x-a: 1", "x-b: 22", "x-c: 333", "x-a: 1"];
    for (max_size, kept) in
        [(0, 0), (41, 0), (42, 1), (77, 1), (78, 2), (114, 2), (115, 3), (152, 3), (153, 4), (189, 5)]
    {
        let mut decoder = decoder();
        let outcome = run(&mut decoder, &block, ListLimits { max_size, ..PLENTY }).unwrap();
        assert_eq!(outcome, (kept < 5, all[..kept].iter().map(|&field| field.to_owned()).collect()), "size {max_size}");
        assert_eq!(fields(&mut decoder, &[0xbe, 0xbf]).unwrap(), ["x-c: 333", "x-a: 1"]);
    }
    for max_fields in 0..=5 {
        let outcome = run(&mut decoder(), &block, ListLimits { max_fields, ..PLENTY }).unwrap();
        assert_eq!((outcome.0, outcome.1.len()), (max_fields < 5, max_fields));
    }
}

#[test]
fn one_stored_field_named_a_thousand_times_costs_the_limit_and_no_more() {
    let mut decoder = decoder();
    fields(&mut decoder, &literal(0x40, "x", &"v".repeat(4000))).unwrap();
    let limits = ListLimits { max_size: 16384, max_fields: 128 };
    let (too_large, kept) = run(&mut decoder, &[0xbe; 16384], limits).unwrap();
    assert!(too_large);
    assert_eq!(kept.len(), 16384 / 4033);
}

#[test]
fn the_oldest_fields_leave_a_full_table() {
    let mut decoder = Decoder::new(100, SEED);
    for name in ["a", "b", "c"] {
        fields(&mut decoder, &literal(0x40, name, "1")).unwrap();
    }
    assert_eq!(fields(&mut decoder, &[0xbe, 0xbf]).unwrap(), ["c: 1", "b: 1"]);
    assert_eq!(fields(&mut decoder, &[0xc0]), Err(Error::IndexBeyondTable));
}

#[test]
fn a_name_may_come_from_the_entry_that_its_field_evicts() {
    let mut decoder = Decoder::new(64, SEED);
    fields(&mut decoder, &literal(0x40, "only", "1")).unwrap();
    assert_eq!(fields(&mut decoder, &[0x7e, 0x02, b'2', b'3']).unwrap(), ["only: 23"]);
    assert_eq!(fields(&mut decoder, &[0xbe]).unwrap(), ["only: 23"]);
}

#[test]
fn a_field_larger_than_the_table_empties_it() {
    let mut decoder = Decoder::new(64, SEED);
    fields(&mut decoder, &literal(0x40, "a", "1")).unwrap();
    assert_eq!(fields(&mut decoder, &literal(0x40, "large", &"1".repeat(28))).unwrap().len(), 1);
    assert_eq!(decoder.table.len(), 0);
    assert_eq!(fields(&mut decoder, &literal(0x40, "large", &"1".repeat(27))).unwrap().len(), 1);
    assert_eq!(decoder.table.len(), 1);
}

#[test]
fn a_table_of_size_zero_stores_nothing() {
    let mut decoder = Decoder::new(0, SEED);
    assert_eq!(fields(&mut decoder, &literal(0x40, "", "")).unwrap(), [": "]);
    assert_eq!(fields(&mut decoder, &[0xbe]), Err(Error::IndexBeyondTable));
}

#[test]
fn a_smaller_table_evicts_at_once_and_a_larger_one_starts_with_what_is_left() {
    let mut decoder = decoder();
    for name in ["a", "b", "c"] {
        fields(&mut decoder, &literal(0x40, name, "1")).unwrap();
    }
    let block = [size_update(70), size_update(4096), vec![0xbe, 0xbf]].concat();
    assert_eq!(fields(&mut decoder, &block).unwrap(), ["c: 1", "b: 1"]);
    assert_eq!(decoder.table.len(), 2);
    fields(&mut decoder, &size_update(0)).unwrap();
    assert_eq!(decoder.table.len(), 0);
}

#[test]
fn stored_fields_live_as_long_as_a_table_or_a_list_holds_them() {
    let mut decoder = Decoder::new(64, SEED);
    let mut list = HeaderList::new();
    decoder.decode(&literal(0x40, "a", "1"), PLENTY, &mut list).unwrap();
    let entry = Rc::downgrade(decoder.table.get(0).unwrap());
    assert_eq!(entry.strong_count(), 2);
    let copy = list.clone();
    decoder.decode(&literal(0x40, "b", "1"), PLENTY, &mut list).unwrap();
    assert_eq!(entry.strong_count(), 1, "evicted, and held by the copied list alone");
    drop(copy);
    assert_eq!(entry.strong_count(), 0);

    let last = Rc::downgrade(decoder.table.get(0).unwrap());
    list.clear();
    assert_eq!(last.strong_count(), 1);
    drop(decoder);
    assert_eq!(last.strong_count(), 0);
}

#[test]
fn a_field_that_a_list_has_no_room_for_is_not_kept_beside_the_table() {
    let mut decoder = decoder();
    let mut list = HeaderList::new();
    let block = [literal(0x40, "a", "1"), literal(0x00, "b", &"2".repeat(1000))].concat();
    decoder.decode(&block, ListLimits { max_size: 10, max_fields: 10 }, &mut list).unwrap();
    assert_eq!(Rc::strong_count(decoder.table.get(0).unwrap()), 1);
    assert!(list.is_empty() && list.bytes.is_empty());
}

#[test]
fn meaning_and_validity_are_known_however_a_field_comes() {
    let block = [
        literal(0x40, "grpc-timeout", "1S"),
        literal(0x40, "Bad", "1"),
        vec![0xbf, 0xbe],
        vec![0x0f, 0x30, 0x01, b'\n'], // grpc-timeout by index 63, value "\n"
        literal(0x00, "te", "trailers"),
        literal(0x00, "content-type", "application/grpc"),
        vec![0x83],
    ]
    .concat();
    let mut list = HeaderList::new();
    decoder().decode(&block, PLENTY, &mut list).unwrap();
    let known: Vec<_> = list.iter().map(|field| (field.kind(), field.is_valid())).collect();
    use super::super::Name::*;
    assert_eq!(
        known,
        [
            (GrpcTimeout, true),
            (Regular, false),
            (GrpcTimeout, true),
            (Regular, false),
            (GrpcTimeout, false),
            (Te, true),
            (ContentType, true),
            (Method, true)
        ]
    );
}
