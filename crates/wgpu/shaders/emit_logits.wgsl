// Rows 2 pair and 2 pair + 1 of the logits; a vocabulary may be odd.
fn emit(n: u32, m: u32, pair: u32, y: vec2<f32>) {
    logits[n * VOCAB + 2u * pair] = y.x;
    if 2u * pair + 1u < VOCAB {
        logits[n * VOCAB + 2u * pair + 1u] = y.y;
    }
}
