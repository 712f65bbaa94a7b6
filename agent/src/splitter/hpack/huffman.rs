//! Huffman-coded strings (RFC 7541 §5.2, Appendix B): coded bytes in, plain bytes out.
//!
//! The code is canonical, so the code lengths alone define it; every table below is computed from them by the compiler. Codes of up
//! to ten bits (all of ASCII that URLs, hosts and media types are made of) are one look-up, longer ones a short search by length.
//! There is no encoder: a string is coded by its sender once and then travels as an index; a literal leaves us plain.

use super::Error;

/// Bits of the code of each byte; EOS has 30, all ones.
const LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28,
    28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12,
    10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6,
    5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22,
    22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20,
    22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28,
    27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28,
    27, 27, 27, 27, 27, 26,
];

const FAST_BITS: u32 = 10;
const LONGEST: u32 = 30;

/// The canonical code by length: the first code, and where its symbols start in `symbols`.
struct Canonical {
    first: [u32; LONGEST as usize + 1],
    count: [u32; LONGEST as usize + 1],
    offset: [u32; LONGEST as usize + 1],
    /// All bytes in the order of their codes; EOS would be the 257th.
    symbols: [u8; 256],
}

static CODE: Canonical = canonical();
/// By the next ten bits: the byte and the length of its code, or length 0 where the code is longer.
static FAST: [(u8, u8); 1 << FAST_BITS] = fast();

const fn canonical() -> Canonical {
    let mut code = Canonical {
        first: [0; LONGEST as usize + 1],
        count: [0; LONGEST as usize + 1],
        offset: [0; LONGEST as usize + 1],
        symbols: [0; 256],
    };
    let (mut next, mut placed, mut length) = (0u32, 0usize, 1usize);
    while length <= LONGEST as usize {
        next <<= 1;
        code.first[length] = next;
        code.offset[length] = placed as u32;
        let mut symbol = 0;
        while symbol < 256 {
            if LENGTHS[symbol] as usize == length {
                code.symbols[placed] = symbol as u8;
                placed += 1;
                next += 1;
            }
            symbol += 1;
        }
        code.count[length] = next - code.first[length];
        length += 1;
    }
    // EOS is the last code of the longest length and has no symbol.
    code.count[LONGEST as usize] += 1;
    code
}

const fn fast() -> [(u8, u8); 1 << FAST_BITS] {
    let code = canonical();
    let mut table = [(0, 0); 1 << FAST_BITS];
    let mut length = 1;
    while length <= FAST_BITS {
        let mut nth = 0;
        while nth < code.count[length as usize] {
            let symbol = code.symbols[(code.offset[length as usize] + nth) as usize];
            let start = (code.first[length as usize] + nth) << (FAST_BITS - length);
            let mut low = 0;
            while low < 1 << (FAST_BITS - length) {
                table[(start + low) as usize] = (symbol, length as u8);
                low += 1;
            }
            nth += 1;
        }
        length += 1;
    }
    table
}

/// Appends the decoded string to `out`.
pub(super) fn decode(mut input: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
    // The shortest code has five bits.
    out.reserve(input.len() * 8 / 5);
    // The next `held` bits of the input, from the top down.
    let (mut bits, mut held) = (0u64, 0u32);
    while let Some((word, _)) = input.split_first_chunk::<8>() {
        bits |= u64::from_be_bytes(*word) >> held;
        let taken = (63 - held) / 8;
        input = &input[taken as usize..];
        held += taken * 8;
        while held >= LONGEST {
            let (symbol, length) = symbol_at(bits)?;
            out.push(symbol);
            bits <<= length;
            held -= length;
        }
    }
    loop {
        while held <= 56
            && let Some((&byte, rest)) = input.split_first()
        {
            bits |= u64::from(byte) << (56 - held);
            held += 8;
            input = rest;
        }
        if held == 0 {
            return Ok(());
        }
        // The rest filled up with ones is the rest before a longer padding: a code that reaches into it is not a symbol.
        let filled = bits | u64::MAX.checked_shr(held).unwrap_or(0);
        if held < 8 && filled == u64::MAX {
            return Ok(());
        }
        match symbol_at(filled) {
            Ok((symbol, length)) if length <= held => {
                out.push(symbol);
                bits <<= length;
                held -= length;
            }
            Err(error) if held >= LONGEST => return Err(error),
            Ok(_) | Err(_) => return Err(Error::HuffmanPadding),
        }
    }
}

/// The symbol whose code starts at the top of `bits`, and the code's length.
#[inline]
fn symbol_at(bits: u64) -> Result<(u8, u32), Error> {
    match FAST[(bits >> (64 - FAST_BITS)) as usize] {
        (_, 0) => long_symbol_at(bits),
        (symbol, length) => Ok((symbol, u32::from(length))),
    }
}

