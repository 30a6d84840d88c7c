// Linears: 15-bit activations, T8 weights, exact integer sums.
//
// Activations are quantised as a[i] = rint(x[i] / d), -16383 to 16383, with one step d a vector, so that y = scale * d *
// sum(value * a) is integer up to the last multiplication: sums have the same bits in whatever order they are taken. A
// lane's sum over the widest input, 24 groups of 32 weights of at most 127, still fits 32 bits.
#pragma once
#include "handoff.cuh"
#include "stream.cuh"
#include "vector.cuh"

// A block's shared memory, laid out by the host.
struct Shared {
    char* table;         // TABLE_BYTES
    char* act;           // activations, two a word: see `act_at`
    int* sums;           // low and high half a row of the block's share
    float* addends;      // of the same rows: what is added to them
    u16* scales;         // and their scales
    float* reduce;       // WARPS * 2
    float step;          // d, times the norm where there is one
};

// Copies BYTES bytes to shared memory, some time before `copies_done`.
template <int BYTES> __device__ __forceinline__ void copy_behind(void* to, const void* from) {
#if __CUDA_ARCH__ >= 900
    const u32 at = (u32)__cvta_generic_to_shared(to);
    if constexpr (BYTES == 16) asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(at), "l"(from) : "memory");
    else asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" :: "r"(at), "l"(from), "n"(BYTES) : "memory");
#else
    // Groups of such copies count the stream's tiles.
    static_assert(BYTES == 16 || BYTES == 8, "one vector");
    if constexpr (BYTES == 16) *static_cast<uint4*>(to) = __ldcg(static_cast<const uint4*>(from));
    else *static_cast<uint2*>(to) = __ldcg(static_cast<const uint2*>(from));
#endif
}
__device__ __forceinline__ void copies_done() {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// Bytes of a span's activations, [quad][lane] of four words each: the words 4 quad to 4 quad + 3 of a lane's group. Lanes lie in
// such an order that neither those who read one quad of all groups nor those who write the quads of a group meet in a bank.
constexpr u32 SPAN_BYTES = SPAN * 2;
__device__ __forceinline__ u32 act_at(u32 lane_at, int quad) { return (lane_at ^ quad << 5) + quad * 512; }
constexpr float ACT_MOST = 16383.f;
constexpr float ACT_LEAST = 1e-30f;  // a vector of smaller numbers is zero: its inverse step would overflow

constexpr int MAX_CHUNKS = 48;       // the widest input: 24,576 columns

// Asks for a chunk of an instruction's input, as `warp_hadamard` takes it, with its tags.
__device__ __forceinline__ void ask_for(const Instruction& in, int chunk, u32 tag, float (&v)[16]) {
    const float zero = __uint_as_float(tag);
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const int column = chunk * CHUNK + 128 * k + 4 * (threadIdx.x % 32);
        float4 f = make_float4(zero, zero, zero, zero);
        if (column < in.cols) f = load_vector(in.in + column);
        v[4 * k] = f.x; v[4 * k + 1] = f.y; v[4 * k + 2] = f.z; v[4 * k + 3] = f.w;
    }
}

// Asks again until all of the chunk is there, and takes its tags off.
__device__ __forceinline__ void await_chunk(const Instruction& in, int chunk, u32 tag, const Wait& wait, float (&v)[16]) {
    const i64 start = clock64();
    for (;;) {
        u32 wrong = 0;
#pragma unroll
        for (int i = 0; i < 16; i++) wrong |= __float_as_uint(v[i]) ^ tag;
        if (!__any_sync(~0u, wrong & TAG) || !wait.more(start)) break;
        ask_for(in, chunk, tag, v);
    }
#pragma unroll
    for (int i = 0; i < 16; i++) v[i] = untagged(__float_as_uint(v[i]));
}

__device__ __forceinline__ bool adds(const Instruction& in) { return in.kind == OUT || in.kind == DOWN; }

