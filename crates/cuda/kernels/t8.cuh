// T8 on the device.
//
// The value of weight i is low[state & 15] + high[state >> 4] with the state the eight ring bits from bit K*i on. For
// K <= 4 one look-up by the state of an *even* weight 2j serves two weights: besides its own value the state holds
// the low nibble of weight 2j+1 (state bits K..K+3) and the high nibble of weight 2j-1 (state bits 4-K..7-K). So an
// entry is (value of 2j, low part of 2j+1, 0, high part of 2j-1), and with 16-bit activations in pairs, (a[2j], a[2j+1]) in
// word j, a dot product of the ring is two dp2a a look-up: the low half of the entry with word j, the high half with word
// j-1. Exact, and half the look-ups. For larger K an entry is the value alone.
//
// The table stands 32 times in shared memory, entry e of lane l in word l of row e, so that every look-up is free of bank
// conflicts. Rows are of 256 bytes where there is room: then a look-up's address is a byte of the ring above a byte of
// the lane's, one `prmt`. In rows of 128 bytes it takes a shift and an or more; in rows of 64, two lanes share a copy.
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
#ifndef TABLE_ROW
#define TABLE_ROW 256                 // bytes of a row of the look-up table
#endif
#ifndef SLOTS
#define SLOTS 4                       // tiles of a warp on their way
#endif

constexpr int TABLE_BYTES = 256 * TABLE_ROW;
constexpr int COPIES = TABLE_ROW < 128 ? TABLE_ROW / 4 : 32;
static_assert(TABLE_ROW == 64 || TABLE_ROW == 128 || TABLE_ROW == 256, "rows of the look-up table");

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

// The table's entry for the eight bits from bit B of the ring on. They are a byte of some word of the ring, shifted: of as
// few shifted words as possible, for K = 3 of one for bits 6j and 6j + 24.
template <int K, int B> __device__ __forceinline__ u32 entry(const char* table, const u32* ring, u32 lane4) {
    constexpr int FIRST = B % 8 == 0 ? B / 32 * 32 : K != 3 ? B / 32 * 32 + B % 8 : B % 48 < 24 ? B : B - 24;
    u32 word = ring[FIRST / 32];
    if constexpr (FIRST % 32 != 0) word = __funnelshift_r(word, ring[(FIRST / 32 + 1) % K], FIRST % 32);
    constexpr int BYTE = (B - FIRST) / 8 << 4;
    const u32 at = TABLE_ROW == 256 ? __byte_perm(word, lane4, 0x5504 | BYTE) : __byte_perm(word, 0, 0x4404 | BYTE) / (256 / TABLE_ROW) | lane4;
    return *reinterpret_cast<const u32*>(table + at);
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

// What entry J of a ring adds to a dot product with 32 activations in pairs; a group's first weight follows its last on
// the ring.
template <int K, int J> __device__ __forceinline__ int dot_entry(const char* table, const u32* ring, const u32* act, u32 lane4, int sum) {
    const u32 even = entry<K, 2 * K * J>(table, ring, lane4);
    if constexpr (K <= 4) return dot_high(act[(J + 15) % 16], even, dot_low(act[J], even, sum));
    const u32 odd = entry<K, 2 * K * J + K>(table, ring, lane4);
    return dot_low(act[J], __byte_perm(even, odd, 0x3340), sum);   // (even, odd, 0, 0): entries' byte 3 is 0
}

template <int K, int J = 0> __device__ __forceinline__ int dot_ring(const char* table, const u32* ring, const u32* act, u32 lane4, int sum = 0) {
    if constexpr (J == 16) return sum;
    else return dot_ring<K, J + 1>(table, ring, act, lane4, dot_entry<K, J>(table, ring, act, lane4, sum));
}

// Copies a table of 256 entries to its lanes' copies.
__device__ __forceinline__ void fill_table(char* table, const u32* entries) {
    for (int i = threadIdx.x; i < 256 * COPIES; i += THREADS)
        reinterpret_cast<u32*>(table)[i / COPIES * (TABLE_ROW / 4) + i % COPIES] = __ldg(entries + i / COPIES);
}

// The value of one weight in file order, for the embedding.
__device__ __forceinline__ int decode_weight(const u32* entries, const u8* group, int bits, int i) {
    int bit = bits * i, byte = bit / 8, ring = 4 * bits;
    u32 pair = group[byte] | group[(byte + 1) % ring] << 8;
    return (i8)(entries[(pair >> bit % 8) & 0xff] & 0xff);
}
