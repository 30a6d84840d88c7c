// T8 matrices times many tokens, on the tensor cores: weights and activations in f16, sums in f32.
//
// Weights are decoded straight into the registers that `mma` takes them from, activations come through shared memory.
// Which column is which of an mma's 16 is ours to choose, alike on both sides: lane l takes columns 8(l%4) to
// 8(l%4) + 7 of a group, so that it decodes neighbours, and reads its activations as one 16-byte vector.
#pragma once
#include "t8.cuh"

constexpr int GEMM_THREADS = 256;
constexpr int GEMM_ROWS = 128;       // rows of a block's tile

// A linear over a batch. `out` gets a slice a split of the columns; whoever reads it adds them up.
struct Gemm {
    Matrix matrix[3];
    const u16* x;        // f16, [tokens, in whole tiles][ld]; columns from `cols` on are zero
    const float* step;   // what each token's activations were divided by, or null: nothing
    float* out;          // [splits][tokens][rows]
    const u32* tables;   // per K: 256 entries, see `decode8`; table of K at 256 * K
    int matrices, cols, ld;
    int rows;            // of all matrices, each in whole units
    int tokens, splits;
};

#ifdef ABI_GEMM
static_assert(sizeof(Gemm) == ABI_GEMM, "src/batch/abi.rs does not mirror this file");
#endif

// MT tiles of 16 rows by NT tiles of 8 tokens a warp, WN warps side by side along the tokens, BK columns a stage.
template <int MT_, int NT_, int WN_, int BK_, int STAGES_> struct Shape {
    static constexpr int MT = MT_, NT = NT_, WN = WN_, BK = BK_, STAGES = STAGES_;
    static constexpr int BN = WN * NT * 8, GROUPS = BK / GROUP;
    static constexpr int X_BYTES = BN * BK * 2;
    static_assert(GEMM_THREADS / 32 / WN * MT * 16 == GEMM_ROWS, "warps cover the rows");
};

__host__ __device__ constexpr int most_bits() {
    int most = 0;
    for (int bits = 2; bits <= 8; bits++) if (BITS_USED >> bits & 1) most = bits;
    return most;
}

template <class S> __host__ __device__ constexpr int stage_bytes() { return S::X_BYTES + GEMM_ROWS * S::GROUPS * most_bits() * 4; }

__device__ __forceinline__ void mma(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Copies 16 bytes to shared memory, or clears them.
__device__ __forceinline__ void copy16(u32 to, const void* from, bool there = true) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}
__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT> __device__ __forceinline__ void wait_copies() { asm volatile("cp.async.wait_group %0;" :: "n"(LEFT) : "memory"); }

// Byte of a 16-byte chunk in rows of whole 128 bytes: odd rows swap halves, so that four chunks of two rows lie in
// different banks.
__device__ __forceinline__ int swapped(int row, int chunk) { return (chunk ^ (row & 1) << 2) * 16; }

// The eight bits from bit B of two words on, at bit 7.
template <int B> __device__ __forceinline__ u32 window_at(u32 low, u32 high) {
    if constexpr (B >= 32) return B < 39 ? high << (39 - B) : high >> (B - 39);
    else if constexpr (B > 24) return __funnelshift_r(low, high, B - 7);
    else return B < 7 ? low << (7 - B) : low >> (B - 7);
}

// The look-up table of a block stands in shared memory as in `t8.cuh`, in rows of 128 bytes: room for more stages.
constexpr int GEMM_TABLE_BYTES = 256 * 32 * 4;

__device__ __forceinline__ u32 entry_at(const char* table, u32 window, u32 lane4) {
    return *reinterpret_cast<const u32*>(table + ((window & (0xffu << 7)) | lane4));
}

// Four unsigned bytes, each 128 more than a value, as two pairs of f16: 0x64uu is 1024 + u.
__device__ __forceinline__ void to_half(u32 bytes, u32& first, u32& second) {
    first = __byte_perm(bytes, 0x64646464, 0x4140);
    second = __byte_perm(bytes, 0x64646464, 0x4342);
    asm("sub.rn.f16x2 %0, %0, %1;" : "+r"(first) : "r"(0x64806480));
    asm("sub.rn.f16x2 %0, %0, %1;" : "+r"(second) : "r"(0x64806480));
}

// Where a lane finds its eight weights in a ring: three words and a shift.
struct Place { int word[3]; u32 shift; };
template <int K> __device__ __forceinline__ Place place(int t) {
    const int at = t * K / 4;
    return {{at, (at + 1) % K, (at + 2) % K}, (u32)(t * K % 4 * 8)};
}

