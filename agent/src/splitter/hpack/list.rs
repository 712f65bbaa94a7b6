//! One field list, decoded or made by us: order and duplicates as they came.
//!
//! In: fields from the decoder, or `push`. Out: views of the fields; the encoder reads the fields themselves.
//! A list is made for reuse: `clear` keeps what it has allocated. Interned fields are pointers, other literals share one byte arena.

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;

use super::static_table::{self, NameInfo};
use super::table::Entry;
use super::{ENTRY_OVERHEAD, Indexing, Name};

/// A list of fields in their order, duplicates and all.
#[derive(Clone, Default)]
pub struct HeaderList {
    pub(super) fields: Vec<Field>,
    pub(super) literals: Vec<Literal>,
    /// Names and values of the literals.
    pub(super) bytes: Vec<u8>,
    pub(super) size: usize,
    note: Cell<u64>,
    known: Cell<bool>,
}

/// Every variant is one machine word, so that a field is passed in two registers, which halves the time of decoding one.
#[derive(Clone)]
pub(super) enum Field {
    /// A row of the static table.
    Static(usize),
    /// A field that its sender has just stored.
    Stored(Rc<Entry>),
    /// A field that its sender had stored earlier and now referred to.
    Repeated(Rc<Entry>),
    /// Where it is in `literals`.
    Literal(usize),
}

/// A field whose bytes are in the list's arena; the name only where the static table does not have it.
#[derive(Clone, Copy)]
pub(super) struct Literal {
    start: u32,
    name_len: u32,
    value_len: u32,
    pub(super) name_info: NameInfo,
    valid: bool,
    pub(super) indexing: Indexing,
}

impl Literal {
    pub(super) fn name<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        match self.name_info.index {
            0 => &bytes[self.start as usize..][..self.name_len as usize],
            row => static_table::field(usize::from(row)).name,
        }
    }

    pub(super) fn value<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        &bytes[self.start as usize + self.name_len as usize..][..self.value_len as usize]
    }
}

/// One field of a list. What is asked of it is looked up then: hardly anybody asks for all.
#[derive(Clone, Copy)]
pub struct FieldView<'a> {
    field: &'a Field,
    list: &'a HeaderList,
}

impl<'a> FieldView<'a> {
    /// What the name means.
    #[inline]
    pub fn kind(self) -> Name {
        match self.field {
            Field::Static(row) => static_table::field(*row).kind,
            Field::Stored(entry) | Field::Repeated(entry) => entry.name_info().kind,
            Field::Literal(at) => self.list.literals[*at].name_info.kind,
        }
    }

    /// The name as it came.
    #[inline]
    pub fn name(self) -> &'a [u8] {
        match self.field {
            Field::Static(row) => static_table::field(*row).name,
            Field::Stored(entry) | Field::Repeated(entry) => entry.name(),
            Field::Literal(at) => self.list.literals[*at].name(&self.list.bytes),
        }
    }

    /// The value as it came.
    #[inline]
    pub fn value(self) -> &'a [u8] {
        match self.field {
            Field::Static(row) => static_table::field(*row).value,
            Field::Stored(entry) | Field::Repeated(entry) => entry.value(),
            Field::Literal(at) => self.list.literals[*at].value(&self.list.bytes),
        }
    }

    /// Whether name and value may occur in HTTP/2 (RFC 9113 §8.2.1); a message with an invalid field is malformed.
    #[inline]
    pub fn is_valid(self) -> bool {
        match self.field {
            Field::Static(_) => true,
            Field::Stored(entry) | Field::Repeated(entry) => entry.is_valid(),
            Field::Literal(at) => self.list.literals[*at].valid,
        }
    }

    /// How the field may be stored.
    pub fn indexing(self) -> Indexing {
        match self.field {
            Field::Static(_) | Field::Stored(_) | Field::Repeated(_) => Indexing::WithIndexing,
            Field::Literal(at) => self.list.literals[*at].indexing,
        }
    }

    /// What the field counts for in a list's size.
    pub fn size(self) -> usize {
        self.name().len() + self.value().len() + ENTRY_OVERHEAD
    }
}

