// The step buffer: what changes from batch to batch (`src/step.rs` writes it).
//   word 0: tokens of the batch; 1: splits of the context; 2: rows of logits; 3: where the chosen token goes
//   PAGES_AT:  the page table of each sequence, PAGES_A_SEQUENCE words each
//   TABLES_AT, TRIPLES_AT: the look-up tables of all codes, 256 words each, and the larger ones of small codes; never change
//   ROWS_AT:   a row a token, ROW_WORDS each (below), then cosines and sines of its position

fn chosen_at() -> u32 { return step[3]; }
fn row_at(n: u32) -> u32 { return ROWS_AT + n * ROW_WORDS; }
fn row_token(n: u32) -> u32 { return step[row_at(n)]; }
fn row_position(n: u32) -> u32 { return step[row_at(n) + 1u]; }
// Where the page table of its sequence begins.
fn row_pages(n: u32) -> u32 { return step[row_at(n) + 2u]; }
// Of the n-th row of logits: the token that it belongs to.
fn logits_token(n: u32) -> u32 { return step[row_at(n) + 3u]; }
// The n-th tile of attention: its first token, and how many consecutive tokens of one sequence it has.
fn tile_first(n: u32) -> u32 { return step[row_at(n) + 4u]; }
fn tile_tokens(n: u32) -> u32 { return step[row_at(n) + 5u]; }
// Cosine and sine of pair i at the position of token n.
fn row_turn(n: u32, i: u32) -> vec2<f32> {
    let at = row_at(n) + ROW_HEAD + i;
    return vec2<f32>(bitcast<f32>(step[at]), bitcast<f32>(step[at + PAIRS]));
}
