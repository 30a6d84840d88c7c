//! Trains the value tables of T8 on Gaussian data and writes them to `src/tables.rs` of this crate.
//!
//! ```text
//! cargo run --release -p upg-codec --example train             # all codes, some minutes
//! cargo run --release -p upg-codec --example train -- 3 4      # only K = 3 and 4, the others as they are
//! ```
//!
//! The result depends on nothing but this program: each code has its own seed.

mod gaussian;
mod search;
mod tables;

use std::{path::Path, process::ExitCode};

use upg_codec::{Bits, BitsError, Table};

use gaussian::Gaussian;

fn main() -> ExitCode {
    let chosen: Result<Vec<Bits>, _> = std::env::args().skip(1).map(|arg| parse(&arg)).collect();
    let chosen = match chosen {
        Ok(chosen) if chosen.is_empty() => Bits::ALL.to_vec(),
        Ok(chosen) => chosen,
        Err(error) => {
            eprintln!("train: {error}");
            return ExitCode::from(2);
        }
    };
    let tables = Bits::ALL.map(|bits| {
        let table = if chosen.contains(&bits) { search::train(bits) } else { *bits.table() };
        let decibels = fresh_snr(bits, &table);
        println!("K = {}: {decibels:.3} dB on fresh data, sigma {}", bits.get(), table.sigma);
        (bits, table, decibels)
    });
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/tables.rs");
    if let Err(error) = std::fs::write(&path, tables::source(&tables)) {
        eprintln!("train: cannot write {}: {error}", path.display());
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn parse(arg: &str) -> Result<Bits, BitsError> {
    Bits::try_from(arg.parse::<u8>().unwrap_or(0))
}

/// Signal to error in decibels on data that no training has seen.
fn fresh_snr(bits: Bits, table: &Table) -> f64 {
    let data = Gaussian::new(0xfeed).groups(1 << 15);
    search::Trial::new(bits, &data).snr(table)
}
