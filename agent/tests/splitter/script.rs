//! Scripted peers around a [`World`]: a test writes raw frames for a client or an endpoint and says which frames must
//! come out. A peer judges all that it reads by books of its own: windows, frame sizes, HPACK, what may follow an end.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use httlib_hpack::Decoder;
use sluice_agent::addr::EndpointAddr;
use sluice_agent::splitter::{ConnId, Limits, PREFACE};

use crate::wire::{self, CALL, Fields, Got, MORE};
use crate::world::{Chunks, Pipe, World, endpoint, service};

pub struct Script {
    pub world: World,
    pub endpoints: Vec<EndpointAddr>,
}

/// Plays a scene once for each way in which bytes may be cut.
pub fn in_all_chunks(endpoints: u8, scene: impl Fn(Script)) {
    for chunks in [Chunks::Whole, Chunks::Random, Chunks::One] {
        scene(Script::new(chunks, Limits::default(), endpoints));
    }
}

impl Script {
    pub fn new(chunks: Chunks, limits: Limits, endpoints: u8) -> Self {
        Self::seeded(11, chunks, limits, endpoints)
    }

    pub fn seeded(seed: u64, chunks: Chunks, limits: Limits, endpoints: u8) -> Self {
        let endpoints: Vec<_> = (1..=endpoints).map(endpoint).collect();
        Self { world: World::new(seed, chunks, limits, &endpoints), endpoints }
    }

    /// With bytes in one piece.
    pub fn with(limits: Limits, endpoints: u8) -> Self {
        Self::new(Chunks::Whole, limits, endpoints)
    }

    /// Until nothing moves.
    pub fn run(&mut self) {
        let mut steps = 0;
        while self.world.step() {
            steps += 1;
            assert!(steps < 10_000_000, "it never rests: {:?}", self.world.splitter);
        }
    }

    pub fn pass(&mut self, time: Duration) {
        self.world.pass_time(time);
        self.run();
    }

    /// Writes and lets everything move.
    pub fn send(&mut self, peer: &Peer, frames: impl AsRef<[u8]>) {
        peer.pipe.put(frames.as_ref());
        self.run();
    }

    /// All that comes to `peer`, however much of it has to pass the pipe.
    pub fn all(&mut self, peer: &mut Peer) -> Vec<Got> {
        let mut all = Vec::new();
        loop {
            self.run();
            let more = peer.got();
            if more.is_empty() {
                return all;
            }
            all.extend(more);
        }
    }

    /// A client that has not said anything.
    pub fn silent_client(&mut self) -> Peer {
        let (conn, pipe) = self.world.connect();
        Peer::new(pipe, false, Some(conn))
    }

    /// A client after the exchange of prefaces.
    pub fn client(&mut self) -> Peer {
        self.client_with(&[])
    }

    pub fn client_with(&mut self, settings: &[(u16, u32)]) -> Peer {
        let mut client = self.silent_client();
        client.pipe.put(PREFACE);
        client.settings(settings);
        self.run();
        assert_eq!(client.got(), []);
        client
    }

    /// The next connection to the `n`-th endpoint, which has said nothing.
    pub fn accept(&mut self, n: u8) -> Option<Peer> {
        let pipe = self.world.accepted.get_mut(&endpoint(n))?.pop_front()?;
        Some(Peer::new(pipe, true, None))
    }

    /// The next connection to any endpoint, which has said nothing, and which one it is.
    pub fn accept_any(&mut self) -> Option<(u8, Peer)> {
        (1..=u8::MAX).find_map(|n| Some((n, self.accept(n)?)))
    }

    /// The next connection to any endpoint, which then sends its SETTINGS.
    pub fn server_with(&mut self, settings: &[(u16, u32)]) -> (u8, Peer) {
        let (n, mut server) = self.accept_any().expect("a connection to an endpoint");
        server.settings(settings);
        self.run();
        (n, server)
    }

    pub fn server(&mut self) -> Peer {
        self.server_with(&[]).1
    }

    /// A client and the endpoint it got, with one stream open and its head delivered.
    pub fn call(&mut self) -> (Peer, Peer) {
        self.call_with(&[], &[])
    }

