// What a channel carries from sample to sample. LANES neighbouring threads have a channel: each has
// all of its short convolution, and some of its states. A thread has PASSES channels.
#pragma once
#include "linear.cuh"

constexpr float LOG2E = 1.4426950408889634f;

__device__ __forceinline__ float sigmoid(float x) {
  return __fdividef(1.0f, 1.0f + exp2f(-x * LOG2E));
}

__device__ __forceinline__ float silu(float x) { return x * sigmoid(x); }

__device__ __forceinline__ float gelu(float x) {
  return 0.5f * x * (1.0f + erff(x * 0.7071067811865476f));
}

__device__ __forceinline__ float softplus(float x) {
  return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x)));
}

// Sine and cosine, absolute errors below 1e-7 of angles up to 3000 turns, 1.5e-7 at 10,000; quarter
// turns are taken off in two parts, the first exact in float32 (Cody & Waite).
__device__ __forceinline__ float2 sin_cos(float angle) {
  const float quarters = rintf(angle * 0.6366197723675814f);
  const float r = fmaf(quarters, -0.0004838267923332751f, fmaf(quarters, -1.5703125f, angle));
  const float s = r * r;
  float sine = fmaf(s, -0.00019503628475888736f, 0.008332033748791065f);
  sine = fmaf(sine, s, -0.16666650638804853f);
  sine = r * fmaf(sine, s, 0.9999999969097353f);
  float cosine = fmaf(s, 2.437946186572317e-05f, -0.0013886614085631076f);
  cosine = fmaf(cosine, s, 0.04166661656645405f);
  cosine = fmaf(cosine, s, -0.4999999961360871f);
  cosine = fmaf(cosine, s, 1.0f);
  const int quadrant = static_cast<int>(quarters);
  const float a = quadrant & 1 ? cosine : sine, b = quadrant & 1 ? sine : cosine;
  return make_float2(quadrant & 2 ? -a : a, (quadrant + 1) & 2 ? -b : b);
}

__device__ __forceinline__ void unpack(float4 v, float* to) {
  to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
}

__device__ __forceinline__ float4 pack(const float* from) {
  return make_float4(from[0], from[1], from[2], from[3]);
}

// What a thread has of a block besides matrices, four numbers at a time: vectors of its channels, and
// their state. (No array may be empty.)
template <typename B>
struct Mine {
  float vectors[B::PASSES][4 * B::VECTORS];
  float past[B::PASSES][4 * B::PAST + 1];
  float states[B::PASSES][4 * B::STATES];
};

// A block's state: [pass][past][channel], then [pass][states][thread].
template <typename B>
__device__ __forceinline__ void fetch(Mine<B>& mine, const float4* vectors, const float4* state) {
  constexpr int SLOTS = THREADS / B::LANES;
  const int slot = threadIdx.x / B::LANES;
  const float4* states = state + B::PASSES * B::PAST * SLOTS;
#pragma unroll
  for (int pass = 0; pass < B::PASSES; ++pass) {
#pragma unroll
    for (int i = 0; i < B::VECTORS; ++i)
      unpack(vectors[(pass * B::VECTORS + i) * SLOTS + slot], &mine.vectors[pass][4 * i]);
#pragma unroll
    for (int i = 0; i < B::PAST; ++i)
      unpack(state[(pass * B::PAST + i) * SLOTS + slot], &mine.past[pass][4 * i]);
#pragma unroll
    for (int i = 0; i < B::STATES; ++i)
      unpack(states[(pass * B::STATES + i) * THREADS + threadIdx.x], &mine.states[pass][4 * i]);
  }
}

template <typename B>
__device__ __forceinline__ void store_states(const Mine<B>& mine, int pass, float4* state) {
  float4* states = state + B::PASSES * B::PAST * (THREADS / B::LANES);
#pragma unroll
  for (int i = 0; i < B::STATES; ++i)
    states[(pass * B::STATES + i) * THREADS + threadIdx.x] = pack(&mine.states[pass][4 * i]);
}

// silu(the short causal convolution of x); x enters the state.
template <typename B>
__device__ __forceinline__ float convolve(Mine<B>& mine, int pass, float x, float4* state) {
  constexpr int PAST = B::CONV - 1, SLOTS = THREADS / B::LANES;
  const float* weights = mine.vectors[pass];
  float* past = mine.past[pass];
  float y = fmaf(weights[PAST], x, weights[B::CONV]);
#pragma unroll
  for (int k = 0; k < PAST; ++k) y = fmaf(weights[k], past[k], y);
#pragma unroll
  for (int k = 0; k < PAST; ++k) past[k] = k + 1 < PAST ? past[k + 1] : x;
  __syncwarp();  // all lanes have read what the first of them writes
  if (threadIdx.x % B::LANES == 0)
#pragma unroll
    for (int i = 0; i < B::PAST; ++i)
      state[(pass * B::PAST + i) * SLOTS + threadIdx.x / B::LANES] = pack(past + 4 * i);
  return silu(y);
}

