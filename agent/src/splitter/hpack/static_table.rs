//! The static table (RFC 7541 Appendix A), and what each name means to the splitter.
//!
//! In: a name, or an index of 1 to 61. Out: fields, and for names their kind and static index. Nothing here is per connection.

use super::Name;

/// One row of the static table.
pub(super) struct StaticField {
    pub(super) name: &'static [u8],
    pub(super) value: &'static [u8],
    pub(super) kind: Name,
}

/// The number of rows; dynamic indices start behind it.
pub(super) const LEN: usize = 61;

/// What is known about a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct NameInfo {
    pub(super) kind: Name,
    /// The first row of the static table with this name, or 0.
    pub(super) index: u8,
    /// Whether the name may occur in HTTP/2 (RFC 9113 §8.2.1).
    pub(super) valid: bool,
}

/// The row at `index`, 1 to `LEN`.
#[inline]
pub(super) fn field(index: usize) -> &'static StaticField {
    &FIELDS[index - 1]
}

/// The size of the row at `index` by RFC 9113 §6.5.2.
#[inline]
pub(super) fn size(index: usize) -> usize {
    usize::from(SIZES[index])
}

/// What the name of the row at `index` means.
#[inline]
pub(super) fn name_at(index: usize) -> NameInfo {
    NAMES[index - 1]
}

/// The row with this name and value, if there is one.
pub(super) fn find(info: NameInfo, value: &[u8]) -> Option<u8> {
    if info.index == 0 {
        return None;
    }
    // Rows of one name are neighbours.
    let rows = &FIELDS[usize::from(info.index) - 1..];
    let name = rows[0].name;
    let nth = rows.iter().take_while(|row| row.name == name).position(|row| row.value == value)?;
    Some(info.index + nth as u8)
}

/// What a name means and whether it is well-formed.
pub(super) fn name(name: &[u8]) -> NameInfo {
    let mut slot = slot_of(name);
    while let Some((known, kind, index)) = KNOWN[slot] {
        if known == name {
            return NameInfo { kind, index, valid: true };
        }
        slot = (slot + 1) % KNOWN_SLOTS;
    }
    let (kind, plain) = match name.strip_prefix(b":") {
        Some(plain) => (Name::UnknownPseudo, plain),
        None => (Name::Regular, name),
    };
    let valid = !plain.is_empty() && plain.iter().all(|&byte| is_name_byte(byte));
    NameInfo { kind, index: 0, valid }
}

/// RFC 9113 §8.2.1: what a field value must not contain. White space at its ends, which it forbids too, is left to the
/// receiver: gRPC servers send it in `grpc-message`, and most clients read it.
pub(super) fn is_valid_value(value: &[u8]) -> bool {
    // No early return: a branch-free pass over the bytes is faster than one that stops.
    !value.iter().fold(false, |found, &byte| found | (byte == 0) | (byte == b'\r') | (byte == b'\n'))
}

/// RFC 9113 §8.2.1: no control, space, upper case, colon behind the first byte, or anything from 0x7f on.
fn is_name_byte(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e) && !byte.is_ascii_uppercase() && byte != b':'
}

const KNOWN_SLOTS: usize = 256;

/// Names of the static table and those the splitter knows beside it, by `slot_of`, collisions in the next free slot.
static KNOWN: [Option<(&[u8], Name, u8)>; KNOWN_SLOTS] = known();

const fn slot_of(name: &[u8]) -> usize {
    match name {
        [] => 0,
        [first, .., last] => (*first as usize * 3 + *last as usize * 7 + name.len() * 29) % KNOWN_SLOTS,
        [only] => *only as usize,
    }
}

