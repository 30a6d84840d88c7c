// The KV cache: [page][layer][k or v][kv_head], each the codes of a page's tokens, [PAGE][D], and in q8 their scales behind
// them, [PAGE][SCALES] in f16. What q8 means is defined in the pdvm crate (`kv_kind.rs`).
#pragma once
#include "t8.cuh"
#include "vector.cuh"

#ifndef KV_Q8
#define KV_Q8 0                      // whether keys and values are kept in 8 bits; else in f16
#endif

constexpr int CODE_BYTES = KV_Q8 ? 1 : 2;
constexpr int SCALES = KV_Q8 ? (HEAD_DIM + 31) / 32 : 0;        // of a row: one for 32 numbers
constexpr int PAGE_BYTES = PAGE * (HEAD_DIM * CODE_BYTES + 2 * SCALES);
constexpr int ROW_BYTES = (HEAD_DIM * CODE_BYTES + 2 * SCALES + 15) / 16 * 16;   // of a row on its own

// A key or value of one head.
struct Kept { char* codes; u16* scales; };

__device__ __forceinline__ Kept kept_at(char* cache, int layers, int kv_heads, u32 page, int layer, int value, int head, int token) {
    char* of = cache + ((((size_t)page * layers + layer) * 2 + value) * kv_heads + head) * PAGE_BYTES;
    const int slot = token % PAGE;
    return {of + slot * HEAD_DIM * CODE_BYTES, reinterpret_cast<u16*>(of + PAGE * HEAD_DIM * CODE_BYTES) + slot * SCALES};
}

__device__ __forceinline__ Kept kept_alone(char* row) { return {row, reinterpret_cast<u16*>(row + HEAD_DIM * CODE_BYTES)}; }

// Eight numbers of a row: code times scale.
struct Eight {
#if KV_Q8
    uint2 codes = make_uint2(0, 0);
    u16 scale_bits = 0;

    __device__ __forceinline__ float scale() const { return half_to_float(scale_bits); }

    __device__ __forceinline__ void unpack(float (&to)[8]) const {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            // The mantissa of 2^23 + 128 + code.
            const u32 word = (i < 4 ? codes.x : codes.y) ^ 0x80808080u;
            to[i] = __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7440 | i % 4)) - 8388736.f;
        }
    }
#else
    uint4 codes = make_uint4(0, 0, 0, 0);

    __device__ __forceinline__ float scale() const { return 1.f; }

    __device__ __forceinline__ void unpack(float (&to)[8]) const {
        const u32* words = &codes.x;
#pragma unroll
        for (int i = 0; i < 8; i++) to[i] = half_to_float(words[i / 2] >> i % 2 * 16 & 0xffff);
    }
#endif
};

// Numbers 8 part to 8 part + 7 of a row in global memory, past L1, which may hold what was there before.
__device__ __forceinline__ Eight load_eight(const Kept& row, int part) {
    Eight e;
    e.codes = __ldcg(reinterpret_cast<const decltype(e.codes)*>(row.codes) + part);
#if KV_Q8
    e.scale_bits = __ldcg(row.scales + part / 4);
#endif
    return e;
}

// The same of a row in shared memory.
__device__ __forceinline__ Eight shared_eight(const Kept& row, int part) {
    Eight e;
    e.codes = reinterpret_cast<const decltype(e.codes)*>(row.codes)[part];
#if KV_Q8
    e.scale_bits = row.scales[part / 4];
#endif
    return e;
}

__device__ __forceinline__ void prefetch_eight(const Kept& row, int part) {
    asm volatile("prefetch.global.L2 [%0];" :: "l"(row.codes + part * 8 * CODE_BYTES));
    if (KV_Q8 && part == 0) asm volatile("prefetch.global.L2 [%0];" :: "l"(row.scales));
}

// A head as a warp holds it: dimension 32 j + l is word j of lane l; words past the head's end are zero.
constexpr int HEAD_WORDS = (HEAD_DIM + 31) / 32;
using Head = float[HEAD_WORDS];

// The Hadamard that queries and keys go through before keys are kept in q8.
__device__ __forceinline__ void head_hadamard(Head& v) {
    constexpr int BLOCK = HEAD_DIM & -HEAD_DIM;
#pragma unroll
    for (int lanes = 1; lanes < 32 && lanes < BLOCK; lanes *= 2) {
        const float sign = threadIdx.x & lanes ? -1.f : 1.f;
#pragma unroll
        for (int j = 0; j < HEAD_WORDS; j++) v[j] = __shfl_xor_sync(~0u, v[j], lanes) + sign * v[j];
    }
#pragma unroll
    for (int apart = 1; 32 * apart < BLOCK; apart *= 2)
#pragma unroll
        for (int j = 0; j < HEAD_WORDS; j++)
            if (!(j & apart)) {
                const float a = v[j], b = v[j + apart];
                v[j] = a + b; v[j + apart] = a - b;
            }
    const float norm = rsqrtf((float)BLOCK);
#pragma unroll
    for (int j = 0; j < HEAD_WORDS; j++) v[j] *= norm;
}

// Keeps a head, turned and transformed, in some rows.
template <class... Rows> __device__ __forceinline__ void keep(const Head& v, const Rows&... rows) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < HEAD_WORDS; j++) {
        const int d = 32 * j + lane;
#if KV_Q8
        // Positive floats order as integers.
        const float largest = __uint_as_float(__reduce_max_sync(~0u, __float_as_uint(fabsf(v[j]))));
        const u16 scale = float_to_half(fminf(largest / 127.f, 65504.f));
        const float kept = half_to_float(scale), inverse = kept > 0.f ? 1.f / kept : 0.f;
        const char code = (char)max(-127, min(127, __float2int_rn(v[j] * inverse)));
        if (d < HEAD_DIM) ((rows.codes[d] = code), ...);
        if (lane == 0) ((rows.scales[j] = scale), ...);
#else
        const u16 half = float_to_half(v[j]);
        if (d < HEAD_DIM) ((reinterpret_cast<u16*>(rows.codes)[d] = half), ...);
#endif
    }
}