    pub fn call_with(&mut self, at_client: &[(u16, u32)], at_server: &[(u16, u32)]) -> (Peer, Peer) {
        let client = self.client_with(at_client);
        self.send(&client, wire::headers(1, MORE, CALL));
        let (_, mut server) = self.server_with(at_server);
        assert_eq!(server.got(), [wire::heard(1, MORE, CALL)]);
        (client, server)
    }

    /// The Service has these endpoints from now on.
    pub fn list(&mut self, endpoints: &[u8]) {
        self.endpoints = endpoints.iter().copied().map(endpoint).collect();
        for addr in &self.endpoints {
            self.world.accepted.entry(*addr).or_default();
        }
        self.world.service.update(std::time::Instant::now(), service(&self.endpoints));
        self.world.splitter.handle_endpoints_changed(self.world.now);
        self.run();
    }

    /// From now on this endpoint refuses connections.
    pub fn refuse(&mut self, n: u8) {
        self.world.accepted.remove(&endpoint(n));
    }

    pub fn open_streams(&self) -> u64 {
        self.world.stats().open_streams
    }
}

/// One end of a connection to the splitter.
pub struct Peer {
    pipe: Pipe,
    /// Of a client: what the splitter calls it.
    pub conn: Option<ConnId>,
    inbox: VecDeque<u8>,
    /// Bytes of the preface still to come.
    preface: usize,
    decoder: Decoder<'static>,
    block: Option<(u32, bool, Vec<u8>)>,
    /// What came, without SETTINGS and WINDOW_UPDATE.
    seen: Vec<Got>,
    /// SETTINGS, their acknowledgements and WINDOW_UPDATE, in their order.
    pub noise: Vec<Got>,
    /// The header block read last, as it was on the wire.
    pub last_block: Vec<u8>,
    closed: bool,
    books: Books,
}

/// What the splitter may send to this peer.
struct Books {
    server: bool,
    window: i64,
    initial: i64,
    max_frame: usize,
    streams: HashMap<u32, i64>,
    /// SETTINGS that were sent and not acknowledged yet.
    unacknowledged: VecDeque<Vec<(u16, u32)>>,
    highest: u32,
    ended: HashSet<u32>,
    reset: HashSet<u32>,
    /// It wrote what deserves answers out of turn.
    distrusted: bool,
}

impl Peer {
    fn new(pipe: Pipe, server: bool, conn: Option<ConnId>) -> Self {
        Self {
            pipe,
            conn,
            inbox: VecDeque::new(),
            preface: if server { PREFACE.len() } else { 0 },
            decoder: Decoder::with_dynamic_size(4096),
            block: None,
            seen: Vec::new(),
            noise: Vec::new(),
            last_block: Vec::new(),
            closed: false,
            books: Books {
                server,
                window: 65_535,
                initial: 65_535,
                max_frame: 16_384,
                streams: HashMap::new(),
                unacknowledged: VecDeque::new(),
                highest: 0,
                ended: HashSet::new(),
                reset: HashSet::new(),
                distrusted: false,
            },
        }
    }

    /// Writes; nothing moves before the script runs.
    pub fn put(&self, frames: impl AsRef<[u8]>) {
        self.pipe.put(frames.as_ref());
    }

    pub fn settings(&mut self, list: &[(u16, u32)]) {
        self.books.unacknowledged.push_back(list.to_vec());
        self.put(wire::settings(list));
    }

    /// As [`Peer::put`]; SETTINGS and WINDOW_UPDATE are entered in the books.
    pub fn flood(&mut self, frame: &[u8]) {
        match frame[3] {
            wire::SETTINGS => self.settings(&[]),
            wire::WINDOW_UPDATE => self.grant(u32::from(frame[8]), 1),
            _ => self.put(frame),
        }
    }

    /// From here on it writes what may be answered by a second RST_STREAM.
    pub fn distrust(&mut self) {
        self.books.distrusted = true;
    }

    /// WINDOW_UPDATE; stream 0: of the connection.
    pub fn grant(&mut self, stream: u32, by: u32) {
        let initial = self.books.initial;
        match stream {
            0 => self.books.window += i64::from(by),
            _ => *self.books.streams.entry(stream).or_insert(initial) += i64::from(by),
        }
        self.put(wire::window(stream, by));
    }

