// A linear for many tokens: a tile of 64 rows by 64 tokens a workgroup. For each group of 32 columns one half of the
// threads decodes 64 rows, the other fetches 64 tokens' numbers, and all multiply. Both stand in workgroup memory as
// [4 columns][row or token]. A thread has 4 pairs of rows by 4 tokens. Workgroup (tile of rows, tile of tokens).

// [8][64] of weights and then [8][64] of activations.
var<workgroup> tile: array<vec4<f32>, 1024>;
var<workgroup> norms: array<f32, 64>;

fn mul(sum: f32, a: vec4<f32>, b: vec4<f32>) -> f32 {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sum))));
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    fill_values(t);
    let slot = t % 64u;
    let fetched = wg.y * 64u + slot;
    let tokens = step[GEMM_TOKENS_WORD];
    var squares = 0.0;
    let pair0 = t % 8u;
    let token0 = t / 8u;
    DECLARE_SUMS
    for (var g = 0u; g < GROUPS; g++) {
        workgroupBarrier();
        if t < 64u {
            let group = decode_of_slot(wg.x, slot, g);
            for (var i = 0u; i < 8u; i++) {
                tile[i * 64u + slot] = group.v[i];
            }
        } else {
            // Past the last token the last one again: nothing comes of it.
            let group = load(min(fetched, tokens - 1u), g);
            squares += square(group);
            for (var i = 0u; i < 8u; i++) {
                tile[512u + i * 64u + slot] = group.v[i];
            }
        }
        workgroupBarrier();
        for (var i = 0u; i < 8u; i++) {
            let base = i * 64u;
            MULTIPLY
        }
    }
    if t >= 64u {
        norms[slot] = norm_scale(squares);
    }
    workgroupBarrier();
    EMIT_PAIRS
}
