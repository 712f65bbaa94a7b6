//! The calls of one Service on one worker, counted by method: how many there were, how they ended, how long they took.
//! In: a call's path when it begins, how it ended when it is over. Out: a [`CallsReport`] when somebody asks. Pure.
//!
//! Paths are the clients' words: a method gets counters of its own when an endpoint has shown that it knows it, and only so
//! many do. All others are counted together, so that nobody can make the metrics grow.

mod ended;
mod histogram;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use rustc_hash::FxHashMap;

pub use ended::{CODES, Ended, HTTP_CLASSES, code_name};
pub use histogram::{BOUNDS, Histogram};

/// Methods of a Service that are counted apart from each other; Services have tens.
pub const METHODS: usize = 100;
/// Bytes of the longest path that is a method's; longer ones are nobody's real methods.
const LONGEST: usize = 160;

/// The calls of a Service.
pub struct Calls {
    methods: RefCell<FxHashMap<Box<[u8]>, Rc<Method>>>,
    /// gRPC calls of methods that are not known, or too many.
    other: Rc<Method>,
    /// Requests that are not gRPC.
    plain: Rc<Method>,
    open: Rc<Cell<u32>>,
    request_bytes: Cell<u64>,
    response_bytes: Cell<u64>,
}

/// One method's counters.
struct Method {
    name: MethodName,
    counts: RefCell<Counts>,
}

/// How calls ended and how long they took.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// By grpc-status.
    pub grpc: [u64; CODES.len()],
    /// Of what is not gRPC: by the first digit of the HTTP status, 0: ended without one.
    pub http: [u64; HTTP_CLASSES.len()],
    /// Those that ended as they do where something is broken or too slow: [`Ended::is_failure`].
    pub failed: u64,
    /// From the request's head to the end of the answer.
    pub duration: Histogram,
}

/// What a method is called.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MethodName {
    /// `/package.Service/Method`, without the first slash.
    Grpc(Arc<str>),
    /// gRPC methods that no endpoint is known to have, or beyond [`METHODS`].
    Other,
    /// Not gRPC.
    Http,
}

impl MethodName {
    /// The gRPC service's and the method's name.
    pub fn parts(&self) -> (&str, &str) {
        match self {
            MethodName::Grpc(path) => path.rsplit_once('/').unwrap_or(("", path)),
            MethodName::Other => ("other", "other"),
            MethodName::Http => ("http", "http"),
        }
    }
}

impl fmt::Display for MethodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MethodName::Grpc(path) => f.write_str(path),
            MethodName::Other => f.write_str("(other methods)"),
            MethodName::Http => f.write_str("(not gRPC)"),
        }
    }
}

/// One call under way; counts as open until it is dropped.
pub struct Call {
    came: Instant,
    method: Named,
    ended: Option<Ended>,
    _open: Open,
}

