// Columns 4 at to 4 at + 3 of token n's input.
fn load4(n: u32, at: u32) -> vec4<f32> {
    return input[n * GROUPS * 8u + at];
}

// Group g of token n's input.
fn load(n: u32, g: u32) -> Group {
    let at = g * 8u;
    return Group(array<vec4<f32>, 8>(
        load4(n, at), load4(n, at + 1u), load4(n, at + 2u), load4(n, at + 3u),
        load4(n, at + 4u), load4(n, at + 5u), load4(n, at + 6u), load4(n, at + 7u),
    ));
}
