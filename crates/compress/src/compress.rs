use std::{
    collections::BTreeMap,
    ops::Range,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use bytemuck::cast_slice;
use half::f16;
use upg_checkpoint::{Checkpoint, Source};
use upg_codec::Bits;
use upg_format::{
    Encoding, Header, Provenance, RotationConfig, Section, TensorKind, TensorName, TensorStats, UpgFile,
    UpgWriter,
};

use crate::{
    CompressError, Folded, Plan, Progress, Report, Sensitivities, Target, TensorReport,
    calibrate::{
        self, Calibration, Clock, Factor, Outcome, Outputs, Phase, Rounded, Store, Walk, round,
        round_nearest, values,
    },
    kept::KeptPlan,
    peak_rss,
    plan::{PlannedTensor, allocate},
    round::Energy,
    source::identify,
};

/// Numbers in one chunk, unless one block of the rotation has more: large enough to keep all threads busy, small
/// enough that stopping is prompt and memory little.
const CHUNK: usize = 4 << 20;

/// How to compress, but for the size.
#[derive(Clone, Debug)]
pub struct Options {
    /// The rotation to fold in. Without one, T8's error is that of the weights' own distribution: for experiments.
    pub rotation: Option<RotationConfig>,
    /// What bits are allocated by; `None`: what [`calibrate::sensitivities`] measures on the calibration text, or
    /// [`Sensitivities::prior`] where there is none, or where the checkpoint's files are not on this machine.
    pub sensitivities: Option<Sensitivities>,
    /// A plan in JSON (see [`Plan::to_json`]) to follow instead of allocating; the target is then only a limit.
    pub plan: Option<String>,
    /// Text to round by (see [`Calibration`]); `None`: each weight to the nearest code.
    pub calibration: Option<Calibration>,
    /// Bytes of memory that calibration may take; as much of its text is used as fits. `None`: all of it.
    pub memory: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            rotation: Some(RotationConfig { seed: 0 }),
            sensitivities: None,
            plan: None,
            calibration: None,
            memory: None,
        }
    }
}

