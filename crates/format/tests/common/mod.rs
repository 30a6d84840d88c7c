//! A tiny model and a writer of valid files of it.
// Each test binary uses a part.
#![allow(dead_code, clippy::unwrap_used)]

use std::{path::Path, sync::LazyLock};

use upg_codec::Bits;
use upg_format::{
    Architecture, Encoding, FormatError, Header, ModelConfig, Provenance, RopeConfig, RopeScaling,
    RotationConfig, Section, SourceFile, TensorName, TensorStats, TextConfig, UpgFile, UpgWriter,
};

/// The tokenizer of every test's file.
pub const TOKENIZER: &[u8] = br#"{"model": {"type": "BPE", "vocab": {}, "merges": []}}"#;

/// One layer, 32 wide, and an odd number of rows in the embedding: every kind of padding occurs.
pub fn config() -> ModelConfig {
    ModelConfig {
        architecture: Architecture::Llama,
        hidden: 32,
        layers: 1,
        heads: 2,
        kv_heads: 1,
        head_dim: 16,
        mlp: 32,
        vocab: 9,
        context: 64,
        norm_eps: 1e-5,
        rope: RopeConfig { dim: 16, theta: 10000.0, scaling: RopeScaling::None },
        sliding_window: None,
        tied_embeddings: true,
        qkv_bias: false,
        rotation: Some(RotationConfig { seed: 1 }),
    }
}

pub fn header() -> Header {
    Header {
        config: config(),
        text: TextConfig { bos: Some(1), eos: Some(2), stop_tokens: vec![2, 8], ..TextConfig::default() },
        provenance: Provenance {
            source: vec![SourceFile { name: "tiny.gguf".into(), size: 7, blake3: None, sha256: None }],
            tool: "upg".into(),
            ..Provenance::default()
        },
    }
}

/// Every encoding: T8 of alternating bits for the matrices, F16 and F32 for vectors.
pub fn plan(config: &ModelConfig) -> Vec<(TensorName, Encoding)> {
    let names = TensorName::of_upg(config).into_iter().enumerate();
    let encoding = |i: usize, name: TensorName| match (name.kind().is_vector(), i % 2) {
        (false, _) => Encoding::T8(Bits::ALL[i % Bits::ALL.len()]),
        (true, 0) => Encoding::F16,
        (true, _) => Encoding::F32,
    };
    names.map(|(i, name)| (name, encoding(i, name))).collect()
}

/// The bytes of one section, different for every tensor.
pub fn section_bytes(name: TensorName, section: Section, length: u64) -> Vec<u8> {
    let mut state = blake3::hash(format!("{name} {section:?}").as_bytes()).as_bytes()[0];
    let next = || {
        state = state.wrapping_mul(77).wrapping_add(41);
        state
    };
    std::iter::repeat_with(next).take(length as usize).collect()
}

/// The sections of a tensor and their bytes.
pub fn sections(config: &ModelConfig, name: TensorName, encoding: Encoding) -> Vec<(Section, Vec<u8>)> {
    let [rows, cols] = name.shape(config);
    let lengths = match encoding {
        Encoding::T8(bits) => {
            vec![(Section::Scales, 2 * rows), (Section::Codes, rows * bits.row_bytes(cols).unwrap())]
        }
        Encoding::F16 => vec![(Section::Plain, 2 * rows * cols)],
        Encoding::F32 => vec![(Section::Plain, 4 * rows * cols)],
    };
    lengths.into_iter().map(|(section, n)| (section, section_bytes(name, section, n as u64))).collect()
}

/// What every test's file says of a tensor.
pub fn stats(encoding: Encoding) -> Option<TensorStats> {
    matches!(encoding, Encoding::T8(_)).then_some(TensorStats { snr_db: 16.40625 })
}

/// Writes one tensor, in pieces, last piece first.
pub fn write_tensor(writer: &mut UpgWriter, config: &ModelConfig, name: TensorName, encoding: Encoding) {
    for (section, bytes) in sections(config, name, encoding) {
        let (head, tail) = bytes.split_at(bytes.len() / 3);
        writer.write(name, section, head.len() as u64, tail).unwrap();
        writer.write(name, section, 0, head).unwrap();
    }
    writer.finish_tensor(name, stats(encoding)).unwrap();
}

/// Writes a valid file without a break.
pub fn write_file(path: &Path, header: &Header) -> u64 {
    let plan = plan(&header.config);
    let mut writer = UpgWriter::create_or_resume(path, header, TOKENIZER, &plan).unwrap();
    for (name, encoding) in plan {
        write_tensor(&mut writer, &header.config, name, encoding);
    }
    writer.finish().unwrap()
}

/// The bytes of a valid file.
pub fn valid_file() -> Vec<u8> {
    static FILE: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiny.upg");
        write_file(&path, &header());
        std::fs::read(path).unwrap()
    });
    FILE.clone()
}

/// Everything that a reader can ask of a file.
pub fn read_all(path: &Path) -> Result<UpgFile, FormatError> {
    let file = UpgFile::open(path)?;
    file.verify(&mut |_| ())?;
    file.tokenizer_json()?;
    Ok(file)
}
