//! Fetching from a hub that keeps to the protocol, and from one that does not.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod double;

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use double::{Double, Reply, sha256};
use serde_json::json;
use tempfile::TempDir;
use upg_hub::{Fetched, Hub, HubError, Patience, RemoteFile, Repo, Settings, Token, Watch};

const PATIENCE: Patience = Patience {
    tries: 3,
    first_wait: Duration::from_millis(2),
    longest_wait: Duration::from_millis(5),
    silence: Duration::from_millis(300),
};

/// Bytes that differ from place to place.
fn noise(length: usize) -> Vec<u8> {
    (0..length as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn files() -> Vec<(String, Vec<u8>)> {
    vec![
        ("config.json".into(), b"{}\n".to_vec()),
        ("model.safetensors".into(), noise(3 << 20)),
        ("deep/er/model.gguf".into(), noise(1000)),
        ("empty.txt".into(), Vec::new()),
    ]
}

struct Setup {
    double: Double,
    folder: TempDir,
    hub: Hub,
}

impl Setup {
    fn new() -> Self {
        Self::with(files())
    }

    fn with(files: Vec<(String, Vec<u8>)>) -> Self {
        let double = Double::start(files);
        let token = Some(Token::new("hf_secret", "the test").unwrap());
        let settings = Settings { endpoint: double.hub.address.clone(), token };
        let hub = Hub::new(&settings, PATIENCE).unwrap();
        Self { double, folder: tempfile::tempdir().unwrap(), hub }
    }

    fn repo(&self) -> Repo {
        self.hub.repo(&"o/m".parse().unwrap(), &()).unwrap()
    }

    fn fetch(&self, path: &str) -> Result<Fetched, HubError> {
        self.fetch_with(path, false, &())
    }

    fn fetch_with(&self, path: &str, replace: bool, watch: &dyn Watch) -> Result<Fetched, HubError> {
        let repo = self.repo();
        self.hub.fetch(&repo, &repo.file(path)?, self.folder.path(), replace, watch)
    }

    fn published(&self, path: &str) -> Vec<u8> {
        fs::read(self.fetch(path).unwrap().publish().unwrap()).unwrap()
    }

    /// What is in the folder.
    fn left(&self) -> Vec<String> {
        fn list(folder: &Path, all: &mut Vec<String>) {
            for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
                match entry.path().is_dir() {
                    true => list(&entry.path(), all),
                    false => all.push(entry.file_name().into_string().unwrap()),
                }
            }
        }
        let mut all = Vec::new();
        list(self.folder.path(), &mut all);
        all
    }
}

#[test]
fn files_come_and_the_token_goes_to_the_hub_alone() {
    let setup = Setup::new();
    for (name, bytes) in files() {
        let fetched = setup.fetch(&name).unwrap();
        assert!(fetched.came() && !setup.folder.path().join(&name).exists(), "{name} has its name too soon");
        assert!(fs::read(fetched.publish().unwrap()).unwrap() == bytes, "{name}");
    }
    assert_eq!(setup.left().len(), 4, "{:?}", setup.left());
    let (hub, cdn) = (setup.double.hub.seen(), setup.double.cdn.seen());
    assert!(hub.iter().all(|seen| seen.token.as_deref() == Some("Bearer hf_secret")), "{hub:?}");
    assert!(cdn.len() == 2 && cdn.iter().all(|seen| seen.token.is_none()), "{cdn:?}");
}

#[test]
fn what_is_there_is_not_fetched_again() {
    let setup = Setup::new();
    setup.published("model.safetensors");
    let again = setup.fetch("model.safetensors").unwrap();
    assert!(!again.came());
    again.publish().unwrap();
    assert_eq!(setup.double.cdn.seen().len(), 1);

    let path = setup.folder.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    bytes[77] ^= 1;
    for other in [bytes, b"short".to_vec()] {
        fs::write(&path, &other).unwrap();
        assert!(matches!(setup.fetch("model.safetensors"), Err(HubError::Exists(_))));
        assert_eq!(fs::read(&path).unwrap(), other, "a file was touched");
    }
    setup.fetch_with("model.safetensors", true, &()).unwrap().publish().unwrap();
    assert_eq!(sha256(&fs::read(&path).unwrap()), sha256(&noise(3 << 20)));
}

#[test]
fn broken_connections_are_taken_up_where_they_broke() {
    let setup = Setup::new();
    // Two tries in a row bring too little, then one brings enough to start counting again.
    for cut in [0, 1, 1_200_000, 5] {
        setup.double.fault(move |reply| Reply { cut: Some(cut), ..reply });
    }
    assert!(setup.published("model.safetensors") == noise(3 << 20));
    let seen = setup.double.cdn.seen();
    let starts: Vec<u64> = seen
        .iter()
        .map(|seen| seen.range.as_ref().map_or(0, |r| r[6..r.len() - 1].parse().unwrap()))
        .collect();
    assert_eq!(starts, [0, 0, 1, 1_200_001, 1_200_006]);
    assert!(seen.iter().all(|seen| seen.range.is_some() == seen.if_range.is_some()), "{seen:?}");
}

#[test]
fn the_next_run_goes_on_where_this_one_stopped() {
    let setup = Setup::new();
    for _ in 0..PATIENCE.tries {
        setup.double.fault(|reply| Reply { cut: Some(100_000), ..reply });
    }
    let error = setup.fetch("model.safetensors").unwrap_err();
    assert!(matches!(error, HubError::Broken { got: 300_000, length: 3_145_728, .. }), "{error}");
    assert!(setup.published("model.safetensors") == noise(3 << 20));
    assert_eq!(setup.double.cdn.seen().last().unwrap().range.as_deref(), Some("bytes=300000-"));
    assert_eq!(setup.left(), ["model.safetensors"]);
}

#[test]
fn hosts_without_ranges_start_over() {
    let setup = Setup::new();
    let whole = |cut| {
        move |reply: Reply| {
            let headers = reply.headers.into_iter().filter(|(name, _)| name != "Content-Range").collect();
            Reply { status: 200, body: noise(3 << 20), headers, cut, ..reply }
        }
    };
    setup.double.fault(whole(Some(1_500_000)));
    setup.double.fault(whole(None));
    assert!(setup.published("model.safetensors") == noise(3 << 20));
}

#[test]
fn a_file_that_changes_between_tries_is_fetched_anew_and_refused() {
    let setup = Setup::new();
    setup.double.fault(|reply| Reply { cut: Some(2_000_000), ..reply });
    let repo = setup.repo();
    let file = repo.file("model.safetensors").unwrap();
    struct Change<'a>(&'a Double);
    impl Watch for Change<'_> {
        fn retrying(&self, _: &HubError, _: Duration) {
            let mut other = noise(3 << 20);
            other[0] ^= 1;
            self.0.site.files.lock().unwrap().insert("model.safetensors".into(), other);
        }
    }
    let result = setup.hub.fetch(&repo, &file, setup.folder.path(), false, &Change(&setup.double));
    let error = result.unwrap_err().to_string();
    assert!(error.contains("another file than it lists"), "{error}");
}

