//! Prints how far this program is from those it must agree with.

fn main() -> anyhow::Result<()> {
    for template in upg_parity::templates::names()? {
        println!("{}", upg_parity::templates::compare(&template)?);
    }
    for model in upg_parity::golden::folders("models")? {
        println!("{}", upg_parity::logits::compare(&model)?);
    }
    Ok(())
}
