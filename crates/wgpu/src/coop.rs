//! WGSL of a linear for many tokens by cooperative matrices (`shaders/gemm_coop.wgsl`).

use std::fmt::Write as _;

use upg_codec::GROUP;

use crate::{
    code::{self, Arithmetic, Code},
    shaders::{Linear, Output},
};

/// Rows and tokens of a tile.
pub(crate) const TILE: usize = 128;
pub(crate) const THREADS: usize = 256;
/// Threads of a subgroup, which the shader counts on.
pub(crate) const SUBGROUP: usize = 32;
/// Storage buffers of the largest linear.
pub(crate) const BUFFERS: u32 = 9;
/// Workgroup memory beside the look-up tables: two tiles of f16 with padded rows, and the sums.
const TILE_BYTES: usize = 2 * TILE * 80 + 8 * 1024;

/// Whether the shader can run a linear in so much workgroup memory.
pub(crate) fn fits(linear: &Linear, workgroup_bytes: usize) -> bool {
    let codes = linear.codes();
    let tables = code::distinct_bits(&codes).map(|k| 4 * if k <= 4 { 256 << k } else { 256 });
    codes.iter().all(|code| *code != Code::F32) && TILE_BYTES + tables.sum::<usize>() <= workgroup_bytes
}

/// The shader, what all linears have in common left out.
pub(crate) fn gemm(linear: &Linear) -> String {
    let codes = linear.codes();
    let mut text = code::tables(&codes, 1, THREADS, Arithmetic::Halves);
    text += "struct Words { w: array<u32, 8> }\n";
    for (m, code) in codes.iter().enumerate() {
        text += &row_words(m, *code);
    }
    let mut distinct: Vec<usize> = codes.iter().map(|code| code.words()).collect();
    distinct.sort_unstable();
    distinct.dedup();
    distinct.iter().for_each(|k| text += &decode(*k));
    text += &slots(linear);
    text + &include_str!("../shaders/gemm_coop.wgsl")
        .replace("GEMM_TOKENS_WORD", if linear.output == Output::Logits { "2u" } else { "0u" })
        .replace("SLOT_OF_THREAD", if linear.paired() { "at % 64u * 2u + at / 64u" } else { "at" })
        .replace("DECLARE_SUMS", &cells(|i, j| format!("var s{i}{j}: coop_mat16x16<f32, C>;\n")))
        .replace("MULTIPLY", &multiply())
        .replace("EMIT_MATRICES", &cells(emit))
}

/// Text for each of a subgroup's 2 by 4 matrices of sums.
fn cells(text: impl Fn(usize, usize) -> String) -> String {
    (0..2).flat_map(|i| (0..4).map(move |j| (i, j))).map(|(i, j)| text(i, j)).collect()
}

fn multiply() -> String {
    let mut text = String::new();
    for i in 0..2 {
        let _ = writeln!(
            text,
            "let a{i} = coopLoadT<coop_mat16x16<f16, A>>(&weights[(row0 + {}u) * STRIDE + k], STRIDE);",
            16 * i
        );
    }
    for j in 0..4 {
        let _ = writeln!(
            text,
            "let b{j} = coopLoad<coop_mat16x16<f16, B>>(&numbers[(token0 + {}u) * STRIDE + k], STRIDE);",
            16 * j
        );
    }
    text + &cells(|i, j| format!("s{i}{j} = coopMultiplyAdd(a{i}, b{j}, s{i}{j});\n"))
}

/// Hands a matrix of sums on, four pairs of rows a lane.
fn emit(i: usize, j: usize) -> String {
    format!(
        "coopStoreT(s{i}{j}, &sums[subgroup * 256u], 16u);
workgroupBarrier();
for (var e = lane; e < 128u; e += {SUBGROUP}u) {{
    let n = wg.y * 128u + token0 + {}u + e % 16u;
    if n < tokens {{
        let at0 = subgroup * 256u + e / 16u * 32u + e % 16u;
        emit_slots(wg.x, n, (row0 + {}u) / 2u + e / 16u, vec2<f32>(sums[at0], sums[at0 + 16u]) * scales[n]);
    }}
}}
workgroupBarrier();
",
        16 * j,
        16 * i
    )
}

