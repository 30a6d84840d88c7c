// The activations of a workgroup's columns, prepared by all its teams together: four threads a group of 32. They wait in
// `scratch`, four bytes a word: [8 words of high bytes, then 8 of low][column], then a scale a column. Rows of columns are longer
// than needed, so that neighbours write to different banks.
const ROW: u32 = COLUMNS + 4u;

// Prepares eight columns a thread; gives the sum of their squares. A group's four threads are neighbours in a subgroup.
fn share(n: u32, t: u32) -> f32 {
    // 1.5·2²³: the last mantissa bits of what it is added to are a rounded integer.
    let magic = vec4<f32>(12582912.0);
    var squares = 0.0;
    for (var u = t; u < COLUMNS * 4u; u += THREADS) {
        let at = n * GROUPS * 8u + min(u, GROUPS * 4u - 1u) * 2u;
        let live = select(0.0, 1.0, u < GROUPS * 4u);
        let x = input[at] * live;
        let y = input[at + 1u] * live;
        squares += dot(x, x) + dot(y, y);
        let larger = max(abs(x), abs(y));
        var most = max(max(larger.x, larger.y), max(larger.z, larger.w));
        most = max(most, subgroupShuffleXor(most, 1u));
        most = max(most, subgroupShuffleXor(most, 2u));
        let inverse = select(0.0, 16256.0 / most, most > 1e-30);
        let high_x = round(x * (inverse / 128.0));
        let high_y = round(y * (inverse / 128.0));
        let low_x = fma(high_x, vec4<f32>(-128.0), x * inverse);
        let low_y = fma(high_y, vec4<f32>(-128.0), y * inverse);
        let column = u / 4u;
        let at_word = u % 4u * 2u * ROW + column;
        scratch[at_word] = bytes(bitcast<vec4<u32>>(high_x + magic));
        scratch[at_word + ROW] = bytes(bitcast<vec4<u32>>(high_y + magic));
        scratch[at_word + 8u * ROW] = bytes(bitcast<vec4<u32>>(low_x + magic));
        scratch[at_word + 9u * ROW] = bytes(bitcast<vec4<u32>>(low_y + magic));
        if u % 4u == 0u {
            scratch[16u * ROW + column] = bitcast<u32>(most / 16256.0);
        }
    }
    return squares;
}

fn shared_acts(column: u32) -> Acts {
    return arranged(
        array<u32, 8>(shared_word(0u, column), shared_word(1u, column), shared_word(2u, column), shared_word(3u, column),
            shared_word(4u, column), shared_word(5u, column), shared_word(6u, column), shared_word(7u, column)),
        array<u32, 8>(shared_word(8u, column), shared_word(9u, column), shared_word(10u, column), shared_word(11u, column),
            shared_word(12u, column), shared_word(13u, column), shared_word(14u, column), shared_word(15u, column)),
        bitcast<f32>(shared_word(16u, column)),
    );
}

fn shared_word(row: u32, column: u32) -> u32 {
    return scratch[row * ROW + column];
}
