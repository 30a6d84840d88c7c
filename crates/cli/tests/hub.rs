//! `upg pull` and `upg compress hf:` against a double of the hub, through the real binary.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;
#[path = "../../hub/tests/double/mod.rs"]
mod double;
#[path = "../../checkpoint/tests/common/mod.rs"]
mod files;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use common::{run, stdout, text, upg};
use double::{Double, Reply, sha256};
use serde_json::Value;
use tempfile::TempDir;

const TOKEN: &str = "hf_secret";

struct Setup {
    folder: TempDir,
    double: Double,
}

impl Setup {
    /// A tiny model in four shards, on the hub and in the folder `local`.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let local = folder.path().join("local");
        let mut tensors = files::llama_tensors();
        // transformers' order, in which a layer's norms come behind its matrices.
        tensors.sort_by_key(|(name, ..)| {
            let layer = name.split('.').nth(2).and_then(|part| part.parse().ok());
            (layer.unwrap_or(if name.contains("embed") { 0 } else { 99 }), name.contains("norm"))
        });
        files::write_shards_of(&local, &files::config_json("LlamaForCausalLM"), &tensors, 4);
        let listed = fs::read_dir(&local).unwrap().map(|entry| entry.unwrap().path());
        let listed = listed.map(|path| (name(&path), fs::read(&path).unwrap()));
        let double = Double::start(listed.chain([("README.md".to_owned(), b"A model.".to_vec())]));
        Self { folder, double }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `upg ARGS` with the double for a hub.
    fn upg(&self, args: &[&str]) -> Output {
        let mut command = upg(self.folder.path());
        for name in [
            "HF_HUB_OFFLINE",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN",
            "HTTP_PROXY",
            "http_proxy",
            "ALL_PROXY",
            "all_proxy",
        ] {
            command.env_remove(name);
        }
        let output = command
            .env("HF_ENDPOINT", &self.double.hub.address)
            .env("HF_TOKEN", TOKEN)
            .args(args)
            .output()
            .unwrap();
        for said in [&output.stdout, &output.stderr] {
            assert!(!text(said).contains(TOKEN), "upg {args:?} shows the token");
        }
        output
    }

