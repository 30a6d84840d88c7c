// FlashAttention for one token (Dao et al. 2022; split over the context as in Flash-Decoding): each block takes a
// group of query heads that share a key/value head and a split of the context, reads every key and value once for all
// of them, and keeps a running maximum and sum. Where there are several splits, their blocks pass what they found on to each
// other, and each merges a share of the outputs, the splits in their order.
#pragma once
#include "linear.cuh"

constexpr int SPLIT_TOKENS = 32;     // the fewest tokens that are worth a block
constexpr int MERGED = HEADS_A_GROUP % 4 == 0 ? 4 : HEADS_A_GROUP % 3 == 0 ? 3 : HEADS_A_GROUP % 2 == 0 ? 2 : 1;   // heads merged at a time
constexpr float LOG2E = 1.4426950408889634f;

__device__ __forceinline__ void unpack8(const uint4& f, float* to) {
    const u32* w = &f.x;
#pragma unroll
    for (int i = 0; i < 4; i++) { to[2 * i] = half_to_float(w[i] & 0xffff); to[2 * i + 1] = half_to_float(w[i] >> 16); }
}

// An element of a head to be turned by RoPE: dimension i pairs with i + rope_dim/2. Its words are asked for when it is made, and
// waited for when it is turned, so that many can be on their way.
struct Turned {
    const float *own, *other;
    u32 bits, other_bits;
    float cosine, sine;

    // Element `i` of `head`; `rope` holds cosines, then sines. Elements from `dim` on are not turned.
    __device__ __forceinline__ Turned(const float* head, int i, const float* rope, int dim) {
        const int half = dim / 2;
        own = head + i;
        other = i >= dim ? own : i < half ? own + half : own - half;
        bits = load_word(own);
        other_bits = load_word(other);
        cosine = i < dim ? __ldg(rope + i % half) : 1.f;
        sine = i < half ? -__ldg(rope + half + i) : i < dim ? __ldg(rope + i) : 0.f;
    }

    __device__ __forceinline__ float value(u32 tag, const Wait& wait) const {
        return settle(bits, own, tag, wait) * cosine + settle(other_bits, other, tag, wait) * sine;
    }
};

__device__ __forceinline__ u16* cached(const Run& run, int layer, int value, int head, int token) {
    const Model& m = run.model;
    size_t row = ((((size_t)__ldg(run.pages + token / PAGE) * run.layers + layer) * 2 + value) * m.kv_heads + head) * PAGE + token % PAGE;
    return run.cache + row * HEAD_DIM;
}

// Joins what a warp's lanes hold of one head, and writes it to shared memory: the values, the largest score, the sum.
template <int LANES> __device__ __forceinline__ void merge_warp(float most, float sum, float (&o)[8], float* to) {
    const int part = threadIdx.x % LANES;
#pragma unroll
    for (int d = LANES; d < 32; d *= 2) {
        const float other = __shfl_xor_sync(~0u, most, d), now = fmaxf(most, other);
        const float mine = exp2f(most - now), theirs = exp2f(other - now);
        sum = sum * mine + __shfl_xor_sync(~0u, sum, d) * theirs;
#pragma unroll
        for (int i = 0; i < 8; i++) o[i] = o[i] * mine + __shfl_xor_sync(~0u, o[i], d) * theirs;
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
    u16* now = reinterpret_cast<u16*>(merge);                // this token's key and value, [2][D]
    const float scale = rsqrtf((float)D) * LOG2E;            // scores in powers of two
    const u32 reads = wait.reads(in), writes = wait.writes(in), stamp = wait.stamp(in);

    // The first keys and values are older than what the block waits for.
    const bool live = part * 8 < D;
    uint4 key = make_uint4(0, 0, 0, 0), value = key;
    const auto ask = [&](int token) {
        if (token >= end || token == position || !live) return;
        key = __ldcg(reinterpret_cast<const uint4*>(cached(run, in.layer, 0, kv, token) + part * 8));
        value = __ldcg(reinterpret_cast<const uint4*>(cached(run, in.layer, 1, kv, token) + part * 8));
    };
    const auto ask_l2 = [&](int token) {
        if (token >= end || token == position || !live) return;
        asm volatile("prefetch.global.L2 [%0];" :: "l"(cached(run, in.layer, 0, kv, token) + part * 8));
        asm volatile("prefetch.global.L2 [%0];" :: "l"(cached(run, in.layer, 1, kv, token) + part * 8));
    };
    int t = begin + warp * TOKENS + lane / LANES;
    ask(t);
    for (int ahead = 1; ahead <= 2; ahead++) ask_l2(t + ahead * WARPS * TOKENS);

    // Queries by all threads; in the block of the last split, this token's key and value too.
    const float* queries = in.in + head * HEADS * D;
    const float* keys = in.in + (m.heads + kv) * D;
    const float* values = keys + m.kv_heads * D;
    const bool last = end == position + 1;
#pragma unroll 1
    for (int i = threadIdx.x; i < max(HEADS, 2) * D; i += THREADS) {
        const int d = i % D;
        const bool is_key = last && i < D, is_value = last && i >= D && i < 2 * D;
        const Turned turned(i < HEADS * D ? queries + i - d : keys, d, run.rope, m.rope_dim);
        const Turned own(is_value ? values : keys, d, run.rope, is_value ? 0 : m.rope_dim);
        if (i < HEADS * D) q[i] = turned.value(reads, wait) * scale;
        if (is_key || is_value) now[i] = *(cached(run, in.layer, is_value, kv, position) + d) = float_to_half(own.value(reads, wait));
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
            key = *reinterpret_cast<const uint4*>(now + part * 8);
            value = *reinterpret_cast<const uint4*>(now + D + part * 8);
        }
        float k[8], v[8], scores[HEADS];
        unpack8(key, k);
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            float s = 0.f;
#pragma unroll
            for (int i = 0; i < 8; i++) s += qr[h][i] * k[i];
#pragma unroll
            for (int d = LANES / 2; d; d /= 2) s += __shfl_xor_sync(~0u, s, d);
            scores[h] = s;
        }
        unpack8(value, v);
        t += WARPS * TOKENS;
        ask(t);
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            const float s = seen ? scores[h] : -1e30f;
            const float largest = fmaxf(most[h], s), keep = exp2f(most[h] - largest), weight = seen ? exp2f(s - largest) : 0.f;
            most[h] = largest; sum[h] = sum[h] * keep + weight;
#pragma unroll
            for (int i = 0; i < 8; i++) o[h][i] = o[h][i] * keep + weight * v[i];
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
