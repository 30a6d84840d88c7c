// FlashAttention with online softmax (Dao et al. 2022) for one token: a workgroup takes SHARE query heads of one key/value
// head, which share its reads, over one split of the context, a page at a time. Workgroup (group of heads, split, token).

var<workgroup> queries: array<vec2<f32>, SHARE * HALF>;
var<workgroup> scores: array<f32, SHARE * PAGE>;
// Per head: the largest score so far, the sum of weights, and what the last page's sums are to be scaled by.
var<workgroup> state: array<vec3<f32>, SHARE>;
var<workgroup> team: array<f32, SHARE * TEAM>;
var<workgroup> sums: array<vec2<f32>, SHARE * THREADS>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let head0 = wg.x * SHARE;
    let kv_head = head0 / (HEADS / KV_HEADS);
    let n = wg.z;
    let splits = step[1];
    let end = row_position(n) + 1u;
    let start = select(0u, end - min(end, WINDOW), WINDOW > 0u);
    // The split's pages of those that the token sees.
    let first_page = start / PAGE;
    let pages = (end + PAGE - 1u) / PAGE - first_page;
    let share = (pages + splits - 1u) / splits;
    let page0 = first_page + min(wg.y * share, pages);
    let page1 = first_page + min((wg.y + 1u) * share, pages);

    for (var i = t; i < SHARE * HALF; i += THREADS) {
        queries[i] = q[(n * HEADS + head0) * HALF + i] * SCALE;
    }
    if t < SHARE {
        state[t] = vec3<f32>(LOWEST, 0.0, 1.0);
    }
    // In the second half of a page's work a thread takes word `word` of every SLOTS-th token.
    let word = t % HALF;
    let slot0 = t / HALF;
    var acc: array<vec2<f32>, SHARE>;
    for (var page_number = page0; page_number < page1; page_number++) {
        let page = step[row_pages(n) + page_number];
        let first = page_number * PAGE;
        workgroupBarrier();
        for (var slot = t; slot < PAGE; slot += THREADS) {
            score(page, kv_head, slot, first + slot >= start && first + slot < end);
        }
        workgroupBarrier();
        soften(t);
        for (var i = 0u; i < SHARE; i++) {
            acc[i] *= state[i].z;
        }
        if slot0 < SLOTS {
            let slots = min(PAGE, end - first);
            for (var slot = slot0; slot < slots; slot += SLOTS) {
                let value = unpack2x16float(cache[value_at(page, kv_head, slot, word)]);
                for (var i = 0u; i < SHARE; i++) {
                    acc[i] += scores[i * PAGE + slot] * value;
                }
            }
        }
    }
    for (var i = 0u; i < SHARE; i++) {
        sums[i * THREADS + t] = acc[i];
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
        partial[(row * HEADS + head0) * HALF + at] = sum * select(1.0, 1.0 / state[i].y, splits == 1u);
    }
    if t < SHARE {
        weights[row * HEADS + head0 + t] = state[t].xy;
    }
}

// Scores of one token of the page for all heads.
fn score(page: u32, kv_head: u32, slot: u32, seen: bool) {
    var sum: array<f32, SHARE>;
    for (var word = 0u; word < HALF; word++) {
        let key = unpack2x16float(cache[key_at(page, kv_head, word, slot)]);
        for (var i = 0u; i < SHARE; i++) {
            sum[i] += dot(queries[i * HALF + word], key);
        }
    }
    for (var i = 0u; i < SHARE; i++) {
        scores[i * PAGE + slot] = select(LOWEST, sum[i], seen);
    }
}

// Turns the page's scores into weights and brings the heads' states on; TEAM threads a head.
fn soften(t: u32) {
    let i = min(t / TEAM, SHARE - 1u);
    let lane = t % TEAM;
    let mine = t < SHARE * TEAM;
    let old = state[i];
    var most = old.x;
    if mine {
        for (var slot = lane; slot < PAGE; slot += TEAM) {
            most = max(most, scores[i * PAGE + slot]);
        }
        team[t] = most;
    }
    workgroupBarrier();
    var total = 0.0;
    for (var other = 0u; other < TEAM; other++) {
        most = max(most, team[i * TEAM + other]);
    }
    if mine {
        for (var slot = lane; slot < PAGE; slot += TEAM) {
            let score = scores[i * PAGE + slot];
            let weight = select(exp(score - most), 0.0, score == LOWEST);
            scores[i * PAGE + slot] = weight;
            total += weight;
        }
    }
    workgroupBarrier();
    if mine {
        team[t] = total;
    }
    workgroupBarrier();
    if mine && lane == 0u {
        total = 0.0;
        for (var other = 0u; other < TEAM; other++) {
            total += team[t + other];
        }
        let scale = exp(old.x - most);
        state[i] = vec3<f32>(most, old.y * scale + total, scale);
    }
    workgroupBarrier();
}
