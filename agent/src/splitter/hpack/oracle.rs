//! Differential tests: an independent implementation writes blocks as clients may, ours carries them over, and the independent one
//! reads what comes out. Random, seeded; the seed stands in every failure's message.

use std::rc::Rc;

use httlib_hpack as oracle;

use super::{CommonLists, Decoder, Encoder, HeaderList, Indexing, ListLimits};

const LIMITS: ListLimits = ListLimits { max_size: 1 << 20, max_fields: 1 << 10 };

/// SplitMix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn one_in(&mut self, chance: usize) -> bool {
        self.below(chance) == 0
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    fn bytes(&mut self, longest: usize) -> Vec<u8> {
        let length = self.below(longest + 1);
        (0..length).map(|_| self.next() as u8).collect()
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Sent {
    name: Vec<u8>,
    value: Vec<u8>,
    never_indexed: bool,
}

fn random_field(rng: &mut Rng) -> Sent {
    let known: [&[u8]; 12] = [
        b":method",
        b":path",
        b":status",
        b":authority",
        b"content-type",
        b"te",
        b"grpc-timeout",
        b"user-agent",
        b"x-request-id",
        b"grpc-status",
        b"set-cookie",
        b"a",
    ];
    let usual: [&[u8]; 8] =
        [b"GET", b"POST", b"/", b"200", b"trailers", b"application/grpc", b"/echo.Echo/Unary", b"https"];
    let name = if rng.one_in(15) { rng.bytes(40) } else { rng.pick(&known).to_vec() };
    let value = match rng.below(20) {
        0 => rng.bytes(300),
        1 if rng.one_in(20) => rng.bytes(5000),
        2..10 => rng.below(40).to_string().into_bytes(),
        _ => rng.pick(&usual).to_vec(),
    };
    Sent { name, value, never_indexed: rng.one_in(12) }
}

/// Writes a field in one of the forms that are open to a client.
fn write(rng: &mut Rng, client: &mut oracle::Encoder<'_>, field: &Sent, block: &mut Vec<u8>) {
    let huffman = rng.pick(&[0, oracle::Encoder::HUFFMAN_NAME, oracle::Encoder::HUFFMAN_VALUE, 0x3]);
    let (name, value) = (field.name.clone(), field.value.clone());
    let form = match rng.below(8) {
        _ if field.never_indexed => oracle::Encoder::NEVER_INDEXED,
        0 => 0,
        1 => oracle::Encoder::WITH_INDEXING,
        2 => oracle::Encoder::BEST_FORMAT,
        _ => oracle::Encoder::BEST_FORMAT | oracle::Encoder::WITH_INDEXING,
    };
    if name == b":path" && rng.one_in(2) {
        client.encode((4u32, value, form | huffman), block).unwrap();
    } else {
        client.encode((name, value, form | huffman), block).unwrap();
    }
}

fn read_by_oracle(decoder: &mut oracle::Decoder<'_>, block: &[u8]) -> Vec<Sent> {
    let mut fields = Vec::new();
    decoder.decode(&mut block.to_vec(), &mut fields).unwrap();
    let never = oracle::Decoder::NEVER_INDEXED;
    fields.into_iter().map(|(name, value, flags)| Sent { name, value, never_indexed: flags == never }).collect()
}

/// As the splitter does it: a block that is known is not decoded again.
fn read_by_us(decoder: &mut Decoder, common: &mut CommonLists, block: &[u8], list: &mut Rc<HeaderList>) -> Vec<Sent> {
    let (read, decoded) = decoder.decode_shared(block, LIMITS, common, Rc::default).unwrap();
    assert!(!decoded.too_large);
    *list = read;
    decoder.check();
    list.check();
    let sent = |field: super::FieldView<'_>| Sent {
        name: field.name().to_vec(),
        value: field.value().to_vec(),
        never_indexed: field.indexing() == Indexing::NeverIndexed,
    };
    list.iter().map(sent).collect()
}

/// A connection to us: the client's encoder and our decoder.
struct Inbound {
    client: oracle::Encoder<'static>,
    decoder: Decoder,
    limit: usize,
}

/// A connection from us: our encoder, and two readers of the same bytes.
struct Outbound {
    encoder: Encoder,
    server: oracle::Decoder<'static>,
    mirror: Decoder,
}

