//! All connections of a splitter, in reused slots. A slot's generation tells its connection from those before.

use super::ConnId;
use super::conn::{Conn, State};

/// See the module.
#[derive(Default)]
pub(super) struct Conns {
    slots: Vec<(u32, Option<Box<Conn>>)>,
    free: Vec<u32>,
}

impl Conns {
    pub(super) fn insert(&mut self, make: impl FnOnce(ConnId) -> Conn) -> ConnId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push((0, None));
            self.slots.len() as u32 - 1
        });
        let (generation, slot) = &mut self.slots[index as usize];
        let id = ConnId { index, generation: *generation };
        *slot = Some(Box::new(make(id)));
        id
    }

    pub(super) fn remove(&mut self, id: ConnId) {
        let (generation, slot) = &mut self.slots[id.index as usize];
        if *generation == id.generation && slot.take().is_some() {
            *generation = generation.wrapping_add(1);
            self.free.push(id.index);
        }
    }

    /// Forgets a connection that is closed for its owner too. Not before: the owner would take the next one in the same
    /// slot for it.
    pub(super) fn remove_if_done(&mut self, id: ConnId) {
        let done = |c| self[c].state == State::Closing && self[c].close_taken && self[c].backlog() == 0;
        if self.slot(id).is_some_and(done) {
            self.remove(id);
        }
    }

    /// The slot of a live connection; `None`: it is gone.
    #[inline]
    pub(super) fn slot(&self, id: ConnId) -> Option<u32> {
        let (generation, slot) = self.slots.get(id.index as usize)?;
        (*generation == id.generation && slot.is_some()).then_some(id.index)
    }

    /// Nothing is in this slot.
    pub(super) fn is_gone(&self, slot: u32) -> bool {
        self.slots[slot as usize].1.is_none()
    }

    pub(super) fn live(&self) -> impl Iterator<Item = &Conn> {
        self.slots.iter().filter_map(|(_, slot)| slot.as_deref())
    }

    pub(super) fn ids(&self) -> Vec<ConnId> {
        self.live().map(|conn| conn.id).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

impl std::ops::Index<u32> for Conns {
    type Output = Conn;

    #[inline]
    fn index(&self, slot: u32) -> &Conn {
        self.slots[slot as usize].1.as_deref().expect("a connection that a live stream or list names")
    }
}

impl std::ops::IndexMut<u32> for Conns {
    #[inline]
    fn index_mut(&mut self, slot: u32) -> &mut Conn {
        self.slots[slot as usize].1.as_deref_mut().expect("a connection that a live stream or list names")
    }
}