impl HeaderList {
    /// An empty list; allocates nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives back memory that a larger list left.
    pub fn trim(&mut self) {
        if self.bytes.capacity() > 2 * self.bytes.len() + 1024 || self.fields.capacity() > 2 * self.fields.len() + 32 {
            self.bytes.shrink_to_fit();
            self.fields.shrink_to_fit();
            self.literals.shrink_to_fit();
        }
    }

    /// Drops all fields and keeps the memory for the next ones.
    pub fn clear(&mut self) {
        self.fields.clear();
        self.literals.clear();
        self.bytes.clear();
        self.size = 0;
        self.note.set(0);
        self.known.set(false);
    }

    /// Whether a field is never to be indexed.
    pub(super) fn has_secrets(&self) -> bool {
        self.literals.iter().any(|literal| literal.indexing == Indexing::NeverIndexed)
    }

    /// Whether the two are the same fields in the same order, stored by their senders or not.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let same = |(ours, theirs): (&Field, &Field)| match (ours, theirs) {
            (Field::Static(row), Field::Static(other)) => row == other,
            (Field::Stored(entry), Field::Stored(other)) | (Field::Repeated(entry), Field::Repeated(other)) => {
                entry.is_same_field(other)
            }
            (Field::Literal(at), Field::Literal(of_other)) => {
                let (literal, theirs) = (&self.literals[*at], &other.literals[*of_other]);
                literal.indexing == theirs.indexing
                    && literal.name(&self.bytes) == theirs.name(&other.bytes)
                    && literal.value(&self.bytes) == theirs.value(&other.bytes)
            }
            _ => false,
        };
        self.size == other.size && self.len() == other.len() && self.fields.iter().zip(&other.fields).all(same)
    }

    /// It will come again: see [`Decoder::decode_shared`](super::Decoder::decode_shared).
    pub(super) fn is_known(&self) -> bool {
        self.known.get()
    }

    pub(super) fn set_known(&self) {
        self.known.set(true);
    }

    /// What somebody who looked at all of it has written down; 0: nothing yet.
    pub fn note(&self) -> u64 {
        self.note.get()
    }

    /// To be found when the list comes again.
    pub fn set_note(&self, note: u64) {
        self.note.set(note);
    }

    /// The number of fields.
    pub fn len(&self) -> usize {
        self.fields.len()
    }

    /// How many of them the sender's table did not have when the list came.
    pub fn new_fields(&self) -> usize {
        self.fields.iter().filter(|field| matches!(field, Field::Stored(_) | Field::Literal(_))).count()
    }

    /// Whether there is no field.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// The size that SETTINGS_MAX_HEADER_LIST_SIZE limits (RFC 9113 §6.5.2): names + values + 32 for each field.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The fields in their order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = FieldView<'_>> + Clone {
        self.fields.iter().map(|field| FieldView { field, list: self })
    }

    /// Appends a field of our own making. A pair that the static table has becomes its index, unless it is never to be indexed.
    pub fn push(&mut self, name: &[u8], value: &[u8], indexing: Indexing) {
        self.size += name.len() + value.len() + ENTRY_OVERHEAD;
        self.note.set(0);
        let name_info = static_table::name(name);
        if indexing != Indexing::NeverIndexed
            && let Some(row) = static_table::find(name_info, value)
        {
            self.fields.push(Field::Static(usize::from(row)));
            return;
        }
        let start = self.bytes.len();
        if name_info.index == 0 {
            self.bytes.extend_from_slice(name);
        }
        let name_end = self.bytes.len();
        self.bytes.extend_from_slice(value);
        self.push_literal(start, name_end, name_info, indexing);
    }

    /// Appends a literal whose name (unless static) and value end the arena from `start` on; the caller has counted its size.
    pub(super) fn push_literal(&mut self, start: usize, name_end: usize, name_info: NameInfo, indexing: Indexing) {
        let small =
            |length: usize| u32::try_from(length).expect("a list's literals are below 4 GiB: blocks are bounded");
        let valid = name_info.valid && static_table::is_valid_value(&self.bytes[name_end..]);
        self.fields.push(Field::Literal(self.literals.len()));
        self.literals.push(Literal {
            start: small(start),
            name_len: small(name_end - start),
            value_len: small(self.bytes.len() - name_end),
            name_info,
            valid,
            indexing,
        });
    }

    /// Panics unless the list's books are right.
    pub fn check(&self) {
        assert_eq!(self.size, self.iter().map(|field| field.size()).sum::<usize>(), "the sum of the sizes");
    }
}

