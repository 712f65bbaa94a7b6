//! What a small unary call costs in the splitter alone: bytes in, bytes out, no socket. One client's connection with twenty
//! streams at a time, four endpoints; each call is HEADERS and DATA there, HEADERS, DATA and trailers back, with header
//! blocks as repeated calls have them. `cargo bench -p sluice-agent --bench splitter`.
//!
//! In instructions, which do not depend on what else the machine does: the program that the bench is, with `SLUICE_CALLS=N` in
//! its environment, plays N calls and nothing else:
//! `SLUICE_CALLS=100000 valgrind --tool=callgrind target/release/deps/splitter-…`

use std::collections::HashMap;
use std::hint::black_box;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group};
use sluice_agent::addr::{EndpointAddr, ServiceAddr};
use sluice_agent::balance::{Reach, ServiceLoad};
use sluice_agent::splitter::{ConnId, Effect, Limits, PREFACE, Splitter};
use sluice_agent::table::{Endpoint, Policy, Scope, Service, ServicePortName};

/// Calls under way at a time.
const AT_ONCE: u32 = 20;
const ENDPOINTS: u8 = 4;
/// Payload of a message with gRPC's prefix, bytes.
const MESSAGE: usize = 39;
/// A connection has streams for so many calls (RFC 9113 §5.1.1); then it is a new one's turn.
const CALLS_OF_A_CONNECTION: u32 = 1 << 29;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// A client and endpoints around a splitter.
struct Scene {
    blocks: Blocks,
    splitter: Splitter,
    now: Instant,
    client: ConnId,
    endpoints: HashMap<ConnId, Peer>,
    next_stream: u32,
    /// First blocks with literals that are stored, then their indices.
    warm: bool,
    /// DATA since the last WINDOW_UPDATE.
    eaten: u32,
    written: Vec<u8>,
    answers: Vec<u8>,
    ready: Vec<ConnId>,
}

/// An endpoint's end of a connection.
#[derive(Default)]
struct Peer {
    greeted: bool,
    warm: bool,
    eaten: u32,
}

/// Header blocks, cold and warm.
struct Blocks {
    request: [Vec<u8>; 2],
    head: [Vec<u8>; 2],
    trailers: [Vec<u8>; 2],
}

impl Blocks {
    fn new() -> Self {
        let [cold, warm] = [false, true].map(response_blocks);
        Self { request: [false, true].map(request_block), head: [cold.0, warm.0], trailers: [cold.1, warm.1] }
    }
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let ([_, a, b, c], [w, x, y, z]) = ((payload.len() as u32).to_be_bytes(), stream.to_be_bytes());
    out.extend_from_slice(&[a, b, c, kind, flags, w, x, y, z]);
    out.extend_from_slice(payload);
}

/// A literal that is stored, with a name of its own (RFC 7541 §6.2.1).
fn stored(name: &str, value: &str) -> Vec<u8> {
    [&[0x40, name.len() as u8][..], name.as_bytes(), &[value.len() as u8], value.as_bytes()].concat()
}

