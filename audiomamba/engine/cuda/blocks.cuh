// A block: x += mixer(norm(x)), in shared memory. Every barrier is a wait of all threads; what comes
// from memory is asked for before it.
#pragma once
#include "scan.cuh"

extern __shared__ float4 shared_memory[];

__device__ __forceinline__ float* shared(int at) {
  return reinterpret_cast<float*>(shared_memory) + at;
}

// Where a block reads, and where the one after it does.
struct Places {
  const uint4* weights;
  const uint4* weights_after;
  const float4* vectors;
  const float4* vectors_after;
  float4* state;
  const float4* state_after;
};

template <typename B>
__device__ __forceinline__ void mamba(Ring& ring, Mine<B>& mine, const Places& at) {
  using Weights = Segment<B::CHUNKS>;
  constexpr int SLOTS = THREADS / B::LANES, IN = B::In::CHUNKS;
  constexpr int SCAN = B::SCAN_CHUNKS;
  Weights weights{ring, at.weights, at.weights_after};
  const int slot = threadIdx.x / B::LANES;
  const bool first = threadIdx.x % B::LANES == 0;
  float* x = shared(X);
  float* y = shared(Y);
  float u[B::PASSES], z[B::PASSES];
#pragma unroll
  for (int pass = 0; pass < B::PASSES; ++pass) {
    const int start = pass * (B::KIND == S6 ? IN : IN + SCAN);
    const float2 pair = linear_pair<typename B::In, true>(weights, start, x);
    u[pass] = convolve(mine, pass, pair.x, at.state);
    z[pass] = silu(pair.y);
    if constexpr (B::KIND == LTI) {
      float out = scan_time_invariant(weights, start + IN, mine, pass, u[pass], at.state);
      out = fmaf(mine.vectors[pass][B::CONV + 1], u[pass], out) * z[pass];
      if (first && pass * SLOTS + slot < B::CHANNELS) y[pass * SLOTS + slot] = out;
    } else {
      if (first && pass * SLOTS + slot < B::CHANNELS) shared(U)[pass * SLOTS + slot] = u[pass];
    }
  }
  int start = B::PASSES * (IN + SCAN);
  if constexpr (B::KIND == S6) {
    float* chosen = shared(SELECTED);
    __syncthreads();
    linear<typename B::Select, false>(weights, B::PASSES * IN, shared(U),
                                      [&](int o, float v) { chosen[o] = v; });
    __syncthreads();
    start = B::PASSES * IN + B::Select::CHUNKS;
#pragma unroll
    for (int pass = 0; pass < B::PASSES; ++pass) {
      float out = scan_selective(weights, start, mine, pass, u[pass], chosen, at.state);
      out = fmaf(mine.vectors[pass][B::CONV + 1], u[pass], out) * z[pass];
      if (first && pass * SLOTS + slot < B::CHANNELS) y[pass * SLOTS + slot] = out;
      start += SCAN;
    }
  }
  fetch(mine, at.vectors_after, at.state_after);
  __syncthreads();
  linear<typename B::Out, false>(weights, start, y, [&](int o, float v) { x[o] += v; });
  weights.finish();
  __syncthreads();
}

template <typename B>
__device__ __forceinline__ void s4(Ring& ring, Mine<B>& mine, const Places& at) {
  using Weights = Segment<B::CHUNKS>;
  constexpr int SLOTS = THREADS / B::LANES;
  Weights weights{ring, at.weights, at.weights_after};
  const int slot = threadIdx.x / B::LANES, lane = threadIdx.x % B::LANES;
  float* x = shared(X);
  float* y = shared(Y);
  float* hidden = shared(HIDDEN);
  float squares = 0.0f;
#pragma unroll 4
  for (int k = lane * 4; k < B::MODEL; k += 4 * B::LANES) {
    const float4 v = four<B::MODEL, B::LANES>(x, k);
    squares = dot(v, v, squares);
  }
  const float scale = norm_scale<B::LANES>(squares, B::MODEL);
  int start = 0;
#pragma unroll
  for (int pass = 0; pass < B::PASSES; ++pass) {
    const int channel = pass * SLOTS + slot;
    const float u = channel < B::CHANNELS ? x[channel] * scale : 0.0f;
    const float out = scan_time_invariant(weights, start, mine, pass, u, at.state);
    if (lane == 0 && channel < B::CHANNELS) y[channel] = gelu(fmaf(mine.vectors[pass][0], u, out));
    start += B::SCAN_CHUNKS;
  }
  __syncthreads();
#pragma unroll
  for (int pass = 0; pass < B::PASSES; ++pass) {
    const int channel = pass * SLOTS + slot;
    const float2 pair = linear_pair<typename B::In, false>(weights, start, y);
    const float gate = sigmoid(pair.y + mine.vectors[pass][2]);
    if (lane == 0 && channel < B::CHANNELS)
      x[channel] += (pair.x + mine.vectors[pass][1]) * gate;
    start += B::In::CHUNKS;
  }
  const float* biases = reinterpret_cast<const float*>(at.vectors) + B::BIASES;
  fetch(mine, at.vectors_after, at.state_after);
  __syncthreads();
  linear<typename B::Up, true>(weights, start, x, [&](int o, float v) {
    hidden[o] = gelu(v + biases[o]);
  });
  __syncthreads();
  linear<typename B::Out, false>(weights, start + B::Up::CHUNKS, hidden, [&](int o, float v) {
    x[o] += v + biases[B::Up::OUTPUTS + o];
  });
  weights.finish();
  __syncthreads();
}
