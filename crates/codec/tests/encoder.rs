//! What holds for every input.

mod common;

use common::{decode, gaussian, viterbi};
use proptest::{collection::vec, prelude::*};
use upg_codec::{Bits, Encoder, GROUP, Isa, state};

/// The encoder's definition in plain exact integers: all three passes, no vectors, no limits.
fn oracle(bits: Bits, x: &[f32; GROUP], weights: &[f32; GROUP]) -> Vec<u8> {
    let k = bits.get();
    let unit = f64::from(1 << (11 - k));
    let largest = weights.iter().copied().fold(0.0, f32::max);
    let weights = weights.map(|w| {
        let integer = (f64::from(w) / f64::from(largest) * unit).round() as i64;
        if w > 0.0 { integer.max(1) } else { 0 }
    });
    let cost = |i: usize, state: u8| {
        let scaled = x[i].clamp(-160.0, 160.0) * weights[i] as f32;
        let x = (scaled + 0.5f32.copysign(scaled)) as i64;
        let value = i64::from(bits.table().value(state));
        weights[i] * value * value - 2 * x * value
    };
    let classes: Vec<usize> = (0..256 >> k).collect();
    let pass = |first: usize, ends: &[usize]| {
        let (_, mut path) = viterbi(bits, ends, ends, GROUP, |i, state| cost((first + i) % GROUP, state));
        path.rotate_right(first);
        path
    };
    let half = GROUP / 2;
    let seam = usize::from(pass(half, &classes)[0]) % classes.len();
    let middle = usize::from(pass(0, &[seam])[half]) % classes.len();
    let path = pass(half, &[middle]);

    let mut code = vec![0; bits.group_bytes()];
    for (i, state) in path.iter().enumerate() {
        for bit in (0..k).filter(|bit| state >> bit & 1 == 1) {
            code[(k * i + bit) / 8] |= 1 << ((k * i + bit) % 8);
        }
    }
    for (i, expected) in path.iter().enumerate() {
        assert_eq!(state(bits, &code, i), *expected, "the ring holds the path's states");
    }
    code
}

fn encode(bits: Bits, isa: Isa, x: &[f32], weights: Option<&[f32; GROUP]>) -> (Vec<u8>, Vec<f32>) {
    let groups = x.len() / GROUP;
    let (mut codes, mut errors) = (vec![0; groups * bits.group_bytes()], vec![0.0; groups]);
    Encoder::with_isa(bits, isa).encode(x, weights, &mut codes, Some(&mut errors));
    (codes, errors)
}

fn any_bits() -> impl Strategy<Value = Bits> {
    proptest::sample::select(Bits::ALL.as_slice())
}

/// Numbers as weights are, and numbers at and beyond the ends of every range.
fn number() -> impl Strategy<Value = f32> {
    prop_oneof![
        4 => -120f32..120.0,
        1 => proptest::sample::select(&[0.0, -0.0, 127.0, -127.0, 160.0, -160.0, 1e30, -1e30][..]),
    ]
}

fn groups() -> impl Strategy<Value = Vec<f32>> {
    (1usize..20).prop_flat_map(|groups| vec(number(), groups * GROUP))
}

fn weights() -> impl Strategy<Value = Option<[f32; GROUP]>> {
    let weight = prop_oneof![4 => 0.1f32..2.0, 1 => proptest::sample::select(&[0.0, 1e-6, 50.0][..])];
    let weights = vec(weight, GROUP).prop_filter_map("all zero", |weights| {
        let weights: [f32; GROUP] = weights.try_into().ok()?;
        weights.iter().any(|w| *w > 0.0).then_some(weights)
    });
    proptest::option::of(weights)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn every_isa_gives_the_oracles_codes(bits in any_bits(), x in groups(), weights in weights()) {
        let expected: Vec<u8> = x
            .as_chunks::<GROUP>().0.iter()
            .flat_map(|x| oracle(bits, x, &weights.unwrap_or([1.0; GROUP])))
            .collect();
        for isa in Isa::available() {
            let (codes, _) = encode(bits, isa, &x, weights.as_ref());
            prop_assert_eq!(&codes, &expected, "{}", isa.name());
        }
    }

    #[test]
    fn the_claimed_error_is_the_decoded_error(bits in any_bits(), x in groups(), weights in weights()) {
        for isa in Isa::available() {
            let (codes, errors) = encode(bits, isa, &x, weights.as_ref());
            let values = decode(bits, &codes);
            for (g, claimed) in errors.iter().enumerate() {
                let error: f64 = (0..GROUP)
                    .map(|i| {
                        let error = f64::from(x[g * GROUP + i]) - f64::from(values[g * GROUP + i]);
                        weights.map_or(1.0, |w| f64::from(w[i])) * error * error
                    })
                    .sum();
                let beyond_f32 = error > f64::from(f32::MAX) && claimed.is_infinite();
                prop_assert!(beyond_f32 || (error - f64::from(*claimed)).abs() <= 1e-5 * error + 1e-6);
            }
        }
    }
}

