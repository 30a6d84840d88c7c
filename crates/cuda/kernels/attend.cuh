// FlashAttention for one token (Dao et al. 2022; split over the context as in Flash-Decoding): each block takes a
// group of query heads that share a key/value head and a split of the context, reads every key and value once for all
// of them, and keeps a running maximum and sum. The last block of a group to finish merges the splits, in their order.
#pragma once
#include "linear.cuh"

constexpr int SPLIT_TOKENS = 32;     // the fewest tokens that are worth a block
constexpr int MERGED = HEADS_A_GROUP % 4 == 0 ? 4 : HEADS_A_GROUP % 3 == 0 ? 3 : HEADS_A_GROUP % 2 == 0 ? 2 : 1;   // heads merged at a time
constexpr float LOG2E = 1.4426950408889634f;

__device__ __forceinline__ void unpack8(const u16* from, float* to) {
    uint4 f = __ldcg(reinterpret_cast<const uint4*>(from));
    const u32* w = &f.x;
#pragma unroll
    for (int i = 0; i < 4; i++) { to[2 * i] = half_to_float(w[i] & 0xffff); to[2 * i + 1] = half_to_float(w[i] >> 16); }
}

// Element `i` of a head turned by RoPE: dimension i pairs with i + rope_dim/2. `rope` holds cosines, then sines.
__device__ __forceinline__ float roped(const float* head, int i, const float* rope, int dim) {
    const int half = dim / 2;
    const float x = __ldcg(head + i);
    if (i >= dim) return x;
    const float c = __ldcg(rope + i % half), s = __ldcg(rope + half + i % half);
    return i < half ? x * c - __ldcg(head + i + half) * s : x * c + __ldcg(head + i - half) * s;
}

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

// One split of one head group. LANES lanes read one token, 8 dimensions each.
__device__ __forceinline__ void attend_split(const Run& run, int layer, int position, int first, int head, int splits, int split, Shared& sh) {
    constexpr int D = HEAD_DIM, HEADS = HEADS_A_GROUP, LANES = D <= 64 ? 8 : D <= 128 ? 16 : 32;
    const Model& m = run.model;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, part = lane % LANES;
    const int length = position + 1 - first, kv = head * HEADS / (m.heads / m.kv_heads);
    const int begin = first + (int)((i64)length * split / splits), end = first + (int)((i64)length * (split + 1) / splits);
    float* q = reinterpret_cast<float*>(sh.act);             // [HEADS][D]
    float* merge = q + HEADS * D;                            // [MERGED][WARPS][D + 4]
    const float scale = rsqrtf((float)D) * LOG2E;            // scores in powers of two

    const float* queries = run.q + head * HEADS * D;
#pragma unroll 1
    for (int i = threadIdx.x; i < HEADS * D; i += THREADS) q[i] = roped(queries + i / D * D, i % D, run.rope, m.rope_dim) * scale;
    if (end == position + 1) {
        const float* keys = run.q + (m.heads + kv) * D;
        const float* values = keys + m.kv_heads * D;
        u16* to_key = cached(run, layer, 0, kv, position);
        u16* to_value = cached(run, layer, 1, kv, position);
#pragma unroll 1
        for (int i = threadIdx.x; i < D; i += THREADS) {
            to_key[i] = float_to_half(roped(keys, i, run.rope, m.rope_dim));
            to_value[i] = float_to_half(__ldcg(values + i));
        }
    }
    __syncthreads();

    float qr[HEADS][8], o[HEADS][8], most[HEADS], sum[HEADS];
    const bool live = part * 8 < D;
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
        most[h] = -1e30f; sum[h] = 0.f;
#pragma unroll
        for (int i = 0; i < 8; i++) { qr[h][i] = live ? q[h * D + part * 8 + i] : 0.f; o[h][i] = 0.f; }
    }
    constexpr int TOKENS = 32 / LANES;
