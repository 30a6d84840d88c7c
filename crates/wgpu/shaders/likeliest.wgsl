// The token with the largest logit of the first row, the lowest one of several; NOTHING where a logit is NaN or infinity, or
// all are negative infinity. It goes to chosen[0], from where it becomes the next token, and to the place that the step names.

const NOTHING: u32 = 0xffffffffu;
const READS: u32 = 8u;

var<workgroup> keys: array<u32, THREADS>;
var<workgroup> tokens: array<u32, THREADS>;

// Larger numbers have larger keys, all above 0; both zeroes have the same. Negative infinity has 0, infinity and NaN have the
// largest of all. In integers, since compilers may take floats for finite.
fn key(logit: u32) -> u32 {
    let magnitude = logit & 0x7fffffffu;
    if logit == 0xff800000u {
        return 0u;
    }
    if magnitude >= 0x7f800000u {
        return NOTHING;
    }
    if magnitude == 0u {
        return 0x80000000u;
    }
    return select(logit | 0x80000000u, ~logit, logit >= 0x80000000u);
}

@compute @workgroup_size(THREADS)
fn main(@builtin(local_invocation_index) t: u32) {
    var most = 0u;
    var best = NOTHING;
    for (var first = t; first < VOCAB; first += READS * THREADS) {
        // All reads are on their way before the first is looked at.
        var read: array<u32, READS>;
        for (var i = 0u; i < READS; i++) {
            read[i] = logits[min(first + i * THREADS, VOCAB - 1u)];
        }
        for (var i = 0u; i < READS; i++) {
            let k = key(read[i]);
            if k > most {
                most = k;
                best = min(first + i * THREADS, VOCAB - 1u);
            }
        }
    }
    keys[t] = most;
    tokens[t] = best;
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if t < half {
            let other = keys[t + half];
            if other > keys[t] || (other == keys[t] && tokens[t + half] < tokens[t]) {
                keys[t] = other;
                tokens[t] = tokens[t + half];
            }
        }
    }
    workgroupBarrier();
    if t == 0u {
        let token = select(tokens[0], NOTHING, keys[0] == NOTHING);
        chosen[0] = token;
        chosen[chosen_at()] = token;
    }
}