#[test]
fn wrong_bytes_are_refused_and_removed() {
    let setup = Setup::new();
    for name in ["model.safetensors", "config.json"] {
        setup.double.fault(|mut reply| {
            *reply.body.last_mut().unwrap() ^= 1;
            reply
        });
        let error = setup.fetch(name).unwrap_err();
        assert!(matches!(error, HubError::Mismatch { .. }), "{name}: {error}");
    }
    assert!(setup.left().is_empty(), "{:?}", setup.left());
}

#[test]
fn a_bad_rest_of_an_earlier_run_is_thrown_away() {
    let setup = Setup::new();
    for _ in 0..PATIENCE.tries {
        setup.double.fault(|mut reply| {
            reply.body[5] ^= 1;
            Reply { cut: Some(1000), ..reply }
        });
    }
    setup.fetch("model.safetensors").unwrap_err();
    assert!(setup.published("model.safetensors") == noise(3 << 20));
}

#[test]
fn lengths_that_lie_are_refused() {
    let length = (3 << 20) as u64;
    for claimed in [length + 1, length - 1, 0, u64::MAX / 2] {
        let setup = Setup::new();
        setup.double.fault(move |reply| Reply { length: Some(claimed), ..reply });
        let error = setup.fetch("model.safetensors").unwrap_err();
        assert!(matches!(error, HubError::Answer { .. }), "{claimed}: {error}");
    }
    let setup = Setup::new();
    setup.double.fault(|reply| Reply { cut: Some(100), ..reply });
    setup.double.fault(|reply| {
        let headers = vec![("Content-Range".into(), "bytes 7-3145727/3145728".into())];
        Reply { headers, ..reply }
    });
    let error = setup.fetch("model.safetensors").unwrap_err().to_string();
    assert!(error.contains("where the rest from 100 on was asked for"), "{error}");
}

#[test]
fn bodies_without_end_are_left() {
    let setup = Setup::new();
    setup.double.fault(|reply| Reply { endless: true, ..reply });
    let error = setup.fetch("model.safetensors").unwrap_err().to_string();
    assert!(error.contains("more than the 3145728 bytes"), "{error}");

    let reply = Reply { endless: true, ..Reply::new(200, &[b' '; 1 << 20]) };
    setup.double.reply(reply);
    let error = setup.hub.repo(&"o/m".parse().unwrap(), &()).unwrap_err().to_string();
    assert!(error.contains("more than 67108864 bytes"), "{error}");

    setup.double.reply(Reply { endless: true, ..Reply::new(400, b"no! ") });
    let error = setup.hub.repo(&"o/m".parse().unwrap(), &()).unwrap_err().to_string();
    assert!(error.contains("no! no!") && error.len() < 400, "{error}");
}

