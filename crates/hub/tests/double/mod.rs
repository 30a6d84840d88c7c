//! A double of the hub: it keeps to the protocol, until a test makes it drop, lie, redirect or refuse.
#![allow(dead_code, reason = "no test needs all of it")]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    collections::{BTreeMap, VecDeque},
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A request that came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub path: String,
    pub token: Option<String>,
    pub range: Option<String>,
    pub if_range: Option<String>,
}

/// An answer, right or wrong.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The connection ends after so many bytes of the body.
    pub cut: Option<usize>,
    /// The length that is claimed; `None`: the right one.
    pub length: Option<u64>,
    /// No length is claimed, and the body is sent again and again.
    pub endless: bool,
    /// Nothing more is said for so long, instead of an end.
    pub silent: Option<Duration>,
}

impl Reply {
    pub fn new(status: u16, body: &[u8]) -> Self {
        Self { status, body: body.to_vec(), ..Self::default() }
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    fn send(&self, stream: &mut TcpStream) -> std::io::Result<()> {
        let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", self.status);
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        if !self.endless {
            head += &format!("Content-Length: {}\r\n", self.length.unwrap_or(self.body.len() as u64));
        }
        stream.write_all(head.as_bytes())?;
        stream.write_all(b"\r\n")?;
        stream.write_all(&self.body[..self.cut.unwrap_or(self.body.len())])?;
        if let Some(silent) = self.silent {
            thread::sleep(silent);
        }
        if self.endless {
            loop {
                stream.write_all(&self.body)?;
            }
        }
        Ok(())
    }
}

/// A server on this machine. It ends with the process.
pub struct Server {
    pub address: String,
    pub seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    pub fn start(answer: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let (log, answer) = (Arc::clone(&seen), Arc::new(answer));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                thread::spawn(move || serve(stream, &log, &*answer));
            }
        });
        Self { address, seen }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

