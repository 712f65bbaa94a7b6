//! The examples of RFC 7541 Appendix C: each block decodes to the RFC's list and leaves a table of the RFC's content; and what the
//! RFC's encoder writes without Huffman is what ours writes.

use super::{Decoder, Encoder, Error, HeaderList, Indexing, ListLimits};

const LIMITS: ListLimits = ListLimits { max_size: 4096, max_fields: 64 };

fn bytes(hex: &str) -> Vec<u8> {
    let digits: String = hex.split_whitespace().collect();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

type Pairs = &'static [(&'static str, &'static str)];

/// One block: its bytes, its list, the table behind it (newest first) and the table's size.
struct Step(&'static str, Pairs, Pairs, usize);

fn pairs(list: &HeaderList) -> Vec<(&str, &str)> {
    list.iter().map(|field| (str::from_utf8(field.name()).unwrap(), str::from_utf8(field.value()).unwrap())).collect()
}

/// Runs the blocks on one connection and reads the table back by its indices.
fn run(table_size: usize, steps: &[Step]) {
    let mut decoder = Decoder::new(table_size, 1);
    let mut list = HeaderList::new();
    for Step(block, fields, table, size) in steps {
        decoder.decode(&bytes(block), LIMITS, &mut list).unwrap();
        assert_eq!(pairs(&list), *fields);
        let indices: Vec<u8> = (0..table.len() as u8).map(|age| 0x80 | (62 + age)).collect();
        decoder.decode(&indices, LIMITS, &mut list).unwrap();
        assert_eq!(pairs(&list), *table);
        assert_eq!(list.size(), *size, "the table's size, counted as a list's");
        let past = decoder.decode(&[0x80 | (62 + table.len() as u8)], LIMITS, &mut list);
        assert_eq!(past, Err(Error::IndexBeyondTable));
        decoder.check();
    }
}

const REQUESTS: [(Pairs, Pairs, usize); 3] = [
    (
        &[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")],
        &[(":authority", "www.example.com")],
        57,
    ),
    (
        &[
            (":method", "GET"),
            (":scheme", "http"),
            (":path", "/"),
            (":authority", "www.example.com"),
            ("cache-control", "no-cache"),
        ],
        &[("cache-control", "no-cache"), (":authority", "www.example.com")],
        110,
    ),
    (
        &[
            (":method", "GET"),
            (":scheme", "https"),
            (":path", "/index.html"),
            (":authority", "www.example.com"),
            ("custom-key", "custom-value"),
        ],
        &[("custom-key", "custom-value"), ("cache-control", "no-cache"), (":authority", "www.example.com")],
        164,
    ),
];

const LOCATION: &str = "https://www.example.com";
const DATE: &str = "Mon, 21 Oct 2013 20:13:21 GMT";
const LATER: &str = "Mon, 21 Oct 2013 20:13:22 GMT";
const COOKIE: &str = "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1";

const RESPONSES: [(Pairs, Pairs, usize); 3] = [
    (
        &[(":status", "302"), ("cache-control", "private"), ("date", DATE), ("location", LOCATION)],
        &[("location", LOCATION), ("date", DATE), ("cache-control", "private"), (":status", "302")],
        222,
    ),
    (
        &[(":status", "307"), ("cache-control", "private"), ("date", DATE), ("location", LOCATION)],
        &[(":status", "307"), ("location", LOCATION), ("date", DATE), ("cache-control", "private")],
        222,
    ),
    (
        &[
            (":status", "200"),
            ("cache-control", "private"),
            ("date", LATER),
            ("location", LOCATION),
            ("content-encoding", "gzip"),
            ("set-cookie", COOKIE),
        ],
        &[("set-cookie", COOKIE), ("content-encoding", "gzip"), ("date", LATER)],
        215,
    ),
];

const C3: [&str; 3] = [
    "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
    "8286 84be 5808 6e6f 2d63 6163 6865",
    "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
];

fn steps(blocks: [&'static str; 3], outcomes: [(Pairs, Pairs, usize); 3]) -> Vec<Step> {
    blocks.into_iter().zip(outcomes).map(|(block, (fields, table, size))| Step(block, fields, table, size)).collect()
}

#[test]
fn c_2_single_fields() {
    let custom: Pairs = &[("custom-key", "custom-header")];
    run(4096, &[Step("400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572", custom, custom, 55)]);
    run(4096, &[Step("040c 2f73 616d 706c 652f 7061 7468", &[(":path", "/sample/path")], &[], 0)]);
    run(4096, &[Step("1008 7061 7373 776f 7264 0673 6563 7265 74", &[("password", "secret")], &[], 0)]);
    run(4096, &[Step("82", &[(":method", "GET")], &[], 0)]);
}

#[test]
fn c_2_3_is_known_as_a_secret() {
    let mut list = HeaderList::new();
    let block = bytes("1008 7061 7373 776f 7264 0673 6563 7265 74");
    Decoder::new(4096, 1).decode(&block, LIMITS, &mut list).unwrap();
    assert_eq!(list.iter().next().unwrap().indexing(), Indexing::NeverIndexed);
}

#[test]
fn c_3_requests_without_huffman() {
    run(4096, &steps(C3, REQUESTS));
}

#[test]
fn c_4_requests_with_huffman() {
    let blocks = [
        "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
        "8286 84be 5886 a8eb 1064 9cbf",
        "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
    ];
    run(4096, &steps(blocks, REQUESTS));
}

#[test]
fn c_5_responses_without_huffman_in_a_small_table() {
    let blocks = [
        "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32
         3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "4803 3330 37c1 c0bf",
        "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a 6970
         7738 666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d 6178 2d61
         6765 3d33 3630 303b 2076 6572 7369 6f6e 3d31",
    ];
    run(256, &steps(blocks, RESPONSES));
}

#[test]
fn c_6_responses_with_huffman_in_a_small_table() {
    let blocks = [
        "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad
         1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
        "4883 640e ffc1 c0bf",
        "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2
         e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
    ];
    run(256, &steps(blocks, RESPONSES));
}

#[test]
fn c_3_leaves_our_encoder_byte_for_byte() {
    let (mut decoder, mut encoder) = (Decoder::new(4096, 1), Encoder::new(1));
    let mut list = HeaderList::new();
    for block in C3.map(bytes) {
        decoder.decode(&block, LIMITS, &mut list).unwrap();
        let mut out = Vec::new();
        encoder.encode(&list, &mut out);
        assert_eq!(out, block);
    }
}
