//! What a gRPC call's header blocks cost: read, and written for the next hop. `cargo bench -p sluice-agent --bench hpack`.
//! As an index for each field, as with a deadline that differs from call to call, and spelled out with Huffman codes.

use std::hint::black_box;
use std::rc::Rc;

use criterion::{Criterion, criterion_group, criterion_main};
use sluice_agent::splitter::hpack::{CommonLists, Decoder, Encoder, HeaderList, ListLimits};

const SEED: u64 = 1;
const LIMITS: ListLimits = ListLimits { max_size: 1 << 16, max_fields: 1_000 };
const FIELDS: [(&str, &str); 6] = [
    (":path", "/sluice.loadtest.v1.Echo/Unary"),
    (":authority", "10.96.0.10:50051"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
    ("user-agent", "grpc-go/1.80.0"),
    ("grpc-accept-encoding", "gzip"),
];

/// A literal with a name of its own, of the form that `pattern` says (RFC 7541 §6.2).
fn literal(pattern: u8, name: &str, value: &[u8], huffman: u8) -> Vec<u8> {
    [&[pattern, name.len() as u8][..], name.as_bytes(), &[huffman | value.len() as u8], value].concat()
}

/// A connection from its client and one to an endpoint.
struct Scene {
    decoder: Decoder,
    encoder: Encoder,
    common: CommonLists,
    list: HeaderList,
    out: Vec<u8>,
}

impl Scene {
    /// All fields are in both tables.
    fn new() -> Self {
        let mut scene = Self {
            decoder: Decoder::new(4096, SEED),
            encoder: Encoder::new(SEED),
            common: CommonLists::default(),
            list: HeaderList::new(),
            out: Vec::new(),
        };
        let stored: Vec<u8> =
            FIELDS.iter().flat_map(|(name, value)| literal(0x40, name, value.as_bytes(), 0)).collect();
        scene.carry(&stored);
        scene
    }

    /// Decoded and encoded, as if it came for the first time.
    fn carry(&mut self, block: &[u8]) {
        self.decoder.decode(block, LIMITS, &mut self.list).expect("a block");
        self.out.clear();
        self.encoder.encode(&self.list, &mut self.out);
        black_box(&self.out);
    }

    /// As the splitter does it.
    fn carry_known(&mut self, block: &[u8]) {
        let (list, _) = self.decoder.decode_shared(block, LIMITS, &mut self.common, Rc::default).expect("a block");
        self.out.clear();
        self.encoder.encode_shared(&list, &mut self.out);
        black_box(&self.out);
    }
}

fn hpack(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("hpack");
    // :method POST, :scheme http, and the six that were stored.
    let indices = [0x83, 0x86, 0xc3, 0xc2, 0xc1, 0xc0, 0xbf, 0xbe];
    let mut scene = Scene::new();
    group.bench_function("indices, first time", |bencher| bencher.iter(|| scene.carry(black_box(&indices))));
    let mut scene = Scene::new();
    group.bench_function("indices, again", |bencher| bencher.iter(|| scene.carry_known(black_box(&indices))));

    // grpc-timeout in microseconds: no two are the same.
    let deadlines: Vec<Vec<u8>> = (0..64)
        .map(|n| [&indices[..], &literal(0x00, "grpc-timeout", format!("{}u", 999_000 + n).as_bytes(), 0)].concat())
        .collect();
    let (mut scene, mut turn) = (Scene::new(), 0);
    group.bench_function("with a deadline", |bencher| {
        bencher.iter(|| {
            turn = (turn + 1) % deadlines.len();
            scene.carry_known(black_box(&deadlines[turn]));
        });
    });

    // "www.example.com" with the codes of RFC 7541 C.4.1, as :authority of a client that indexes nothing.
    let spelled =
        literal(0x00, "x-host", &[0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff], 0x80);
    let spelled = [&indices[..], &spelled].concat();
    let mut scene = Scene::new();
    group.bench_function("Huffman, first time", |bencher| bencher.iter(|| scene.carry(black_box(&spelled))));
    let mut scene = Scene::new();
    group.bench_function("Huffman, again", |bencher| bencher.iter(|| scene.carry_known(black_box(&spelled))));
    group.finish();
}

criterion_group!(benches, hpack);
criterion_main!(benches);
