//! WGSL that decodes T8, written out for each number of bits: which words and shifts a weight's state needs is known
//! when the shader is made.
//!
//! The value of a weight is `low[state & 15] + high[state >> 4]`. For K ≤ 4 one look-up by the state of an *even*
//! weight 2j serves two weights: besides its own value the state holds the low nibble of weight 2j+1 (state bits
//! K..K+3) and the high nibble of weight 2j−1 (state bits 4−K..7−K). An entry is three bytes, and its product with the
//! bytes (a[2j], a[2j+1], a[2j−1]) of the activations is one `dot4I8Packed`. For larger K an entry is the value alone,
//! and two entries make the word.
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

/// How products with activations are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Arithmetic {
    /// Bytes, four at a time.
    Packed,
    /// 32-bit floats.
    Float,
    /// 32-bit floats, and for codes of at most 4 bits one look-up for two weights: in a table of all their 8 + K bits, of
    /// pairs of f16, which hold a code's values exactly.
    Pairs,
    /// The same table, its pairs for cooperative matrices.
    Halves,
}

/// The expression for the `width` bits from weight `i`'s state on (8 of them are the state) of a ring in words `w0`,
/// `w1`, ….
pub(crate) fn window(k: usize, i: usize, width: usize) -> String {
    let bit = (k * i) % (32 * k);
    let (word, at) = (bit / 32, bit % 32);
    if at + width <= 32 {
        return format!("extractBits(w{word}, {at}u, {width}u)");
    }
    let next = (word + 1) % k;
    format!("(((w{word} >> {at}u) | (w{next} << {}u)) & {:#x}u)", 32 - at, (1_u32 << width) - 1)
}

/// The table of a code with a copy a lane of COPIES: entry e of copy c in `[e][c]`, so that lanes that look up different
/// entries meet in fewer banks of workgroup memory. `threads`: of a workgroup.
pub(crate) fn tables(codes: &[Code], copies: usize, threads: usize, arithmetic: Arithmetic) -> String {
    let mut text = String::new();
    let mut fill = String::new();
    for (bits, slot) in tables_of(codes) {
        let k = bits.get();
        let word = |state: &str| format!("step[TABLES_AT + {slot}u * 256u + {state}]");
        let value = |state: &str| format!("f32(i32({} << 24u) >> 24u)", word(state));
        let (kind, entries, entry) = match arithmetic {
            Arithmetic::Packed => ("u32", 256, word("e")),
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

/// `struct Acts` and `fn prepare(group: Group) -> Acts`: activations as products want them.
pub(crate) fn activations(arithmetic: Arithmetic) -> String {
    if arithmetic != Arithmetic::Packed {
        return "alias Acts = Group;\nfn prepare(group: Group) -> Acts { return group; }\n".into();
    }
    let mut text = String::from(
        "// High and low bytes of 15-bit activations: word j holds those of 2j, 2j+1 and 2j-1.
struct Acts { group: Group, high: array<u32, 16>, low: array<u32, 16>, scale: f32 }
// The two low bytes of a and b.
fn pair_bytes(a: i32, b: i32) -> u32 { return (u32(a) & 0xffu) | ((u32(b) & 0xffu) << 8u); }
fn prepare(group: Group) -> Acts {
    let v = group.v;
    let most = max(max(max(abs(v[0]), abs(v[1])), max(abs(v[2]), abs(v[3]))),
        max(max(abs(v[4]), abs(v[5])), max(abs(v[6]), abs(v[7]))));
    let largest = max(max(most.x, most.y), max(most.z, most.w));
    let inverse = select(0.0, 16256.0 / largest, largest > 1e-30);
    var acts: Acts;
    acts.group = group;
    acts.scale = largest / 16256.0;
",
    );
    for i in 0..GROUP / 4 {
        // 1.5·2²³: its last mantissa bits are the rounded integer.
        let _ = writeln!(
            text,
            "    let q{i} = bitcast<vec4<i32>>(fma(group.v[{i}], vec4<f32>(inverse), vec4<f32>(12582912.0))) - \
             vec4<i32>(0x4b400000);\n    let h{i} = (q{i} + vec4<i32>(64)) >> vec4<u32>(7u);\n    \
             let l{i} = q{i} - (h{i} << vec4<u32>(7u));"
        );
        for half in ["h", "l"] {
            let _ = writeln!(
                text,
                "    let {half}p{} = pair_bytes({half}{i}.x, {half}{i}.y);\n    let {half}p{} = \
                 pair_bytes({half}{i}.z, {half}{i}.w);",
                2 * i,
                2 * i + 1
            );
        }
    }
    for j in 0..GROUP / 2 {
        let last = (j + GROUP / 2 - 1) % (GROUP / 2);
        for (half, field) in [("h", "high"), ("l", "low")] {
            let _ = writeln!(text, "    acts.{field}[{j}] = {half}p{j} | (({half}p{last} & 0xff00u) << 8u);");
        }
    }
    text + "    return acts;\n}\n"
}

/// `fn ring{K}(w0, …, a, lane) -> f32`: the product of a group's words with 32 activations, by copy `lane` of the table.
pub(crate) fn ring(code: Code, arithmetic: Arithmetic) -> String {
    let Code::T8(bits) = code else { return String::new() };
    let k = bits.get();
    let words: Vec<String> = (0..k).map(|w| format!("w{w}: u32")).collect();
    let mut text = format!("fn ring{k}({}, a: Acts, lane: u32) -> f32 {{\n", words.join(", "));
    let entry = |i: usize| format!("table{k}[{}][lane]", window(k, i, 8));
    match arithmetic {
        Arithmetic::Packed => {
            text += "    var high = 0;\n    var low = 0;\n";
            for j in 0..GROUP / 2 {
                let word = if k <= 4 {
                    entry(2 * j)
                } else {
                    format!("({} | ({} << 8u))", entry(2 * j), entry(2 * j + 1))
                };
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
    let values = if arithmetic == Arithmetic::Packed { "a.group.v" } else { "a.v" };
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
    let scale = if arithmetic == Arithmetic::Packed && code != Code::F32 { " * a.scale" } else { "" };
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
