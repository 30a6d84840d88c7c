// Multiplies blocks of BLOCK numbers in `tile` by the orthonormal Hadamard matrix; all threads call it.
fn hadamard(t: u32) {
    for (var half = 1u; half < BLOCK; half *= 2u) {
        workgroupBarrier();
        for (var i = t; i < BLOCK / 2u; i += THREADS) {
            let at = (i / half) * 2u * half + i % half;
            let a = tile[at];
            let b = tile[at + half];
            tile[at] = a + b;
            tile[at + half] = a - b;
        }
    }
    workgroupBarrier();
}
