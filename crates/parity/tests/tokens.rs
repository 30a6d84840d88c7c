//! Phi-4's tokenizer gives tiktoken's tokens.

use upg_parity::{phi4, tokens};

#[test]
fn tokens_are_those_of_tiktoken() -> anyhow::Result<()> {
    let outcome = tokens::compare()?;
    println!("{outcome}");
    assert!(outcome.failures.is_empty(), "{outcome}");
    assert!(outcome.passed > 700, "{outcome}");
    Ok(())
}

#[test]
fn special_tokens_are_where_phi_4_has_them() {
    let specials = phi4::specials();
    for (id, spelling) in [
        (100_256, "<|dummy_0|>"),
        (100_257, "<|endoftext|>"),
        (100_261, "<|dummy_1|>"),
        (100_264, "<|im_start|>"),
        (100_265, "<|im_end|>"),
        (100_266, "<|im_sep|>"),
        (100_351, "<|dummy_87|>"),
    ] {
        assert!(specials.contains(&(id, spelling.into())), "{id} {spelling}");
    }
}
