//! Header blocks in, field lists out: one connection, one direction (RFC 7541 §3 and §6).
//!
//! Every block is run to its end, also for a stream that is already reset or whose list is too large: the table is connection state.
//! The decoder judges each name and value (`FieldView::valid`) but not the list as a whole.

use std::rc::Rc;

use super::list::{Field, HeaderList};
use super::static_table::{self, NameInfo};
use super::table::{ENTRY_OVERHEAD, Entry, Table};
use super::{Error, Indexing, huffman, integer};

/// How much of a block goes into a list; the rest is decoded for the table only.
#[derive(Clone, Copy, Debug)]
pub struct ListLimits {
    /// The largest `HeaderList::size`, in bytes by RFC 9113 §6.5.2.
    pub max_size: usize,
    /// The most fields.
    pub max_fields: usize,
}

/// What there is to say about a block beside its list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decoded {
    /// The list stops before the first field that would have gone over a limit. The table is in step all the same.
    pub too_large: bool,
}

/// The receiving end of one connection's header blocks.
pub struct Decoder {
    table: Table,
    /// Our SETTINGS_HEADER_TABLE_SIZE: what the peer may choose its table size from.
    size_limit: usize,
    hash_seed: u64,
}

impl Decoder {
    /// `max_table_size` is our SETTINGS_HEADER_TABLE_SIZE; it holds for the connection's life. `hash_seed` is one for all decoders
    /// and encoders between which lists are passed.
    pub fn new(max_table_size: usize, hash_seed: u64) -> Self {
        Decoder { table: Table::new(max_table_size), size_limit: max_table_size, hash_seed }
    }

    /// Decodes one complete header block into `list`, which is cleared first.
    ///
    /// An error leaves the table out of step: the connection has to close with COMPRESSION_ERROR.
    pub fn decode(&mut self, mut block: &[u8], limits: ListLimits, list: &mut HeaderList) -> Result<Decoded, Error> {
        list.clear();
        self.size_updates(&mut block)?;
        let mut target = Target { list, limits, too_large: false };
        while let Some((&first, rest)) = block.split_first() {
            block = rest;
            match first {
                0x80.. => self.indexed(integer::decode(first, 7, &mut block)?, &mut target)?,
                0x40.. => self.literal(
                    integer::decode(first, 6, &mut block)?,
                    &mut block,
                    Indexing::WithIndexing,
                    &mut target,
                )?,
                0x20.. => return Err(Error::SizeUpdateTooLate),
                0x10.. => self.literal(
                    integer::decode(first, 4, &mut block)?,
                    &mut block,
                    Indexing::NeverIndexed,
                    &mut target,
                )?,
                _ => self.literal(
                    integer::decode(first, 4, &mut block)?,
                    &mut block,
                    Indexing::WithoutIndexing,
                    &mut target,
                )?,
            }
        }
        Ok(Decoded { too_large: target.too_large })
    }

    fn size_updates(&mut self, block: &mut &[u8]) -> Result<(), Error> {
        while let Some((&first @ 0x20..0x40, rest)) = block.split_first() {
            *block = rest;
            let max_size = integer::decode(first, 5, block)?;
            if max_size > self.size_limit {
                return Err(Error::SizeUpdateTooLarge);
            }
            self.table.set_max_size(max_size);
            self.make_room(0);
        }
        Ok(())
    }

    #[inline]
    fn indexed(&self, index: usize, target: &mut Target<'_>) -> Result<(), Error> {
        if (1..=static_table::LEN).contains(&index) {
            let row = index as u8;
            target.push(static_table::size(row), || Field::Static(row));
        } else {
            let entry = self.entry(index)?;
            target.push(entry.size(), || Field::Interned { entry: Rc::clone(entry), repeated: true });
        }
        Ok(())
    }

