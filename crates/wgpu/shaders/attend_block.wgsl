// FlashAttention (Dao et al. 2022) for a tile of consecutive tokens of one sequence: TOKENS tokens by SHARE query heads of
// one key/value head, ROWS rows in all (row: token * SHARE + head), against KEYS keys at a time. Each key and value read
// serves all rows. Workgroup (group of heads, tile).

var<workgroup> queries: array<vec2<f32>, ROWS * HALF>;
var<workgroup> scores: array<f32, ROWS * KEYS>;
// Per row: the largest score so far, the sum of weights, and what the sums so far are to be scaled by.
var<workgroup> state: array<vec3<f32>, ROWS>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let head0 = wg.x * SHARE;
    let kv_head = head0 / (HEADS / KV_HEADS);
    let first = tile_first(wg.y);
    let tokens = tile_tokens(wg.y);
    let rows = tokens * SHARE;
    let position0 = row_position(first);
    let end = position0 + tokens;
    let start = select(0u, position0 + 1u - min(position0 + 1u, WINDOW), WINDOW > 0u);
    let pages = row_pages(first);

    for (var i = t; i < ROWS * HALF; i += THREADS) {
        // Rows past the last token take the last one's numbers: nothing comes of them.
        let row = min(i / HALF, rows - 1u);
        let n = first + row / SHARE;
        queries[i] = q[(n * HEADS + head0 + row % SHARE) * HALF + i % HALF] * SCALE;
    }
    if t < ROWS {
        state[t] = vec3<f32>(LOWEST, 0.0, 1.0);
    }
    // A thread sums word `word` of the values for ROWS_A_THREAD rows.
    let word = t % HALF;
    let row0 = t / HALF * ROWS_A_THREAD;
    let sums = t / HALF < SLOTS;
    var acc: array<vec2<f32>, ROWS_A_THREAD>;
    for (var key0 = start / KEYS * KEYS; key0 < end; key0 += KEYS) {
        let page = step[pages + key0 / PAGE];
        let slot0 = key0 % PAGE;
        workgroupBarrier();
        score(t, page, kv_head, slot0, key0, position0);
        workgroupBarrier();
        if t < ROWS {
            soften(t);
        }
        workgroupBarrier();
        if sums {
            for (var i = 0u; i < ROWS_A_THREAD; i++) {
                acc[i] *= state[min(row0 + i, ROWS - 1u)].z;
            }
            let keys = min(KEYS, end - key0);
            for (var key = 0u; key < keys; key++) {
                let value = unpack2x16float(cache[value_at(page, kv_head, slot0 + key, word)]);
                for (var i = 0u; i < ROWS_A_THREAD; i++) {
                    acc[i] += scores[min(row0 + i, ROWS - 1u) * KEYS + key] * value;
                }
            }
        }
    }
    if sums {
        for (var i = 0u; i < ROWS_A_THREAD; i++) {
            let row = row0 + i;
            if row < rows {
                let at = ((first + row / SHARE) * HEADS + head0 + row % SHARE) * HALF + word;
                attended[at] = acc[i] / state[row].y;
            }
        }
    }
}

// Scores of one key for every fourth of the rows.
fn score(t: u32, page: u32, kv_head: u32, slot0: u32, key0: u32, position0: u32) {
    let key = t % KEYS;
    let row0 = t / KEYS * (ROWS / 4u);
    if t >= KEYS * 4u {
        return;
    }
    var sum: array<f32, ROWS / 4u>;
    for (var word = 0u; word < HALF; word++) {
        let k = unpack2x16float(cache[key_at(page, kv_head, word, slot0 + key)]);
        for (var i = 0u; i < ROWS / 4u; i++) {
            sum[i] += dot(queries[(row0 + i) * HALF + word], k);
        }
    }
    for (var i = 0u; i < ROWS / 4u; i++) {
        let position = position0 + (row0 + i) / SHARE;
        let begins = select(0u, position + 1u - min(position + 1u, WINDOW), WINDOW > 0u);
        let seen = key0 + key <= position && key0 + key >= begins;
        scores[(row0 + i) * KEYS + key] = select(LOWEST, sum[i], seen);
    }
}

// Turns a row's scores into weights, and brings its state on.
fn soften(row: u32) {
    let old = state[row];
    var most = old.x;
    for (var key = 0u; key < KEYS; key++) {
        most = max(most, scores[row * KEYS + key]);
    }
    var total = 0.0;
    for (var key = 0u; key < KEYS; key++) {
        let score = scores[row * KEYS + key];
        let weight = select(exp(score - most), 0.0, score == LOWEST);
        scores[row * KEYS + key] = weight;
        total += weight;
    }
    let scale = exp(old.x - most);
    state[row] = vec3<f32>(most, old.y * scale + total, scale);
}
