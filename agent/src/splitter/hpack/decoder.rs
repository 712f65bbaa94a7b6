//! Header blocks in, field lists out: one connection, one direction (RFC 7541 §3 and §6).
//!
//! Every block is run to its end, also for a stream that is already reset or whose list is too large: the table is connection state.
//! The decoder judges each name and value (`FieldView::is_valid`) but not the list as a whole.

use std::rc::Rc;

use super::known::{CommonLists, KnownBlocks};
use super::list::{Field, HeaderList};
use super::static_table::{self, NameInfo};
use super::table::{Entry, Table};
use super::{ENTRY_OVERHEAD, Error, Indexing, huffman, integer};

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
    known: KnownBlocks,
    /// The block in hand has changed the table.
    changed: bool,
    /// Our SETTINGS_HEADER_TABLE_SIZE: what the peer may choose its table size from.
    size_limit: usize,
    hash_seed: u64,
}

impl Decoder {
    /// `max_table_size` is our SETTINGS_HEADER_TABLE_SIZE; it holds for the connection's life. `hash_seed` is one for all decoders
    /// and encoders between which lists are passed.
    pub fn new(max_table_size: usize, hash_seed: u64) -> Self {
        Decoder {
            table: Table::new(max_table_size),
            known: KnownBlocks::default(),
            changed: false,
            size_limit: max_table_size,
            hash_seed,
        }
    }

    /// As [`Decoder::decode`], of a block that may come again: the list that it was before, if it would decode to the same now, or one
    /// from `spare`, which nobody else has.
    #[inline]
    pub fn decode_shared(
        &mut self,
        block: &[u8],
        limits: ListLimits,
        common: &mut CommonLists,
        spare: impl FnOnce() -> Rc<HeaderList>,
    ) -> Result<(Rc<HeaderList>, Decoded), Error> {
        if let Some(list) = self.known(block, limits) {
            return Ok((Rc::clone(list), Decoded { too_large: false }));
        }
        let mut list = spare();
        let unshared = Rc::get_mut(&mut list).expect("a list that nobody else has");
        let decoded = self.decode(block, limits, unshared)?;
        if !self.changed && !decoded.too_large && self.known.came(&list, block) {
            list = common.share(list);
            self.known.remember(&list, block);
        }
        Ok((list, decoded))
    }

    #[inline]
    pub(super) fn known(&self, block: &[u8], limits: ListLimits) -> Option<&Rc<HeaderList>> {
        let list = self.known.list(block)?;
        (list.size() <= limits.max_size && list.len() <= limits.max_fields).then_some(list)
    }

    /// Decodes one complete header block into `list`, which is cleared first.
    ///
    /// An error leaves the table out of step: the connection has to close with COMPRESSION_ERROR.
    pub fn decode(&mut self, mut block: &[u8], limits: ListLimits, list: &mut HeaderList) -> Result<Decoded, Error> {
        list.clear();
        self.changed = false;
        block = self.size_updates(block)?;
        let mut target = Target { list, limits, too_large: false };
        while let Some((&first, rest)) = block.split_first() {
            block = match first {
                0x80.. => {
                    let (index, rest) = integer::decode(first, 7, rest)?;
                    self.indexed(index, &mut target)?;
                    rest
                }
                0x40.. => self.literal(first, 6, rest, Indexing::WithIndexing, &mut target)?,
                0x20.. => return Err(Error::SizeUpdateTooLate),
                0x10.. => self.literal(first, 4, rest, Indexing::NeverIndexed, &mut target)?,
                _ => self.literal(first, 4, rest, Indexing::WithoutIndexing, &mut target)?,
            };
        }
        Ok(Decoded { too_large: target.too_large })
    }

