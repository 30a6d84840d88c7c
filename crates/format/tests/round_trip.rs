//! What was written is what is read, whatever interrupted the writing.

#![allow(clippy::unwrap_used)] // Helpers of tests.

mod common;

use std::{fs, path::Path};

use common::{TOKENIZER, header, plan, read_all, sections, stats, write_file, write_tensor};
use upg_codec::Bits;
use upg_format::{
    Encoding, FormatError, Header, RopeScaling, Section, TensorData, TensorKind, TensorName, TensorStats,
    UpgFile, UpgWriter,
};

fn in_folder<T>(test: impl FnOnce(&Path) -> T) -> T {
    let folder = tempfile::tempdir().unwrap();
    test(&folder.path().join("model.upg"))
}

fn start(path: &Path, header: &Header) -> UpgWriter {
    UpgWriter::create_or_resume(path, header, TOKENIZER, &plan(&header.config)).unwrap()
}

/// Untied, with biases, LongRoPE, a window and a template: every optional field and kind of tensor.
fn rich_header() -> Header {
    let mut header = header();
    header.config.tied_embeddings = false;
    header.config.qkv_bias = true;
    header.config.layers = 3;
    header.config.sliding_window = Some(16);
    header.config.rotation = None;
    header.config.rope.scaling = RopeScaling::LongRope {
        short_factor: vec![1.0; 8],
        long_factor: (1..9).map(|i| i as f32 / 3.0).collect(),
        original_context: 32,
        attention_factor: 1.19,
    };
    header.text.chat_template = Some("{{ \"é\n\" }}".into());
    header.provenance.calibration = Some("wiki".into());
    header.provenance.settings.insert("target".into(), "ratio 10".into());
    header
}

#[test]
fn what_was_written_is_read() {
    for header in [header(), rich_header()] {
        in_folder(|path| {
            let length = write_file(path, &header);
            let file = read_all(path).unwrap();
            assert_eq!(file.header(), &header);
            assert_eq!(file.file_len(), length);
            assert_eq!(file.tokenizer_json().unwrap(), TOKENIZER);
            let plan = plan(&header.config);
            assert_eq!(file.tensors().len(), plan.len());
            for (name, encoding) in plan {
                check_tensor(&file, name, encoding);
                file.release(name);
                check_tensor(&file, name, encoding);
            }
        });
    }
}

fn check_tensor(file: &UpgFile, name: TensorName, encoding: Encoding) {
    let (entry, data) = file.tensor(name).unwrap();
    assert_eq!(entry.encoding, encoding);
    assert_eq!(entry.stats, stats(encoding).map(|_| TensorStats { snr_db: 16.41 }));
    let written: Vec<Vec<u8>> =
        sections(&file.header().config, name, encoding).into_iter().map(|(_, bytes)| bytes).collect();
    let read: Vec<&[u8]> = match data {
        TensorData::T8 { scales, codes } => vec![bytemuck::cast_slice(scales), codes],
        TensorData::F16(numbers) => vec![bytemuck::cast_slice(numbers)],
        TensorData::F32(numbers) => vec![bytemuck::cast_slice(numbers)],
    };
    assert_eq!(read, written, "{name}");
}

#[test]
fn size_is_known_before_and_is_a_sum() {
    for header in [header(), rich_header()] {
        let plan = plan(&header.config);
        let predicted = UpgWriter::file_size(&header, TOKENIZER, &plan).unwrap();
        let tensors: u64 = plan
            .iter()
            .map(|(name, encoding)| {
                encoding.stored_length(name.shape(&header.config).map(|n| n as u64)).unwrap()
            })
            .sum();
        assert_eq!(predicted, UpgWriter::overhead(&header, TOKENIZER).unwrap() + tensors);
        assert_eq!(in_folder(|path| write_file(path, &header)), predicted);
    }
}

#[test]
fn tensors_the_order_of_writing_does_not_matter() {
    let header = header();
    let expected = common::valid_file();
    in_folder(|path| {
        let mut plan = plan(&header.config);
        plan.reverse();
        let mut writer = UpgWriter::create_or_resume(path, &header, TOKENIZER, &plan).unwrap();
        for (name, encoding) in plan {
            write_tensor(&mut writer, &header.config, name, encoding);
        }
        writer.finish().unwrap();
        assert_eq!(fs::read(path).unwrap(), expected);
    });
}

