//! WGSL of a linear's rows: their scales and biases, and which rows of which matrix a tile for many tokens takes.

use std::fmt::Write as _;

use crate::shaders::{GEMM_TILE, Linear, Output};

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