    /// Applies the size updates at the front of `block`; returns the rest.
    fn size_updates<'b>(&mut self, mut block: &'b [u8]) -> Result<&'b [u8], Error> {
        while let Some((&first @ 0x20..0x40, rest)) = block.split_first() {
            let (max_size, rest) = integer::decode(first, 5, rest)?;
            if max_size > self.size_limit {
                return Err(Error::SizeUpdateTooLarge);
            }
            self.table.set_max_size(max_size);
            self.changes();
            self.make_room(0);
            block = rest;
        }
        Ok(block)
    }

    #[inline]
    fn indexed(&self, index: usize, target: &mut Target<'_>) -> Result<(), Error> {
        if (1..=static_table::LEN).contains(&index) {
            target.push(static_table::size(index), || Field::Static(index));
        } else {
            let entry = self.entry(index)?;
            target.push(entry.size(), || Field::Repeated(Rc::clone(entry)));
        }
        Ok(())
    }

    /// The dynamic entry of an index that is no static one.
    #[inline]
    fn entry(&self, index: usize) -> Result<&Rc<Entry>, Error> {
        let age = index.checked_sub(static_table::LEN + 1).ok_or(Error::ZeroIndex)?;
        self.table.get(age).ok_or(Error::IndexBeyondTable)
    }

    /// Reads the literal that starts with `first`; returns what is left of `block`.
    fn literal<'b>(
        &mut self,
        first: u8,
        prefix_bits: u32,
        block: &'b [u8],
        indexing: Indexing,
        target: &mut Target<'_>,
    ) -> Result<&'b [u8], Error> {
        // The arena of the list is also where a literal is put together that will be interned or left out.
        let bytes = &mut target.list.bytes;
        let start = bytes.len();
        let (name_index, block) = integer::decode(first, prefix_bits, block)?;
        let (name_info, block) = self.literal_name(name_index, block, bytes)?;
        let name_end = bytes.len();
        let block = read_string(block, bytes)?;

        let name = if name_info.index == 0 {
            &bytes[start..name_end]
        } else {
            static_table::field(usize::from(name_info.index)).name
        };
        let value = &bytes[name_end..];
        let size = name.len() + value.len() + ENTRY_OVERHEAD;
        if indexing == Indexing::WithIndexing && size <= self.table.max_size() {
            let entry = Entry::new(self.hash_seed, name, value, name_info);
            bytes.truncate(start);
            self.changes();
            self.make_room(size);
            self.table.insert(Rc::clone(&entry));
            target.push(size, || Field::Stored(entry));
            return Ok(block);
        }
        if indexing == Indexing::WithIndexing {
            // §4.4: an entry larger than the table empties it, which is not an error.
            self.changes();
            self.make_room(self.table.max_size());
        }
        if target.admits(size) {
            target.list.push_literal(start, name_end, name_info, indexing);
        } else {
            target.list.bytes.truncate(start);
        }
        Ok(block)
    }

    /// Resolves or reads a literal's name; appends it to `bytes` unless the static table has it.
    fn literal_name<'b>(
        &self,
        index: usize,
        block: &'b [u8],
        bytes: &mut Vec<u8>,
    ) -> Result<(NameInfo, &'b [u8]), Error> {
        let start = bytes.len();
        match index {
            0 => {
                let block = read_string(block, bytes)?;
                let name_info = static_table::name(&bytes[start..]);
                if name_info.index != 0 {
                    bytes.truncate(start);
                }
                Ok((name_info, block))
            }
            1..=static_table::LEN => Ok((static_table::name_at(index), block)),
            _ => {
                let entry = self.entry(index)?;
                if entry.name_info().index == 0 {
                    bytes.extend_from_slice(entry.name());
                }
                Ok((entry.name_info(), block))
            }
        }
    }

    /// To be called before the table changes.
    fn changes(&mut self) {
        self.changed = true;
        self.known.forget();
    }

    /// Evicts until an entry of `size` fits (§4.3, §4.4).
    fn make_room(&mut self, size: usize) {
        while !self.table.has_room(size) && self.table.evict_oldest().is_some() {}
    }

    /// Panics unless the table's books are right.
    pub fn check(&self) {
        assert!(self.table.max_size() <= self.size_limit);
        self.table.check(self.hash_seed);
        for (list, block) in self.known.iter() {
            list.check();
            assert!(list.is_known());
            // What is spelled out is compared by those who decode it a second time: the tests.
            let indices = |(field, byte): (&Field, &u8)| match field {
                Field::Static(row) => *byte == 0x80 | *row as u8,
                Field::Stored(entry) | Field::Repeated(entry) => {
                    self.entry(usize::from(byte & 0x7f)).is_ok_and(|known| known.is_same_field(entry))
                }
                Field::Literal(_) => false,
            };
            let is_plain = list.len() == block.len() && block.iter().all(|byte| (0x81..0xff).contains(byte));
            assert!(!is_plain || list.fields.iter().zip(block).all(indices), "{block:02x?} is known as {list:?}");
        }
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

/// Appends the string (§5.2) at the front of `block` to `out`; returns the rest.
fn read_string<'b>(block: &'b [u8], out: &mut Vec<u8>) -> Result<&'b [u8], Error> {
    let (&first, rest) = block.split_first().ok_or(Error::Truncated)?;
    let (length, rest) = integer::decode(first, 7, rest)?;
    let (string, rest) = rest.split_at_checked(length).ok_or(Error::Truncated)?;
    if first & 0x80 != 0 {
        huffman::decode(string, out)?;
    } else {
        out.extend_from_slice(string);
    }
    Ok(rest)
}

#[cfg(test)]
mod tests;
