// y is row `row` of gate and of up: silu(gate) * up. PLACE: where its number stands.
fn emit(n: u32, m: u32, row: u32, y: vec2<f32>) {
    h[n * MLP + PLACE] = y.x / (1.0 + exp(-y.x)) * y.y;
}
