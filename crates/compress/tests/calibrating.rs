//! Calibrated compression: what it may not depend on, and that it helps.
#![allow(clippy::unwrap_used)] // a failed helper is a failed test

mod common;

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use common::{Generated, tiny};
use rayon::ThreadPoolBuilder;
use upg_codec::Bits;
use upg_compress::{
    CompressError, Folded, Options, Plan, Progress, Target,
    calibrate::{Calibration, divergence, sensitivities},
    compress,
};
use upg_format::{Encoding, RotationConfig, TensorKind, TensorName, UpgFile};
use upg_pdvm::{UpgWeights, rotation::SplitMix64};

fn text(tokens: usize, seed: u64) -> Vec<u32> {
    let mut random = SplitMix64(seed);
    (0..tokens).map(|_| (random.next() % 90) as u32).collect()
}

fn calibration(tokens: usize) -> Calibration {
    Calibration { tokens: text(tokens, 3), ctx: 32, source: "random tokens".into() }
}

/// Every matrix in 3 bits.
fn options(checkpoint: &Generated, calibration: Option<Calibration>) -> Options {
    let of = |name: TensorName| match name.kind().is_vector() {
        true => Encoding::F32,
        false => Encoding::T8(Bits::B3),
    };
    let config = Folded::new(checkpoint, None).config().clone();
    let plan = Plan::new(&config, 0, of).unwrap().to_json();
    Options { plan: Some(plan), calibration, ..Options::default() }
}

fn run(checkpoint: &Generated, out: &Path, options: &Options) -> Result<(), CompressError> {
    compress(checkpoint, out, Target::Ratio(1.0), options, &(), &AtomicBool::new(false)).map(drop)
}

#[test]
fn calibrated_files_are_closer_and_the_same_on_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = Generated::new(tiny(false, true), 1);
    let [plain, one, three] = ["plain", "one", "three"].map(|name| folder.path().join(name));
    run(&checkpoint, &plain, &options(&checkpoint, None)).unwrap();
    let calibrated = options(&checkpoint, Some(calibration(4096)));
    for (threads, out) in [(1, &one), (3, &three)] {
        let pool = ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| run(&checkpoint, out, &calibrated)).unwrap();
    }
    assert!(fs::read(&one).unwrap() == fs::read(&three).unwrap());
    assert_eq!(fs::metadata(&one).unwrap().len(), fs::metadata(&three).unwrap().len());

    let provenance = UpgFile::open(&one).unwrap().header().provenance.clone();
    assert!(provenance.calibration.unwrap().starts_with("random tokens: 4096 tokens in sequences of 32"));
    let [plain, calibrated] = [&plain, &one].map(|path| UpgWeights::open(path).unwrap());
    let reference = Folded::new(&checkpoint, None);
    let found = divergence(&reference, &[&plain, &calibrated], &text(1024, 4), 32).unwrap();
    let (plain, calibrated) = (found[0].mean(), found[1].mean());
    assert!(calibrated < 0.9 * plain, "mean KL {calibrated} calibrated, {plain} not");
}

/// Notes which tensors were rounded by the text, and how much closer than the nearest code that was.
#[derive(Default)]
struct Noted(Mutex<Vec<(TensorName, f64)>>);

impl Progress for Noted {
    fn calibrated(&self, name: TensorName, _: Option<f64>, relative: f64) {
        self.0.lock().unwrap().push((name, relative));
    }
}

#[test]
fn the_matrix_that_makes_logits_is_rounded_by_the_text() {
    let folder = tempfile::tempdir().unwrap();
    for (tied, kind) in [(true, TensorKind::Embed), (false, TensorKind::Head)] {
        let checkpoint = Generated::new(tiny(tied, false), 6);
        let (noted, options) = (Noted::default(), options(&checkpoint, Some(calibration(2048))));
        let out = folder.path().join(format!("{tied}"));
        compress(&checkpoint, &out, Target::Ratio(1.0), &options, &noted, &AtomicBool::new(false)).unwrap();
        let noted = noted.0.into_inner().unwrap();
        assert_eq!(noted.len(), 2 * 7 + 1);
        let (_, relative) = noted.iter().find(|(name, _)| name.kind() == kind).unwrap();
        assert!(*relative < 1.0, "{kind:?}: {relative}");
    }
}

/// Cancels when so many tensors have been started.
struct CancelAt<'a> {
    tensor: usize,
    started: AtomicUsize,
    cancel: &'a AtomicBool,
}

