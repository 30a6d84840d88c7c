//! Plans of models that exist only as configurations: sizes need no weights.
#![allow(clippy::unwrap_used)] // a failed helper is a failed test

mod common;

use common::tiny;
use upg_codec::Bits;
use upg_compress::{CompressError, Plan, Sensitivities, Target, plan::allocate};
use upg_format::{Architecture, Encoding, ModelConfig, TensorKind, TensorName};

const OVERHEAD: u64 = 2 << 20;

/// A model of the shape of a 1.5 B one.
fn middling() -> ModelConfig {
    ModelConfig {
        architecture: Architecture::Qwen2,
        hidden: 1536,
        layers: 28,
        heads: 12,
        kv_heads: 2,
        head_dim: 128,
        mlp: 8960,
        vocab: 151_936,
        qkv_bias: true,
        ..tiny(false, true)
    }
}

fn bits(plan: &Plan, name: TensorName) -> usize {
    match plan.tensors().iter().find(|t| t.name == name).unwrap().encoding {
        Encoding::T8(bits) => bits.get(),
        plain => panic!("{name} is {plain}"),
    }
}

#[test]
fn targets_are_met_from_below() {
    let config = middling();
    let prior = Sensitivities::prior(&config);
    let parameters = upg_compress::plan::parameters(&config) as f64;
    let targets = [
        (Target::Ratio(10.0), parameters * 0.4),
        (Target::Ratio(8.0), parameters * 0.5),
        (Target::Bits(3.5), parameters * 3.5 / 8.0),
        (Target::Bits(2.5), parameters * 2.5 / 8.0),
        (Target::Size(900_000_000), 900e6),
    ];
    for (target, budget) in targets {
        let plan = allocate(&config, &prior, target, OVERHEAD).unwrap();
        let bytes = plan.file_bytes() as f64;
        assert!(bytes <= budget && bytes > budget * 0.995, "{target}: {bytes} of {budget}");
    }
}

#[test]
fn more_room_never_gives_a_tensor_fewer_bits_by_much() {
    let config = middling();
    let prior = Sensitivities::prior(&config);
    let small = allocate(&config, &prior, Target::Ratio(12.0), OVERHEAD).unwrap();
    let large = allocate(&config, &prior, Target::Ratio(7.0), OVERHEAD).unwrap();
    for t in small.tensors().iter().filter(|t| !t.name.kind().is_vector()) {
        assert!(bits(&large, t.name) >= bits(&small, t.name), "{}", t.name);
    }
}

#[test]
fn the_prior_favours_what_is_known_to_be_delicate() {
    let config = middling();
    let plan = allocate(&config, &Sensitivities::prior(&config), Target::Ratio(10.0), OVERHEAD).unwrap();
    let middle = bits(&plan, TensorName::new(14, TensorKind::Gate));
    assert!(bits(&plan, TensorName::new(0, TensorKind::Down)) > middle);
    assert!(bits(&plan, TensorName::global(TensorKind::Embed)) >= 4);
    assert!(bits(&plan, TensorName::global(TensorKind::Head)) >= 4);
}

#[test]
fn measured_sensitivities_steer_the_bits() {
    let config = tiny(false, false);
    let (delicate, tough) = (TensorName::new(1, TensorKind::Up), TensorName::new(0, TensorKind::Up));
    let harm = |name| {
        if name == delicate {
            1e6
        } else if name == tough {
            1e-6
        } else {
            1.0
        }
    };
    let harms = TensorName::of_upg(&config).into_iter().map(|name| (name, harm(name)));
    let plan = allocate(&config, &Sensitivities::measured(harms), Target::Bits(4.5), 0).unwrap();
    assert_eq!(bits(&plan, delicate), Bits::B8.get());
    assert_eq!(bits(&plan, tough), Bits::B2.get());
}

#[test]
fn impossible_targets_name_the_smallest_possible() {
    let config = middling();
    let prior = Sensitivities::prior(&config);
    let error = allocate(&config, &prior, Target::Ratio(20.0), OVERHEAD).unwrap_err();
    let CompressError::TargetTooSmall { smallest, ratio, bits, .. } = error else { panic!("{error}") };
    for target in [Target::Ratio(ratio), Target::Bits(bits), Target::Size(smallest)] {
        assert!(allocate(&config, &prior, target, OVERHEAD).is_ok(), "{target}");
    }
    for target in [Target::Ratio(0.0), Target::Ratio(-1.0), Target::Bits(f64::NAN), Target::Bits(-2.0)] {
        let error = allocate(&config, &prior, target, OVERHEAD).unwrap_err();
        assert!(matches!(error, CompressError::TargetNotPositive(_)), "{target}: {error}");
    }
}

#[test]
fn a_plan_that_names_a_tensor_twice_is_refused() {
    let config = middling();
    let plan = allocate(&config, &Sensitivities::prior(&config), Target::Ratio(9.0), OVERHEAD).unwrap();
    let json = plan.to_json().replacen('{', "{\"layers.0.q\": \"t8-8\",", 1);
    let error = Plan::from_json(&json, &config, OVERHEAD).unwrap_err().to_string();
    assert!(error.contains("\"layers.0.q\" comes twice"), "{error}");
}

#[test]
fn json_and_back() {
    let config = middling();
    let plan = allocate(&config, &Sensitivities::prior(&config), Target::Ratio(9.0), OVERHEAD).unwrap();
    assert_eq!(Plan::from_json(&plan.to_json(), &config, OVERHEAD).unwrap(), plan);
    println!("{plan}");
    assert!(plan.to_string().lines().any(|line| line.starts_with("down ")));
}