// Decodes a lane's eight weights of a ring into four pairs. An entry of the table is as `t8.cuh` says, each part moved
// up so that no byte is negative and a whole value is 128 too large: bytes then add without carries.
template <int K> __device__ __forceinline__ void decode8(const char* table, const u32* ring, const Place& p, u32 lane4, u32* pairs) {
    const u32 middle = ring[p.word[1]];
    const u32 low = __funnelshift_r(ring[p.word[0]], middle, p.shift);
    const u32 high = K > 3 ? __funnelshift_r(middle, K == 4 || K == 8 ? 0 : ring[p.word[2]], p.shift) : 0;
    u32 first, second;
    if constexpr (K <= 4) {
        const u32 e0 = entry_at(table, window_at<0>(low, high), lane4), e1 = entry_at(table, window_at<2 * K>(low, high), lane4),
                  e2 = entry_at(table, window_at<4 * K>(low, high), lane4), e3 = entry_at(table, window_at<6 * K>(low, high), lane4),
                  e4 = entry_at(table, window_at<8 * K>(low, high), lane4);
        // (value, low part of the next, value, low part) and (0, high part, 0, high part); byte 2 of an entry is 0.
        first = __byte_perm(e0, e1, 0x5410) + __byte_perm(e1, e2, 0x7232);
        second = __byte_perm(e2, e3, 0x5410) + __byte_perm(e3, e4, 0x7232);
    } else {
        const u32 e0 = entry_at(table, window_at<0>(low, high), lane4), e1 = entry_at(table, window_at<K>(low, high), lane4),
                  e2 = entry_at(table, window_at<2 * K>(low, high), lane4), e3 = entry_at(table, window_at<3 * K>(low, high), lane4),
                  e4 = entry_at(table, window_at<4 * K>(low, high), lane4), e5 = entry_at(table, window_at<5 * K>(low, high), lane4),
                  e6 = entry_at(table, window_at<6 * K>(low, high), lane4), e7 = entry_at(table, window_at<7 * K>(low, high), lane4);
        first = __byte_perm(__byte_perm(e0, e1, 0x0040), __byte_perm(e2, e3, 0x0040), 0x5410);
        second = __byte_perm(__byte_perm(e4, e5, 0x0040), __byte_perm(e6, e7, 0x0040), 0x5410);
    }
    to_half(first, pairs[0], pairs[1]);
    to_half(second, pairs[2], pairs[3]);
}

// What a block computes: 128 rows of a matrix, a tile of tokens, a split of the columns.
struct Work { int row_tile, token_tile, split, out_row; };

// Starts the copies of one stage: BK columns of the tile's weights and activations.
template <int K, class S> __device__ __forceinline__ void fetch_stage(const Gemm& g, const Matrix& m, const Work& w, int step, u32 to) {
    constexpr int VECTORS = tile_vectors(K), BLOCKS = GEMM_ROWS / tile_rows(K), CHUNKS = S::BK / 8;
#pragma unroll
    for (int i = 0; i < (S::BN * CHUNKS + GEMM_THREADS - 1) / GEMM_THREADS; i++) {
        const int p = i * GEMM_THREADS + threadIdx.x, chunk = p % CHUNKS, token = p / CHUNKS;
        if (S::BN * CHUNKS % GEMM_THREADS == 0 || token < S::BN)
            copy16(to + token * S::BK * 2 + swapped(token, chunk), g.x + (size_t)(w.token_tile * S::BN + token) * g.ld + step * S::BK + chunk * 8);
    }
    const int spans = (g.cols + SPAN - 1) / SPAN, last = m.units * (UNIT / tile_rows(K)) - 1;
    const int group = step * S::GROUPS;
    const u8* from = m.tiles + (size_t)(group / 32) * tile_bytes(K) + group % 32 * 16;
    // Ring words end up as [group][row][K], whatever the tile's rows.
#pragma unroll
    for (int i = 0; i < (BLOCKS * VECTORS * S::GROUPS + GEMM_THREADS - 1) / GEMM_THREADS; i++) {
        const int p = i * GEMM_THREADS + threadIdx.x, at = p % S::GROUPS, piece = p / S::GROUPS;
        if (BLOCKS * VECTORS * S::GROUPS % GEMM_THREADS == 0 || piece < BLOCKS * VECTORS) {
            const int block = min(w.row_tile * BLOCKS + piece / VECTORS, last);
            copy16(to + S::X_BYTES + at * GEMM_ROWS * K * 4 + piece * 16,
                   from + (size_t)block * spans * tile_bytes(K) + piece % VECTORS * 512 + at * 16);
        }
    }
}

// Multiplies one stage.
template <int K, class S> __device__ __forceinline__ void multiply_stage(const char* table, const char* stage, const Place& place, float (&acc)[S::MT][S::NT][4]) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = lane / 4, t = lane % 4;
    const int first_row = warp / S::WN * S::MT * 16, first_token = warp % S::WN * S::NT * 8;
