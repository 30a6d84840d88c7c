// Group g of token n's input, which stands as [4 columns][group]: neighbouring threads read neighbouring vectors.
fn load(n: u32, g: u32) -> Group {
    let at = n * GROUPS * 8u + g;
    return Group(array<vec4<f32>, 8>(
        input[at], input[at + GROUPS], input[at + 2u * GROUPS], input[at + 3u * GROUPS],
        input[at + 4u * GROUPS], input[at + 5u * GROUPS], input[at + 6u * GROUPS], input[at + 7u * GROUPS],
    ));
}
