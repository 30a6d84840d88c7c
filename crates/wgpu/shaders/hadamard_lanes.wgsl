// Multiplies a block of columns by the orthonormal Hadamard matrix. Its groups of 32 lie in neighbouring lanes of a subgroup;
// `src/gemv.rs` writes the butterflies between a group's vectors and between lanes out.
fn within(v: vec4<f32>) -> vec4<f32> {
    let a = vec4<f32>(v.x + v.y, v.x - v.y, v.z + v.w, v.z - v.w);
    return vec4<f32>(a.xy + a.zw, a.xy - a.zw);
}

fn hadamard(group: Group, lane: u32) -> Group {
BUTTERFLIES
}
