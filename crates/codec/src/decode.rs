use crate::{Bits, GROUP};

/// The state of weight `i` of a group: the eight ring bits that start at bit `K·i`.
///
/// `group` holds [`Bits::group_bytes`] bytes and `i` is below [`GROUP`].
pub fn state(bits: Bits, group: &[u8], i: usize) -> u8 {
    let ring = bits.group_bytes();
    let (byte, shift) = (bits.get() * i / 8, bits.get() * i % 8);
    let pair = u16::from_le_bytes([group[byte], group[(byte + 1) % ring]]);
    (pair >> shift) as u8
}

/// Decodes one group of [`Bits::group_bytes`] bytes to its 32 values (not yet times the row's scale).
///
/// This is the oracle that every fast decoder is tested against.
pub fn decode_group(bits: Bits, group: &[u8], values: &mut [i8; GROUP]) {
    let table = bits.table();
    for (i, value) in values.iter_mut().enumerate() {
        *value = table.value(state(bits, group, i));
    }
}

/// Decodes a row: `codes` holds [`Bits::row_bytes`] of `values.len()` bytes.
///
/// # Panics
/// If the two lengths do not belong together.
pub fn decode_row(bits: Bits, codes: &[u8], values: &mut [i8]) {
    assert_eq!(bits.row_bytes(values.len()), Some(codes.len()), "codes and values of one row");
    let (groups, _) = values.as_chunks_mut::<GROUP>();
    for (group, values) in codes.chunks_exact(bits.group_bytes()).zip(groups) {
        decode_group(bits, group, values);
    }
}
