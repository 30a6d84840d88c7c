// Linears: 15-bit activations, T8 weights, exact integer sums.
//
// Activations are quantised as a[i] = rint(x[i] / d), -16383 to 16383, with one step d a vector, so that y = scale * d *
// sum(value * a) is integer up to the last multiplication: sums have the same bits in whatever order they are taken. A
// lane's sum over the widest input, 24 groups of 32 weights of at most 127, still fits 32 bits.
#pragma once
#include "stream.cuh"
#include "vector.cuh"

// A block's shared memory, laid out by the host.
struct Shared {
    char* table;         // TABLE_BYTES
    u32* act;            // activations, two a word, [span][4][lane][4]
    int* sums;           // low and high half a row of the block's share
    float* reduce;       // WARPS * 2 + 2
    float step;          // d, times the norm where there is one
};

__device__ __forceinline__ u32 act_index(int span, int quad, int lane) { return ((span * 4 + quad) * 32 + lane) * 4; }
constexpr float ACT_MOST = 16383.f;

constexpr int MAX_CHUNKS = 48;       // the widest input: 24,576 columns

// Loads an instruction's input, applies its Hadamard, quantises it and packs it into shared memory. CHUNKS: chunks a
// warp takes, so that the input stays in registers.
template <int CHUNKS> __device__ __forceinline__ void quantise(const Instruction& in, float eps, Shared& sh) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, chunks = in.spans * (SPAN / CHUNK);
    float v[CHUNKS][16];
    float squares = 0.f, largest = 0.f;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++)
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const int column = (c * WARPS + warp) * CHUNK + 128 * k + 4 * lane;
            float4 f = make_float4(0.f, 0.f, 0.f, 0.f);
            if (column < in.cols) f = __ldcg(reinterpret_cast<const float4*>(in.in + column));
            v[c][4 * k] = f.x; v[c][4 * k + 1] = f.y; v[c][4 * k + 2] = f.z; v[c][4 * k + 3] = f.w;
        }
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        const int chunk = c * WARPS + warp;
        if (chunk >= chunks) break;
        if (in.hadamard && in.hadamard <= WARP_HADAMARD) warp_hadamard(v[c], in.hadamard);
#pragma unroll
        for (int i = 0; i < 16; i++) { squares += v[c][i] * v[c][i]; largest = fmaxf(largest, fabsf(v[c][i])); }
    }
    // Positive floats order as integers.
    largest = __uint_as_float(__reduce_max_sync(~0u, __float_as_uint(largest)));
    for (int o = 16; o; o /= 2) squares += __shfl_xor_sync(~0u, squares, o);
    if (lane == 0) { sh.reduce[warp] = largest; sh.reduce[WARPS + warp] = squares; }
    __syncthreads();
    largest = 0.f; squares = 0.f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) { largest = fmaxf(largest, sh.reduce[w]); squares += sh.reduce[WARPS + w]; }
    const float step = largest > 0.f ? largest * (1.f / ACT_MOST) : 1.f, inverse = 1.f / step;
    sh.step = in.norm ? step * rsqrtf(squares / in.cols + eps) : step;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        const int chunk = c * WARPS + warp;
        if (chunk >= chunks) break;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            int a[4];
#pragma unroll
            for (int i = 0; i < 4; i++) a[i] = __float2int_rn(v[c][4 * k + i] * inverse);
            const int group = chunk * (CHUNK / GROUP) + 4 * k + lane / 8;
            *reinterpret_cast<uint2*>(sh.act + act_index(group / 32, lane % 8 / 2, group % 32) + lane % 2 * 2) =
                make_uint2(__byte_perm(a[0], a[1], 0x5410), __byte_perm(a[2], a[3], 0x5410));
        }
    }
    __syncthreads();
}

// Adds the lanes' partial sums of ROWS rows to the block's sums, in two halves so that no 32-bit sum overflows.
template <int ROWS> __device__ __forceinline__ void flush(int* sums, int* acc) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        int low = __reduce_add_sync(~0u, acc[r] & 0xffff), high = __reduce_add_sync(~0u, acc[r] >> 16);
        if (lane == r) { atomicAdd(sums + 2 * r, low); atomicAdd(sums + 2 * r + 1, high); }
        acc[r] = 0;
    }
}