#[cold]
fn long_symbol_at(bits: u64) -> Result<(u8, u32), Error> {
    for length in FAST_BITS + 1..=LONGEST {
        let nth = ((bits >> (64 - length)) as u32).wrapping_sub(CODE.first[length as usize]);
        if nth < CODE.count[length as usize] {
            let symbol = CODE.symbols.get((CODE.offset[length as usize] + nth) as usize);
            return symbol.map(|&symbol| (symbol, length)).ok_or(Error::HuffmanEndOfString);
        }
    }
    unreachable!("the code is complete: every 30 bits start with one of its codes")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Bits of one byte's code, as text of 0 and 1.
    fn code_of(symbol: u8) -> String {
        let length = usize::from(LENGTHS[usize::from(symbol)]);
        let nth = CODE.symbols[CODE.offset[length] as usize..].iter().position(|&s| s == symbol).unwrap();
        format!("{:0length$b}", CODE.first[length] as usize + nth)
    }

    /// Bits as text to bytes, filled up with ones.
    fn bytes(bits: &str) -> Vec<u8> {
        let mut bits = bits.to_owned();
        while !bits.len().is_multiple_of(8) {
            bits.push('1');
        }
        (0..bits.len()).step_by(8).map(|at| u8::from_str_radix(&bits[at..at + 8], 2).unwrap()).collect()
    }

    fn decoded(input: &[u8]) -> Result<Vec<u8>, Error> {
        let mut out = Vec::new();
        decode(input, &mut out).map(|()| out)
    }

    #[test]
    fn codes_of_every_length_are_those_of_appendix_b() {
        for (symbol, code) in [
            (b'0', "00000"),
            (b'a', "00011"),
            (b' ', "010100"),
            (b':', "1011100"),
            (b'Z', "11111101"),
            (b'!', "1111111000"),
            (b'\'', "11111111010"),
            (b'#', "111111111010"),
            (b'$', "1111111111001"),
            (b'}', "11111111111101"),
            (b'<', "111111111111100"),
            (b'\\', "1111111111111110000"),
            (128, "11111111111111100110"),
            (153, "111111111111111011100"),
            (1, "11111111111111111011000"),
            (249, "1111111111111111111111111110"),
            (22, "111111111111111111111111111110"),
        ] {
            assert_eq!(code_of(symbol), code, "byte {symbol}");
        }
    }

    #[test]
    fn every_pair_of_bytes_is_decoded_at_every_distance_from_the_end() {
        for first in 0..=255u8 {
            for second in 0..=255u8 {
                let plain = [first, second];
                assert_eq!(decoded(&bytes(&(code_of(first) + &code_of(second)))), Ok(plain.to_vec()));
            }
            for tail in 0..20 {
                let plain = [vec![first; 3], vec![b'e'; tail], vec![first]].concat();
                let coded: String = plain.iter().map(|&byte| code_of(byte)).collect();
                assert_eq!(decoded(&bytes(&coded)), Ok(plain));
            }
        }
    }

    #[test]
    fn padding_of_eight_bits_or_more_is_refused() {
        assert_eq!(decoded(&[]), Ok(vec![]));
        assert_eq!(decoded(&bytes(&code_of(b'a'))), Ok(b"a".to_vec()));
        for extra in 1..4 {
            let coded = [bytes(&code_of(b'a')), vec![0xff; extra]].concat();
            assert!(decoded(&coded).is_err(), "{extra} bytes of padding");
        }
        assert_eq!(decoded(&[0xff]), Err(Error::HuffmanPadding));
        // '&' has eight bits, so its string needs no padding at all.
        assert_eq!(decoded(&[0xf8]), Ok(b"&".to_vec()));
        assert_eq!(decoded(&[0xf8, 0xff]), Err(Error::HuffmanPadding));
    }

    #[test]
    fn padding_other_than_ones_is_refused() {
        // 'a' is 00011; every other three bits behind it.
        for low in 0..7u8 {
            assert_eq!(decoded(&[0b0001_1000 | low]), Err(Error::HuffmanPadding), "padding {low:03b}");
        }
        assert_eq!(decoded(&[0b0001_1111]), Ok(b"a".to_vec()));
    }

    #[test]
    fn end_of_string_inside_a_string_is_refused() {
        let eos = "1".repeat(30);
        assert_eq!(decoded(&bytes(&eos)), Err(Error::HuffmanEndOfString));
        assert_eq!(decoded(&bytes(&(code_of(b'a') + &eos + &code_of(b'b')))), Err(Error::HuffmanEndOfString));
        let late = "0".repeat(64 * 5) + &eos + &"0".repeat(64 * 5);
        assert_eq!(decoded(&bytes(&late)), Err(Error::HuffmanEndOfString));
    }
}
