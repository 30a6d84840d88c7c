// norm(x) of the tokens whose logits are asked for; with tied embeddings R(gain * undo R) of it. Workgroup: a row of logits.
// BLOCK is the rotation's block, 1 where nothing is rotated; `gain` is the final norm's.

var<workgroup> tile: array<f32, BLOCK>;
var<workgroup> squares: array<f32, THREADS>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let source = logits_token(wg.y) * HIDDEN;
    let to = wg.y * HIDDEN;
    var sum = 0.0;
    for (var i = t; i < HIDDEN; i += THREADS) {
        sum += x[source + i] * x[source + i];
    }
    squares[t] = sum;
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if t < half {
            squares[t] += squares[t + half];
        }
    }
    workgroupBarrier();
    let scale = inverseSqrt(squares[0] / f32(HIDDEN) + EPS);
    if TIED == 0u || BLOCK == 1u {
        for (var i = t; i < HIDDEN; i += THREADS) {
            rows[to + i] = x[source + i] * scale * select(1.0, gain[i], TIED == 1u);
        }
        return;
    }
    for (var block = 0u; block < HIDDEN; block += BLOCK) {
        for (var i = t; i < BLOCK; i += THREADS) {
            tile[i] = x[source + block + i] * scale;
        }
        hadamard(t);
        // The signs cancel: they undo one rotation and begin the next.
        for (var i = t; i < BLOCK; i += THREADS) {
            tile[i] *= gain[block + i] * HADAMARD_SCALE;
        }
        hadamard(t);
        for (var i = t; i < BLOCK; i += THREADS) {
            rows[to + block + i] = tile[i] * HADAMARD_SCALE;
        }
        workgroupBarrier();
    }
}
