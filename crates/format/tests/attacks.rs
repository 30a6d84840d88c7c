//! Files made to harm: each is refused with an error of its own, none panics, and none makes the reader allocate out
//! of proportion to the file. Every attack is a valid tiny file with one thing changed and all else, checksums
//! included, kept right.

#![allow(clippy::unwrap_used)] // Helpers of tests.

#[path = "common/allocations.rs"]
mod allocations;
#[path = "common/attack_list.rs"]
mod attack_list;
mod common;
#[path = "common/image.rs"]
mod image;

use std::{fs, path::Path};

use attack_list::{Attack, attacks, forged};
use common::{read_all, valid_file};
use image::{Image, add, seal};
use proptest::prelude::*;
use serde_json::{Value, json};
use upg_format::{FormatError, UpgFile};

#[global_allocator]
static ALLOCATOR: allocations::Counting = allocations::Counting;

/// What reading may hold at once: parsed JSON is a few times its text, and an inflated tokenizer at most 64 times.
fn allowance(file: usize) -> usize {
    16 * file + (64 << 10)
}

/// Reads bytes as a file, everything in it.
fn read(bytes: &[u8]) -> Result<UpgFile, FormatError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    read_within_allowance(file.path(), bytes.len())
}

fn read_within_allowance(path: &Path, length: usize) -> Result<UpgFile, FormatError> {
    let (result, peak) = allocations::peak(|| read_all(path));
    assert!(peak <= allowance(length), "a file of {length} bytes made the reader hold {peak}");
    result
}

fn assert_refused(attack: &Attack, result: Result<UpgFile, FormatError>) {
    let error = result.map(drop).expect_err(attack.name);
    assert!((attack.is_expected)(&error), "{} gave {error:?}, not {}", attack.name, attack.expected);
    // The remedy, after the last semicolon.
    let message = error.to_string();
    assert!(message.rsplit_once("; ").is_some_and(|(_, remedy)| !remedy.is_empty()), "{message}");
}

#[test]
fn the_file_that_attacks_start_from_is_valid() {
    read(&valid_file()).unwrap();
    read(&forged(|_| ())).unwrap();
}

#[test]
fn every_attack_is_refused_by_its_own_error() {
    for attack in attacks() {
        assert_refused(&attack, read(&attack.file));
    }
}

/// The files in `attacks/`, for readers in other languages too; each is named after the attack it was made by.
#[test]
fn every_committed_attack_is_refused() {
    let attacks = attacks();
    let mut seen = 0;
    for file in fs::read_dir(folder()).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let attack =
            attacks.iter().find(|attack| attack.name == name).expect("a file is named after an attack");
        let length = fs::metadata(&path).unwrap().len() as usize;
        assert_refused(attack, read_within_allowance(&path, length));
        seen += 1;
    }
    assert_eq!(seen, COMMITTED.len());
}

/// Attacks kept as files: those that small files can show.
const COMMITTED: [&str; 6] = [
    "cut-in-header",
    "future-version",
    "header-length-huge",
    "overlap",
    "tokenizer-bomb",
    "transferred-as-text",
];

#[test]
#[ignore = "writes the files in tests/attacks anew"]
fn write_committed_attacks() {
    for attack in attacks().into_iter().filter(|attack| COMMITTED.contains(&attack.name)) {
        fs::write(folder().join(attack.name).with_extension("upg"), attack.file).unwrap();
    }
}

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/attacks"))
}

#[test]
fn a_cut_at_every_boundary_is_noticed() {
    let valid = valid_file();
    let header_end = 64 + Image::of(&valid).header_length;
    // Every entry starts at a multiple of 64.
    let boundaries = (0..valid.len()).step_by(64).flat_map(|at| [at.saturating_sub(1), at, at + 1, at + 33]);
    for cut in boundaries.filter(|cut| *cut < valid.len()) {
        let error = read(&valid[..cut]).map(drop).expect_err("a file cut short");
        match cut {
            0..64 => assert!(matches!(error, FormatError::TooShort { .. })),
            _ => assert!(matches!(error, FormatError::Truncated { .. })),
        }
        if cut < 64 {
            continue;
        }
        // The same with the length put right.
        let mut file = valid[..cut].to_vec();
        file[24..32].copy_from_slice(&(cut as u64).to_le_bytes());
        match read(&file).map(drop).expect_err("a file cut short") {
            FormatError::HeaderLength { .. } => assert!(cut < header_end),
            FormatError::OutOfBounds { .. } => assert!(cut >= header_end),
            error => panic!("cut at {cut}: {error:?}"),
        }
    }
}

#[test]
fn a_flipped_bit_anywhere_is_noticed() {
    let valid = valid_file();
    for at in (0..64).chain((64..valid.len()).step_by(5)) {
        // All bits of the preamble, one of each fifth other byte.
        for bit in (0..8).filter(|bit| at < 64 || *bit == at * 5 % 8) {
            let mut file = valid.clone();
            file[at] ^= 1 << bit;
            assert!(read(&file).is_err(), "bit {bit} of byte {at}");
        }
    }
}

#[test]
fn a_long_honest_header_stays_in_proportion() {
    let file = forged(|image| {
        let settings = (0..50_000).map(|i| (i.to_string(), json!("")));
        image.header["provenance"]["settings"] = Value::Object(settings.collect());
        // The data moves with the header's end.
        let before = image.header_length;
        let grown = serde_json::to_vec(&image.header).unwrap().len() + 1024;
        image.header_length = grown.next_multiple_of(64);
        let shift = (image.header_length - before) as i64;
        add(image.blob(), "offset", shift);
        image.move_tensors(shift);
    });
    assert_eq!(read(&file).unwrap().header().provenance.settings.len(), 50_000);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Flipped bits give an error or, where they cancel out, the same file.
    #[test]
    fn flipped_bits_never_pass(flips in prop::collection::vec((any::<prop::sample::Index>(), 0..8_u32), 1..9)) {
        let valid = valid_file();
        let mut file = valid.clone();
        for (at, bit) in flips {
            file[at.index(valid.len())] ^= 1 << bit;
        }
        prop_assert_eq!(read(&file).is_ok(), file == valid);
    }

    /// A header changed at random and sealed again is refused, or means a file all of whose tensors can be read.
    #[test]
    fn forged_headers_never_panic(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let valid = valid_file();
        let Image { header_length, data, .. } = Image::of(&valid);
        let mut header = valid[64..64 + header_length].to_vec();
        for (at, byte) in edits {
            let at = at.index(header.iter().rposition(|b| *b == b'}').unwrap() + 1);
            // Half of the edits keep digits digits, to get past the JSON parser.
            header[at] = if header[at].is_ascii_digit() { b'0' + byte % 10 } else { byte };
        }
        if let Ok(file) = read(&seal(&header, header_length, &data)) {
            for entry in file.tensors() {
                prop_assert!(file.tensor(entry.name).is_some());
            }
        }
    }
}

#[cfg(unix)]
#[test]
fn devices_are_no_files() {
    assert!(matches!(UpgFile::open(Path::new("/dev/zero")), Err(FormatError::NotAFile(_))));
}
