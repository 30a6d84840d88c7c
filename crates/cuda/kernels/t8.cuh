// T8 on the device.
//
// The value of weight i is low[state & 15] + high[state >> 4] with the state the eight ring bits from bit K*i on. For
// K <= 4 one look-up by the state of an *even* weight 2j serves two weights: besides its own value the state holds
// the low nibble of weight 2j+1 (state bits K..K+3) and the high nibble of weight 2j-1 (state bits 4-K..7-K). So an
// entry is (value of 2j, low part of 2j+1, 0, high part of 2j-1), and with 16-bit activations in pairs, (a[2j], a[2j+1]) in
// word j, a dot product of the ring is two dp2a a look-up: the low half of the entry with word j, the high half with word
// j-1. Exact, and half the look-ups. For larger K an entry is the value alone.
//
// The table stands 32 times in shared memory, entry e of lane l in word 32*e + l: every look-up is free of bank
// conflicts.
//
// A tile is `tile_rows(K)` rows by one span of 32 groups, one group a lane: `tile_vectors(K)` 16-byte vectors a lane,
// vector-major ([vector][lane]), holding the group's words of row 0, row 1, ... A unit of 8 rows is its tiles in the
// order [row block][span].
#pragma once
#include "program.cuh"

// What the host compiles the kernels for: the model at hand (see `src/compile.rs`).
#ifndef BITS_USED
#define BITS_USED (1 << 3 | 1 << 4)   // bit K: some matrix has K bits
#endif
#ifndef HEADS_A_GROUP
#define HEADS_A_GROUP 4               // query heads that attention takes together; they share a key/value head
#endif
#ifndef HEAD_DIM
#define HEAD_DIM 128
#endif
#ifndef SLOTS
#define SLOTS 4                       // tiles of a warp on their way
#endif

constexpr int TABLE_BYTES = 256 * 32 * 4;

__host__ __device__ constexpr int tile_rows(int bits) { return bits <= 6 ? 4 : 2; }
__host__ __device__ constexpr int tile_vectors(int bits) { return tile_rows(bits) * bits / 4; }
__host__ __device__ constexpr int tile_bytes(int bits) { return tile_vectors(bits) * 32 * 16; }

// The largest tile in use.
__host__ __device__ constexpr int slot_bytes() {
    int most = 0;
    for (int bits = 2; bits <= 8; bits++)
        if (BITS_USED >> bits & 1 && tile_bytes(bits) > most) most = tile_bytes(bits);
    return most;
}
constexpr int SLOT_BYTES = slot_bytes();

// The eight bits from bit `bit` of the ring on, at bit 7 of the result (an entry's byte offset in the table), with
// other bits around them.
template <int K> __device__ __forceinline__ u32 window(const u32* ring, int bit) {
    const int at = (bit - 7 + 32 * K) % (32 * K);
    return __funnelshift_r(ring[at / 32], ring[(at / 32 + 1) % K], at % 32);
}

__device__ __forceinline__ u32 entry(const char* table, u32 window, u32 lane4) {
    return *reinterpret_cast<const u32*>(table + ((window & (0xffu << 7)) | lane4));
}

// Sums of two products of 16-bit with 8-bit numbers: of an entry's bytes 0 and 1, and of its bytes 2 and 3.
__device__ __forceinline__ int dot_low(u32 pair, u32 entry, int sum) {
    asm("dp2a.lo.s32.s32 %0, %1, %2, %0;" : "+r"(sum) : "r"(pair), "r"(entry));
    return sum;
}
__device__ __forceinline__ int dot_high(u32 pair, u32 entry, int sum) {
    asm("dp2a.hi.s32.s32 %0, %1, %2, %0;" : "+r"(sum) : "r"(pair), "r"(entry));
    return sum;
}

// Dot product of a ring with 32 activations in pairs; a group's first weight follows its last on the ring.
template <int K> __device__ __forceinline__ int dot_ring(const char* table, const u32* ring, const u32* act, u32 lane4) {
    int sum = 0;
#pragma unroll
    for (int j = 0; j < 16; j++) {
        const u32 even = entry(table, window<K>(ring, 2 * K * j), lane4);
        if constexpr (K <= 4) {
            sum = dot_high(act[(j + 15) % 16], even, dot_low(act[j], even, sum));
        } else {
            const u32 odd = entry(table, window<K>(ring, 2 * K * j + K), lane4);
            sum = dot_low(act[j], __byte_perm(even, odd, 0x3340), sum);   // (even, odd, 0, 0): entries' byte 3 is 0
        }
    }
    return sum;
}

// Copies a table of 256 entries to its 32 lanes' copies.
__device__ __forceinline__ void fill_table(char* table, const u32* entries) {
    for (int i = threadIdx.x; i < 256 * 32; i += blockDim.x) reinterpret_cast<u32*>(table)[i] = __ldg(entries + (i >> 5));
}

// The value of one weight in file order, for the embedding.
__device__ __forceinline__ int decode_weight(const u32* entries, const u8* group, int bits, int i) {
    int bit = bits * i, byte = bit / 8, ring = 4 * bits;
    u32 pair = group[byte] | group[(byte + 1) % ring] << 8;
    return (i8)(entries[(pair >> bit % 8) & 0xff] & 0xff);
}
