//! A real model from checkpoint to answer, through the real binary.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::LazyLock,
};

use common::{checkpoint, run, stdout, text, upg};
use serde_json::Value;
use tempfile::TempDir;

const QUESTION: &str = "What is the capital of France?";

/// SmolLM2 at 5 bits a weight: made once, used by all tests of this file.
struct Compressed {
    folder: TempDir,
    /// What `upg compress` said while it made it.
    said: String,
}

static COMPRESSED: LazyLock<Compressed> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let args = ["compress", checkpoint(), "-o", "model.upg", "--bits", "5", "--calibrate", "none"];
    let output = run(folder.path(), &args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(output.stdout.is_empty(), "a note on standard output");
    Compressed { said: text(&output.stderr), folder }
});

impl Compressed {
    fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn file(&self) -> PathBuf {
        self.folder().join("model.upg")
    }
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&stdout(COMPRESSED.folder(), args)).unwrap()
}

#[test]
fn compressing_tells_the_plan_and_meets_the_size() {
    assert!(COMPRESSED.said.contains("plan: "), "{}", COMPRESSED.said);
    let report = json(&["inspect", "model.upg", "--verify", "--json"]);
    let bits = report["bits_per_weight"].as_f64().unwrap();
    assert!((4.97..=5.0).contains(&bits), "{bits} bits a weight");
    let size = fs::metadata(COMPRESSED.file()).unwrap().len();
    assert_eq!(report["file_bytes"].as_u64(), Some(size));
    assert_eq!(report["verified"], true);
    assert_eq!(report["tensors"].as_array().unwrap().len(), 2 + 30 * 7);
    let left = fs::read_dir(COMPRESSED.folder())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().contains(".part"));
    assert_eq!(left.count(), 0, "half files are left");
}

#[test]
fn inspecting_shows_what_people_ask_for() {
    let report = stdout(COMPRESSED.folder(), &["inspect", "model.upg", "--tensors"]);
    for part in ["134.5 M parameters", "against fp32", "layers.29.down", "SmolLM2-135M-Instruct.Q4_1.gguf"] {
        assert!(report.contains(part), "no {part} in {report}");
    }
    let report = stdout(COMPRESSED.folder(), &["inspect", checkpoint()]);
    assert!(report.contains("GGUF v3, llama, Q4_1"), "{report}");
}

