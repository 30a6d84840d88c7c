// FlashAttention with online softmax (Dao et al. 2022) for one token: a workgroup takes SHARE query heads of one key/value
// head, which share its reads, over one split of the context, KEYS keys at a time. Workgroup (group of heads, split, token).

var<workgroup> queries: array<vec2<f32>, SHARE * HALF>;
// Scores of KEYS keys: summed over each part of a head's words, and whole; then weights.
var<workgroup> parts: array<f32, PARTS * SHARE * KEYS>;
var<workgroup> scores: array<f32, SHARE * KEYS>;
var<workgroup> softened: array<f32, SHARE * KEYS>;
// Per head: what the sums so far are to be scaled by; at the end its largest score.
var<workgroup> scales: array<f32, SHARE>;
var<workgroup> sums: array<vec2<f32>, SHARE * THREADS>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let head0 = wg.x * SHARE;
    let kv_head = head0 / (HEADS / KV_HEADS);
    let n = wg.z;
    let splits = step[1];
    let end = row_position(n) + 1u;
    let start = select(0u, end - min(end, WINDOW), WINDOW > 0u);
    // The split's blocks of those that the token sees.
    let first_block = start / KEYS;
    let blocks = (end + KEYS - 1u) / KEYS - first_block;
    let share = (blocks + splits - 1u) / splits;
    let block0 = first_block + min(wg.y * share, blocks);
    let block1 = first_block + min((wg.y + 1u) * share, blocks);

    for (var i = t; i < SHARE * HALF; i += THREADS) {
        queries[i] = q[(n * HEADS + head0) * HALF + i] * SCALE;
    }
    // For scores a thread takes a part of the words of one key; then it has one head's score of that key, and brings this
    // head's state on: its largest score, and the sum of weights of every KEYS-th key.
    let key = t % KEYS;
    let part = t / KEYS;
    let word0 = part * PART_WORDS;
    let mine = part < SHARE;
    var most = LOWEST;
    var total = 0.0;
    // For values a thread takes word `word` of every SLOTS-th key.
    let word = t % HALF;
    let slot0 = t / HALF;
    var acc: array<vec2<f32>, SHARE>;
    for (var block = block0; block < block1; block++) {
        let first = block * KEYS;
        let page = step[row_pages(n) + first / PAGE];
        let slot = first % PAGE;
        // Past the context's end the last key again: its weight there is nothing.
        let last = min(KEYS, end - first) - 1u;
        LOAD_KEYS
        LOAD_VALUES
        workgroupBarrier();
        var sum: array<f32, SHARE>;
        SCORE_KEYS
        for (var i = 0u; i < SHARE; i++) {
            parts[(part * SHARE + i) * KEYS + key] = sum[i];
        }
        workgroupBarrier();
        if mine {
            var whole = 0.0;
            for (var p = 0u; p < PARTS; p++) {
                whole += parts[p * SHARE * KEYS + t];
            }
            scores[t] = select(LOWEST, whole, first + key >= start && first + key < end);
        }
        workgroupBarrier();
        if mine {
            let old = most;
            for (var other = 0u; other < KEYS; other++) {
                most = max(most, scores[part * KEYS + other]);
            }
            let weight = select(exp(scores[t] - most), 0.0, scores[t] == LOWEST);
            let scale = exp(old - most);
            softened[t] = weight;
            total = total * scale + weight;
            if key == 0u {
                scales[part] = scale;
            }
        }
        workgroupBarrier();
        for (var i = 0u; i < SHARE; i++) {
            acc[i] *= scales[i];
        }
        if slot0 < SLOTS {
            ADD_VALUES
        }
    }
    workgroupBarrier();
    for (var i = 0u; i < SHARE; i++) {
        sums[i * THREADS + t] = acc[i];
    }
    if mine {
        scores[t] = total;
        if key == 0u {
            scales[part] = most;
        }
    }
    workgroupBarrier();
    let row = n * splits + wg.y;
    for (var at = t; at < SHARE * HALF; at += THREADS) {
        let i = at / HALF;
        var sum = vec2<f32>();
        for (var s = 0u; s < SLOTS; s++) {
            sum += sums[i * THREADS + s * HALF + at % HALF];
        }
        // A split of a context that has only this one is the result.
        if splits == 1u {
            attended[(n * HEADS + head0) * HALF + at] = sum / head_total(i);
        } else {
            partial[(row * HEADS + head0) * HALF + at] = sum;
        }
    }
    if t < SHARE && splits > 1u {
        weights[row * HEADS + head0 + t] = vec2<f32>(scales[t], head_total(t));
    }
}

fn head_total(i: u32) -> f32 {
    var total = 0.0;
    for (var other = 0u; other < KEYS; other++) {
        total += scores[i * KEYS + other];
    }
    return total;
}

// Adds the products of a word of one key with all heads.
fn score(k: u32, word: u32, sum: ptr<function, array<f32, SHARE>>) {
    let pair = select(vec2<f32>(), unpack2x16float(k), word < HALF);
    for (var i = 0u; i < SHARE; i++) {
        (*sum)[i] += dot(queries[i * HALF + min(word, HALF - 1u)], pair);
    }
}

// Adds a word of one key's value, by the key's weight for each head.
fn add(v: u32, key: u32, acc: ptr<function, array<vec2<f32>, SHARE>>) {
    let value = unpack2x16float(v);
    for (var i = 0u; i < SHARE; i++) {
        (*acc)[i] += softened[i * KEYS + key] * value;
    }
}
