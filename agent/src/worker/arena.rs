//! A slab whose keys are never mistaken for a later entry's: a stale readiness event or ready-queue entry finds nothing.
//! Keys travel as mio tokens. It knows nothing of what it holds.

use mio::Token;
use slab::Slab;

/// Bits of a token that carry the generation; the two above tell which socket of the entry is meant.
const GENERATION_BITS: u32 = 30;
const GENERATION_MASK: u32 = (1 << GENERATION_BITS) - 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    index: u32,
    generation: u32,
}

impl Key {
    /// Dense, and reused by later entries.
    pub(super) fn index(self) -> usize {
        self.index as usize
    }
}

/// Which socket a token stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// A connection's only socket, or the client's of a relayed connection.
    Main,
    /// The endpoint's socket of a relayed connection.
    Endpoint,
    Listener,
}

pub(super) fn token(key: Key, role: Role) -> Token {
    let role = match role {
        Role::Main => 0,
        Role::Endpoint => 1,
        Role::Listener => 2,
    };
    Token((key.index as usize) << 32 | role << GENERATION_BITS | key.generation as usize)
}

/// None: a token that `token` did not make.
pub(super) fn target(token: Token) -> Option<(Key, Role)> {
    let low = token.0 as u32;
    let role = match low >> GENERATION_BITS {
        0 => Role::Main,
        1 => Role::Endpoint,
        2 => Role::Listener,
        _ => return None,
    };
    Some((Key { index: (token.0 >> 32) as u32, generation: low & GENERATION_MASK }, role))
}

#[derive(Debug)]
pub(super) struct Arena<T> {
    slots: Slab<(u32, T)>,
    next_generation: u32,
}

impl<T> Arena<T> {
    pub(super) fn new() -> Self {
        Self { slots: Slab::new(), next_generation: 0 }
    }

    pub(super) fn insert(&mut self, value: T) -> Key {
        let generation = self.next_generation;
        self.next_generation = (generation + 1) & GENERATION_MASK;
        Key { index: self.slots.insert((generation, value)) as u32, generation }
    }

    pub(super) fn get(&self, key: Key) -> Option<&T> {
        self.slots.get(key.index as usize).filter(|slot| slot.0 == key.generation).map(|slot| &slot.1)
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        self.slots.get_mut(key.index as usize).filter(|slot| slot.0 == key.generation).map(|slot| &mut slot.1)
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<T> {
        self.get(key)?;
        Some(self.slots.remove(key.index as usize).1)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.slots
            .iter()
            .map(|(index, (generation, value))| (Key { index: index as u32, generation: *generation }, value))
    }

    /// The keys of all entries for which `wanted` holds, to be worked on while the arena changes.
    pub(super) fn keys(&self, mut wanted: impl FnMut(&T) -> bool) -> Vec<Key> {
        self.iter().filter(|(_, value)| wanted(value)).map(|(key, _)| key).collect()
    }

    /// As `keys`, of those that `wanted` may change.
    pub(super) fn keys_mut(&mut self, mut wanted: impl FnMut(&mut T) -> bool) -> Vec<Key> {
        let all = self.slots.iter_mut();
        all.filter_map(|(index, (generation, value))| {
            wanted(value).then_some(Key { index: index as u32, generation: *generation })
        })
        .collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_does_not_find_the_next_entry_in_the_same_slot() {
        let mut arena = Arena::new();
        let first = arena.insert("first");
        assert_eq!(arena.remove(first), Some("first"));
        let second = arena.insert("second");
        assert_eq!(first.index, second.index);
        assert_eq!(arena.get(first), None);
        assert_eq!(arena.remove(first), None);
        assert_eq!(arena.get(second), Some(&"second"));
    }

    #[test]
    fn a_token_names_its_entry_and_its_socket() {
        let key = Key { index: u32::MAX, generation: GENERATION_MASK };
        for role in [Role::Main, Role::Endpoint, Role::Listener] {
            assert_eq!(target(token(key, role)), Some((key, role)));
        }
        assert_eq!(target(Token(usize::MAX)), None);
    }
}
