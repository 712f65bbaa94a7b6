//! Many scripted peers in a world of chance: calls of all kinds, slightly wrong frames, stalls, lost connections, a table
//! that changes, time that passes. In: bytes, that choose all of it. Out: a digest of what the splitter wrote, or a panic:
//! each peer judges what it reads, what one side said the other must hear, and when all have gone nothing may be left.

use std::rc::Rc;
use std::time::Duration;

use sluice_agent::balance::Standing;
use sluice_agent::splitter::{Depth, Limits, PREFACE, TapEvent};

use crate::actor::Actor;
use crate::chance::Chance;
use crate::model::Model;
use crate::script::{Peer, Script};
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
        Actor::new(self.peers, peer, server)
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
