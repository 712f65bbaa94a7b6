//! What is wrong with a file or an object, in words that name the place and the cure. Problems are kept while they
//! last, and logged once when they come and once when they go. Nothing here decides what serves meanwhile.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::object::{Key, Kind};

/// Something a person has to put right; sluice serves on meanwhile.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Problem {
    pub place: Place,
    /// The path of the field or annotation, such as `spec.ports[0].port`; empty where it is the whole.
    pub field: String,
    pub message: String,
    pub cure: String,
}

/// Where a problem is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// Line and column count from 1; 0 where the problem is of the whole file, or of the whole line.
    File { file: Arc<str>, line: u64, column: u64 },
    /// An object that may come from anywhere.
    Object(Key),
    /// All objects of a kind at the API server.
    Api(Kind),
}

impl fmt::Display for Place {
    /// `cart.yaml:12:9`, `Service shop/cart`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File { file, line: 0, .. } => f.write_str(file),
            Place::File { file, line, column: 0 } => write!(f, "{file}:{line}"),
            Place::File { file, line, column } => write!(f, "{file}:{line}:{column}"),
            Place::Object(key) => key.fmt(f),
            Place::Api(kind) => write!(f, "API server, {}", kind.plural()),
        }
    }
}

impl fmt::Display for Problem {
    /// One line, whatever people write into files: `cart.yaml:12:9: spec.ports[0].port: … (cure: …)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = if self.field.is_empty() { String::new() } else { format!("{}: ", self.field) };
        let text = format!("{}: {field}{} (cure: {})", self.place, self.message, self.cure);
        text.chars().try_for_each(|c| match c {
            _ if c.is_control() => write!(f, "{}", c.escape_default()),
            _ => write!(f, "{c}"),
        })
    }
}

/// The problems that last, for the log and for `status`.
#[derive(Debug, Default)]
pub struct Problems {
    lasting: Vec<Problem>,
}

impl Problems {
    /// Puts the problems found now in the place of those before, logs the difference, and tells whether there was one.
    pub fn replace(&mut self, mut now: Vec<Problem>) -> bool {
        now.sort();
        now.dedup();
        if now == self.lasting {
            return false;
        }
        for gone in self.lasting.iter().filter(|it| now.binary_search(it).is_err()) {
            tracing::info!(place = %gone.place, field = gone.field, message = gone.message, "problem is gone");
        }
        for new in now.iter().filter(|it| self.lasting.binary_search(it).is_err()) {
            tracing::warn!(place = %new.place, field = new.field, cure = new.cure, "{}", new.message);
        }
        self.lasting = now;
        true
    }

    /// Sorted by place.
    pub fn list(&self) -> &[Problem] {
        &self.lasting
    }
}

/// The problems of objects, each with its own.
#[derive(Debug, Default)]
pub(super) struct ByObject {
    lasting: BTreeMap<Key, Problems>,
}

impl ByObject {
    /// These are the object's problems now.
    pub(super) fn replace(&mut self, object: Key, now: Vec<Problem>) {
        if now.is_empty() && !self.lasting.contains_key(&object) {
            return;
        }
        let of_object = self.lasting.entry(object.clone()).or_default();
        of_object.replace(now);
        if of_object.list().is_empty() {
            self.lasting.remove(&object);
        }
    }

    /// Ordered by place.
    pub(super) fn list(&self) -> impl Iterator<Item = &Problem> {
        self.lasting.values().flat_map(Problems::list)
    }
}
