//! A dynamic table (RFC 7541 §2.3.2) of interned fields; the decoder and the encoder have one each.
//!
//! In: entries, the newest last; a size limit. Out: entries by age. An `Entry` lives exactly as long as a table or a list points to
//! it, and a table holds no more bytes than its limit by the RFC's own count.

use std::collections::VecDeque;
use std::hash::Hasher;
use std::rc::Rc;

use rustc_hash::FxHasher;

use super::ENTRY_OVERHEAD;
use super::static_table::{self, NameInfo};

/// One interned field; immutable, its name and value judged once.
pub(super) struct Entry {
    /// The name, then the value.
    bytes: Box<[u8]>,
    name_len: u32,
    hash: FieldHash,
    name_info: NameInfo,
    valid: bool,
}

/// The hash of a field and of its name alone; the same in every table made with the same seed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct FieldHash {
    pub(super) field: u32,
    pub(super) name: u32,
}

impl FieldHash {
    pub(super) fn new(seed: u64, name: &[u8], value: &[u8]) -> Self {
        let mut hasher = FxHasher::with_seed(seed as usize);
        hasher.write(name);
        let of_name = hasher.finish() as u32;
        hasher.write(value);
        FieldHash { field: hasher.finish() as u32, name: of_name }
    }
}

impl Entry {
    pub(super) fn new(seed: u64, name: &[u8], value: &[u8], name_info: NameInfo) -> Rc<Self> {
        let mut bytes = Vec::with_capacity(name.len() + value.len());
        bytes.extend_from_slice(name);
        bytes.extend_from_slice(value);
        Rc::new(Entry {
            bytes: bytes.into_boxed_slice(),
            name_len: u32::try_from(name.len()).expect("names fit into a table and tables are small"),
            hash: FieldHash::new(seed, name, value),
            name_info,
            valid: name_info.valid && static_table::is_valid_value(value),
        })
    }

    pub(super) fn name(&self) -> &[u8] {
        &self.bytes[..self.name_len as usize]
    }

    pub(super) fn value(&self) -> &[u8] {
        &self.bytes[self.name_len as usize..]
    }

    pub(super) fn hash(&self) -> FieldHash {
        self.hash
    }

    pub(super) fn name_info(&self) -> NameInfo {
        self.name_info
    }

    /// Whether name and value may occur in HTTP/2.
    pub(super) fn is_valid(&self) -> bool {
        self.valid
    }

    #[inline]
    pub(super) fn size(&self) -> usize {
        self.bytes.len() + ENTRY_OVERHEAD
    }

    /// Whether the two are the same field, whoever has interned them.
    #[inline]
    pub(super) fn is_same_field(&self, other: &Entry) -> bool {
        self.hash.field == other.hash.field && self.name_len == other.name_len && self.bytes == other.bytes
    }
}

/// Entries in the order of their insertion, and their sizes' sum.
pub(super) struct Table {
    /// The newest at the front.
    entries: VecDeque<Rc<Entry>>,
    size: usize,
    max_size: usize,
}

impl Table {
    pub(super) fn new(max_size: usize) -> Self {
        Table { entries: VecDeque::new(), size: 0, max_size }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn max_size(&self) -> usize {
        self.max_size
    }

    /// The entry before which `age` others were inserted later.
    #[inline]
    pub(super) fn get(&self, age: usize) -> Option<&Rc<Entry>> {
        self.entries.get(age)
    }

    /// Whether an entry of this size would fit beside what is there.
    pub(super) fn has_room(&self, size: usize) -> bool {
        self.size + size <= self.max_size
    }

    pub(super) fn evict_oldest(&mut self) -> Option<Rc<Entry>> {
        let oldest = self.entries.pop_back()?;
        self.size -= oldest.size();
        Some(oldest)
    }

    /// The caller has made room.
    pub(super) fn insert(&mut self, entry: Rc<Entry>) {
        debug_assert!(self.has_room(entry.size()));
        self.size += entry.size();
        self.entries.push_front(entry);
    }

    /// The caller evicts until the table fits.
    pub(super) fn set_max_size(&mut self, max_size: usize) {
        self.max_size = max_size;
    }

    /// Panics unless the table's books are right.
    pub(super) fn check(&self, seed: u64) {
        assert_eq!(self.size, self.entries.iter().map(|entry| entry.size()).sum::<usize>(), "the sum of the sizes");
        assert!(self.size <= self.max_size, "a table of {} in a limit of {}", self.size, self.max_size);
        for entry in &self.entries {
            assert_eq!(entry.hash(), FieldHash::new(seed, entry.name(), entry.value()));
            let name_info = static_table::name(entry.name());
            assert_eq!(entry.name_info(), name_info);
            assert_eq!(entry.is_valid(), name_info.valid && static_table::is_valid_value(entry.value()));
        }
    }
}
