//! The kernels, compiled for the card and the model at hand, and kept on disk for the next time.

use std::{
    env, fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use crate::{
    abi,
    batch::{self, shapes::Shapes},
    nvrtc::{Nvrtc, Source},
};

const DECODE: Source = ("decode.cu", include_str!("../kernels/decode.cu"));
const BATCH: Source = ("batch.cu", include_str!("../kernels/batch.cu"));
const HEADERS: [Source; 11] = [
    ("program.cuh", include_str!("../kernels/program.cuh")),
    ("handoff.cuh", include_str!("../kernels/handoff.cuh")),
    ("t8.cuh", include_str!("../kernels/t8.cuh")),
    ("stream.cuh", include_str!("../kernels/stream.cuh")),
    ("cache.cuh", include_str!("../kernels/cache.cuh")),
    ("linear.cuh", include_str!("../kernels/linear.cuh")),
    ("attend.cuh", include_str!("../kernels/attend.cuh")),
    ("vector.cuh", include_str!("../kernels/vector.cuh")),
    ("batch.cuh", include_str!("../kernels/batch.cuh")),
    ("gemm.cuh", include_str!("../kernels/gemm.cuh")),
    ("flash.cuh", include_str!("../kernels/flash.cuh")),
];

/// Which kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kernels {
    /// One token; so many tiles of a warp are on their way, and a row of the look-up table has so many bytes.
    Decode { slots: usize, table_row: usize },
    /// Many tokens, in tiles of these shapes.
    Batch(Shapes),
}

/// What the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// Compute capability, 90 for 9.0.
    pub capability: usize,
    /// Bit K: some matrix has K bits.
    pub bits_used: usize,
    /// Query heads that attention takes together.
    pub heads_a_group: usize,
    pub head_dim: usize,
    /// Whether keys and values are kept in 8 bits.
    pub kv_q8: bool,
    /// Warps of a block.
    pub warps: usize,
    pub kernels: Kernels,
}

impl Target {
    /// The compiler's options.
    fn options(&self) -> Vec<String> {
        // 9.0a is the one family with features of its own that the kernels may use.
        let suffix = if self.capability == 90 { "a" } else { "" };
        let own = [
            ("BITS_USED", self.bits_used),
            ("HEADS_A_GROUP", self.heads_a_group),
            ("HEAD_DIM", self.head_dim),
            ("KV_Q8", usize::from(self.kv_q8)),
            ("WARPS", self.warps),
        ];
        let more = match self.kernels {
            Kernels::Decode { slots, table_row } => vec![("SLOTS", slots), ("TABLE_ROW", table_row)],
            Kernels::Batch(shapes) => [&shapes.defines()[..], &batch::abi::defines()].concat(),
        };
        [format!("--gpu-architecture=sm_{}{suffix}", self.capability), "--std=c++17".to_owned()]
            .into_iter()
            .chain(
                own.into_iter()
                    .chain(more)
                    .chain(abi::defines())
                    .map(|(name, value)| format!("-D{name}={value}")),
            )
            .collect()
    }

    fn main(&self) -> Source {
        match self.kernels {
            Kernels::Decode { .. } => DECODE,
            Kernels::Batch(_) => BATCH,
        }
    }

