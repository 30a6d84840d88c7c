/// A vector of `i32`, one lane a group.
///
/// All arithmetic wraps, so that every implementation gives the same bits.
///
/// # Safety
/// An implementor is plain data: exactly `LANES` `i32` side by side, every bit pattern valid, aligned to at most
/// 64 bytes, with `LANES` a divisor of 16. The methods may be called only where the processor has the vector's
/// instruction set.
pub(super) unsafe trait Vector: Copy {
    /// Numbers in a vector.
    const LANES: usize;

    // SAFETY, of each method: the caller runs it only where the processor has the vector's instruction set.
    unsafe fn splat(number: i32) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn and(self, other: Self) -> Self;
    unsafe fn min(self, other: Self) -> Self;
}

// SAFETY: one `i32` is one lane; plain Rust runs everywhere.
unsafe impl Vector for i32 {
    const LANES: usize = 1;

    // SAFETY: plain Rust, which runs everywhere.
    #[inline(always)]
    unsafe fn splat(number: i32) -> Self {
        number
    }

    // SAFETY: plain Rust, which runs everywhere.
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.wrapping_add(other)
    }

    // SAFETY: plain Rust, which runs everywhere.
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.wrapping_mul(other)
    }

    // SAFETY: plain Rust, which runs everywhere.
    #[inline(always)]
    unsafe fn and(self, other: Self) -> Self {
        self & other
    }

    // SAFETY: plain Rust, which runs everywhere.
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        Ord::min(self, other)
    }
}

/// A cache line of `i32`: the unit in which memory for vectors is allocated, whatever their width.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub(super) struct Line([i32; Line::LEN]);

impl Line {
    /// Numbers in a line.
    pub const LEN: usize = 16;

    /// Enough zeroed lines for `numbers` numbers.
    pub fn zeroed(numbers: usize) -> Vec<Line> {
        vec![Line::default(); numbers.div_ceil(Self::LEN)]
    }

    /// Lines as numbers.
    pub fn numbers(lines: &[Line]) -> &[i32] {
        // SAFETY: `i32` satisfies `Vector`'s contract, whose layout part is all that is needed.
        unsafe { Self::vectors::<i32>(lines) }
    }

    /// Lines as numbers.
    pub fn numbers_mut(lines: &mut [Line]) -> &mut [i32] {
        // SAFETY: as above.
        unsafe { Self::vectors_mut::<i32>(lines) }
    }

    /// Lines as vectors.
    ///
    /// # Safety
    /// None beyond [`Vector`]'s own contract: a line is a whole number of vectors and at least as aligned.
    #[inline(always)]
    pub unsafe fn vectors<V: Vector>(lines: &[Line]) -> &[V] {
        // SAFETY: size, alignment and validity by `Vector`'s contract; the borrow carries over.
        unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * (Self::LEN / V::LANES)) }
    }

    /// Lines as vectors.
    ///
    /// # Safety
    /// As [`Line::vectors`].
    #[inline(always)]
    pub unsafe fn vectors_mut<V: Vector>(lines: &mut [Line]) -> &mut [V] {
        // SAFETY: as in `vectors`, and the borrow is exclusive.
        unsafe {
            std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * (Self::LEN / V::LANES))
        }
    }
}
