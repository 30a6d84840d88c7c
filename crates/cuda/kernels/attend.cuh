// FlashAttention for one token (Dao et al. 2022; split over the context as in Flash-Decoding): each block takes a
// group of query heads that share a key/value head and a split of the context, reads every key and value once for all
// of them, and keeps a running maximum and sum. Where there are several splits, their blocks pass what they found on to each
// other, and each merges a share of the outputs, the splits in their order.
#pragma once
#include "cache.cuh"
#include "linear.cuh"

constexpr int SPLIT_TOKENS = 32;     // the fewest tokens that are worth a block
constexpr int MERGED = HEADS_A_GROUP % 4 == 0 ? 4 : HEADS_A_GROUP % 3 == 0 ? 3 : HEADS_A_GROUP % 2 == 0 ? 2 : 1;   // heads merged at a time
constexpr float LOG2E = 1.4426950408889634f;

// a b + c d, rounded alike wherever it is compiled: both executions of a program give the same bits.
__device__ __forceinline__ float two_products(float a, float b, float c, float d) { return __fmaf_rn(a, b, __fmul_rn(c, d)); }

// Waits for a head and turns its first `dim` numbers by RoPE: number i pairs with i + dim/2. `rope` holds cosines, then sines.
__device__ __forceinline__ void receive_head(const float* head, const float* rope, int dim, u32 tag, const Wait& wait, Head& v) {
    const int half = dim / 2;
    const auto own = [&](int j) { return min(32 * j + (int)threadIdx.x % 32, HEAD_DIM - 1); };
    const auto other = [&](int j) { const int i = own(j); return i >= dim ? i : i < half ? i + half : i - half; };
    // All is asked for before any of it is waited for.
    u32 bits[HEAD_WORDS], other_bits[HEAD_WORDS];
    float cosine[HEAD_WORDS], sine[HEAD_WORDS];
#pragma unroll
    for (int j = 0; j < HEAD_WORDS; j++) {
        const int i = own(j), pair = i < half ? i : i - half;
        bits[j] = load_word(head + i);
        other_bits[j] = load_word(head + other(j));
        cosine[j] = i < dim ? __ldg(rope + pair) : 1.f;
        sine[j] = i < dim ? __ldg(rope + half + pair) : 0.f;
        if (i < half) sine[j] = -sine[j];
    }
#pragma unroll
    for (int j = 0; j < HEAD_WORDS; j++) {
        v[j] = two_products(settle(bits[j], head + own(j), tag, wait), cosine[j], settle(other_bits[j], head + other(j), tag, wait), sine[j]);
        if (HEAD_DIM % 32 && 32 * j + threadIdx.x % 32 >= HEAD_DIM) v[j] = 0.f;
    }
}

__device__ __forceinline__ Kept cached(const Run& run, int layer, int value, int head, int token) {
    return kept_at(run.cache, run.layers, run.model.kv_heads, __ldg(run.pages + token / PAGE), layer, value, head, token);
}

// Joins what a warp's lanes hold of one head, and writes it to shared memory: the values, the largest score, the sum.
template <int LANES> __device__ __forceinline__ void merge_warp(float most, float sum, float (&o)[8], float* to) {
    const int part = threadIdx.x % LANES;
#pragma unroll
    for (int d = LANES; d < 32; d *= 2) {
        const float other = __shfl_xor_sync(~0u, most, d), now = fmaxf(most, other);
        const float mine = exp2f(most - now), theirs = exp2f(other - now);
        sum = two_products(sum, mine, __shfl_xor_sync(~0u, sum, d), theirs);
#pragma unroll
        for (int i = 0; i < 8; i++) o[i] = two_products(o[i], mine, __shfl_xor_sync(~0u, o[i], d), theirs);
        most = now;
    }
    if (threadIdx.x % 32 >= LANES || part * 8 >= HEAD_DIM) return;
    reinterpret_cast<float4*>(to)[part * 2] = make_float4(o[0], o[1], o[2], o[3]);
    reinterpret_cast<float4*>(to)[part * 2 + 1] = make_float4(o[4], o[5], o[6], o[7]);
    if (part == 0) { to[HEAD_DIM] = most; to[HEAD_DIM + 1] = sum; }
}