/// Compresses `checkpoint` to the file `out`, no larger than `target`.
///
/// Uses the current rayon pool. `cancel` is looked at between chunks: once it is true, [`CompressError::Cancelled`] is
/// returned, `out` is untouched, and the same call goes on from `out.part` without redoing finished tensors.
///
/// # Errors
/// See [`CompressError`].
pub fn compress(
    checkpoint: &dyn Checkpoint,
    out: &Path,
    target: Target,
    options: &Options,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<Report, CompressError> {
    let start = Instant::now();
    let folded = Folded::new(checkpoint, options.rotation);
    let calibration = options.calibration.as_ref();
    let calibration = calibration.map(|text| text.within(folded.config(), options.memory)).transpose()?;
    let options = &Options { calibration, ..options.clone() };
    let header = header(checkpoint, &folded, target, options, progress)?;
    let overhead = UpgWriter::overhead(&header, checkpoint.tokenizer_json())?;
    let kept = KeptPlan::new(out, &header);
    let is_local = is_local(checkpoint);
    let plan =
        Planning { folded: &folded, is_local, target, options, overhead, progress, cancel }.plan(&kept)?;
    progress.planned(&plan, memory(&folded, &plan, options));

    let clock = Clock::default();
    let encodings = plan.encodings();
    let writer = UpgWriter::create_or_resume(out, &header, checkpoint.tokenizer_json(), &encodings)?;
    let mut job = Job { folded: &folded, writer, progress, cancel, clock: &clock, numbers: Vec::new() };
    plan.tensors().iter().filter(|t| job.writer.is_done(t.name)).for_each(|t| folded.finished(t.name));
    let mut weights = 0;
    if let Some(calibration) = &options.calibration {
        weights += job.calibrated(&plan, calibration)?;
    }
    // In the order of the checkpoint's files: where they are fetched, each comes once.
    let mut rest: Vec<_> = plan.tensors().iter().collect();
    if options.calibration.is_some() {
        rest.retain(|t| !calibrated(t.name));
    }
    rest.sort_by_key(|t| folded.file_of(t.name));
    for tensor in rest {
        weights += job.tensor(tensor, None)?;
    }
    progress.message(&format!("spent on {}", clock.describe()));
    let file_bytes = job.writer.finish()?;
    kept.remove()?;
    let tensors = measured(out)?;
    let seconds = start.elapsed().as_secs_f64();
    Ok(Report { plan, tensors, file_bytes, seconds, weights, peak_rss: peak_rss() })
}

/// Whether all of a checkpoint's files are on this machine, so that reading them several times costs little.
fn is_local(checkpoint: &dyn Checkpoint) -> bool {
    checkpoint.sources().iter().all(|source| matches!(source, Source::File(_)))
}

/// Whether calibration brings a tensor into the file: all but the final norm.
fn calibrated(name: TensorName) -> bool {
    name.kind() != TensorKind::FinalNorm
}

/// What the file says of itself. Depends on nothing but the arguments: it decides whether a run can be gone on with.
fn header(
    checkpoint: &dyn Checkpoint,
    folded: &Folded<'_>,
    target: Target,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Header, CompressError> {
    progress.message("Hashing the checkpoint");
    let source = checkpoint.sources().iter().map(identify).collect::<Result<_, _>>()?;
    let rounding = match options.calibration {
        None => "nearest; row scales by least squares",
        Some(_) => {
            "LDLQ in blocks of 32, the head too, and between rows of the heads of q and k; row scales by least squares of \
             the outputs"
        }
    };
    let allocation = match options {
        Options { plan: Some(_), .. } => "as the plan given says",
        Options { sensitivities: Some(_), .. } => "by sensitivities given",
        Options { calibration: None, .. } => "by experience",
        _ if !is_local(checkpoint) => "by experience",
        _ => "by sensitivities measured on the calibration text",
    };
    let settings = [
        ("allocation", allocation.to_owned()),
        ("checkpoint", checkpoint.describe()),
        ("target", target.to_string()),
        ("rounding", rounding.to_owned()),
    ];
    let provenance = Provenance {
        source,
        tool: concat!("upg ", env!("CARGO_PKG_VERSION")).to_owned(),
        calibration: options.calibration.as_ref().map(Calibration::describe),
        settings: settings
            .map(|(key, value)| (key.to_owned(), value))
            .into_iter()
            .collect::<BTreeMap<_, _>>(),
    };
    Ok(Header { config: folded.config().clone(), text: checkpoint.text().clone(), provenance })
}

/// What a plan is made from.
struct Planning<'a> {
    folded: &'a Folded<'a>,
    /// Whether the checkpoint's files are on this machine.
    is_local: bool,
    target: Target,
    options: &'a Options,
    overhead: u64,
    progress: &'a dyn Progress,
    cancel: &'a AtomicBool,
}

impl Planning<'_> {
    fn plan(&self, kept: &KeptPlan) -> Result<Plan, CompressError> {
        let Options { plan, sensitivities, calibration, .. } = self.options;
        match (plan, sensitivities, calibration) {
            (Some(json), ..) => self.given(json),
            (None, Some(sensitivities), _) => self.allocated(sensitivities),
            (None, None, None) => self.allocated(&Sensitivities::prior(self.folded.config())),
            // Measuring would fetch every file twice more.
            (None, None, Some(_)) if !self.is_local => {
                self.allocated(&Sensitivities::prior(self.folded.config()))
            }
            (None, None, Some(text)) => match kept.read() {
                Some(json) => self.given(&json),
                None => {
                    let start = Instant::now();
                    let found = calibrate::sensitivities(self.folded, text, self.progress, self.cancel)?;
                    let seconds = start.elapsed().as_secs_f64();
                    self.progress.message(&format!("sensitivities measured in {seconds:.1} s"));
                    let plan = self.allocated(&found)?;
                    kept.write(&plan)?;
                    Ok(plan)
                }
            },
        }
    }

    fn allocated(&self, sensitivities: &Sensitivities) -> Result<Plan, CompressError> {
        allocate(self.folded.config(), sensitivities, self.target, self.overhead)
    }

    fn given(&self, json: &str) -> Result<Plan, CompressError> {
        let plan = Plan::from_json(json, self.folded.config(), self.overhead)?;
        let (bytes, budget) = (plan.file_bytes(), self.target.budget(plan.parameters())?);
        if bytes > budget {
            let target = self.target;
            return Err(CompressError::Plan(format!(
                "the plan takes {bytes} bytes, {target} allows {budget}"
            )));
        }
        Ok(plan)
    }
}

