// One token through the whole program: as one persistent kernel, or an instruction a launch. Both run the same bodies. And
// the choice of the likeliest token.
#include "attend.cuh"

#ifndef INFINITY
#define INFINITY __uint_as_float(0x7f800000u)
#endif

extern __shared__ __align__(128) char shared_memory[];

// A block's shared memory, whose sizes the host computes alike (`src/machine.rs`).
struct Sizes { int entries, act_words, sums; };

struct Layout {
    Shared sh;
    Instruction* instructions;   // this one and the next
    Entry* entries;
    char* ring;
    u32 barriers;
};

__device__ __forceinline__ Layout lay_out(const Sizes& sizes) {
    Layout l;
    char* at = shared_memory;
    l.sh.table = at; at += TABLE_BYTES;
    l.ring = at; at += WARPS * SLOTS * SLOT_BYTES;
    l.barriers = (u32)__cvta_generic_to_shared(at); at += WARPS * SLOTS * 8;
    l.entries = reinterpret_cast<Entry*>(at); at += sizes.entries * sizeof(Entry);
    l.instructions = reinterpret_cast<Instruction*>(at); at += 2 * sizeof(Instruction);
    l.sh.act = at; at += sizes.act_words * 4;
    l.sh.reduce = reinterpret_cast<float*>(at); at += 2 * WARPS * 4;
    l.sh.sums = reinterpret_cast<int*>(at); at += sizes.sums * 4;
    l.sh.addends = reinterpret_cast<float*>(at); at += sizes.sums / 2 * 4;
    l.sh.scales = reinterpret_cast<u16*>(at);
    for (int i = threadIdx.x; i < sizes.sums; i += THREADS) l.sh.sums[i] = 0;
    return l;
}

// Starts to bring instruction `i` into shared memory, where its fields cost no trip to L2.
__device__ __forceinline__ void load_instruction(const Run& run, int i, Instruction* slots) {
    static_assert(sizeof(Instruction) % 8 == 0 && sizeof(Instruction) / 8 <= 32, "one word a lane");
    u64* to = reinterpret_cast<u64*>(slots + i % 2);
    const int word = (int)threadIdx.x - (THREADS - 32);
    if (word >= 0 && word < sizeof(Instruction) / 8) copy_behind<8>(to + word, reinterpret_cast<const u64*>(run.program + i) + word);
}

__device__ void embed(const Run& run, const Instruction& in, const Wait& wait) {
    const int hidden = run.model.hidden, token = run.token[0], bits = run.embed_bits;
    const u8* row = run.embed_codes + (size_t)token * (hidden / GROUP) * 4 * bits;
    const float scale = half_to_float(run.embed_scales[token]);
    for (int i = blockIdx.x * THREADS + threadIdx.x; i < hidden; i += gridDim.x * THREADS)
        send(in.out + i, scale * decode_weight(run.tables + 256 * bits, row + i / GROUP * 4 * bits, bits, i % GROUP), wait.writes(in));
}

// A Hadamard too wide for a warp: a block of the vector a thread block.
__device__ void hadamard(const Instruction& in, Shared& sh, const Wait& wait) {
    float* v = reinterpret_cast<float*>(sh.act);
    for (int b = blockIdx.x; b < in.cols / in.hadamard; b += gridDim.x) {
        const int first = b * in.hadamard;
        for (int i = threadIdx.x; i < in.hadamard; i += THREADS) v[i] = receive(in.in + first + i, wait.reads(in), wait);
        block_hadamard(v, in.hadamard, in.hadamard);
        for (int i = threadIdx.x; i < in.hadamard; i += THREADS) send(in.out + first + i, v[i], wait.writes(in));
        __syncthreads();
    }
}

// Before a tied head: x = R(g * Rt norm(x)). R is a Hadamard after signs, and the signs meet on either side of the gain:
// they cancel. One block; the vector is small.
__device__ void head_rotate(const Model& m, const Instruction& in, Shared& sh, const Wait& wait) {
    if (blockIdx.x != 0) return;
    float* v = reinterpret_cast<float*>(sh.act);
    float squares = 0.f;
#pragma unroll 1
    for (int i = threadIdx.x; i < m.hidden; i += THREADS) { v[i] = receive(in.in + i, wait.reads(in), wait); squares += v[i] * v[i]; }
    for (int o = 16; o; o /= 2) squares += __shfl_xor_sync(~0u, squares, o);
    if (threadIdx.x % 32 == 0) sh.reduce[threadIdx.x / 32] = squares;
    __syncthreads();
    squares = 0.f;
    for (int w = 0; w < WARPS; w++) squares += sh.reduce[w];
    const float norm = rsqrtf(squares / m.hidden + m.eps);
    if (m.head_block) block_hadamard(v, m.hidden, m.head_block);
#pragma unroll 1
    for (int i = threadIdx.x; i < m.hidden; i += THREADS) v[i] *= norm * m.head_gain[i];
    if (m.head_block) block_hadamard(v, m.hidden, m.head_block);
    __syncthreads();
#pragma unroll 1
    for (int i = threadIdx.x; i < m.hidden; i += THREADS) send(in.out + i, v[i], wait.writes(in));
}

__device__ __forceinline__ void execute(const Run& run, const Instruction& in, int position, const Part& part, Layout& l, const Wait& wait, int& table_bits, Stream& stream) {
    switch (in.kind) {
        case EMBED: embed(run, in, wait); break;
        case ATTEND: attend(run, in, position, part, l.sh, wait); break;
        case HADAMARD: hadamard(in, l.sh, wait); break;
        case HEAD_ROTATE: head_rotate(run.model, in, l.sh, wait); break;
        default: linear(run, in, l.entries, l.sh, wait, table_bits, stream); break;
    }
}

