//! WGSL that decodes T8, written out for each number of bits: which words and shifts a weight's state needs is known
//! when the shader is made.
//!
//! The value of a weight is `low[state & 15] + high[state >> 4]`. For K ≤ 4 one look-up by the state of an *even*
//! weight 2j serves two weights: besides its own value the state holds the low nibble of weight 2j+1 (state bits
//! K..K+3) and the high nibble of weight 2j−1 (state bits 4−K..7−K). An entry is three bytes, and its product with the
//! bytes (a[2j], a[2j+1], a[2j−1]) of the activations is one `dot4I8Packed`. For larger K an entry is the value alone,
//! and two entries make the word.
//!
//! Where there is workgroup memory for it, a code of at most 3 bits is looked up by 8 + K bits, which hold the states of two
//! weights and half of those on both sides: eleven look-ups serve a group of 32.
//!
//! Activations are 15-bit integers in groups of 32 with one scale, as a high and a low byte: two products a look-up, and
//! all sums exact.

use std::fmt::Write as _;

use upg_codec::{Bits, GROUP};

/// How a matrix is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Code {
    /// T8.
    T8(Bits),
    /// 32-bit floats: "groups" of 32 words.
    F32,
}

impl Code {
    /// Words of a group of 32 weights.
    pub(crate) const fn words(self) -> usize {
        match self {
            Code::T8(bits) => bits.get(),
            Code::F32 => GROUP,
        }
    }
}

/// The look-up table of a code: for each state the value, for codes of at most 4 bits also the low part of the next
/// weight's value and the high part of the last one's.
pub(crate) fn entries(bits: Bits) -> [u32; 256] {
    let (table, k) = (bits.table(), bits.get());
    let byte = |value: i8| u32::from(value as u8);
    std::array::from_fn(|state| {
        let value = byte(table.value(state as u8));
        if k > 4 {
            return value;
        }
        value | byte(table.low[state >> k & 15]) << 8 | byte(table.high[state >> (4 - k) & 15]) << 16
    })
}

/// The most bits of a code that is looked up by [`triples`].
pub(crate) const TRIPLE_BITS: usize = 3;

/// Words of the tables of all codes for [`triples`].
pub(crate) fn triples_words() -> usize {
    Bits::ALL.iter().filter(|bits| bits.get() <= TRIPLE_BITS).map(|bits| 256 << bits.get()).sum()
}

/// The look-up table of a code of at most [`TRIPLE_BITS`] by the 8 + K bits from weight i's state on: the high part of weight
/// i - 1, the values of weights i and i + 1, the low part of weight i + 2.
pub(crate) fn triples(bits: Bits) -> Vec<u32> {
    let (table, k) = (bits.table(), bits.get());
    let byte = |value: i8| u32::from(value as u8);
    let entry = |e: usize| {
        byte(table.high[e >> (4 - k) & 15])
            | byte(table.value(e as u8)) << 8
            | byte(table.value((e >> k) as u8)) << 16
            | byte(table.low[e >> (2 * k) & 15]) << 24
    };
    (0..256 << k).map(entry).collect()
}

/// How products with activations are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Arithmetic {
    /// Bytes, four at a time.
    Packed,
    /// The same by [`triples`].
    Triples,
    /// 32-bit floats.
    Float,
    /// 32-bit floats, and for codes of at most 4 bits one look-up for two weights: in a table of all their 8 + K bits, of
    /// pairs of f16, which hold a code's values exactly.
    Pairs,
    /// The same table, its pairs for cooperative matrices.
    Halves,
}

impl Arithmetic {
    /// Whether activations are packed bytes.
    pub(crate) fn is_packed(self) -> bool {
        matches!(self, Self::Packed | Self::Triples)
    }
}

