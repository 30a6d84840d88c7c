//! The code itself: sizes, tables, states.

mod common;

use common::gaussian;
use upg_codec::{Bits, BitsError, GROUP, Isa, IsaError, decode_group, decode_row, state};

#[test]
fn values_fit_an_i8_and_use_its_range() {
    for bits in Bits::ALL {
        let table = bits.table();
        for state in 0..=255u8 {
            let sum = i32::from(table.low[usize::from(state & 15)])
                + i32::from(table.high[usize::from(state >> 4)]);
            assert!((-127..=127).contains(&sum), "K = {}: state {state} has value {sum}", bits.get());
            assert_eq!(i32::from(table.value(state)), sum);
        }
        assert!((20.0..64.0).contains(&table.sigma), "K = {}: sigma {}", bits.get(), table.sigma);
    }
}

#[test]
fn states_are_the_rings_bits() {
    for bits in Bits::ALL {
        let k = bits.get();
        let group: Vec<u8> = gaussian(1, bits.group_bytes()).iter().map(|x| (x * 1e4) as i32 as u8).collect();
        let ring = |bit: usize| group[bit % (GROUP * k) / 8] >> (bit % 8) & 1;
        let mut values = [0; GROUP];
        decode_group(bits, &group, &mut values);
        for (i, value) in values.iter().enumerate() {
            let expected = (0..8).map(|j| ring(k * i + j) << j).sum();
            assert_eq!(state(bits, &group, i), expected);
            assert_eq!(*value, bits.table().value(expected));
        }
    }
}

#[test]
fn a_row_is_its_groups() {
    for bits in Bits::ALL {
        let codes: Vec<u8> = (0..3 * bits.group_bytes()).map(|i| (i * 37) as u8).collect();
        let mut row = [0; 3 * GROUP];
        decode_row(bits, &codes, &mut row);
        for (code, values) in codes.chunks_exact(bits.group_bytes()).zip(row.chunks_exact(GROUP)) {
            let mut group = [0; GROUP];
            decode_group(bits, code, &mut group);
            assert_eq!(group, values);
        }
    }
}

#[test]
fn sizes() {
    assert_eq!(Bits::B3.group_bytes(), 12);
    assert_eq!(Bits::B3.row_bytes(5120), Some(1920));
    assert_eq!(Bits::B3.row_bytes(33), None);
    assert_eq!(Bits::B8.row_bytes(usize::MAX - 31), Some(usize::MAX - 31));
    for bits in Bits::ALL {
        assert_eq!(Bits::try_from(bits as u8), Ok(bits));
    }
    for none in [0, 1, 7, 9, 255] {
        assert_eq!(Bits::try_from(none), Err(BitsError(none)));
    }
}

#[test]
fn paths_go_by_name() {
    assert!(Isa::available().contains(&Isa::Scalar));
    assert!(Isa::best().is_available());
    for isa in Isa::ALL {
        let parsed = isa.name().parse::<Isa>();
        assert_eq!(parsed, if isa.is_available() { Ok(isa) } else { Err(IsaError::Unavailable(isa)) });
    }
    let unknown = "sse9".parse::<Isa>().unwrap_err().to_string();
    assert!(unknown.ends_with("use one of scalar, neon, neon-dot, avx2, avx-vnni, avx512"), "{unknown}");
}
