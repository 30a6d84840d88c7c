//! Nibbles of the ring in ascending order, for the kernel that has no registers to spare.
//!
//! Step `i` looks up the low nibble of weight `i + 1` and the high one of weight `i`, whichever comes first in the ring. So
//! every byte is loaded once, and a byte's upper bits are cut once: nibbles that reach into the next byte take one bit more
//! of it each, in place (see `Tables` for the order of their bits), over what the nibble before has taken.
//!
//! What is in assembly is said to have side effects, so that it stays in order: compilers would mix steps, and have more
//! numbers on their way than there are registers.

use std::arch::{aarch64::*, asm};

use super::{
    neon::{HALF, Registers, insert, shift_right},
    planar::VECTOR,
};

/// Where step `i` cuts: the two nibbles' ring bits in ascending order, and before them where the step before cut last.
pub(super) const fn cuts<const K: usize>(i: usize) -> [usize; 3] {
    let [low, high] = [K * (i + 1), K * i + 4];
    let before = match i {
        0 => 0,
        _ if low > high => K * i,
        _ => high - K,
    };
    if low < high { [before, low, high] } else { [before, high, low] }
}

/// Where in the ring of a tile's groups a kernel is.
pub(super) struct Ring {
    /// The last even and the last odd byte of the groups of each half.
    bytes: [[uint8x16_t; 2]; 2],
    /// The next byte.
    next: *const u8,
    /// Of each half, the byte's upper four bits, the lowest replaced by as many of the next byte's as the last nibble took.
    upper: [uint8x16_t; 2],
    /// The last nibbles.
    nibbles: [uint8x16_t; 2],
}

impl Ring {
    /// Loads the first byte, and cuts its lower nibbles.
    ///
    /// # Safety
    /// `tile` points to a tile.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) unsafe fn new(tile: *const u8) -> Self {
        let mut next = tile;
        // SAFETY: the caller's.
        let first = unsafe { next_byte(&mut next) };
        let nibbles = first.map(|byte| vandq_u8(byte, vdupq_n_u8(15)));
        Self { bytes: [first; 2], next, upper: first, nibbles }
    }

    /// The tile behind this one, once all of this one is loaded.
    pub(super) fn next_tile(&self) -> *const u8 {
        self.next
    }

    /// Loads what the nibbles at ring bit `at` need, given those `before` (constants once compiled).
    ///
    /// # Safety
    /// The tile is one of `K` bits a weight; nibbles are taken in ascending order.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) unsafe fn load<const K: usize>(&mut self, before: usize, at: usize) {
        let (same, two) = (before / 8 == at / 8, at % 8 > 4);
        let has_two = before % 8 > 4;
        if !same && !has_two {
            // SAFETY: the caller's.
            unsafe { self.load_byte::<K>(at / 8) };
        }
        if two && !(same && has_two) {
            // SAFETY: the caller's.
            unsafe { self.load_byte::<K>(at / 8 + 1) };
        }
    }

    /// Loads a byte, in order.
    ///
    /// # Safety
    /// As for [`Ring::load`].
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn load_byte<const K: usize>(&mut self, byte: usize) {
        // The ring's end is followed by its beginning.
        let mut first = self.next.wrapping_sub(VECTOR * 4 * K);
        let from = if byte == 4 * K { &mut first } else { &mut self.next };
        // SAFETY: the caller's tile has 4 · K bytes.
        self.bytes[byte % 2] = unsafe { next_byte(from) };
    }

    /// What `tables` have for the nibbles at ring bit `at` of a half, given those `before`.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) fn look_up(
        &mut self,
        half: usize,
        before: usize,
        at: usize,
        tables: &[uint8x16_t; 4],
        registers: &Registers,
    ) -> uint8x16_t {
        if at != before {
            self.nibbles[half] = self.cut(half, before, at, registers);
        }
        let (nibbles, table) = (self.nibbles[half], tables[(at % 8).saturating_sub(4)]);
        let found;
        // SAFETY: every processor of the architecture has the instruction; it touches no memory.
        unsafe {
            asm!(
                "tbl {found:v}.16b, {{{table:v}.16b}}, {nibbles:v}.16b",
                found = lateout(vreg) found,
                table = in(vreg) table,
                nibbles = in(vreg) nibbles,
                options(nostack, preserves_flags),
            );
        }
        found
    }

    #[inline]
    #[target_feature(enable = "neon")]
    fn cut(&mut self, half: usize, before: usize, at: usize, registers: &Registers) -> uint8x16_t {
        let (byte, bit) = (at / 8, at % 8);
        let [this, next] = [byte % 2, (byte + 1) % 2].map(|parity| self.bytes[parity][half]);
        if bit < 4 {
            return vandq_u8(shift_right(this, bit), vdupq_n_u8(15));
        }
        let upper = &mut self.upper[half];
        if before / 8 != byte || before % 8 < 4 {
            *upper = vshrq_n_u8::<4>(this);
        }
        if bit > 4 {
            *upper = insert(*upper, next, registers.lowest[bit - 5]);
        }
        *upper
    }
}

/// A byte of both halves' groups.
///
/// # Safety
/// `byte` points to one.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn next_byte(byte: &mut *const u8) -> [uint8x16_t; 2] {
    let (first, second);
    // SAFETY: the caller's 32 bytes.
    unsafe {
        asm!(
            "ldp {first:q}, {second:q}, [{byte}], #{size}",
            first = out(vreg) first,
            second = out(vreg) second,
            byte = inout(reg) *byte,
            size = const 2 * HALF,
            options(nostack, preserves_flags),
        );
    }
    [first, second]
}