/// Rows of a tensor that are held at once: whole blocks of the rotation.
fn chunk_rows(folded: &Folded<'_>, tensor: &PlannedTensor) -> usize {
    let [rows, cols] = tensor.shape;
    let step = folded.row_step(tensor.name);
    (CHUNK / cols / step * step).clamp(step, rows)
}

/// About the bytes that compressing holds: the largest chunk as numbers and as codes, and what threads need besides; with
/// calibration, what that holds.
fn memory(folded: &Folded<'_>, plan: &Plan, options: &Options) -> u64 {
    let chunk = |t: &PlannedTensor| (chunk_rows(folded, t) * t.shape[1]) as u64;
    let largest = plan.tensors().iter().map(chunk).max().unwrap_or(0);
    let calibration = options.calibration.as_ref().map_or(0, |text| text.memory(folded.config()));
    calibration.max(largest * 5) + (1 << 20) * rayon::current_num_threads() as u64
}

/// Signal to error of every tensor, those of earlier runs included: the file knows them all.
fn measured(out: &Path) -> Result<Vec<TensorReport>, CompressError> {
    let file = UpgFile::open(out)?;
    let report = |name, stats: Option<TensorStats>| TensorReport { name, snr_db: stats.map(|s| s.snr_db) };
    Ok(file.tensors().iter().map(|entry| report(entry.name, entry.stats)).collect())
}

struct Job<'a> {
    folded: &'a Folded<'a>,
    writer: UpgWriter,
    progress: &'a dyn Progress,
    cancel: &'a AtomicBool,
    clock: &'a Clock,
    /// The chunk in work.
    numbers: Vec<f32>,
}