// Joins what the warps of a block hold of MERGED heads, [MERGED][WARPS][D + 4]: behind each warp's values its largest score and
// its sum. A warp takes 32 dimensions of a head, and tells `found` about (head, dimension, value, logarithm of the whole sum).
template <class Found> __device__ __forceinline__ void merge_warps(const float* merge, const Found& found) {
    constexpr int D = HEAD_DIM;
    const int lane = threadIdx.x % 32;
#pragma unroll 1
    for (int part = threadIdx.x / 32; part < MERGED * HEAD_WORDS; part += WARPS) {
        const int head = part / HEAD_WORDS, d = part % HEAD_WORDS * 32 + lane;
        const float* from = merge + head * WARPS * (D + 4);
        // A lane weighs a warp.
        const float* its = from + lane % WARPS * (D + 4) + D;
        float all = its[0];
        for (int o = WARPS / 2; o; o /= 2) all = fmaxf(all, __shfl_xor_sync(~0u, all, o));
        const float weight = exp2f(its[0] - all);
        float total = its[1] * weight, value = 0.f;
        for (int o = WARPS / 2; o; o /= 2) total += __shfl_xor_sync(~0u, total, o);
#pragma unroll
        for (int w = 0; w < WARPS; w++) value = __fmaf_rn(__shfl_sync(~0u, weight, w), from[w * (D + 4) + min(d, D - 1)], value);
        if (d < D) found(head, d, __fdividef(value, total), all + log2f(total));
    }
}

// What the splits of a head group merge: each block a share of the group's outputs.
__device__ __forceinline__ void merge_splits(const Stamped* partial, float* out, const Instruction& in, int splits, int split, float* memory, const Wait& wait) {
    constexpr int D = HEAD_DIM, HEADS = HEADS_A_GROUP;
    const int first = HEADS * D * split / splits, count = HEADS * D * (split + 1) / splits - first;
    const u32 stamp = wait.stamp(in);
    float* sums = memory;                      // logarithms, [splits][HEADS]
    float* values = memory + splits * HEADS;   // [splits][count]
    const auto value_at = [&](int i) {
        const int s = i / count, at = first + i % count;
        return partial + (at / D * splits + s) * (D + 1) + at % D;
    };
    const auto sum_at = [&](int i) { return partial + (i % HEADS * splits + i / HEADS) * (D + 1) + D; };
    // Two values and a sum on their way: mostly all that a thread takes.
    const int all_values = splits * count, all_sums = splits * HEADS;
#pragma unroll 1
    for (int i = threadIdx.x, j = THREADS - 1 - threadIdx.x; i < all_values || j < all_sums; i += 2 * THREADS, j += THREADS) {
        const Stamped *one = value_at(min(i, all_values - 1)), *two = value_at(min(i + THREADS, all_values - 1)), *sum = sum_at(min(j, all_sums - 1));
        const u64 one_word = load_stamped(one), two_word = load_stamped(two), sum_word = load_stamped(sum);
        if (i < all_values) values[i] = settle_stamped(one_word, one, stamp, wait);
        if (i + THREADS < all_values) values[i + THREADS] = settle_stamped(two_word, two, stamp, wait);
        if (j < all_sums) sums[j] = settle_stamped(sum_word, sum, stamp, wait);
    }
    __syncthreads();
#pragma unroll 1
    for (int i = threadIdx.x; i < count; i += THREADS) {
        const float* sum = sums + (first + i) / D;
        float all = -1e30f, total = 0.f, value = 0.f;
#pragma unroll 8
        for (int s = 0; s < splits; s++) all = fmaxf(all, sum[s * HEADS]);
#pragma unroll 8
        for (int s = 0; s < splits; s++) {
            const float weight = exp2f(sum[s * HEADS] - all);
            total += weight;
            value += values[s * count + i] * weight;
        }
        send(out + first + i, __fdividef(value, total), wait.writes(in));
    }
}

