// Many tokens through the program, a launch a step: each linear is one pass over its weights for all of them.
#include "vector.cuh"
#include "batch.cuh"
#include "flash.cuh"

extern __shared__ __align__(128) char shared_memory[];

// Tokens of a tile and how the tiles are cut, as the host found them to fit the card (`src/batch/shapes.rs`).
#ifndef SMALL_BK
#define SMALL_BK 128
#define SMALL_STAGES 4
#define MIDDLE_STAGES 3
#define LARGE_NT 16
#define LARGE_STAGES 4
#endif
using Small = Shape<1, 2, 1, SMALL_BK, SMALL_STAGES>;           // 16 tokens: as fast as memory brings weights
using Middle = Shape<2, 4, 2, 128, MIDDLE_STAGES>;              // 64
using Large = Shape<2, LARGE_NT, 2, 64, LARGE_STAGES>;          // 128 or 256: as fast as the tensor cores multiply

extern "C" __global__ void __launch_bounds__(GEMM_THREADS) gemm_small(const __grid_constant__ Gemm g) { gemm<Small>(g, shared_memory); }
extern "C" __global__ void __launch_bounds__(GEMM_THREADS) gemm_middle(const __grid_constant__ Gemm g) { gemm<Middle>(g, shared_memory); }
extern "C" __global__ void __launch_bounds__(GEMM_THREADS, 1) gemm_large(const __grid_constant__ Gemm g) { gemm<Large>(g, shared_memory); }

extern "C" __global__ void __launch_bounds__(FLASH_THREADS) attend_batch(const __grid_constant__ Batch b, int layer) { flash(b, layer, shared_memory); }

// Rows of the embedding, a block a token.
extern "C" __global__ void embed_batch(const __grid_constant__ Batch b) {
    const int hidden = b.model.hidden, token = b.rows[blockIdx.x].x, bits = b.embed_bits;
    const u8* row = b.embed_codes + (size_t)token * (hidden / GROUP) * 4 * bits;
    const float scale = half_to_float(b.embed_scales[token]);
    for (int i = threadIdx.x; i < hidden; i += blockDim.x)
        b.x[(size_t)blockIdx.x * hidden + i] = scale * decode_weight(b.tables + 256 * bits, row + i / GROUP * 4 * bits, bits, i % GROUP);
}

// Queries and keys turned by RoPE, keys and values to the cache: a block a token, a warp a head at a time. Queries are
// scaled for a softmax in powers of two. `bias`: of q, k and v, or null.
struct Biases { const float* of[3]; };
extern "C" __global__ void rope_batch(const __grid_constant__ Batch b, int layer, int splits, const Biases bias) {
    const Model& m = b.model;
    constexpr int D = HEAD_DIM;
    const int heads = m.heads + 2 * m.kv_heads, half = m.rope_dim / 2, row = blockIdx.x, lane = threadIdx.x % 32;
    const int4 r = b.rows[row];
    const float* rope = b.rope + (size_t)row * m.rope_dim;
    const float scale = rsqrtf((float)D) * 1.4426950408889634f;
    for (int head = threadIdx.x / 32; head < heads; head += blockDim.x / 32) {
        const int part = head < m.heads ? 0 : head < m.heads + m.kv_heads ? 1 : 2;
        const int first = part == 0 ? 0 : part == 1 ? m.heads : m.heads + m.kv_heads;   // the part's first head
        const auto value = [&](int d) {
            float v = bias.of[part] ? bias.of[part][(head - first) * D + d] : 0.f;
            for (int s = 0; s < splits; s++) v += b.part[(((size_t)s * b.tokens + row) * heads + head) * D + d];
            return v;
        };
        Head v;
#pragma unroll
        for (int j = 0; j < HEAD_WORDS; j++) {
            const int d = 32 * j + lane;
            v[j] = d < D ? value(d) : 0.f;
            if (part == 2 || d >= m.rope_dim) continue;
            const float cosine = rope[d % half], sine = rope[half + d % half];
            v[j] = d < half ? v[j] * cosine - value(d + half) * sine : v[j] * cosine + value(d - half) * sine;
        }
        if (KV_Q8 && part < 2) head_hadamard(v);
        if (part > 0) {
            keep(v, cached(b, r.z, layer, part - 1, head - first, r.y));
            continue;
        }
#pragma unroll
        for (int j = 0; j < HEAD_WORDS; j++)
            if (32 * j + lane < D) b.q[((size_t)row * m.heads + head) * D + 32 * j + lane] = float_to_half(v[j] * scale);
    }
}

// For up to 512 columns a warp, and for the widest input, 24,576.
extern "C" __global__ void __launch_bounds__(THREADS, 2) prepare_narrow(const __grid_constant__ Prepare p) { prepare<1>(p, reinterpret_cast<float*>(shared_memory)); }
extern "C" __global__ void __launch_bounds__(THREADS, 1) prepare_wide(const __grid_constant__ Prepare p) { prepare<48 / WARPS>(p, reinterpret_cast<float*>(shared_memory)); }
