//! A peer of the splitter that chance leads, with what it knows of its streams. In: chance, and the model of what all peers said
//! and must hear; out: frames, some of them slightly wrong. It judges what it reads.

use std::collections::HashMap;

use crate::chance::Chance;
use crate::model::{Heard, Model};
use crate::script::Peer;
use crate::wire::*;

/// A peer with what it knows of its streams.
pub struct Actor {
    number: usize,
    server: bool,
    pub peer: Peer,
    /// Streams it may write on, as far as it knows.
    streams: Vec<u32>,
    next: u32,
    greeted: bool,
    pub closed: bool,
    /// It wrote what the model cannot follow.
    pub wild: bool,
    /// The message it says on a stream.
    said: HashMap<u32, usize>,
    heard: HashMap<u32, Heard>,
    /// Streams above this one are off: one of the two said GOAWAY.
    last: u32,
}

impl Actor {
    pub fn new(number: usize, peer: Peer, server: bool) -> Self {
        Self {
            number,
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

    pub fn greet(&mut self, chance: &mut Chance<'_>) {
        self.greeted = true;
        let settings = some_settings(chance, self.server);
        self.peer.settings(&settings);
    }

    /// Reads all that came. Whether anything did.
    pub fn listen(&mut self, model: &mut Model) -> bool {
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
    pub fn finish(&mut self, model: &mut Model) -> bool {
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
    pub fn check_ends(&self) {
        for stream in self.said.keys().filter(|stream| **stream <= self.last) {
            let heard = self.heard.get(stream);
            assert!(heard.is_some_and(|heard| heard.ended || heard.reset), "stream {stream} has no end: {heard:?}");
        }
    }

    pub fn ask(&mut self, chance: &mut Chance<'_>, model: &mut Model) {
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

    pub fn serve(&mut self, chance: &mut Chance<'_>, model: &mut Model) {
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