#[test]
fn damage_is_found() {
    let mut bytes = fs::read(COMPRESSED.file()).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(COMPRESSED.folder().join("damaged.upg"), bytes).unwrap();
    let output = run(COMPRESSED.folder(), &["inspect", "damaged.upg", "--verify"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("damaged.upg is damaged"), "{}", text(&output.stderr));
}

#[test]
fn the_answer_alone_is_on_standard_output() {
    let args = ["run", "model.upg", QUESTION, "--temperature", "0", "--max-tokens", "24"];
    let output = run(COMPRESSED.folder(), &args);
    let (answer, notes) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{notes}");
    assert!(answer.contains("Paris"), "{answer}");
    assert!(!answer.contains("tok/s") && notes.contains("tok/s") && notes.contains("GB/s"), "{notes}");

    let quiet = run(COMPRESSED.folder(), &[&args[..], &["--quiet"]].concat());
    assert_eq!(text(&quiet.stdout), answer);
    assert!(quiet.stderr.is_empty(), "{}", text(&quiet.stderr));

    let report = json(&[&args[..], &["--json"]].concat());
    assert_eq!(report["text"].as_str().unwrap().trim_end(), answer.trim_end());
    assert!(report["decode_tok_s"].as_f64().unwrap() > 0.0);
}

#[test]
fn prompts_can_be_piped_in() {
    let mut child = upg(COMPRESSED.folder())
        .args(["run", "model.upg", "--temperature", "0", "--max-tokens", "24", "-q"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(QUESTION.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(text(&output.stdout).contains("Paris"), "{}", text(&output.stdout));
}

#[test]
fn a_seed_makes_an_answer_repeatable_and_raw_text_goes_on() {
    let answer = |seed| {
        let args =
            ["run", "model.upg", "Once upon a time", "--raw", "--max-tokens", "12", "-q", "--seed", seed];
        stdout(COMPRESSED.folder(), &args)
    };
    assert_eq!(answer("7"), answer("7"));
    assert_ne!(answer("7"), answer("8"));
}

#[test]
fn a_chat_remembers_saves_and_forgives() {
    let lines = [
        "My name is Ada. Say hello.",
        "/nonsense",
        "/set top_k 40",
        "/set heat 3",
        "/save chat.json",
        "/clear",
        "/load chat.json",
        "/regen",
        "/quit",
        "never read",
    ];
    let mut child = upg(COMPRESSED.folder())
        .args(["run", "model.upg", "--chat", "--system", "Be brief.", "--temperature", "0", "-n", "8"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(lines.join("\n").as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let notes = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{notes}");
    for part in
        ["there is no /nonsense", "there is no option heat", "saved to chat.json", "3 messages loaded"]
    {
        assert!(notes.contains(part), "no {part} in {notes}");
    }
    let saved = fs::read_to_string(COMPRESSED.folder().join("chat.json")).unwrap();
    let saved: Value = serde_json::from_str(&saved).unwrap();
    let first = saved["messages"][2]["content"].as_str().unwrap();
    // Greedy: the second answer to the same question is the first one again.
    assert_eq!(text(&output.stdout), format!("{first}\n{first}\n"));
}

#[test]
fn evaluation_compares_with_the_checkpoint() {
    let words =
        "The history of the city goes back to the third century, when a small settlement stood there. ";
    fs::write(COMPRESSED.folder().join("text.txt"), words.repeat(16)).unwrap();
    let report = json(&[
        "eval",
        "model.upg",
        "--text",
        "text.txt",
        "--against",
        checkpoint(),
        "--ctx",
        "64",
        "--chunks",
        "2",
        "--logits",
        "logits.npy",
        "--json",
    ]);
    let kl = report["kl"]["value"].as_f64().unwrap();
    assert!(kl > 0.0 && kl < 0.2, "mean KL {kl}");
    let logits = fs::read(COMPRESSED.folder().join("logits.npy")).unwrap();
    let scored = report["model"]["scored"].as_u64().unwrap() as usize;
    assert_eq!(logits.len(), 128 + 4 * scored * 49152);
    assert!(report["top1"]["value"].as_f64().unwrap() > 0.75, "{report}");
    assert_eq!(report["model"]["chunks"], 2);
}

#[test]
fn a_cache_of_the_reference_s_logits_changes_no_number() {
    let words = "Water boils when its temperature reaches a hundred degrees, or less on a high mountain. ";
    fs::write(COMPRESSED.folder().join("water.txt"), words.repeat(16)).unwrap();
    let args = ["eval", "model.upg", "--text", "water.txt", "--against", checkpoint(), "--ctx", "64"];
    let cached = [&args[..], &["--reference-cache", "kept", "--json"]].concat();
    let files = || fs::read_dir(COMPRESSED.folder().join("kept")).unwrap().map(|entry| entry.unwrap().path());
    let run_cached = |extra: &[&str]| {
        let output = run(COMPRESSED.folder(), &[&cached[..], extra].concat());
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let report: Value = serde_json::from_str(&text(&output.stdout)).unwrap();
        (report, text(&output.stderr))
    };
    let plain = json(&[&args[..], &["--chunks", "2", "--json"]].concat());
    let (first, made) = run_cached(&["--chunks", "2"]);
    let (second, taken) = run_cached(&["--chunks", "2"]);
    assert!(!made.contains("logits are in") && taken.contains("logits are in"), "{made}{taken}");
    assert_eq!((&plain, &plain), (&first, &second));
    assert_eq!(files().count(), 1);

    run_cached(&["--chunks", "3"]);
    assert_eq!(files().count(), 2, "another text is another file");

    for file in files() {
        let mut bytes = fs::read(&file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&file, bytes).unwrap();
    }
    let output = run(COMPRESSED.folder(), &[&cached[..], &["--chunks", "2"]].concat());
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("remove it"), "{}", text(&output.stderr));
}

#[test]
fn tasks_are_answered_alike_each_time() {
    let report = json(&["eval", "model.upg", "--tasks", "--against", "model.upg", "--json"]);
    let tasks = report["tasks"].as_array().unwrap();
    assert!(tasks.iter().all(|task| task["answer"].as_str().is_some_and(|answer| !answer.is_empty())));
    for count in ["of", "same_answers"] {
        assert_eq!(report[count], tasks.len(), "{count}");
    }
    let passed = tasks.iter().filter(|task| task["passed"] == true).count();
    assert!(passed > 0, "{report}");
    for count in ["passed", "against_passed"] {
        assert_eq!(report[count], passed, "{count}");
    }
}

/// What activations of 12 bits cost: the same file on the cpu machine and on the reference machine, which is plain f32.
#[test]
fn the_cpu_machine_says_what_the_reference_machine_says() {
    fs::write(COMPRESSED.folder().join("prose.txt"), include_str!("data/prose.txt")).unwrap();
    let cpu = ["eval", "model.upg", "--device", "cpu", "--text", "prose.txt", "--json"];
    let report = json(&[&cpu[..], &["--against", "model.upg", "--against-device", "reference"]].concat());
    assert_eq!(report["model"]["scored"], 510);
    let [kl, top1] = ["kl", "top1"].map(|key| report[key]["value"].as_f64().unwrap());
    assert!(kl < 1e-4 && top1 >= 0.99, "mean KL {kl}, top-1 {top1}");
}

/// On adapter 0: a graphics card, or else the emulation of one that `make fixtures` installs. One prompt of 512 tokens.
#[test]
fn the_wgpu_machine_says_what_the_reference_machine_says() {
    fs::write(COMPRESSED.folder().join("prose.txt"), include_str!("data/prose.txt")).unwrap();
    let wgpu = ["eval", "model.upg", "--device", "wgpu", "--text", "prose.txt", "--json"];
    let report = json(&[&wgpu[..], &["--against", "model.upg", "--against-device", "reference"]].concat());
    assert_eq!(report["model"]["scored"], 510);
    let [kl, top1] = ["kl", "top1"].map(|key| report[key]["value"].as_f64().unwrap());
    assert!(kl < 0.001 && top1 >= 0.99, "mean KL {kl}, top-1 {top1}");
}

#[test]
fn a_benchmark_gives_speed_and_what_limits_it() {
    let args = ["bench", "model.upg", "-p", "8,2", "-n", "4", "-d", "0,8", "-r", "1"];
    let table = stdout(COMPRESSED.folder(), &args);
    for test in ["pp8 ", "pp2 ", "tg4 ", "pp8 @ d8", "pp2 @ d8", "tg4 @ d8", "± 0.00"] {
        assert!(table.contains(test), "{test}: {table}");
    }
    let report = json(&[&args[..], &["-o", "json"]].concat());
    for key in ["decode_tok_s", "prefill_tok_s", "read_gb_s", "decode_gb_s", "percent_of_limit"] {
        assert!(report[key].as_f64().is_some_and(|value| value > 0.0), "{key}: {report}");
    }
}

#[test]
fn a_synthetic_model_says_how_much_of_it_was_run() {
    let args = ["bench", "--synthetic", "smollm2-135m", "--layers", "2", "-p", "4", "-n", "2", "-r", "1"];
    let table = stdout(COMPRESSED.folder(), &args);
    assert!(table.contains("smollm2-135m (2 of 30 layers)"), "{table}");
    assert!(table.contains("the whole one, of 30, is slower"), "{table}");
}

#[test]
fn devices_are_listed_and_others_refused() {
    assert!(stdout(COMPRESSED.folder(), &["devices"]).contains("cpu"));
    let output = run(COMPRESSED.folder(), &["run", "model.upg", "hello", "--device", "abacus"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("known devices are"), "{}", text(&output.stderr));
}

#[test]
fn a_reader_that_has_enough_is_no_error() {
    let mut child = upg(COMPRESSED.folder())
        .args(["inspect", "model.upg", "--tensors"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
}
