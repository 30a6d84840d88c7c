//! WGSL of a linear for one token (`shaders/gemv.wgsl`): which quads a workgroup takes, and what becomes of their sums.

use std::fmt::Write as _;

use upg_codec::GROUP;
use upg_pdvm::rotation;

use crate::{
    code::{self, Arithmetic, Code},
    shaders::{Input, Linear},
    target::{Subgroups, Target},
};

/// Threads of a workgroup of several teams: more share one look-up table, but then each has fewer registers.
const TEAM_THREADS: usize = 640;
/// Threads of a team at most, where workgroups have several teams and where not.
const MOST_COLUMNS: [usize; 2] = [TEAM_THREADS, 320];
/// Workgroup memory from which on a workgroup takes all of it, in bytes, for a table of 32 copies; and what is left for sums
/// then, and where there is less.
pub(crate) const LARGE: usize = 48 << 10;
const SCRATCH_BYTES: [usize; 2] = [16 << 10, 8 << 10];
/// Copies of a larger table from which on it is the faster one: with fewer, lanes meet in too many banks.
const TRIPLE_COPIES: usize = 2;

/// Matrices whose steps are multiplied by the same statements.
struct Run {
    /// The codes of a step's two quads.
    codes: [Code; 2],
    /// The step after its last.
    end: usize,
}

/// How a linear is cut among threads and steps.
pub(crate) struct Cut {
    /// Threads of a team: as many as leave few of them idle in the last turn.
    columns: usize,
    teams: usize,
    /// Groups of 32 columns that a thread takes one after the other.
    turns: usize,
    /// Two quads each: one of each matrix where they are paired, of one of them where not.
    steps: usize,
    subgroups: Subgroups,
    pub arithmetic: Arithmetic,
    /// Copies of each look-up table.
    pub copies: usize,
    /// Whether the teams prepare the activations together.
    pub shared: bool,
    /// Words of workgroup memory beside the tables.
    scratch: usize,
}

impl Cut {
    pub(crate) fn new(linear: &Linear, target: &Target) -> Self {
        let subgroups = target.subgroups;
        let groups = linear.cols / 32;
        let most_columns = MOST_COLUMNS[usize::from(!target.teams)];
        let turns = groups.div_ceil(most_columns.min(target.most_threads));
        let columns = groups.div_ceil(turns).next_multiple_of(subgroups.largest().max(32));
        let teams = if target.teams { (TEAM_THREADS.min(target.most_threads) / columns).max(1) } else { 1 };
        let steps = match linear.paired() {
            true => linear.matrices[0].1.div_ceil(4),
            false => linear.matrices.iter().map(|(_, rows)| rows.div_ceil(8)).sum(),
        };
        let (arithmetic, copies, table_bytes) = tables(linear, target);
        let scratch = SCRATCH_BYTES[usize::from(target.workgroup_bytes < LARGE)]
            .min(target.workgroup_bytes.saturating_sub(table_bytes))
            / 4;
        let coded = linear.codes().iter().all(|code| matches!(code, Code::T8(_)));
        let shared = coded
            && arithmetic.is_packed()
            && teams > 1
            && turns == 1
            && linear.input != Input::Hadamard
            && shared_words(columns) <= scratch;
        Self { columns, teams, turns, steps, subgroups, arithmetic, copies, shared, scratch }
    }

    /// Threads of a workgroup.
    pub(crate) fn threads(&self) -> usize {
        self.columns * self.teams
    }

    /// Workgroups that have something to do.
    pub(crate) fn most_workgroups(&self) -> usize {
        self.steps.div_ceil(self.teams)
    }

    /// The most subgroups that a team can have.
    fn subgroups(&self) -> usize {
        self.columns.div_ceil(self.subgroups.smallest())
    }

    /// Words of a team's sums of one step; those of the squares take as many.
    fn sum_words(&self) -> usize {
        8 * self.subgroups()
    }

    /// Steps of a team whose sums fit workgroup memory.
    fn chunk(&self) -> usize {
        (self.scratch / (self.sum_words() * self.teams)).saturating_sub(1).clamp(1, 32)
    }

