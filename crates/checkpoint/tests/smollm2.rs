//! A real checkpoint: SmolLM2-135M-Instruct as a GGUF file.

use std::path::Path;

use serde::Deserialize;
use tokenizers::Tokenizer;
use upg_checkpoint::{Checkpoint, open};
use upg_format::{Architecture, ModelConfig, RopeConfig, RopeScaling, TensorKind, TensorName};

fn smollm2() -> Box<dyn Checkpoint> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/SmolLM2-135M-Instruct.Q4_1.gguf");
    open(Path::new(path)).expect("run `make fixtures` first")
}

#[test]
fn its_description() {
    let model = smollm2();
    let expected = ModelConfig {
        architecture: Architecture::Llama,
        hidden: 576,
        layers: 30,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        mlp: 1536,
        vocab: 49152,
        context: 8192,
        norm_eps: 1e-5,
        rope: RopeConfig { dim: 64, theta: 100_000.0, scaling: RopeScaling::None },
        sliding_window: None,
        tied_embeddings: true,
        qkv_bias: false,
        rotation: None,
    };
    assert_eq!(*model.config(), expected);
    assert_eq!(model.describe(), "GGUF v3, llama, Q4_1");
    let text = model.text();
    assert_eq!((text.bos, text.eos, text.pad, text.add_bos), (Some(1), Some(2), Some(2), false));
    // The file names <|im_end|>; <|endoftext|> ends a text too.
    assert_eq!(text.stop_tokens, [0, 2]);
    assert!(text.chat_template.as_ref().is_some_and(|template| template.contains("<|im_start|>")));
}

/// First numbers and sum of a row, as numpy and the `gguf` package have them.
#[test]
fn rows_are_where_they_belong() {
    let model = smollm2();
    for (name, row, first, sum) in [
        ("embed", 42, [-0.0645904541015625, -0.03498649597167969, -0.043060302734375], 2.9141483306884766),
        // Stored as row 67: of head 1, dimension 1 of the second half.
        ("layers.7.q", 97, [-0.0186767578125, 0.3204345703125, 0.037841796875], 4.0794677734375),
        ("layers.7.v", 100, [-0.05865478515625, 0.2733154296875, -0.003326416015625], -0.47064208984375),
        (
            "layers.29.down",
            575,
            [-0.22918701171875, -0.03912353515625, -0.276702880859375],
            -5.229949951171875,
        ),
        ("final_norm", 0, [1.7578125, 1.8203125, 1.78125], 1038.33203125),
    ] {
        let name: TensorName = name.parse().unwrap();
        let mut numbers = vec![0.0; name.shape(model.config())[1]];
        model.read_rows(name, row..row + 1, &mut numbers).unwrap();
        let numbers: Vec<f64> = numbers.into_iter().map(f64::from).collect();
        assert_eq!(numbers[..3], first, "{name}[{row}]");
        let found: f64 = numbers.iter().sum();
        assert!((found - sum).abs() < 1e-9, "{name}[{row}]: {found} != {sum}");
    }
}

#[test]
fn every_tensor_is_there_and_finite() {
    let model = smollm2();
    let mut weights = 0;
    for name in TensorName::of_checkpoint(model.config()) {
        let [rows, cols] = name.shape(model.config());
        let mut numbers = vec![0.0; rows.min(512) * cols];
        for first in (0..rows).step_by(512) {
            let last = (first + 512).min(rows);
            let numbers = &mut numbers[..(last - first) * cols];
            model.read_rows(name, first..last, numbers).unwrap();
            assert!(numbers.iter().all(|x| x.is_finite()), "{name}");
            assert!(numbers.iter().any(|x| *x != 0.0), "{name}");
        }
        weights += rows * cols;
    }
    assert_eq!(weights, 134_515_008);
}

#[test]
fn rows_that_are_not_there_are_refused() {
    let model = smollm2();
    let embed = TensorName::global(TensorKind::Embed);
    let mut numbers = vec![0.0; 576];
    assert!(model.read_rows(embed, 49151..49152, &mut numbers).is_ok());
    assert!(model.read_rows(embed, 49152..49153, &mut numbers).is_err());
    assert!(model.read_rows(embed, 0..2, &mut numbers).is_err());
    assert!(model.read_rows(TensorName::global(TensorKind::Head), 0..1, &mut numbers).is_err());
    assert!(model.read_rows(TensorName::new(30, TensorKind::Q), 0..1, &mut numbers).is_err());
}

#[derive(Deserialize)]
struct Case {
    text: String,
    tokens: Vec<u32>,
}

/// `tests/golden/smollm2_tokens.py` makes the file with an encoder of its own.
#[test]
fn its_tokenizer_encodes_and_decodes() {
    let tokenizer = Tokenizer::from_bytes(smollm2().tokenizer_json()).unwrap();
    assert_eq!(tokenizer.get_vocab_size(true), 49152);
    let cases: Vec<Case> = serde_json::from_str(include_str!("golden/smollm2_tokens.json")).unwrap();
    for case in cases {
        let encoding = tokenizer.encode(&*case.text, false).unwrap();
        assert_eq!(encoding.get_ids(), case.tokens, "{:?}", case.text);
        assert_eq!(tokenizer.decode(&case.tokens, false).unwrap(), case.text);
    }
}

#[test]
fn text_can_be_kept_from_special_tokens() {
    let mut tokenizer = Tokenizer::from_bytes(smollm2().tokenizer_json()).unwrap();
    tokenizer.set_encode_special_tokens(true);
    let encoding = tokenizer.encode("<|im_end|><|endoftext|>", false).unwrap();
    assert!(encoding.get_ids().iter().all(|token| *token > 16), "{:?}", encoding.get_ids());
}
