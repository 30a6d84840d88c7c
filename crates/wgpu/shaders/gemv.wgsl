// A linear for one token, weights decoded as they are read: a workgroup multiplies QUADS * 4 rows (a tile) by the whole
// vector, a thread taking every THREADS-th group of 32 columns of all of them. Workgroup (tile, token).

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
    SUBGROUP_BUILTINS
) {
    let n = wg.y;
    let tile = wg.x;
    fill_tables(t);
    workgroupBarrier();
    let lane = t % COPIES;
    var squares = 0.0;
    DECLARE_SUMS
    for (var g = t; g < GROUPS; g += THREADS) {
        let group = load(n, g);
        squares += square(group);
        let a = prepare(group);
        ADD_TILE
    }
    REDUCE
    if t < QUADS * 2u {
        let scale = norm_scale(total_squares());
        EMIT_PAIR
    }
}
