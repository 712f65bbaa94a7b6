//! One side of one call: takes the steps of its shape as far as it can, and keeps the record of what it hears. In: a
//! connection to send on, what came; out: the record, when the call is over. Knows no socket.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::shape::{Shape, Side, Step};
use crate::wire::{Field, Wire};

pub struct Player {
    pub shape: Arc<Shape>,
    side: Side,
    stream: u32,
    /// The next step to take.
    next: usize,
    pause_ends: Option<Instant>,
    /// It has sent its END_STREAM, or its reset.
    finished: bool,
    gave_up: bool,
    heard: Heard,
    /// What it had heard when it last stopped awaiting something: all of its record that chance has no part in, once it
    /// gives up itself.
    certain: Heard,
}

/// The other side's part, as it arrived.
#[derive(Clone, Default)]
struct Heard {
    /// Header sections and the body, in order; the body as one entry that grows.
    events: Vec<Value>,
    sections: usize,
    body: usize,
    /// How much of the body is what the other side has sent.
    intact: usize,
    over: bool,
    reset: bool,
}

impl Player {
    pub fn new(shape: Arc<Shape>, side: Side, stream: u32) -> Self {
        Self {
            shape,
            side,
            stream,
            next: 0,
            pause_ends: None,
            finished: false,
            gave_up: false,
            heard: Heard::default(),
            certain: Heard::default(),
        }
    }

    pub fn hear_headers(&mut self, fields: &[Field], end: bool) {
        let fields: Vec<_> = fields.iter().map(Field::to_string).collect();
        self.heard.events.push(if end {
            json!({ "headers": fields, "end": true })
        } else {
            json!({ "headers": fields })
        });
        self.heard.sections += 1;
        self.heard.over |= end;
    }

    pub fn hear_data(&mut self, bytes: &[u8], end: bool) {
        let (heard, expected) = (&mut self.heard, self.shape.body(self.side.other()));
        let same = expected.get(heard.body..heard.body + bytes.len()) == Some(bytes);
        if same && heard.intact == heard.body {
            heard.intact += bytes.len();
        }
        heard.body += bytes.len();
        if !bytes.is_empty() {
            heard.note_body();
        }
        if end {
            heard.events.push(json!("end of data"));
            heard.over = true;
        }
    }

    pub fn hear_reset(&mut self, code: u32) {
        self.heard.events.push(json!({ "reset": code }));
        self.heard.reset = true;
    }

    /// Takes every step that can be taken now.
    pub fn advance(&mut self, wire: &mut Wire, now: Instant) {
        let shape = Arc::clone(&self.shape);
        while !self.heard.reset
            && let Some(step) = shape.steps(self.side).get(self.next)
        {
            match step {
                Step::Headers { fields, end } => {
                    wire.send_headers(self.stream, fields, *end);
                    self.finished |= end;
                }
                Step::Message { end, .. } | Step::Raw { end, .. } => {
                    let from: usize = shape.steps(self.side)[..self.next].iter().map(Step::bytes).sum();
                    let body = shape.body(self.side)[from..from + step.bytes()].to_vec();
                    wire.send_data(self.stream, body, *end);
                    self.finished |= end;
                }
                Step::Reset(code) => {
                    wire.send_reset(self.stream, *code);
                    (self.finished, self.gave_up) = (true, true);
                }
                Step::AwaitSections(sections) if self.heard.sections >= *sections => self.certain = self.heard.clone(),
                Step::AwaitBytes(bytes) if self.heard.body >= *bytes => self.certain = self.heard.up_to(*bytes),
                Step::AwaitEnd if self.heard.over => self.certain = self.heard.clone(),
                Step::Pause { millis } => {
                    let ends = *self.pause_ends.get_or_insert(now + Duration::from_millis(*millis));
                    if now < ends {
                        return;
                    }
                    self.pause_ends = None;
                }
                Step::AwaitSections(_) | Step::AwaitBytes(_) | Step::AwaitEnd | Step::AwaitReset => return,
            }
            self.next += 1;
        }
    }

    /// When it wants to go on without having heard anything.
    pub fn wakes(&self) -> Option<Instant> {
        self.pause_ends
    }

    /// Whether both sides' parts are over.
    pub fn is_over(&self, wire: &Wire) -> bool {
        let all_sent = self.next == self.shape.steps(self.side).len() && self.finished && wire.is_sent(self.stream);
        self.heard.reset || all_sent && (self.gave_up || self.heard.over)
    }

    /// What it heard; with a reason if the call did not come to its end.
    pub fn record(&self, unfinished: Option<&str>) -> Value {
        let heard = if self.gave_up && !self.heard.reset { &self.certain } else { &self.heard };
        let mut events = heard.events.clone();
        events.extend(unfinished.map(|why| json!({ "unfinished": why })));
        let shape = &self.shape;
        json!({
            "shape": shape.number, "pattern": shape.pattern, "racing": shape.racing, "refused": shape.refused,
            "events": events,
        })
    }
}

impl Heard {
    fn note_body(&mut self) {
        let entry = json!({ "body": self.body, "intact": self.intact == self.body });
        match self.events.last_mut() {
            Some(last) if last.get("body").is_some() => *last = entry,
            _ => self.events.push(entry),
        }
    }

    /// As if no more of the body had come; nothing follows a body that is awaited but more of it, or the end.
    fn up_to(&self, bytes: usize) -> Self {
        let mut heard = self.clone();
        if bytes > 0
            && let Some(at) = heard.events.iter().position(|event| event.get("body").is_some())
        {
            heard.events.truncate(at);
            heard.events.push(json!({ "body": bytes, "intact": self.intact >= bytes }));
        }
        heard
    }
}
