//! Field lists in, header blocks out: one connection, one direction (RFC 7541 §3 and §6).
//!
//! What came as an index leaves as an index; what its sender stored enters this table too, so that it is sent in full once a
//! connection; literals stay literals and secrets stay secrets (§7.1.3). Strings leave plain: they are sent once, and the next hop
//! is near. A block has to enter the connection's output in the call that encodes it, or the peer's table falls out of step.

use std::rc::Rc;

use super::known::KnownBlocks;
use super::list::{Field, HeaderList, Literal};
use super::table::{Entry, FieldHash, Table};
use super::{ENTRY_OVERHEAD, Indexing, integer, static_table};

/// The table size of RFC 7541 with which a connection starts, and the most we use of what a peer offers: more would cost memory for
/// each connection and gRPC calls do not need it.
const MAX_TABLE_SIZE: usize = 4096;
/// The most entries such a table can have.
const MAX_ENTRIES: usize = MAX_TABLE_SIZE / ENTRY_OVERHEAD;

/// The sending end of one connection's header blocks.
pub struct Encoder {
    table: Table,
    known: KnownBlocks,
    /// The block in hand has changed the table.
    changed: bool,
    /// Where the next entry goes in the chains: its number of insertion modulo `MAX_ENTRIES`, at which no two live entries are equal.
    next_slot: u8,
    /// Every entry, by its hash.
    by_field: Chains,
    /// The newest entry of each name that is not in the static table, by the name's hash.
    by_name: Chains,
    /// Table sizes to announce at the start of the next block: the smallest since the last block, and the last.
    size_updates: Option<(usize, usize)>,
    hash_seed: u64,
}

impl Encoder {
    /// A fresh connection's encoder. `hash_seed` is one for all decoders and encoders between which lists are passed.
    pub fn new(hash_seed: u64) -> Self {
        Encoder {
            table: Table::new(MAX_TABLE_SIZE),
            known: KnownBlocks::default(),
            changed: false,
            next_slot: 0,
            by_field: Chains::new(),
            by_name: Chains::new(),
            size_updates: None,
            hash_seed,
        }
    }

    /// Takes the peer's SETTINGS_HEADER_TABLE_SIZE; to be called when its SETTINGS are applied, once for each value in them.
    pub fn set_max_table_size(&mut self, peer: usize) {
        let size = peer.min(MAX_TABLE_SIZE);
        if size == self.table.max_size() {
            return;
        }
        let smallest = self.size_updates.map_or(size, |(smallest, _)| smallest.min(size));
        self.size_updates = Some((smallest, size));
        self.known.forget();
        self.table.set_max_size(size);
        self.make_room(0);
    }

    /// As [`Encoder::encode`], of a list that may come again.
    pub fn encode_shared(&mut self, list: &Rc<HeaderList>, out: &mut Vec<u8>) {
        if self.size_updates.is_none()
            && let Some(block) = self.known.block(list)
        {
            return out.extend_from_slice(block);
        }
        let start = out.len();
        self.changed = self.size_updates.is_some();
        self.encode(list, out);
        if !self.changed && list.is_known() {
            self.known.remember(list, &out[start..]);
        }
    }

    /// Appends `list` as one header block to `out`.
    pub fn encode(&mut self, list: &HeaderList, out: &mut Vec<u8>) {
        if let Some((smallest, last)) = self.size_updates.take() {
            if smallest < last {
                integer::encode(0x20, 5, smallest, out);
            }
            integer::encode(0x20, 5, last, out);
        }
        for field in &list.fields {
            match field {
                Field::Static(row) => out.push(0x80 | *row as u8),
                Field::Stored(entry) => self.interned(entry, false, out),
                Field::Repeated(entry) => self.interned(entry, true, out),
                Field::Literal(at) => self.literal(&list.literals[*at], &list.bytes, out),
            }
        }
    }