/// `fn row_words_m{m}(row, g) -> Words`: a group's words of one row.
fn row_words(m: usize, code: Code) -> String {
    let k = code.words();
    let mut text = format!(
        "fn row_words_m{m}(row: u32, g: u32) -> Words {{\n    let at = row / 4u * {k}u * GROUPS + g;\n    let flat = row % \
         4u * {k}u;\n    var words: Words;\n"
    );
    for w in 0..k {
        let _ =
            writeln!(text, "    words.w[{w}] = m{m}[at + (flat + {w}u) / 4u * GROUPS][(flat + {w}u) % 4u];");
    }
    text + "    return words;\n}\n"
}

/// `fn decode{K}(slot, words)`: writes 32 weights as f16 to row `slot` of the tile, scales left out.
fn decode(k: usize) -> String {
    let mut text = format!("fn decode{k}(slot: u32, words: Words) {{\n");
    for w in 0..k {
        let _ = writeln!(text, "    let w{w} = words.w[{w}];");
    }
    let pair = |j: usize| match k {
        ..=4 => format!("table{k}[{}][0]", code::window(k, 2 * j, 8 + k)),
        _ => format!(
            "vec2<f16>(vec2<f32>(table{k}[{}][0], table{k}[{}][0]))",
            code::window(k, 2 * j, 8),
            code::window(k, 2 * j + 1, 8)
        ),
    };
    for i in 0..GROUP / 4 {
        let _ = writeln!(
            text,
            "    weights[slot * STRIDE + {i}u] = vec4<f16>({}, {});",
            pair(2 * i),
            pair(2 * i + 1)
        );
    }
    text + "}\n"
}

/// `words_of_slot`, `decode_slot` and `emit_slots`: slots 2p and 2p + 1 of a tile hold the p-th pair of rows.
fn slots(linear: &Linear) -> String {
    let (mut words, mut decode, mut emit) = (String::new(), String::new(), String::new());
    if linear.paired() {
        for (m, (code, rows)) in linear.matrices.iter().enumerate() {
            let last = rows - 1;
            let _ = writeln!(
                words,
                "    if slot % 2u == {m}u {{ return row_words_m{m}(min(tile * 64u + slot / 2u, {last}u), g); }}"
            );
            let _ = writeln!(decode, "    if slot % 2u == {m}u {{ decode{}(slot, words); }}", code.words());
        }
        emit += "    let row = tile * 64u + pair;\n    if row < ROWS0 { emit(n, 0u, FIRST_ROW + row, y * scale_of(0u, \
                 FIRST_ROW + row)); }\n";
    } else {
        let mut first = 0;
        for (m, (code, rows)) in linear.matrices.iter().enumerate() {
            let end = first + rows.div_ceil(TILE);
            let last = rows - 1;
            let _ = writeln!(
                words,
                "    if tile < {end}u {{ return row_words_m{m}(min((tile - {first}u) * 128u + slot, {last}u), g); }}"
            );
            let _ =
                writeln!(decode, "    if tile < {end}u {{ decode{}(slot, words); return; }}", code.words());
            let _ = writeln!(
                emit,
                "    if tile < {end}u {{ let at = (tile - {first}u) * 64u + pair; if 2u * at < ROWS{m} {{ emit(n, {m}u, \
                 FIRST_ROW / 2u + at, y * scale_of({m}u, FIRST_ROW / 2u + at)); }} return; }}"
            );
            first = end;
        }
    }
    let shared = linear.codes().windows(2).all(|pair| pair[0] == pair[1]);
    if shared {
        decode = format!("    decode{}(slot, words);\n", linear.matrices[0].0.words());
    }
    format!(
        "fn words_of_slot(tile: u32, slot: u32, g: u32) -> Words {{\n{words}    return Words();\n}}\n\
         fn decode_slot(tile: u32, slot: u32, words: Words) {{\n{decode}}}\n\
         fn emit_slots(tile: u32, n: u32, pair: u32, y: vec2<f32>) {{\n{emit}}}\n"
    )
}