impl Job<'_> {
    /// Brings a tensor into the file, errors passed on as `factor` says, and returns the weights that this took: none where it
    /// was there.
    fn tensor(&mut self, tensor: &PlannedTensor, factor: Option<&Factor>) -> Result<u64, CompressError> {
        let PlannedTensor { name, encoding, .. } = *tensor;
        self.progress.started(name, encoding, tensor.weights());
        if self.writer.is_done(name) {
            self.progress.advanced(tensor.weights());
            self.progress.finished(name, None);
            return Ok(0);
        }
        let ([rows, cols], step) = (tensor.shape, chunk_rows(self.folded, tensor));
        let mut energy = Energy::default();
        for first in (0..rows).step_by(step) {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(CompressError::Cancelled);
            }
            let chunk = first..rows.min(first + step);
            self.numbers.resize(chunk.len() * cols, 0.0);
            self.clock.time(Phase::Weights, || self.folded.rows(name, chunk.clone(), &mut self.numbers))?;
            energy += match encoding {
                Encoding::T8(bits) => self.t8(name, bits, factor, &chunk)?,
                Encoding::F16 => self.f16(name, cols, &chunk)?,
                Encoding::F32 => self.f32(name, cols, &chunk)?,
            };
            self.progress.advanced((chunk.len() * cols) as u64);
        }
        let snr_db = energy.snr_db();
        self.finish(name, snr_db)?;
        Ok(tensor.weights())
    }

    /// Brings the embedding and all layers into the file, their matrices rounded by the text, and returns the weights
    /// that this took.
    fn calibrated(&mut self, plan: &Plan, calibration: &Calibration) -> Result<u64, CompressError> {
        let (folded, tied) = (self.folded, self.folded.config().tied_embeddings);
        let mut store = Layers { job: self, plan, weights: 0 };
        let [embed, head] = [TensorKind::Embed, TensorKind::Head].map(TensorName::global);
        match tied {
            true => store.output(embed, || Outputs::tied(folded, calibration))?,
            false => store.whole(embed, None)?,
        }
        let embedding = store.numbers(embed)?;
        let mut walk = Walk::new(folded, calibration, &embedding, store.job.progress, store.job.clock)?;
        drop(embedding);
        for layer in 0..folded.config().layers {
            let biases = plan.tensors().iter().map(|t| t.name).filter(|name| name.layer() == Some(layer));
            biases.filter(|name| name.kind().is_vector()).try_for_each(|name| store.whole(name, None))?;
            walk.layer(layer, &mut store)?;
        }
        if !tied {
            store.output(head, || Ok(walk.outputs()))?;
        }
        Ok(store.weights)
    }

    /// Declares a tensor complete.
    fn finish(&mut self, name: TensorName, snr_db: Option<f32>) -> Result<(), CompressError> {
        self.writer.finish_tensor(name, snr_db.map(|snr_db| TensorStats { snr_db }))?;
        self.progress.finished(name, snr_db);
        self.folded.finished(name);
        Ok(())
    }

    fn t8(
        &mut self,
        name: TensorName,
        bits: Bits,
        factor: Option<&Factor>,
        rows: &Range<usize>,
    ) -> Result<Energy, CompressError> {
        let cols = self.numbers.len() / rows.len();
        let Rounded { scales, codes, energy } = self.clock.time(Phase::Rounding, || match factor {
            Some(factor) => round(bits, &self.numbers, factor, cols),
            None => round_nearest(bits, &self.numbers, cols),
        });
        if let Some(row) = scales.iter().position(|scale| !scale.is_finite()) {
            return Err(CompressError::TooLarge { name, row: rows.start + row });
        }
        let row_bytes = codes.len() / rows.len();
        self.writer.write(name, Section::Scales, rows.start as u64 * 2, cast_slice(&scales))?;
        self.writer.write(name, Section::Codes, (rows.start * row_bytes) as u64, &codes)?;
        Ok(energy)
    }

    fn f16(&mut self, name: TensorName, cols: usize, rows: &Range<usize>) -> Result<Energy, CompressError> {
        let halves: Vec<f16> = self.numbers.iter().map(|x| f16::from_f32(*x)).collect();
        if let Some(at) = halves.iter().position(|h| !h.is_finite()) {
            return Err(CompressError::TooLarge { name, row: rows.start + at / cols });
        }
        self.writer.write(name, Section::Plain, (rows.start * cols * 2) as u64, cast_slice(&halves))?;
        let mut energy = Energy::default();
        for (x, half) in self.numbers.iter().zip(&halves) {
            let (x, rounded) = (f64::from(*x), half.to_f64());
            energy += Energy { signal: x * x, noise: (x - rounded).powi(2) };
        }
        Ok(energy)
    }

    fn f32(&mut self, name: TensorName, cols: usize, rows: &Range<usize>) -> Result<Energy, CompressError> {
        let bytes: &[u8] = cast_slice(&self.numbers);
        self.writer.write(name, Section::Plain, (rows.start * cols * 4) as u64, bytes)?;
        // Without error: no ratio to report.
        Ok(Energy::default())
    }
}

fn halves(bytes: &[u8]) -> Vec<f16> {
    bytes.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes)).collect()
}

/// The file as the place where calibrated matrices go.
struct Layers<'j, 'a> {
    job: &'j mut Job<'a>,
    plan: &'j Plan,
    /// Put there in this run.
    weights: u64,
}

impl Layers<'_, '_> {
    fn planned(&self, name: TensorName) -> Result<&PlannedTensor, CompressError> {
        let missing = || CompressError::Plan(format!("the plan lacks {name}"));
        self.plan.tensors().iter().find(|t| t.name == name).ok_or_else(missing)
    }

