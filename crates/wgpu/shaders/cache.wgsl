// A layer's KV cache: pages of PAGE tokens. A page holds, for each key/value head, its keys as [word][token] and then its
// values as [token][word]; a word is two numbers in f16. Keys are kept in the order of RoPE's pairs: word i < PAIRS holds
// dimensions i and i + PAIRS, word i >= PAIRS dimensions 2i and 2i + 1, and so do queries; a product does not care.

fn key_at(page: u32, head: u32, word: u32, slot: u32) -> u32 {
    return ((page * 2u * KV_HEADS + head) * HALF + word) * PAGE + slot;
}
fn value_at(page: u32, head: u32, slot: u32, word: u32) -> u32 {
    return ((page * 2u * KV_HEADS + KV_HEADS + head) * PAGE + slot) * HALF + word;
}
