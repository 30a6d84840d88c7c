// FlashAttention over a batch (Dao et al. 2022), on the tensor cores: a block takes a tile of consecutive tokens of one
// sequence and a group of query heads that share a key/value head, as 64 rows of queries, and walks over the keys that
// they see with an online softmax.
#pragma once
#include "cache.cuh"
#include "gemm.cuh"

constexpr int FLASH_ROWS = 64, FLASH_KEYS = 64, FLASH_THREADS = 128;
constexpr float NOTHING = -1e30f;                           // the score of a key that is not seen
constexpr int FLASH_COLS = (HEAD_DIM + 63) / 64 * 64;      // of a row in shared memory, the rest of it zero
constexpr int FLASH_TOKENS = FLASH_ROWS / HEADS_A_GROUP;   // the most tokens of a tile

// Rows of keys lie as the activations of a linear do; values, which `ldmatrix` turns, want eight rows in eight banks.
__device__ __forceinline__ int key_at(int row, int chunk) { return row * FLASH_COLS * 2 + swapped(row, chunk); }
__device__ __forceinline__ int value_at(int row, int chunk) { return row * FLASH_COLS * 2 + (chunk ^ (row & 7)) * 16; }

__device__ __forceinline__ u32 pack_half(float a, float b) {
    u32 h;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(h) : "f"(b), "f"(a));
    return h;
}

__device__ __forceinline__ Kept cached(const Batch& b, int sequence, int layer, int value, int head, int token) {
    const u32 page = __ldg(b.pages + (size_t)sequence * b.page_list + token / PAGE);
    return kept_at(b.cache, b.layers, b.model.kv_heads, page, layer, value, head, token);
}

// Brings 64 keys or values from token `from` on to shared memory, in f16; those from `end` on are zero. What is kept in f16 is
// copied behind, what is kept in 8 bits is there when this returns.
template <bool VALUES> __device__ __forceinline__ void fetch_keys(const Batch& b, int sequence, int layer, int head, int from, int end, char* to) {
    constexpr int CHUNKS = HEAD_DIM / 8, ITEMS = FLASH_KEYS * CHUNKS;
    const Kept rows = cached(b, sequence, layer, VALUES, head, from);
    const auto place = [&](int i) { return to + (VALUES ? value_at(i / CHUNKS, i % CHUNKS) : key_at(i / CHUNKS, i % CHUNKS)); };
#if KV_Q8
    constexpr int TURNS = (ITEMS + FLASH_THREADS - 1) / FLASH_THREADS;
    Eight kept[TURNS];
#pragma unroll
    for (int turn = 0; turn < TURNS; turn++) {
        const int i = turn * FLASH_THREADS + threadIdx.x, row = i / CHUNKS;
        if (i < ITEMS && from + row < end) kept[turn] = load_eight({rows.codes + row * HEAD_DIM, rows.scales + row * SCALES}, i % CHUNKS);
    }
#pragma unroll
    for (int turn = 0; turn < TURNS; turn++) {
        const int i = turn * FLASH_THREADS + threadIdx.x;
        float v[8];
        kept[turn].unpack(v);
        const float scale = kept[turn].scale();
        const auto pair = [&](int j) { return pack_half(v[j] * scale, v[j + 1] * scale); };
        if (i < ITEMS) *reinterpret_cast<uint4*>(place(i)) = make_uint4(pair(0), pair(2), pair(4), pair(6));
    }
#else
#pragma unroll 8
    for (int i = threadIdx.x; i < ITEMS; i += FLASH_THREADS)
        copy16((u32)__cvta_generic_to_shared(place(i)), rows.codes + i * 16, from + i / CHUNKS < end);
#endif
    commit();
}

// Scores of a warp's 16 rows against the 64 keys.
__device__ __forceinline__ void score(const u32 (&q)[FLASH_COLS / 32][8], const char* keys, float (&s)[8][4]) {
    const int row = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) s[n][i] = 0.f;
#pragma unroll
    for (int c = 0; c < FLASH_COLS / 32; c++)
#pragma unroll
        for (int n = 0; n < 8; n++) {
            const uint4 k = *reinterpret_cast<const uint4*>(keys + key_at(n * 8 + row, c * 4 + t));
            mma(s[n], q[c][0], q[c][4], q[c][1], q[c][5], k.x, k.y);
            mma(s[n], q[c][2], q[c][6], q[c][3], q[c][7], k.z, k.w);
        }
}

// Adds weights times values to the output.
__device__ __forceinline__ void weigh(const float (&p)[8][4], u32 values, float (&o)[(HEAD_DIM + 15) / 16 * 2][4]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < FLASH_KEYS / 16; j++) {
        const u32 a0 = pack_half(p[2 * j][0], p[2 * j][1]), a1 = pack_half(p[2 * j][2], p[2 * j][3]),
                  a2 = pack_half(p[2 * j + 1][0], p[2 * j + 1][1]), a3 = pack_half(p[2 * j + 1][2], p[2 * j + 1][3]);
#pragma unroll
        for (int d = 0; d < (HEAD_DIM + 15) / 16; d++) {
            u32 b0, b1, b2, b3;
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                         : "=r"(b0), "=r"(b1), "=r"(b2), "=r"(b3) : "r"(values + value_at(16 * j + lane % 16, 2 * d + lane / 16)) : "memory");
            mma(o[2 * d], a0, a1, a2, a3, b0, b1);
            mma(o[2 * d + 1], a0, a1, a2, a3, b2, b3);
        }
    }
}

