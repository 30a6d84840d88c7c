// Keeps the sums of eight rows over a subgroup, of whatever size.
fn keep(slot: u32, a: vec4<f32>, b: vec4<f32>, again: bool, thread: Thread) {
    let all_a = subgroupAdd(a);
    let all_b = subgroupAdd(b);
    if thread.lane == 0u {
        write_quad(slot, all_a, again, thread);
        write_quad(slot + 1u, all_b, again, thread);
    }
}

fn write_quad(slot: u32, sums: vec4<f32>, again: bool, thread: Thread) {
    let at = (slot * SUBGROUPS + thread.subgroup) * 4u;
    for (var row = 0u; row < 4u; row++) {
        write(at + row, sums[row], again);
    }
}
