// Products of a matrix and a vector in shared memory. LANES neighbouring threads share the inputs
// of ROWS outputs, four inputs a step, and add their sums by shuffles.
#pragma once
#include "ring.cuh"

constexpr int ITEMS_A_CHUNK = NARROW ? 2 : 1;  // of four weights: float32, or bfloat16 if NARROW
constexpr int UNROLLED = 24;                   // chunks at most of a product without a loop

template <int INPUTS_, int OUTPUTS_, int LANES_, int ROWS_>
struct Matrix {
  static constexpr int INPUTS = INPUTS_, OUTPUTS = OUTPUTS_, LANES = LANES_, ROWS = ROWS_;
  static constexpr int ITEMS = (INPUTS + 4 * LANES - 1) / (4 * LANES) * ROWS;
  static constexpr int CHUNKS = (ITEMS + ITEMS_A_CHUNK - 1) / ITEMS_A_CHUNK;
};

__device__ constexpr int power_of_two(int n) {
  int p = 1;
  while (p < n) p *= 2;
  return p;
}

// Chunks after which both the ring and the rows begin again.
__device__ constexpr int chunks_a_round(int rows) {
  int chunks = DEPTH;
  while (chunks * ITEMS_A_CHUNK % rows) chunks += DEPTH;
  return chunks;
}

// Four inputs of a lane, zeros beyond INPUTS.
template <int INPUTS, int LANES>
__device__ __forceinline__ float4 four(const float* x, int k) {
  if constexpr (INPUTS % (4 * LANES) == 0) {
    return *reinterpret_cast<const float4*>(x + k);
  } else {
    return make_float4(k < INPUTS ? x[k] : 0.0f, k + 1 < INPUTS ? x[k + 1] : 0.0f,
                       k + 2 < INPUTS ? x[k + 2] : 0.0f, k + 3 < INPUTS ? x[k + 3] : 0.0f);
  }
}