#[test]
fn values_of_the_code_come_back_exactly() {
    // Any bytes are a ring; where no other ring has the same values, encoding its values must find it.
    for bits in Bits::ALL {
        let bytes: Vec<u8> =
            gaussian(3, 40 * bits.group_bytes()).iter().map(|x| (x * 1e4) as i32 as u8).collect();
        let values = decode(bits, &bytes);
        for isa in Isa::available() {
            let (codes, errors) = encode(bits, isa, &values, None);
            // The seam is found by half a ring's evidence: nearly always is not always.
            let exact = errors.iter().filter(|error| **error == 0.0).count();
            assert!(exact >= 38, "K = {}: {exact} of 40 groups", bits.get());
            assert!(decode(bits, &codes).iter().zip(&values).filter(|(a, b)| a == b).count() >= 38 * GROUP);
        }
    }
}

#[test]
fn weights_move_the_error_to_where_it_matters_less() {
    for bits in Bits::ALL.into_iter().filter(|bits| *bits != Bits::B8) {
        let x: Vec<f32> = gaussian(11, 512 * GROUP).iter().map(|x| x * bits.table().sigma).collect();
        let weights: [f32; GROUP] = std::array::from_fn(|i| if i % 4 == 0 { 8.0 } else { 1.0 });
        let important = |weights| {
            let values = decode(bits, &encode(bits, Isa::best(), &x, weights).0);
            x.iter().zip(&values).step_by(4).map(|(x, v)| (x - v).powi(2)).sum::<f32>()
        };
        let (plain, weighted) = (important(None), important(Some(&weights)));
        assert!(weighted < 0.9 * plain, "K = {}: {weighted} after {plain}", bits.get());
    }
}

#[test]
fn equal_weights_are_no_weights_and_encoders_keep_no_state() {
    for bits in Bits::ALL {
        let x: Vec<f32> = gaussian(5, 40 * GROUP).iter().map(|x| x * bits.table().sigma).collect();
        let mut encoder = Encoder::new(bits);
        let mut codes = |weights: Option<&[f32; GROUP]>| {
            let mut codes = vec![0; 40 * bits.group_bytes()];
            encoder.encode(&x, weights, &mut codes, None);
            codes
        };
        let plain = codes(None);
        let ramp = std::array::from_fn(|i| 1.0 + i as f32);
        let weighted = codes(Some(&ramp));
        assert_eq!(codes(Some(&[3.0; GROUP])), plain);
        assert_eq!(codes(Some(&ramp)), weighted);
        assert_eq!(codes(None), plain);
    }
}

#[test]
fn numbers_that_are_none_are_encoded_as_something() {
    let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, f32::MIN_POSITIVE, -0.0];
    for bits in Bits::ALL {
        let x: Vec<f32> = (0..3 * GROUP).map(|i| odd[i % odd.len()]).collect();
        let as_seen: Vec<f32> = x.iter().map(|x| if x.is_nan() { 0.0 } else { x.clamp(-1e6, 1e6) }).collect();
        let odd_weights: [f32; GROUP] = std::array::from_fn(|i| [odd[i % odd.len()], -1.0][i % 2]);
        for isa in Isa::available() {
            let (codes, errors) = encode(bits, isa, &x, None);
            assert_eq!(codes, encode(bits, isa, &as_seen, None).0);
            assert!(errors.iter().all(|error| error.is_nan() || error.is_infinite()));
            encode(bits, isa, &x, Some(&odd_weights));
            encode(bits, isa, &x, Some(&[0.0; GROUP]));
        }
    }
}

#[test]
fn nothing_is_encoded_to_nothing() {
    Encoder::new(Bits::B3).encode(&[], None, &mut [], Some(&mut []));
}

#[test]
#[should_panic(expected = "bytes of the groups' codes")]
fn codes_must_fit_the_numbers() {
    Encoder::new(Bits::B3).encode(&[0.0; 64], None, &mut [0; 12], None);
}
