//! WGSL of a linear for many tokens (`shaders/gemm.wgsl`): which pairs of rows and which tokens of a tile a thread takes.

use std::fmt::Write as _;

use crate::shaders::{GEMM_TILE, Input, Linear, Output};

/// What a thread has of a tile: so many pairs of rows by so many tokens, powers of two. Each number that it reads from workgroup
/// memory is used as often.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Cells {
    pub pairs: usize,
    pub tokens: usize,
}

impl Cells {
    /// What fits registers.
    pub(crate) const USUAL: Self = Self { pairs: 4, tokens: 4 };
    /// Where a processor emulates the adapter: there reading workgroup memory takes longer than multiplying. With more, compilers
    /// take longer than all of it.
    pub(crate) const EMULATED: Self = Self { pairs: 4, tokens: 8 };

    /// Threads that share a tile's pairs of rows, and those that share its tokens.
    fn lanes(self) -> [usize; 2] {
        [GEMM_TILE / 2 / self.pairs, GEMM_TILE / self.tokens]
    }

    /// Threads of a workgroup.
    pub(crate) fn threads(self) -> usize {
        let [of_pairs, of_tokens] = self.lanes();
        of_pairs * of_tokens
    }

    fn each(self) -> impl Iterator<Item = (usize, usize)> {
        (0..self.pairs).flat_map(move |p| (0..self.tokens).map(move |j| (p, j)))
    }
}

/// The shader, all that a linear's shaders have in common left out.
pub(crate) fn gemm(linear: &Linear, cells: Cells) -> String {
    let [pair_lanes, token_lanes] = cells.lanes();
    let declare: String = cells.each().map(|(p, j)| format!("var s{p}_{j} = vec2<f32>(); ")).collect();
    let mut multiply = String::new();
    for j in 0..cells.tokens {
        let _ = writeln!(multiply, "let x{j} = tile[512u + base + token0 + {}u];", j * token_lanes);
    }
    for p in 0..cells.pairs {
        let _ = writeln!(
            multiply,
            "let a{p} = tile[base + pair0 + {0}u]; let b{p} = tile[base + 32u + pair0 + {0}u];",
            p * pair_lanes
        );
        for j in 0..cells.tokens {
            let _ = writeln!(
                multiply,
                "s{p}_{j} = vec2<f32>(mul(s{p}_{j}.x, a{p}, x{j}), mul(s{p}_{j}.y, b{p}, x{j}));"
            );
        }
    }
    let (squares, scale) = match linear.input {
        Input::Norm => ("norms[slot - 64u] += square(group);", "norm_scale(norms[n - wg.y * 64u])"),
        _ => ("", "1.0"),
    };
    let mut emit = String::new();
    for j in 0..cells.tokens {
        let _ = writeln!(
            emit,
            "if wg.y * 64u + token0 + {0}u < tokens {{ let n = wg.y * 64u + token0 + {0}u; let scale = {scale};",
            j * token_lanes
        );
        for p in 0..cells.pairs {
            let _ = writeln!(emit, "emit_slot(wg.x, n, pair0 + {}u, s{p}_{j} * scale);", p * pair_lanes);
        }
        emit += "}\n";
    }
    format!("const PAIR_LANES: u32 = {pair_lanes}u;\n")
        + &include_str!("../shaders/gemm.wgsl")
            .replace("GEMM_TOKENS_WORD", if linear.output == Output::Logits { "2u" } else { "0u" })
            .replace("DECLARE_SUMS", &declare)
            .replace("ADD_SQUARES", squares)
            .replace("MULTIPLY", &multiply)
            .replace("EMIT_PAIRS", &emit)
}