__device__ __forceinline__ float dot(float4 a, float4 b, float sum) {
  return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

__device__ __forceinline__ float4 item_of(uint4 q, int half) {
  if constexpr (NARROW) {
    const unsigned a = half ? q.z : q.x, b = half ? q.w : q.y;
    return make_float4(__uint_as_float(a << 16), __uint_as_float(a & 0xFFFF0000u),
                       __uint_as_float(b << 16), __uint_as_float(b & 0xFFFF0000u));
  } else {
    return make_float4(__uint_as_float(q.x), __uint_as_float(q.y), __uint_as_float(q.z),
                       __uint_as_float(q.w));
  }
}

template <int LANES>
__device__ __forceinline__ float sum_of_lanes(float x) {
#pragma unroll
  for (int m = 1; m < LANES; m *= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, m);
  return x;
}

// ROWS sums over LANES lanes; a lane gets that of row lane % power_of_two(ROWS).
template <int LANES, int ROWS>
__device__ __forceinline__ float deal_sums(const float (&sum)[ROWS]) {
  constexpr int WIDE = power_of_two(ROWS);
  static_assert(WIDE <= LANES, "a lane has one sum");
  float v[WIDE];
#pragma unroll
  for (int r = 0; r < WIDE; ++r) v[r] = r < ROWS ? sum[r < ROWS ? r : 0] : 0.0f;
#pragma unroll
  for (int half = WIDE / 2; half > 0; half /= 2) {
    const bool upper = threadIdx.x & half;
#pragma unroll
    for (int r = 0; r < half; ++r) {
      const float given = upper ? v[r] : v[r + half];
      const float kept = upper ? v[r + half] : v[r];
      v[r] = kept + __shfl_xor_sync(0xFFFFFFFFu, given, half);
    }
  }
#pragma unroll
  for (int m = WIDE; m < LANES; m *= 2) v[0] += __shfl_xor_sync(0xFFFFFFFFu, v[0], m);
  return v[0];
}

template <typename M, bool SQUARES, typename S>
__device__ __forceinline__ void multiply_chunk(S& weights, int at, int chunk, int base,
                                               const float* x, float4& v, float (&sum)[M::ROWS],
                                               float& squares) {
  const uint4 q = weights.take(at + chunk, base);
#pragma unroll
  for (int half = 0; half < ITEMS_A_CHUNK; ++half) {
    const int item = chunk * ITEMS_A_CHUNK + half;
    if (item < M::ITEMS) {
      if (item % M::ROWS == 0) {
        const int step = item / M::ROWS + base * ITEMS_A_CHUNK / M::ROWS;
        v = four<M::INPUTS, M::LANES>(x, (step * M::LANES + threadIdx.x % M::LANES) * 4);
        if (SQUARES) squares = dot(v, v, squares);
      }
      sum[item % M::ROWS] = dot(item_of(q, half), v, sum[item % M::ROWS]);
    }
  }
}

// Fills in this lane's share of each row's sum, and returns that of the sum of squares of x.
template <typename M, bool SQUARES, typename S>
__device__ __forceinline__ float multiply(S& weights, int at, const float* x,
                                          float (&sum)[M::ROWS]) {
  constexpr int ROUND = chunks_a_round(M::ROWS), FULL = M::ITEMS / ITEMS_A_CHUNK;
  // Rounds of a loop end where the segment does not look ahead beyond itself.
  const int inside = (S::COUNT_OF - DEPTH - at) / ROUND;
  const int rounds = M::CHUNKS <= UNROLLED ? 0 : FULL / ROUND < inside ? FULL / ROUND : inside;
  float squares = 0.0f;
  float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
  for (int r = 0; r < M::ROWS; ++r) sum[r] = 0.0f;
#pragma unroll 1
  for (int round = 0; round < rounds; ++round) {
#pragma unroll
    for (int chunk = 0; chunk < ROUND; ++chunk)
      multiply_chunk<M, SQUARES>(weights, at, chunk, round * ROUND, x, v, sum, squares);
  }
#pragma unroll
  for (int chunk = 0; chunk < M::CHUNKS; ++chunk)
    if (chunk >= rounds * ROUND)
      multiply_chunk<M, SQUARES>(weights, at, chunk, 0, x, v, sum, squares);
  return squares;
}

template <int LANES>
__device__ __forceinline__ float norm_scale(float squares, int size) {
  return rsqrtf(sum_of_lanes<LANES>(squares) / size + 1e-5f);
}

// Calls use(output, W x) for each output in one thread; W norm(x) if NORM.
template <typename M, bool NORM, typename S, typename Use>
__device__ __forceinline__ void linear(S& weights, int at, const float* x, Use use) {
  float sum[M::ROWS];
  const float squares = multiply<M, NORM>(weights, at, x, sum);
  const float scale = NORM ? norm_scale<M::LANES>(squares, M::INPUTS) : 1.0f;
  const int first = threadIdx.x / M::LANES * M::ROWS;
  if constexpr (M::LANES == 1) {
#pragma unroll
    for (int r = 0; r < M::ROWS; ++r)
      if (first + r < M::OUTPUTS) use(first + r, sum[r] * scale);
  } else {
    const int row = threadIdx.x % M::LANES;
    const float y = deal_sums<M::LANES>(sum);
    if (row < M::ROWS && first + row < M::OUTPUTS) use(first + row, y * scale);
  }
}

// The products of two rows for a channel, in all lanes of it.
template <typename M, bool NORM, typename S>
__device__ __forceinline__ float2 linear_pair(S& weights, int at, const float* x) {
  float sum[2];
  const float squares = multiply<M, NORM>(weights, at, x, sum);
  const float scale = NORM ? norm_scale<M::LANES>(squares, M::INPUTS) : 1.0f;
  return make_float2(sum_of_lanes<M::LANES>(sum[0]) * scale, sum_of_lanes<M::LANES>(sum[1]) * scale);
}
