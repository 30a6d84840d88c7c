//! Trains the value tables of T8 on Gaussian data and prints them as `src/tables.rs` of this crate.
//!
//! ```text
//! cargo run --release -p upg-codec --example train > tables.rs          # all codes, about ten minutes
//! cargo run --release -p upg-codec --example train -- 3 4 > tables.rs   # K = 3 and 4 only, the others as they are
//! ```
//!
//! The result depends on nothing but this program and the encoder: each code has its own seed. The tables in use are
//! what it gave when the encoder made two passes. They stay, though the encoder has become better since: files
//! hold codes, not values, so other tables would be another version of the format.

mod gaussian;
mod search;
mod tables;

use std::process::ExitCode;

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
        eprintln!("K = {}: {decibels:.3} dB on fresh data, sigma {}", bits.get(), table.sigma);
        (bits, table, decibels)
    });
    print!("{}", tables::source(&tables));
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
