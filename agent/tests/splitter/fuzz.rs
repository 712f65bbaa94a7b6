//! Many scripted peers in a world of chance: calls of all kinds, slightly wrong frames, stalls, lost connections, a table
//! that changes, time that passes. Each peer judges what it reads; when all have hung up nothing may be left.
//! `SLUICE_SEED=N` plays one case again, `SLUICE_CASES=N` plays more of them.

use std::time::Duration;

use sluice_agent::balance::Standing;
use sluice_agent::splitter::{Limits, PREFACE};

use crate::script::{Peer, Script};
use crate::wire::*;
use crate::world::{Chunks, endpoint};

struct Case {
    s: Script,
    rng: fastrand::Rng,
    clients: Vec<Actor>,
    servers: Vec<Actor>,
    listed: u8,
}

struct Actor {
    peer: Peer,
    /// Streams it may write on, as far as it knows.
    streams: Vec<u32>,
    next: u32,
}

impl Case {
    fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let limits = Limits {
            stream_window: *rng.choice(&[65_535, 100_000]).unwrap(),
            connection_window: *rng.choice(&[100_000, 1 << 20]).unwrap(),
            pod_budget: *rng.choice(&[0, 10_000, 1 << 20]).unwrap(),
            output_high: *rng.choice(&[32_768, 65_536]).unwrap(),
            client_streams: *rng.choice(&[3, 100]).unwrap(),
            header_list: *rng.choice(&[500, 65_536]).unwrap(),
            connections_per_endpoint: rng.usize(1..4),
            attempts: rng.u32(1..5),
            replay_stream: *rng.choice(&[0, 500, 16_384]).unwrap(),
            replay_pod: *rng.choice(&[1_000, 1 << 20]).unwrap(),
            ..Limits::default()
        };
        let listed = *rng.choice(&[0, 1, 2, 2, 3, 3]).unwrap();
        let chunks = *rng.choice(&[Chunks::Whole, Chunks::Random, Chunks::Random]).unwrap();
        let mut s = Script::seeded(seed, chunks, limits, listed);
        s.world.dials_wait = rng.u8(0..4) == 0;
        Self { s, rng, clients: Vec::new(), servers: Vec::new(), listed }
    }

    /// The digest of all that the splitter wrote.
    fn play(mut self) -> u64 {
        for _ in 0..self.rng.usize(10..120) {
            self.act();
            for _ in 0..self.rng.usize(0..4) {
                self.s.world.step();
            }
            self.accept();
            let stats = self.s.world.stats();
            assert!(stats.open_streams <= stats.streams);
            let ejected = self.s.world.reach.ejected();
            assert!(ejected.iter().all(|ejected| self.s.endpoints.contains(&ejected.addr)), "{ejected:?}");
        }
        self.s.world.dials_wait = false;
        self.s.world.answer_dials();
        self.s.world.fill_black_holes();
        if self.rng.bool() {
            self.s.run();
        }
        self.clients.clear();
        self.s.run();
        assert_eq!(self.s.open_streams(), 0, "streams without a client: {:?}", self.s.world.splitter);
        self.accept();
        for server in &mut self.servers {
            server.peer.got();
        }
        self.servers.clear();
        self.s.run();
        self.accept();
        self.servers.clear();
        self.s.run();
        assert!(self.s.world.splitter.is_empty(), "connections without a peer: {:?}", self.s.world.splitter);
        self.counts_are_zero();
        self.s.world.digest
    }

    fn counts_are_zero(&mut self) {
        let service = std::rc::Rc::clone(&self.s.world.service);
        let picked: Vec<_> = self
            .s
            .endpoints
            .iter()
            .map(|_| service.pick(&mut self.rng, |_| Standing::Good).expect("an endpoint"))
            .collect();
        assert!(picked.iter().all(|picked| picked.endpoint().open() == 1), "streams counted for ever: {picked:?}");
    }

    fn connect(&mut self) {
        let mut peer = self.s.silent_client();
        peer.put(PREFACE);
        let settings = random_settings(&mut self.rng, false);
        peer.settings(&settings);
        self.clients.push(Actor { peer, streams: Vec::new(), next: 1 });
    }

    fn accept(&mut self) {
        while let Some((_, peer)) = self.s.accept_any() {
            let mut server = Actor { peer, streams: Vec::new(), next: 0 };
            if self.rng.u8(0..10) > 0 {
                let settings = random_settings(&mut self.rng, true);
                server.peer.settings(&settings);
            }
            self.servers.push(server);
        }
    }

    fn act(&mut self) {
        match self.rng.u8(0..100) {
            0..4 => self.connect(),
            4 => self.s.world.pass_time(Duration::from_millis(self.rng.u64(0..5_000))),
            5 if self.rng.u8(0..4) == 0 => self.s.world.pass_time(Duration::from_secs(self.rng.u64(0..400))),
            6 => {
                let first = self.rng.u8(1..3);
                self.listed = *self.rng.choice(&[0, 1, 2, 2, 3, 3]).unwrap();
                let endpoints: Vec<u8> = (first..first + self.listed).collect();
                self.s.list(&endpoints);
            }
            7 if self.rng.u8(0..3) == 0 => self.s.refuse(1),
            7 | 8 => drop(self.s.world.accepted.entry(endpoint(1)).or_default()),
            9 => self.s.world.answer_dials(),
            10 if self.rng.u8(0..3) == 0 => self.s.world.fill_black_holes(),
            10 if self.rng.bool() => drop(self.s.world.black_holes.insert(endpoint(self.rng.u8(1..4)))),
            11 if self.rng.bool() => {
                let (rng, peers) = (&mut self.rng, [&mut self.clients, &mut self.servers]);
                let peers = peers.into_iter().nth(rng.usize(0..2)).unwrap();
                if !peers.is_empty() {
                    peers.swap_remove(rng.usize(..peers.len()));
                }
            }
            12 if self.rng.u8(0..8) == 0 => {
                let until = self.s.world.now + Duration::from_millis(self.rng.u64(0..3_000));
                self.s.world.splitter.drain(self.s.world.now, None, until);
            }
            13..55 => {
                if let Some(client) = choose(&mut self.rng, &mut self.clients) {
                    client.ask(&mut self.rng);
                } else {
                    self.connect();
                }
            }
            _ => {
                if let Some(server) = choose(&mut self.rng, &mut self.servers) {
                    server.serve(&mut self.rng);
                }
            }
        }
    }
}

