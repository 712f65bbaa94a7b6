//! Frames of any kind to a client's and an endpoint's connection: however the bytes are cut, the splitter writes the same,
//! in whole frames of allowed sizes.

use std::rc::Rc;
use std::time::Instant;

use sluice_agent::balance::ServiceLoad;
use sluice_agent::splitter::{ConnId, Effect, Limits, PREFACE, Splitter};

use crate::chance::Chance;
use crate::wire::{self, CALL, MORE};
use crate::world::{endpoint, service};

/// Bytes for one of the connections, in their order of being made.
type Op = (usize, Vec<u8>);

/// Most connections that are written to.
const CONNS: u8 = 4;

pub fn target(bytes: &[u8]) {
    let mut chance = Chance::new(bytes);
    let mut ops = vec![(0, [&PREFACE[..], &wire::settings(&[]), &wire::headers(1, MORE, CALL)].concat())];
    while !chance.is_over() {
        ops.push(op(&mut chance));
    }
    let whole = play(&ops, usize::MAX);
    assert_eq!(play(&ops, 1), whole, "cut into bytes");
    assert_eq!(play(&ops, 7), whole, "cut into sevens");
    for (c, written) in whole.iter().enumerate() {
        // Of a client's connection and of endpoints'.
        let frames = if c == 0 { Some(&written[..]) } else { written.strip_prefix(PREFACE) };
        whole_frames(frames.expect("the preface, once it is written to"));
    }
}

/// A frame whose parts the bytes choose, or plain bytes.
fn op(chance: &mut Chance<'_>) -> Op {
    let choice = chance.byte();
    let conn = usize::from(choice % CONNS);
    if choice >= 0xf0 {
        let length = chance.byte().into();
        return (conn, chance.take(length).to_vec());
    }
    let (kind, flags) = (chance.byte() % 12, chance.byte());
    let stream = chance.one_of(&[1, 0, 3, 5, 2, 0x7fff_ffff]);
    let length = chance.byte().into();
    let payload = chance.take(length);
    let op = match kind {
        // Payloads of these have a shape.
        wire::HEADERS if choice & 0x10 != 0 => wire::headers(stream, flags & 1 != 0, CALL),
        wire::DATA if choice & 0x10 != 0 => wire::data(stream, flags & 1 != 0, &vec![7; 60 * length]),
        _ => wire::frame(kind, flags, stream, payload),
    };
    (conn, op)
}

/// All that each connection wrote, and the end of those that ended.
fn play(ops: &[Op], chunk: usize) -> Vec<Vec<u8>> {
    let now = Instant::now();
    let mut rng = fastrand::Rng::with_seed(5);
    let load = ServiceLoad::new(service(&[endpoint(1), endpoint(2)]), &mut rng);
    let mut splitter = Splitter::new(Rc::new(Limits::default()), Rc::default(), rng);
    let mut conns = vec![splitter.handle_accepted(now, &load)];
    let mut written = vec![Vec::new()];
    for (to, bytes) in ops {
        let Some(&conn) = conns.get(*to) else { continue };
        for piece in bytes.chunks(chunk) {
            splitter.handle_bytes(now, conn, piece);
        }
        drain(&mut splitter, now, &mut conns, &mut written);
        #[cfg(debug_assertions)]
        splitter.check_invariants();
    }
    written
}

/// Takes effects and output until there is none. Endpoints accept at once and send SETTINGS.
fn drain(splitter: &mut Splitter, now: Instant, conns: &mut Vec<ConnId>, written: &mut Vec<Vec<u8>>) {
    loop {
        let mut any = false;
        while let Some(effect) = splitter.poll_effect() {
            any = true;
            if let Effect::Dial(conn, _) = effect {
                conns.push(conn);
                written.push(Vec::new());
                splitter.handle_connected(now, conn);
                splitter.handle_bytes(now, conn, &wire::settings(&[]));
            }
        }
        for (conn, written) in conns.iter().zip(&mut *written) {
            let output = splitter.output(*conn).to_vec();
            any |= !output.is_empty();
            splitter.consumed(now, *conn, output.len());
            written.extend(output);
        }
        if !any {
            return;
        }
    }
}

fn whole_frames(mut bytes: &[u8]) {
    let mut block = None;
    while let Some((head, rest)) = bytes.split_first_chunk::<9>() {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        assert!(length <= 16_384 && length <= rest.len(), "a frame of {length} bytes, {} are there", rest.len());
        let (kind, flags, stream) = (head[3], head[4], &head[5..]);
        assert!(kind <= wire::CONTINUATION && kind != wire::PUSH_PROMISE, "a frame of type {kind}");
        assert_eq!(block == Some(stream), kind == wire::CONTINUATION, "a frame of type {kind} in or out of a block");
        let goes_on = matches!(kind, wire::HEADERS | wire::CONTINUATION) && flags & wire::END_HEADERS == 0;
        block = goes_on.then_some(stream);
        bytes = &rest[length..];
    }
    assert!(bytes.is_empty() && block.is_none(), "half a frame or half a block");
}
