// The residual stream takes rows 2 pair and 2 pair + 1.
fn emit(n: u32, m: u32, pair: u32, y: vec2<f32>) {
    x[n * (HIDDEN / 2u) + pair] += y;
}
