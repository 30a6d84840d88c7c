//! Which tokens end an answer.

use std::collections::BTreeSet;

/// Tokens that end a turn or a text in the families that are read. Instruction-tuned checkpoints often name only one
/// of theirs, and a model that then writes the other never stops.
const KNOWN: [&str; 8] = [
    "<|im_end|>",
    "<|endoftext|>",
    "<|end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "</s>",
];

/// The tokens that the checkpoint names, and those special tokens of its vocabulary that are known to end an answer;
/// ascending.
pub(crate) fn stop_tokens<'a>(
    named: impl IntoIterator<Item = u32>,
    special: impl IntoIterator<Item = (&'a str, u32)>,
) -> Vec<u32> {
    let known = special.into_iter().filter(|(text, _)| KNOWN.contains(text)).map(|(_, id)| id);
    named.into_iter().chain(known).collect::<BTreeSet<u32>>().into_iter().collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn named_and_known_ones_once_each() {
        let special = [("<|im_end|>", 7), ("<|im_start|>", 6), ("</s>", 2)];
        assert_eq!(super::stop_tokens([9, 2], special), [2, 7, 9]);
    }
}
