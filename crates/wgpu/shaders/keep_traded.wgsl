// Keeps the sums of eight rows over a subgroup of SUBGROUP threads. Neighbours trade four rows for four, then two for two and
// one for one, so that each lane adds up one row and not eight; lanes 0 to 7 write.
fn keep(slot: u32, a: vec4<f32>, b: vec4<f32>, again: bool, thread: Thread) {
    let second = (thread.lane & 1u) != 0u;
    let four = select(a, b, second) + subgroupShuffleXor(select(b, a, second), 1u);
    let lower = (thread.lane & 2u) != 0u;
    let two = select(four.xy, four.zw, lower) + subgroupShuffleXor(select(four.zw, four.xy, lower), 2u);
    let odd = (thread.lane & 4u) != 0u;
    var one = select(two.x, two.y, odd) + subgroupShuffleXor(select(two.y, two.x, odd), 4u);
    for (var distance = 8u; distance < SUBGROUP; distance *= 2u) {
        one += subgroupShuffleXor(one, distance);
    }
    if thread.lane < 8u {
        let row = (thread.lane & 2u) + (thread.lane >> 2u);
        let at = ((slot + (thread.lane & 1u)) * SUBGROUPS + thread.subgroup) * 4u + row;
        write(at, one, again);
    }
}
