// How blocks pass vectors on without a barrier: every number of a vector says itself whether it is there.
//
// The two lowest bits of a number are its tag: the turn of the writing, 0 and 1 by turns for each vector (the host counts
// them, `src/plan.rs`), and twice the parity of the run. A reader loads numbers until they carry the tag of the writing
// that it wants. What it may find before is the writing before, of this run or of the last one, and nothing older: whoever
// waits for a writing has read the one before, and nobody writes a vector anew before every reader of it has passed something
// on that the writer has waited for. So no fence and no counter lies between writing and reading. Numbers keep 22 bits of their
// 24, cut off rather than rounded, which would make zeros of some NaNs. Zeros are the tag of no run of odd parity, which is the
// first one and the first after a failure.
//
// Where not all of a vector is written in every run, two bits do not tell old from new: such a number is followed by a stamp
// of 32 bits, the number of the run and the turn.
#pragma once
#include "program.cuh"

constexpr u32 TAG = 3;

// Whether to go on waiting since clock `start`. Not inlined: it hardly ever runs.
__device__ __noinline__ bool go_on(const Run& run, int instruction, volatile u32* gave_up, i64 start) {
    const i64 waited = clock64() - start;
    if (waited > (i64)run.patience) atomicCAS(run.failed, 0u, (u32)instruction + 1);
    if (waited < 1000000 || *(volatile u32*)run.failed == 0) return true;
    *gave_up = 1;
    return false;
}

// What a block waits with.
struct Wait {
    const Run& run;
    int instruction;
    u32 number;                // the run's
    volatile u32* gave_up;     // in shared memory: whether the block ends before its next instruction

    __device__ __forceinline__ u32 reads(const Instruction& in) const { return (number << 1 | in.turns & 1) & TAG; }
    __device__ __forceinline__ u32 writes(const Instruction& in) const { return stamp(in) & TAG; }
    __device__ __forceinline__ u32 stamp(const Instruction& in) const { return number << 1 | in.turns >> 1; }
    __device__ __forceinline__ bool more(i64 start) const { return go_on(run, instruction, gave_up, start); }
};

__device__ __forceinline__ u32 load_word(const float* from) {
    u32 bits;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(bits) : "l"(from) : "memory");
    return bits;
}
__device__ __forceinline__ float4 load_vector(const float* from) {
    float4 f;
    asm volatile("ld.relaxed.gpu.global.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(f.x), "=f"(f.y), "=f"(f.z), "=f"(f.w) : "l"(from) : "memory");
    return f;
}

// A number without its tag.
__device__ __forceinline__ float untagged(u32 bits) { return __uint_as_float(bits & ~TAG); }

// Passes a number on.
__device__ __forceinline__ void send(float* to, float value, u32 tag) {
    const u32 bits = __float_as_uint(value) & ~TAG | tag;
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" :: "l"(to), "r"(bits) : "memory");
}

// Waits for a number of which `bits` were loaded: loads until they carry the tag.
__device__ __forceinline__ float settle(u32 bits, const float* from, u32 tag, const Wait& wait) {
    if ((bits ^ tag) & TAG) {
        const i64 start = clock64();
        do bits = load_word(from); while ((bits ^ tag) & TAG && wait.more(start));
    }
    return untagged(bits);
}

// Waits for a number.
__device__ __forceinline__ float receive(const float* from, u32 tag, const Wait& wait) { return settle(load_word(from), from, tag, wait); }

// A number with its stamp.
struct Stamped { float value; u32 stamp; };

__device__ __forceinline__ void send_stamped(Stamped* to, float value, u32 stamp) {
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" :: "l"(to), "l"((u64)stamp << 32 | __float_as_uint(value)) : "memory");
}

__device__ __forceinline__ u64 load_stamped(const Stamped* from) {
    u64 both;
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(both) : "l"(from) : "memory");
    return both;
}

// Waits for such a number, of which `both` was loaded.
__device__ __forceinline__ float settle_stamped(u64 both, const Stamped* from, u32 stamp, const Wait& wait) {
    if (both >> 32 != stamp) {
        const i64 start = clock64();
        do both = load_stamped(from); while (both >> 32 != stamp && wait.more(start));
    }
    return __uint_as_float((u32)both);
}
