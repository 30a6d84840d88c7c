//! Any sequence of operations keeps the books of the KV cache straight.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use proptest::prelude::*;
use upg_pdvm::{KvError, KvPages, PAGE_TOKENS, SeqId};

const CONTEXT: usize = 3 * PAGE_TOKENS + 17;
const SEQUENCES: usize = 3;
const PAGES: usize = 4 * SEQUENCES;

#[derive(Clone, Debug)]
enum Step {
    Open,
    Close(u32),
    /// Reserve and count as written.
    Append(u32, usize),
    /// Reserve only, as a run that fails later does.
    Reserve(u32, usize),
    Truncate(u32, usize),
    Expect(u32, usize),
}

fn step() -> impl Strategy<Value = Step> {
    // One identifier more than there are sequences: never open.
    let seq = 0..SEQUENCES as u32 + 1;
    let tokens = prop_oneof![0..2 * PAGE_TOKENS, Just(CONTEXT), Just(usize::MAX)];
    prop_oneof![
        2 => Just(Step::Open),
        1 => seq.clone().prop_map(Step::Close),
        6 => (seq.clone(), tokens.clone()).prop_map(|(seq, n)| Step::Append(seq, n)),
        2 => (seq.clone(), tokens.clone()).prop_map(|(seq, n)| Step::Reserve(seq, n)),
        3 => (seq.clone(), 0..CONTEXT).prop_map(|(seq, n)| Step::Truncate(seq, n)),
        1 => (seq, 0..CONTEXT).prop_map(|(seq, n)| Step::Expect(seq, n)),
    ]
}

/// What the books must say: length and reach of each open sequence.
type Model = [Option<(usize, usize)>; SEQUENCES];

fn lookup(model: &Model, seq: u32) -> Result<(usize, usize), KvError> {
    model.get(seq as usize).copied().flatten().ok_or(KvError::Closed(SeqId(seq)))
}

fn reservable(model: &Model, seq: u32, tokens: usize) -> Result<(usize, usize), KvError> {
    let (len, reach) = lookup(model, seq)?;
    let needed = len.saturating_add(tokens);
    if needed > CONTEXT { Err(KvError::ContextFull { needed, context: CONTEXT }) } else { Ok((len, reach)) }
}

fn apply(kv: &mut KvPages, model: &mut Model, step: &Step) {
    match *step {
        Step::Open => match model.iter().position(Option::is_none) {
            Some(free) => {
                assert_eq!(kv.open(), Ok(SeqId(free as u32)));
                model[free] = Some((0, 0));
            }
            None => assert_eq!(kv.open(), Err(KvError::TooManySequences(SEQUENCES))),
        },
        Step::Close(seq) => {
            kv.close(SeqId(seq));
            if let Some(entry) = model.get_mut(seq as usize) {
                *entry = None;
            }
        }
        Step::Append(seq, tokens) => {
            let expected = reservable(model, seq, tokens);
            assert_eq!(kv.reserve(SeqId(seq), tokens), expected.map(|_| ()));
            if let Ok((len, reach)) = expected {
                kv.advance(SeqId(seq), tokens).unwrap();
                model[seq as usize] = Some((len + tokens, reach.max(len + tokens)));
            }
        }
        Step::Reserve(seq, tokens) => {
            let before = format!("{kv:?}");
            let result = kv.reserve(SeqId(seq), tokens);
            assert_eq!(result, reservable(model, seq, tokens).map(|_| ()));
            if result.is_err() {
                assert_eq!(format!("{kv:?}"), before, "a refused reservation changed the books");
            }
        }
        Step::Truncate(seq, len) => {
            let expected = lookup(model, seq);
            assert_eq!(kv.truncate(SeqId(seq), len), expected.map(|_| ()));
            if let Ok((old, reach)) = expected {
                let len = old.min(len);
                model[seq as usize] = Some((len, if len == 0 { 0 } else { reach }));
            }
        }
        Step::Expect(seq, tokens) => {
            let expected = lookup(model, seq);
            assert_eq!(kv.expect(SeqId(seq), tokens), expected.map(|_| ()));
            if let Ok((len, reach)) = expected {
                model[seq as usize] = Some((len, reach.max(tokens)));
            }
        }
    }
}

fn check(kv: &KvPages, model: &Model) {
    let mut owned = Vec::new();
    for seq in 0..SEQUENCES as u32 + 1 {
        let expected = lookup(model, seq);
        assert_eq!(kv.len(SeqId(seq)), expected.map(|(len, _)| len));
        assert_eq!(kv.reach(SeqId(seq)), expected.map(|(_, reach)| reach));
        if let Ok((len, _)) = expected {
            let pages = kv.pages(SeqId(seq)).unwrap();
            assert!(pages.len() * PAGE_TOKENS >= len, "{} pages for {len} tokens", pages.len());
            owned.extend_from_slice(pages);
        }
    }
    assert_eq!(kv.used(), owned.len(), "pages are free, or a sequence's");
    assert!(owned.iter().all(|page| (*page as usize) < kv.total()));
    owned.sort_unstable();
    owned.dedup();
    assert_eq!(kv.used(), owned.len(), "a page belongs to two sequences");
}

proptest! {
    #[test]
    fn no_page_is_lost_or_owned_twice(steps in prop::collection::vec(step(), 1..60)) {
        let mut kv = KvPages::new(CONTEXT, SEQUENCES);
        assert_eq!(kv.total(), PAGES);
        let mut model = Model::default();
        for step in &steps {
            apply(&mut kv, &mut model, step);
            check(&kv, &model);
        }
        for seq in 0..SEQUENCES as u32 {
            kv.close(SeqId(seq));
        }
        assert_eq!(kv.used(), 0);
        // Every page can be had again, and each once.
        let mut pages = Vec::new();
        for _ in 0..SEQUENCES {
            let seq = kv.open().unwrap();
            kv.reserve(seq, CONTEXT).unwrap();
            pages.extend_from_slice(kv.pages(seq).unwrap());
        }
        pages.sort_unstable();
        assert_eq!(pages, (0..PAGES as u32).collect::<Vec<_>>());
    }
}
