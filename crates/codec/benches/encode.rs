//! Encoded weights per second of one core, for each code and path; and the oracle decoder's.
//!
//! ```text
//! cargo bench -p upg-codec
//! ```

use std::{hint::black_box, time::Duration};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use upg_codec::{Bits, Encoder, GROUP, Isa, decode_row};

const GROUPS: usize = 2048;

/// Numbers that are roughly normal: what they are hardly matters to the time.
fn numbers(bits: Bits) -> Vec<f32> {
    let mut state = 1u32;
    let mut uniform = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    let sigma = bits.table().sigma;
    (0..GROUPS * GROUP).map(|_| (0..12).map(|_| uniform()).sum::<f32>() * sigma).collect()
}

fn encode(c: &mut Criterion) {
    let weights = std::array::from_fn(|i| 1.0 + i as f32 / 32.0);
    for (name, weights) in [("encode", None), ("encode weighted", Some(&weights))] {
        let mut group = c.benchmark_group(name);
        group.throughput(Throughput::Elements((GROUPS * GROUP) as u64));
        for bits in Bits::ALL {
            let x = numbers(bits);
            let mut codes = vec![0; GROUPS * bits.group_bytes()];
            for isa in Isa::available() {
                let mut encoder = Encoder::with_isa(bits, isa);
                group.bench_function(BenchmarkId::new(isa.name(), bits.get()), |b| {
                    b.iter(|| encoder.encode(black_box(&x), weights, &mut codes, None));
                });
            }
        }
        group.finish();
    }
}

fn decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("decode oracle");
    group.throughput(Throughput::Elements((GROUPS * GROUP) as u64));
    for bits in Bits::ALL {
        let mut codes = vec![0; GROUPS * bits.group_bytes()];
        Encoder::new(bits).encode(&numbers(bits), None, &mut codes, None);
        let mut values = vec![0; GROUPS * GROUP];
        group.bench_function(BenchmarkId::from_parameter(bits.get()), |b| {
            b.iter(|| decode_row(bits, black_box(&codes), &mut values));
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    targets = encode, decode
}
criterion_main!(benches);