    /// The dynamic entry of an index that is no static one.
    #[inline]
    fn entry(&self, index: usize) -> Result<&Rc<Entry>, Error> {
        let age = index.checked_sub(static_table::LEN + 1).ok_or(Error::ZeroIndex)?;
        self.table.get(age).ok_or(Error::IndexBeyondTable)
    }

    fn literal(
        &mut self,
        name_index: usize,
        block: &mut &[u8],
        indexing: Indexing,
        target: &mut Target<'_>,
    ) -> Result<(), Error> {
        // The arena of the list is also where a literal is put together that will be interned or left out.
        let bytes = &mut target.list.bytes;
        let start = bytes.len();
        let name_info = self.literal_name(name_index, block, bytes)?;
        let name_end = bytes.len();
        read_string(block, bytes)?;

        let name =
            if name_info.index == 0 { &bytes[start..name_end] } else { static_table::field(name_info.index).name };
        let value = &bytes[name_end..];
        let size = name.len() + value.len() + ENTRY_OVERHEAD;
        if indexing == Indexing::WithIndexing && size <= self.table.max_size() {
            let entry = Entry::new(self.hash_seed, name, value, name_info);
            bytes.truncate(start);
            self.make_room(size);
            self.table.insert(Rc::clone(&entry));
            target.push(size, || Field::Interned { entry, repeated: false });
            return Ok(());
        }
        if indexing == Indexing::WithIndexing {
            // §4.4: an entry larger than the table empties it, which is not an error.
            self.make_room(self.table.max_size());
        }
        if target.admits(size) {
            target.list.push_literal(start, name_end, name_info, indexing);
        } else {
            target.list.bytes.truncate(start);
        }
        Ok(())
    }

    /// Resolves or reads a literal's name; appends it to `bytes` unless the static table has it.
    fn literal_name(&self, index: usize, block: &mut &[u8], bytes: &mut Vec<u8>) -> Result<NameInfo, Error> {
        let start = bytes.len();
        match index {
            0 => {
                read_string(block, bytes)?;
                let name_info = static_table::name(&bytes[start..]);
                if name_info.index != 0 {
                    bytes.truncate(start);
                }
                Ok(name_info)
            }
            1..=static_table::LEN => Ok(static_table::name_at(index as u8)),
            _ => {
                let entry = self.entry(index)?;
                if entry.name_info().index == 0 {
                    bytes.extend_from_slice(entry.name());
                }
                Ok(entry.name_info())
            }
        }
    }

    /// Evicts until an entry of `size` fits (§4.3, §4.4).
    fn make_room(&mut self, size: usize) {
        while !self.table.has_room(size) && self.table.evict_oldest().is_some() {}
    }

    /// Panics unless the table's books are right.
    pub fn check(&self) {
        assert!(self.table.max_size() <= self.size_limit);
        self.table.check(self.hash_seed);
    }
}

/// The list under construction and its limits.
struct Target<'a> {
    list: &'a mut HeaderList,
    limits: ListLimits,
    too_large: bool,
}

impl Target<'_> {
    #[inline]
    fn push(&mut self, size: usize, field: impl FnOnce() -> Field) {
        if self.admits(size) {
            self.list.fields.push(field());
        }
    }

    /// Counts a field of `size` in, or says that it and all behind it stay out.
    #[inline]
    fn admits(&mut self, size: usize) -> bool {
        let fits = self.list.size + size <= self.limits.max_size && self.list.fields.len() < self.limits.max_fields;
        self.too_large |= !fits;
        if !self.too_large {
            self.list.size += size;
        }
        !self.too_large
    }
}

/// Appends a string (§5.2) from the front of `block` to `out`.
fn read_string(block: &mut &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
    let (&first, rest) = block.split_first().ok_or(Error::Truncated)?;
    *block = rest;
    let length = integer::decode(first, 7, block)?;
    let (string, rest) = block.split_at_checked(length).ok_or(Error::Truncated)?;
    *block = rest;
    if first & 0x80 != 0 {
        huffman::decode(string, out)
    } else {
        out.extend_from_slice(string);
        Ok(())
    }
}
