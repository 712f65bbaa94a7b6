//! Many scripted peers in a world of chance: calls of all kinds, slightly wrong frames, stalls, lost connections, a table
//! that changes, time that passes. In: bytes, that choose all of it. Out: a digest of what the splitter wrote, or a panic:
//! each peer judges what it reads, what one side said the other must hear, and when all have gone nothing may be left.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use sluice_agent::balance::Standing;
use sluice_agent::splitter::{Depth, Limits, PREFACE, TapEvent};

use crate::chance::Chance;
use crate::model::{Heard, Model};
use crate::script::{Peer, Script};
use crate::wire::*;
use crate::world::{Chunks, endpoint};

/// Plays what the bytes say to its end.
pub fn play(bytes: &[u8]) -> u64 {
    Case::new(bytes).play()
}

/// The same while somebody looks at every frame. Also: the ends of calls that were seen.
pub fn play_watched(bytes: &[u8]) -> (u64, usize) {
    let mut case = Case::new(bytes);
    case.s.world.splitter.tap(Some(Depth { share: 1.0, metadata: true, frames: true }));
    case.watched = Some(0);
    case.play_on()
}

struct Case<'a> {
    s: Script,
    chance: Chance<'a>,
    model: Model,
    clients: Vec<Actor>,
    servers: Vec<Actor>,
    /// Peers so far.
    peers: usize,
    /// Somebody looks: how many calls were seen to end.
    watched: Option<usize>,
}

/// A peer with what it knows of its streams.
struct Actor {
    number: usize,
    server: bool,
    peer: Peer,
    /// Streams it may write on, as far as it knows.
    streams: Vec<u32>,
    next: u32,
    greeted: bool,
    closed: bool,
    /// It wrote what the model cannot follow.
    wild: bool,
    /// The message it says on a stream.
    said: HashMap<u32, usize>,
    heard: HashMap<u32, Heard>,
    /// Streams above this one are off: one of the two said GOAWAY.
    last: u32,
}