// Multiplies this warp's tiles of a block's share of a matrix; `sums` are those of the share's first unit.
template <int K> __device__ __forceinline__ void multiply(int tiles, int spans, const Shared& sh, int* sums, Stream& stream) {
    constexpr int ROWS = tile_rows(K), VECTORS = tile_vectors(K);
    const int lane = threadIdx.x % 32;
    const u32 lane4 = lane % COPIES * 4;
    int first, last;
    warp_tiles(tiles, first, last);
    int block = first / spans, span = first % spans;   // block of ROWS rows
    int acc[ROWS] = {};
    for (int t = first; t < last; t++) {
        u32 act[16];
#pragma unroll
        for (int q = 0; q < 4; q++) {
            const uint4 f = *reinterpret_cast<const uint4*>(sh.act + act_index(span, q, lane));
            act[4 * q] = f.x; act[4 * q + 1] = f.y; act[4 * q + 2] = f.z; act[4 * q + 3] = f.w;
        }
        const uint4* tile = stream.take();
        u32 words[VECTORS * 4];
#pragma unroll
        for (int v = 0; v < VECTORS; v++) {
            const uint4 f = tile[v * 32 + lane];
            words[4 * v] = f.x; words[4 * v + 1] = f.y; words[4 * v + 2] = f.z; words[4 * v + 3] = f.w;
        }
        stream.release();
#pragma unroll
        for (int r = 0; r < ROWS; r++) acc[r] += dot_ring<K>(sh.table, words + r * K, act, lane4);
        if (++span == spans || t + 1 == last) {
            flush<ROWS>(sums + block * ROWS * 2, acc);
            span = 0; block++;
        }
    }
}

// The finished value of one row, whose sum is cleared for the next instruction.
__device__ __forceinline__ float take_sum(const Shared& sh, const Matrix& m, int at, int row) {
    int* sum = sh.sums + 2 * at;
    const double total = (double)sum[0] + 65536.0 * sum[1];
    sum[0] = sum[1] = 0;
    return (float)total * (half_to_float(__ldg(m.scales + row)) * sh.step);
}

template <int K> __device__ __forceinline__ void multiply_if(int bits, int tiles, int spans, const Shared& sh, int* sums, Stream& stream) {
    if constexpr ((BITS_USED >> K & 1) != 0)
        if (bits == K) multiply<K>(tiles, spans, sh, sums, stream);
}

// Runs a linear instruction: quantised input times the block's units, then the instruction's epilogue.
__device__ __forceinline__ void linear(const Run& run, const Instruction& in, const Entry* entries, Shared& sh, int& table_bits, Stream& stream) {
    const int chunks = (in.spans * (SPAN / CHUNK) + WARPS - 1) / WARPS;
    if (chunks <= 1) quantise<1>(in, run.model.eps, sh);
    else quantise<(MAX_CHUNKS + WARPS - 1) / WARPS>(in, run.model.eps, sh);

    int begin, end;
    block_units(in.units, begin, end);
#pragma unroll 1
    for (int i = 0; i < in.matrices; i++) {
        const Share share = matrix_share(in, i, begin, end);
        if (share.from >= share.to) continue;
        const int bits = in.matrix[i].bits, tiles = entries[in.entry + i].tiles;
        if (table_bits != bits) {
            __syncthreads();
            fill_table(sh.table, run.tables + 256 * bits);
            table_bits = bits;
            __syncthreads();
        }
        int* sums = sh.sums + share.at * UNIT * 2;
        multiply_if<2>(bits, tiles, in.spans, sh, sums, stream);
        multiply_if<3>(bits, tiles, in.spans, sh, sums, stream);
        multiply_if<4>(bits, tiles, in.spans, sh, sums, stream);
        multiply_if<5>(bits, tiles, in.spans, sh, sums, stream);
        multiply_if<6>(bits, tiles, in.spans, sh, sums, stream);
        multiply_if<8>(bits, tiles, in.spans, sh, sums, stream);
    }
    __syncthreads();
    if (in.kind == GATE_UP) {
        const int rows = (end - begin) * UNIT;
#pragma unroll 1
        for (int r = threadIdx.x; r < rows; r += THREADS) {
            const int row = begin * UNIT + r;
            const float gate = take_sum(sh, in.matrix[0], r, row), up = take_sum(sh, in.matrix[1], rows + r, row);
            in.out[row] = gate / (1.f + __expf(-gate)) * up;
        }
        return;
    }
#pragma unroll 1
    for (int i = 0; i < in.matrices; i++) {
        const Matrix& m = in.matrix[i];
        const Share share = matrix_share(in, i, begin, end);
#pragma unroll 1
        for (int r = threadIdx.x; r < (share.to - share.from) * UNIT; r += THREADS) {
            const int row = share.from * UNIT + r;
            float* out = in.out + share.base * UNIT + row;
            const float before = in.kind == OUT || in.kind == DOWN ? __ldcg(out) : m.bias ? __ldg(m.bias + row) : 0.f;
            *out = take_sum(sh, m, share.at * UNIT + r, row) + before;
        }
    }
}

// Asks L2 for the scales of the block's rows, long before the epilogue wants them.
__device__ __forceinline__ void prefetch_scales(const Instruction& in, int thread) {
    int begin, end;
    block_units(in.units, begin, end);
#pragma unroll 1
    for (int i = 0; i < in.matrices; i++) {
        const Share share = matrix_share(in, i, begin, end);
        for (int r = share.from * UNIT + thread * 16; r < share.to * UNIT; r += THREADS * 16)
            asm volatile("prefetch.global.L2 [%0];" :: "l"(in.matrix[i].scales + r));
    }
}