impl Progress for CancelAt<'_> {
    fn started(&self, _: TensorName, _: Encoding, _: u64) {
        if self.started.fetch_add(1, Ordering::Relaxed) + 1 == self.tensor {
            self.cancel.store(true, Ordering::Relaxed);
        }
    }
}

/// Ends a run as a kill would, once it has rounded a tensor, and be it the first of those that share an input.
struct KillAtOnce;

impl Progress for KillAtOnce {
    fn finished(&self, _: TensorName, snr_db: Option<f32>) {
        if snr_db.is_some() {
            resume_unwind(Box::new("killed"));
        }
    }
}

#[test]
fn killed_after_every_tensor_it_goes_on_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = Generated::new(tiny(true, false), 2);
    let options = options(&checkpoint, Some(calibration(1024)));
    let [whole, killed] = ["whole", "killed"].map(|name| folder.path().join(name));
    run(&checkpoint, &whole, &options).unwrap();
    let mut kills = 0;
    let step =
        || compress(&checkpoint, &killed, Target::Ratio(1.0), &options, &KillAtOnce, &AtomicBool::new(false));
    while catch_unwind(AssertUnwindSafe(step)).is_err() {
        kills += 1;
    }
    assert!(kills > 7, "{kills} kills are not between all matrices of a layer");
    assert!(fs::read(whole).unwrap() == fs::read(killed).unwrap());
}

#[test]
fn stopped_anywhere_it_goes_on_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = Generated::new(tiny(true, false), 2);
    let options = options(&checkpoint, Some(calibration(1024)));
    let [whole, resumed] = ["whole", "resumed"].map(|name| folder.path().join(name));
    run(&checkpoint, &whole, &options).unwrap();
    for tensor in [3, 6, 9, 13] {
        let cancel = AtomicBool::new(false);
        let progress = CancelAt { tensor, started: AtomicUsize::new(0), cancel: &cancel };
        let result = compress(&checkpoint, &resumed, Target::Ratio(1.0), &options, &progress, &cancel);
        assert!(matches!(result, Err(CompressError::Cancelled)), "{tensor}: {result:?}");
    }
    run(&checkpoint, &resumed, &options).unwrap();
    assert!(fs::read(whole).unwrap() == fs::read(resumed).unwrap());
}

#[test]
fn text_that_is_too_short_or_of_another_model_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = Generated::new(tiny(true, false), 2);
    let mut foreign = calibration(1024);
    foreign.tokens[77] = 90;
    for (calibration, part) in [(calibration(20), "give more text"), (foreign, "own tokenizer")] {
        let error = run(&checkpoint, &folder.path().join("x"), &options(&checkpoint, Some(calibration)));
        let message = error.unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn activations_that_overflow_name_the_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let mut checkpoint = Generated::new(tiny(true, false), 2);
    let up = TensorName::new(1, TensorKind::Up);
    (0..160).for_each(|row| checkpoint.set(up, row, &[1e38; 96]));
    let options = options(&checkpoint, Some(calibration(1024)));
    let error = run(&checkpoint, &folder.path().join("x"), &options).unwrap_err();
    assert!(error.to_string().contains("layers.1"), "{error}");
}

#[test]
fn a_tensor_without_effect_is_measured_harmless() {
    let mut checkpoint = Generated::new(tiny(false, false), 5);
    // Nothing comes out of the first layer's MLP.
    let [gate, up, down] =
        [TensorKind::Gate, TensorKind::Up, TensorKind::Down].map(|k| TensorName::new(0, k));
    (0..96).for_each(|row| checkpoint.set(down, row, &[0.0; 160]));
    let folded = Folded::new(&checkpoint, Some(RotationConfig { seed: 0 }));
    let found = sensitivities(&folded, &calibration(256), &(), &AtomicBool::new(false)).unwrap();
    for name in [gate, up, down] {
        assert!(found.of(name) < 1e-4, "{name}: {}", found.of(name));
    }
    let kinds = [(0, TensorKind::Q), (0, TensorKind::O), (1, TensorKind::Gate), (1, TensorKind::Down)];
    for (layer, kind) in kinds {
        let name = TensorName::new(layer, kind);
        assert!(found.of(name) > 1e-3, "{name}: {}", found.of(name));
    }
    assert!(found.of(TensorName::global(TensorKind::Embed)) > found.of(down));
    assert!(found.of(TensorName::global(TensorKind::Head)) > 1e-3);
}