#[test]
fn an_interrupted_file_is_the_same_and_redoes_nothing_finished() {
    let (header, expected) = (header(), common::valid_file());
    let plan = plan(&header.config);
    for finished in 0..=plan.len() {
        in_folder(|path| {
            let mut writer = start(path, &header);
            for (name, encoding) in &plan[..finished] {
                write_tensor(&mut writer, &header.config, *name, *encoding);
            }
            if let Some((name, encoding)) = plan.get(finished) {
                // Half a tensor, and of wrong bytes: a kill may leave anything in an unfinished one.
                let (section, bytes) = sections(&header.config, *name, *encoding).remove(0);
                writer.write(*name, section, 0, &vec![0xaa; bytes.len() / 2]).unwrap();
            }
            drop(writer);
            assert!(!path.exists());

            let mut writer = start(path, &header);
            for (i, (name, encoding)) in plan.iter().enumerate() {
                assert_eq!(writer.is_done(*name), i < finished);
                if !writer.is_done(*name) {
                    write_tensor(&mut writer, &header.config, *name, *encoding);
                }
            }
            writer.finish().unwrap();
            assert_eq!(fs::read(path).unwrap(), expected);
            assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing is left behind");
        });
    }
}

#[test]
fn a_journal_torn_anywhere_is_believed_up_to_the_tear() {
    let (header, expected) = (header(), common::valid_file());
    let plan = plan(&header.config);
    in_folder(|path| {
        let mut writer = start(path, &header);
        for (name, encoding) in &plan {
            write_tensor(&mut writer, &header.config, *name, *encoding);
        }
        drop(writer);
        let (part, journal) = (path.with_extension("upg.part"), path.with_extension("upg.part.journal"));
        let whole = (fs::read(&part).unwrap(), fs::read(&journal).unwrap());
        for cut in (0..=whole.1.len()).step_by(7).chain([whole.1.len()]) {
            fs::write(&part, &whole.0).unwrap();
            fs::write(&journal, &whole.1[..cut]).unwrap();
            let mut writer = start(path, &header);
            let lines = whole.1[..cut].iter().filter(|byte| **byte == b'\n').count();
            let done = plan.iter().filter(|(name, _)| writer.is_done(*name)).count();
            assert_eq!(done, lines.saturating_sub(1));
            for (name, encoding) in &plan {
                if !writer.is_done(*name) {
                    write_tensor(&mut writer, &header.config, *name, *encoding);
                }
            }
            drop(writer);
            // What was entered behind the tear counts.
            let writer = start(path, &header);
            assert!(plan.iter().all(|(name, _)| writer.is_done(*name)));
            writer.finish().unwrap();
            assert_eq!(fs::read(path).unwrap(), expected);
        }
    });
}

#[test]
fn a_finished_tensor_that_changed_is_redone() {
    let header = header();
    let plan = plan(&header.config);
    in_folder(|path| {
        let mut writer = start(path, &header);
        for (name, encoding) in &plan[..3] {
            write_tensor(&mut writer, &header.config, *name, *encoding);
        }
        drop(writer);
        // As after a power cut: the journal reached the disk, the second tensor did not.
        let part = path.with_extension("upg.part");
        let mut bytes = fs::read(&part).unwrap();
        let overhead = UpgWriter::overhead(&header, TOKENIZER).unwrap();
        let first = plan[0].1.stored_length(plan[0].0.shape(&header.config).map(|n| n as u64)).unwrap();
        bytes[(overhead + first) as usize] ^= 1;
        fs::write(&part, bytes).unwrap();
        let writer = start(path, &header);
        let done: Vec<bool> = plan[..4].iter().map(|(name, _)| writer.is_done(*name)).collect();
        assert_eq!(done, [true, false, true, false]);
    });
}

#[test]
fn another_plan_header_or_tokenizer_starts_over() {
    let original = header();
    let mut other_header = original.clone();
    other_header.provenance.tool = "gpu".into();
    // The embedding now covers what is padding in the original.
    let mut other_plan = plan(&original.config);
    other_plan[0].1 = Encoding::F32;
    for (header, tokenizer, other) in [
        (&other_header, TOKENIZER, plan(&original.config)),
        (&original, b"{}".as_slice(), plan(&original.config)),
        (&original, TOKENIZER, other_plan),
    ] {
        in_folder(|path| {
            let mut writer = UpgWriter::create_or_resume(path, header, tokenizer, &other).unwrap();
            for (name, encoding) in other {
                write_tensor(&mut writer, &header.config, name, encoding);
            }
            drop(writer);
            let writer = start(path, &original);
            let names = TensorName::of_upg(&original.config);
            assert!(names.into_iter().all(|name| !writer.is_done(name)));
            drop(writer);
            write_file(path, &original);
            assert_eq!(fs::read(path).unwrap(), common::valid_file());
        });
    }
}