    /// Grants what is missing for windows of `size`, on the connection and on all streams that it knows to be open.
    /// Whether anything was.
    pub fn grant_all(&mut self, size: i64) -> bool {
        let open = |stream: &u32| !self.books.ended.contains(stream) && !self.books.reset.contains(stream);
        let streams = self.books.streams.iter().filter(|(stream, _)| open(stream));
        let mut missing: Vec<_> = streams.map(|(stream, window)| (*stream, size - window)).collect();
        missing.push((0, size - self.books.window));
        // Half a window is no news.
        missing.retain(|(_, missing)| *missing > size / 2);
        missing.sort_unstable();
        missing.iter().for_each(|(stream, missing)| self.grant(*stream, *missing as u32));
        !missing.is_empty()
    }

    /// What came since the last call, without SETTINGS and WINDOW_UPDATE, which go to `noise`.
    pub fn got(&mut self) -> Vec<Got> {
        self.pull();
        std::mem::take(&mut self.seen)
    }

    /// What came of DATA on one stream since the last call, joined, and whether it ended.
    pub fn body(&mut self, stream: u32) -> (Vec<u8>, bool) {
        let mut joined = (Vec::new(), false);
        for got in self.got() {
            match got {
                Got::Data { stream: of, end, body } if of == stream => {
                    joined.0.extend(body);
                    joined.1 |= end;
                }
                other => panic!("{other:?} among the DATA of stream {stream}"),
            }
        }
        joined
    }

    /// Credit that came since the last call; stream 0: of the connection.
    pub fn credit(&mut self, stream: u32) -> u32 {
        self.pull();
        let mut sum = 0;
        self.noise.retain(|got| match got {
            Got::Window { stream: of, by } if *of == stream => {
                sum += by;
                false
            }
            _ => true,
        });
        sum
    }

    fn pull(&mut self) {
        self.inbox.extend(self.pipe.take());
        let preface = self.preface.min(self.inbox.len());
        let from = PREFACE.len() - self.preface;
        assert!(self.inbox.drain(..preface).eq(PREFACE[from..from + preface].iter().copied()), "the preface");
        self.preface -= preface;
        while self.inbox.len() >= 9 {
            let head: Vec<u8> = self.inbox.iter().take(9).copied().collect();
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            if self.inbox.len() < 9 + length {
                break;
            }
            assert!(length <= self.books.max_frame, "a frame of {length} bytes");
            let payload: Vec<u8> = self.inbox.drain(..9 + length).skip(9).collect();
            let stream = u32::from_be_bytes(head[5..9].try_into().unwrap());
            self.read(head[3], head[4], stream, payload);
        }
        if self.pipe.is_closed() && !self.closed {
            assert!(self.inbox.is_empty() && self.block.is_none(), "closed inside a frame or a header block");
            self.closed = true;
            self.seen.push(Got::Closed);
        }
    }

