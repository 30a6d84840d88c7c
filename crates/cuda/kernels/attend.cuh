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
        const int i = own(j);
        bits[j] = load_word(head + i);
        other_bits[j] = load_word(head + other(j));
        cosine[j] = i < dim ? __ldg(rope + i % half) : 1.f;
        sine[j] = i < half ? -__ldg(rope + half + i) : i < dim ? __ldg(rope + i) : 0.f;
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

// Joins what the warps of a block hold of MERGED heads, [MERGED][WARPS][D + 4]: behind each warp's values, largest score and sum
// comes its weight, and in the first warp's the logarithm of the whole sum.
__device__ __forceinline__ void weigh_warps(float* merge) {
    constexpr int D = HEAD_DIM, PLACES = MERGED * WARPS;
    if (threadIdx.x / 32 * 32 >= PLACES) return;
    float* from = merge + min((int)threadIdx.x, PLACES - 1) * (D + 4);
    float all = from[D];
    for (int d = WARPS / 2; d; d /= 2) all = fmaxf(all, __shfl_xor_sync(~0u, all, d));
    const float weight = exp2f(from[D] - all);
    float total = from[D + 1] * weight;
    for (int d = WARPS / 2; d; d /= 2) total += __shfl_xor_sync(~0u, total, d);
    if (threadIdx.x >= PLACES) return;
    from[D + 2] = weight / total;
    if (threadIdx.x % WARPS == 0) from[D + 3] = all + log2f(total);
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
        send(out + first + i, value / total, wait.writes(in));
    }
}

// One split of one head group. LANES lanes read one token, 8 dimensions each.
__device__ __forceinline__ void attend_split(const Run& run, const Instruction& in, int position, int first, int head, int splits, int split, Shared& sh, const Wait& wait) {
    constexpr int D = HEAD_DIM, HEADS = HEADS_A_GROUP, LANES = D <= 64 ? 8 : D <= 128 ? 16 : 32, TOKENS = 32 / LANES;
    const Model& m = run.model;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, part = lane % LANES;
    const int length = position + 1 - first, kv = head * HEADS / (m.heads / m.kv_heads);
    const int begin = first + (int)((i64)length * split / splits), end = first + (int)((i64)length * (split + 1) / splits);
    float* q = reinterpret_cast<float*>(sh.act);             // [HEADS][D]
    float* merge = q + HEADS * D;                            // [MERGED][WARPS][D + 4]
    const auto now = [&](int value) { return kept_alone(reinterpret_cast<char*>(merge) + value * ROW_BYTES); };   // this token's
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
    __syncthreads();   // all are done with `now`, where results are merged
    // Merge the tokens of a warp, then the warps, then the splits.
    Stamped* partial = run.partial + (size_t)head * HEADS * splits * (D + 1);   // [HEADS][splits][D + 1]
    float* out = in.out + head * HEADS * D;
#pragma unroll
    for (int h = 0; h < HEADS; h += MERGED) {
        if (h > 0) __syncthreads();
#pragma unroll
        for (int j = 0; j < MERGED; j++) merge_warp<LANES>(most[h + j], sum[h + j], o[h + j], merge + (j * WARPS + warp) * (D + 4));
        __syncthreads();
        weigh_warps(merge);
        __syncthreads();
#pragma unroll 1
        for (int i = threadIdx.x; i < MERGED * D; i += THREADS) {
            const float* from = merge + i / D * WARPS * (D + 4);
            float value = 0.f;
#pragma unroll
            for (int w = 0; w < WARPS; w++) value += from[w * (D + 4) + D + 2] * from[w * (D + 4) + i % D];
            if (splits == 1) {
                send(out + h * D + i, value, writes);
                continue;
            }
            Stamped* to = partial + ((h + i / D) * splits + split) * (D + 1);
            send_stamped(to + i % D, value, stamp);
            if (i % D == 0) send_stamped(to + D, from[D + 3], stamp);
        }
    }
    if (splits == 1) return;
    __syncthreads();
    merge_splits(partial, out, in, splits, split, q, wait);
}

// Head groups share out the blocks: a block takes a split of one, or more where there are more than blocks.
__device__ __forceinline__ void attend(const Run& run, const Instruction& in, int position, Shared& sh, const Wait& wait) {
    const Model& m = run.model;
    const int heads = m.heads / HEADS_A_GROUP;
    const int first = m.window > 0 ? max(0, position + 1 - m.window) : 0, length = position + 1 - first;
    const int splits = max(1, min((int)gridDim.x / heads, (length + SPLIT_TOKENS - 1) / SPLIT_TOKENS));
#pragma unroll 1
    for (int i = blockIdx.x; i < heads * splits; i += gridDim.x) {
        attend_split(run, in, position, first, i / splits, splits, i % splits, sh, wait);
        __syncthreads();
    }
}