/// The expression for the `width` bits from weight `i`'s state on (8 of them are the state) of a ring in words `w0`, `w1`, ….
pub(crate) fn window(k: usize, i: usize, width: usize) -> String {
    let bit = (k * i) % (32 * k);
    let (word, at) = (bit / 32, bit % 32);
    let mask = (1_u32 << width) - 1;
    if at + width <= 32 {
        return format!("((w{word} >> {at}u) & {mask:#x}u)");
    }
    format!("(((w{word} >> {at}u) | (w{} << {}u)) & {mask:#x}u)", (word + 1) % k, 32 - at)
}

/// The table of a code with a copy a lane of COPIES: entry e of copy c in `[e][c]`, so that lanes that look up different
/// entries meet in fewer banks of workgroup memory; with 32 copies in none. `threads`: of a workgroup.
pub(crate) fn tables(codes: &[Code], copies: usize, threads: usize, arithmetic: Arithmetic) -> String {
    let mut text = String::new();
    let mut fill = String::new();
    for (bits, slot) in tables_of(codes) {
        let k = bits.get();
        let word = |state: &str| format!("step[TABLES_AT + {slot}u * 256u + {state}]");
        let value = |state: &str| format!("f32(i32({} << 24u) >> 24u)", word(state));
        let (kind, entries, entry) = match arithmetic {
            Arithmetic::Packed => ("u32", 256, word("e")),
            Arithmetic::Triples => {
                let before: usize = Bits::ALL[..slot].iter().map(|bits| 256 << bits.get()).sum();
                ("u32", 256 << k, format!("step[TRIPLES_AT + {before}u + e]"))
            }
            Arithmetic::Pairs | Arithmetic::Halves if k <= 4 => {
                let second = value(&format!("(e >> {k}u)"));
                let pair = format!("vec2<f32>({}, {second})", value("(e & 0xffu)"));
                match arithmetic {
                    Arithmetic::Pairs => ("u32", 256 << k, format!("pack2x16float({pair})")),
                    _ => ("vec2<f16>", 256 << k, format!("vec2<f16>({pair})")),
                }
            }
            Arithmetic::Float | Arithmetic::Pairs | Arithmetic::Halves => ("f32", 256, value("e")),
        };
        let _ = writeln!(text, "var<workgroup> table{k}: array<array<{kind}, {copies}>, {entries}>;");
        // As many threads an entry as there are; neighbours write to different banks.
        let parts = (threads / entries).clamp(1, copies);
        let parts = 1 << parts.ilog2();
        let _ = writeln!(
            fill,
            "    for (var i = t; i < {}u; i += THREADS) {{
        let e = i % {entries}u;
        let entry = {entry};
        let copy0 = i / {entries}u * {share}u + e * COPIES / 32u;
        for (var c = 0u; c < {share}u; c++) {{ table{k}[e][(copy0 + c) % COPIES] = entry; }}
    }}",
            entries * parts,
            share = copies / parts,
        );
    }
    let _ = write!(text, "const COPIES: u32 = {copies}u;\nfn fill_tables(t: u32) {{\n{fill}}}\n");
    text
}

/// The T8 codes among `codes`, each once, with the number of its table in the step buffer.
fn tables_of(codes: &[Code]) -> Vec<(Bits, usize)> {
    let used = |bits: &(usize, Bits)| codes.contains(&Code::T8(bits.1));
    Bits::ALL.into_iter().enumerate().filter(used).map(|(slot, bits)| (bits, slot)).collect()
}

/// The bits of the T8 codes among `codes`, each once.
pub(crate) fn distinct_bits(codes: &[Code]) -> impl Iterator<Item = usize> {
    tables_of(codes).into_iter().map(|(bits, _)| bits.get())
}

/// How many different tables the codes need, and the bits of the largest code among them.
pub(crate) fn table_count(codes: &[Code]) -> (usize, usize) {
    let tables = tables_of(codes);
    (tables.len(), tables.last().map_or(0, |(bits, _)| bits.get()))
}