fn request_block(warm: bool) -> Vec<u8> {
    // :method POST and :scheme http of the static table.
    let mut block = vec![0x83, 0x86];
    if warm {
        // The last six that were stored, the first of them with the highest index.
        block.extend([0xc3, 0xc2, 0xc1, 0xc0, 0xbf, 0xbe]);
        return block;
    }
    for (name, value) in [
        (":path", "/sluice.loadtest.v1.Echo/Unary"),
        (":authority", "10.96.0.10:50051"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("user-agent", "grpc-go/1.80.0"),
        ("grpc-accept-encoding", "gzip"),
    ] {
        block.extend(stored(name, value));
    }
    block
}

fn response_blocks(warm: bool) -> (Vec<u8>, Vec<u8>) {
    if warm {
        return (vec![0x88, 0xbf], vec![0xbe]);
    }
    ([vec![0x88], stored("content-type", "application/grpc")].concat(), stored("grpc-status", "0"))
}

impl Scene {
    fn new() -> Self {
        let rng = &mut fastrand::Rng::with_seed(1);
        let endpoint = |n: u8| {
            let addr = EndpointAddr::new(([10, 1, 0, n], 50051).into());
            Endpoint { addr, identity: addr.to_string().into(), place: None }
        };
        let service = Service {
            id: 1,
            addr: ServiceAddr::new(([10, 96, 0, 10], 50051).into()),
            name: ServicePortName { namespace: "default".into(), service: "echo".into(), port: "grpc".into() },
            balancing: Policy::Ewma.into(),
            endpoints: (1..=ENDPOINTS).map(endpoint).collect(),
            scope: Scope::All,
            usable: ENDPOINTS.into(),
        };
        let load = ServiceLoad::new(Arc::new(service), rng);
        let mut splitter = Splitter::new(Rc::new(Limits::default()), Rc::<Reach>::default(), rng.fork());
        let now = Instant::now();
        let client = splitter.handle_accepted(now, &load);
        let mut hello = PREFACE.to_vec();
        // A client with large windows.
        frame(&mut hello, SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]);
        frame(&mut hello, WINDOW_UPDATE, 0, 0, &0x3fff_ffff_u32.to_be_bytes());
        splitter.handle_bytes(now, client, &hello);
        Self {
            blocks: Blocks::new(),
            splitter,
            now,
            client,
            endpoints: HashMap::new(),
            next_stream: 1,
            warm: false,
            eaten: 0,
            written: Vec::new(),
            answers: Vec::new(),
            ready: Vec::new(),
        }
    }

    /// `AT_ONCE` calls from their first byte to their last.
    fn round(&mut self) {
        self.now += Duration::from_micros(100);
        let mut requests = std::mem::take(&mut self.answers);
        requests.clear();
        for _ in 0..AT_ONCE {
            frame(&mut requests, HEADERS, END_HEADERS, self.next_stream, &self.blocks.request[usize::from(self.warm)]);
            frame(&mut requests, DATA, END_STREAM, self.next_stream, &[7; MESSAGE]);
            self.warm = true;
            self.next_stream += 2;
        }
        if self.eaten > 1 << 20 {
            frame(&mut requests, WINDOW_UPDATE, 0, 0, &self.eaten.to_be_bytes());
            self.eaten = 0;
        }
        self.splitter.handle_bytes(self.now, self.client, &requests);
        self.answers = requests;
        while self.turn() {}
    }

    /// Takes what the splitter wants done; whether there was anything.
    fn turn(&mut self) -> bool {
        let mut any = false;
        while let Some(effect) = self.splitter.poll_effect() {
            any = true;
            match effect {
                Effect::Dial(conn, _) => {
                    self.endpoints.insert(conn, Peer::default());
                    self.splitter.handle_connected(self.now, conn);
                }
                Effect::Write(conn) => self.ready.push(conn),
                Effect::Close(_) => {}
            }
        }
        for conn in std::mem::take(&mut self.ready) {
            self.written.clear();
            self.written.extend_from_slice(self.splitter.output(conn));
            self.splitter.consumed(self.now, conn, self.written.len());
            if conn == self.client {
                self.eaten += black_box(&self.written).len() as u32;
            } else {
                self.answer(conn);
            }
        }
        any
    }

    fn answer(&mut self, conn: ConnId) {
        let Some(peer) = self.endpoints.get_mut(&conn) else { return };
        self.answers.clear();
        let mut bytes = &self.written[..];
        if !peer.greeted {
            peer.greeted = true;
            bytes = bytes.strip_prefix(PREFACE).unwrap_or(bytes);
            frame(&mut self.answers, SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]);
            frame(&mut self.answers, WINDOW_UPDATE, 0, 0, &0x3fff_ffff_u32.to_be_bytes());
        }
        while let Some((head, rest)) = bytes.split_first_chunk::<9>() {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            bytes = &rest[length..];
            if head[3] == DATA && head[4] & END_STREAM != 0 {
                peer.eaten += length as u32;
                let warm = usize::from(std::mem::replace(&mut peer.warm, true));
                let (first, last) = (&self.blocks.head[warm], &self.blocks.trailers[warm]);
                frame(&mut self.answers, HEADERS, END_HEADERS, stream, first);
                frame(&mut self.answers, DATA, 0, stream, &[9; MESSAGE]);
                frame(&mut self.answers, HEADERS, END_HEADERS | END_STREAM, stream, last);
            }
        }
        if peer.eaten > 1 << 20 {
            frame(&mut self.answers, WINDOW_UPDATE, 0, 0, &peer.eaten.to_be_bytes());
            peer.eaten = 0;
        }
        self.splitter.handle_bytes(self.now, conn, &self.answers);
    }

    /// All went well so far.
    fn check(&self) {
        let stats = self.splitter.stats();
        assert_eq!((stats.streams_failed, stats.open_streams), (0, 0));
        assert_eq!(stats.streams, u64::from(self.next_stream / 2));
    }
}

fn unary(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("splitter");
    group.throughput(Throughput::Elements(AT_ONCE.into()));
    let mut scene = Scene::new();
    scene.round();
    group.bench_function("20 unary calls", |bencher| {
        bencher.iter(|| {
            if scene.next_stream > 2 * (CALLS_OF_A_CONNECTION - AT_ONCE) {
                scene = Scene::new();
            }
            scene.round();
        });
    });
    scene.check();
    group.finish();
}

criterion_group!(benches, unary);

fn main() {
    if let Some(calls) = std::env::var("SLUICE_CALLS").ok().and_then(|text| text.parse::<u32>().ok()) {
        let mut scene = Scene::new();
        (0..calls.div_ceil(AT_ONCE)).for_each(|_| scene.round());
        return scene.check();
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
}
