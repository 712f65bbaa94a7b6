//! HPACK (RFC 7541), made to carry field lists from one connection's context to another's inside one thread.
//!
//! In: complete header blocks (`Decoder`) or synthesised fields (`HeaderList::push`). Out: header blocks (`Encoder`).
//! A field that sits in a dynamic table is one reference-counted `Entry`; lists and other tables point to it, so what arrives as an
//! index leaves as an index by one look-up. Not here: frames, CONTINUATION, limits on block length, rules about a whole list
//! (order of pseudo-header fields, what a request needs). One `hash_seed` per splitter; contexts are never shared between pods.

mod decoder;
mod encoder;
mod huffman;
mod integer;
mod known;
mod list;
mod static_table;
mod table;

#[cfg(test)]
mod oracle;
#[cfg(test)]
mod vectors;

use std::fmt;

pub use decoder::{Decoded, Decoder, ListLimits};
pub use encoder::Encoder;
pub use known::CommonLists;
pub use list::{FieldView, HeaderList};

/// What RFC 7541 §4.1 counts for an entry beside its bytes; RFC 9113 §6.5.2 counts the same for a field of a list.
const ENTRY_OVERHEAD: usize = 32;

/// What a field's name means to the splitter; found once, when the name is first decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Name {
    /// `:method`
    Method,
    /// `:scheme`
    Scheme,
    /// `:authority`
    Authority,
    /// `:path`
    Path,
    /// `:status`
    Status,
    /// Any other name that starts with a colon; RFC 9113 §8.3 makes a message with one malformed.
    UnknownPseudo,
    /// `content-type`
    ContentType,
    /// `content-length`
    ContentLength,
    /// `te`, which may only say `trailers` (RFC 9113 §8.2.2).
    Te,
    /// `grpc-status`
    GrpcStatus,
    /// `grpc-message`
    GrpcMessage,
    /// `grpc-timeout`
    GrpcTimeout,
    /// `connection`, `proxy-connection`, `keep-alive`, `transfer-encoding`, `upgrade` (RFC 9113 §8.2.2).
    ConnectionSpecific,
    /// Everything else.
    Regular,
}

impl Name {
    /// Whether the name starts with a colon.
    pub fn is_pseudo(self) -> bool {
        use Name::*;
        matches!(self, Method | Scheme | Authority | Path | Status | UnknownPseudo)
    }

    /// Whether the value usually differs from message to message, so that a table entry is not worth its making until the sender
    /// itself has referred to it a second time.
    fn is_fleeting(self) -> bool {
        matches!(self, Name::ContentLength | Name::GrpcMessage | Name::GrpcTimeout)
    }
}

/// How a field may be stored on its way (RFC 7541 §6.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Indexing {
    /// It is in a table or may enter one.
    WithIndexing,
    /// The sender chose a literal for this one block.
    WithoutIndexing,
    /// A secret: every hop sends it as this kind of literal (§7.1.3).
    NeverIndexed,
}

/// Why a block cannot be decoded. Each one is a connection error of type COMPRESSION_ERROR: the table is out of step afterwards.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    /// An integer above 2^32 - 1, or one spelled in more than five continuation bytes.
    IntegerOverflow,
    /// Index 0, which names nothing.
    ZeroIndex,
    /// An index past the end of the dynamic table.
    IndexBeyondTable,
    /// A table size above our SETTINGS_HEADER_TABLE_SIZE.
    SizeUpdateTooLarge,
    /// A table size update behind the first field of a block.
    SizeUpdateTooLate,
    /// The block ends inside a field.
    Truncated,
    /// Huffman padding of eight bits or more, or of something else than ones.
    HuffmanPadding,
    /// The Huffman code of EOS inside a string.
    HuffmanEndOfString,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Error::IntegerOverflow => "header block: integer too large (RFC 7541 §5.1); the peer's HPACK encoder is broken",
            Error::ZeroIndex => "header block: index 0 (RFC 7541 §6.1); the peer's HPACK encoder is broken",
            Error::IndexBeyondTable => {
                "header block: index past the dynamic table (RFC 7541 §2.3.3); the peer skipped a block or ignored our table size"
            }
            Error::SizeUpdateTooLarge => {
                "header block: table size above our SETTINGS_HEADER_TABLE_SIZE (RFC 7541 §6.3); the peer ignored our settings"
            }
            Error::SizeUpdateTooLate => {
                "header block: table size update behind a field (RFC 7541 §4.2); the peer's HPACK encoder is broken"
            }
            Error::Truncated => "header block: ends inside a field; the peer cut the block short",
            Error::HuffmanPadding => "header block: wrong Huffman padding (RFC 7541 §5.2); the peer's HPACK encoder is broken",
            Error::HuffmanEndOfString => {
                "header block: Huffman-coded EOS inside a string (RFC 7541 §5.2); the peer's HPACK encoder is broken"
            }
        })
    }
}

impl std::error::Error for Error {}