    /// What tells this compilation from any other.
    fn key(&self, compiler: &str) -> String {
        let mut hasher = blake3::Hasher::new();
        let sources = [self.main()].into_iter().chain(HEADERS).map(|(_, text)| text.to_owned());
        for part in sources.chain(self.options()).chain([compiler.to_owned()]) {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        hasher.finalize().to_hex()[..32].to_owned()
    }
}

/// The kernels for `target`: from the cache, or compiled and put there.
///
/// # Errors
/// Where NVRTC is missing or refuses; the message says what to do.
pub(crate) fn kernels(target: &Target) -> Result<Vec<u8>, String> {
    let nvrtc = Nvrtc::open()?;
    let file = cache_folder().map(|folder| folder.join(format!("{}.cubin", target.key(&nvrtc.version()))));
    if let Some(cubin) = file.as_deref().and_then(load) {
        return Ok(cubin);
    }
    let cubin = nvrtc.compile(target.main(), &HEADERS, &target.options()).map_err(|error| {
        format!("{error}\nInstall an NVRTC that knows this card, set UPG_NVRTC to it, or use --device cpu")
    })?;
    if let Some(file) = file {
        // A cache that cannot be written costs the next start a compilation, and nothing else.
        let _ = store(&file, &cubin);
    }
    Ok(cubin)
}

/// Where compiled kernels are kept: `UPG_CACHE`, or the user's cache folder.
fn cache_folder() -> Option<PathBuf> {
    let under = |variable: &str, rest: &str| {
        env::var_os(variable).filter(|v| !v.is_empty()).map(|v| PathBuf::from(v).join(rest))
    };
    under("UPG_CACHE", "cuda")
        .or_else(|| under("XDG_CACHE_HOME", "upg/cuda"))
        .or_else(|| under("LOCALAPPDATA", "upg/cuda"))
        .or_else(|| under("HOME", ".cache/upg/cuda"))
}

/// A file of the cache is the hash of what follows, and the cubin. Anything else is as good as no file.
fn load(file: &Path) -> Option<Vec<u8>> {
    let bytes = fs::read(file).ok()?;
    let (hash, cubin) = bytes.split_first_chunk::<32>()?;
    (blake3::hash(cubin) == *hash).then(|| cubin.to_vec())
}

fn store(file: &Path, cubin: &[u8]) -> io::Result<()> {
    let folder = file.parent().ok_or(io::ErrorKind::NotFound)?;
    fs::create_dir_all(folder)?;
    // Another process may be writing the same file: each writes its own, and the last one's stays.
    let mut part = tempfile::NamedTempFile::new_in(folder)?;
    part.write_all(blake3::hash(cubin).as_bytes())?;
    part.write_all(cubin)?;
    part.persist(file)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use upg_codec::Bits;

    use super::*;

    fn target(capability: usize) -> Target {
        Target {
            capability,
            bits_used: 1 << 3 | 1 << 4,
            heads_a_group: 4,
            head_dim: 128,
            kv_q8: false,
            warps: 16,
            kernels: Kernels::Decode { slots: 4, table_row: 256 },
        }
    }

    /// The same card's kernels for batches; `limit`: bytes of shared memory.
    fn batch(target: Target, bits: Bits, limit: usize) -> Target {
        Target { warps: 16, kernels: Kernels::Batch(Shapes::fitting(bits, limit).unwrap()), ..target }
    }

    /// Every kernel for every family of cards, with every code and odd shapes.
    #[test]
    fn every_kernel_compiles_for_every_architecture() {
        let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/nvrtc/libnvrtc.so.13");
        let fixture = Path::new(fixture).exists().then(|| PathBuf::from(fixture));
        let nvrtc = match fixture.map_or_else(Nvrtc::open, |path| Nvrtc::open_any(&[path])) {
            Ok(nvrtc) => nvrtc,
            Err(error) => panic!("{error}\nOr run make fixtures, which fetches it."),
        };
        // Each code on some family: a compilation takes seconds a code.
        let targets = [
            Target { bits_used: 1 << 3, kernels: Kernels::Decode { slots: 2, table_row: 128 }, ..target(80) },
            Target {
                bits_used: 1 << 2 | 1 << 5,
                heads_a_group: 1,
                head_dim: 96,
                kv_q8: true,
                warps: 8,
                kernels: Kernels::Decode { slots: 2, table_row: 64 },
                ..target(89)
            },
            target(90),
            Target {
                bits_used: 1 << 6 | 1 << 8,
                heads_a_group: 2,
                head_dim: 256,
                kv_q8: true,
                ..target(100)
            },
        ];
        let batches = [
            batch(targets[0], Bits::B3, 160 << 10),
            batch(targets[1], Bits::B5, 97 << 10),
            batch(targets[2], Bits::B4, 225 << 10),
            batch(targets[3], Bits::B8, 225 << 10),
        ];
        std::thread::scope(|scope| {
            for target in targets.iter().chain(&batches) {
                let nvrtc = &nvrtc;
                scope.spawn(move || {
                    let cubin = nvrtc.compile(target.main(), &HEADERS, &target.options());
                    let cubin = cubin.unwrap_or_else(|error| panic!("{target:?}: {error}"));
                    assert_eq!(&cubin[..4], b"\x7fELF", "{target:?}");
                });
            }
        });
    }

    #[test]
    fn the_key_tells_targets_and_compilers_apart() {
        let key = target(90).key("13.0");
        assert_eq!(key, target(90).key("13.0"));
        assert_ne!(key, target(90).key("12.9"));
        assert_ne!(key, target(80).key("13.0"));
        assert_ne!(key, Target { kv_q8: true, ..target(90) }.key("13.0"));
        let slots = Target { kernels: Kernels::Decode { slots: 3, table_row: 256 }, ..target(90) };
        assert_ne!(key, slots.key("13.0"));
        assert_ne!(key, batch(target(90), Bits::B4, 225 << 10).key("13.0"));
    }

    #[test]
    fn a_damaged_file_of_the_cache_is_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a/b.cubin");
        assert_eq!(load(&file), None);
        store(&file, b"kernels").unwrap();
        assert_eq!(load(&file).as_deref(), Some(&b"kernels"[..]));
        let mut bytes = fs::read(&file).unwrap();
        bytes[35] ^= 1;
        fs::write(&file, &bytes).unwrap();
        assert_eq!(load(&file), None);
        fs::write(&file, b"short").unwrap();
        assert_eq!(load(&file), None);
    }
}