fn choose<'a>(rng: &mut fastrand::Rng, actors: &'a mut [Actor]) -> Option<&'a mut Actor> {
    if actors.is_empty() { None } else { Some(&mut actors[rng.usize(..actors.len())]) }
}

fn random_settings(rng: &mut fastrand::Rng, server: bool) -> Vec<(u16, u32)> {
    let mut list = Vec::new();
    if rng.bool() {
        list.push((INITIAL_WINDOW_SIZE, *rng.choice(&[0, 1, 100, 20_000, 70_000, 1 << 20]).unwrap()));
    }
    if rng.u8(0..4) == 0 {
        list.push((HEADER_TABLE_SIZE, *rng.choice(&[0, 50, 200, 4_096]).unwrap()));
    }
    if rng.u8(0..4) == 0 {
        list.push((MAX_FRAME_SIZE, *rng.choice(&[16_384, 30_000]).unwrap()));
    }
    if server && rng.u8(0..3) == 0 {
        list.push((MAX_CONCURRENT_STREAMS, rng.u32(0..4)));
    }
    list
}

fn random_fields(rng: &mut fastrand::Rng, head: Fields<'static>) -> Vec<(&'static str, &'static str)> {
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
    for _ in 0..rng.usize(0..4) {
        fields.push(*rng.choice(MORE).unwrap());
    }
    if rng.u8(0..25) == 0 {
        fields.push(*rng.choice(WRONG).unwrap());
    }
    fields
}

impl Actor {
    fn ask(&mut self, rng: &mut fastrand::Rng) {
        if self.streams.is_empty() || rng.u8(0..3) == 0 {
            let stream = self.next;
            self.next += if rng.u8(0..20) == 0 { 4 } else { 2 };
            let end = rng.u8(0..3) == 0;
            let head = if rng.u8(0..4) == 0 { PLAIN } else { CALL };
            self.peer.put(headers(stream, end, &random_fields(rng, head)));
            if !end || rng.u8(0..10) == 0 {
                self.streams.push(stream);
            }
            return;
        }
        self.write(rng);
    }

