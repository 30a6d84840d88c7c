//! The reference machine, the engine's sessions and the CPU machine give transformers' logits.

use upg_parity::{golden, logits};

#[test]
fn logits_are_those_of_transformers() -> anyhow::Result<()> {
    let models = golden::folders("models")?;
    assert_eq!(models.len(), 10);
    for model in models {
        let outcome = logits::compare(&model)?;
        println!("{outcome}");
        assert!(outcome.passed(), "{outcome}");
    }
    Ok(())
}
