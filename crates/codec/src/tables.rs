//! Placeholder.

use crate::{Bits, Table};

pub(crate) const fn table(_bits: Bits) -> &'static Table {
    &Table {
        low: [-60, -52, -44, -36, -28, -20, -12, -4, 4, 12, 20, 28, 36, 44, 52, 60],
        high: [-60, -52, -44, -36, -28, -20, -12, -4, 4, 12, 20, 28, 36, 44, 52, 60],
        sigma: 40.0,
    }
}
