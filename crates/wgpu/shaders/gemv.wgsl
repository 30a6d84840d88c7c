// A linear for one token, weights decoded as they are read. A thread holds a group of 32 columns of the input (or several, one
// after the other) and multiplies it by that group of quads of four rows. A team of COLUMNS threads has all columns; the
// teams of a workgroup share its look-up tables and nothing else. Each takes every (TEAMS * num_workgroups)-th step, two
// quads: of one matrix, or where rows of two make pairs one of each. Nothing waits between two steps: each quad's words are on
// their way while the one before it is multiplied, and the sums of a subgroup are kept in workgroup memory until all steps
// are done, or as many as fit (CHUNK). Workgroup (any, token).

// Sums of subgroups, as bits: [team][slot][subgroup of the team][4 rows], a slot a quad; then two slots a team for the sums of
// squares. Before there are sums: activations, where they are shared.
const SLOTS: u32 = 2u * CHUNK;
var<workgroup> scratch: array<u32, SCRATCH>;

// Where a thread stands in its team.
struct Thread { column: u32, lane: u32, subgroup: u32 }

fn total(slot: u32, row: u32, subgroups: u32) -> f32 {
    var sum = 0.0;
    for (var s = 0u; s < subgroups; s++) {
        sum += bitcast<f32>(scratch[(slot * SUBGROUPS + s) * 4u + row]);
    }
    return sum;
}

// Writes a sum, or adds it to the one that is there.
fn write(at: u32, sum: f32, again: bool) {
    scratch[at] = bitcast<u32>(sum + select(0.0, bitcast<f32>(scratch[at]), again));
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
    SUBGROUP_BUILTINS
) {
    THREAD
    let n = wg.y;
    let stride = workgroups.x * TEAMS;
    let lane = t % COPIES;
    var squares = 0.0;
    DECLARE_ACTS
    for (var first = wg.x * TEAMS; first < STEPS; first += CHUNK * stride) {
        let end = min(STEPS, first + CHUNK * stride);
        for (var turn = 0u; turn < TURNS; turn++) {
            let g = min(turn * COLUMNS + thread.column, GROUPS - 1u);
            var step = first + team;
            var slot = team * SLOTS;
            FIRST_WORDS
            PREPARE
            MULTIPLY_STEPS
        }
        KEEP_SQUARES
        workgroupBarrier();
        let scale = NORM_SCALE;
        // Each team's steps of the chunk.
        let rounds = (end - first + stride - 1u) / stride;
        FINISH
        workgroupBarrier();
    }
}