// What a block attends to: tokens [begin, end) for a group of heads, a split of several; nothing where there is no such group.
// Worked out once a run, since divisions would be waited for.
struct Part { int head, kv_head, split, splits, begin, end; };

// Head groups share out the blocks: a block takes part `blockIdx.x`, and more where there are more of them than blocks.
__device__ __forceinline__ Part part_of(const Model& m, int position, u32 part) {
    const u32 first = m.window > 0 ? max(0, position + 1 - m.window) : 0, length = position + 1 - first, heads = m.heads / HEADS_A_GROUP;
    const u32 splits = max(1u, min(gridDim.x / heads, (length + SPLIT_TOKENS - 1) / SPLIT_TOKENS));
    const u32 head = part / splits, split = part % splits;
    return {(int)head, (int)head * HEADS_A_GROUP / (m.heads / m.kv_heads), (int)split, (int)splits, (int)(first + length * split / splits), (int)(first + length * (split + 1) / splits)};
}

// One split of one head group. LANES lanes read one token, 8 dimensions each.
__device__ __forceinline__ void attend_split(const Run& run, const Instruction& in, int position, const Part& of, Shared& sh, const Wait& wait) {
    constexpr int D = HEAD_DIM, HEADS = HEADS_A_GROUP, LANES = D <= 64 ? 8 : D <= 128 ? 16 : 32, TOKENS = 32 / LANES;
    const Model& m = run.model;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, part = lane % LANES;
    const int head = of.head, kv = of.kv_head, splits = of.splits, begin = of.begin, end = of.end;
    float* q = reinterpret_cast<float*>(sh.act);             // [HEADS][D]
    char* now_at = reinterpret_cast<char*>(q + HEADS * D);   // this token's key and value
    const auto now = [&](int value) { return kept_alone(now_at + value * ROW_BYTES); };
    float* merge = reinterpret_cast<float*>(now_at + 2 * ROW_BYTES);   // [MERGED][WARPS][D + 4]
    const float scale = rsqrtf((float)D) * LOG2E;            // scores in powers of two
    const u32 reads = wait.reads(in), writes = wait.writes(in), stamp = wait.stamp(in);

    // The first keys and values are older than what the block waits for.
    const bool live = part * 8 < D;
    Eight key, value;
    const auto ask = [&](int token) {
        if (token >= end || token == position || !live) return;
        key = load_eight(cached(run, in.layer, 0, kv, token), part);
        value = load_eight(cached(run, in.layer, 1, kv, token), part);
    };
    const auto ask_l2 = [&](int token) {
        if (token >= end || token == position || !live) return;
        prefetch_eight(cached(run, in.layer, 0, kv, token), part);
        prefetch_eight(cached(run, in.layer, 1, kv, token), part);
    };
    int t = begin + warp * TOKENS + lane / LANES;
    ask(t);
    for (int ahead = 1; ahead <= 2; ahead++) ask_l2(t + ahead * WARPS * TOKENS);

    // A warp takes a head: of the queries or, in the block of the last split, this token's key or value.
    const float* queries = in.in + head * HEADS * D;
    const float* keys = in.in + (m.heads + kv) * D;
    const float* values = keys + m.kv_heads * D;
    const int rows = end == position + 1 ? HEADS + 2 : HEADS;
#pragma unroll 1
    for (int row = warp; row < rows; row += WARPS) {
        const bool is_value = row == HEADS + 1;
        Head v;
        receive_head(row < HEADS ? queries + row * D : is_value ? values : keys, run.rope, is_value ? 0 : m.rope_dim, reads, wait, v);
        if (KV_Q8 && !is_value) head_hadamard(v);
        if (row < HEADS) {
#pragma unroll
            for (int j = 0; j < HEAD_WORDS; j++)
                if (32 * j + lane < D) q[row * D + 32 * j + lane] = v[j] * scale;
        } else {
            keep(v, now(is_value), cached(run, in.layer, is_value, kv, position));
        }
    }
    __syncthreads();

    float qr[HEADS][8], o[HEADS][8], most[HEADS], sum[HEADS];
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
        most[h] = -1e30f; sum[h] = 0.f;
#pragma unroll
        for (int i = 0; i < 8; i++) { qr[h][i] = live ? q[h * D + part * 8 + i] : 0.f; o[h][i] = 0.f; }
    }
