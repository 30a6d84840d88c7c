// A linear for many tokens: a tile of 64 rows by 64 tokens a workgroup. For each group of 32 columns threads decode 64 rows and
// fetch 64 tokens' numbers, and then all multiply. Both stand in workgroup memory as [4 columns][row or token]. Which pairs of
// rows and which tokens a thread has, `src/gemm.rs` says. Workgroup (tile of rows, tile of tokens).

// [8][64] of weights and then [8][64] of activations.
var<workgroup> tile: array<vec4<f32>, 1024>;
var<workgroup> norms: array<f32, 64>;

fn mul(sum: f32, a: vec4<f32>, b: vec4<f32>) -> f32 {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sum))));
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    fill_values(t);
    let tokens = step[GEMM_TOKENS_WORD];
    let pair0 = t % PAIR_LANES;
    let token0 = t / PAIR_LANES;
    for (var i = t; i < 64u; i += THREADS) {
        norms[i] = 0.0;
    }
    DECLARE_SUMS
    for (var g = 0u; g < GROUPS; g++) {
        workgroupBarrier();
        for (var slot = t; slot < 128u; slot += THREADS) {
            if slot < 64u {
                let group = decode_of_slot(wg.x, slot, g);
                for (var i = 0u; i < 8u; i++) {
                    tile[i * 64u + slot] = group.v[i];
                }
            } else {
                // Past the last token the last one again: nothing comes of it.
                let group = load(min(wg.y * 64u + slot - 64u, tokens - 1u), g);
                ADD_SQUARES
                for (var i = 0u; i < 8u; i++) {
                    tile[512u + i * 64u + slot - 64u] = group.v[i];
                }
            }
        }
        workgroupBarrier();
        for (var i = 0u; i < 8u; i++) {
            let base = i * 64u;
            MULTIPLY
        }
    }
    EMIT_PAIRS
}
