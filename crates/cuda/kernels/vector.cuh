// Vectors: the Hadamard transform, by a warp and by a block, and conversions from and to f16.
#pragma once
#include "program.cuh"

constexpr int CHUNK = 512;           // columns a warp holds at a time: 16 a lane
constexpr int WARP_HADAMARD = CHUNK; // the widest Hadamard that a warp does alone

// Hadamard over a chunk, in blocks of `block`: its stages for columns `first` and more apart, 1 for all of them. Value
// v[4k + i] of lane l is column 128k + 4l + i, so that loads are coalesced: bits 0, 1, 7 and 8 of the column are in registers,
// bits 2 to 6 across lanes.
__device__ __forceinline__ void warp_hadamard(float (&v)[16], int first, int block) {
#pragma unroll
    for (int bit = 1; bit < 16; bit *= 2) {
        const int apart = bit < 4 ? bit : bit * 32;
        if (apart < first || apart >= block) continue;
#pragma unroll
        for (int i = 0; i < 16; i++)
            if (!(i & bit)) {
                const float a = v[i], b = v[i + bit];
                v[i] = a + b; v[i + bit] = a - b;
            }
    }
    // Not unrolled: the instruction cache holds what a layer runs only as long as that is short.
#pragma unroll 1
    for (int lanes = max(first / 4, 1); lanes < 32 && 4 * lanes < block; lanes *= 2) {
        const float sign = threadIdx.x & lanes ? -1.f : 1.f;
#pragma unroll
        for (int i = 0; i < 16; i++) v[i] = __shfl_xor_sync(~0u, v[i], lanes) + sign * v[i];
    }
    const float norm = rsqrtf((float)block);
#pragma unroll
    for (int i = 0; i < 16; i++) v[i] *= norm;
}

// The stages of a Hadamard for less than UNIT columns apart, over as many lanes that follow each other; not normalised.
__device__ __forceinline__ float unit_hadamard(float v) {
    const u32 lane = threadIdx.x % 32, unit = 0xffu << (lane & 24);
#pragma unroll
    for (int lanes = 1; lanes < UNIT; lanes *= 2) v = __shfl_xor_sync(unit, v, lanes) + (lane & lanes ? -v : v);
    return v;
}

// Hadamard in shared memory over `count` values in blocks of `block`.
__device__ void block_hadamard(float* v, int count, int block) {
    for (int half = 1; half < block; half *= 2) {
        __syncthreads();
#pragma unroll 1
        for (int i = threadIdx.x; i < count / 2; i += THREADS) {
            const int at = i / half * 2 * half + i % half;
            const float a = v[at], b = v[at + half];
            v[at] = a + b; v[at + half] = a - b;
        }
    }
    __syncthreads();
    const float norm = rsqrtf((float)block);
#pragma unroll 1
    for (int i = threadIdx.x; i < count; i += THREADS) v[i] *= norm;
    __syncthreads();
}

__device__ __forceinline__ float half_to_float(u16 bits) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(bits));
    return f;
}

__device__ __forceinline__ u16 float_to_half(float f) {
    u16 h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}
