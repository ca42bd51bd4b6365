// Weights as a stream: what a thread needs lies in the order in which it needs it, 16 bytes (a
// chunk) at a time, and the chunks of neighbouring threads lie side by side. A thread asks for
// chunks DEPTH ahead of their use, whatever barriers and blocks lie between, so that memory works
// without a pause. Every index into the ring of chunks under way is a constant, so that it can be in
// registers; where a block's own numbers (`Mine`) leave too few, some of either are spilled.
#pragma once
#include "plan.cuh"

struct Ring {
  uint4 slot[DEPTH];
};

// A chunk that will not be needed again soon: it shall not push state out of the nearest cache.
__device__ __forceinline__ uint4 load_chunk(const uint4* p) {
#ifdef __CUDA_ARCH__
  uint4 q;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(q.x), "=r"(q.y), "=r"(q.z), "=r"(q.w)
               : "l"(p));
  return q;
#else
  return *p;
#endif
}

__device__ __forceinline__ void fill(Ring& ring, const uint4* p) {
#pragma unroll
  for (int i = 0; i < DEPTH; ++i) ring.slot[i] = load_chunk(p + i * THREADS);
}

// COUNT chunks that are taken one after another; the ring then holds the first of `next`.
template <int COUNT>
struct Segment {
  static constexpr int COUNT_OF = COUNT;
  static constexpr int WHOLE = (COUNT + DEPTH - 1) / DEPTH * DEPTH;
  Ring& ring;
  const uint4* here;
  const uint4* next;

  // Returns chunk at + base. `at` is known to the compiler; base is a multiple of DEPTH, and only
  // where at + base + DEPTH < COUNT it may be other than 0.
  __device__ __forceinline__ uint4 take(int at, int base = 0) {
    const uint4 q = ring.slot[at % DEPTH];
    if (at + DEPTH < COUNT)
      ring.slot[at % DEPTH] = load_chunk(here + (at + DEPTH + base) * THREADS);
    else if (at + DEPTH >= WHOLE)
      ring.slot[at % DEPTH] = load_chunk(next + (at + DEPTH - WHOLE) * THREADS);
    return q;
  }

  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int at = COUNT; at < WHOLE; ++at)
      ring.slot[at % DEPTH] = load_chunk(next + (at + DEPTH - WHOLE) * THREADS);
  }
};

// float32 numbers of a segment, one after another from chunk `at`; i is known to the compiler.
template <typename S>
struct Numbers {
  S& segment;
  int at;
  uint4 q;

  __device__ __forceinline__ float take(int i) {
    if (i % 4 == 0) q = segment.take(at + i / 4);
    return __uint_as_float(i % 4 == 0 ? q.x : i % 4 == 1 ? q.y : i % 4 == 2 ? q.z : q.w);
  }
};
