//! A call's shape: what each side does, step by step. Both sides know it, so that each does its part and can tell whether
//! what arrives is what the other has sent. Does nothing itself.

use std::fmt;
use std::sync::OnceLock;

use crate::wire::Field;

/// Names the shape to the server.
pub const NUMBER: &str = "x-shape";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

/// One call.
pub struct Shape {
    pub number: u32,
    /// The kind of call, in words.
    pub pattern: &'static str,
    pub client: Vec<Step>,
    pub server: Vec<Step>,
    /// A side gives the call up without knowing what the other has got of what it has sent: a reset may overtake that.
    pub racing: bool,
    /// The server refuses the call as one that it has not looked at (REFUSED_STREAM), and so it may be sent again.
    pub refused: bool,
    bodies: [OnceLock<Vec<u8>>; 2],
}

/// What a side does next. What it awaits comes from the other side; a reset ends the waiting, and the call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Headers {
        fields: Vec<Field>,
        end: bool,
    },
    /// A gRPC message: five bytes and a body of this size.
    Message {
        size: usize,
        compressed: bool,
        end: bool,
    },
    /// Bytes that are no gRPC message.
    Raw {
        size: usize,
        end: bool,
    },
    AwaitSections(usize),
    /// Bytes of the body, from its beginning.
    AwaitBytes(usize),
    AwaitEnd,
    AwaitReset,
    Pause {
        millis: u64,
    },
    Reset(u32),
}

impl Side {
    pub fn other(self) -> Self {
        match self {
            Side::Client => Side::Server,
            Side::Server => Side::Client,
        }
    }
}

impl Shape {
    pub fn new(number: u32, pattern: &'static str, client: Vec<Step>, server: Vec<Step>) -> Self {
        Self { number, pattern, client, server, racing: false, refused: false, bodies: Default::default() }
    }

    pub fn steps(&self, side: Side) -> &[Step] {
        match side {
            Side::Client => &self.client,
            Side::Server => &self.server,
        }
    }

    /// All that a side sends as DATA.
    pub fn body(&self, side: Side) -> &[u8] {
        self.bodies[side as usize].get_or_init(|| {
            let mut body = Vec::new();
            for step in self.steps(side) {
                if let Step::Message { size, compressed, .. } = step {
                    body.push(u8::from(*compressed));
                    body.extend((*size as u32).to_be_bytes());
                }
                if let Step::Message { size, .. } | Step::Raw { size, .. } = step {
                    let salt = self.number.wrapping_mul(2).wrapping_add(side as u32);
                    let from = body.len() as u32;
                    body.extend((from..from + *size as u32).map(|at| filler(at.wrapping_add(salt))));
                }
            }
            body
        })
    }
}

/// No period that a frame or a window has.
fn filler(at: u32) -> u8 {
    (at.wrapping_mul(0x9e37_79b1) >> 24) as u8
}

impl Step {
    /// How many bytes of DATA this sends.
    pub fn bytes(&self) -> usize {
        match self {
            Step::Message { size, .. } => 5 + size,
            Step::Raw { size, .. } => *size,
            _ => 0,
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let racing = if self.racing { ", racing" } else { "" };
        writeln!(f, "shape {}: {}{racing}", self.number, self.pattern)?;
        for (side, steps) in [("client", &self.client), ("server", &self.server)] {
            for step in steps {
                match step {
                    Step::Headers { fields, end } => {
                        let fields: Vec<_> = fields.iter().map(Field::to_string).collect();
                        writeln!(f, "  {side}: Headers end={end} {fields:?}")?;
                    }
                    step => writeln!(f, "  {side}: {step:?}")?,
                }
            }
        }
        Ok(())
    }
}

impl fmt::Display for Field {
    /// As `name: value`, with an exclamation mark before a secret one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secret = if self.secret { "!" } else { "" };
        write!(f, "{secret}{}: {}", self.name.escape_ascii(), self.value.escape_ascii())
    }
}
