//! Tiny tokenizers and a scripted machine for tests.

use serde_json::{Map, Value, json};
use upg_format::{Architecture, ModelConfig, RopeConfig, RopeScaling};
use upg_pdvm::{
    Batch, BatchRow, KvPages, Machine, MachineError, MachineInfo, MachineOptions, Program, lower,
};

use crate::Tokenizer;

/// Entries of [`byte_level`]'s vocabulary.
pub(crate) const VOCAB: usize = 272;

/// GPT-2's byte alphabet: printable bytes stand for themselves, the others for characters from U+0100 on.
fn byte_alphabet() -> Vec<char> {
    let printable = |b: u32| (33..=126).contains(&b) || (161..=172).contains(&b) || (174..=255).contains(&b);
    let mut next = 256..;
    (0..256)
        .map(|b| if printable(b) { b } else { next.next().unwrap() })
        .map(|c| char::from_u32(c).unwrap())
        .collect()
}

fn added(id: usize, content: &str, special: bool) -> Value {
    json!({"id": id, "content": content, "special": special, "single_word": false, "lstrip": false, "rstrip": false,
           "normalized": false})
}

/// Byte-level BPE: tokens 0 to 255 are the bytes, then two merges, an ordinary `</s>`, and added tokens.
pub(crate) fn byte_level_json() -> String {
    let mut vocab: Map<String, Value> =
        byte_alphabet().iter().enumerate().map(|(i, c)| (c.to_string(), json!(i))).collect();
    for (i, text) in ["he", "hel", "</s>"].into_iter().enumerate() {
        vocab.insert(text.into(), json!(256 + i));
    }
    json!({
        "version": "1.0",
        "added_tokens": [
            added(260, "<|im_start|>", true), added(261, "<|im_end|>", true), added(262, "<|im_sep|>", true),
            added(263, "<|endoftext|>", true), added(264, "<|shown|>", false), added(265, "upgupg", false),
        ],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": [["h", "e"], ["he", "l"]]},
    })
    .to_string()
}

/// [`byte_level_json`] read, with `</s>` (258) named as an end token.
pub(crate) fn byte_level() -> Tokenizer {
    Tokenizer::new(byte_level_json().as_bytes(), VOCAB, &[258, 261]).unwrap()
}

/// A tokenizer as Llama 2's: words begin with `▁`, bytes that it does not know are `<0x…>`.
pub(crate) fn llama_like() -> Tokenizer {
    let mut vocab: Map<String, Value> = (0..256).map(|b| (format!("<0x{b:02X}>"), json!(b))).collect();
    for (i, text) in
        ["▁", "h", "e", "l", "o", "▁h", "el", "▁hel", "▁hell", "▁hello", "x"].into_iter().enumerate()
    {
        vocab.insert(text.into(), json!(256 + i));
    }
    let json = json!({
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": {"type": "BPE", "vocab": vocab, "byte_fallback": true, "fuse_unk": true, "merges": [
            ["▁", "h"], ["e", "l"], ["▁h", "el"], ["▁hel", "l"], ["▁hell", "o"],
        ]},
    });
    Tokenizer::new(json.to_string().as_bytes(), 300, &[]).unwrap()
}

/// The configuration of [`ScriptedMachine`]: only the vocabulary and the context matter.
fn config(vocab: usize, context: usize) -> ModelConfig {
    ModelConfig {
        architecture: Architecture::Llama,
        hidden: 32,
        layers: 1,
        heads: 1,
        kv_heads: 1,
        head_dim: 32,
        mlp: 32,
        vocab,
        context,
        norm_eps: 1e-5,
        rope: RopeConfig { dim: 32, theta: 1e4, scaling: RopeScaling::None },
        sliding_window: None,
        tied_embeddings: true,
        qkv_bias: false,
        rotation: None,
    }
}

/// What a [`ScriptedMachine`] computes: a row of logits from the sequence so far.
pub(crate) type Script = Box<dyn Fn(&[u32], &mut [f32]) + Send>;

/// A machine whose logits are a function of the tokens in its cache. It keeps the tokens beside the books of the cache
/// and so notices when the two disagree.
pub(crate) struct ScriptedMachine {
    program: Program,
    options: MachineOptions,
    kv: KvPages,
    rows: Vec<BatchRow>,
    sequences: Vec<Vec<u32>>,
    script: Script,
    /// The number of tokens of each run.
    pub(crate) runs: Vec<usize>,
    /// Fails at the run of that number.
    pub(crate) fail_at: Option<usize>,
    /// Tokens that it chooses by itself.
    pub(crate) greedy: usize,
}

impl ScriptedMachine {
    pub(crate) fn new(options: MachineOptions, script: Script) -> Self {
        Self {
            program: lower(&config(VOCAB, 1 << 20)),
            kv: KvPages::new(options.context, options.sequences),
            rows: Vec::new(),
            sequences: vec![Vec::new(); options.sequences],
            runs: Vec::new(),
            fail_at: None,
            greedy: 1,
            options,
            script,
        }
    }

    /// Says `tokens` one after the other from position `start` on, then `end` for ever.
    pub(crate) fn saying(options: MachineOptions, start: usize, tokens: Vec<u32>, end: u32) -> Self {
        let script = move |seen: &[u32], logits: &mut [f32]| {
            let next = seen.len().checked_sub(start).and_then(|i| tokens.get(i)).unwrap_or(&end);
            logits.fill(0.0);
            logits[*next as usize] = 10.0;
        };
        Self::new(options, Box::new(script))
    }
}

impl Machine for ScriptedMachine {
    fn info(&self) -> MachineInfo {
        MachineInfo { name: "scripted", detail: String::new(), weight_bytes: 1000, kv_bytes_per_token: 0 }
    }

    fn program(&self) -> &Program {
        &self.program
    }

    fn options(&self) -> &MachineOptions {
        &self.options
    }

    fn kv(&self) -> &KvPages {
        &self.kv
    }

    fn kv_mut(&mut self) -> &mut KvPages {
        &mut self.kv
    }

    fn greedy_tokens(&self) -> usize {
        self.greedy
    }

    fn run(&mut self, batch: &Batch<'_>, logits: &mut [f32]) -> Result<(), MachineError> {
        if self.fail_at == Some(self.runs.len()) {
            return Err(MachineError::Device("the script says so".into()));
        }
        let mut rows = std::mem::take(&mut self.rows);
        BatchRow::admit(batch, VOCAB, self.options.max_batch, logits, &mut self.kv, &mut rows)?;
        self.runs.push(rows.len());
        let mut out = logits.chunks_exact_mut(VOCAB);
        for row in &rows {
            let sequence = &mut self.sequences[row.seq.0 as usize];
            assert!(row.position <= sequence.len(), "a position was skipped");
            sequence.truncate(row.position);
            sequence.push(row.token);
            if row.logits {
                (self.script)(sequence, out.next().unwrap());
            }
        }
        self.kv.advance_all(batch)?;
        self.rows = rows;
        Ok(())
    }
}
