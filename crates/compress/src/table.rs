use std::{collections::BTreeMap, fmt};

use upg_format::{Encoding, TensorKind};

use crate::{Plan, plan::PlannedTensor};

/// All tensors of one kind.
#[derive(Default)]
struct Kind {
    name: String,
    weights: u64,
    bytes: u64,
    /// Tensors by encoding.
    encodings: BTreeMap<String, usize>,
}

impl Kind {
    fn add(&mut self, tensor: &PlannedTensor) {
        self.weights += tensor.weights();
        self.bytes += tensor.bytes();
        let encoding = match tensor.encoding {
            Encoding::T8(bits) => bits.get().to_string(),
            plain => plain.to_string(),
        };
        *self.encodings.entry(encoding).or_default() += 1;
    }

    /// `30`, or `24 × 3, 6 × 4` where encodings differ.
    fn encodings(&self) -> String {
        let each: Vec<_> = self.encodings.iter().map(|(bits, count)| format!("{count} × {bits}")).collect();
        each.join(", ")
    }
}

/// A table by kind of tensor: weights, bytes with scales and padding counted, bits a weight, and how many tensors got
/// which number of bits.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut kinds: Vec<(TensorKind, Kind)> = Vec::new();
        for tensor in self.tensors() {
            let kind = tensor.name.kind();
            let at = kinds.iter().position(|(k, _)| *k == kind).unwrap_or_else(|| {
                // The name without its layer: `gate` of `layers.7.gate`.
                let name = tensor.name.to_string();
                let name = name.rsplit('.').next().unwrap_or_default().to_owned();
                kinds.push((kind, Kind { name, ..Kind::default() }));
                kinds.len() - 1
            });
            kinds[at].1.add(tensor);
        }
        writeln!(f, "{:<12}{:>15}{:>15}{:>8}  tensors × bits", "kind", "weights", "bytes", "bits")?;
        for (_, kind) in &kinds {
            row(f, &kind.name, kind.weights, kind.bytes, &kind.encodings())?;
        }
        writeln!(f, "{:<12}{:>15}{:>15}", "the rest", "", self.overhead())?;
        let ratio = format!("{:.2} times smaller than fp32", self.ratio());
        row(f, "file", self.parameters(), self.file_bytes(), &ratio)
    }
}

fn row(f: &mut fmt::Formatter<'_>, name: &str, weights: u64, bytes: u64, note: &str) -> fmt::Result {
    let bits = 8.0 * bytes as f64 / weights as f64;
    writeln!(f, "{name:<12}{weights:>15}{bytes:>15}{bits:>8.3}  {note}")
}