/// `struct Acts`: activations as products want them. For packed bytes also `fn arranged`, which makes it of a group's bytes in
/// order, high ones and low ones.
pub(crate) fn acts(arithmetic: Arithmetic) -> String {
    let words = match arithmetic {
        Arithmetic::Packed => GROUP / 2,
        Arithmetic::Triples => GROUP / 3 + 1,
        _ => return "alias Acts = Group;\n".into(),
    };
    let word = |half: &str, j: usize| {
        // `half` holds columns 4i to 4i + 3 in word i.
        let shifted = |at: usize, left: bool, by: usize| {
            format!("({half}[{at}] {} {by}u)", if left { "<<" } else { ">>" })
        };
        if arithmetic == Arithmetic::Packed {
            // Columns 2j, 2j + 1 and 2j - 1; a group's first follows its last.
            let (at, before) = (j / 2, (j / 2 + 7) % 8);
            return match j % 2 {
                0 => format!("({half}[{at}] & 0xffffu) | ({} & 0xff0000u)", shifted(before, false, 8)),
                _ => format!("{} | (({half}[{at}] & 0xff00u) << 8u)", shifted(at, false, 16)),
            };
        }
        // Columns 3j - 1 to 3j + 2; nothing before the first and behind the last, whose values are looked up whole.
        match (3 * j + 3) % 4 {
            _ if j == 0 => shifted(0, true, 8),
            0 => format!("{half}[{}]", (3 * j - 1) / 4),
            first if 3 * j + 2 == GROUP => shifted(GROUP / 4 - 1, false, 8 * first),
            first => {
                let at = (3 * j - 1) / 4;
                format!("{} | {}", shifted(at, false, 8 * first), shifted(at + 1, true, 32 - 8 * first))
            }
        }
    };
    let all = |half: &str| (0..words).map(|j| word(half, j)).collect::<Vec<_>>().join(",\n        ");
    format!(
        "struct Acts {{ group: Group, high: array<u32, {words}>, low: array<u32, {words}>, scale: f32 }}
fn arranged(high: array<u32, 8>, low: array<u32, 8>, scale: f32) -> Acts {{
    return Acts(Group(), array<u32, {words}>({}),
        array<u32, {words}>({}), scale);
}}
// The low bytes of four numbers.
fn bytes(v: vec4<u32>) -> u32 {{
    return (v.x & 0xffu) | ((v.y & 0xffu) << 8u) | ((v.z & 0xffu) << 16u) | (v.w << 24u);
}}
",
        all("high"),
        all("low")
    )
}

/// `fn prepare(group: Group) -> Acts`.
pub(crate) fn prepare(arithmetic: Arithmetic) -> String {
    if !arithmetic.is_packed() {
        return "fn prepare(group: Group) -> Acts { return group; }\n".into();
    }
    let mut text = String::from(
        "fn prepare(group: Group) -> Acts {
    let v = group.v;
    let most = max(max(max(abs(v[0]), abs(v[1])), max(abs(v[2]), abs(v[3]))),
        max(max(abs(v[4]), abs(v[5])), max(abs(v[6]), abs(v[7]))));
    let largest = max(max(most.x, most.y), max(most.z, most.w));
    let inverse = select(0.0, 16256.0 / largest, largest > 1e-30);
",
    );
    let all = |half: &str| (0..8).map(|i| format!("bytes({half}{i})")).collect::<Vec<_>>().join(", ");
    for i in 0..GROUP / 4 {
        // 1.5·2²³: its last mantissa bits are the rounded integer.
        let _ = writeln!(
            text,
            "    let q{i} = bitcast<vec4<i32>>(fma(v[{i}], vec4<f32>(inverse), vec4<f32>(12582912.0))) - \
             vec4<i32>(0x4b400000);\n    let r{i} = (q{i} + vec4<i32>(64)) >> vec4<u32>(7u);\n    \
             let h{i} = bitcast<vec4<u32>>(r{i});\n    let l{i} = bitcast<vec4<u32>>(q{i} - (r{i} << vec4<u32>(7u)));"
        );
    }
    let _ = write!(
        text,
        "    var acts = arranged(array<u32, 8>({}), array<u32, 8>({}), largest / 16256.0);\n    acts.group = group;\n    \
         return acts;\n}}\n",
        all("h"),
        all("l")
    );
    text
}