    /// Words of workgroup memory that are used.
    fn scratch_words(&self) -> usize {
        let sums = self.teams * (self.chunk() + 1) * self.sum_words();
        if self.shared { sums.max(shared_words(self.columns)) } else { sums }
    }

    fn constants(&self) -> String {
        [
            ("TEAMS", self.teams),
            ("COLUMNS", self.columns),
            ("TURNS", self.turns),
            ("STEPS", self.steps),
            ("CHUNK", self.chunk()),
            ("SUBGROUPS", self.subgroups()),
            ("SUBGROUP", self.subgroups.smallest()),
            ("SCRATCH", self.scratch_words()),
        ]
        .map(|(name, value)| format!("const {name}: u32 = {value}u;\n"))
        .concat()
    }
}

/// Words that shared activations wait in: `shaders/share.wgsl`.
fn shared_words(columns: usize) -> usize {
    16 * (columns + 4) + columns
}

/// How products are computed, copies of each look-up table, and bytes of all of them.
fn tables(linear: &Linear, target: &Target) -> (Arithmetic, usize, usize) {
    let (mut arithmetic, mut copies) = (target.arithmetic, target.copies);
    let (tables, bits) = code::table_count(&linear.codes());
    let mut entries = 256;
    if arithmetic == Arithmetic::Float && tables == 1 && bits <= 4 {
        // A table of pairs is 2^K times as large.
        (arithmetic, copies, entries) = (Arithmetic::Pairs, copies >> bits, entries << bits);
    }
    if arithmetic == Arithmetic::Packed
        && tables == 1
        && bits <= code::TRIPLE_BITS
        && copies >> bits >= TRIPLE_COPIES
    {
        (arithmetic, copies, entries) = (Arithmetic::Triples, copies >> bits, entries << bits);
    }
    let copies = (copies / tables.max(1).next_power_of_two()).max(1);
    (arithmetic, copies, tables * entries * copies * size_of::<u32>())
}

/// The shader, all that a linear's shaders have in common left out.
pub(crate) fn gemv(linear: &Linear, cut: &Cut) -> String {
    let (runs, functions) = runs(linear);
    let normed = linear.input == Input::Norm;
    let (builtins, thread, keep) = match cut.subgroups {
        Subgroups::None => (
            "",
            "let t = index; let team = 0u; let subgroups = SUBGROUPS; let thread = Thread(t, t % 8u, t / 8u);",
            include_str!("../shaders/keep_in_memory.wgsl"),
        ),
        // Threads are counted by their subgroups, so that a team is whole ones, and compilers see that subgroups stay together:
        // else they check it at every shuffle.
        Subgroups::Fixed(_) => (
            SUBGROUP_BUILTINS,
            "let own = subgroupBroadcastFirst(subgroup); let t = own * SUBGROUP + subgroup_lane; let team = own / SUBGROUPS; \
             let subgroups = SUBGROUPS; let thread = Thread(own % SUBGROUPS * SUBGROUP + subgroup_lane, subgroup_lane, own % \
             SUBGROUPS);",
            include_str!("../shaders/keep_traded.wgsl"),
        ),
        Subgroups::Varying { .. } => (
            SUBGROUP_BUILTINS,
            "let t = index; let team = 0u; let subgroups = all_subgroups; let thread = Thread(t, subgroup_lane, subgroup);",
            include_str!("../shaders/keep_added.wgsl"),
        ),
    };
    let body = include_str!("../shaders/gemv.wgsl")
        .replace("SUBGROUP_BUILTINS", builtins)
        .replace("    THREAD\n", &format!("    {thread}\n"))
        .replace("FIRST_WORDS", &first_words(&runs))
        .replace("DECLARE_ACTS", if cut.shared { "var a: Acts;" } else { "" })
        .replace("PREPARE", if cut.shared { PREPARE_SHARED } else { PREPARE })
        .replace(
            "TRANSFORM",
            if linear.input == Input::Hadamard { "group = hadamard(group, thread.lane);" } else { "" },
        )
        .replace("MULTIPLY_STEPS", &multiply(&runs))
        .replace("KEEP_SQUARES", if normed { KEEP_SQUARES } else { "" })
        .replace(
            "NORM_SCALE",
            &if normed { format!("norm_scale({})", all_squares(cut)) } else { "1.0".into() },
        )
        .replace("FINISH", &finish(linear));
    let hadamard =
        if linear.input == Input::Hadamard { hadamard(rotation::block(linear.cols)) } else { String::new() };
    cut.constants() + &functions + &hadamard + &body + keep
}

