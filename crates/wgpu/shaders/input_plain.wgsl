// Columns 4 at to 4 at + 3 of token n's input.
fn load4(n: u32, at: u32) -> vec4<f32> {
    return input[n * GROUPS * 8u + at];
}