#pragma unroll
    for (int group = 0; group < S::GROUPS; group++) {
        const u32* rings = reinterpret_cast<const u32*>(stage + S::X_BYTES) + (group * GEMM_ROWS + first_row + row) * K;
        u32 a[S::MT][8];
#pragma unroll
        for (int i = 0; i < S::MT; i++) {
            decode8<K>(table, rings + i * 16 * K, place, lane * 4, a[i]);
            decode8<K>(table, rings + (i * 16 + 8) * K, place, lane * 4, a[i] + 4);
        }
#pragma unroll
        for (int j = 0; j < S::NT; j++) {
            const int token = first_token + j * 8 + row;
            const uint4 b = *reinterpret_cast<const uint4*>(stage + token * S::BK * 2 + swapped(token, group * 4 + t));
#pragma unroll
            for (int i = 0; i < S::MT; i++) {
                mma(acc[i][j], a[i][0], a[i][4], a[i][1], a[i][5], b.x, b.y);
                mma(acc[i][j], a[i][2], a[i][6], a[i][3], a[i][7], b.z, b.w);
            }
        }
    }
}

template <int K, class S> __device__ __forceinline__ void gemm_tile(const Gemm& g, const Matrix& m, const Work& w, char* shared) {
    const int steps = (g.cols + S::BK - 1) / S::BK;
    const int begin = (int)((i64)steps * w.split / g.splits), end = (int)((i64)steps * (w.split + 1) / g.splits);
    const u32 stages = (u32)__cvta_generic_to_shared(shared + GEMM_TABLE_BYTES);
    for (int s = 0; s < S::STAGES - 1; s++) {
        if (begin + s < end) fetch_stage<K, S>(g, m, w, begin + s, stages + s * stage_bytes<S>());
        commit();
    }
    for (int i = threadIdx.x; i < 256 * 32; i += GEMM_THREADS) reinterpret_cast<u32*>(shared)[i] = __ldg(g.tables + 256 * K + i / 32);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = lane / 4, t = lane % 4;
    const Place p = place<K>(t);
    float acc[S::MT][S::NT][4] = {};
    for (int step = begin, slot = 0; step < end; step++) {
        wait_copies<S::STAGES - 2>();
        __syncthreads();
        const int next = slot == 0 ? S::STAGES - 1 : slot - 1;
        if (step + S::STAGES - 1 < end) fetch_stage<K, S>(g, m, w, step + S::STAGES - 1, stages + next * stage_bytes<S>());
        commit();
        multiply_stage<K, S>(shared, shared + GEMM_TABLE_BYTES + slot * stage_bytes<S>(), p, acc);
        slot = slot + 1 == S::STAGES ? 0 : slot + 1;
    }
    const int rows = m.units * UNIT;
#pragma unroll
    for (int i = 0; i < S::MT; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int r = w.row_tile * GEMM_ROWS + (warp / S::WN * S::MT + i) * 16 + half * 8 + row;
            if (r >= rows) continue;
            const float scale = half_to_float(__ldg(m.scales + r));
#pragma unroll
            for (int j = 0; j < S::NT; j++)
#pragma unroll
                for (int k = 0; k < 2; k++) {
                    const int token = w.token_tile * S::BN + (warp % S::WN * S::NT + j) * 8 + 2 * t + k;
                    if (token >= g.tokens) continue;
                    const float step = g.step ? __ldg(g.step + token) : 1.f;
                    g.out[((size_t)w.split * g.tokens + token) * g.rows + w.out_row + r] = acc[i][j][2 * half + k] * (scale * step);
                }
        }
}

template <int K, class S> __device__ __forceinline__ void gemm_if(const Gemm& g, const Matrix& m, const Work& w, char* shared) {
    if constexpr ((BITS_USED >> K & 1) != 0)
        if (m.bits == K) gemm_tile<K, S>(g, m, w, shared);
}

// Grid: tiles of tokens (fastest: they share weights), tiles of rows of all matrices, splits.
template <class S> __device__ __forceinline__ void gemm(const Gemm& g, char* shared) {
    int tile = blockIdx.y, i = 0, out_row = 0;
    for (; i + 1 < g.matrices; i++) {
        const int tiles = (g.matrix[i].units * UNIT + GEMM_ROWS - 1) / GEMM_ROWS;
        if (tile < tiles) break;
        tile -= tiles; out_row += g.matrix[i].units * UNIT;
    }
    const Matrix& m = g.matrix[i];
    const Work w = {tile, (int)blockIdx.x, (int)blockIdx.z, out_row};
    gemm_if<2, S>(g, m, w, shared);
    gemm_if<3, S>(g, m, w, shared);
    gemm_if<4, S>(g, m, w, shared);
    gemm_if<5, S>(g, m, w, shared);
    gemm_if<6, S>(g, m, w, shared);
    gemm_if<8, S>(g, m, w, shared);
}