    /// Brings a tensor into the file that has no part in [`Walk::layer`].
    fn whole(&mut self, name: TensorName, factor: Option<&Factor>) -> Result<(), CompressError> {
        let tensor = *self.planned(name)?;
        self.weights += self.job.tensor(&tensor, factor)?;
        Ok(())
    }

    /// Brings the matrix that makes logits into the file.
    fn output(
        &mut self,
        name: TensorName,
        inputs: impl FnOnce() -> Result<Outputs, CompressError>,
    ) -> Result<(), CompressError> {
        let (encoding, folded, progress) = (self.planned(name)?.encoding, self.job.folded, self.job.progress);
        let factor = match self.job.writer.is_done(name) {
            true => None,
            false => inputs()?.factor(folded, name, encoding, progress, self.job.clock)?,
        };
        self.whole(name, factor.as_ref())
    }

    /// A finished tensor's numbers, read back from the file.
    fn numbers(&self, name: TensorName) -> Result<Vec<f32>, CompressError> {
        let tensor = self.planned(name)?;
        let read = |section| self.job.writer.read(name, section);
        Ok(match tensor.encoding {
            Encoding::T8(bits) => {
                let (scales, codes) = (read(Section::Scales)?, read(Section::Codes)?);
                values(bits, &halves(&scales), &codes, tensor.shape[1])
            }
            Encoding::F16 => halves(&read(Section::Plain)?).iter().map(|x| x.to_f32()).collect(),
            Encoding::F32 => {
                let bytes = read(Section::Plain)?;
                bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
            }
        })
    }
}

impl Store for Layers<'_, '_> {
    fn is_known(&self, name: TensorName) -> bool {
        self.job.writer.is_done(name)
    }

    fn known(&self, name: TensorName) -> Result<Option<Vec<f32>>, CompressError> {
        self.job.writer.is_done(name).then(|| self.numbers(name)).transpose()
    }

    fn finished(&mut self, name: TensorName) -> Result<Option<Vec<f32>>, CompressError> {
        if self.job.cancel.load(Ordering::Relaxed) {
            return Err(CompressError::Cancelled);
        }
        let PlannedTensor { encoding, .. } = *self.planned(name)?;
        let weights = self.planned(name)?.weights();
        if !self.job.writer.is_done(name) {
            return Ok(None);
        }
        self.job.progress.started(name, encoding, weights);
        self.job.progress.advanced(weights);
        self.job.progress.finished(name, None);
        self.numbers(name).map(Some)
    }

    fn encoding(&self, name: TensorName) -> Result<Encoding, CompressError> {
        Ok(self.planned(name)?.encoding)
    }

    fn start(&mut self, name: TensorName) -> Result<Encoding, CompressError> {
        let planned = *self.planned(name)?;
        self.job.progress.started(name, planned.encoding, planned.weights());
        Ok(planned.encoding)
    }

    fn put(&mut self, name: TensorName, outcome: Outcome<'_>) -> Result<(), CompressError> {
        let PlannedTensor { shape: [rows, cols], encoding, .. } = *self.planned(name)?;
        let weights = (rows * cols) as u64;
        let job = &mut *self.job;
        let energy = match outcome {
            Outcome::Rounded(rounded) => {
                job.writer.write(name, Section::Scales, 0, cast_slice(&rounded.scales))?;
                job.writer.write(name, Section::Codes, 0, &rounded.codes)?;
                rounded.energy
            }
            Outcome::Kept(numbers) => {
                job.numbers.clear();
                job.numbers.extend_from_slice(numbers);
                match encoding {
                    Encoding::F16 => job.f16(name, cols, &(0..rows))?,
                    _ => job.f32(name, cols, &(0..rows))?,
                }
            }
        };
        job.progress.advanced(weights);
        job.finish(name, energy.snr_db())?;
        self.weights += weights;
        Ok(())
    }
}