impl<'a> Case<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        let mut chance = Chance::new(bytes);
        let limits = Limits {
            stream_window: chance.one_of(&[65_535, 100_000]),
            connection_window: chance.one_of(&[100_000, 1 << 20]),
            pod_budget: chance.one_of(&[0, 10_000, 1 << 20]),
            output_high: chance.one_of(&[32_768, 65_536]),
            client_streams: chance.one_of(&[100, 3]),
            pod_streams: 200,
            header_list: chance.one_of(&[65_536, 500]),
            connections_per_endpoint: 1 + chance.below(3) as usize,
            attempts: 1 + chance.below(4),
            replay_stream: chance.one_of(&[16_384, 500, 0]),
            replay_pod: chance.one_of(&[1 << 20, 1_000]),
            ..Limits::default()
        };
        let listed = chance.one_of(&[2, 3, 1, 0]);
        let chunks = chance.one_of(&[Chunks::Whole, Chunks::Random]);
        let mut s = Script::seeded(chance.byte().into(), chunks, limits, listed);
        s.world.dials_wait = chance.one_in(4);
        Self { s, chance, model: Model::default(), clients: Vec::new(), servers: Vec::new(), peers: 0, watched: None }
    }

    /// The digest of all that the splitter wrote.
    fn play(self) -> u64 {
        self.play_on().0
    }

    fn look(&mut self) {
        let Some(seen) = &mut self.watched else { return };
        while let Some(event) = self.s.world.splitter.poll_tap() {
            match event {
                TapEvent::End(_) => *seen += 1,
                TapEvent::Lost(lost) => panic!("{lost} events were lost"),
                _ => {}
            }
        }
    }

    fn play_on(mut self) -> (u64, usize) {
        while !self.chance.is_over() {
            self.act();
            for _ in 0..self.chance.below(4) {
                self.s.world.step();
            }
            self.accept();
            self.look();
            let ejected = self.s.world.reach.ejected();
            assert!(ejected.iter().all(|ejected| self.s.endpoints.contains(&ejected.addr)), "{ejected:?}");
        }
        self.s.world.dials_wait = false;
        self.s.world.answer_dials();
        self.s.world.fill_black_holes();
        if self.s.world.rng.bool() {
            self.settle();
        }
        self.hang_up();
        self.model.check_served_once();
        self.look();
        let calls = self.s.world.service.calls().report();
        let ended: u64 = calls.methods.iter().map(|(_, counts)| counts.total()).sum();
        assert_eq!((calls.open, ended), (0, self.s.world.stats().streams), "each call counts once");
        if let Some(seen) = self.watched {
            assert_eq!(seen as u64, ended, "each call was seen to end");
        }
        (self.s.world.digest, self.watched.unwrap_or(0))
    }

    /// All that are still there say what is missing, read, and give credit: every stream ends, and nobody hangs up.
    fn settle(&mut self) {
        self.listen();
        self.clients.retain(|actor| !actor.wild);
        self.servers.retain(|actor| !actor.wild);
        let mut turns = 0;
        let mut quiet = 0;
        while quiet < 3 {
            self.s.run();
            self.accept();
            let heard = self.listen();
            let said = self.finish();
            self.look();
            quiet = if heard || said { 0 } else { quiet + 1 };
            if quiet == 2 {
                // Longer than any patience of the splitter's, but for connections without streams.
                self.s.pass(Duration::from_secs(10));
            }
            turns += 1;
            assert!(turns < 1_000, "it never rests: {:?}", self.s.world.splitter);
        }
        assert_eq!(self.s.open_streams(), 0, "streams that do not end: {:?}", self.s.world.splitter);
        for actor in self.clients.iter().chain(&self.servers).filter(|actor| !actor.closed && !actor.wild) {
            actor.check_ends();
        }
    }

    /// Everybody goes.
    fn hang_up(&mut self) {
        self.listen();
        self.clients.clear();
        self.s.run();
        // What they said before is kept for so long for endpoints that do not take it.
        self.s.pass(Duration::from_secs(30));
        assert_eq!(self.s.open_streams(), 0, "streams without a client: {:?}", self.s.world.splitter);
        self.accept();
        self.listen();
        self.servers.clear();
        self.s.run();
        self.accept();
        self.servers.clear();
        self.s.run();
        assert!(self.s.world.splitter.is_empty(), "connections without a peer: {:?}", self.s.world.splitter);
        let service = Rc::clone(&self.s.world.service);
        let rng = &mut self.s.world.rng;
        let picked: Vec<_> = self
            .s
            .endpoints
            .iter()
            .filter_map(|_| service.pick(std::time::Instant::now(), rng, |_| Standing::Good))
            .collect();
        assert!(picked.iter().all(|picked| picked.endpoint().open() == 1), "streams counted for ever: {picked:?}");
    }

    /// Whether anybody heard anything.
    fn listen(&mut self) -> bool {
        let (model, peers) = (&mut self.model, self.clients.iter_mut().chain(&mut self.servers));
        peers.fold(false, |any, actor| actor.listen(model) | any)
    }

    /// Whether there was anything to say.
    fn finish(&mut self) -> bool {
        let (model, peers) = (&mut self.model, self.clients.iter_mut().chain(&mut self.servers));
        peers.filter(|actor| !actor.closed).fold(false, |any, actor| actor.finish(model) | any)
    }

    fn actor(&mut self, peer: Peer, server: bool) -> Actor {
        self.peers += 1;
        Actor {
            number: self.peers,
            server,
            peer,
            streams: Vec::new(),
            next: 1,
            greeted: false,
            closed: false,
            wild: false,
            said: HashMap::new(),
            heard: HashMap::new(),
            last: u32::MAX,
        }
    }

    fn connect(&mut self) {
        let peer = self.s.silent_client();
        let mut client = self.actor(peer, false);
        client.peer.put(PREFACE);
        client.greet(&mut self.chance);
        self.clients.push(client);
    }

    fn accept(&mut self) {
        while let Some((_, peer)) = self.s.accept_any() {
            let mut server = self.actor(peer, true);
            if !self.chance.one_in(10) {
                server.greet(&mut self.chance);
            }
            self.servers.push(server);
        }
    }

    fn act(&mut self) {
        let chance = &mut self.chance;
        match chance.below(100) {
            0..4 => self.connect(),
            4 => self.s.world.pass_time(Duration::from_millis(chance.below(5_000).into())),
            5 => self.s.world.pass_time(Duration::from_secs(chance.one_of(&[0, 1, 6, 400]))),
            6 => {
                let first = 1 + chance.below(2) as u8;
                let endpoints: Vec<u8> = (first..first + chance.one_of(&[2, 3, 1, 0])).collect();
                self.s.list(&endpoints);
            }
            7 if chance.one_in(3) => self.s.refuse(1),
            7 | 8 => drop(self.s.world.accepted.entry(endpoint(1)).or_default()),
            9 => self.s.world.answer_dials(),
            10 if chance.one_in(3) => self.s.world.fill_black_holes(),
            10 => drop(self.s.world.black_holes.insert(endpoint(1 + chance.below(3) as u8))),
            11 if chance.one_in(2) => {
                let mut peers = [&mut self.clients, &mut self.servers];
                let peers = &mut peers[chance.below(2) as usize];
                if !peers.is_empty() {
                    // What it has not read it never will.
                    peers.swap_remove(chance.below(peers.len() as u32) as usize);
                }
            }
            12 if chance.one_in(8) => {
                let until = self.s.world.now + Duration::from_millis(chance.below(3_000).into());
                let service = chance.one_in(2).then(|| Rc::clone(&self.s.world.service));
                self.s.world.splitter.drain(self.s.world.now, service.as_ref(), until);
            }
            13..55 => match choose(chance, &mut self.clients) {
                Some(client) => client.ask(chance, &mut self.model),
                None => self.connect(),
            },
            _ => {
                if let Some(server) = choose(chance, &mut self.servers) {
                    server.serve(chance, &mut self.model);
                }
            }
        }
    }
}

