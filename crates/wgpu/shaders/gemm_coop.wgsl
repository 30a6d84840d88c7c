// A linear for many tokens by cooperative matrices of 16 by 16 (f16 products, f32 sums): a tile of 128 rows by 128 tokens a
// workgroup of eight subgroups. For each group of 32 columns half of the threads decode a row each, the others fetch a
// token's numbers each; both stand in workgroup memory as [row or token][32 columns]. A subgroup has 32 rows by 64 tokens.
// Workgroup (tile of rows, tile of tokens).

// Vectors of four from one row to the next: 80 bytes, so that rows of a matrix lie in different banks.
const STRIDE: u32 = 10u;

var<workgroup> weights: array<vec4<f16>, 128u * STRIDE>;
var<workgroup> numbers: array<vec4<f16>, 128u * STRIDE>;
// A matrix of sums a subgroup.
var<workgroup> sums: array<f32, 8u * 256u>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    fill_tables(t);
    let decodes = t < 128u;
    let at = t % 128u;
    // Rows of one matrix are decoded by neighbouring threads.
    let slot = SLOT_OF_THREAD;
    let tokens = step[GEMM_TOKENS_WORD];
    let token = min(wg.y * 128u + at, tokens - 1u);
    let row0 = subgroup % 4u * 32u;
    let token0 = subgroup / 4u * 64u;
    DECLARE_SUMS
    var words: Words;
    var fetched: array<vec4<f16>, 8>;
    if decodes {
        words = words_of_slot(wg.x, slot, 0u);
    } else {
        fetched = fetch(token, 0u);
    }
    for (var g = 0u; g < GROUPS; g++) {
        workgroupBarrier();
        if decodes {
            decode_slot(wg.x, slot, words);
        } else {
            for (var i = 0u; i < 8u; i++) {
                numbers[at * STRIDE + i] = fetched[i];
            }
        }
        if g + 1u < GROUPS {
            if decodes {
                words = words_of_slot(wg.x, slot, g + 1u);
            } else {
                fetched = fetch(token, g + 1u);
            }
        }
        workgroupBarrier();
        for (var k = 0u; k < 8u; k += 4u) {
            MULTIPLY
        }
    }
    EMIT_MATRICES
}

// 32 numbers of a token.
fn fetch(token: u32, g: u32) -> array<vec4<f16>, 8> {
    let at = (token * GROUPS + g) * 8u;
    return array<vec4<f16>, 8>(
        input[at], input[at + 1u], input[at + 2u], input[at + 3u],
        input[at + 4u], input[at + 5u], input[at + 6u], input[at + 7u],
    );
}
