// What the kernels of a batch are given, and how a linear's input is prepared. Mirrored by `src/batch/abi.rs`.
#pragma once
#include "vector.cuh"

// A batch of tokens and its buffers.
struct Batch {
    Model model;
    const int4* rows;        // token, position, sequence (its place among the page lists), unused
    const int4* tiles;       // of attention: first row, tokens, position of the first, sequence
    const float* rope;       // [tokens][rope_dim]: cosines, then sines
    const u32* pages;        // [sequences][page_list]
    char* cache;             // as in `Run`
    const u32* tables;       // as in `Run`
    const u8* embed_codes;
    const u16* embed_scales;
    float* x;                // [tokens][hidden]
    const float* part;       // what linears wrote: [splits][tokens][rows]
    u16* q;                  // f16, [tokens][heads * head_dim]
    u16* a;                  // f16, [tokens][a_ld]
    int layers, tokens, page_list, embed_bits, a_ld;
};

// A linear's input, from the residual stream or from gate and up, as f16 divided by a step a token. A block a row.
struct Prepare {
    float* x;              // residual stream [tokens][cols], or null: the input is silu(gate) * up
    const float* part;     // [splits][tokens][cols], added to x first; or [splits][tokens][2 * cols], gate and up
    const int* pick;       // the row of each block, or null: its own number
    const float* gain;     // a tied head's, [cols], or null
    u16* out;              // [blocks][ld]
    float* step;           // [blocks]
    int splits, tokens, cols, ld, norm;
    int hadamard;          // its block, or 0; with `gain` also once before it
    float eps;
};

#ifdef ABI_BATCH
static_assert(sizeof(Batch) == ABI_BATCH && sizeof(Prepare) == ABI_PREPARE, "src/batch/abi.rs does not mirror this file");
#endif

constexpr float HALF_MOST = 1024.f;          // the largest activation in f16: far from infinity, and small ones keep their bits

// Sum over splits of one vector of four columns.
__device__ __forceinline__ float4 add_splits(float4 v, const float* from, int splits, size_t stride) {
#pragma unroll 1
    for (int s = 0; s < splits; s++) {
        const float4 f = *reinterpret_cast<const float4*>(from + s * stride);
        v.x += f.x; v.y += f.y; v.z += f.z; v.w += f.w;
    }
    return v;
}

__device__ __forceinline__ float swiglu(float gate, float up) { return gate / (1.f + __expf(-gate)) * up; }

// Hadamard of all chunks of a row: by warps, or through shared memory where its block is too wide.
template <int CHUNKS> __device__ __forceinline__ void hadamard_chunks(float (&v)[CHUNKS][16], int cols, int block, float* shared) {
    if (block <= WARP_HADAMARD) {
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) warp_hadamard(v[c], 1, block);
        return;
    }
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int turn = 0; turn < 2; turn++) {
        if (turn) block_hadamard(shared, cols, block);
#pragma unroll
        for (int c = 0; c < CHUNKS; c++)
#pragma unroll
            for (int i = 0; i < 16; i++) {
                const int column = (c * WARPS + warp) * CHUNK + 128 * (i / 4) + 4 * lane + i % 4;
                if (column < cols) { if (turn) v[c][i] = shared[column]; else shared[column] = v[c][i]; }
            }
        __syncthreads();
    }
}

// CHUNKS: chunks a warp takes.
template <int CHUNKS> __device__ __forceinline__ void prepare(const Prepare& p, float* shared) {
    __shared__ float reduce[2 * WARPS];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = p.pick ? p.pick[blockIdx.x] : blockIdx.x;
    float v[CHUNKS][16], squares = 0.f, largest = 0.f;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++)
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const int column = (c * WARPS + warp) * CHUNK + 128 * k + 4 * lane;
            float4 f = make_float4(0.f, 0.f, 0.f, 0.f);
            if (column < p.cols) {
                if (p.x) {
                    float4* x = reinterpret_cast<float4*>(p.x + (size_t)row * p.cols + column);
                    f = add_splits(*x, p.part + (size_t)row * p.cols + column, p.splits, (size_t)p.tokens * p.cols);
                    if (p.splits && !p.pick) *x = f;
                } else {
                    const float* from = p.part + (size_t)row * 2 * p.cols + column;
                    const size_t stride = (size_t)p.tokens * 2 * p.cols;
                    const float4 gate = add_splits(f, from, p.splits, stride), up = add_splits(f, from + p.cols, p.splits, stride);
                    f = make_float4(swiglu(gate.x, up.x), swiglu(gate.y, up.y), swiglu(gate.z, up.z), swiglu(gate.w, up.w));
                }
            }
            v[c][4 * k] = f.x; v[c][4 * k + 1] = f.y; v[c][4 * k + 2] = f.z; v[c][4 * k + 3] = f.w;
            squares += f.x * f.x + f.y * f.y + f.z * f.z + f.w * f.w;
        }
    if (p.hadamard) hadamard_chunks(v, p.cols, p.hadamard, shared);
    if (p.gain) {
#pragma unroll
        for (int c = 0; c < CHUNKS; c++)
#pragma unroll
            for (int i = 0; i < 16; i++) {
                const int column = (c * WARPS + warp) * CHUNK + 128 * (i / 4) + 4 * lane + i % 4;
                if (column < p.cols) v[c][i] *= p.gain[column];
            }
        if (p.hadamard) hadamard_chunks(v, p.cols, p.hadamard, shared);
    }
#pragma unroll
    for (int c = 0; c < CHUNKS; c++)
#pragma unroll
        for (int i = 0; i < 16; i++) largest = fmaxf(largest, fabsf(v[c][i]));
    for (int o = 16; o; o /= 2) {
        squares += __shfl_xor_sync(~0u, squares, o);
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, o));
    }
    if (lane == 0) { reduce[warp] = largest; reduce[WARPS + warp] = squares; }
    __syncthreads();
    largest = 0.f; squares = 0.f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) { largest = fmaxf(largest, reduce[w]); squares += reduce[WARPS + w]; }
    const float step = largest > 0.f ? largest / HALF_MOST : 1.f, inverse = 1.f / step;
    if (threadIdx.x == 0) p.step[blockIdx.x] = p.norm ? step * rsqrtf(squares / p.cols + p.eps) : step;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++)
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const int column = (c * WARPS + warp) * CHUNK + 128 * k + 4 * lane;
            if (column >= p.ld) continue;
            ushort4 h;
            h.x = float_to_half(v[c][4 * k] * inverse); h.y = float_to_half(v[c][4 * k + 1] * inverse);
            h.z = float_to_half(v[c][4 * k + 2] * inverse); h.w = float_to_half(v[c][4 * k + 3] * inverse);
            *reinterpret_cast<ushort4*>(p.out + (size_t)blockIdx.x * p.ld + column) = h;
        }
}
