//! Prints how far this program is from those it must agree with.

fn main() -> anyhow::Result<()> {
    for model in upg_parity::golden::folders("models")? {
        println!("{}", upg_parity::logits::compare(&model)?);
    }
    Ok(())
}