/// `fn ring{K}(w0, …, a, lane) -> f32`: the product of a group's words with 32 activations, by copy `lane` of the table.
pub(crate) fn ring(code: Code, arithmetic: Arithmetic) -> String {
    let Code::T8(bits) = code else { return String::new() };
    let k = bits.get();
    let words: Vec<String> = (0..k).map(|w| format!("w{w}: u32")).collect();
    let mut text = format!("fn ring{k}({}, a: Acts, lane: u32) -> f32 {{\n", words.join(", "));
    let entry = |i: usize| format!("table{k}[{}][lane]", window(k, i, 8));
    match arithmetic {
        Arithmetic::Packed | Arithmetic::Triples => {
            text += "    var high = 0;\n    var low = 0;\n";
            let looked_up: Vec<String> = match arithmetic {
                Arithmetic::Triples => {
                    (0..=GROUP / 3).map(|j| format!("table{k}[{}][lane]", window(k, 3 * j, 8 + k))).collect()
                }
                _ if k <= 4 => (0..GROUP / 2).map(|j| entry(2 * j)).collect(),
                _ => (0..GROUP / 2)
                    .map(|j| format!("({} | ({} << 8u))", entry(2 * j), entry(2 * j + 1)))
                    .collect(),
            };
            for (j, word) in looked_up.iter().enumerate() {
                let _ = writeln!(
                    text,
                    "    let e{j} = {word};\n    high += dot4I8Packed(e{j}, a.high[{j}]);\n    low += \
                     dot4I8Packed(e{j}, a.low[{j}]);"
                );
            }
            text += "    return f32(high * 128 + low);\n}\n";
        }
        Arithmetic::Pairs if k <= 4 => {
            text += "    var sum = 0.0;\n";
            for j in 0..GROUP / 2 {
                let (first, second) = if j % 2 == 0 { ("x", "y") } else { ("z", "w") };
                let _ = writeln!(
                    text,
                    "    let p{j} = unpack2x16float(table{k}[{}][lane]);\n    sum = fma(p{j}.x, a.v[{1}].{first}, \
                     fma(p{j}.y, a.v[{1}].{second}, sum));",
                    window(k, 2 * j, 8 + k),
                    j / 2
                );
            }
            text += "    return sum;\n}\n";
        }
        Arithmetic::Float | Arithmetic::Pairs | Arithmetic::Halves => {
            text += "    var sum = 0.0;\n";
            for i in 0..GROUP {
                let component = ["x", "y", "z", "w"][i % 4];
                let _ = writeln!(text, "    sum = fma({}, a.v[{}].{component}, sum);", entry(i), i / 4);
            }
            text += "    return sum;\n}\n";
        }
    }
    text
}

/// The type of a quad's words of one group.
pub(crate) fn quad_type(code: Code) -> String {
    format!("array<vec4<u32>, {}>", code.words())
}

/// `fn quad_m{m}(quad, g)`: the words of group g of four rows of matrix m.
pub(crate) fn quad(m: usize, code: Code) -> String {
    let (words, kind) = (code.words(), quad_type(code));
    let loads: Vec<String> = (0..words).map(|v| format!("m{m}[at + {v}u * GROUPS]")).collect();
    format!(
        "fn quad_m{m}(quad: u32, g: u32) -> {kind} {{\n    let at = quad * {words}u * GROUPS + g;\n    return \
         {kind}({});\n}}\n",
        loads.join(", ")
    )
}

