// A linear, plainly: a thread multiplies one pair of rows by one token. No workgroup memory, no barrier, no subgroup: the
// version that the fast ones are held to. Workgroup (64 pairs, token).

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= SLOT_TILES * 32u {
        return;
    }
    let tile = id.x / 32u;
    let pair = id.x % 32u;
    var squares = 0.0;
    var y = vec2<f32>();
    for (var at = 0u; at < GROUPS * 8u; at++) {
        let x = load4(id.y, at);
        squares += dot(x, x);
        y += vec2<f32>(dot(four_of_slot(tile, pair, at), x), dot(four_of_slot(tile, pair + 32u, at), x));
    }
    emit_slot(tile, id.y, pair, y * norm_scale(squares));
}