#[test]
fn silence_is_not_waited_for_long() {
    let setup = Setup::new();
    for _ in 0..PATIENCE.tries {
        setup.double.fault(|reply| Reply { cut: Some(10), silent: Some(Duration::from_secs(5)), ..reply });
    }
    let started = std::time::Instant::now();
    let error = setup.fetch("model.safetensors").unwrap_err();
    assert!(matches!(error, HubError::Broken { got: 30, .. }), "{error}");
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
}

#[test]
fn refusals_say_what_to_do() {
    let setup = Setup::new();
    let name = "o/m".parse().unwrap();
    let gated = Reply::new(403, b"").header("X-Error-Code", "GatedRepo");
    let moved = Reply::new(401, b"").header("X-Error-Code", "GatedRepo");
    for (reply, part) in [
        (Reply::new(401, b""), "set HF_TOKEN"),
        (Reply::new(404, b""), "check the name"),
        (gated, "/o/m, then set HF_TOKEN"),
        (moved, "accept its conditions at http://127.0.0.1"),
        (Reply::new(400, b"<b>bad\nthing</b>"), "400 to o/m at main: <b>bad thing</b>"),
        (Reply::new(200, b"<html>"), "no listing"),
        (Reply::new(200, br#"{"sha": "../../x"}"#), "no commit"),
    ] {
        setup.double.reply(reply.clone());
        let before = setup.double.hub.seen().len();
        let error = setup.hub.repo(&name, &()).unwrap_err().to_string();
        assert!(error.contains(part), "{reply:?}: {error}");
        assert_eq!(setup.double.hub.seen().len() - before, 1, "{reply:?} is no reason to try again");
    }
}

#[test]
fn a_busy_hub_is_asked_again_but_not_for_ever() {
    let setup = Setup::new();
    setup.double.reply(Reply::new(429, b"").header("Retry-After", "0"));
    setup.double.reply(Reply::new(503, b"").header("Retry-After", "soon"));
    setup.repo();
    assert_eq!(setup.double.hub.seen().len(), 3);
    for _ in 0..10 {
        setup.double.reply(Reply::new(500, b"oh"));
    }
    let error = setup.hub.repo(&"o/m".parse().unwrap(), &()).unwrap_err().to_string();
    assert!(error.contains("answers 500") && error.contains("later"), "{error}");
    assert_eq!(setup.double.hub.seen().len(), 3 + PATIENCE.tries as usize);
}

#[test]
fn an_address_that_ran_out_is_asked_for_again() {
    let setup = Setup::new();
    setup.double.fault(|_| Reply::new(403, b"expired"));
    assert!(setup.published("model.safetensors") == noise(3 << 20));
    assert_eq!(setup.double.hub.seen().len(), 3);
}

#[test]
fn redirects_stay_within_bounds() {
    let setup = Setup::new();
    let name = "o/m".parse().unwrap();
    let to = |location: &str| Reply::new(307, b"").header("Location", location);
    let here = to("/api/models/o/m/revision/main?blobs=true");
    // On the same host it is the same hub, and a renamed model is found.
    setup.double.reply(here.clone());
    setup.hub.repo(&name, &()).unwrap();
    assert!(setup.double.hub.seen().iter().all(|seen| seen.token.is_some()));
    for (reply, part) in [
        (Reply::new(302, b""), "no address"),
        (to("x"), "no address"),
        (to("ftp://127.0.0.1/x"), "strange address"),
    ] {
        setup.double.reply(reply);
        let error = setup.hub.repo(&name, &()).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("do not trust"), "{error}");
    }
    (0..20).for_each(|_| setup.double.reply(here.clone()));
    let error = setup.hub.repo(&name, &()).unwrap_err().to_string();
    assert!(error.contains("in a circle"), "{error}");
}

#[test]
fn another_port_is_another_host() {
    let setup = Setup::new();
    let location = format!("{}/blob/config.json", setup.double.cdn.address);
    setup.repo();
    let repo = setup.repo();
    setup.double.reply(Reply::new(302, b"").header("Location", &location));
    let file = repo.file("config.json").unwrap();
    setup.hub.fetch(&repo, &file, setup.folder.path(), false, &()).unwrap();
    assert!(setup.double.cdn.seen().iter().all(|seen| seen.token.is_none()));
}

#[test]
fn tokens_do_not_go_over_open_connections() {
    let token = || Some(Token::new("hf_secret", "the test").unwrap());
    let new =
        |endpoint: &str, token| Hub::new(&Settings { endpoint: endpoint.into(), token }, PATIENCE).map(drop);
    let error = new("http://hub.example", token()).unwrap_err().to_string();
    assert!(error.contains("in the clear") && !error.contains("hf_secret"), "{error}");
    new("http://hub.example", None).unwrap();
    new("https://hub.example", token()).unwrap();
}

#[test]
fn names_that_leave_the_folder_are_refused() {
    let evil = ["../evil.gguf", "/etc/evil.gguf", "a/../../evil.gguf", "C:\\evil.gguf"];
    let setup = Setup::with(evil.iter().map(|name| ((*name).to_owned(), b"x".to_vec())).collect());
    for name in evil {
        assert!(matches!(setup.fetch(name), Err(HubError::FileName(_))), "{name}");
    }
    let error = setup.fetch("good.gguf").unwrap_err().to_string();
    assert!(error.contains("it has: ") && error.contains("evil"), "{error}");
}

#[test]
fn files_without_checksums_are_refused() {
    let setup = Setup::new();
    for entry in [
        json!({ "rfilename": "config.json" }),
        json!({ "rfilename": "config.json", "size": 3, "blobId": "short" }),
        json!({ "rfilename": "config.json", "size": 3, "lfs": { "sha256": "x", "size": 3 } }),
    ] {
        setup.double.lie("config.json", entry.clone());
        assert!(matches!(setup.fetch("config.json"), Err(HubError::NoChecksum { .. })), "{entry}");
    }
}

#[test]
fn who_fetches_can_stop() {
    struct Stop(AtomicU64);
    impl Watch for Stop {
        fn at(&self, _: &RemoteFile, bytes: u64) {
            self.0.fetch_max(bytes, Ordering::Relaxed);
        }
        fn cancelled(&self) -> bool {
            self.0.load(Ordering::Relaxed) > 500_000
        }
    }
    let setup = Setup::new();
    let result = setup.fetch_with("model.safetensors", false, &Stop(AtomicU64::new(0)));
    assert!(matches!(result, Err(HubError::Cancelled)), "{result:?}");
    assert!(setup.published("model.safetensors") == noise(3 << 20));
    assert!(setup.double.cdn.seen()[1].range.is_some(), "what had come was lost");
}

#[test]
fn two_processes_do_not_write_one_part() {
    let setup = Setup::new();
    struct Second<'a>(&'a Setup);
    impl Watch for Second<'_> {
        fn at(&self, _: &RemoteFile, _: u64) {
            assert!(matches!(self.0.fetch("model.safetensors"), Err(HubError::Busy(_))));
        }
    }
    setup.fetch_with("model.safetensors", false, &Second(&setup)).unwrap();
}

