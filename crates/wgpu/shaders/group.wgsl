// 32 numbers: activations of 32 columns, or weights. Loops over them are written out: an array with an index that is not
// constant lives in memory on some drivers.
struct Group { v: array<vec4<f32>, 8> }

fn product(a: Group, b: Group) -> f32 {
    return dot(a.v[0], b.v[0]) + dot(a.v[1], b.v[1]) + dot(a.v[2], b.v[2]) + dot(a.v[3], b.v[3])
        + dot(a.v[4], b.v[4]) + dot(a.v[5], b.v[5]) + dot(a.v[6], b.v[6]) + dot(a.v[7], b.v[7]);
}

fn square(group: Group) -> f32 {
    return product(group, group);
}