// PDVM: the whole program in one cooperative launch.
extern "C" __global__ void __launch_bounds__(THREADS, 1) run_program(const __grid_constant__ Run run, const Sizes sizes) {
    Layout l = lay_out(sizes);
    for (int e = threadIdx.x; e < run.entry_count; e += THREADS) {
        const int2 at = run.entries[e];
        l.entries[e] = entry_of(run.program[at.x], at.y);
    }
    const int position = run.token[1], warp = threadIdx.x / 32;
    int table_bits = 3;
    fill_table(l.sh.table, run.tables + 256 * table_bits);
    load_instruction(run, 0, l.instructions);
    // An earlier token's run may have failed: the host will say so.
    __shared__ volatile u32 gave_up;
    __shared__ Part part;
    if (threadIdx.x == 0) { gave_up = *run.failed; part = part_of(run.model, position, blockIdx.x); }
    copies_done();
    __syncthreads();
    Stream stream;
    stream.init(l.entries, l.ring + warp * SLOTS * SLOT_BYTES, l.barriers + warp * SLOTS * 8, 0, run.entry_count);
    Wait wait{run, 0, (u32)run.token[2], &gave_up};
#pragma unroll 1
    for (; wait.instruction < run.instructions && !gave_up; wait.instruction++) {
        // The next one in place of the one before, which all threads have left.
        if (wait.instruction + 1 < run.instructions) load_instruction(run, wait.instruction + 1, l.instructions);
        execute(run, l.instructions[wait.instruction % 2], position, part, l, wait, table_bits, stream);
        copies_done();
        __syncthreads();
    }
    stream.drain();
}

// The same, one instruction a launch: the CUDA graph's kernel.
extern "C" __global__ void __launch_bounds__(THREADS, 1) run_instruction(const __grid_constant__ Run run, int i, const Sizes sizes) {
    Layout l = lay_out(sizes);
    load_instruction(run, i, l.instructions);
    copies_done();
    __syncthreads();
    const Instruction& in = l.instructions[i % 2];
    // What launches before wrote is there.
    __shared__ volatile u32 gave_up;
    const Wait wait{run, i, (u32)run.token[2], &gave_up};
    const int warp = threadIdx.x / 32;
    if (threadIdx.x < in.matrices) l.entries[in.entry + threadIdx.x] = entry_of(in, threadIdx.x);
    int table_bits = in.matrices ? in.matrix[0].bits : 0;
    if (table_bits) fill_table(l.sh.table, run.tables + 256 * table_bits);
    __syncthreads();
    Stream stream;
    stream.init(l.entries, l.ring + warp * SLOTS * SLOT_BYTES, l.barriers + warp * SLOTS * 8, in.entry, in.entry + in.matrices);
#if __CUDA_ARCH__ >= 900
    // Weights and table do not depend on the kernel before: only now wait for its results.
    asm volatile("griddepcontrol.launch_dependents;");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
    const int position = run.token[1];
    execute(run, in, position, part_of(run.model, position, blockIdx.x), l, wait, table_bits, stream);
}

// What the blocks of `likeliest` agree on; all zero between two launches.
struct Vote { u64 best; u32 done; };

// The token with the largest logit, the lowest one of several: where the next run finds its token, and in `found`. 2^32 - 1
// there where a logit is NaN or infinity, or all are negative infinity.
extern "C" __global__ void likeliest(const float* logits, int vocab, Vote* vote, u32* next, u32* found) {
    // Numbers that are in the order of the logits, and tokens backwards: the largest of both together wins.
    u64 best = 0;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < vocab; i += gridDim.x * blockDim.x) {
        const float logit = __ldcg(logits + i);
        const u32 bits = __float_as_uint(logit), order = !(logit < INFINITY) ? ~0u : bits >> 31 ? ~bits : bits | 1u << 31;
        best = max(best, (u64)order << 32 | (u32)~i);
    }
    for (int d = 16; d; d /= 2) best = max(best, __shfl_xor_sync(~0u, best, d));
    if (threadIdx.x % 32 == 0) atomicMax(&vote->best, best);
    __syncthreads();
    if (threadIdx.x != 0) return;
    __threadfence();
    if (atomicAdd(&vote->done, 1) + 1 < gridDim.x) return;
    __threadfence();
    best = atomicExch(&vote->best, 0);
    vote->done = 0;
    const u32 order = best >> 32;
    const bool chosen = order != ~0u && order > ~__float_as_uint(-INFINITY);
    *next = chosen ? ~(u32)best : 0;
    *found = chosen ? ~(u32)best : ~0u;
}

// The read limit: a pure read of `vectors` 16-byte vectors.
extern "C" __global__ void read_all(const uint4* from, u64 vectors, u32* never) {
    uint4 s = make_uint4(0, 0, 0, 0);
    const u64 step = (u64)gridDim.x * blockDim.x;
    u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x;
    for (; i + 3 * step < vectors; i += 4 * step) {
        uint4 a = __ldcs(from + i), b = __ldcs(from + i + step), c = __ldcs(from + i + 2 * step), d = __ldcs(from + i + 3 * step);
        s.x ^= a.x ^ b.x ^ c.x ^ d.x; s.y ^= a.y ^ b.y ^ c.y ^ d.y; s.z ^= a.z ^ b.z ^ c.z ^ d.z; s.w ^= a.w ^ b.w ^ c.w ^ d.w;
    }
    for (; i < vectors; i += step) { uint4 a = __ldcs(from + i); s.x ^= a.x; s.y ^= a.y; s.z ^= a.z; s.w ^= a.w; }
    if ((s.x ^ s.y ^ s.z ^ s.w) == 0x9e3779b9u) *never = 1;
}