#pragma unroll 1
    for (int t = begin + warp * TOKENS; t < end; t += WARPS * TOKENS) {
        const int token = t + lane / LANES;
        const bool seen = token < end;
        float k[8] = {}, v[8] = {};
        if (seen && live) {
            unpack8(cached(run, layer, 0, kv, token) + part * 8, k);
            unpack8(cached(run, layer, 1, kv, token) + part * 8, v);
        }
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            float s = 0.f;
#pragma unroll
            for (int i = 0; i < 8; i++) s += qr[h][i] * k[i];
#pragma unroll
            for (int d = LANES / 2; d; d /= 2) s += __shfl_xor_sync(~0u, s, d);
            if (!seen) s = -1e30f;
            const float now = fmaxf(most[h], s), keep = exp2f(most[h] - now), weight = seen ? exp2f(s - now) : 0.f;
            most[h] = now; sum[h] = sum[h] * keep + weight;
#pragma unroll
            for (int i = 0; i < 8; i++) o[h][i] = o[h][i] * keep + weight * v[i];
        }
    }
    // Merge the tokens of a warp, then the warps, then (in the last block of the head) the splits.
    const int splits_at = (head * HEADS * splits + split) * (D + 2), active = min(WARPS, (end - begin + TOKENS - 1) / TOKENS);
#pragma unroll
    for (int h = 0; h < HEADS; h += MERGED) {
        if (h > 0) __syncthreads();
#pragma unroll
        for (int j = 0; j < MERGED; j++) merge_warp<LANES>(most[h + j], sum[h + j], o[h + j], merge + (j * WARPS + warp) * (D + 4));
        __syncthreads();
#pragma unroll 1
        for (int i = threadIdx.x; i < MERGED * D; i += THREADS) {
            const float* from = merge + i / D * WARPS * (D + 4);
            float all = -1e30f, total = 0.f, value = 0.f;
#pragma unroll
            for (int w = 0; w < WARPS; w++) if (w < active) all = fmaxf(all, from[w * (D + 4) + D]);
#pragma unroll
            for (int w = 0; w < WARPS; w++) {
                if (w >= active) continue;
                const float weight = exp2f(from[w * (D + 4) + D] - all);
                total += from[w * (D + 4) + D + 1] * weight;
                value += from[w * (D + 4) + i % D] * weight;
            }
            if (splits == 1) {
                run.a[(head * HEADS + h) * D + i] = value / total;
            } else {
                float* to = run.partial + splits_at + (h + i / D) * splits * (D + 2);
                to[i % D] = value;
                if (i % D == 0) { to[D] = all; to[D + 1] = total; }
            }
        }
    }
    if (splits == 1) return;
    if (threadIdx.x == 0) {
        __threadfence();
        const u32 before = atomicAdd(run.arrived + head, 1);
        __threadfence();
        reinterpret_cast<volatile u32*>(sh.reduce)[0] = before;
        if (before == splits - 1) run.arrived[head] = 0;
    }
    __syncthreads();
    if (reinterpret_cast<volatile u32*>(sh.reduce)[0] != splits - 1) return;
#pragma unroll 1
    for (int i = threadIdx.x; i < HEADS * D; i += THREADS) {
        const float* from = run.partial + (size_t)(head * HEADS + i / D) * splits * (D + 2);
        float all = -1e30f, total = 0.f, value = 0.f;
#pragma unroll 4
        for (int s = 0; s < splits; s++) all = fmaxf(all, __ldcg(from + s * (D + 2) + D));
#pragma unroll 4
        for (int s = 0; s < splits; s++) {
            const float weight = exp2f(__ldcg(from + s * (D + 2) + D) - all);
            total += __ldcg(from + s * (D + 2) + D + 1) * weight;
            value += __ldcg(from + s * (D + 2) + i % D) * weight;
        }
        run.a[head * HEADS * D + i] = value / total;
    }
}

// Head groups share out the blocks: a block takes a split of one, or more where there are more than blocks.
__device__ __forceinline__ void attend(const Run& run, int layer, int position, Shared& sh) {
    const Model& m = run.model;
    const int heads = m.heads / HEADS_A_GROUP;
    const int first = m.window > 0 ? max(0, position + 1 - m.window) : 0, length = position + 1 - first;
    const int splits = max(1, min((int)gridDim.x / heads, (length + SPLIT_TOKENS - 1) / SPLIT_TOKENS));
#pragma unroll 1
    for (int i = blockIdx.x; i < heads * splits; i += gridDim.x) {
        attend_split(run, layer, position, first, i / splits, splits, i % splits, sh);
        __syncthreads();
    }
}
