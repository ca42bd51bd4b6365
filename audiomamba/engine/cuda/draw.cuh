// Draw a token from logits, by the rules of audiomamba.sampling.sample.
#pragma once
#include "blocks.cuh"

constexpr int FAILED = -1;
constexpr int WARPS = THREADS / 32;
constexpr int LEVELS_A_LANE = (LEVELS + 31) / 32;

// The uniform number of audiomamba.engine.philox.uniform.
__device__ __forceinline__ float uniform(unsigned long long seed, unsigned long long stream,
                                         unsigned long long t) {
  unsigned c0 = t, c1 = t >> 32, c2 = stream, c3 = stream >> 32, k0 = seed, k1 = seed >> 32;
#pragma unroll
  for (int i = 0; i < 10; ++i) {
    const unsigned high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
    const unsigned high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
    c0 = high1 ^ c1 ^ k0, c1 = low1, c2 = high0 ^ c3 ^ k1, c3 = low0;
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return static_cast<float>(c0 >> 8 | 1) * (1.0f / 16777216);
}

__device__ __forceinline__ double sum_of_warp(double x) {
#pragma unroll
  for (int m = 16; m > 0; m /= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, m);
  return x;
}

__device__ __forceinline__ int sum_of_warp(int x) {
#pragma unroll
  for (int m = 16; m > 0; m /= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, m);
  return x;
}

__device__ __forceinline__ double total(const float* x) {
  double sum = 0.0;
  for (int i = threadIdx.x % 32; i < LEVELS; i += 32) sum += x[i];
  return sum_of_warp(sum);
}

// The sum of x over the lanes before this one.
__device__ __forceinline__ double sum_before(double x) {
  const int lane = threadIdx.x % 32;
  double sum = x;
#pragma unroll
  for (int m = 1; m < 32; m *= 2) {
    const double other = __shfl_up_sync(0xFFFFFFFFu, sum, m);
    if (lane >= m) sum += other;
  }
  const double before = __shfl_up_sync(0xFFFFFFFFu, sum, 1);
  return lane > 0 ? before : 0.0;
}

// Keeps the weights of the shortest prefix whose sizes reach `target`, in order of gap, and of token
// where gaps are equal; sets the others to 0. A size is a weight, or 1. The largest gap kept is found
// digit by digit of its bits, whose order is that of the floats: every warp tries a digit.
__device__ void keep(const float* gap, float* weight, bool of_ones, double target) {
  constexpr int BITS = WARPS >= 16 ? 4 : WARPS >= 8 ? 3 : WARPS >= 4 ? 2 : 1;
  constexpr int DIGITS = 1 << BITS, ROUNDS = (31 + BITS - 1) / BITS;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int found = 0;
#pragma unroll 1
  for (int round = ROUNDS - 1; round >= 0; --round) {
    found *= DIGITS;
    bool below = false;
    if (warp < DIGITS) {
      double reached = 0.0;
      for (int i = lane; i < LEVELS; i += 32)
        if (__float_as_int(gap[i]) >> round * BITS <= found + warp)
          reached += of_ones ? 1.0f : weight[i];
      below = sum_of_warp(reached) < target;
    }
    const int count = __syncthreads_count(below && lane == 0);
    found += count < DIGITS ? count : DIGITS - 1;
  }
  if (warp == 0) {
    double before = 0.0, at_edge = 0.0;
    for (int k = 0; k < LEVELS_A_LANE; ++k) {
      const int i = lane * LEVELS_A_LANE + k;
      if (i >= LEVELS) break;
      const double size = of_ones ? 1.0f : weight[i];
      const int bits = __float_as_int(gap[i]);
      if (bits < found) before += size;
      if (bits == found) at_edge += size;
    }
    double reached = sum_of_warp(before) + sum_before(at_edge);
    for (int k = 0; k < LEVELS_A_LANE; ++k) {
      const int i = lane * LEVELS_A_LANE + k;
      if (i >= LEVELS) break;
      const int bits = __float_as_int(gap[i]);
      const double size = of_ones ? 1.0f : weight[i];
      if (bits > found || (bits == found && reached >= target)) weight[i] = 0.0f;
      if (bits == found) reached += size;
    }
  }
  __syncthreads();
}

// In one warp: the first token at which the running sum of weights exceeds u times their sum.
__device__ __forceinline__ int invert(const float* weight, float u) {
  const int lane = threadIdx.x % 32;
  double mine = 0.0;
  for (int k = 0; k < LEVELS_A_LANE; ++k) {
    const int i = lane * LEVELS_A_LANE + k;
    if (i < LEVELS) mine += weight[i];
  }
  double mass = sum_before(mine);
  const double target = u * __shfl_sync(0xFFFFFFFFu, mass + mine, 31);
  int passed = 0;
  for (int k = 0; k < LEVELS_A_LANE; ++k) {
    const int i = lane * LEVELS_A_LANE + k;
    if (i >= LEVELS) break;
    mass += weight[i];
    passed += mass <= target;
  }
  passed = sum_of_warp(passed);
  return passed < LEVELS ? passed : LEVELS - 1;
}

// How a stream draws.
struct Drawing {
  float temperature;
  double top_k, top_p;
  unsigned long long seed, stream;
};

// Returns, in all threads, the token given or drawn from the logits in shared memory, and adds to
// `nats`, in thread 32, minus its log-likelihood before temperature and cuts.
__device__ __forceinline__ int choose(const Drawing& how, int given, bool alive,
                                      unsigned long long t, double& nats) {
  const float* logits = shared(LOGITS);
  float* gap = shared(GAP);
  float* weight = shared(WEIGHT);
  volatile int* token = reinterpret_cast<int*>(shared(TOKEN));
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const float infinity = __uint_as_float(0x7F800000u);
  float largest = -infinity;
  for (int i = lane; i < LEVELS; i += 32) largest = fmaxf(largest, logits[i]);
#pragma unroll
  for (int m = 16; m > 0; m /= 2)
    largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFFu, largest, m));
  bool finite = true;
  for (int i = threadIdx.x; i < LEVELS; i += THREADS) {
    const float below = largest - logits[i];
    finite = finite && below < infinity;  // false for what is no number
    gap[i] = below;
    weight[i] = how.temperature > 0.0f ? expf(-(below / how.temperature)) : 0.0f;
  }
  const bool drawn = __syncthreads_count(!finite) == 0 && given < 0 && alive;
  if (drawn && how.temperature > 0.0f) {  // the same in all threads
    if (how.top_k < LEVELS) keep(gap, weight, true, how.top_k);
    if (how.top_p < 1.0) keep(gap, weight, false, how.top_p * total(weight));
  }
  float mass = 0.0f;
  if (warp == 0) {
    int found = given;
    if (given < 0) found = FAILED;
    if (drawn && how.temperature > 0.0f) {
      found = invert(weight, uniform(how.seed, how.stream, t));
    } else if (drawn) {
      found = LEVELS;
      for (int i = lane; i < LEVELS; i += 32)
        if (gap[i] == 0.0f && i < found) found = i;
#pragma unroll
      for (int m = 16; m > 0; m /= 2) {
        const int other = __shfl_xor_sync(0xFFFFFFFFu, found, m);
        found = other < found ? other : found;
      }
    }
    if (lane == 0) *token = found;
  } else if (warp == 1) {
    double sum = 0.0;
    for (int i = lane; i < LEVELS; i += 32) sum += expf(-gap[i]);
    mass = static_cast<float>(sum_of_warp(sum));
  }
  __syncthreads();
  const int chosen = *token;
  if (threadIdx.x == 32) nats += logf(mass) + (chosen < 0 ? 0.0f : gap[chosen]);
  return chosen;
}
