// Pair `pair` of q (m = 0), k (1) or v (2) of token n: biases, RoPE, and the cache for k and v.
fn emit(n: u32, m: u32, pair: u32, sums: vec2<f32>) {
    var y = sums + bias_of(m, pair);
    let head = pair / HALF;
    let word = pair % HALF;
    if m < 2u && word < PAIRS {
        let turn = row_turn(n, word);
        y = vec2<f32>(y.x * turn.x - y.y * turn.y, y.y * turn.x + y.x * turn.y);
    }
    if m == 0u {
        q[n * (Q_WIDTH / 2u) + pair] = y;
        return;
    }
    let position = row_position(n);
    let page = step[row_pages(n) + position / PAGE];
    let slot = position % PAGE;
    if m == 1u {
        cache[key_at(page, head, word, slot)] = pack2x16float(y);
    } else {
        cache[value_at(page, head, slot, word)] = pack2x16float(y);
    }
}