const fn known() -> [Option<(&'static [u8], Name, u8)>; KNOWN_SLOTS] {
    let mut table = [None; KNOWN_SLOTS];
    let mut row = 0;
    while row < LEN {
        if row == 0 || !same(FIELDS[row - 1].name, FIELDS[row].name) {
            table[free_slot(&table, FIELDS[row].name)] = Some((FIELDS[row].name, FIELDS[row].kind, row as u8 + 1));
        }
        row += 1;
    }
    let mut at = 0;
    while at < BESIDE.len() {
        table[free_slot(&table, BESIDE[at].0)] = Some((BESIDE[at].0, BESIDE[at].1, 0));
        at += 1;
    }
    table
}

const fn free_slot(table: &[Option<(&'static [u8], Name, u8)>; KNOWN_SLOTS], name: &[u8]) -> usize {
    let mut slot = slot_of(name);
    while table[slot].is_some() {
        slot = (slot + 1) % KNOWN_SLOTS;
    }
    slot
}

const fn same(a: &[u8], b: &[u8]) -> bool {
    let mut at = 0;
    while at < a.len() && at < b.len() && a[at] == b[at] {
        at += 1;
    }
    at == a.len() && at == b.len()
}

/// Names without a row that the splitter knows, or that every gRPC call carries.
const BESIDE: [(&[u8], Name); 12] = [
    (b"te", Name::Te),
    (b"grpc-status", Name::GrpcStatus),
    (b"grpc-message", Name::GrpcMessage),
    (b"grpc-timeout", Name::GrpcTimeout),
    (b"grpc-encoding", Name::Regular),
    (b"grpc-accept-encoding", Name::Regular),
    (b"grpc-status-details-bin", Name::Regular),
    (b"traceparent", Name::Regular),
    (b"connection", Name::ConnectionSpecific),
    (b"proxy-connection", Name::ConnectionSpecific),
    (b"keep-alive", Name::ConnectionSpecific),
    (b"upgrade", Name::ConnectionSpecific),
];

/// By row; of rows with one name the first is its index, whichever the sender has used.
static NAMES: [NameInfo; LEN] = {
    let mut names = [NameInfo { kind: Name::Regular, index: 1, valid: true }; LEN];
    let mut row = 0;
    while row < LEN {
        let repeats = row > 0 && same(FIELDS[row - 1].name, FIELDS[row].name);
        let index = if repeats { names[row - 1].index } else { row as u8 + 1 };
        names[row] = NameInfo { kind: FIELDS[row].kind, index, valid: true };
        row += 1;
    }
    names
};

static SIZES: [u16; LEN + 1] = {
    let mut sizes = [0; LEN + 1];
    let mut row = 0;
    while row < LEN {
        sizes[row + 1] = (FIELDS[row].name.len() + FIELDS[row].value.len() + super::ENTRY_OVERHEAD) as u16;
        row += 1;
    }
    sizes
};

const fn row(name: &'static str, value: &'static str, kind: Name) -> StaticField {
    StaticField { name: name.as_bytes(), value: value.as_bytes(), kind }
}

static FIELDS: [StaticField; LEN] = [
    row(":authority", "", Name::Authority),
    row(":method", "GET", Name::Method),
    row(":method", "POST", Name::Method),
    row(":path", "/", Name::Path),
    row(":path", "/index.html", Name::Path),
    row(":scheme", "http", Name::Scheme),
    row(":scheme", "https", Name::Scheme),
    row(":status", "200", Name::Status),
    row(":status", "204", Name::Status),
    row(":status", "206", Name::Status),
    row(":status", "304", Name::Status),
    row(":status", "400", Name::Status),
    row(":status", "404", Name::Status),
    row(":status", "500", Name::Status),
    row("accept-charset", "", Name::Regular),
    row("accept-encoding", "gzip, deflate", Name::Regular),
    row("accept-language", "", Name::Regular),
    row("accept-ranges", "", Name::Regular),
    row("accept", "", Name::Regular),
    row("access-control-allow-origin", "", Name::Regular),
    row("age", "", Name::Regular),
    row("allow", "", Name::Regular),
    row("authorization", "", Name::Regular),
    row("cache-control", "", Name::Regular),
    row("content-disposition", "", Name::Regular),
    row("content-encoding", "", Name::Regular),
    row("content-language", "", Name::Regular),
    row("content-length", "", Name::ContentLength),
    row("content-location", "", Name::Regular),
    row("content-range", "", Name::Regular),
    row("content-type", "", Name::ContentType),
    row("cookie", "", Name::Regular),
    row("date", "", Name::Regular),
    row("etag", "", Name::Regular),
    row("expect", "", Name::Regular),
    row("expires", "", Name::Regular),
    row("from", "", Name::Regular),
    row("host", "", Name::Regular),
    row("if-match", "", Name::Regular),
    row("if-modified-since", "", Name::Regular),
    row("if-none-match", "", Name::Regular),
    row("if-range", "", Name::Regular),
    row("if-unmodified-since", "", Name::Regular),
    row("last-modified", "", Name::Regular),
    row("link", "", Name::Regular),
    row("location", "", Name::Regular),
    row("max-forwards", "", Name::Regular),
    row("proxy-authenticate", "", Name::Regular),
    row("proxy-authorization", "", Name::Regular),
    row("range", "", Name::Regular),
    row("referer", "", Name::Regular),
    row("refresh", "", Name::Regular),
    row("retry-after", "", Name::Regular),
    row("server", "", Name::Regular),
    row("set-cookie", "", Name::Regular),
    row("strict-transport-security", "", Name::Regular),
    row("transfer-encoding", "", Name::ConnectionSpecific),
    row("user-agent", "", Name::Regular),
    row("vary", "", Name::Regular),
    row("via", "", Name::Regular),
    row("www-authenticate", "", Name::Regular),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rows_are_those_an_independent_implementation_knows() {
        let mut oracle = httlib_hpack::Decoder::default();
        for index in 1..=LEN {
            let mut fields = Vec::new();
            oracle.decode(&mut vec![0x80 | index as u8], &mut fields).unwrap();
            assert_eq!((field(index).name, field(index).value), (&fields[0].0[..], &fields[0].1[..]), "row {index}");
            assert_eq!(size(index), field(index).name.len() + field(index).value.len() + 32);
        }
    }

    #[test]
    fn every_row_is_found_again_by_name_and_value() {
        for index in 1..=LEN {
            let row = field(index);
            let info = name(row.name);
            assert_eq!(info, name_at(index));
            assert_eq!(info.kind, row.kind);
            assert!(info.valid && usize::from(info.index) <= index && field(usize::from(info.index)).name == row.name);
            assert_eq!(find(info, row.value), Some(index as u8));
            assert_eq!(find(info, b"no row has this"), None);
        }
        for (known, kind) in BESIDE {
            assert_eq!(name(known), NameInfo { kind, index: 0, valid: true });
        }
    }

    #[test]
    fn names_that_http_2_forbids_are_marked() {
        let good: [&[u8]; 5] = [b"x-a", b"!#$%&'*+-.^_`|~09az", b"x{y}", b":known-to-nobody", b"q"];
        for good in good {
            assert!(name(good).valid, "{}", good.escape_ascii());
        }
        let bad: [&[u8]; 4] = [b"", b":", b"::path", b"pa:th"];
        for bad in bad {
            assert!(!name(bad).valid, "{}", bad.escape_ascii());
        }
        for byte in (0..=0x20).chain(0x41..=0x5a).chain(0x7f..=0xff) {
            for bad in [vec![byte], vec![b'a', byte], vec![byte, b'a'], vec![b':', byte]] {
                assert!(!name(&bad).valid, "{}", bad.escape_ascii());
            }
        }
        assert_eq!(name(b":foo").kind, Name::UnknownPseudo);
        assert_eq!(name(b"Content-Type").kind, Name::Regular);
    }

    #[test]
    fn values_that_http_2_forbids_are_marked() {
        let good: [&[u8]; 7] = [b"", b"a b\tc", b"\x01\x7f\x80\xff", b"x", b"application/grpc", b" a", b"failed: "];
        for good in good {
            assert!(is_valid_value(good), "{}", good.escape_ascii());
        }
        let bad: [&[u8]; 5] = [b"\0", b"a\0b", b"a\rb", b"a\nb", b"\n"];
        for bad in bad {
            assert!(!is_valid_value(bad), "{}", bad.escape_ascii());
        }
    }
}
