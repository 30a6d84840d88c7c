// The Hadamard on the inside of the MLP, in place. Workgroup (block, token).

var<workgroup> tile: array<f32, BLOCK>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let at = wg.y * MLP + wg.x * BLOCK;
    for (var i = t; i < BLOCK; i += THREADS) {
        tile[i] = h[at + i];
    }
    hadamard(t);
    for (var i = t; i < BLOCK; i += THREADS) {
        h[at + i] = tile[i] * HADAMARD_SCALE;
    }
}