fn choose<'a>(chance: &mut Chance<'_>, actors: &'a mut [Actor]) -> Option<&'a mut Actor> {
    if actors.is_empty() { None } else { Some(&mut actors[chance.below(actors.len() as u32) as usize]) }
}

fn some_settings(chance: &mut Chance<'_>, server: bool) -> Vec<(u16, u32)> {
    let mut list = Vec::new();
    if chance.one_in(2) {
        list.push((INITIAL_WINDOW_SIZE, chance.one_of(&[0, 1, 100, 20_000, 70_000, 1 << 20])));
    }
    if chance.one_in(4) {
        list.push((HEADER_TABLE_SIZE, chance.one_of(&[0, 50, 200, 4_096])));
    }
    if chance.one_in(4) {
        list.push((MAX_FRAME_SIZE, chance.one_of(&[16_384, 30_000])));
    }
    if server && chance.one_in(3) {
        list.push((MAX_CONCURRENT_STREAMS, chance.below(4)));
    }
    list
}

fn some_fields(chance: &mut Chance<'_>, head: Fields<'static>) -> Vec<(&'static str, &'static str)> {
    const MORE: Fields<'static> = &[
        ("+x-a", "1"),
        ("+x-b", "some longer value that enters the table"),
        ("!x-secret", "hush"),
        ("x-plain", ""),
        ("content-length", "100"),
        (
            "x-long",
            "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789\
             0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789",
        ),
    ];
    const WRONG: Fields<'static> = &[("X-Upper", "1"), ("connection", "close"), (":path", "/"), (":status", "200")];
    let mut fields = head.to_vec();
    for _ in 0..chance.below(4) {
        fields.push(chance.one_of(MORE));
    }
    if chance.one_in(25) {
        fields.push(chance.one_of(WRONG));
    }
    fields
}

