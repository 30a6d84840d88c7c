use rayon::prelude::*;

/// Multiplies each block of `block` *rows* of `x` by the orthonormal Hadamard matrix, in place: what
/// [`upg_pdvm::rotation::hadamard`] does to a vector, done to every column of a row-major matrix at once.
///
/// The butterflies add and subtract whole rows, so no column is ever gathered, and each column gets the same bits as
/// the vector version would give.
///
/// # Panics
/// If `block` is not a power of two that divides the number of rows.
pub(crate) fn hadamard_rows(x: &mut [f32], cols: usize, block: usize) {
    assert!(
        block.is_power_of_two() && x.len().is_multiple_of(block * cols),
        "blocks of {block} rows of {cols}"
    );
    let norm = 1.0 / (block as f32).sqrt();
    let mut half = 1;
    while half < block {
        for pair in x.chunks_exact_mut(2 * half * cols) {
            let (a, b) = pair.split_at_mut(half * cols);
            a.par_chunks_mut(cols).zip(b.par_chunks_mut(cols)).for_each(|(a, b)| butterfly(a, b));
        }
        half *= 2;
    }
    x.par_chunks_mut(cols).for_each(|row| row.iter_mut().for_each(|x| *x *= norm));
}

fn butterfly(a: &mut [f32], b: &mut [f32]) {
    for (a, b) in a.iter_mut().zip(b) {
        (*a, *b) = (*a + *b, *a - *b);
    }
}

#[cfg(test)]
mod tests {
    use upg_pdvm::rotation::hadamard;

    use super::hadamard_rows;

    #[test]
    fn each_column_gets_the_bits_of_the_vector_version() {
        let (rows, cols, block) = (24, 5, 8);
        let x: Vec<f32> = (0..rows * cols).map(|i| (i as f32 * 0.71).sin()).collect();
        let mut by_rows = x.clone();
        hadamard_rows(&mut by_rows, cols, block);
        for c in 0..cols {
            let mut column: Vec<f32> = (0..rows).map(|r| x[r * cols + c]).collect();
            hadamard(&mut column, block);
            assert!((0..rows).all(|r| by_rows[r * cols + c].to_bits() == column[r].to_bits()), "column {c}");
        }
    }
}
