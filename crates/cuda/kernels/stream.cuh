// The weight stream of one warp: the tiles that it will multiply, in the order of the program, on their way from
// global memory into a ring of slots in shared memory. The stream runs ahead over instruction boundaries: while a
// block waits for the activations of the next instruction, its weights are already arriving.
#pragma once
#include "t8.cuh"

// A block's share of one matrix, worked out once a run: on the way from one instruction to the next every division would be
// waited for.
struct Entry {
    const u8* from;      // its tiles
    int tiles, bytes;    // how many, and the bytes of one
    int unit, units;     // which units of the matrix
    int begin, all;      // which units of the instruction are the block's
};

// Units [begin, end) of an instruction that a block owns.
__device__ __forceinline__ void block_units(int units, int& begin, int& end) {
    begin = (int)((i64)units * blockIdx.x / gridDim.x);
    end = (int)((i64)units * (blockIdx.x + 1) / gridDim.x);
}

__device__ __forceinline__ int tiles_of(int bits, int units, int spans) { return units * (UNIT / tile_rows(bits)) * spans; }

// The block's entry for matrix `i`. Gate and up are shared out alike, so that a block can multiply their rows with each other.
__device__ Entry entry_of(const Instruction& in, int i) {
    int begin, end;
    block_units(in.units, begin, end);
    int base = 0;
    if (in.kind != GATE_UP)
        for (int j = 0; j < i; j++) base += in.matrix[j].units;
    const Matrix& m = in.matrix[i];
    const int unit = max(begin - base, 0), units = max(min(end - base, m.units) - unit, 0), bytes = tile_bytes(m.bits);
    return {m.tiles + (size_t)tiles_of(m.bits, unit, in.spans) * bytes, tiles_of(m.bits, units, in.spans), bytes, unit, units, begin, end - begin};
}

// Tiles [first, last) of an entry that this warp takes.
__device__ __forceinline__ void warp_tiles(int tiles, int& first, int& last) {
    const int warp = threadIdx.x / 32;
    first = tiles * warp / WARPS;
    last = tiles * (warp + 1) / WARPS;
}

// Where the next tile to fetch is: the warp's tiles of entry after entry.
struct Cursor {
    const Entry* entries;
    int entry, end, left, bytes;
    const u8* next;

    __device__ void init(const Entry* e, int first, int last) {
        entries = e; entry = first; end = last; left = 0; bytes = 0; next = nullptr;
    }

    // Moves to an entry with tiles left; false at the end.
    __device__ __forceinline__ bool find() {
        while (left == 0) {
            if (entry == end) return false;
            const Entry e = entries[entry++];
            int first, last;
            warp_tiles(e.tiles, first, last);
            left = last - first; bytes = e.bytes;
            next = e.from + (size_t)first * bytes;
        }
        return true;
    }

    __device__ __forceinline__ void advance() { next += bytes; left--; }
};

#if __CUDA_ARCH__ >= 900

// By bulk copies: lane 0 asks, an mbarrier a slot tells when a tile is there.
struct Stream {
    Cursor cursor;        // lane 0's
    char* slots;          // this warp's, SLOTS * SLOT_BYTES
    u32 barriers;         // shared address of this warp's SLOTS mbarriers
    u32 fetched;          // tiles asked for, lane 0's
    u32 taken;

    // Starts on entries [first, last): those are in shared memory.
    __device__ void init(const Entry* e, char* memory, u32 bars, int first, int last) {
        cursor.init(e, first, last);
        slots = memory; barriers = bars; fetched = taken = 0;
        if (threadIdx.x % 32 == 0)
            for (int s = 0; s < SLOTS; s++) asm volatile("mbarrier.init.shared.b64 [%0], 1;" :: "r"(barriers + 8 * s));
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        __syncwarp();
#pragma unroll 1
        for (int s = 0; s < SLOTS; s++) fetch(s);
    }

    // Asks for the next tile, into a slot.
    __device__ __forceinline__ void fetch(u32 slot) {
        if (threadIdx.x % 32 != 0 || !cursor.find()) return;
        const u32 bar = barriers + 8 * slot, to = (u32)__cvta_generic_to_shared(slots + slot * SLOT_BYTES);
        asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" :: "r"(bar), "r"(cursor.bytes) : "memory");
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                     :: "r"(to), "l"(cursor.next), "r"(cursor.bytes), "r"(bar) : "memory");
        cursor.advance(); fetched++;
    }

    // Waits for the next tile.
    __device__ __forceinline__ const uint4* take() {
        const u32 slot = taken % SLOTS, parity = taken / SLOTS & 1;
        asm volatile("{\n .reg .pred done;\n again:\n mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
                     " @done bra.uni over;\n bra.uni again;\n over:\n}" :: "r"(barriers + 8 * slot), "r"(parity) : "memory");
        return reinterpret_cast<const uint4*>(slots + slot * SLOT_BYTES);
    }

    // Gives the tile's slot back and asks for another, which goes there: no slot has been free since the start.
    __device__ __forceinline__ void release() {
        __syncwarp();
        fetch(taken++ % SLOTS);
    }

    // Waits for what is still on its way: a copy must not land after the kernel's end (an early exit leaves some).
    __device__ void drain() {
        for (u32 all = __shfl_sync(~0u, fetched, 0); taken < all; taken++) take();
    }
};

#else

// By copies of 16 bytes: every lane copies what it will read itself, so only its own copies need be waited for. One
// group of copies a tile, empty ones at the end, so that the count of groups tells which tile is there.
struct Stream {
    Cursor cursor;
    char* slots;
    u32 fetched, taken;

    __device__ void init(const Entry* e, char* memory, u32, int first, int last) {
        cursor.init(e, first, last);
        slots = memory; fetched = taken = 0;
#pragma unroll 1
        for (int s = 0; s < SLOTS; s++) fetch();
    }

    __device__ __forceinline__ void fetch() {
        if (cursor.find()) {
            const u32 to = (u32)__cvta_generic_to_shared(slots + fetched % SLOTS * SLOT_BYTES);
            for (int at = threadIdx.x % 32 * 16; at < cursor.bytes; at += 32 * 16)
                asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(to + at), "l"(cursor.next + at) : "memory");
            cursor.advance();
        }
        fetched++;
        asm volatile("cp.async.commit_group;" ::: "memory");
    }

    __device__ __forceinline__ const uint4* take() {
        asm volatile("cp.async.wait_group %0;" :: "n"(SLOTS - 1) : "memory");
        return reinterpret_cast<const uint4*>(slots + taken % SLOTS * SLOT_BYTES);
    }

    __device__ __forceinline__ void release() { taken++; fetch(); }

    __device__ void drain() { asm volatile("cp.async.wait_group 0;" ::: "memory"); }
};

#endif
