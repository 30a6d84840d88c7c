// Keeps the sums of eight rows over eight threads, where there are no subgroups: by way of workgroup memory.
var<workgroup> mailbox: array<vec4<f32>, THREADS>;

fn keep(slot: u32, a: vec4<f32>, b: vec4<f32>, again: bool, thread: Thread) {
    keep_quad(slot, a, again, thread);
    keep_quad(slot + 1u, b, again, thread);
}

fn keep_quad(slot: u32, sums: vec4<f32>, again: bool, thread: Thread) {
    workgroupBarrier();
    mailbox[thread.column] = sums;
    workgroupBarrier();
    if thread.lane == 0u {
        var all = vec4<f32>();
        for (var i = 0u; i < 8u; i++) {
            all += mailbox[thread.column + i];
        }
        let at = (slot * SUBGROUPS + thread.subgroup) * 4u;
        for (var row = 0u; row < 4u; row++) {
            write(at + row, all[row], again);
        }
    }
}