struct Open(Rc<Cell<u32>>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

enum Named {
    Known(Rc<Method>),
    /// Becomes known if an endpoint knows it.
    New(Box<[u8]>),
}

impl Call {
    /// How it ended, unless that was said before: the first word is what the client hears.
    pub fn ends(&mut self, ended: Ended) {
        self.ended.get_or_insert(ended);
    }

    /// How it ended; none: not said yet.
    pub fn ended(&self) -> Option<Ended> {
        self.ended
    }

    /// When its head came.
    pub fn came(&self) -> Instant {
        self.came
    }
}

/// What is said of a Service's calls.
#[derive(Clone, Debug, Default)]
pub struct CallsReport {
    /// Under way now.
    pub open: u64,
    /// Payload of requests and responses of the calls that have ended, bytes.
    pub request_bytes: u64,
    pub response_bytes: u64,
    /// Those that had calls, in no order.
    pub methods: Vec<(MethodName, Counts)>,
}

impl Default for Calls {
    fn default() -> Self {
        Self {
            methods: RefCell::default(),
            other: Method::new(MethodName::Other),
            plain: Method::new(MethodName::Http),
            open: Rc::default(),
            request_bytes: Cell::new(0),
            response_bytes: Cell::new(0),
        }
    }
}

impl Calls {
    /// A request's head came. `path`: of a gRPC call; none for everything else.
    pub fn begin(&self, now: Instant, path: Option<&[u8]>) -> Call {
        self.open.set(self.open.get() + 1);
        let method = match path {
            None => Named::Known(Rc::clone(&self.plain)),
            Some(path) => match self.methods.borrow().get(path) {
                Some(known) => Named::Known(Rc::clone(known)),
                None if is_method(path) => Named::New(path.into()),
                None => Named::Known(Rc::clone(&self.other)),
            },
        };
        Call { came: now, method, ended: None, _open: Open(Rc::clone(&self.open)) }
    }

    /// The call is over, for the client too. Payload in bytes.
    pub fn end(&self, now: Instant, call: Call, request_bytes: u64, response_bytes: u64) {
        self.request_bytes.set(self.request_bytes.get() + request_bytes);
        self.response_bytes.set(self.response_bytes.get() + response_bytes);
        let is_plain = matches!(&call.method, Named::Known(method) if method.name == MethodName::Http);
        let ended = call.ended.unwrap_or(if is_plain { Ended::Http(0) } else { Ended::CANCELLED });
        let method = match call.method {
            Named::Known(method) => method,
            Named::New(path) => self.learn(path, ended),
        };
        let counts = &mut *method.counts.borrow_mut();
        match ended {
            Ended::Grpc { code, .. } => counts.grpc[usize::from(code).min(CODES.len() - 1)] += 1,
            Ended::Http(status) => counts.http[usize::from(status / 100).min(HTTP_CLASSES.len() - 1)] += 1,
        }
        counts.failed += u64::from(ended.is_failure());
        counts.duration.record(now.saturating_duration_since(call.came));
    }

    fn learn(&self, path: Box<[u8]>, ended: Ended) -> Rc<Method> {
        let mut methods = self.methods.borrow_mut();
        if let Some(known) = methods.get(&path) {
            return Rc::clone(known);
        }
        if methods.len() >= METHODS || !ended.shows_a_method() {
            return Rc::clone(&self.other);
        }
        let name = String::from_utf8_lossy(&path[1..]).into();
        let method = Method::new(MethodName::Grpc(name));
        methods.insert(path, Rc::clone(&method));
        method
    }

    pub fn report(&self) -> CallsReport {
        let methods = self.methods.borrow();
        let all = methods.values().chain([&self.other, &self.plain]);
        let methods = all.map(|method| (method.name.clone(), method.counts.borrow().clone()));
        CallsReport {
            open: self.open.get().into(),
            request_bytes: self.request_bytes.get(),
            response_bytes: self.response_bytes.get(),
            methods: methods.filter(|(_, counts)| counts.total() > 0).collect(),
        }
    }
}

impl Method {
    fn new(name: MethodName) -> Rc<Self> {
        Rc::new(Self { name, counts: RefCell::default() })
    }
}

impl Counts {
    /// Calls that have ended.
    pub fn total(&self) -> u64 {
        self.grpc.iter().chain(&self.http).sum()
    }

    fn add(&mut self, other: &Counts) {
        self.grpc.iter_mut().zip(&other.grpc).for_each(|(sum, count)| *sum += count);
        self.http.iter_mut().zip(&other.http).for_each(|(sum, count)| *sum += count);
        self.failed += other.failed;
        self.duration.add(&other.duration);
    }
}

impl CallsReport {
    /// As if both were one worker's; methods in the order of their names.
    pub fn add(&mut self, other: CallsReport) {
        self.open += other.open;
        self.request_bytes += other.request_bytes;
        self.response_bytes += other.response_bytes;
        for (name, counts) in other.methods {
            match self.methods.binary_search_by(|(known, _)| known.cmp(&name)) {
                Ok(at) => self.methods[at].1.add(&counts),
                Err(at) => self.methods.insert(at, (name, counts)),
            }
        }
    }
}

/// Whether a path has the form of a gRPC method's (gRPC: PROTOCOL-HTTP2.md, "Path"), in letters that anybody would use.
fn is_method(path: &[u8]) -> bool {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-/".contains(byte);
    let Some((b'/', name)) = path.split_first() else { return false };
    path.len() <= LONGEST && name.iter().all(is_plain) && name.contains(&b'/') && !name.ends_with(b"/")
}

#[cfg(test)]
mod tests;
