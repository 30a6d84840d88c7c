//! WGSL of a linear's tiles: which rows of which matrix a workgroup takes, how its threads' sums are joined, and what becomes
//! of each pair of rows.

use std::fmt::Write as _;

use crate::{
    code,
    shaders::{GEMM_TILE, Linear, Output},
};

/// `scale_of` and `bias_of` a pair's rows: `vectors` holds the scales of all matrices, then the biases.
pub(crate) fn scales(linear: &Linear) -> String {
    let (whole, paired) = (linear.part.1, linear.paired());
    let mut text = String::from("fn scale_of(m: u32, pair: u32) -> vec2<f32> {\n");
    if paired {
        text += "    return vec2<f32>(vectors[pair], vectors[WHOLE_ROWS + pair]);\n}\n";
        return text;
    }
    // Rows are padded to a whole number of pairs.
    let mut starts: Vec<usize> = vec![0];
    for (_, rows) in &linear.matrices {
        starts.push(starts.last().unwrap_or(&0) + rows.next_multiple_of(2));
    }
    if linear.matrices.len() == 1 {
        starts = vec![0, whole.next_multiple_of(2)];
    }
    let at = |starts: &[usize], base: usize| {
        let mut text = String::new();
        for (m, start) in starts.iter().enumerate().take(linear.matrices.len()) {
            let _ = writeln!(
                text,
                "    if m == {m}u {{ let at = {}u + 2u * pair; return vec2<f32>(vectors[at], vectors[at + 1u]); }}",
                base + start
            );
        }
        text + "    return vec2<f32>();\n}\n"
    };
    text += &at(&starts, 0);
    if let Output::Qkv { biases } = linear.output {
        text += "fn bias_of(m: u32, pair: u32) -> vec2<f32> {\n";
        let total = starts.last().copied().unwrap_or(0);
        text += &if biases { at(&starts, total) } else { "    return vec2<f32>();\n}\n".into() };
    }
    text
}

/// The statements that add a tile's products to `sum0`, ….
pub(crate) fn add_tile(linear: &Linear, quads: usize) -> String {
    let mut text = String::new();
    if linear.paired() {
        for i in 0..quads {
            let (m, half) = (i / (quads / 2), quads / 2);
            let (code, rows) = linear.matrices[m];
            let (words, last) = (code.words(), rows.div_ceil(4) - 1);
            let _ = writeln!(
                text,
                "sum{i} += rings{words}(quad_m{m}(min(tile * {half}u + {}u, {last}u), g), a, lane);",
                i % half
            );
        }
        return text;
    }
    // Matrices of one code share its decoder, which is the most of a shader.
    let codes = linear.codes();
    let shared = codes.len() > 1 && codes.iter().all(|code| *code == codes[0]);
    if shared {
        let _ = writeln!(text, "var words: array<{}, {quads}>;", code::quad_type(codes[0]));
    }
    let mut first = 0;
    for (m, (code, rows)) in linear.matrices.iter().enumerate() {
        let (tiles, last) = (rows.div_ceil(4 * quads), rows.div_ceil(4) - 1);
        let _ = writeln!(text, "{}if tile < {}u {{", if m > 0 { "else " } else { "" }, first + tiles);
        for i in 0..quads {
            // The last tile may have fewer rows than a tile: it takes the last ones again.
            let quad = format!("quad_m{m}(min((tile - {first}u) * {quads}u + {i}u, {last}u), g)");
            let _ = if shared {
                writeln!(text, "words[{i}] = {quad};")
            } else {
                writeln!(text, "sum{i} += rings{}({quad}, a, lane);", code.words())
            };
        }
        text += "}\n";
        first += tiles;
    }
    if shared {
        for i in 0..quads {
            let _ = writeln!(text, "sum{i} += rings{}(words[{i}], a, lane);", codes[0].words());
        }
    }
    text
}

/// The statements by which thread t writes pair t of the tile.
pub(crate) fn emit_pair(linear: &Linear, quads: usize) -> String {
    if linear.paired() {
        return format!(
            "let row = tile * {0}u + t;\nif row < ROWS0 {{ emit(n, 0u, FIRST_ROW + row, scale * \
             vec2<f32>(total(t), total({0}u + t)) * scale_of(0u, FIRST_ROW + row)); }}",
            2 * quads
        );
    }
    let mut text = String::new();
    let mut first = 0;
    for (m, (_, rows)) in linear.matrices.iter().enumerate() {
        let tiles = rows.div_ceil(4 * quads);
        let _ = writeln!(
            text,
            "{}if tile < {}u {{ let pair = (tile - {first}u) * {}u + t; if 2u * pair < ROWS{m} {{ let at = FIRST_ROW / 2u \
             + pair; emit(n, {m}u, at, scale * vec2<f32>(total(2u * t), total(2u * t + 1u)) * scale_of({m}u, at)); }} }}",
            if m > 0 { "else " } else { "" },
            first + tiles,
            2 * quads
        );
        first += tiles;
    }
    text
}

