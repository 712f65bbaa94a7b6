//! Integers (RFC 7541 §5.1): a prefix in the low bits of a first byte, then groups of seven bits, the least significant first.
//!
//! Values are bounded to 32 bits and five continuation bytes, so that neither a huge value nor endless zero groups cost anything.

use super::Error;

/// The most bytes that may follow the prefix; five groups hold 35 bits.
const MAX_CONTINUATION: u32 = 5;

/// Reads an integer whose prefix is the low `prefix_bits` of `first`, its continuation bytes at the front of `input`; returns it with
/// what is left of `input`. (Input goes by value, so that it stays in registers round the decoder's loop.)
#[inline]
pub(super) fn decode(first: u8, prefix_bits: u32, input: &[u8]) -> Result<(usize, &[u8]), Error> {
    let limit = (1u8 << prefix_bits) - 1;
    let prefix = first & limit;
    if prefix < limit { Ok((usize::from(prefix), input)) } else { decode_continuation(limit, input) }
}

#[cold]
fn decode_continuation(limit: u8, mut input: &[u8]) -> Result<(usize, &[u8]), Error> {
    let mut value = u64::from(limit);
    for group in 0..MAX_CONTINUATION {
        let (&byte, rest) = input.split_first().ok_or(Error::Truncated)?;
        input = rest;
        value += u64::from(byte & 0x7f) << (7 * group);
        if byte & 0x80 == 0 {
            let value = u32::try_from(value).map_err(|_| Error::IntegerOverflow)?;
            return Ok((value as usize, input));
        }
    }
    Err(Error::IntegerOverflow)
}

/// Writes `value` behind a first byte whose high bits are `pattern`.
#[inline]
pub(super) fn encode(pattern: u8, prefix_bits: u32, value: usize, out: &mut Vec<u8>) {
    let limit = (1usize << prefix_bits) - 1;
    if value < limit {
        out.push(pattern | value as u8);
        return;
    }
    out.push(pattern | limit as u8);
    let mut rest = value - limit;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode_all(bytes: &[u8], prefix_bits: u32) -> Result<(usize, usize), Error> {
        decode(bytes[0], prefix_bits, &bytes[1..]).map(|(value, rest)| (value, rest.len()))
    }

    #[test]
    fn the_examples_of_rfc_7541_c_1_hold_both_ways() {
        for (value, prefix_bits, bytes) in [(10, 5, &[0x0a][..]), (1337, 5, &[0x1f, 0x9a, 0x0a]), (42, 8 - 1, &[0x2a])]
        {
            let mut out = Vec::new();
            encode(0, prefix_bits, value, &mut out);
            assert_eq!(out, bytes);
            assert_eq!(decode_all(bytes, prefix_bits), Ok((value, 0)));
        }
    }

    #[test]
    fn every_value_near_a_border_survives_every_prefix() {
        let borders = (0..32).map(|bit| 1usize << bit).chain([u32::MAX as usize - 1]);
        for value in borders.flat_map(|border| border.saturating_sub(2)..border + 2) {
            for prefix_bits in 4..=7 {
                let mut out = Vec::new();
                encode(0, prefix_bits, value, &mut out);
                out.push(0xaa);
                assert_eq!(decode_all(&out, prefix_bits), Ok((value, 1)), "{value} in {prefix_bits} bits");
            }
        }
    }

    #[test]
    fn an_integer_past_32_bits_is_refused() {
        let largest = [0x1f, 0xe0, 0xff, 0xff, 0xff, 0x0f];
        assert_eq!(decode_all(&largest, 5), Ok((u32::MAX as usize, 0)));
        let one_more = [0x1f, 0xe1, 0xff, 0xff, 0xff, 0x0f];
        assert_eq!(decode_all(&one_more, 5), Err(Error::IntegerOverflow));
        let all_ones = [0x1f, 0xff, 0xff, 0xff, 0xff, 0x7f];
        assert_eq!(decode_all(&all_ones, 5), Err(Error::IntegerOverflow));
    }

    #[test]
    fn endless_zero_groups_are_refused() {
        assert_eq!(decode_all(&[0x1f, 0x80, 0x80, 0x80, 0x80, 0x00], 5), Ok((31, 0)));
        assert_eq!(decode_all(&[0x1f, 0x80, 0x80, 0x80, 0x80, 0x80, 0x00], 5), Err(Error::IntegerOverflow));
    }

    #[test]
    fn an_integer_cut_short_is_refused() {
        assert_eq!(decode_all(&[0x1f], 5), Err(Error::Truncated));
        assert_eq!(decode_all(&[0x1f, 0x80], 5), Err(Error::Truncated));
    }
}
