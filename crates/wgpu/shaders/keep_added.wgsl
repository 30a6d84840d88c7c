// Keeps the sums of eight rows over a subgroup, of whatever size.
fn keep(slot: u32, a: vec4<f32>, b: vec4<f32>, again: bool, thread: Thread) {
    let all_a = subgroupAdd(a);
    let all_b = subgroupAdd(b);
    if thread.lane == 0u {
        write(slot, all_a, again, thread);
        write(slot + 1u, all_b, again, thread);
    }
}

fn write(slot: u32, sums: vec4<f32>, again: bool, thread: Thread) {
    let at = (slot * SUBGROUPS + thread.subgroup) * 4u;
    for (var row = 0u; row < 4u; row++) {
        partials[at + row] = sums[row] + select(0.0, partials[at + row], again);
    }
}
