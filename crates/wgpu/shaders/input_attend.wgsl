// Columns 4 at to 4 at + 3 of attention's output. Where the context was split, `input` holds each split's sum of values
// weighted by exp(score - m), and `weights` its largest score m and its sum of weights l: they are joined here (Dao et
// al. 2023, FlashAttention's split over the context), which saves a dispatch. Four columns never lie in two heads.
fn load4(n: u32, at: u32) -> vec4<f32> {
    let splits = step[1];
    if splits == 1u {
        return input[n * GROUPS * 8u + at];
    }
    let head = at * 4u / HEAD_DIM;
    let first = n * splits;
    var most = LOWEST;
    for (var s = 0u; s < splits; s++) {
        most = max(most, weights[(first + s) * HEADS + head].x);
    }
    var sum = vec4<f32>();
    var total = 0.0;
    for (var s = 0u; s < splits; s++) {
        let w = weights[(first + s) * HEADS + head];
        let scale = exp(w.x - most);
        total += scale * w.y;
        sum += scale * input[(first + s) * GROUPS * 8u + at];
    }
    return sum / total;
}