/// Whether lanes can transform a linear's input by blocks of `block` columns, before they multiply it.
pub(crate) fn fits_lanes(block: usize, target: &Target) -> bool {
    matches!(target.subgroups, Subgroups::Fixed(threads) if block <= threads * GROUP)
}

/// `shaders/hadamard_lanes.wgsl` for blocks of `block` columns, at least a group.
fn hadamard(block: usize) -> String {
    let mut text = String::new();
    for i in 0..8 {
        let _ = writeln!(text, "    var v{i} = within(group.v[{i}]);");
    }
    for half in [1, 2, 4] {
        for i in (0..8).filter(|i| i & half == 0) {
            let other = i + half;
            let _ = writeln!(
                text,
                "    let d{half}_{i} = v{i} - v{other};\n    v{i} += v{other};\n    v{other} = d{half}_{i};"
            );
        }
    }
    for distance in (0..(block / GROUP).ilog2()).map(|stage| 1 << stage) {
        let _ = writeln!(text, "    let sign{distance} = select(1.0, -1.0, (lane & {distance}u) != 0u);");
        for i in 0..8 {
            let _ = writeln!(
                text,
                "    v{i} = fma(vec4<f32>(sign{distance}), v{i}, subgroupShuffleXor(v{i}, {distance}u));"
            );
        }
    }
    let scaled: Vec<String> = (0..8).map(|i| format!("v{i} * {:e}", 1.0 / (block as f32).sqrt())).collect();
    let _ = write!(text, "    return Group(array<vec4<f32>, 8>({}));", scaled.join(", "));
    include_str!("../shaders/hadamard_lanes.wgsl").replace("BUTTERFLIES", &text)
}

const SUBGROUP_BUILTINS: &str = "@builtin(subgroup_id) subgroup: u32, @builtin(num_subgroups) all_subgroups: u32, \
                                 @builtin(subgroup_invocation_id) subgroup_lane: u32,";

/// Each thread prepares its group of activations.
const PREPARE: &str = "var group = load(n, g);
if turn * COLUMNS + thread.column >= GROUPS { group = Group(); }
TRANSFORM
if turn == 0u && first == wg.x * TEAMS { fill_tables(t); workgroupBarrier(); }
squares = square(group) + select(squares, 0.0, turn == 0u);
let a = prepare(group);";
/// All teams prepare them together, once. What they wait in is needed for sums then.
const PREPARE_SHARED: &str = "if first == wg.x * TEAMS {
fill_tables(t);
squares = share(n, t);
workgroupBarrier();
a = shared_acts(thread.column);
workgroupBarrier();
}";
const KEEP_SQUARES: &str =
    "keep(TEAMS * SLOTS + 2u * team, vec4<f32>(squares, 0.0, 0.0, 0.0), vec4<f32>(), false, thread);";

/// The sum of the input's squares: each team has all of them, or its part.
fn all_squares(cut: &Cut) -> String {
    let of_team = |team: usize| format!("total(TEAMS * SLOTS + {}u, 0u, subgroups)", 2 * team);
    let teams = if cut.shared { cut.teams } else { 1 };
    (0..teams).map(of_team).collect::<Vec<_>>().join(" + ")
}

