//! Plays calls over one TCP connection. In: a socket, and the next shape whenever there is room for a call; out: each
//! call's record. One thread reads, so that writing never waits for the peer to write first.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::play::Player;
use crate::shape::{NUMBER, Shape, Side};
use crate::wire::{Event, Field, Wire};

/// Far longer than any call takes; one that waits for ever shall be in the record as such.
const CALL_ENDS_WITHIN: Duration = Duration::from_secs(60);
const CANCEL: u32 = 8;

/// The calls on one connection.
pub struct Drive<'a> {
    side: Side,
    wire: Wire,
    socket: TcpStream,
    arrivals: Receiver<Vec<u8>>,
    calls: BTreeMap<u32, (Player, Instant)>,
    keep: &'a dyn Fn(Value),
}

impl<'a> Drive<'a> {
    pub fn new(socket: TcpStream, wire: Wire, side: Side, keep: &'a dyn Fn(Value)) -> Result<Self> {
        socket.set_nodelay(true)?;
        let (deliver, arrivals) = mpsc::channel();
        let mut reader = socket.try_clone()?;
        thread::spawn(move || {
            let mut buffer = vec![0; 256 * 1024];
            while let Ok(length @ 1..) = reader.read(&mut buffer) {
                if deliver.send(buffer[..length].to_vec()).is_err() {
                    break;
                }
            }
        });
        Ok(Self { side, wire, socket, arrivals, calls: BTreeMap::new(), keep })
    }

    /// As a client: all these calls, at most so many at once.
    pub fn make(&mut self, shapes: &mut dyn Iterator<Item = Shape>, at_once: usize) -> Result<()> {
        loop {
            while self.calls.len() < at_once
                && let Some(shape) = shapes.next()
            {
                let stream = self.wire.open();
                self.begin(stream, Arc::new(shape));
            }
            if self.calls.is_empty() {
                self.hang_up();
                return Ok(());
            }
            if !self.turn(&|_| None)? {
                let open = self.abandon("the connection was closed");
                bail!("the connection was closed with {open} calls open");
            }
        }
    }

    /// When all that was said has been heard: a socket that is closed with something unread may lose what it has sent.
    fn hang_up(&mut self) {
        self.flush();
        let _ = self.socket.shutdown(Shutdown::Write);
        while self.arrivals.recv_timeout(CALL_ENDS_WITHIN).is_ok() {}
    }

    /// As a server: every call that comes, until the client hangs up.
    pub fn serve(&mut self, shape: &dyn Fn(u32) -> Shape) -> Result<()> {
        while self.turn(&|fields| Some(shape(number(fields)?)))? {}
        self.abandon("the connection was closed");
        self.hang_up();
        Ok(())
    }

    /// The calls that are open end here; gives their number.
    pub fn abandon(&mut self, why: &str) -> usize {
        let calls = std::mem::take(&mut self.calls);
        calls.values().for_each(|(player, _)| (self.keep)(player.record(Some(why))));
        calls.len()
    }

    fn begin(&mut self, stream: u32, shape: Arc<Shape>) {
        self.calls.insert(stream, (Player::new(shape, self.side, stream), Instant::now() + CALL_ENDS_WITHIN));
    }

    /// All steps that can be taken, then waits for something to happen; false when the peer has hung up.
    fn turn(&mut self, shape: &dyn Fn(&[Field]) -> Option<Shape>) -> Result<bool> {
        let wakes = self.advance();
        if self.calls.is_empty() && self.side == Side::Client {
            return Ok(true);
        }
        let arrived = match wakes {
            None => self.arrivals.recv().ok(),
            Some(at) => match self.arrivals.recv_timeout(at.saturating_duration_since(Instant::now())) {
                Ok(bytes) => Some(bytes),
                Err(RecvTimeoutError::Timeout) => return Ok(true),
                Err(RecvTimeoutError::Disconnected) => None,
            },
        };
        let Some(bytes) = arrived else { return Ok(false) };
        for event in self.wire.receive(&bytes)? {
            self.hear(event, shape);
        }
        Ok(true)
    }

    fn hear(&mut self, event: Event, shape: &dyn Fn(&[Field]) -> Option<Shape>) {
        if let Event::Headers { stream, fields, .. } = &event
            && self.side == Side::Server
            && !self.calls.contains_key(stream)
            && let Some(shape) = shape(fields)
        {
            self.begin(*stream, Arc::new(shape));
        }
        let (Event::Headers { stream, .. } | Event::Data { stream, .. } | Event::Reset { stream, .. }) = &event;
        let Some((player, _)) = self.calls.get_mut(stream) else { return };
        match &event {
            Event::Headers { fields, end, .. } => player.hear_headers(fields, *end),
            Event::Data { body, end, .. } => player.hear_data(body, *end),
            Event::Reset { code, .. } => player.hear_reset(*code),
        }
        // At once: what comes later in the same bytes must find the call as far as this has brought it.
        player.advance(&mut self.wire, Instant::now());
        let stream = *stream;
        self.end_if_over(stream);
    }

    fn end_if_over(&mut self, stream: u32) {
        if let Some((player, _)) = self.calls.get(&stream)
            && player.is_over(&self.wire)
        {
            (self.keep)(player.record(None));
            self.calls.remove(&stream);
            self.wire.forget(stream);
        }
    }

    /// Gives the time of the next step that waits for the clock.
    fn advance(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let streams: Vec<_> = self.calls.keys().copied().collect();
        for stream in streams {
            let Some((player, deadline)) = self.calls.get_mut(&stream) else { continue };
            player.advance(&mut self.wire, now);
            if now >= *deadline {
                (self.keep)(player.record(Some("it does not come to its end")));
                self.calls.remove(&stream);
                self.wire.send_reset(stream, CANCEL);
                self.wire.forget(stream);
            } else {
                self.end_if_over(stream);
            }
        }
        self.flush();
        let times = self.calls.values().map(|(player, deadline)| player.wakes().unwrap_or(*deadline));
        times.min()
    }

    fn flush(&mut self) {
        let output = self.wire.take_output();
        // An error is no reason to end: what the peer has sent before it hung up is still to be heard.
        let _ = self.socket.write_all(&output);
    }
}

fn number(fields: &[Field]) -> Option<u32> {
    let field = fields.iter().find(|field| field.name == NUMBER.as_bytes())?;
    std::str::from_utf8(&field.value).ok()?.parse().ok()
}

/// Dials.
pub fn connect(address: std::net::SocketAddr) -> Result<TcpStream> {
    TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))
}
