//! The reference machine passes its own suite, and the suite finds machines that are slightly wrong.

use upg_format::{ModelConfig, RopeScaling, TensorName};
use upg_pdvm::{
    KvKind, Machine, MachineOptions, ReferenceMachine, Tensor, Weights, WeightsError, conformance,
};

#[test]
fn the_reference_machine_agrees_with_itself() {
    let make = |weights: &dyn Weights, options: &_| {
        Ok(Box::new(ReferenceMachine::new(weights, options)?) as Box<dyn Machine>)
    };
    // Not a bit may differ, however the prompt is cut.
    for kv in [KvKind::F16, KvKind::Q4] {
        let report = conformance::check_kv(&make, kv, 0.0);
        println!("{kv}:\n{report}");
        assert!(report.passed(), "{kv}:\n{report}");
    }
}

/// The same weights under a slightly wrong configuration.
struct Misread<'a> {
    weights: &'a dyn Weights,
    config: ModelConfig,
}

impl Weights for Misread<'_> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn tensor(&self, name: TensorName) -> Result<Tensor<'_>, WeightsError> {
        self.weights.tensor(name)
    }
}

#[track_caller]
fn assert_caught(mistake: &str, applies: fn(&ModelConfig) -> bool, misread: fn(&mut ModelConfig)) {
    let mut models = conformance::tiny_models().into_iter().filter(|(_, w)| applies(w.config()));
    let make = |weights: &dyn Weights, options: &_| {
        let mut config = weights.config().clone();
        misread(&mut config);
        Ok(Box::new(ReferenceMachine::new(&Misread { weights, config }, options)?) as Box<dyn Machine>)
    };
    let model = models.next().expect("a model that the mistake touches");
    let (name, report) = (model.0, conformance::check_models(&make, &[model], KvKind::F16, 0.0));
    // What quantised activations cost must not hide it.
    assert!(report.worst() > 0.05, "{mistake}: {name} differs by {} only", report.worst());
}

/// The worst relative error of a machine that keeps keys and values as `found`, where `asked` was asked for.
fn error_of_kind(asked: KvKind, found: KvKind) -> f32 {
    let make = move |weights: &dyn Weights, options: &_| {
        let options = MachineOptions { kv: found, ..Clone::clone(options) };
        Ok(Box::new(ReferenceMachine::new(weights, &options)?) as Box<dyn Machine>)
    };
    conformance::check_kv(&make, asked, 0.0).worst()
}

/// A quantised cache costs what its bits suggest: neither nothing, nor more.
#[test]
fn another_kind_of_cache_is_seen() {
    let [f16, q8, q4] = [KvKind::F16, KvKind::Q8, KvKind::Q4].map(|kind| error_of_kind(KvKind::F32, kind));
    println!("f16 {f16:.1e}, q8 {q8:.1e}, q4 {q4:.1e}");
    assert!(f16 > 0.0 && 4.0 * f16 < q8 && 4.0 * q8 < q4 && q4 < 0.5, "f16 {f16}, q8 {q8}, q4 {q4}");
}

#[test]
fn slightly_wrong_machines_are_caught() {
    assert_caught("a window one too long", |c| c.sliding_window == Some(24), |c| c.sliding_window = Some(25));
    assert_caught("no window", |c| c.sliding_window.is_some(), |c| c.sliding_window = None);
    assert_caught(
        "no scaling of frequencies",
        |c| c.rope.scaling != RopeScaling::None,
        |c| c.rope.scaling = RopeScaling::None,
    );
    assert_caught(
        "a rotary part one pair short",
        |c| c.rope.scaling == RopeScaling::None,
        |c| c.rope.dim -= 2,
    );
    assert_caught("no biases", |c| c.qkv_bias, |c| c.qkv_bias = false);
    assert_caught("no Hadamard", |c| c.rotation.is_some(), |c| c.rotation = None);
    assert_caught("another base", |_| true, |c| c.rope.theta *= 2.0);
}
