//! Help texts are part of the interface: a change must be seen.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use common::{run, stdout, text};

#[test]
fn the_help_is_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    insta::assert_snapshot!("upg", stdout(folder.path(), &["--help"]));
    insta::assert_snapshot!("compress", stdout(folder.path(), &["compress", "-h"]));
    insta::assert_snapshot!("run", stdout(folder.path(), &["run", "-h"]));
}

#[test]
fn every_command_has_examples() {
    let folder = tempfile::tempdir().unwrap();
    for command in ["compress", "pull", "run", "inspect", "bench", "eval", "devices", "completions"] {
        let help = stdout(folder.path(), &[command, "--help"]);
        assert!(help.contains(&format!("Examples:\n  upg {command}")), "{help}");
    }
}

#[test]
fn completions_name_every_command() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = stdout(folder.path(), &["completions", shell]);
        for word in ["compress", "inspect", "synthetic"] {
            assert!(script.contains(word), "{shell} lacks {word}");
        }
    }
}

#[test]
fn a_wrong_command_line_is_exit_code_2() {
    let folder = tempfile::tempdir().unwrap();
    for args in [
        &[][..],
        &["compres"],
        &["bench"],
        &["bench", "model.upg", "--synthetic", "phi-4"],
        &["bench", "--synthetic", "phi-4", "--reps", "0"],
        &["compress", "a.gguf", "-o", "a.upg", "--ratio", "10", "--bits", "3"],
        &["compress", "a.gguf", "-o", "a.upg", "--size", "small"],
        &["run", "a.upg", "hello", "--raw", "--system", "Be brief."],
        &["run", "a.upg", "hello", "--kv", "q9"],
        &["eval", "a.upg"],
        &["eval", "a.upg", "--tasks", "--text", "a.txt"],
        &["eval", "a.upg", "--text", "a.txt", "--reference-cache", "kept"],
        &["devices", "--quiet", "--verbose"],
    ] {
        let output = run(folder.path(), args);
        assert_eq!(output.status.code(), Some(2), "upg {args:?}");
        assert!(text(&output.stdout).is_empty() && !output.stderr.is_empty(), "upg {args:?}");
    }
}