#[test]
fn two_writers_are_kept_apart_and_discard_cleans_up() {
    in_folder(|path| {
        let writer = start(path, &header());
        let second = UpgWriter::create_or_resume(path, &header(), TOKENIZER, &plan(&header().config));
        assert!(matches!(second, Err(FormatError::Busy(_))));
        writer.discard().unwrap();
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
        start(path, &header());
    });
}

#[test]
fn misuse_of_the_writer_is_refused() {
    let header = header();
    let plan = plan(&header.config);
    in_folder(|path| {
        let mut writer = start(path, &header);
        let embed = TensorName::global(TensorKind::Embed);
        for (section, offset, length) in [
            (Section::Plain, 0, 1),
            (Section::Scales, 0, 19),
            (Section::Scales, 18, 1),
            (Section::Codes, u64::MAX, 2),
        ] {
            let written = writer.write(embed, section, offset, &vec![0; length]);
            assert!(matches!(written, Err(FormatError::OutOfSection { .. })), "{section:?} {offset}");
        }
        let head = TensorName::global(TensorKind::Head);
        let written = writer.write(head, Section::Codes, 0, &[0]);
        assert!(matches!(written, Err(FormatError::UnexpectedTensor(_))));
        assert!(matches!(writer.finish_tensor(embed, None), Err(FormatError::Incomplete { written: 0, .. })));
        write_tensor(&mut writer, &header.config, embed, plan[0].1);
        let written = writer.write(embed, Section::Codes, 0, &[0]);
        assert!(matches!(written, Err(FormatError::OutOfSection { .. })), "finished tensors are closed");
        assert!(matches!(writer.finish(), Err(FormatError::Incomplete { .. })));
        assert!(!path.exists());
    });
}

#[test]
fn impossible_plans_are_refused() {
    let header = header();
    let good = plan(&header.config);
    let create = |plan: &[(TensorName, Encoding)]| UpgWriter::file_size(&header, TOKENIZER, plan);
    let twice: Vec<_> = good.iter().chain(&good[..1]).copied().collect();
    assert!(matches!(create(&twice), Err(FormatError::DuplicateTensor(_))));
    assert!(matches!(create(&good[1..]), Err(FormatError::MissingTensors { .. })));
    let mut bad = good.clone();
    bad[0].0 = TensorName::global(TensorKind::Head);
    assert!(matches!(create(&bad), Err(FormatError::UnexpectedTensor(_))));
    let mut bad = good.clone();
    let (_, encoding) = bad.iter_mut().find(|(name, _)| name.kind().is_vector()).unwrap();
    *encoding = Encoding::T8(Bits::B3);
    assert!(matches!(create(&bad), Err(FormatError::Encoding { .. })));
}

#[test]
fn a_folder_is_no_file() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(UpgFile::open(folder.path()), Err(FormatError::NotAFile(_))));
    let header = header();
    let written = UpgWriter::create_or_resume(folder.path(), &header, TOKENIZER, &plan(&header.config));
    assert!(matches!(written, Err(FormatError::NotAFile(_))));
    assert!(matches!(UpgFile::open(&folder.path().join("none")), Err(FormatError::Io { .. })));
}

#[test]
fn progress_adds_up_to_the_data() {
    in_folder(|path| {
        write_file(path, &header());
        let file = UpgFile::open(path).unwrap();
        let mut sum = 0;
        file.verify(&mut |bytes| sum += bytes).unwrap();
        assert_eq!(sum, file.data_len());
    });
}

#[test]
fn unusual_numbers_stay_in_the_reserved_header() {
    let header = header();
    for snr_db in [f32::MIN, f32::MAX, f32::NAN, f32::INFINITY, -1234.567, 1e-30] {
        in_folder(|path| {
            let mut writer = start(path, &header);
            for (name, encoding) in plan(&header.config) {
                for (section, bytes) in sections(&header.config, name, encoding) {
                    writer.write(name, section, 0, &bytes).unwrap();
                }
                writer.finish_tensor(name, Some(TensorStats { snr_db })).unwrap();
            }
            writer.finish().unwrap();
            let file = read_all(path).unwrap();
            let stored = file.tensors()[0].stats;
            assert_eq!(stored.is_none(), snr_db.is_nan());
            assert!(
                stored.is_none_or(|stats| (stats.snr_db - snr_db.clamp(-9999.99, 9999.99)).abs() <= 0.01)
            );
        });
    }
}