/// `{what}_of_slot` and `emit_slot` of the shader for many tokens: slots 0..32 of a tile are the first rows of its pairs,
/// slots 32..64 the second.
pub(crate) fn slots(linear: &Linear, what: &str, at: &str, kind: &str) -> String {
    let (mut decode, mut emit) = (String::new(), String::new());
    if linear.paired() {
        for m in 0..2 {
            let last = linear.matrices[m].1 - 1;
            let _ = writeln!(
                decode,
                "    if slot / 32u == {m}u {{ return {what}_m{m}(min(tile_number * 32u + slot % 32u, {last}u), {at}); }}"
            );
        }
        emit += "    let row = tile_number * 32u + pair;\n    if row < ROWS0 { emit(n, 0u, FIRST_ROW + row, y * \
                 scale_of(0u, FIRST_ROW + row)); }\n";
    } else {
        let mut first = 0;
        for (m, (_, rows)) in linear.matrices.iter().enumerate() {
            let tiles = rows.div_ceil(GEMM_TILE);
            let end = first + tiles;
            let _ = writeln!(
                decode,
                "    if tile_number < {end}u {{ return {what}_m{m}(min((tile_number - {first}u) * 64u + 2u * (slot % 32u) + \
                 slot / 32u, {}u), {at}); }}",
                rows - 1
            );
            let _ = writeln!(
                emit,
                "    if tile_number < {end}u {{ let at = (tile_number - {first}u) * 32u + pair; if 2u * at < ROWS{m} {{ \
                 emit(n, {m}u, FIRST_ROW / 2u + at, y * scale_of({m}u, FIRST_ROW / 2u + at)); }} return; }}"
            );
            first = end;
        }
    }
    format!(
        "fn {what}_of_slot(tile_number: u32, slot: u32, {at}: u32) -> {kind} {{\n{decode}    return {kind}();\n}}\n\
         fn emit_slot(tile_number: u32, n: u32, pair: u32, y: vec2<f32>) {{\n{emit}}}\n"
    )
}

/// Declarations and statements that sum `sum0`, … and `squares` over the threads of a workgroup; then `total(row)` and
/// `total_squares()` give the sums.
pub(crate) fn reduction(quads: usize, threads: usize, smallest_subgroup: Option<usize>) -> (String, String) {
    let values = 4 * quads + 1;
    let totals = format!(
        "var<workgroup> totals: array<f32, {values}>;\nfn total(row: u32) -> f32 {{ return totals[row]; }}\n\
         fn total_squares() -> f32 {{ return totals[{}]; }}\n",
        values - 1
    );
    let component = |i: usize| format!("sum{}.{}", i / 4, ["x", "y", "z", "w"][i % 4]);
    let value = |i: usize| if i + 1 == values { "squares".into() } else { component(i) };
    let mut statements = String::new();
    let (partials, partial_count) = match smallest_subgroup {
        Some(smallest) => {
            for i in 0..quads {
                let _ = writeln!(statements, "sum{i} = subgroupAdd(sum{i});");
            }
            statements += "squares = subgroupAdd(squares);\nif subgroup_lane == 0u {\n";
            for i in 0..values {
                let _ = writeln!(statements, "partials[subgroup * {values}u + {i}u] = {};", value(i));
            }
            statements += "}\nlet partial_count = subgroups;\n";
            (threads.div_ceil(smallest), String::new())
        }
        // Without subgroups eight threads' sums are added at a time.
        None => {
            statements +=
                "for (var turn = 0u; turn < 8u; turn++) {\nworkgroupBarrier();\nif t % 8u == turn {\n";
            for i in 0..values {
                let _ = writeln!(
                    statements,
                    "partials[t / 8u * {values}u + {i}u] = {} + select(partials[t / 8u * {values}u + {i}u], 0.0, turn == 0u);",
                    value(i)
                );
            }
            (threads.div_ceil(8), format!("}}\n}}\nlet partial_count = {}u;\n", threads.div_ceil(8)))
        }
    };
    statements += &partial_count;
    let _ = write!(
        statements,
        "workgroupBarrier();\nfor (var i = t; i < {values}u; i += THREADS) {{\nvar all = 0.0;\nfor (var s = 0u; s < \
         partial_count; s++) {{ all += partials[s * {values}u + i]; }}\ntotals[i] = all;\n}}\nworkgroupBarrier();\n"
    );
    (format!("var<workgroup> partials: array<f32, {}>;\n{totals}", partials * values), statements)
}