// h = a h + b; returns Re(c h).
template <typename B>
__device__ __forceinline__ float advance(Mine<B>& mine, int pass, int i, float2 a, float2 b,
                                         float2 c) {
  float& re = mine.states[pass][B::COMPLEX ? 2 * i : i];
  if constexpr (B::COMPLEX) {
    float& im = mine.states[pass][2 * i + 1];
    const float real = fmaf(a.x, re, fmaf(-a.y, im, b.x));
    im = fmaf(a.x, im, fmaf(a.y, re, b.y));
    re = real;
    return fmaf(c.x, re, -c.y * im);
  } else {
    re = fmaf(a.x, re, b.x);
    return c.x * re;
  }
}

// The scan of u with constant decay, gain and C.
template <typename B, typename S>
__device__ __forceinline__ float scan_time_invariant(S& weights, int at, Mine<B>& mine, int pass,
                                                     float u, float4* state) {
  constexpr int PARTS = B::COMPLEX ? 2 : 1;
  Numbers<S> numbers{weights, at, {}};
  float y = 0.0f;
#pragma unroll
  for (int i = 0; i < B::STATES_A_LANE; ++i) {
    float2 v[3] = {};  // decay, gain, C
#pragma unroll
    for (int k = 0; k < 3; ++k) {
      v[k].x = numbers.take((i * 3 + k) * PARTS);
      if (B::COMPLEX) v[k].y = numbers.take((i * 3 + k) * PARTS + 1);
    }
    y += advance(mine, pass, i, v[0], make_float2(v[1].x * u, v[1].y * u), v[2]);
  }
  store_states(mine, pass, state);
  return sum_of_lanes<B::LANES>(y);
}

// Copy numbers n ... n + 3 of those that a block selects from place `at` on, zeros beyond them.
template <typename B>
__device__ __forceinline__ void select(const float* x, int at, int n, float* to) {
  if constexpr (B::RANK % 4 == 0 && B::D_STATE % 4 == 0 && B::STATES_A_LANE % 4 == 0 &&
                B::STATES_A_LANE * B::LANES == B::D_STATE) {
    unpack(*reinterpret_cast<const float4*>(x + at + n), to);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = n + i < B::D_STATE ? x[at + n + i] : 0.0f;
  }
}

// The scan of u with what this sample selects: step size, and, as B then C, (part, state).
template <typename B, typename S>
__device__ __forceinline__ float scan_selective(S& weights, int at, Mine<B>& mine, int pass,
                                                float u, const float* chosen, float4* state) {
  constexpr int PARTS = B::COMPLEX ? 2 : 1, N = B::D_STATE;
  const int n = threadIdx.x % B::LANES * B::STATES_A_LANE;
  const float* rates = &mine.vectors[pass][B::CONV + 2];  // bias, then weights
  float delta = rates[0];
#pragma unroll
  for (int k = 0; k < B::RANK; ++k) delta = fmaf(rates[k + 1], chosen[k], delta);
  delta = softplus(delta);
  const float du = delta * u;
  Numbers<S> numbers{weights, at, {}};
  float y = 0.0f;
  float b[2][4] = {}, c[2][4] = {};
#pragma unroll
  for (int i = 0; i < B::STATES_A_LANE; ++i) {
    if (i % 4 == 0) {
#pragma unroll
      for (int part = 0; part < PARTS; ++part) {
        select<B>(chosen, B::RANK + part * N, n + i, b[part]);
        select<B>(chosen, B::RANK + (PARTS + part) * N, n + i, c[part]);
      }
    }
    float2 a = make_float2(exp2f(delta * numbers.take(i * PARTS)), 0.0f);
    if (B::COMPLEX) {
      const float2 turned = sin_cos(delta * numbers.take(i * PARTS + 1));
      a = make_float2(a.x * turned.y, a.x * turned.x);
    }
    y += advance(mine, pass, i, a,
                 make_float2(du * b[0][i % 4], du * b[1][i % 4]), make_float2(c[0][i % 4], c[1][i % 4]));
  }
  store_states(mine, pass, state);
  return sum_of_lanes<B::LANES>(y);
}