    fn serve(&mut self, rng: &mut fastrand::Rng) {
        if rng.u8(0..3) > 0 {
            for got in self.peer.got() {
                match got {
                    Got::Headers { stream, .. } if !self.streams.contains(&stream) => self.streams.push(stream),
                    Got::Reset { stream, .. } if rng.u8(0..4) > 0 => self.streams.retain(|open| *open != stream),
                    _ => {}
                }
            }
        }
        match rng.u8(0..30) {
            0 => self.peer.put(goaway(rng.u32(0..4) * 2 + 1, *rng.choice(&[NO_ERROR, ENHANCE_YOUR_CALM]).unwrap())),
            1 => self.peer.put(goaway(0x7fff_ffff, NO_ERROR)),
            2..12 => {
                let Some(&stream) = rng.choice(&self.streams) else { return };
                let head: Fields<'static> = if rng.u8(0..8) == 0 { &[(":status", "103")] } else { OK };
                self.peer.put(headers(stream, rng.u8(0..4) == 0, &random_fields(rng, head)));
            }
            _ => self.write(rng),
        }
    }

    /// Whatever either side may write on a stream that it has, or on none.
    fn write(&mut self, rng: &mut fastrand::Rng) {
        let stream = rng.choice(&self.streams).copied().unwrap_or(1);
        match rng.u8(0..40) {
            0..14 => {
                let length = *rng.choice(&[0, 1, 100, 100, 5_000, 16_384]).unwrap();
                let end = rng.u8(0..5) == 0;
                self.peer.put(match rng.u8(0..6) {
                    0 => padded_data(stream, end, &vec![1; length.min(16_000)], rng.u8(..)),
                    _ => data(stream, end, &vec![2; length]),
                });
                if end && rng.u8(0..10) > 0 {
                    self.streams.retain(|open| *open != stream);
                }
            }
            14..17 => {
                self.peer.put(headers(stream, rng.u8(0..10) > 0, &random_fields(rng, DONE)));
                self.streams.retain(|open| *open != stream);
            }
            17..20 => {
                let code = *rng.choice(&[NO_ERROR, CANCEL, REFUSED_STREAM, INTERNAL_ERROR, 0xdead]).unwrap();
                self.peer.put(reset(stream, code));
                if rng.u8(0..8) > 0 {
                    self.streams.retain(|open| *open != stream);
                }
            }
            20..25 => self.peer.grant(stream, rng.u32(1..40_000)),
            25..30 => self.peer.grant(0, rng.u32(1..100_000)),
            30 => {
                let settings = random_settings(rng, false);
                self.peer.settings(&settings);
            }
            31 => self.peer.put(ping(0, b"whatever")),
            32 => self.peer.put(ping(ACK, b"sluice\0\0")),
            33 => self.peer.put(frame(PRIORITY, 0, stream, &[0, 0, 0, 0, 1])),
            34 => self.peer.put(frame(rng.u8(10..), rng.u8(..), stream, b"unknown")),
            35 if rng.bool() => {
                self.peer.distrust();
                let payload: Vec<u8> = (0..rng.usize(0..20)).map(|_| rng.u8(..)).collect();
                let kinds = [DATA, HEADERS, PRIORITY, RST_STREAM, PUSH_PROMISE, PING, GOAWAY, CONTINUATION];
                self.peer.put(frame(*rng.choice(&kinds).unwrap(), rng.u8(..), rng.u32(0..12), &payload));
            }
            36..39 => drop(self.peer.got()),
            _ => {}
        }
    }
}

fn seeds(range: std::ops::Range<u64>) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match (number("SLUICE_SEED"), number("SLUICE_CASES")) {
        (Some(seed), _) => seed..seed + 1,
        (None, Some(cases)) => 0..cases.max(range.end),
        (None, None) => range,
    }
}

/// Prints the seed of a case that panics.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("play it again with SLUICE_SEED={}", self.0);
        }
    }
}

fn play(seed: u64) -> u64 {
    let seed = Seed(seed);
    Case::new(seed.0).play()
}

#[test]
fn whatever_the_peers_do_nothing_is_left_when_they_have_gone() {
    for seed in seeds(0..3_000) {
        play(seed);
    }
}

#[test]
fn the_same_seed_and_inputs_give_the_same_outputs_byte_for_byte() {
    for seed in seeds(0..50) {
        assert_eq!(play(seed), play(seed), "seed {seed}");
    }
}
