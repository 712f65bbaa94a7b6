//! HPACK against two implementations of others: blocks of any kind are decoded alike or refused, and what was
//! decoded arrives at the next hop as it was, secrets as secrets, whatever table sizes change meanwhile.

use std::rc::Rc;

use fluke_hpack::decoder::DecoderError;
use httlib_hpack as oracle;
use sluice_agent::splitter::hpack::{CommonLists, Decoder, Encoder, Error, HeaderList, Indexing, ListLimits};

use crate::chance::Chance;

const PLENTY: ListLimits = ListLimits { max_size: 1 << 20, max_fields: 1 << 12 };

/// Name, value, and whether it is never to be indexed.
type Fields = Vec<(Vec<u8>, Vec<u8>, bool)>;

/// By the one that keeps secrets apart. It panics on some blocks that are cut short: for what is known to be whole.
fn by_oracle(decoder: &mut oracle::Decoder<'_>, block: &[u8]) -> Option<Fields> {
    let mut fields = Vec::new();
    decoder.decode(&mut block.to_vec(), &mut fields).ok()?;
    Some(
        fields.into_iter().map(|(name, value, flags)| (name, value, flags == oracle::Decoder::NEVER_INDEXED)).collect(),
    )
}

/// What the other one refuses, and may: RFC 7541 lets each set bounds, or it is no harm.
fn is_strict(error: &DecoderError) -> bool {
    use fluke_hpack::decoder::IntegerDecodingError::TooManyOctets;
    matches!(error, DecoderError::SizeUpdateAtEnd | DecoderError::IntegerDecodingError(TooManyOctets))
}

/// What the other one does not refuse, though RFC 7541 leaves it no choice, and where it panics: at a table size that is
/// cut short.
fn is_ours_alone(error: Error, block: &[u8]) -> bool {
    match error {
        Error::SizeUpdateTooLate | Error::IntegerOverflow | Error::HuffmanPadding | Error::HuffmanEndOfString => true,
        _ => block.contains(&0x3f),
    }
}

/// As the splitter does it: a block that is known is not decoded again.
fn by_us(
    decoder: &mut Decoder,
    common: &mut CommonLists,
    block: &[u8],
    limits: ListLimits,
    list: &mut Rc<HeaderList>,
) -> Result<Fields, Error> {
    *list = decoder.decode_shared(block, limits, common, Rc::default)?.0;
    decoder.check();
    list.check();
    let field = |field: sluice_agent::splitter::hpack::FieldView<'_>| {
        (field.name().to_vec(), field.value().to_vec(), field.indexing() == Indexing::NeverIndexed)
    };
    Ok(list.iter().map(field).collect())
}

/// Blocks into one connection's decoder, up to the first that is refused.
pub fn decode(bytes: &[u8]) {
    let mut chance = Chance::new(bytes);
    let limit = chance.one_of(&[4_096, 0, 100, 600, 16_384]);
    let bounds = ListLimits { max_size: chance.one_of(&[100, 0, 40, 5_000]), max_fields: 3 };
    let mut ours = Decoder::new(limit, 1);
    let mut bounded = Decoder::new(limit, 2);
    let mut theirs = oracle::Decoder::with_dynamic_size(limit as u32);
    let mut others = fluke_hpack::Decoder::new();
    others.set_max_table_size(limit);
    others.set_max_allowed_table_size(limit);
    let (mut list, mut short) = <(Rc<HeaderList>, Rc<HeaderList>)>::default();
    let mut common = CommonLists::default();
    let mut before: &[u8] = &[];
    while !chance.is_over() {
        // 255: the last block once more.
        let block = match chance.byte() {
            255 => before,
            length => chance.take(length.into()),
        };
        before = block;
        let got = by_us(&mut ours, &mut common, block, PLENTY, &mut list);
        let got_short = by_us(&mut bounded, &mut common, block, bounds, &mut short);
        match got {
            Ok(fields) => {
                // Bounds cut the list and nothing else: the table stays in step.
                let cut = got_short.expect("refused for its bounds");
                assert!(fields.starts_with(&cut) && list.size() >= short.size(), "{fields:?} cut to {cut:?}");
                let named: Vec<_> = fields.iter().map(|(name, value, _)| (name.clone(), value.clone())).collect();
                match others.decode(block) {
                    Ok(expected) => assert_eq!(named, expected, "{block:02x?}"),
                    Err(error) if is_strict(&error) => return,
                    Err(error) => panic!("{error:?} where we read {named:?}: {block:02x?}"),
                }
                assert_eq!(Some(fields), by_oracle(&mut theirs, block), "{block:02x?}");
            }
            Err(error) => {
                assert_eq!(got_short, Err(error), "{block:02x?}");
                if !is_ours_alone(error, block) {
                    let expected = others.decode(block);
                    assert!(expected.is_err(), "{error}, but the other reads {expected:?}: {block:02x?}");
                }
                return;
            }
        }
    }
}

/// A connection from us: our encoder, and two readers of its blocks.
struct Outbound {
    encoder: Encoder,
    theirs: oracle::Decoder<'static>,
    ours: Decoder,
}

/// Blocks from one of two connections to one of two others.
pub fn translate(bytes: &[u8]) {
    let mut chance = Chance::new(bytes);
    let size = chance.one_of(&[4_096, 100, 600]);
    let mut inbound = [Decoder::new(size, 1), Decoder::new(size, 1)];
    let mut common = CommonLists::default();
    let outbound = || Outbound {
        encoder: Encoder::new(1),
        theirs: oracle::Decoder::with_dynamic_size(4_096),
        ours: Decoder::new(4_096, 3),
    };
    let mut outbound = [outbound(), outbound()];
    let (mut list, mut mirrored) = <(Rc<HeaderList>, Rc<HeaderList>)>::default();
    let mut last: Vec<&[u8]> = Vec::new();
    while !chance.is_over() {
        let choice = chance.byte();
        let to = &mut outbound[usize::from(choice & 1)];
        for _ in 0..choice >> 6 {
            to.encoder.set_max_table_size(chance.one_of(&[0, 33, 200, 1_000, 4_096, 100_000]));
        }
        let came = match last.get(usize::from(choice >> 1 & 7)) {
            Some(again) => *again,
            None => {
                let length = chance.byte().into();
                chance.take(length)
            }
        };
        last.truncate(6);
        last.insert(0, came);
        let from = &mut inbound[usize::from(choice >> 4 & 1)];
        let Ok(fields) = by_us(from, &mut common, came, PLENTY, &mut list) else { return };
        let mut block = Vec::new();
        to.encoder.encode_shared(&list, &mut block);
        to.encoder.check();
        assert_eq!(by_oracle(&mut to.theirs, &block).as_ref(), Some(&fields), "{block:02x?}");
        assert_eq!(
            by_us(&mut to.ours, &mut CommonLists::default(), &block, PLENTY, &mut mirrored),
            Ok(fields),
            "{block:02x?}"
        );
    }
}