impl Actor {
    fn greet(&mut self, chance: &mut Chance<'_>) {
        self.greeted = true;
        let settings = some_settings(chance, self.server);
        self.peer.settings(&settings);
    }

    /// Reads all that came. Whether anything did.
    fn listen(&mut self, model: &mut Model) -> bool {
        let all = self.peer.got();
        for got in &all {
            let (stream, opens) = match got {
                Got::Headers { stream, .. } => (*stream, true),
                Got::Data { stream, .. } => (*stream, false),
                Got::Reset { stream, .. } => {
                    self.streams.retain(|open| open != stream);
                    (*stream, false)
                }
                Got::GoAway { last, .. } if !self.server => {
                    self.last = self.last.min(*last);
                    continue;
                }
                Got::Closed => {
                    self.closed = true;
                    continue;
                }
                _ => continue,
            };
            let heard = self.heard.entry(stream).or_default();
            model.hears(self.number, self.server, heard, got);
            if self.server && opens && !self.said.contains_key(&stream) {
                self.streams.push(stream);
                self.said.insert(stream, model.message());
            }
        }
        !all.is_empty()
    }

    /// Says what is missing for its streams to end, and gives all credit that may be wanted. Whether it said anything.
    fn finish(&mut self, model: &mut Model) -> bool {
        let mut any = false;
        if self.server && self.next != 0 {
            // Marks that it has said this.
            self.next = 0;
            self.greeted = true;
            self.peer.settings(&[(MAX_CONCURRENT_STREAMS, 1_000), (INITIAL_WINDOW_SIZE, 1 << 20)]);
            any = true;
        }
        any |= self.peer.grant_all(1 << 20);
        for stream in std::mem::take(&mut self.streams) {
            let Some(&message) = self.said.get(&stream) else { continue };
            if model.has_ended(message) {
                continue;
            }
            any = true;
            if self.server && !model.has_final_head(message) {
                self.say_headers(model, stream, false, OK.to_vec());
            }
            if stream % 4 == 1 {
                self.say_headers(model, stream, true, DONE.to_vec());
            } else {
                self.say_data(model, stream, true, 10, None);
            }
        }
        any
    }

    /// Each stream that it said or heard something on has ended for it.
    fn check_ends(&self) {
        for stream in self.said.keys().filter(|stream| **stream <= self.last) {
            let heard = self.heard.get(stream);
            assert!(heard.is_some_and(|heard| heard.ended || heard.reset), "stream {stream} has no end: {heard:?}");
        }
    }

    fn ask(&mut self, chance: &mut Chance<'_>, model: &mut Model) {
        if !self.streams.is_empty() && !chance.one_in(3) {
            return self.write(chance, model);
        }
        let stream = self.next;
        self.next += if chance.one_in(20) { 4 } else { 2 };
        let end = chance.one_in(3);
        let head = if chance.one_in(4) { PLAIN } else { CALL };
        let fields = some_fields(chance, head);
        self.said.insert(stream, model.message());
        self.say_headers(model, stream, end, fields);
        if !end || chance.one_in(10) {
            self.streams.push(stream);
        }
    }

    fn serve(&mut self, chance: &mut Chance<'_>, model: &mut Model) {
        if !chance.one_in(3) {
            self.listen(model);
        }
        match chance.below(30) {
            0 => self.go_away(model, chance.below(4) * 2 + 1, chance.one_of(&[NO_ERROR, ENHANCE_YOUR_CALM])),
            1 => self.go_away(model, 0x7fff_ffff, NO_ERROR),
            2..12 if !self.streams.is_empty() => {
                let stream = chance.one_of(&self.streams);
                let head: Fields<'static> = if chance.one_in(8) { &[(":status", "103")] } else { OK };
                let end = chance.one_in(4);
                let fields = some_fields(chance, head);
                self.say_headers(model, stream, end, fields);
            }
            _ => self.write(chance, model),
        }
    }

