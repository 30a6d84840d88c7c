//! Checkpoint to file and back: what is in it, that it is the same bytes always, and that sizes are met.
#![allow(clippy::unwrap_used)] // a failed helper is a failed test

mod common;

use std::{
    fs,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use common::{Generated, tiny};
use upg_codec::Bits;
use upg_compress::{
    CompressError, Folded, Options, Plan, Progress, Report, Target, compress, relative_error,
};
use upg_format::{Encoding, ModelConfig, TensorKind, TensorName, UpgFile};
use upg_pdvm::{Tensor, UpgWeights, Weights as _};

fn run(checkpoint: &Generated, out: &Path, target: Target) -> Result<Report, CompressError> {
    compress(checkpoint, out, target, &Options::default(), &(), &AtomicBool::new(false))
}

fn options_with_plan(plan: &Plan) -> Options {
    Options { plan: Some(plan.to_json()), ..Options::default() }
}

/// A plan with `encoding` for every matrix.
fn uniform(config: &ModelConfig, encoding: Encoding) -> Plan {
    let of = |name: TensorName| if name.kind().is_vector() { Encoding::F32 } else { encoding };
    Plan::new(config, 0, of).unwrap()
}

/// The weights that a tensor stands for.
fn dense(tensor: &Tensor<'_>) -> Vec<f32> {
    match tensor {
        Tensor::F32 { data, .. } => data.to_vec(),
        Tensor::T8 { bits, rows, cols, scales, codes } => {
            let mut values = vec![0; rows * cols];
            upg_codec::decode_row(*bits, codes, &mut values);
            let scaled = values.iter().enumerate().map(|(i, v)| f32::from(*v) * scales[i / cols].to_f32());
            scaled.collect()
        }
    }
}

fn snr_db(x: &[f32], rounded: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let noise: f64 = x.iter().zip(rounded).map(|(x, y)| square(x - y)).sum();
    10.0 * (x.iter().map(|x| square(*x)).sum::<f64>() / noise).log10()
}

#[test]
fn the_file_holds_the_folded_weights() {
    let folder = tempfile::tempdir().unwrap();
    for (tied, bias, bits) in [(true, false, Bits::B3), (false, true, Bits::B4), (false, false, Bits::B8)] {
        let checkpoint = Generated::new(tiny(tied, bias), 1);
        let plan = uniform(&tiny(tied, bias), Encoding::T8(bits));
        let out = folder.path().join("out.upg");
        let options = options_with_plan(&plan);
        let never = AtomicBool::new(false);
        let report = compress(&checkpoint, &out, Target::Size(1 << 30), &options, &(), &never).unwrap();

        let file = UpgWeights::open(&out).unwrap();
        file.file().verify(&mut |_| {}).unwrap();
        assert_eq!(report.file_bytes, fs::metadata(&out).unwrap().len());
        assert_eq!(report.file_bytes, report.plan.file_bytes());
        let folded = Folded::new(&checkpoint, options.rotation);
        assert_eq!(file.config(), folded.config());
        for entry in &report.tensors {
            let name = entry.name;
            let (exact, stored) = (folded.tensor(name).unwrap(), file.tensor(name).unwrap());
            let (exact, stored) = (dense(&exact), dense(&stored));
            if name.kind().is_vector() {
                assert_eq!(exact, stored, "{name}");
                assert_eq!(entry.snr_db, None);
            } else {
                let (snr, expected) = (snr_db(&exact, &stored), -10.0 * relative_error(bits).log10());
                // The random rows are Gaussian, but short.
                assert!(snr > expected - 0.5, "{name} at {bits:?}: {snr} dB");
                assert!((snr - f64::from(entry.snr_db.unwrap())).abs() < 0.02, "{name}: reported {entry:?}");
            }
        }
    }
}

#[test]
fn plain_encodings_and_rows_of_zeros_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.upg");
    let embed = TensorName::global(TensorKind::Embed);
    let mut checkpoint = Generated::new(tiny(true, false), 2);
    checkpoint.set(embed, 5, &[0.0; 96]);
    let gate = TensorName::new(1, TensorKind::Gate);
    let plan = Plan::new(&tiny(true, false), 0, |name| match name {
        n if n.kind().is_vector() => Encoding::F32,
        n if n == gate => Encoding::F16,
        _ => Encoding::T8(Bits::B4),
    });
    let options = options_with_plan(&plan.unwrap());
    compress(&checkpoint, &out, Target::Size(1 << 30), &options, &(), &AtomicBool::new(false)).unwrap();
    let file = UpgWeights::open(&out).unwrap();
    let folded = Folded::new(&checkpoint, options.rotation);
    let stored = dense(&file.tensor(embed).unwrap());
    assert!(stored[5 * 96..][..96].iter().all(|x| *x == 0.0));
    assert!(stored.iter().all(|x| x.is_finite()));
    let snr = snr_db(&dense(&folded.tensor(gate).unwrap()), &dense(&file.tensor(gate).unwrap()));
    assert!(snr > 65.0, "f16: {snr} dB");
}

