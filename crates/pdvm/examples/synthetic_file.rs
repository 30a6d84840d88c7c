//! Writes a model of random weights, in the exact shapes of a real one at 10:1, to a `.upg` file: for measuring how long a
//! file of that size takes to load.
//!
//! `cargo run --release -p upg-pdvm --example synthetic_file -- phi-4 OUT.upg`

use std::path::Path;

use upg_pdvm::{Synthetic, synthetic};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, out] = &arguments[..] else {
        return Err("give a name, such as phi-4, and a file to write".into());
    };
    let weights = Synthetic::new(synthetic::preset(name)?, synthetic::ten_to_one, 1);
    println!("{out}: {} bytes", weights.save(Path::new(out))?);
    Ok(())
}
