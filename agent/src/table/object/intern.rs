//! Equal values held once. In: a value; out: the one `Arc` for it. What nobody else holds any more is forgotten in time.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

/// Fewer values than this are not worth looking through.
const FEW: usize = 1024;

pub(super) struct Interner<T: ?Sized> {
    known: HashSet<Arc<T>>,
    /// At this size it is looked through for what nobody holds: twice what was held the last time.
    look_at: usize,
}

impl<T: ?Sized + Eq + Hash> Interner<T> {
    pub(super) fn new() -> Self {
        Self { known: HashSet::new(), look_at: FEW }
    }

    pub(super) fn get<V: Borrow<T> + Into<Arc<T>>>(&mut self, value: V) -> Arc<T> {
        if let Some(known) = self.known.get(value.borrow()) {
            return known.clone();
        }
        if self.known.len() >= self.look_at {
            self.known.retain(|it| Arc::strong_count(it) > 1);
            self.look_at = (2 * self.known.len()).max(FEW);
        }
        let new: Arc<T> = value.into();
        self.known.insert(new.clone());
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_are_held_once() {
        let mut names: Interner<str> = Interner::new();
        assert!(Arc::ptr_eq(&names.get("node-1"), &names.get("node-1")));
        assert_ne!(names.get("node-1"), names.get("node-2"));
    }

    #[test]
    fn what_nobody_holds_does_not_pile_up() {
        let mut names: Interner<str> = Interner::new();
        let held = names.get("held");
        for n in 0..20 * FEW {
            names.get(n.to_string().as_str());
        }
        assert!(names.known.len() <= FEW, "{}", names.known.len());
        assert!(Arc::ptr_eq(&held, &names.get("held")));
    }
}
