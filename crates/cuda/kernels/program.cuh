// What the host hands to the device: the lowered program, its operands and the state of one run.
// Mirrored by `src/abi.rs`, field for field.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char i8;
typedef long long i64;

#ifndef WARPS
#define WARPS 16                      // warps of a block; one block a multiprocessor
#endif
constexpr int THREADS = WARPS * 32;
constexpr int GROUP = 32;            // weights in a T8 ring
constexpr int SPAN = 32 * GROUP;     // columns that the 32 lanes of a warp cover: one group a lane
constexpr int UNIT = 8;              // rows of a unit of work: a block owns whole units
constexpr int PAGE = 128;            // tokens of a page of the KV cache

enum OpKind : int { EMBED, QKV, ATTEND, OUT, GATE_UP, HADAMARD, DOWN, HEAD_ROTATE, HEAD };

// A T8 matrix in tiles: see `t8.cuh`.
struct Matrix {
    const u8* tiles;
    const u16* scales;   // f16, one a row, padded to whole units
    const float* bias;   // one a row, or null
    int bits;
    int units;           // ceil(rows / UNIT)
};

// Up to three matrices over the same input, as if their rows were one matrix's.
struct Instruction {
    OpKind kind;
    int layer;
    int matrices;
    int units;           // of all matrices
    int cols;
    int spans;           // ceil(cols / SPAN)
    int hadamard;        // block of the Hadamard on the input, or 0; of gate and up whether they do its first stages
    int norm;            // the input goes through RMSNorm
    int entry;           // of its first matrix in the run's list of matrices
    int turns;           // tags of `handoff.cuh`: bit 0 of what it reads, bit 1 of what it writes
    const float* in;     // [cols]
    float* out;          // rows, matrix after matrix
    Matrix matrix[3];
};

struct Model {
    int hidden, heads, kv_heads, head_dim, mlp, vocab, rope_dim, window;
    float eps;
    int head_block;            // residual rotation's block before a tied head, or 0
    const float* head_gain;    // final norm's gain, [hidden]; null where the head is not tied
};

// One run of the program over one token.
struct Run {
    const Instruction* program;
    int instructions;
    const int2* entries;     // every matrix in the order of the program: (instruction, matrix)
    int entry_count;
    Model model;
    const u32* tables;       // per K: 256 entries, see `t8.cuh`; table of K at 256 * K
    const u8* embed_codes;   // file order
    const u16* embed_scales;
    int embed_bits;
    const float* rope;       // cosines then sines of this position, [rope_dim]
    const int* token;        // token, position, number of the run; what a graph reads
    const u32* pages;        // the sequence's pages
    char* cache;             // see `cache.cuh`
    int layers;
    struct Stamped* partial; // attention's splits: [heads][splits][head_dim + 1]
    u32* failed;             // 1 + the instruction that waited too long, or 0; the host clears it
    u64 patience;            // clock cycles that a wait may take
};

// The host says how large it takes these to be.
#ifdef ABI_RUN
static_assert(sizeof(Matrix) == ABI_MATRIX && sizeof(Instruction) == ABI_INSTRUCTION && sizeof(Model) == ABI_MODEL
              && sizeof(Run) == ABI_RUN, "src/abi.rs does not mirror this file");
#endif
