//! What the tests of the real binary share.

use std::{
    path::Path,
    process::{Command, Output, Stdio},
};

/// SmolLM2-135M-Instruct, as scripts/fetch-smollm2.sh leaves it.
#[allow(dead_code, reason = "not every test binary needs the model")]
pub fn checkpoint() -> &'static str {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(Path::new(path).exists(), "{path} is missing: run `make fixtures`");
    path
}

/// `upg` with nothing on its standard input and nothing of this user's environment that matters.
pub fn upg(folder: &Path) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("upg"));
    command.current_dir(folder).env_remove("UPG_ISA").env_remove("NO_COLOR").stdin(Stdio::null());
    command
}

/// What `upg ARGS` prints and how it ends.
pub fn run(folder: &Path, args: &[&str]) -> Output {
    upg(folder).args(args).output().unwrap()
}

/// Standard output of a command that must succeed.
#[allow(dead_code, reason = "not every test binary needs it")]
pub fn stdout(folder: &Path, args: &[&str]) -> String {
    let output = run(folder, args);
    assert_eq!(output.status.code(), Some(0), "upg {args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// Bytes that must be UTF-8, whatever they say.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}
