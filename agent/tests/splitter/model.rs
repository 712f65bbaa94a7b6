//! What must come out of a splitter for what went in, stream by stream: each side's words reach the other in order, whole
//! where they end, and no request is served twice.
//!
//! In: what scripted peers say and hear. Out: nothing, or a panic. A message has a number, in the field `x-said` of its
//! head and in the bytes of its body, by which it is known on the other side.

use std::collections::{HashMap, HashSet};

use crate::wire::Got;

pub type List = Vec<(String, String)>;

/// The field that tells a message's number.
const TAG: &str = "x-said";

/// What one side has said on one stream, as far as it was allowed to.
#[derive(Debug, Default)]
struct Said {
    heads: Vec<List>,
    body: usize,
    trailers: Option<List>,
    ended: bool,
    /// Nothing that it said after this counts: it broke the protocol on this stream.
    broken: bool,
    /// It cannot be told what it said.
    wild: bool,
}

impl Said {
    fn has_final_head(&self) -> bool {
        self.heads.last().is_some_and(|head| !is_interim(head))
    }
}

/// What a side has heard on one stream.
#[derive(Debug, Default)]
pub struct Heard {
    of: Option<usize>,
    heads: usize,
    answered: bool,
    body: usize,
    pub ended: bool,
    pub reset: bool,
}

#[derive(Default)]
pub struct Model {
    said: Vec<Said>,
    /// Who heard a request: connection and stream.
    hearers: HashMap<usize, HashSet<(usize, u32)>>,
    /// Who said that it did not process a request.
    excused: HashSet<(usize, u32)>,
}

fn is_interim(head: &List) -> bool {
    head.iter().any(|(name, value)| name == ":status" && value.starts_with('1'))
}

/// As [`Got::Headers`] has them: `+` is gone, `!` stays.
fn as_heard(fields: &[(&str, &str)]) -> List {
    let name = |name: &str| name.strip_prefix('+').unwrap_or(name).to_owned();
    fields.iter().map(|(key, value)| (name(key), (*value).to_owned())).collect()
}

impl Model {
    /// A new message. Its head is to carry [`Model::tag`].
    pub fn message(&mut self) -> usize {
        self.said.push(Said::default());
        self.said.len() - 1
    }

    pub fn tag(message: usize) -> (&'static str, String) {
        (TAG, message.to_string())
    }

    /// Its sender said what cannot be followed.
    pub fn forget(&mut self, message: usize) {
        self.said[message].wild = true;
    }

    pub fn says_headers(&mut self, message: usize, end: bool, fields: &[(&str, &str)]) {
        let said = &mut self.said[message];
        if said.ended || said.broken {
            return;
        }
        let fields = as_heard(fields);
        if said.has_final_head() {
            said.broken = !end;
            said.trailers = end.then_some(fields);
        } else if end && is_interim(&fields) {
            said.broken = true;
        } else {
            said.heads.push(fields);
        }
        said.ended = end;
    }

    /// The bytes to say.
    pub fn says_data(&mut self, message: usize, end: bool, length: usize) -> Vec<u8> {
        let said = &mut self.said[message];
        let body = (said.body..said.body + length).map(|at| byte(message, at)).collect();
        said.broken |= !said.has_final_head();
        if !said.ended && !said.broken {
            said.body += length;
            said.ended = end;
        }
        body
    }

    pub fn has_ended(&self, message: usize) -> bool {
        self.said[message].ended || self.said[message].broken
    }

    pub fn has_final_head(&self, message: usize) -> bool {
        self.said[message].has_final_head()
    }

    /// This connection did not process what was on the stream, and said so.
    pub fn excuses(&mut self, conn: usize, stream: u32) {
        self.excused.insert((conn, stream));
    }

    /// What came on one stream of connection number `conn`; `server`: to an endpoint.
    pub fn hears(&mut self, conn: usize, server: bool, heard: &mut Heard, got: &Got) {
        match got {
            Got::Headers { stream, end, fields } => {
                if heard.of.is_none() {
                    heard.of = fields.iter().find(|(name, _)| name == TAG).and_then(|(_, tag)| tag.parse().ok());
                }
                if let Some(message) = heard.of.filter(|_| server && heard.heads == 0) {
                    self.hearers.entry(message).or_default().insert((conn, *stream));
                }
                self.hears_headers(heard, *end, fields, server);
                heard.ended |= end;
            }
            Got::Data { end, body, .. } => {
                let from = heard.body;
                heard.body += body.len();
                heard.ended |= end;
                let Some(message) = heard.of else { return };
                let said = &self.said[message];
                if said.wild {
                    return;
                }
                let right = body.iter().enumerate().all(|(at, got)| *got == byte(message, from + at));
                assert!(right, "bytes of message {message} from {from} on are others: {said:?}, {heard:?}");
                assert!(heard.body <= said.body, "more than was said of message {message}: {said:?}, {heard:?}");
                if *end {
                    let whole = said.ended && said.trailers.is_none() && heard.body == said.body;
                    assert!(whole, "message {message} ends early: {said:?}, {heard:?}");
                }
            }
            Got::Reset { .. } => heard.reset = true,
            _ => {}
        }
    }

    fn hears_headers(&self, heard: &mut Heard, end: bool, fields: &List, server: bool) {
        let Some(said) = heard.of.map(|message| &self.said[message]).filter(|said| !said.wild) else { return };
        if heard.answered {
            assert_eq!(said.trailers.as_ref(), Some(fields), "trailers, {heard:?}");
            assert_eq!(heard.body, said.body, "trailers before the end of the body, {heard:?}");
            return;
        }
        if !server && !fields.iter().any(|(name, _)| name == TAG) {
            // The splitter's own answer; an interim response may have come before.
            assert!(end, "an answer of the splitter's own is one frame: {fields:?}");
            heard.of = None;
            return;
        }
        assert_eq!(said.heads.get(heard.heads), Some(fields), "head {}, {said:?}", heard.heads);
        heard.heads += 1;
        heard.answered = !is_interim(fields);
        if end {
            let whole = said.ended && said.body == 0 && said.trailers.is_none();
            assert!(whole, "a message that ends with its head: {said:?}");
        }
    }

    /// Whoever heard a request besides one said that it did not process it.
    pub fn check_served_once(&self) {
        for (message, hearers) in self.hearers.iter().filter(|(message, _)| !self.said[**message].wild) {
            let served: Vec<_> = hearers.difference(&self.excused).collect();
            assert!(served.len() <= 1, "request {message} went to {served:?}, and none of them refused it");
        }
    }
}

/// The byte at this place of a message's body.
fn byte(message: usize, at: usize) -> u8 {
    (message * 31 + at * 7 + at / 251) as u8
}
