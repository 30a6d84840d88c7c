use std::{marker::PhantomData, ops::Range};

use super::Pool;

/// How a row-major matrix is cut into tiles, each the work of one thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid<'a> {
    /// Numbers from one row to the next.
    pub stride: usize,
    /// Rows of a tile (the last may have fewer).
    pub row_step: usize,
    /// The columns are made of parts of these widths, side by side; tiles do not cross from one to the next.
    pub parts: &'a [usize],
    /// Columns of a tile (a part's last may have fewer).
    pub col_step: usize,
}

/// A tile: some rows, and some columns of one part.
pub(crate) struct Tile<'a, T> {
    /// Its rows.
    pub rows: Range<usize>,
    /// The part.
    pub part: usize,
    /// Its columns, counted from the part's first.
    pub cols: Range<usize>,
    /// Where the part begins.
    base: usize,
    stride: usize,
    data: &'a Shared<'a, T>,
}

impl<T> Tile<'_, T> {
    /// The tile's part of a row.
    ///
    /// # Panics
    /// If the row is not one of the tile's.
    pub(crate) fn row(&mut self, row: usize) -> &mut [T] {
        assert!(self.rows.contains(&row), "row {row} of a tile of {:?}", self.rows);
        let start = row * self.stride + self.base + self.cols.start;
        // SAFETY: the tiles of a grid are disjoint (different rows, or different columns of non-overlapping parts, as
        // the parts fit the stride), every tile is made once, and this borrow is exclusive for its tile.
        unsafe { self.data.slice(start, self.cols.len()) }
    }
}

impl Pool {
    /// Cuts `out` into tiles and calls `work` for each, on one thread, which has `scratch[thread]` to itself.
    ///
    /// # Panics
    /// If the parts do not fit the stride, or `out` is no whole number of rows.
    pub(crate) fn tiles<S: Send, T: Send>(
        &mut self,
        scratch: &mut [S],
        out: &mut [T],
        grid: Grid<'_>,
        work: &(dyn Fn(&mut S, &mut Tile<'_, T>) + Sync),
    ) {
        let Grid { stride, row_step, parts, col_step } = grid;
        assert!(parts.iter().sum::<usize>() <= stride && out.len().is_multiple_of(stride), "{grid:?}");
        let rows = out.len() / stride;
        let row_blocks = rows.div_ceil(row_step);
        let col_blocks: usize = parts.iter().map(|width| width.div_ceil(col_step)).sum();
        let data = Shared::new(out);
        self.items(scratch, row_blocks * col_blocks, &|scratch, item| {
            let (mut col_block, row_block) = (item / row_blocks, item % row_blocks);
            let (mut part, mut base) = (0, 0);
            while col_block >= parts[part].div_ceil(col_step) {
                col_block -= parts[part].div_ceil(col_step);
                base += parts[part];
                part += 1;
            }
            let (row, col) = (row_block * row_step, col_block * col_step);
            let rows = row..(row + row_step).min(rows);
            let cols = col..(col + col_step).min(parts[part]);
            work(scratch, &mut Tile { rows, part, cols, base, stride, data: &data });
        });
    }
}

/// A slice whose elements are lent to different threads.
pub(super) struct Shared<'a, T> {
    first: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: it lends each element to one thread at a time (the callers' duty), which is what `T: Send` allows.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(super) fn new(slice: &'a mut [T]) -> Self {
        Self { first: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// One element.
    ///
    /// # Safety
    /// Nobody else may have it.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn get(&self, index: usize) -> &mut T {
        assert!(index < self.len);
        // SAFETY: within the slice, and the caller says that nobody else has it.
        unsafe { &mut *self.first.add(index) }
    }

    /// Some elements.
    ///
    /// # Safety
    /// Nobody else may have any of them.
    #[allow(clippy::mut_from_ref)]
    unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.len && len <= self.len - start);
        // SAFETY: within the slice, and the caller says that nobody else has them.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(start), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_the_parts_once_and_nothing_else() {
        let mut pool = Pool::new(3).unwrap();
        let (rows, stride) = (5, 23);
        let mut out = vec![0u32; rows * stride];
        let grid = Grid { stride, row_step: 2, parts: &[10, 3, 8], col_step: 4 };
        pool.tiles(&mut [(); 3], &mut out, grid, &|(), tile| {
            for row in tile.rows.clone() {
                let part = tile.part as u32;
                tile.row(row).iter_mut().for_each(|x| *x += 1 + part);
            }
        });
        for row in out.chunks(stride) {
            let expected = [1; 10].into_iter().chain([2; 3]).chain([3; 8]).chain([0; 2]);
            assert!(row.iter().copied().eq(expected), "{row:?}");
        }
    }
}