    fn interned(&mut self, entry: &Rc<Entry>, repeated: bool, out: &mut Vec<u8>) {
        let hash = entry.hash();
        if let Some(index) = self.field_index(hash, |other| Rc::ptr_eq(entry, other) || entry.is_same_field(other)) {
            integer::encode(0x80, 7, index, out);
            return;
        }
        let name_info = entry.name_info();
        let stored = entry.size() <= self.table.max_size() && (repeated || !name_info.kind.is_fleeting());
        let indexing = if stored { Indexing::WithIndexing } else { Indexing::WithoutIndexing };
        self.write_literal(indexing, name_info.index, hash, entry.name(), entry.value(), out);
        if stored {
            self.insert(Rc::clone(entry));
        }
    }

    fn literal(&mut self, literal: &Literal, bytes: &[u8], out: &mut Vec<u8>) {
        let (name, value) = (literal.name(bytes), literal.value(bytes));
        let hash = FieldHash::new(self.hash_seed, name, value);
        let mut indexing = literal.indexing;
        if indexing == Indexing::WithIndexing {
            if let Some(index) = self.field_index(hash, |other| other.name() == name && other.value() == value) {
                integer::encode(0x80, 7, index, out);
                return;
            }
            if name.len() + value.len() + ENTRY_OVERHEAD > self.table.max_size() {
                indexing = Indexing::WithoutIndexing;
            }
        }
        self.write_literal(indexing, literal.name_info.index, hash, name, value, out);
        if indexing == Indexing::WithIndexing {
            self.insert(Entry::new(self.hash_seed, name, value, literal.name_info));
        }
    }

    /// Writes a literal, its name as an index where a table has it.
    fn write_literal(
        &self,
        indexing: Indexing,
        row: u8,
        hash: FieldHash,
        name: &[u8],
        value: &[u8],
        out: &mut Vec<u8>,
    ) {
        let (pattern, prefix_bits) = match indexing {
            Indexing::WithIndexing => (0x40, 6),
            Indexing::WithoutIndexing => (0x00, 4),
            Indexing::NeverIndexed => (0x10, 4),
        };
        let name_index = if row != 0 { Some(usize::from(row)) } else { self.name_index(hash, name) };
        integer::encode(pattern, prefix_bits, name_index.unwrap_or(0), out);
        if name_index.is_none() {
            write_string(name, out);
        }
        write_string(value, out);
    }

    /// The index of the entry with this hash that is the `same`.
    #[inline]
    fn field_index(&self, hash: FieldHash, same: impl Fn(&Rc<Entry>) -> bool) -> Option<usize> {
        self.by_field.slots(hash.field).find(|&slot| same(self.at(slot))).map(|slot| self.index_of(slot))
    }

    fn name_index(&self, hash: FieldHash, name: &[u8]) -> Option<usize> {
        self.by_name.slots(hash.name).find(|&slot| self.at(slot).name() == name).map(|slot| self.index_of(slot))
    }

    /// How many entries are newer than the one at `slot`.
    #[inline]
    fn age_of(&self, slot: u8) -> usize {
        usize::from(self.next_slot.wrapping_sub(slot + 1)) % MAX_ENTRIES
    }

    #[inline]
    fn index_of(&self, slot: u8) -> usize {
        static_table::LEN + 1 + self.age_of(slot)
    }

    #[inline]
    fn at(&self, slot: u8) -> &Rc<Entry> {
        self.table.get(self.age_of(slot)).expect("chains lead to live entries only")
    }

    fn insert(&mut self, entry: Rc<Entry>) {
        self.changed = true;
        self.known.forget();
        self.make_room(entry.size());
        let slot = self.next_slot;
        if entry.name_info().index == 0 {
            let older = self.by_name.slots(entry.hash().name).find(|&slot| self.at(slot).name() == entry.name());
            if let Some(older) = older {
                self.by_name.unlink(entry.hash().name, older);
            }
            self.by_name.link(entry.hash().name, slot);
        }
        self.by_field.link(entry.hash().field, slot);
        self.table.insert(entry);
        self.next_slot = (slot + 1) % MAX_ENTRIES as u8;
    }