fn serve(mut stream: TcpStream, log: &Mutex<Vec<Seen>>, answer: &dyn Fn(&Seen) -> Reply) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let headers: BTreeMap<String, String> = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| {
            line.split_once(": ").map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        })
        .collect();
    let header = |name: &str| headers.get(name).cloned();
    let seen = Seen {
        path: first.split(' ').nth(1).unwrap_or_default().to_owned(),
        token: header("authorization"),
        range: header("range"),
        if_range: header("if-range"),
    };
    log.lock().unwrap().push(seen.clone());
    // Whoever hung up has heard enough.
    let _ = answer(&seen).send(&mut stream);
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub fn git_sha1(bytes: &[u8]) -> String {
    let mut hasher = Sha1::new_with_prefix(format!("blob {}\0", bytes.len()));
    hasher.update(bytes);
    hex(&hasher.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The repository `o/m`, and what is wrong with the next answers.
#[derive(Default)]
pub struct Site {
    pub files: Mutex<BTreeMap<String, Vec<u8>>>,
    /// Each is used for one answer to a request for a file's bytes.
    pub faults: Mutex<VecDeque<Fault>>,
    /// Each is used for one answer to any request to the hub itself.
    pub replies: Mutex<VecDeque<Reply>>,
    /// What the listing says instead of the truth, by file.
    pub lies: Mutex<BTreeMap<String, Value>>,
    /// Files that are listed and cannot be had.
    pub missing: Mutex<Vec<String>>,
    /// Files whose bytes are wrong where all of them are asked for.
    pub damaged: Mutex<Vec<String>>,
}

type Fault = Box<dyn Fn(Reply) -> Reply + Send>;

/// The hub and the host that it redirects to for large files.
pub struct Double {
    pub site: Arc<Site>,
    pub hub: Server,
    pub cdn: Server,
}

impl Double {
    pub fn start(files: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        let site = Arc::new(Site { files: Mutex::new(files.into_iter().collect()), ..Site::default() });
        let shared = Arc::clone(&site);
        let cdn = Server::start(move |seen| {
            let path = seen.path.split('?').next().unwrap_or_default();
            shared.bytes(path.strip_prefix("/blob/").unwrap_or_default(), seen)
        });
        let (shared, address) = (Arc::clone(&site), cdn.address.clone());
        let hub = Server::start(move |seen| shared.answer(seen, &address));
        Self { site, hub, cdn }
    }

    pub fn fault(&self, fault: impl Fn(Reply) -> Reply + Send + 'static) {
        self.site.faults.lock().unwrap().push_back(Box::new(fault));
    }

    pub fn reply(&self, reply: Reply) {
        self.site.replies.lock().unwrap().push_back(reply);
    }

    pub fn lie(&self, file: &str, entry: Value) {
        self.site.lies.lock().unwrap().insert(file.into(), entry);
    }

    /// Requests for a file's bytes that came to the other host.
    pub fn fetches(&self, file: &str) -> Vec<Seen> {
        self.cdn.seen().into_iter().filter(|seen| seen.path.contains(file)).collect()
    }
}

/// What git would store as a pointer.
fn is_large(name: &str) -> bool {
    [".safetensors", ".gguf", ".upg"].iter().any(|end| name.ends_with(end))
}

impl Site {
    fn answer(&self, seen: &Seen, cdn: &str) -> Reply {
        if let Some(reply) = self.replies.lock().unwrap().pop_front() {
            return reply;
        }
        if seen.path.starts_with("/api/models/o/m/revision/main?") {
            return Reply::new(200, self.listing().to_string().as_bytes());
        }
        let prefix = format!("/o/m/resolve/{COMMIT}/");
        let Some(name) = seen.path.strip_prefix(&prefix) else {
            return Reply::new(404, b"no such repository").header("X-Error-Code", "RepoNotFound");
        };
        if self.missing.lock().unwrap().iter().any(|missing| missing == name) {
            return Reply::new(404, b"no such file").header("X-Error-Code", "EntryNotFound");
        }
        if !is_large(name) {
            return self.bytes(name, seen);
        }
        let Some(bytes) = self.files.lock().unwrap().get(name).cloned() else { return Reply::new(404, b"") };
        Reply::new(302, b"Found. Redirecting")
            .header("Location", &format!("{cdn}/blob/{name}?signature=secret"))
            .header("X-Linked-ETag", &format!("\"{}\"", sha256(&bytes)))
            .header("X-Repo-Commit", COMMIT)
    }

    fn listing(&self) -> Value {
        let lies = self.lies.lock().unwrap();
        let files = self.files.lock().unwrap();
        let entry = |(name, bytes): (&String, &Vec<u8>)| {
            let mut entry = json!({ "rfilename": name, "size": bytes.len(), "blobId": git_sha1(bytes) });
            if is_large(name) {
                entry["lfs"] = json!({ "sha256": sha256(bytes), "size": bytes.len(), "pointerSize": 134 });
            }
            lies.get(name).cloned().unwrap_or(entry)
        };
        json!({ "id": "o/m", "sha": COMMIT, "gated": false, "siblings": files.iter().map(entry).collect::<Vec<_>>() })
    }

    /// A file's bytes, or those of a range.
    fn bytes(&self, name: &str, seen: &Seen) -> Reply {
        let Some(mut bytes) = self.files.lock().unwrap().get(name).cloned() else {
            return Reply::new(404, b"");
        };
        if seen.range.is_none() && self.damaged.lock().unwrap().iter().any(|damaged| damaged == name) {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        }
        let etag = format!("\"{}\"", &sha256(&bytes)[..16]);
        let range = seen.range.as_deref().and_then(|range| range.strip_prefix("bytes="));
        let same = seen.if_range.as_ref().is_none_or(|wanted| *wanted == etag);
        let reply = match range.and_then(|range| range.split_once('-')).filter(|_| same) {
            None => Reply::new(200, &bytes),
            Some((first, last)) => {
                let first: usize = first.parse().unwrap();
                let end = last.parse().map_or(bytes.len(), |last: usize| bytes.len().min(last + 1));
                if first >= bytes.len() {
                    return Reply::new(416, b"");
                }
                let range = format!("bytes {first}-{}/{}", end - 1, bytes.len());
                Reply::new(206, &bytes[first..end]).header("Content-Range", &range)
            }
        };
        let reply = reply.header("ETag", &etag);
        match self.faults.lock().unwrap().pop_front() {
            Some(fault) => fault(reply),
            None => reply,
        }
    }
}