    fn succeeds(&self, args: &[&str]) -> String {
        let output = self.upg(args);
        assert!(output.status.success(), "upg {args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    fn fails(&self, args: &[&str]) -> String {
        let output = self.upg(args);
        assert_eq!(output.status.code(), Some(1), "upg {args:?}: {}", text(&output.stderr));
        text(&output.stderr)
    }

    /// The file that compressing the folder gives.
    fn expected(&self) -> Vec<u8> {
        let args = ["compress", "local", "-o", "local.upg", "--bits", "6", "-q", "--calibrate", "none"];
        assert!(run(self.folder.path(), &args).status.success());
        fs::read(self.path("local.upg")).unwrap()
    }

    /// Whole shards that were asked for, by number, each as often as it was; headers are asked for with a range. The order
    /// is open: norms may be needed before the matrices of the shard before theirs.
    fn shards_fetched(&self) -> Vec<u32> {
        let whole = self.double.fetches(".safetensors").into_iter().filter(|seen| seen.range.is_none());
        let mut shards: Vec<u32> =
            whole.map(|seen| seen.path["/blob/model-".len()..][..5].parse().unwrap()).collect();
        shards.sort_unstable();
        shards
    }

    fn tokens_stay(&self) {
        assert!(self.double.cdn.seen().iter().all(|seen| seen.token.is_none()));
        assert!(self.double.hub.seen().iter().all(|seen| seen.token.as_deref() == Some("Bearer hf_secret")));
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

const COMPRESS: [&str; 6] = ["compress", "hf:o/m", "-o", "out.upg", "--bits", "6"];

#[test]
fn compressing_from_the_hub_gives_the_bytes_of_compressing_the_folder() {
    let setup = Setup::new();
    setup.succeeds(&COMPRESS);
    assert!(fs::read(setup.path("out.upg")).unwrap() == setup.expected());
    assert_eq!(setup.shards_fetched(), [1, 2, 3, 4]);
    assert!(!setup.path("out.upg.part.hub").exists(), "the working folder is left");
    setup.tokens_stay();
}

#[test]
fn calibrated_compressing_from_the_hub_as_well() {
    let setup = Setup::new();
    fs::write(setup.path("text.txt"), "hello, hello; well. ".repeat(400)).unwrap();
    let args = ["compress", "local", "-o", "plan.upg", "--bits", "6", "--save-plan", "plan.json"];
    setup.succeeds(&[&args[..], &["--calibrate", "none"]].concat());
    // With a plan: what is here is measured to make one, what is on the hub is not.
    let calibrated = |source, out| {
        let args = ["compress", source, "-o", out, "--plan", "plan.json", "--calibrate", "text.txt"];
        setup.succeeds(&[&args[..], &["--tokens", "2048"]].concat());
        fs::read(setup.path(out)).unwrap()
    };
    assert!(calibrated("hf:o/m", "out.upg") == calibrated("local", "local.upg"));
    assert_eq!(setup.shards_fetched(), [1, 2, 3, 4]);
}

#[test]
fn an_interrupted_run_fetches_only_what_it_still_needs() {
    let setup = Setup::new();
    setup.double.site.missing.lock().unwrap().push("model-00003-of-00004.safetensors".into());
    let error = setup.fails(&COMPRESS);
    assert!(error.contains("model-00003-of-00004.safetensors"), "{error}");
    // The headers of all shards are needed before; here the third one's is missing already.
    assert!(setup.shards_fetched().is_empty());

    setup.double.site.missing.lock().unwrap().clear();
    setup.double.site.damaged.lock().unwrap().push("model-00003-of-00004.safetensors".into());
    let error = setup.fails(&COMPRESS);
    assert!(error.contains("other bytes than the hub lists"), "{error}");
    assert!(setup.path("out.upg.part").exists() && !setup.path("out.upg").exists());
    let before = setup.shards_fetched();
    assert!(before.starts_with(&[1, 2, 3]), "{before:?}");

    setup.double.site.damaged.lock().unwrap().clear();
    setup.succeeds(&COMPRESS);
    assert!(fs::read(setup.path("out.upg")).unwrap() == setup.expected());
    let after = setup.shards_fetched();
    // The tensors of the first two are in the file.
    let times = |shard| after.iter().filter(|fetched| **fetched == shard).count();
    assert_eq!([times(1), times(2)], [1, 1], "{before:?}, then {after:?}");
}

#[test]
fn a_gguf_file_is_compressed_from_the_hub() {
    let setup = Setup::new();
    let bytes = files::gguf_llama().bytes();
    fs::write(setup.path("tiny.gguf"), &bytes).unwrap();
    setup.double.site.files.lock().unwrap().insert("gguf/tiny.gguf".into(), bytes);
    setup.succeeds(&["compress", "hf:o/m@main/gguf/tiny.gguf", "-o", "out.upg", "--bits", "6"]);
    let args = ["compress", "tiny.gguf", "-o", "local.upg", "--bits", "6", "-q", "--calibrate", "none"];
    assert!(run(setup.folder.path(), &args).status.success());
    assert!(fs::read(setup.path("out.upg")).unwrap() == fs::read(setup.path("local.upg")).unwrap());
    let error = setup.fails(&["compress", "hf:o/m/config.json", "-o", "other.upg"]);
    assert!(error.contains("name a .gguf file"), "{error}");
}

#[test]
fn a_pulled_model_is_the_folder_that_was_published() {
    let setup = Setup::new();
    setup.double.fault(|reply| Reply { cut: Some(2), ..reply });
    let report: Value = serde_json::from_str(&setup.succeeds(&["pull", "o/m", "--json"])).unwrap();
    assert_eq!(report["commit"], double::COMMIT);
    let pulled = report["files"].as_array().unwrap();
    assert_eq!(pulled.len(), 3 + 4);
    assert!(pulled.iter().all(|file| file["fetched"] == true));
    for entry in fs::read_dir(setup.path("local")).unwrap() {
        let path = entry.unwrap().path();
        assert!(fs::read(&path).unwrap() == fs::read(setup.path("m").join(name(&path))).unwrap(), "{path:?}");
    }
    assert!(!setup.path("m/README.md").exists());
    setup.tokens_stay();

    let again: Value = serde_json::from_str(&setup.succeeds(&["pull", "hf:o/m", "--json"])).unwrap();
    assert!(again["files"].as_array().unwrap().iter().all(|file| file["fetched"] == false));

    fs::write(setup.path("m/config.json"), "{}").unwrap();
    let error = setup.fails(&["pull", "o/m"]);
    assert!(error.contains("--force"), "{error}");
    setup.succeeds(&["pull", "o/m", "--force", "--file", "config.json", "--file", "README.md"]);
    assert!(setup.path("m/README.md").exists());
}

#[test]
fn a_pulled_upg_file_is_held_to_its_own_checksums() {
    let setup = Setup::new();
    let mut bytes = setup.expected();
    let publish =
        |bytes: &[u8]| setup.double.site.files.lock().unwrap().insert("m.upg".into(), bytes.to_vec());
    publish(&bytes);
    let args = ["pull", "o/m", "-o", "there"];
    setup.succeeds(&args);
    assert_eq!(sha256(&fs::read(setup.path("there/m.upg")).unwrap()), sha256(&bytes));
    stdout(setup.folder.path(), &["inspect", "there/m.upg", "--verify"]);

    let last = bytes.len() - 100;
    bytes[last] ^= 1;
    publish(&bytes);
    let error = setup.fails(&["pull", "o/m", "-o", "elsewhere"]);
    assert!(error.contains("damaged"), "{error}");
    assert_eq!(fs::read_dir(setup.path("elsewhere")).unwrap().count(), 0);
}

#[test]
fn what_cannot_be_had_says_why() {
    let setup = Setup::new();
    assert!(setup.fails(&["pull", "phi-4"]).contains("OWNER/NAME"));
    assert!(setup.fails(&["pull", "o/other"]).contains("check the name"));
    assert!(setup.fails(&["pull", "o/m", "--file", "x.gguf"]).contains("it has: "));
    assert!(setup.fails(&["compress", "hf:o/other", "-o", "x.upg"]).contains("check the name"));
    setup.double.reply(Reply::new(403, b"").header("X-Error-Code", "GatedRepo"));
    assert!(setup.fails(&["pull", "o/m"]).contains("accept its conditions"));
    setup.double.lie(
        "model-00002-of-00004.safetensors",
        serde_json::json!({ "rfilename": "model-00002-of-00004.safetensors",
            "lfs": { "sha256": "0".repeat(64), "size": 1u64 << 60 } }),
    );
    let error = setup.fails(&["pull", "o/m", "-o", "full"]);
    assert!(error.contains("bytes free") && !setup.path("full").exists(), "{error}");
}
