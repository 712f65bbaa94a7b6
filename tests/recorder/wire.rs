//! One HTTP/2 connection at the level of frames, as client or as server. In: bytes received, header sections, bodies and
//! resets to send; out: bytes to write, and what the peer's frames mean. Independent of the splitter's own code, and of
//! libraries that hide the order of fields, never-indexed marks and padding. Does no IO and keeps no clock.

use std::collections::{BTreeMap, VecDeque};

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use httlib_hpack::{Decoder, Encoder};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DEFAULT_WINDOW: i64 = 65_535;
const DEFAULT_TABLE: u32 = 4096;
/// What the connection's receive window is raised to, so that streams' windows are what limits.
const CONNECTION_WINDOW: i64 = 4 << 20;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 0x1;
const ACK: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITIZED: u8 = 0x20;

/// A header field; a secret one is never indexed (RFC 7541 §6.2.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    pub name: Vec<u8>,
    pub value: Vec<u8>,
    pub secret: bool,
}

/// What a peer's frames mean for a stream.
#[derive(Debug)]
pub enum Event {
    Headers { stream: u32, fields: Vec<Field>, end: bool },
    Data { stream: u32, body: Vec<u8>, end: bool },
    Reset { stream: u32, code: u32 },
}

/// How a connection is, beyond what it says: its own settings, and how it cuts what it sends. None of it is meaning.
#[derive(Clone, Debug)]
struct Style {
    window: u32,
    table: u32,
    /// Of a server: streams at once on a connection, as it announces; it takes more all the same.
    streams: u32,
    largest_data: usize,
    /// Of a header block; a first one has room for padding and priority beside it.
    largest_fragment: usize,
    padding: bool,
    indexing: bool,
}

/// One end of a connection.
pub struct Wire {
    is_client: bool,
    style: Style,
    rng: Rng,
    inbox: Vec<u8>,
    out: Vec<u8>,
    /// A header block that goes on in CONTINUATION frames.
    block: Option<(u32, bool, Vec<u8>)>,
    decoder: Decoder<'static>,
    encoder: Encoder<'static>,
    /// The peer allows another size of our table from the next block on.
    resize: Option<u32>,
    window: i64,
    granted: i64,
    peer_window: i64,
    peer_frame: usize,
    streams: BTreeMap<u32, Stream>,
    /// Whether the peer has read our settings.
    acknowledged: bool,
    /// A server that still waits for the preface.
    preface_due: bool,
    /// The last stream that the client has opened.
    last: u32,
}

#[derive(Debug)]
struct Stream {
    window: i64,
    granted: i64,
    queue: VecDeque<Piece>,
}

#[derive(Debug)]
enum Piece {
    Headers { fields: Vec<Field>, end: bool },
    Data { body: Vec<u8>, sent: usize, end: bool },
    Reset(u32),
}

impl Wire {
    /// Its first bytes are in the output already. The random source decides the style.
    pub fn new(is_client: bool, mut rng: Rng) -> Self {
        let style = Style {
            window: *choose(&mut rng, &[DEFAULT_WINDOW as u32, 1 << 20, 16_384, 5_000]),
            table: *choose(&mut rng, &[DEFAULT_TABLE, 0, 65_536, 200]),
            streams: *choose(&mut rng, &[10_000, 100, 4]),
            largest_data: *choose(&mut rng, &[16_384, 16_384, 1_000, 9_000]),
            largest_fragment: *choose(&mut rng, &[16_000, 16_000, 300]),
            padding: rng.bool(),
            indexing: rng.u8(..4) > 0,
        };
        let mut decoder = Decoder::with_dynamic_size(DEFAULT_TABLE);
        // Until the peer has read our settings it uses the default.
        decoder.set_max_dynamic_size(style.table.max(DEFAULT_TABLE));
        let mut wire = Self {
            is_client,
            rng,
            inbox: Vec::new(),
            out: Vec::new(),
            block: None,
            decoder,
            encoder: Encoder::with_dynamic_size(DEFAULT_TABLE),
            resize: None,
            window: DEFAULT_WINDOW,
            granted: CONNECTION_WINDOW,
            peer_window: DEFAULT_WINDOW,
            peer_frame: 16_384,
            streams: BTreeMap::new(),
            acknowledged: false,
            preface_due: !is_client,
            last: 0,
            style,
        };
        if is_client {
            wire.out.extend(PREFACE);
        }
        let mut settings = Vec::new();
        let streams = if is_client { 0 } else { wire.style.streams };
        for (id, value) in [(1_u16, wire.style.table), (3, streams), (4, wire.style.window)] {
            settings.extend(id.to_be_bytes());
            settings.extend(value.to_be_bytes());
        }
        wire.frame(SETTINGS, 0, 0, &settings);
        wire.credit(0, (CONNECTION_WINDOW - DEFAULT_WINDOW) as usize);
        wire
    }