// One step of the online softmax over two rows of a lane (its own and the one 8 below): scores become weights.
__device__ __forceinline__ void soften(float (&s)[8][4], float (&most)[2], float (&sum)[2], float (&o)[(HEAD_DIM + 15) / 16 * 2][4]) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float now = most[h];
#pragma unroll
        for (int n = 0; n < 8; n++) now = fmaxf(now, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
        now = fmaxf(now, __shfl_xor_sync(~0u, now, 1));
        now = fmaxf(now, __shfl_xor_sync(~0u, now, 2));
        // Where a row has seen no key yet, all weights are 2^-inf.
        const float base = now == NOTHING ? 0.f : now, keep = exp2f(most[h] - base);
        most[h] = now;
        sum[h] *= keep;
#pragma unroll
        for (int n = 0; n < 8; n++)
#pragma unroll
            for (int i = 2 * h; i < 2 * h + 2; i++) { s[n][i] = exp2f(s[n][i] - base); sum[h] += s[n][i]; }
#pragma unroll
        for (int d = 0; d < (HEAD_DIM + 15) / 16 * 2; d++) { o[d][2 * h] *= keep; o[d][2 * h + 1] *= keep; }
    }
}

// Grid: tiles of tokens, groups of heads. Queries are scaled for powers of two.
__device__ __forceinline__ void flash(const Batch& b, int layer, char* shared) {
    constexpr int G = HEADS_A_GROUP, D = HEAD_DIM, BYTES = FLASH_ROWS * FLASH_COLS * 2;
    const int4 tile = b.tiles[blockIdx.x];
    const int first = tile.x, tokens = tile.y, position = tile.z, sequence = tile.w, group = blockIdx.y;
    const int width = b.model.heads * D, head = group * G / (b.model.heads / b.model.kv_heads);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = lane / 4, t = lane % 4;
    char *keys = shared + BYTES, *values = keys + BYTES;
    for (int i = threadIdx.x; i < 3 * BYTES / 16; i += FLASH_THREADS) reinterpret_cast<uint4*>(shared)[i] = make_uint4(0, 0, 0, 0);
    __syncthreads();
    for (int i = threadIdx.x; i < tokens * G * (D / 8); i += FLASH_THREADS) {
        const int r = i / (D / 8), chunk = i % (D / 8);
        const u16* from = b.q + (size_t)(first + r / G) * width + (group * G + r % G) * D + chunk * 8;
        *reinterpret_cast<uint4*>(shared + key_at(r, chunk)) = *reinterpret_cast<const uint4*>(from);
    }
    const int end = position + tokens, window = b.model.window;
    const int from = (window > 0 ? max(0, position + 1 - window) : 0) / FLASH_KEYS * FLASH_KEYS;
    fetch_keys<false>(b, sequence, layer, head, from, end, keys);
    __syncthreads();
    u32 q[FLASH_COLS / 32][8];
    int at[2];   // positions of this lane's rows
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int r = warp * 16 + 8 * h + row;
        at[h] = position + min(r / G, tokens - 1);
#pragma unroll
        for (int c = 0; c < FLASH_COLS / 32; c++) {
            const uint4 f = *reinterpret_cast<const uint4*>(shared + key_at(r, c * 4 + t));
            q[c][4 * h] = f.x; q[c][4 * h + 1] = f.y; q[c][4 * h + 2] = f.z; q[c][4 * h + 3] = f.w;
        }
    }
    float o[(D + 15) / 16 * 2][4] = {}, most[2] = {NOTHING, NOTHING}, sum[2] = {0.f, 0.f};
    for (int k = from; k < end; k += FLASH_KEYS) {
        float s[8][4];
        fetch_keys<true>(b, sequence, layer, head, k, end, values);
        wait_copies<1>();
        __syncthreads();
        score(q, keys, s);
        __syncthreads();
        if (k + FLASH_KEYS < end) fetch_keys<false>(b, sequence, layer, head, k + FLASH_KEYS, end, keys);
        else commit();
#pragma unroll
        for (int n = 0; n < 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int key = k + n * 8 + 2 * t + i % 2;
                if (key > at[i / 2] || (window > 0 && key + window <= at[i / 2])) s[n][i] = NOTHING;
            }
        soften(s, most, sum, o);
        wait_copies<1>();
        __syncthreads();
        weigh(s, (u32)__cvta_generic_to_shared(values), o);
        __syncthreads();
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        sum[h] += __shfl_xor_sync(~0u, sum[h], 1);
        sum[h] += __shfl_xor_sync(~0u, sum[h], 2);
        const int r = warp * 16 + 8 * h + row;
        if (r >= tokens * G) continue;
        u16* to = b.a + (size_t)(first + r / G) * b.a_ld + (group * G + r % G) * D;
        const float inverse = 1.f / sum[h];
#pragma unroll
        for (int d = 0; d < D / 8; d++)
            *reinterpret_cast<u32*>(to + d * 8 + 2 * t) = pack_half(o[d][2 * h] * inverse, o[d][2 * h + 1] * inverse);
    }
}
