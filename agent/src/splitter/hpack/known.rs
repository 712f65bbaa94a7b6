//! Header blocks that come again: with the same table before them, the same bytes are the same list, and the same list is the same
//! bytes. Calls of one method differ in little, and often in nothing, so that most blocks need no decoding and no encoding.
//!
//! In: blocks that left the table as it was, with their lists. Out: either one for the other. Whoever changes the table forgets all
//! of it. What several connections know is one list (`CommonLists`), so that the next hop knows it whichever it comes from. Bounded:
//! a few short blocks of short lists.

use std::hash::Hasher as _;
use std::rc::Rc;

use rustc_hash::FxHasher;

use super::list::HeaderList;

/// Blocks that are known at a time. A client's methods take turns, an answer is a head and trailers.
const MOST: usize = 4;
/// Bytes of the longest block: indices, and a path or a length that is spelled out.
const LONGEST: usize = 96;
/// The largest list, by `HeaderList::size`. A list keeps its fields alive when they have left the table that they came from.
const LARGEST: usize = 1024;
/// Lists that several connections may have.
const MOST_COMMON: usize = 16;

/// Lists with their blocks, for one connection and one direction.
#[derive(Default)]
pub(super) struct KnownBlocks {
    known: Vec<(Rc<HeaderList>, Box<[u8]>)>,
    /// Where the next one goes when there are `MOST`.
    next: usize,
    /// Hashes of blocks that came last and are not known: what differs from call to call comes once.
    seen: [u32; MOST],
    next_seen: usize,
}

impl KnownBlocks {
    /// The list that this block is.
    #[inline]
    pub(super) fn list(&self, block: &[u8]) -> Option<&Rc<HeaderList>> {
        self.known.iter().find(|(_, known)| **known == *block).map(|(list, _)| list)
    }

    /// The block that this very list is.
    #[inline]
    pub(super) fn block(&self, list: &Rc<HeaderList>) -> Option<&[u8]> {
        self.known.iter().find(|(known, _)| Rc::ptr_eq(known, list)).map(|(_, block)| &**block)
    }

    /// To be called for a block that was not known. True: it came the second time, and is to be remembered.
    pub(super) fn came(&mut self, list: &HeaderList, block: &[u8]) -> bool {
        if block.len() > LONGEST || list.size() > LARGEST || list.has_secrets() {
            return false;
        }
        let mut hasher = FxHasher::default();
        hasher.write(block);
        let hash = hasher.finish() as u32;
        if self.seen.contains(&hash) {
            return true;
        }
        self.seen[self.next_seen] = hash;
        self.next_seen = (self.next_seen + 1) % MOST;
        false
    }

    /// For a list that comes again.
    pub(super) fn remember(&mut self, list: &Rc<HeaderList>, block: &[u8]) {
        if block.len() > LONGEST {
            return;
        }
        list.set_known();
        let new = (Rc::clone(list), block.into());
        if self.known.len() < MOST {
            self.known.push(new);
        } else {
            self.known[self.next] = new;
            self.next = (self.next + 1) % MOST;
        }
    }

    /// The table has changed.
    #[inline]
    pub(super) fn forget(&mut self) {
        if !self.known.is_empty() {
            self.known.clear();
            self.next = 0;
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Rc<HeaderList>, &[u8])> {
        self.known.iter().map(|(list, block)| (list, &**block))
    }
}

/// Lists that connections of one pod know: who comes to know an equal one has the first.
#[derive(Default)]
pub struct CommonLists {
    lists: Vec<Rc<HeaderList>>,
    /// Where the next one goes when there are `MOST_COMMON`.
    next: usize,
}

impl CommonLists {
    /// The list, or the one that others have and that no encoder and no reader can tell from it.
    pub(super) fn share(&mut self, list: Rc<HeaderList>) -> Rc<HeaderList> {
        if let Some(other) = self.lists.iter().find(|other| other.is_same(&list)) {
            return Rc::clone(other);
        }
        if self.lists.len() < MOST_COMMON {
            self.lists.push(Rc::clone(&list));
        } else {
            self.lists[self.next] = Rc::clone(&list);
            self.next = (self.next + 1) % MOST_COMMON;
        }
        list
    }
}
