//! A token costs no allocation: everything is taken when the machine is made.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
};

use upg_codec::{Bits, Isa};
use upg_cpu::CpuMachine;
use upg_format::Encoding;
use upg_pdvm::{
    KvKind, Logits, Machine, MachineOptions, Segment, Synthetic, Weights, conformance::tiny_models,
};

/// Counts allocations, of all threads.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, SeqCst);
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Without a harness, so that nothing else allocates meanwhile.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (_, tiny) = tiny_models().remove(0);
    let weights = Synthetic::new(tiny.config().clone(), |_| Encoding::T8(Bits::B3), 1);
    for (isa, kv) in Isa::available().into_iter().zip(KvKind::ALL.into_iter().rev().cycle()) {
        let threads = Some(2);
        let options = MachineOptions { context: 400, max_batch: 32, threads, kv, ..Default::default() };
        let mut machine = CpuMachine::new(&weights, &options, isa, &mut |_| ())?;
        let mut logits = vec![0.0; machine.program().config.vocab];
        let seq = machine.kv_mut().open()?;
        let before = ALLOCATIONS.load(SeqCst);
        // Over the ends of pages, and over parts of the cache that were never touched.
        for i in 0..300 {
            let tokens = &[i % 100; 32][..if i % 100 == 0 { 32 } else { 1 }];
            machine.run(&[Segment { seq, tokens, logits: Logits::Last }], &mut logits)?;
        }
        assert_eq!(ALLOCATIONS.load(SeqCst) - before, 0, "allocations with {}, {kv}", isa.name());
    }
    Ok(())
}