// Starts to fetch what the epilogue needs beside the sums, a warp a matrix: there everybody would wait for it. `entries` are
// the instruction's.
__device__ __forceinline__ void fetch_terms(const Instruction& in, const Entry* entries, const Shared& sh) {
    static_assert(UNIT == 8, "scales of a unit are 16 bytes, numbers 32");
    // The last warps have the least of the input.
    const int i = WARPS - 1 - threadIdx.x / 32;
    if (i >= in.matrices) return;
    const Matrix& m = in.matrix[i];
    const Entry& e = entries[i];
    // The block has read what it adds to, or written it itself.
    const float* addends = adds(in) ? in.out + e.begin * UNIT : m.bias ? m.bias + e.unit * UNIT : nullptr;
    int at = 0;
#pragma unroll 1
    for (int j = 0; j < i; j++) at += entries[j].units;
#pragma unroll 1
    for (int u = threadIdx.x % 32; u < e.units; u += 32) {
        copy_behind<16>(sh.scales + (at + u) * UNIT, m.scales + (e.unit + u) * UNIT);
        if (addends == nullptr) continue;
        copy_behind<16>(sh.addends + (at + u) * UNIT, addends + u * UNIT);
        copy_behind<16>(sh.addends + (at + u) * UNIT + 4, addends + u * UNIT + 4);
    }
}

// Waits for an instruction's input, applies its Hadamard, quantises it and packs it into shared memory; meanwhile what the epilogue
// needs is on its way. CHUNKS: chunks a warp takes, so that the input stays in registers.
template <int CHUNKS> __device__ __forceinline__ void quantise(const Instruction& in, const Entry* entries, float eps, Shared& sh, const Wait& wait) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, chunks = in.spans * (SPAN / CHUNK);
    const u32 tag = wait.reads(in);
    float v[CHUNKS][16];
    float squares = 0.f, largest = 0.f;
    // The first chunk until it is there, and only then the others: asking for all of a wide input again and again would
    // hold up the weights of blocks that still multiply.
    ask_for(in, warp, tag, v[0]);
    fetch_terms(in, entries, sh);
    await_chunk(in, warp, tag, wait, v[0]);
#pragma unroll
    for (int c = 1; c < CHUNKS; c++) ask_for(in, c * WARPS + warp, tag, v[c]);
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        const int chunk = c * WARPS + warp;
        if (chunk >= chunks) break;
        if (c > 0) await_chunk(in, chunk, tag, wait, v[c]);
        if (in.kind == DOWN && in.hadamard) warp_hadamard(v[c], UNIT, in.hadamard);
#pragma unroll
        for (int i = 0; i < 16; i++) largest = fmaxf(largest, fabsf(v[c][i]));
        if (!in.norm) continue;
#pragma unroll
        for (int i = 0; i < 16; i++) squares += v[c][i] * v[c][i];
    }
    // Positive floats order as integers.
    largest = __uint_as_float(__reduce_max_sync(~0u, __float_as_uint(largest)));
    if (in.norm)
        for (int o = 16; o; o /= 2) squares += __shfl_xor_sync(~0u, squares, o);
    if (lane == 0) { sh.reduce[warp] = largest; sh.reduce[WARPS + warp] = squares; }
    __syncthreads();
    largest = __uint_as_float(__reduce_max_sync(~0u, __float_as_uint(sh.reduce[lane % WARPS])));
    const bool some = largest > ACT_LEAST;
    const float inverse = some ? __fdividef(ACT_MOST, largest) : 0.f;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        const int chunk = c * WARPS + warp;
        if (chunk >= chunks) break;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            // The lowest bits of the mantissa of 1.5 2^23 + a.
            u32 a[4];
#pragma unroll
            for (int i = 0; i < 4; i++) a[i] = __float_as_uint(__fmaf_rn(v[c][4 * k + i], inverse, 12582912.f));
            const int group = chunk * (CHUNK / GROUP) + 4 * k + lane / 8;
            *reinterpret_cast<uint2*>(sh.act + act_at(group / 32 * SPAN_BYTES + group % 32 * 16, lane % 8 / 2) + lane % 2 * 8) =
                make_uint2(__byte_perm(a[0], a[1], 0x5410), __byte_perm(a[2], a[3], 0x5410));
        }
    }
    __syncthreads();
    // Needed in the epilogue only, so others multiply meanwhile.
    sh.step = some ? largest * (1.f / ACT_MOST) : 0.f;
    if (!in.norm) return;
    squares = sh.reduce[WARPS + lane % WARPS];
    for (int o = WARPS / 2; o; o /= 2) squares += __shfl_xor_sync(~0u, squares, o);
    sh.step *= rsqrtf(squares / in.cols + eps);
}

// Adds the lanes' partial sums of ROWS rows to the block's sums, in two halves so that no 32-bit sum overflows.
template <int ROWS> __device__ __forceinline__ void flush(int* sums, int (&acc)[ROWS]) {
    const int lane = threadIdx.x % 32;
    int mine = 0;
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const int low = __reduce_add_sync(~0u, acc[r] & 0xffff), high = __reduce_add_sync(~0u, acc[r] >> 16);
        mine = lane == 2 * r ? low : lane == 2 * r + 1 ? high : mine;
        acc[r] = 0;
    }
    if (lane < 2 * ROWS) atomicAdd(sums + lane, mine);
}