#pragma unroll 1
    for (int rest = end - begin - warp * TOKENS; rest > 0; rest -= WARPS * TOKENS) {
        const bool seen = t < end;
        if (t == position && live) {
            key = shared_eight(now(0), part);
            value = shared_eight(now(1), part);
        }
        float k[8], v[8], scores[HEADS];
        key.unpack(k);
        const float key_scale = key.scale();
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            float s = 0.f;
#pragma unroll
            for (int i = 0; i < 8; i++) s += qr[h][i] * k[i];
            s *= key_scale;
#pragma unroll
            for (int d = LANES / 2; d; d /= 2) s += __shfl_xor_sync(~0u, s, d);
            scores[h] = s;
        }
        value.unpack(v);
        const float value_scale = value.scale();
        t += WARPS * TOKENS;
        ask(t);
        bool grows = false;
#pragma unroll
        for (int h = 0; h < HEADS; h++) grows |= seen && scores[h] > most[h];
        // A new largest score becomes rare soon.
        if (__any_sync(~0u, grows)) {
#pragma unroll
            for (int h = 0; h < HEADS; h++) {
                const float largest = seen ? fmaxf(most[h], scores[h]) : most[h], keep = exp2f(most[h] - largest);
                most[h] = largest; sum[h] *= keep;
#pragma unroll
                for (int i = 0; i < 8; i++) o[h][i] *= keep;
            }
        }
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            const float weight = seen ? exp2f(scores[h] - most[h]) : 0.f, scaled = weight * value_scale;
            sum[h] += weight;
#pragma unroll
            for (int i = 0; i < 8; i++) o[h][i] = __fmaf_rn(scaled, v[i], o[h][i]);
        }
    }
    // Merge the tokens of a warp, then the warps, then the splits.
    Stamped* partial = run.partial + (size_t)head * HEADS * splits * (D + 1);   // [HEADS][splits][D + 1]
    float* out = in.out + head * HEADS * D;
#pragma unroll
    for (int h = 0; h < HEADS; h += MERGED) {
        if (h > 0) __syncthreads();
#pragma unroll
        for (int j = 0; j < MERGED; j++) merge_warp<LANES>(most[h + j], sum[h + j], o[h + j], merge + (j * WARPS + warp) * (D + 4));
        __syncthreads();
        merge_warps(merge, [&](int j, int d, float value, float sum) {
            if (splits == 1) {
                send(out + (h + j) * D + d, value, writes);
                return;
            }
            Stamped* to = partial + ((h + j) * splits + of.split) * (D + 1);
            send_stamped(to + d, value, stamp);
            if (d == 0) send_stamped(to + D, sum, stamp);
        });
    }
    if (splits == 1) return;
    __syncthreads();
    merge_splits(partial, out, in, splits, of.split, q, wait);
}

// `part`: the block's first.
__device__ __forceinline__ void attend(const Run& run, const Instruction& in, int position, Part part, Shared& sh, const Wait& wait) {
    const int parts = run.model.heads / HEADS_A_GROUP * part.splits;
#pragma unroll 1
    for (int i = blockIdx.x; i < parts;) {
        attend_split(run, in, position, part, sh, wait);
        i += gridDim.x;
        if (i >= parts) return;
        __syncthreads();
        part = part_of(run.model, position, i);
    }
}