/// The runs of a linear, and the functions that load the words of half a step: `fn words_r{run}_{half}(step, g)`.
fn runs(linear: &Linear) -> (Vec<Run>, String) {
    let mut functions = String::new();
    let mut define = |run: usize, half: usize, code: Code, body: &str| {
        let kind = code::quad_type(code);
        let _ = writeln!(functions, "fn words_r{run}_{half}(step: u32, g: u32) -> {kind} {{\n{body}}}");
    };
    if linear.paired() {
        let codes = [linear.matrices[0].0, linear.matrices[1].0];
        for (m, code) in codes.into_iter().enumerate() {
            define(0, m, code, &format!("    return quad_m{m}(step, g);\n"));
        }
        let end = linear.matrices[0].1.div_ceil(4);
        return (vec![Run { codes, end }], functions);
    }
    let mut runs = Vec::<Run>::new();
    let (mut m, mut first) = (0, 0);
    while let Some(&(code, _)) = linear.matrices.get(m) {
        let mut bodies = [String::new(), String::new()];
        while let Some(&(_, rows)) = linear.matrices.get(m).filter(|(other, _)| *other == code) {
            let start = first;
            first += rows.div_ceil(8);
            for (half, body) in bodies.iter_mut().enumerate() {
                // The last step may have one quad only: then it takes that one twice.
                let quad = format!("min((step - {start}u) * 2u + {half}u, {}u)", rows.div_ceil(4) - 1);
                let _ = writeln!(body, "    if step < {first}u {{ return quad_m{m}({quad}, g); }}");
            }
            m += 1;
        }
        for (half, body) in bodies.iter().enumerate() {
            define(runs.len(), half, code, &format!("{body}    return {}();\n", code::quad_type(code)));
        }
        runs.push(Run { codes: [code; 2], end: first });
    }
    (runs, functions)
}

/// Asks for the words of the first run's first step, before anything else is waited for.
fn first_words(runs: &[Run]) -> String {
    let Run { codes, end } = &runs[0];
    let kind = code::quad_type(codes[0]);
    format!("var first_words: {kind};\nif step < {end}u {{ first_words = words_r0_0(step, g); }}")
}

/// Multiplies all steps of a chunk.
fn multiply(runs: &[Run]) -> String {
    let mut text = String::new();
    for (r, Run { codes, end }) in runs.iter().enumerate() {
        text += &if r == 0 {
            "{\nvar words = first_words;\n".to_owned()
        } else {
            format!(
                "{{\nvar words: {};\nif step < min(end, {end}u) {{ words = words_r{r}_0(step, g); }}\n",
                code::quad_type(codes[0])
            )
        };
        let _ = writeln!(
            text,
            "while step < min(end, {end}u) {{
let second = words_r{r}_1(step, g);
step += stride;
let sums0 = rings{}(words, a, lane);
if step < min(end, {end}u) {{ words = words_r{r}_0(step, g); }}
let sums1 = rings{}(second, a, lane);
keep(slot, sums0, sums1, turn > 0u, thread);
slot += 2u;
}}
}}",
            codes[0].words(),
            codes[1].words()
        );
    }
    text
}

/// Adds up the subgroups' sums and hands rows on, a pair a thread.
fn finish(linear: &Linear) -> String {
    if linear.paired() {
        return "for (var i = t; i < rounds * TEAMS * 4u; i += THREADS) {
let of_team = i / 4u % TEAMS;
let round = i / 4u / TEAMS;
let row = (first + of_team + round * stride) * 4u + i % 4u;
if row < ROWS0 && first + of_team + round * stride < end {
let at = of_team * SLOTS + round * 2u;
let y = vec2<f32>(total(at, i % 4u, subgroups), total(at + 1u, i % 4u, subgroups));
emit(n, 0u, FIRST_ROW + row, scale * y * scale_of(0u, FIRST_ROW + row));
}
}
"
        .into();
    }
    let mut text = String::from(
        "for (var i = t; i < rounds * TEAMS * 4u; i += THREADS) {
let of_team = i / 4u % TEAMS;
let round = i / 4u / TEAMS;
let at_step = first + of_team + round * stride;
let at_slot = of_team * SLOTS + round * 2u + i % 4u / 2u;
let y = scale * vec2<f32>(total(at_slot, i % 2u * 2u, subgroups), total(at_slot, i % 2u * 2u + 1u, subgroups));
if at_step < end {
",
    );
    let mut first = 0;
    for (m, (_, rows)) in linear.matrices.iter().enumerate() {
        let end = first + rows.div_ceil(8);
        let _ = writeln!(
            text,
            "{}if at_step < {end}u {{ let pair = (at_step - {first}u) * 4u + i % 4u; if 2u * pair < ROWS{m} {{ let at = \
             FIRST_ROW / 2u + pair; emit(n, {m}u, at, y * scale_of({m}u, at)); }} }}",
            if m > 0 { "else " } else { "" },
        );
        first = end;
    }
    text + "}\n}\n"
}