#[test]
fn rows_too_large_for_their_scale_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let q = TensorName::new(0, TensorKind::Q);
    let mut checkpoint = Generated::new(tiny(false, false), 3);
    checkpoint.set(q, 9, &[3e38; 4]);
    let error = run(&checkpoint, &folder.path().join("out.upg"), Target::Bits(6.0)).unwrap_err();
    assert!(matches!(error, CompressError::TooLarge { name, row: 9 } if name == q), "{error}");
    assert!(!folder.path().join("out.upg").exists());
}

#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = Generated::new(tiny(false, true), 4);
    let bytes = |threads: usize| {
        let out = folder.path().join(format!("{threads}.upg"));
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| run(&checkpoint, &out, Target::Bits(8.0))).unwrap();
        fs::read(out).unwrap()
    };
    let one = bytes(1);
    assert!(one == bytes(2) && one == bytes(5));
}

/// Cancels at the start of one tensor, and counts those that were worked on.
struct CancelAt<'a> {
    tensor: usize,
    started: AtomicUsize,
    worked: Mutex<Vec<TensorName>>,
    cancel: &'a AtomicBool,
}

impl Progress for CancelAt<'_> {
    fn started(&self, _name: TensorName, _encoding: Encoding, _weights: u64) {
        if self.started.fetch_add(1, Ordering::Relaxed) == self.tensor {
            self.cancel.store(true, Ordering::Relaxed);
        }
    }

    fn finished(&self, name: TensorName, snr_db: Option<f32>) {
        if snr_db.is_some() {
            self.worked.lock().unwrap().push(name);
        }
    }
}

#[test]
fn an_interrupted_run_goes_on_and_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = Generated::new(tiny(false, false), 5);
    let (whole, resumed) = (folder.path().join("whole.upg"), folder.path().join("resumed.upg"));
    let target = Target::Bits(8.0);
    let report = run(&checkpoint, &whole, target).unwrap();

    let attempt = |tensor| {
        let cancel = AtomicBool::new(false);
        let progress =
            CancelAt { tensor, started: AtomicUsize::new(0), worked: Mutex::default(), cancel: &cancel };
        let result = compress(&checkpoint, &resumed, target, &Options::default(), &progress, &cancel);
        (result, progress.worked.into_inner().unwrap())
    };
    let (result, first) = attempt(6);
    assert!(matches!(result, Err(CompressError::Cancelled)));
    assert!(!resumed.exists(), "no half file");
    let (result, rest) = attempt(usize::MAX);
    let result = result.unwrap();
    assert_eq!(first.len(), 6);
    assert!(rest.iter().all(|name| !first.contains(name)), "finished tensors are not redone");
    assert_eq!(result.tensors, report.tensors, "the report covers the first run too");
    assert!(result.weights < report.weights);
    assert!(fs::read(whole).unwrap() == fs::read(resumed).unwrap());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is left beside the files");
}

#[test]
fn an_edited_plan_is_followed_and_a_wrong_one_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.upg");
    let checkpoint = Generated::new(tiny(false, false), 6);
    let attempt = |json: String, target| {
        let options = Options { plan: Some(json), ..Options::default() };
        compress(&checkpoint, &out, target, &options, &(), &AtomicBool::new(false))
    };
    let json = uniform(&tiny(false, false), Encoding::T8(Bits::B2)).to_json();
    let edited = json.replace("\"layers.1.v\": \"t8-2\"", "\"layers.1.v\": \"t8-6\"");
    attempt(edited.clone(), Target::Size(1 << 20)).unwrap();
    let file = UpgFile::open(&out).unwrap();
    let encoding = |layer| file.tensor(TensorName::new(layer, TensorKind::V)).unwrap().0.encoding;
    assert_eq!((encoding(0), encoding(1)), (Encoding::T8(Bits::B2), Encoding::T8(Bits::B6)));

    let wrong = [
        (json.replace("layers.1.v", "layers.2.v"), Target::Size(1 << 20)),
        (json.replace("t8-2", "t8-7"), Target::Size(1 << 20)),
        (String::from("[]"), Target::Size(1 << 20)),
        (edited, Target::Size(1 << 10)),
    ];
    for (json, target) in wrong {
        let error = attempt(json, target).unwrap_err();
        assert!(matches!(error, CompressError::Plan(_)), "{error}");
    }
}
