//! Folding changes no logits: the folded model in the reference machine against a transformer written down plainly.
#![allow(clippy::unwrap_used)] // a failed helper is a failed test

mod common;
#[path = "common/naive.rs"]
mod naive;

use common::{Generated, smollm2, tiny};
use upg_checkpoint::Checkpoint;
use upg_compress::{CompressError, Folded};
use upg_format::{RotationConfig, TensorKind, TensorName};
use upg_pdvm::{
    KvKind, Logits, Machine as _, MachineOptions, ReferenceMachine, Segment, Tensor, Weights as _,
};

const ROTATED: Option<RotationConfig> = Some(RotationConfig { seed: 11 });

fn folded_logits(
    checkpoint: &dyn Checkpoint,
    rotation: Option<RotationConfig>,
    tokens: &[u32],
) -> Vec<Vec<f64>> {
    let folded = Folded::new(checkpoint, rotation);
    let options =
        MachineOptions { context: 64, kv: KvKind::F32, max_batch: tokens.len(), ..MachineOptions::default() };
    let mut machine = ReferenceMachine::new(&folded, &options).unwrap();
    let seq = machine.kv_mut().open().unwrap();
    let vocab = checkpoint.config().vocab;
    let mut logits = vec![0.0; tokens.len() * vocab];
    machine.run(&[Segment { seq, tokens, logits: Logits::All }], &mut logits).unwrap();
    logits.chunks_exact(vocab).map(|row| row.iter().map(|&x| f64::from(x)).collect()).collect()
}

/// The largest difference of any row, as a part of the row's length.
fn difference(a: &[Vec<f64>], b: &[Vec<f64>]) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let rows = a
        .iter()
        .zip(b)
        .map(|(a, b)| norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied()));
    rows.fold(0.0, f64::max)
}

#[test]
fn tiny_models_keep_their_logits() {
    for (tied, bias) in [(false, false), (true, false), (false, true), (true, true)] {
        let checkpoint = Generated::new(tiny(tied, bias), 5);
        let tokens = [3, 89, 0, 41, 41, 7, 12];
        let plain = naive::logits(&checkpoint, &tokens);
        for rotation in [None, ROTATED] {
            let error = difference(&folded_logits(&checkpoint, rotation, &tokens), &plain);
            assert!(error < 1e-5, "tied {tied}, bias {bias}, {rotation:?}: {error}");
        }
    }
}

#[test]
fn smollm2_keeps_its_logits() {
    let checkpoint = smollm2();
    let tokens = [504, 3575, 282, 4649, 314];
    let plain = naive::logits(checkpoint.as_ref(), &tokens);
    for rotation in [None, ROTATED] {
        let error = difference(&folded_logits(checkpoint.as_ref(), rotation, &tokens), &plain);
        println!("{rotation:?}: {error:e}");
        assert!(error < 1e-3, "{rotation:?}: {error}");
    }
}

#[test]
fn blocks_of_rows_are_those_of_the_whole_tensor() {
    let checkpoint = Generated::new(tiny(false, true), 6);
    let folded = Folded::new(&checkpoint, ROTATED);
    for name in TensorName::of_upg(folded.config()) {
        let Tensor::F32 { rows, cols, data } = folded.tensor(name).unwrap() else { panic!("{name} is T8") };
        let step = folded.row_step(name);
        let mut part = vec![0.0; step * cols];
        for first in (0..rows).step_by(step) {
            folded.rows(name, first..first + step, &mut part).unwrap();
            assert_eq!(part, data[first * cols..][..part.len()], "{name} from row {first}");
        }
    }
}

#[test]
fn numbers_that_are_not_finite_are_refused_by_name_and_row() {
    for kind in [TensorKind::Down, TensorKind::MlpNorm] {
        let mut checkpoint = Generated::new(tiny(false, false), 7);
        let (name, row) = (TensorName::new(1, kind), if kind == TensorKind::Down { 37 } else { 0 });
        checkpoint.set(name, row, &[1.0, f32::NAN]);
        let folded = Folded::new(&checkpoint, ROTATED);
        let asked = if kind == TensorKind::Down { name } else { TensorName::new(1, TensorKind::Gate) };
        let mut out = vec![0.0; asked.shape(folded.config()).iter().product()];
        let error = folded.rows(asked, 0..asked.shape(folded.config())[0], &mut out).unwrap_err();
        assert!(
            matches!(error, CompressError::NotFinite { name: n, row: r, value } if n == name && r == row && value.is_nan()),
            "{error}"
        );
    }
}

#[test]
fn norms_that_are_folded_away_are_no_tensors() {
    let checkpoint = Generated::new(tiny(false, false), 8);
    let folded = Folded::new(&checkpoint, ROTATED);
    assert!(folded.tensor(TensorName::new(0, TensorKind::AttnNorm)).is_err());
    assert!(folded.tensor(TensorName::global(TensorKind::FinalNorm)).is_err());
}
