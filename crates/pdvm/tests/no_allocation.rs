//! Once a machine is made, running it allocates nothing.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering},
};

use upg_pdvm::{
    Logits, Machine, MachineOptions, ReferenceMachine, Segment, Weights, conformance::tiny_models,
};

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above; `pointer` came from `alloc`, so from the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The only test of its binary: another would count too.
#[test]
fn a_run_allocates_nothing() {
    let options = MachineOptions { context: 160, max_batch: 140, ..MachineOptions::default() };
    for (name, weights) in tiny_models() {
        let vocab = weights.config().vocab;
        let mut machine = ReferenceMachine::new(&weights, &options).unwrap();
        let seq = machine.kv_mut().open().unwrap();
        let mut logits = vec![0.0; vocab];
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        // A prompt over the page boundary, then tokens one by one.
        let prompt = Segment { seq, tokens: &[7; 130], logits: Logits::Last };
        machine.run(&[prompt], &mut logits).unwrap();
        for token in 0..30 {
            machine.run(&[Segment { seq, tokens: &[token], logits: Logits::Last }], &mut logits).unwrap();
        }
        assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 0, "{name}");
        assert!(logits.iter().all(|logit| logit.is_finite()));
    }
}
