//! What goes wrong before a model is loaded: exit code 1, nothing on standard output, and a way on.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use common::{checkpoint, run, text, upg};
use std::fs;

/// Runs `upg ARGS` in a folder with a few wrong files, and holds its error to `expected`.
fn fails(args: &[&str], expected: &str) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("noise.upg"), [7; 4096]).unwrap();
    fs::write(folder.path().join("empty.upg"), []).unwrap();
    fs::write(folder.path().join("short.gguf"), b"GGUF\x03\0\0\0").unwrap();
    fs::write(folder.path().join("latin1.txt"), b"caf\xe9").unwrap();
    fs::create_dir(folder.path().join("folder")).unwrap();
    let output = run(folder.path(), args);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "upg {args:?}: {error}");
    assert!(output.stdout.is_empty(), "upg {args:?}");
    assert!(error.contains("error: ") && error.contains(expected), "upg {args:?}: {error}");
}

#[test]
fn models_that_are_none_are_refused() {
    fails(&["inspect", "absent.upg"], "check the path");
    fails(&["inspect", "noise.upg"], "noise.upg");
    fails(&["inspect", "empty.upg"], "empty.upg");
    fails(&["inspect", "short.gguf"], "short.gguf");
    fails(&["inspect", "folder"], "config.json");
    fails(&["run", "noise.upg", "hello"], "noise.upg");
    fails(&["compress", "noise.upg", "-o", "out.upg"], "noise.upg");
}

#[test]
fn a_prompt_is_asked_for_before_the_model_is_loaded() {
    fails(&["run", "absent.upg"], "the prompt is empty");
    fails(&["run", "absent.upg", ""], "the prompt is empty");
}

#[test]
fn a_text_must_be_text() {
    fails(&["eval", "absent.upg", "--text", "absent.txt"], "absent.txt");
    fails(&["eval", "absent.upg", "--text", "latin1.txt"], "UTF-8");
}

#[test]
fn a_benchmark_must_measure_something() {
    fails(&["bench", "--synthetic", "phi-5"], "phi-4");
    fails(&["bench", "--synthetic", "phi-4", "--layers", "41"], "--layers 40 or fewer");
    fails(&["bench", "--synthetic", "phi-4", "-p", "0", "-n", "0"], "give -p or -n");
}

#[test]
fn an_impossible_size_names_the_possible_ones() {
    fails(&["compress", checkpoint(), "-o", "out.upg", "--ratio", "1000"], "--ratio");
    fails(&["compress", checkpoint(), "-o", "out.upg", "--bits", "0"], "positive");
    fails(&["compress", checkpoint(), "-o", "noise.upg"], "--force");
}

#[test]
fn colours_are_for_terminals() {
    let folder = tempfile::tempdir().unwrap();
    let error = |color| {
        text(&upg(folder.path()).args(["inspect", "absent", "--color", color]).output().unwrap().stderr)
    };
    assert!(!error("auto").contains('\x1b'));
    assert!(error("always").contains('\x1b'));
}
