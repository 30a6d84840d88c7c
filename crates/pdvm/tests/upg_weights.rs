//! A model written to a `.upg` and read back gives the same bits as from memory.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use upg_format::{Encoding, TensorName};
use upg_pdvm::{
    Logits, Machine, MachineOptions, ReferenceMachine, Segment, Synthetic, UpgWeights, Weights,
    conformance::tiny_models,
};

fn logits(weights: &dyn Weights) -> Vec<u32> {
    let options = MachineOptions { context: 16, max_batch: 16, ..MachineOptions::default() };
    let mut machine = ReferenceMachine::new(weights, &options).unwrap();
    let seq = machine.kv_mut().open().unwrap();
    let mut logits = vec![0.0; 5 * weights.config().vocab];
    let segment = Segment { seq, tokens: &[3, 1, 4, 1, 5], logits: Logits::All };
    machine.run(&[segment], &mut logits).unwrap();
    logits.into_iter().map(f32::to_bits).collect()
}

#[test]
fn a_file_gives_the_same_logits_as_memory() {
    let folder = tempfile::tempdir().unwrap();
    for (i, (name, weights)) in tiny_models().into_iter().enumerate() {
        let path = folder.path().join(format!("{i}.upg"));
        weights.save(&path).unwrap();
        assert_eq!(logits(&UpgWeights::open(&path).unwrap()), logits(&weights), "{name}");
    }
}

/// The suite's models hold every encoding between them.
#[test]
fn the_models_hold_every_code() {
    for bits in upg_codec::Bits::ALL {
        let holds = |weights: &Synthetic| {
            let names = TensorName::of_upg(weights.config());
            names.into_iter().any(|name| weights.encoding(name) == Encoding::T8(bits))
        };
        assert!(tiny_models().iter().any(|(_, weights)| holds(weights)), "{bits:?}");
    }
}
