//! The machine against the reference machine, on adapter 0: a graphics card, or else Mesa's llvmpipe.

use upg_pdvm::{
    KvKind, Machine, MachineOptions, Synthetic, Weights,
    conformance::{self, tiny_models},
};
use upg_wgpu::{Tuning, WgpuMachine, adapters};

/// Activations are 15-bit or 32-bit; keys and values are rounded to f16 as the reference machine's, where a bit may
/// differ.
const TOLERANCE: f32 = 1e-3;

#[track_caller]
fn conforms(tuning: Tuning, models: &[(&'static str, Synthetic)]) {
    assert!(
        !adapters().is_empty(),
        "no graphics adapter was found: run `make fixtures`, which installs Mesa's llvmpipe"
    );
    assert!(!models.is_empty(), "no models");
    let make = |weights: &dyn Weights, options: &MachineOptions| {
        Ok(Box::new(WgpuMachine::with(weights, options, 0, tuning, &mut |_| ())?) as Box<dyn Machine>)
    };
    let report = conformance::check_models(&make, models, KvKind::F16, TOLERANCE);
    println!("{report}");
    assert!(report.passed(), "{tuning:?}: {report}");
}

/// Every model, by the plain shaders, with the driver's checks of every index.
#[test]
fn every_model_conforms_plainly() {
    conforms(Tuning { plain: true, checked: true, ..Tuning::default() }, &tiny_models());
}

/// The shaders that graphics cards run, on the shape of the model they are for. One workgroup takes all steps of a linear.
#[test]
fn packed_bytes_conform() {
    let tuning = Tuning { packed: Some(true), copies: Some(16), workgroups: Some(1), ..Tuning::default() };
    conforms(tuning, &tiny_models()[..1]);
}

/// By teams of threads that prepare activations together; on a model whose MLP's Hadamard
/// goes across lanes.
#[test]
fn teams_conform() {
    let models: Vec<_> = tiny_models().into_iter().filter(|(name, _)| name.starts_with("window")).collect();
    conforms(
        Tuning { teams: Some(true), packed: Some(true), copies: Some(16), ..Tuning::default() },
        &models,
    );
}

/// Without subgroups, and with the driver's checks; three workgroups take the steps in turn.
#[test]
fn floats_without_subgroups_conform() {
    let tuning = Tuning { packed: Some(false), subgroups: Some(false), checked: true, ..Tuning::default() };
    conforms(tuning, &tiny_models()[..1]);
}