    fn read(&mut self, kind: u8, flags: u8, stream: u32, payload: Vec<u8>) {
        let number = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
        // Undefined flags and the reserved bit stay unset (RFC 9113 §4.1); we neither pad nor speak of priority.
        let defined = match kind {
            wire::DATA => wire::END_STREAM,
            wire::HEADERS => wire::END_STREAM | wire::END_HEADERS,
            wire::CONTINUATION => wire::END_HEADERS,
            wire::SETTINGS | wire::PING => wire::ACK,
            _ => 0,
        };
        assert!(flags & !defined == 0 && stream >> 31 == 0, "flags {flags:#x} on frame {kind} of stream {stream:#x}");
        let inside = self.block.as_ref().map(|(stream, ..)| *stream);
        assert_eq!(inside.is_some(), kind == wire::CONTINUATION, "CONTINUATION and only CONTINUATION in a block");
        let end = flags & wire::END_STREAM != 0;
        let got = match kind {
            wire::DATA => {
                self.books.data(stream, payload.len(), end);
                Got::Data { stream, end, body: payload }
            }
            wire::HEADERS => {
                self.books.headers(stream, end);
                self.block = Some((stream, end, payload));
                return self.end_of_block(flags);
            }
            wire::CONTINUATION => {
                assert_eq!(inside, Some(stream), "CONTINUATION of another stream");
                self.block.as_mut().unwrap().2.extend(payload);
                return self.end_of_block(flags);
            }
            wire::RST_STREAM => {
                let first = self.books.reset.insert(stream);
                let excused = self.books.distrusted || number(0) == wire::STREAM_CLOSED;
                assert!(first || excused, "RST_STREAM twice on stream {stream}");
                Got::Reset { stream, code: number(0) }
            }
            wire::PING => {
                Got::Ping { ack: flags & wire::ACK != 0, opaque: payload.as_slice().try_into().expect("8 bytes") }
            }
            wire::GOAWAY => Got::GoAway { last: number(0), code: number(4) },
            wire::SETTINGS if flags & wire::ACK != 0 => {
                self.books.acknowledged();
                return self.noise.push(Got::SettingsAck);
            }
            wire::SETTINGS => {
                let entry = |entry: &[u8]| {
                    let value = u32::from_be_bytes(entry[2..].try_into().unwrap());
                    (u16::from_be_bytes([entry[0], entry[1]]), value)
                };
                return self.noise.push(Got::Settings(payload.chunks(6).map(entry).collect()));
            }
            wire::WINDOW_UPDATE => {
                assert_ne!(number(0), 0, "WINDOW_UPDATE of 0");
                return self.noise.push(Got::Window { stream, by: number(0) });
            }
            other => panic!("a frame of type {other}"),
        };
        self.seen.push(got);
    }

    fn end_of_block(&mut self, flags: u8) {
        if flags & wire::END_HEADERS == 0 {
            return;
        }
        let (stream, end, mut block) = self.block.take().unwrap();
        self.last_block.clone_from(&block);
        let mut fields = Vec::new();
        self.decoder.decode(&mut block, &mut fields).expect("a header block that can be decoded");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let fields = fields
            .into_iter()
            .map(|(name, value, flags)| {
                let secret = if flags & Decoder::NEVER_INDEXED != 0 { "!" } else { "" };
                (format!("{secret}{}", text(name)), text(value))
            })
            .collect();
        self.seen.push(Got::Headers { stream, end, fields });
    }
}

impl Books {
    fn headers(&mut self, stream: u32, end: bool) {
        assert!(!self.ended.contains(&stream) && !self.reset.contains(&stream), "HEADERS after the end of {stream}");
        assert!(stream % 2 == 1, "HEADERS on stream {stream}");
        if self.server && !self.streams.contains_key(&stream) {
            assert!(stream > self.highest, "stream ids that fall");
        }
        self.highest = self.highest.max(stream);
        self.streams.entry(stream).or_insert(self.initial);
        if end {
            self.ended.insert(stream);
        }
    }

    fn data(&mut self, stream: u32, length: usize, end: bool) {
        assert!(!self.ended.contains(&stream) && !self.reset.contains(&stream), "DATA after the end of {stream}");
        let window = self.streams.get_mut(&stream).expect("DATA before HEADERS");
        *window -= length as i64;
        self.window -= length as i64;
        assert!(length == 0 || *window >= 0, "DATA beyond the window of stream {stream}: {window}");
        assert!(length == 0 || self.window >= 0, "DATA beyond the connection's window: {}", self.window);
        if end {
            self.ended.insert(stream);
        }
    }

    /// SETTINGS hold from their acknowledgement on.
    fn acknowledged(&mut self) {
        for (id, value) in self.unacknowledged.pop_front().expect("SETTINGS that are acknowledged once") {
            match id {
                wire::INITIAL_WINDOW_SIZE => {
                    let difference = i64::from(value) - self.initial;
                    self.initial += difference;
                    self.streams.values_mut().for_each(|window| *window += difference);
                }
                wire::MAX_FRAME_SIZE => self.max_frame = value as usize,
                _ => {}
            }
        }
    }
}

/// `fields` and more.
pub fn and<'a>(fields: Fields<'a>, more: Fields<'a>) -> Vec<(&'a str, &'a str)> {
    [fields, more].concat()
}
