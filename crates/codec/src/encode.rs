use crate::{Bits, GROUP, Isa};

/// Finds the codes of many groups: a 256-state Viterbi search, closed into rings.
///
/// It holds scratch memory: make one per thread.
#[derive(Clone, Debug)]
pub struct Encoder {
    bits: Bits,
}

impl Encoder {
    /// An encoder on the fastest path of this processor.
    pub fn new(bits: Bits) -> Self {
        Self::with_isa(bits, Isa::best())
    }

    /// An encoder on a given path, which must be available. All paths give the same codes.
    pub fn with_isa(bits: Bits, _isa: Isa) -> Self {
        Self { bits }
    }

    /// Encodes groups of [`GROUP`] numbers, one after the other.
    ///
    /// `x` is in table units (data of unit variance times [`crate::Table::sigma`] fits best), `codes` holds
    /// [`Bits::group_bytes`] bytes a group. `weights` are importances by position in the group (all one where
    /// `None`). `errors[g]`, if wanted, becomes `Σ wᵢ (xᵢ - vᵢ)²` of group `g`.
    ///
    /// # Panics
    /// If the lengths do not belong together.
    pub fn encode(
        &mut self,
        x: &[f32],
        weights: Option<&[f32; GROUP]>,
        codes: &mut [u8],
        mut errors: Option<&mut [f32]>,
    ) {
        let (groups, rest) = x.as_chunks::<GROUP>();
        assert!(rest.is_empty(), "whole groups");
        assert_eq!(codes.len(), groups.len() * self.bits.group_bytes(), "codes of every group");
        let weights = weights.unwrap_or(&[1.0; GROUP]);
        for (g, (x, code)) in groups.iter().zip(codes.chunks_exact_mut(self.bits.group_bytes())).enumerate() {
            let mut rotated = *x;
            let mut rotated_weights = *weights;
            rotated.rotate_left(GROUP / 2);
            rotated_weights.rotate_left(GROUP / 2);
            let path = self.search(&rotated, &rotated_weights, None);
            let seam = path[GROUP / 2] & self.overlap_mask();
            let path = self.search(x, weights, Some(seam));
            code.fill(0);
            let k = self.bits.get();
            for (i, state) in path.iter().enumerate() {
                for bit in 0..k {
                    code[(k * i + bit) / 8] |= (state >> bit & 1) << ((k * i + bit) % 8);
                }
            }
            if let Some(errors) = errors.as_deref_mut() {
                let table = self.bits.table();
                errors[g] = (0..GROUP)
                    .map(|i| {
                        weights[i] * (x[i] - f32::from(table.value(crate::state(self.bits, code, i)))).powi(2)
                    })
                    .sum();
            }
        }
    }

    fn overlap_mask(&self) -> u8 {
        (0xffu16 >> self.bits.get()) as u8
    }

    /// The best path of states, from and to a given overlap if there is one.
    fn search(&self, x: &[f32; GROUP], weights: &[f32; GROUP], seam: Option<u8>) -> [u8; GROUP] {
        let (k, table) = (self.bits.get(), self.bits.table());
        let classes = 256 >> k;
        let mut best = vec![0f32; classes];
        if let Some(seam) = seam {
            best.fill(f32::INFINITY);
            best[seam as usize] = 0.0;
        }
        let mut choices = vec![[0u8; 256]; GROUP];
        for i in 0..GROUP {
            let mut next = vec![f32::INFINITY; classes];
            for state in 0..256usize {
                let cost = weights[i] * (x[i] - f32::from(table.value(state as u8))).powi(2);
                let metric = best[state & (classes - 1)] + cost;
                if metric < next[state >> k] {
                    next[state >> k] = metric;
                    choices[i][state >> k] = (state & ((1 << k) - 1)) as u8;
                }
            }
            best = next;
        }
        let mut class = match seam {
            Some(seam) => seam as usize,
            None => (0..classes).min_by(|a, b| best[*a].total_cmp(&best[*b])).unwrap_or(0),
        };
        let mut path = [0; GROUP];
        for i in (0..GROUP).rev() {
            path[i] = ((class << k) as u8) | choices[i][class];
            class = path[i] as usize & (classes - 1);
        }
        path
    }
}
