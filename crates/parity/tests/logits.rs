//! The reference machine, the engine's sessions and the CPU machine give transformers' logits.

use upg_parity::{golden, logits};

#[test]
fn logits_are_those_of_transformers() -> anyhow::Result<()> {
    let models = golden::folders("models")?;
    assert_eq!(models.len(), 10);
    let mut forms = 0;
    for model in models {
        for outcome in logits::compare(&model)? {
            println!("{outcome}");
            assert!(outcome.passed(), "{outcome}");
            forms += 1;
        }
    }
    assert_eq!(forms, 10 + 8, "folders and GGUF files");
    Ok(())
}