    /// A new stream of the client's.
    pub fn open(&mut self) -> u32 {
        // The first is 1.
        self.last += 1 + self.last % 2;
        self.make(self.last);
        self.last
    }

    pub fn send_headers(&mut self, stream: u32, fields: &[Field], end: bool) {
        self.queue(stream, Piece::Headers { fields: fields.to_vec(), end });
    }

    pub fn send_data(&mut self, stream: u32, body: Vec<u8>, end: bool) {
        self.queue(stream, Piece::Data { body, sent: 0, end });
    }

    /// After all that is to be sent before it.
    pub fn send_reset(&mut self, stream: u32, code: u32) {
        self.queue(stream, Piece::Reset(code));
    }

    /// Whether everything to be sent on the stream is in the output.
    pub fn is_sent(&self, stream: u32) -> bool {
        self.streams.get(&stream).is_none_or(|stream| stream.queue.is_empty())
    }

    /// Nothing more is sent on the stream, and what comes on it means nothing any more.
    pub fn forget(&mut self, stream: u32) {
        self.streams.remove(&stream);
    }

    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    /// What these bytes mean. An error is the peer's breach of the protocol, or the end it has put to the connection.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<Vec<Event>> {
        self.inbox.extend(bytes);
        let mut at = 0;
        if self.preface_due {
            if self.inbox.len() < PREFACE.len() {
                return Ok(Vec::new());
            }
            ensure!(self.inbox.starts_with(PREFACE), "no preface but {}", self.inbox.escape_ascii());
            (self.preface_due, at) = (false, PREFACE.len());
        }
        let mut events = Vec::new();
        while let [a, b, c, kind, flags, id @ ..] = &self.inbox[at..]
            && let Some(id) = id.first_chunk::<4>()
        {
            let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
            let (kind, flags, id) = (*kind, *flags, u32::from_be_bytes(*id) & 0x7fff_ffff);
            let Some(payload) = self.inbox.get(at + 9..at + 9 + length) else { break };
            ensure!(length <= 16_384, "a frame of {length} bytes, where 16384 are allowed");
            let payload = payload.to_vec();
            at += 9 + length;
            self.take(kind, flags, id, payload, &mut events)
                .with_context(|| format!("frame of kind {kind}, flags {flags:#x}, on stream {id}"))?;
        }
        self.inbox.drain(..at);
        Ok(events)
    }

    fn take(&mut self, kind: u8, flags: u8, id: u32, payload: Vec<u8>, events: &mut Vec<Event>) -> Result<()> {
        ensure!(self.block.is_none() || kind == CONTINUATION, "a header block is interrupted");
        match kind {
            DATA => {
                let length = payload.len();
                let end = flags & END_STREAM != 0;
                self.granted -= length as i64;
                ensure!(self.granted >= 0, "more than the connection's window");
                self.credit(0, length);
                self.granted += length as i64;
                let body = without_padding(flags, payload)?;
                if let Some(stream) = self.streams.get_mut(&id) {
                    stream.granted -= length as i64;
                    ensure!(stream.granted >= 0, "more than the stream's window");
                    if !end {
                        stream.granted += length as i64;
                        self.credit(id, length);
                    }
                    events.push(Event::Data { stream: id, body, end });
                }
            }
            HEADERS => {
                let mut fragment = without_padding(flags, payload)?;
                if flags & PRIORITIZED != 0 {
                    ensure!(fragment.len() >= 5, "no room for a priority");
                    fragment.drain(..5);
                }
                self.fragment(id, flags & END_STREAM != 0, fragment, flags & END_HEADERS != 0, events)?;
            }
            CONTINUATION => {
                let (stream, end, mut block) = self.block.take().context("no header block to go on with")?;
                ensure!(stream == id, "a header block of another stream goes on");
                block.extend(payload);
                self.fragment(id, end, block, flags & END_HEADERS != 0, events)?;
            }
            RST_STREAM => {
                ensure!(id != 0, "a reset of the connection");
                events.push(Event::Reset { stream: id, code: number(&payload)? });
            }
            SETTINGS if flags & ACK == 0 => self.settings(&payload)?,
            PING if flags & ACK == 0 => self.frame(PING, ACK, 0, &payload),
            WINDOW_UPDATE => {
                let by = i64::from(number(&payload)?);
                if id == 0 {
                    self.window += by;
                    let all: Vec<_> = self.streams.keys().copied().collect();
                    all.into_iter().for_each(|id| self.pump(id));
                } else if let Some(stream) = self.streams.get_mut(&id) {
                    stream.window += by;
                    self.pump(id);
                }
            }
            GOAWAY => bail!("GOAWAY {}", payload.escape_ascii()),
            SETTINGS => self.acknowledged = true,
            PUSH_PROMISE => bail!("a push that nobody has allowed"),
            _ => {}
        }
        Ok(())
    }

    fn fragment(&mut self, id: u32, end: bool, mut block: Vec<u8>, whole: bool, events: &mut Vec<Event>) -> Result<()> {
        if !whole {
            self.block = Some((id, end, block));
            return Ok(());
        }
        let mut list = Vec::new();
        self.decoder.decode(&mut block, &mut list).context("HPACK")?;
        let field = |(name, value, flags)| Field { name, value, secret: flags & Decoder::NEVER_INDEXED != 0 };
        if !self.is_client && id > self.last {
            self.last = id;
            self.make(id);
        }
        if self.streams.contains_key(&id) {
            events.push(Event::Headers { stream: id, fields: list.into_iter().map(field).collect(), end });
        }
        Ok(())
    }

    fn settings(&mut self, payload: &[u8]) -> Result<()> {
        for setting in payload.chunks(6) {
            let (id, value) = setting.split_at_checked(2).context("half a setting")?;
            let value = number(value)?;
            match u16::from_be_bytes([id[0], id[1]]) {
                1 => self.resize = Some(value.min(DEFAULT_TABLE)),
                4 => {
                    let by = i64::from(value) - self.peer_window;
                    self.peer_window += by;
                    self.streams.values_mut().for_each(|stream| stream.window += by);
                }
                5 => self.peer_frame = value as usize,
                _ => {}
            }
        }
        self.frame(SETTINGS, ACK, 0, &[]);
        let all: Vec<_> = self.streams.keys().copied().collect();
        all.into_iter().for_each(|id| self.pump(id));
        Ok(())
    }

    fn make(&mut self, id: u32) {
        let mut granted = i64::from(self.style.window);
        if !self.acknowledged {
            granted = granted.max(DEFAULT_WINDOW);
        }
        self.streams.insert(id, Stream { window: self.peer_window, granted, queue: VecDeque::new() });
    }

    fn queue(&mut self, id: u32, piece: Piece) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.queue.push_back(piece);
            self.pump(id);
        }
    }

    /// Sends what the windows allow.
    fn pump(&mut self, id: u32) {
        while let Some(stream) = self.streams.get_mut(&id)
            && let Some(mut piece) = stream.queue.pop_front()
        {
            let window = stream.window.min(self.window);
            match &mut piece {
                Piece::Headers { fields, end } => self.write_headers(id, fields, *end),
                Piece::Reset(code) => self.frame(RST_STREAM, 0, id, &code.to_be_bytes()),
                Piece::Data { body, sent, end } => {
                    let left = body.len() - *sent;
                    if left > 0 && window <= 0 {
                        stream.queue.push_front(piece);
                        return;
                    }
                    let size = left.min(self.style.largest_data).min(self.peer_frame).min(window.max(0) as usize);
                    // Padding must fit into the window, too.
                    let room = (window.max(0) as usize - size).min(self.peer_frame - size).min(256);
                    let padding = if self.style.padding && room > 0 && self.rng.u8(..4) == 0 {
                        Some(self.rng.usize(..room) as u8)
                    } else {
                        None
                    };
                    let whole = *sent + size == body.len();
                    let payload = padded(padding, &body[*sent..*sent + size]);
                    *sent += size;
                    stream.window -= payload.len() as i64;
                    self.window -= payload.len() as i64;
                    let flags = flag(whole && *end, END_STREAM) | flag(padding.is_some(), PADDED);
                    if !whole {
                        stream.queue.push_front(piece);
                    }
                    self.frame(DATA, flags, id, &payload);
                }
            }
        }
    }

    fn write_headers(&mut self, id: u32, fields: &[Field], end: bool) {
        let mut block = Vec::new();
        if let Some(size) = self.resize.take() {
            let _ = self.encoder.update_max_dynamic_size(size, &mut block);
        }
        for field in fields {
            let huffman = if self.rng.bool() { Encoder::HUFFMAN_NAME | Encoder::HUFFMAN_VALUE } else { 0 };
            let how = match (field.secret, self.style.indexing && self.rng.u8(..8) > 0) {
                (true, _) => Encoder::NEVER_INDEXED,
                (false, true) => Encoder::BEST_FORMAT | Encoder::WITH_INDEXING,
                (false, false) => 0,
            };
            let field = (field.name.clone(), field.value.clone(), huffman | how);
            self.encoder.encode(field, &mut block).expect("literals can always be encoded");
        }
        let padding = (self.style.padding && self.rng.u8(..4) == 0).then(|| self.rng.u8(..));
        let priority = self.is_client && self.style.padding && self.rng.u8(..8) == 0;
        let (first, mut rest) = block.split_at(block.len().min(self.style.largest_fragment));
        let mut payload = if priority { vec![0, 0, 0, 0, 15] } else { Vec::new() };
        payload.extend(first);
        let payload = padded(padding, &payload);
        let flags = flag(end, END_STREAM)
            | flag(rest.is_empty(), END_HEADERS)
            | flag(padding.is_some(), PADDED)
            | flag(priority, PRIORITIZED);
        self.frame(HEADERS, flags, id, &payload);
        while !rest.is_empty() {
            let (fragment, later) = rest.split_at(rest.len().min(self.style.largest_fragment.max(2_000)));
            self.frame(CONTINUATION, flag(later.is_empty(), END_HEADERS), id, fragment);
            rest = later;
        }
    }

    fn credit(&mut self, stream: u32, bytes: usize) {
        if bytes > 0 {
            self.frame(WINDOW_UPDATE, 0, stream, &(bytes as u32).to_be_bytes());
        }
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.out.extend(&(payload.len() as u32).to_be_bytes()[1..]);
        self.out.extend([kind, flags]);
        self.out.extend(stream.to_be_bytes());
        self.out.extend(payload);
    }
}

/// One of several.
pub fn choose<'a, T>(rng: &mut Rng, from: &'a [T]) -> &'a T {
    &from[rng.usize(..from.len())]
}

fn flag(set: bool, flag: u8) -> u8 {
    if set { flag } else { 0 }
}

fn padded(padding: Option<u8>, payload: &[u8]) -> Vec<u8> {
    match padding {
        None => payload.to_vec(),
        Some(padding) => [&[padding][..], payload, &vec![0; usize::from(padding)]].concat(),
    }
}

fn without_padding(flags: u8, mut payload: Vec<u8>) -> Result<Vec<u8>> {
    if flags & PADDED != 0 {
        let padding = usize::from(*payload.first().context("no length of the padding")?);
        ensure!(padding < payload.len(), "more padding than payload");
        payload.truncate(payload.len() - padding);
        payload.remove(0);
    }
    Ok(payload)
}

fn number(payload: &[u8]) -> Result<u32> {
    Ok(u32::from_be_bytes(*payload.first_chunk().context("too short")?))
}
