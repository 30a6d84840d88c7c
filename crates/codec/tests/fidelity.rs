//! How well the code represents Gaussian data.

mod common;

use common::{best_ring, decode, gaussian, snr};
use upg_codec::{Bits, Encoder, GROUP};

/// Signal to error on fixed Gaussian data, with rings of 32 and the committed `i8` tables.
fn gaussian_snr(bits: Bits) -> f64 {
    let sigma = bits.table().sigma;
    let x: Vec<f32> = gaussian(2026, 8192 * GROUP).iter().map(|x| x * sigma).collect();
    let mut codes = vec![0; x.len() / GROUP * bits.group_bytes()];
    Encoder::new(bits).encode(&x, None, &mut codes, None);
    snr(&x, &decode(bits, &codes))
}

#[test]
fn gaussian_data_keeps_its_decibels() {
    let floors = [
        (Bits::B2, 10.8),
        (Bits::B3, 16.55),
        (Bits::B4, 22.2),
        (Bits::B5, 27.5),
        (Bits::B6, 32.35),
        (Bits::B8, 39.9),
    ];
    for (bits, floor) in floors {
        let decibels = gaussian_snr(bits);
        println!("K = {}: {decibels:.3} dB", bits.get());
        assert!(decibels >= floor, "K = {}: {decibels:.3} dB, below {floor}", bits.get());
    }
}

#[test]
fn three_passes_come_near_the_best_ring() {
    for bits in [Bits::B2, Bits::B3, Bits::B4, Bits::B5, Bits::B6] {
        let groups = if bits == Bits::B2 { 48 } else { 96 };
        let x: Vec<f32> = gaussian(7, groups * GROUP).iter().map(|x| x * bits.table().sigma).collect();
        let (mut codes, mut errors) = (vec![0; groups * bits.group_bytes()], vec![0.0; groups]);
        Encoder::new(bits).encode(&x, None, &mut codes, Some(&mut errors));

        let found: f64 = errors.iter().map(|e| f64::from(*e)).sum();
        let best: f64 = x.as_chunks::<GROUP>().0.iter().map(|x| best_ring(bits, x)).sum();
        let loss = 10.0 * (found / best).log10();
        println!("K = {}: {loss:.3} dB from the best ring", bits.get());
        assert!((-1e-3..0.1).contains(&loss), "K = {}: {loss:.3} dB from the best ring", bits.get());
    }
}
