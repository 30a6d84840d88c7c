// Joins the splits of a context (Dao et al. 2023, FlashAttention-2): `partial` holds each split's sum of values weighted by
// exp(score - m), `weights` its largest score m and its sum of weights. Workgroup (two numbers a thread, token).

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let at = id.x;
    let n = id.y;
    if at >= HEADS * HALF {
        return;
    }
    let head = at / HALF;
    let splits = step[1];
    let first = n * splits;
    var most = LOWEST;
    // By four, so that four reads are on their way at once.
    for (var s = 0u; s < splits; s += 4u) {
        for (var i = 0u; i < 4u; i++) {
            most = max(most, weights[(first + min(s + i, splits - 1u)) * HEADS + head].x);
        }
    }
    var sum = vec2<f32>();
    var total = 0.0;
    for (var s = 0u; s < splits; s += 4u) {
        for (var i = 0u; i < 4u; i++) {
            let row = first + min(s + i, splits - 1u);
            let w = weights[row * HEADS + head];
            let scale = select(0.0, exp(w.x - most), s + i < splits);
            total += scale * w.y;
            sum += scale * partial[row * HEADS * HALF + at];
        }
    }
    attended[n * HEADS * HALF + at] = sum / total;
}