/// `fn rings{K}(words, a, lane) -> vec4<f32>`: the products of a quad's four rows with 32 activations, scales left out.
pub(crate) fn rings(code: Code, arithmetic: Arithmetic) -> String {
    let words = code.words();
    let mut text = format!("fn rings{words}(v: {}, a: Acts, lane: u32) -> vec4<f32> {{\n", quad_type(code));
    let component = |flat: usize| format!("v[{}].{}", flat / 4, ["x", "y", "z", "w"][flat % 4]);
    let values = if arithmetic.is_packed() { "a.group.v" } else { "a.v" };
    let row = |row: usize| -> String {
        if code == Code::F32 {
            let products =
                (0..8).map(|i| format!("dot({values}[{i}], bitcast<vec4<f32>>(v[{}]))", row * 8 + i));
            return products.collect::<Vec<_>>().join(" + ");
        }
        let words: Vec<String> = (0..words).map(|w| component(row * words + w)).collect();
        format!("ring{}({}, a, lane)", code.words(), words.join(", "))
    };
    let rows: Vec<String> = (0..4).map(row).collect();
    let scale = if arithmetic.is_packed() && code != Code::F32 { " * a.scale" } else { "" };
    let _ = write!(text, "    return vec4<f32>({}){scale};\n}}\n", rows.join(", "));
    text
}

/// `fn decode_m{m}(row, g) -> Group`: 32 weights, scales left out, for products with many tokens. The tables are filled
/// with [`Arithmetic::Float`] and one copy.
pub(crate) fn decode(m: usize, code: Code) -> String {
    let words = code.words();
    let mut text = format!(
        "fn decode_m{m}(row: u32, g: u32) -> Group {{\n    let at = (row / 4u) * {words}u * GROUPS + g;\n    let flat = \
         (row % 4u) * {words}u;\n"
    );
    let vector = |i: usize| match code {
        Code::F32 => format!("bitcast<vec4<f32>>(m{m}[at + (flat / 4u + {i}u) * GROUPS])"),
        Code::T8(_) => {
            let values: Vec<String> =
                (0..4).map(|c| format!("table{words}[{}][0]", window(words, 4 * i + c, 8))).collect();
            format!("vec4<f32>({})", values.join(", "))
        }
    };
    if code != Code::F32 {
        for w in 0..words {
            let _ = writeln!(
                text,
                "    let w{w} = m{m}[at + ((flat + {w}u) / 4u) * GROUPS][(flat + {w}u) % 4u];"
            );
        }
    }
    let vectors: Vec<String> = (0..8).map(vector).collect();
    let _ = write!(text, "    return Group(array<vec4<f32>, 8>({}));\n}}\n", vectors.join(",\n        "));
    text
}

/// `fn four_m{m}(row, at) -> vec4<f32>`: weights 4·at to 4·at + 3 of a row, scales left out, one after the other by the
/// code's definition.
pub(crate) fn four(m: usize, code: Code) -> String {
    let k = code.words();
    let slot = Bits::ALL.iter().position(|bits| bits.get() == k).unwrap_or(0);
    if code == Code::F32 {
        return format!(
            "fn four_m{m}(row: u32, at: u32) -> vec4<f32> {{\n    let v = row % 4u * 8u + at % 8u;\n    return \
             bitcast<vec4<f32>>(m{m}[(row / 4u * 32u + v) * GROUPS + at / 8u]);\n}}\n"
        );
    }
    format!(
        "fn word_m{m}(row: u32, g: u32, word: u32) -> u32 {{
    let flat = row % 4u * {k}u + word % {k}u;
    return m{m}[(row / 4u * {k}u + flat / 4u) * GROUPS + g][flat % 4u];
}}
fn four_m{m}(row: u32, at: u32) -> vec4<f32> {{
    // The states of four weights lie in 3K + 8 bits, never more than 32.
    let bit = at % 8u * {}u;
    let low = word_m{m}(row, at / 8u, bit / 32u);
    let high = word_m{m}(row, at / 8u, bit / 32u + 1u);
    let states = (low >> (bit % 32u)) | ((high << 1u) << (31u - bit % 32u));
    return vec4<f32>(value_m{m}(states), value_m{m}(states >> {k}u), value_m{m}(states >> {}u), value_m{m}(states >> {}u));
}}
fn value_m{m}(state: u32) -> f32 {{
    return f32(i32(step[TABLES_AT + {}u + (state & 0xffu)] << 24u) >> 24u);
}}
",
        4 * k,
        2 * k,
        3 * k,
        256 * slot
    )
}
