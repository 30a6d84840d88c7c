//! A model written to a `.upg` and read back gives the same bits as from memory.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use half::f16;
use upg_format::{Encoding, Header, Provenance, Section, TensorName, TextConfig, UpgWriter};
use upg_pdvm::{
    Logits, Machine, MachineOptions, ReferenceMachine, Segment, Synthetic, Tensor, UpgWeights, Weights,
    conformance::tiny_models,
};

fn write(weights: &Synthetic, path: &std::path::Path) {
    let config = weights.config().clone();
    let plan: Vec<_> = TensorName::of_upg(&config).into_iter().map(|n| (n, weights.encoding(n))).collect();
    let header = Header { config, text: TextConfig::default(), provenance: Provenance::default() };
    let mut writer = UpgWriter::create_or_resume(path, &header, b"{}", &plan).unwrap();
    for (name, _) in plan {
        match weights.tensor(name).unwrap() {
            Tensor::T8 { scales, codes, .. } => {
                let scales: Vec<u8> = scales.iter().flat_map(|scale: &f16| scale.to_le_bytes()).collect();
                writer.write(name, Section::Scales, 0, &scales).unwrap();
                writer.write(name, Section::Codes, 0, &codes).unwrap();
            }
            Tensor::F32 { data, .. } => {
                let data: Vec<u8> = data.iter().flat_map(|x| x.to_le_bytes()).collect();
                writer.write(name, Section::Plain, 0, &data).unwrap();
            }
        }
        writer.finish_tensor(name, None).unwrap();
    }
    writer.finish().unwrap();
}

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
        write(&weights, &path);
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