    fn go_away(&mut self, model: &mut Model, last: u32, code: u32) {
        // Also of those that it will hear of later: they were on their way.
        (last + 1..last.saturating_add(400)).for_each(|stream| model.excuses(self.number, stream));
        self.last = self.last.min(last);
        self.peer.put(goaway(last, code));
    }

    /// Whatever either side may write on a stream that it has, or on none.
    fn write(&mut self, chance: &mut Chance<'_>, model: &mut Model) {
        let stream = if self.streams.is_empty() { 1 } else { chance.one_of(&self.streams) };
        match chance.below(40) {
            0..14 => {
                let length = chance.one_of(&[0, 1, 100, 100, 5_000, 16_000]);
                let end = chance.one_in(5);
                let padding = if chance.one_in(6) { Some(chance.byte()) } else { None };
                self.say_data(model, stream, end, length, padding);
                if end && !chance.one_in(10) {
                    self.streams.retain(|open| *open != stream);
                }
            }
            14..17 => {
                let (end, fields) = (!chance.one_in(10), some_fields(chance, DONE));
                self.say_headers(model, stream, end, fields);
                self.streams.retain(|open| *open != stream);
            }
            17..20 => {
                let code = chance.one_of(&[NO_ERROR, CANCEL, REFUSED_STREAM, INTERNAL_ERROR, 0xdead]);
                if code == REFUSED_STREAM {
                    model.excuses(self.number, stream);
                }
                self.peer.put(reset(stream, code));
                self.heard.entry(stream).or_default().reset = true;
                if !chance.one_in(8) {
                    self.streams.retain(|open| *open != stream);
                }
            }
            20..25 => self.peer.grant(stream, 1 + chance.below(40_000)),
            25..30 => self.peer.grant(0, 1 + chance.below(60_000)),
            30 => {
                let settings = some_settings(chance, false);
                self.peer.settings(&settings);
            }
            31 => self.peer.put(ping(0, b"whatever")),
            32 => self.peer.put(ping(ACK, b"sluice\0\0")),
            33 => self.peer.put(frame(PRIORITY, 0, stream, &[0, 0, 0, 0, 1])),
            34 => self.peer.put(frame(10 + chance.below(246) as u8, chance.byte(), stream, b"unknown")),
            35 => {
                self.go_wild(model);
                let kinds = [DATA, HEADERS, PRIORITY, RST_STREAM, PUSH_PROMISE, PING, GOAWAY, CONTINUATION];
                let (kind, flags, stream) = (chance.one_of(&kinds), chance.byte(), chance.below(12));
                let length = chance.below(20) as usize;
                self.peer.put(frame(kind, flags, stream, chance.take(length)));
            }
            36..39 => drop(self.listen(model)),
            _ => {}
        }
    }

    /// From here on nobody can tell what it means.
    fn go_wild(&mut self, model: &mut Model) {
        self.wild = true;
        self.peer.distrust();
        self.said.values().for_each(|message| model.forget(*message));
        (0..400).for_each(|stream| model.excuses(self.number, stream));
    }

    fn say_headers(&mut self, model: &mut Model, stream: u32, end: bool, fields: Vec<(&str, &str)>) {
        let mut fields = fields;
        let said = self.said.get(&stream).copied();
        let (name, tag) = Model::tag(said.unwrap_or(usize::MAX));
        if said.is_some_and(|message| !model.has_final_head(message)) {
            fields.push((name, &tag));
        }
        self.peer.put(headers(stream, end, &fields));
        let Some(message) = said else { return };
        if self.wild {
            model.forget(message);
        }
        model.says_headers(message, end, &fields);
    }

    fn say_data(&mut self, model: &mut Model, stream: u32, end: bool, length: usize, padding: Option<u8>) {
        let said = self.said.get(&stream).copied();
        let body = said.map_or_else(|| vec![2; length], |message| model.says_data(message, end, length));
        self.peer.put(match padding {
            Some(padding) => padded_data(stream, end, &body, padding),
            None => data(stream, end, &body),
        });
        if let Some(message) = said.filter(|_| self.wild) {
            model.forget(message);
        }
    }
}