// Multiplies this warp's tiles of a block's share of a matrix; `sums` are those of the share's first unit.
template <int K> __device__ __forceinline__ void multiply(int tiles, int spans, const Shared& sh, int* sums, Stream& stream) {
    constexpr int ROWS = tile_rows(K), VECTORS = tile_vectors(K);
    const int lane = threadIdx.x % 32;
    const u32 lane4 = lane % COPIES * 4;
    int first, last;
    warp_tiles(tiles, first, last);
    int block = first / spans, span = first % spans;   // block of ROWS rows
    u32 lane_at = span * SPAN_BYTES + lane * 16;
    int acc[ROWS] = {};
    for (int t = first; t < last; t++) {
        u32 act[16];
#pragma unroll
        for (int q = 0; q < 4; q++) {
            const uint4 f = *reinterpret_cast<const uint4*>(sh.act + act_at(lane_at, q));
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
        lane_at += SPAN_BYTES;
        if (++span == spans || t + 1 == last) {
            flush<ROWS>(sums + block * ROWS * 2, acc);
            span = 0; lane_at = lane * 16; block++;
        }
    }
}

template <int K> __device__ __forceinline__ void multiply_if(int bits, int tiles, int spans, const Shared& sh, int* sums, Stream& stream) {
    if constexpr ((BITS_USED >> K & 1) != 0)
        if (bits == K) multiply<K>(tiles, spans, sh, sums, stream);
}

// Row `at`'s sum times its scale; the sum is cleared for the next instruction.
__device__ __forceinline__ float take_sum(const Shared& sh, int at) {
    int2& sum = reinterpret_cast<int2*>(sh.sums)[at];
    const float total = __fmaf_rn((float)sum.y, 65536.f, (float)sum.x);
    sum = make_int2(0, 0);
    return total * (half_to_float(sh.scales[at]) * sh.step);
}

// From sums to results: of gate and up silu(gate) * up, else sums and what they are added to. `units`: the block's, from `begin` on.
__device__ __forceinline__ void finish(const Instruction& in, int begin, int units, const Shared& sh, u32 tag) {
    const int rows = units * UNIT;
#pragma unroll 1
    for (int r = threadIdx.x; r < rows; r += THREADS) {
        float value = take_sum(sh, r);
        if (in.kind == GATE_UP) {
            value = __fdividef(value, 1.f + __expf(-value)) * take_sum(sh, rows + r);
            if (in.hadamard) value = unit_hadamard(value);
        }
        if (adds(in)) value += untagged(__float_as_uint(sh.addends[r]));
        else if (in.matrix[0].bias) value += sh.addends[r];
        float* out = in.out + begin * UNIT + r;
        if (in.kind == HEAD) *out = value; else send(out, value, tag);
    }
}

// Runs a linear instruction: quantised input times the block's units, then the instruction's epilogue.
__device__ __forceinline__ void linear(const Run& run, const Instruction& in, const Entry* entries, Shared& sh, const Wait& wait, int& table_bits, Stream& stream) {
    entries += in.entry;
    const int chunks = (in.spans * (SPAN / CHUNK) + WARPS - 1) / WARPS;
    if (chunks <= 1) quantise<1>(in, entries, run.model.eps, sh, wait);
    else quantise<(MAX_CHUNKS + WARPS - 1) / WARPS>(in, entries, run.model.eps, sh, wait);

    int* sums = sh.sums;
#pragma unroll 1
    for (int i = 0; i < in.matrices; i++) {
        const int bits = in.matrix[i].bits, tiles = entries[i].tiles;
        if (tiles == 0) continue;
        if (table_bits != bits) {
            __syncthreads();
            fill_table(sh.table, run.tables + 256 * bits);
            table_bits = bits;
            __syncthreads();
        }
        multiply_if<2>(bits, tiles, in.spans, sh, sums, stream);
        multiply_if<3>(bits, tiles, in.spans, sh, sums, stream);
        multiply_if<4>(bits, tiles, in.spans, sh, sums, stream);
        multiply_if<5>(bits, tiles, in.spans, sh, sums, stream);
        multiply_if<6>(bits, tiles, in.spans, sh, sums, stream);
        multiply_if<8>(bits, tiles, in.spans, sh, sums, stream);
        sums += entries[i].units * UNIT * 2;
    }
    copies_done();
    __syncthreads();
    finish(in, entries[0].begin, entries[0].all, sh, wait.writes(in));
}
