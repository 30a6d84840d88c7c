// The activations of a workgroup's columns, prepared by all its teams together: four threads a group of 32. Their bytes are those
// of `Acts`: [4 vectors of high bytes, then 4 of low][column].
var<workgroup> shared_words: array<vec4<u32>, 8u * COLUMNS>;
var<workgroup> shared_scales: array<f32, COLUMNS>;

struct Acts { high: array<u32, 16>, low: array<u32, 16>, scale: f32 }

fn pair_bytes(a: u32, b: u32) -> u32 { return (a & 0xffu) | ((b & 0xffu) << 8u); }

// Words of eight columns: the bytes of 2j, 2j+1 and 2j-1; `before` is that of the column before the first.
fn words_of(x: vec4<u32>, y: vec4<u32>, before: u32) -> vec4<u32> {
    return vec4<u32>(
        pair_bytes(x.x, x.y) | ((before & 0xffu) << 16u),
        pair_bytes(x.z, x.w) | ((x.y & 0xffu) << 16u),
        pair_bytes(y.x, y.y) | ((x.w & 0xffu) << 16u),
        pair_bytes(y.z, y.w) | ((y.y & 0xffu) << 16u),
    );
}

// Prepares eight columns; gives the sum of their squares. A group's four threads are neighbours in a subgroup.
fn share(n: u32, t: u32, lane: u32) -> f32 {
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
        let hx = bitcast<vec4<u32>>(high_x + magic);
        let hy = bitcast<vec4<u32>>(high_y + magic);
        let lx = bitcast<vec4<u32>>(fma(high_x, vec4<f32>(-128.0), x * inverse) + magic);
        let ly = bitcast<vec4<u32>>(fma(high_y, vec4<f32>(-128.0), y * inverse) + magic);
        // A group's first column follows its last.
        let before = subgroupShuffle(pair_bytes(hy.w, ly.w), (lane & ~3u) | ((lane + 3u) & 3u));
        let column = u / 4u;
        let part = u % 4u;
        shared_words[part * COLUMNS + column] = words_of(hx, hy, before);
        shared_words[(4u + part) * COLUMNS + column] = words_of(lx, ly, before >> 8u);
        if part == 0u {
            shared_scales[column] = most / 16256.0;
        }
    }
    return squares;
}

fn shared_acts(column: u32) -> Acts {
    let a = shared_words[column];
    let b = shared_words[COLUMNS + column];
    let c = shared_words[2u * COLUMNS + column];
    let d = shared_words[3u * COLUMNS + column];
    let e = shared_words[4u * COLUMNS + column];
    let f = shared_words[5u * COLUMNS + column];
    let g = shared_words[6u * COLUMNS + column];
    let h = shared_words[7u * COLUMNS + column];
    return Acts(
        array<u32, 16>(a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w, c.x, c.y, c.z, c.w, d.x, d.y, d.z, d.w),
        array<u32, 16>(e.x, e.y, e.z, e.w, f.x, f.y, f.z, f.w, g.x, g.y, g.z, g.w, h.x, h.y, h.z, h.w),
        shared_scales[column],
    );
}
