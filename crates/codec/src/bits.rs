use crate::{GROUP, Table, tables};

/// Bits a weight: the `K` of T8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Bits {
    /// 2 bits a weight.
    B2 = 2,
    /// 3 bits a weight.
    B3 = 3,
    /// 4 bits a weight.
    B4 = 4,
    /// 5 bits a weight.
    B5 = 5,
    /// 6 bits a weight.
    B6 = 6,
    /// 8 bits a weight: states no longer overlap, the code is a scalar one.
    B8 = 8,
}

/// A number of bits for which there is no T8 code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} bits a weight is not a T8 code: use 2, 3, 4, 5, 6 or 8")]
pub struct BitsError(pub u8);

impl Bits {
    /// Every code, fewest bits first.
    pub const ALL: [Bits; 6] = [Bits::B2, Bits::B3, Bits::B4, Bits::B5, Bits::B6, Bits::B8];

    /// The number of bits a weight.
    pub const fn get(self) -> usize {
        self as usize
    }

    /// Bytes of one group of [`GROUP`] weights: `4·K`.
    pub const fn group_bytes(self) -> usize {
        GROUP / 8 * self.get()
    }

    /// Bytes of a row of `cols` weights, or `None` where `cols` is not a multiple of [`GROUP`] or the size overflows.
    pub const fn row_bytes(self, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(GROUP) { None } else { (cols / GROUP).checked_mul(self.group_bytes()) }
    }

    /// The code's value tables.
    pub const fn table(self) -> &'static Table {
        tables::table(self)
    }
}

impl TryFrom<u8> for Bits {
    type Error = BitsError;

    fn try_from(bits: u8) -> Result<Self, BitsError> {
        Self::ALL.into_iter().find(|b| *b as u8 == bits).ok_or(BitsError(bits))
    }
}