    /// Evicts until an entry of `size` fits.
    fn make_room(&mut self, size: usize) {
        while !self.table.has_room(size) {
            let slot = (usize::from(self.next_slot) + MAX_ENTRIES - self.table.len()) % MAX_ENTRIES;
            let Some(oldest) = self.table.evict_oldest() else { return };
            self.by_field.unlink(oldest.hash().field, slot as u8);
            self.by_name.unlink(oldest.hash().name, slot as u8);
        }
    }

    /// Panics unless the table's books are right and each entry is found under its field and its name.
    pub fn check(&self) {
        assert!(self.table.max_size() <= MAX_TABLE_SIZE);
        self.table.check(self.hash_seed);
        let mut names = Vec::new();
        for (age, entry) in (0..self.table.len()).filter_map(|age| self.table.get(age).map(|entry| (age, entry))) {
            let index = static_table::LEN + 1 + age;
            assert_eq!(self.field_index(entry.hash(), |other| Rc::ptr_eq(entry, other)), Some(index));
            if entry.name_info().index == 0 && !names.contains(&entry.name()) {
                assert_eq!(self.name_index(entry.hash(), entry.name()), Some(index));
                names.push(entry.name());
            }
        }
        assert_eq!(self.by_field.len(), self.table.len(), "fields in chains");
        assert_eq!(self.by_name.len(), names.len(), "names in chains");
        for (list, block) in self.known.iter() {
            // What is spelled out is compared by those who encode it a second time: the tests.
            let mut indices = Vec::new();
            for field in &list.fields {
                match field {
                    Field::Static(row) => indices.push(0x80 | *row as u8),
                    Field::Stored(entry) | Field::Repeated(entry) => {
                        let Some(index) = self.field_index(entry.hash(), |other| entry.is_same_field(other)) else {
                            break;
                        };
                        integer::encode(0x80, 7, index, &mut indices);
                    }
                    Field::Literal(_) => break,
                }
            }
            assert!(block.starts_with(&indices), "{block:02x?} is known for {list:?}");
        }
    }
}

fn write_string(string: &[u8], out: &mut Vec<u8>) {
    integer::encode(0x00, 7, string.len(), out);
    out.extend_from_slice(string);
}

const NONE: u8 = u8::MAX;

/// A hash table of slots without keys: for each bucket a chain of slots, the newest first.
struct Chains {
    heads: [u8; MAX_ENTRIES],
    next: [u8; MAX_ENTRIES],
}

impl Chains {
    fn new() -> Self {
        Chains { heads: [NONE; MAX_ENTRIES], next: [NONE; MAX_ENTRIES] }
    }

    fn head(hash: u32) -> usize {
        hash as usize % MAX_ENTRIES
    }

    /// The slots that may belong to `hash`.
    #[inline]
    fn slots(&self, hash: u32) -> impl Iterator<Item = u8> + '_ {
        self.chain(self.heads[Self::head(hash)])
    }

    #[inline]
    fn chain(&self, head: u8) -> impl Iterator<Item = u8> + '_ {
        let live = |slot: u8| (slot != NONE).then_some(slot);
        std::iter::successors(live(head), move |&slot| live(self.next[usize::from(slot)]))
    }

    fn link(&mut self, hash: u32, slot: u8) {
        let head = &mut self.heads[Self::head(hash)];
        self.next[usize::from(slot)] = *head;
        *head = slot;
    }

    /// Takes `slot` out of its chain, if it is there.
    fn unlink(&mut self, hash: u32, slot: u8) {
        let after = self.next[usize::from(slot)];
        let before = self.slots(hash).find(|&before| self.next[usize::from(before)] == slot);
        let head = &mut self.heads[Self::head(hash)];
        if *head == slot {
            *head = after;
        } else if let Some(before) = before {
            self.next[usize::from(before)] = after;
        }
    }

    fn len(&self) -> usize {
        self.heads.iter().map(|&head| self.chain(head).count()).sum()
    }
}

#[cfg(test)]
mod tests;