#[test]
fn whatever_comes_in_goes_out_the_same_between_any_two_connections() {
    let mut known = 0;
    for seed in 0..40 {
        let rng = &mut Rng(seed);
        let mut inbound: Vec<_> = (0..3)
            .map(|_| {
                let limit = rng.pick(&[0, 100, 600, 4096, 16384]);
                Inbound {
                    client: oracle::Encoder::with_dynamic_size(limit as u32),
                    decoder: Decoder::new(limit, seed),
                    limit,
                }
            })
            .collect();
        let mut outbound: Vec<_> = (0..2)
            .map(|_| Outbound {
                encoder: Encoder::new(seed),
                server: oracle::Decoder::with_dynamic_size(4096),
                mirror: Decoder::new(4096, seed ^ 0xff),
            })
            .collect();
        let (mut list, mut scratch) = <(Rc<HeaderList>, Rc<HeaderList>)>::default();
        let mut common = CommonLists::default();
        let mut before = Vec::new();
        for round in 0..250 {
            let from = rng.below(inbound.len());
            let from = &mut inbound[from];
            let mut block = Vec::new();
            if rng.one_in(20) {
                for _ in 0..=rng.below(2) {
                    let size = rng.below(from.limit + 1);
                    from.client.update_max_dynamic_size(size as u32, &mut block).unwrap();
                }
            }
            // Calls repeat themselves, and then nothing but indices comes.
            let fields: Vec<_> =
                if rng.one_in(2) { before } else { (0..rng.below(14)).map(|_| random_field(rng)).collect() };
            before = fields.clone();
            for field in &fields {
                write(rng, &mut from.client, field, &mut block);
            }
            known += usize::from(from.decoder.known(&block, LIMITS).is_some());
            assert_eq!(
                read_by_us(&mut from.decoder, &mut common, &block, &mut list),
                fields,
                "seed {seed} round {round}: in"
            );

            let to = rng.below(outbound.len());
            let to = &mut outbound[to];
            while rng.one_in(15) {
                to.encoder.set_max_table_size(rng.pick(&[0, 33, 200, 1000, 4096, 100_000]));
            }
            let mut out = Vec::new();
            to.encoder.encode_shared(&list, &mut out);
            to.encoder.check();
            assert_eq!(
                read_by_oracle(&mut to.server, &out),
                fields,
                "seed {seed} round {round}: out, read by the oracle"
            );
            assert_eq!(
                read_by_us(&mut to.mirror, &mut CommonLists::default(), &out, &mut scratch),
                fields,
                "seed {seed} round {round}: out, read by us"
            );
        }
    }
    assert!(known > 100, "{known} blocks were known");
}

#[test]
fn a_block_with_flipped_bytes_is_an_error_or_a_list_and_never_a_panic() {
    let (mut errors, mut lists) = (0, 0);
    for seed in 0..3000 {
        let rng = &mut Rng(seed);
        let mut client = oracle::Encoder::with_dynamic_size(512);
        let mut decoder = Decoder::new(512, seed);
        let mut encoder = Encoder::new(seed);
        let mut list = HeaderList::new();
        for _ in 0..6 {
            let mut block = Vec::new();
            for _ in 0..rng.below(8) {
                let field = random_field(rng);
                write(rng, &mut client, &field, &mut block);
            }
            for _ in 0..rng.below(4).min(block.len()) {
                let at = rng.below(block.len());
                block[at] = rng.next() as u8;
            }
            let outcome = decoder.decode(&block, LIMITS, &mut list);
            decoder.check();
            if outcome.is_err() {
                errors += 1;
                break;
            }
            list.check();
            lists += 1;
            encoder.encode(&list, &mut Vec::new());
            encoder.check();
        }
    }
    assert!(errors > 500 && lists > 500, "the mutations reach both outcomes: {errors} errors, {lists} lists");
}

/// Blocks of the oracle's Huffman coder: every byte, alone and in random company.
#[test]
fn huffman_strings_of_the_oracle_are_read_as_they_were_meant() {
    let rng = &mut Rng(1);
    let mut client = oracle::Encoder::with_dynamic_size(0);
    let mut decoder = Decoder::new(0, 0);
    let mut list = Rc::default();
    let single = (0..=255u8).map(|byte| vec![byte]);
    let random: Vec<_> = (0..2000).map(|_| rng.bytes(60)).collect();
    for value in single.chain(random) {
        let mut block = Vec::new();
        client.encode((b"v".to_vec(), value.clone(), 0x3), &mut block).unwrap();
        assert_eq!(read_by_us(&mut decoder, &mut CommonLists::default(), &block, &mut list)[0].value, value);
    }
}
