//! The in-cache rate of the kernels, per core: `cargo bench -p upg-cpu`. It should exceed what memory can deliver to
//! a core (3/8 byte a weight at 3 bits) on every path.

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use upg_codec::Isa;
use upg_cpu::limits;

/// Weights that stand for one iteration.
const WEIGHTS: u64 = 1_000_000_000;

fn kernels(c: &mut Criterion) {
    let mut group = c.benchmark_group("gemv, 3 bits, one core");
    group.throughput(Throughput::Elements(WEIGHTS)).sample_size(10);
    for isa in Isa::available() {
        group.bench_function(isa.name(), |b| {
            b.iter_custom(|iterations| {
                let rate = limits::kernel_rate(isa, 1).expect("a thread and a few hundred kilobytes");
                Duration::from_secs_f64(iterations as f64 / rate)
            });
        });
    }
    group.finish();
}

criterion_group!(benches, kernels);
criterion_main!(benches);