#[test]
fn the_model_of_a_repository_is_found() {
    let names = |files: &[&str]| {
        let index = json!({ "weight_map": { "a": "x-2.safetensors", "b": "x-1.safetensors" } }).to_string();
        let file = |name: &&str| {
            let bytes =
                if name.ends_with("index.json") { index.clone().into_bytes() } else { b"{}".to_vec() };
            ((*name).to_owned(), bytes)
        };
        let setup = Setup::with(files.iter().map(file).collect());
        let chosen = setup.hub.model_files(&setup.repo(), &());
        chosen.map(|files| files.into_iter().map(|file| file.path).collect::<Vec<_>>().join(" "))
    };
    let sharded = [
        "config.json",
        "model.safetensors.index.json",
        "x-1.safetensors",
        "x-2.safetensors",
        "y.gguf",
        "README.md",
    ];
    assert_eq!(
        names(&sharded).unwrap(),
        "config.json model.safetensors.index.json x-1.safetensors x-2.safetensors"
    );
    let single = ["config.json", "tokenizer.json", "model.safetensors", "model.safetensors.index.json"];
    assert_eq!(names(&single).unwrap(), "config.json tokenizer.json model.safetensors");
    assert_eq!(names(&["a.upg", "b.gguf"]).unwrap(), "a.upg");
    assert_eq!(names(&["README.md", "b.gguf"]).unwrap(), "b.gguf");
    for (files, part) in [
        (&["a.gguf", "b.gguf"][..], "a.gguf, b.gguf"),
        (&["a.upg", "b.upg"], "a.upg, b.upg"),
        (&["README.md", "pytorch_model.bin", "config.json"], "neither safetensors"),
        (&["config.json", "model.safetensors.index.json"], "no file \"x-1.safetensors\""),
    ] {
        let error = names(files).unwrap_err().to_string();
        assert!(error.contains(part), "{files:?}: {error}");
    }
}