impl fmt::Debug for HeaderList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Never shows the value of a never-indexed field: its sender calls it a secret.
impl fmt::Debug for FieldView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.name().escape_ascii())?;
        match self.indexing() {
            Indexing::NeverIndexed => f.write_str("(never indexed)"),
            _ => write!(f, "{}", self.value().escape_ascii()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> HeaderList {
        let mut list = HeaderList::new();
        list.push(b":status", b"200", Indexing::WithIndexing);
        list.push(b"content-type", b"application/grpc", Indexing::WithIndexing);
        list.push(b"x-a", b"1", Indexing::WithoutIndexing);
        list.push(b"authorization", b"secret", Indexing::NeverIndexed);
        list.push(b"connection", b"close", Indexing::WithoutIndexing);
        list.push(b"x-a", b"", Indexing::WithoutIndexing);
        list
    }

    #[test]
    fn pushed_fields_come_back_in_their_order_with_their_meaning() {
        let list = sample();
        list.check();
        type Seen<'a> = (Name, &'a [u8], &'a [u8], bool, Indexing);
        let fields: Vec<Seen<'_>> =
            list.iter().map(|f| (f.kind(), f.name(), f.value(), f.is_valid(), f.indexing())).collect();
        let expected: [Seen<'_>; 6] = [
            (Name::Status, b":status", b"200", true, Indexing::WithIndexing),
            (Name::ContentType, b"content-type", b"application/grpc", true, Indexing::WithIndexing),
            (Name::Regular, b"x-a", b"1", true, Indexing::WithoutIndexing),
            (Name::Regular, b"authorization", b"secret", true, Indexing::NeverIndexed),
            (Name::ConnectionSpecific, b"connection", b"close", true, Indexing::WithoutIndexing),
            (Name::Regular, b"x-a", b"", true, Indexing::WithoutIndexing),
        ];
        assert_eq!(fields, expected);
        assert_eq!((list.len(), list.size()), (6, 42 + 60 + 36 + 51 + 47 + 35));
    }

    #[test]
    fn a_pair_of_the_static_table_is_its_row_unless_it_is_a_secret() {
        let mut list = HeaderList::new();
        list.push(b":status", b"404", Indexing::WithoutIndexing);
        list.push(b":status", b"404", Indexing::NeverIndexed);
        list.push(b":status", b"405", Indexing::WithIndexing);
        assert!(matches!(list.fields[..], [Field::Static(13), Field::Literal(_), Field::Literal(_)]));
    }

    #[test]
    fn a_cleared_list_is_empty_and_keeps_its_memory() {
        let mut list = sample();
        let kept = (list.fields.capacity(), list.bytes.capacity());
        list.clear();
        list.check();
        assert_eq!((list.len(), list.size(), list.is_empty()), (0, 0, true));
        assert_eq!((list.fields.capacity(), list.bytes.capacity()), kept);
    }

    #[test]
    fn invalid_fields_are_marked() {
        let mut list = HeaderList::new();
        list.push(b"X-Upper", b"1", Indexing::WithoutIndexing);
        list.push(b"x-lower", b"1\n2", Indexing::WithoutIndexing);
        list.push(b"x-lower", b"1", Indexing::WithoutIndexing);
        assert_eq!(list.iter().map(|field| field.is_valid()).collect::<Vec<_>>(), [false, false, true]);
    }

    #[test]
    fn debug_output_hides_secrets() {
        let text = format!("{:?}", sample());
        assert!(text.contains("authorization: (never indexed)") && !text.contains("secret"), "{text}");
    }
}
