// Many samples a launch: one block of threads a stream, nothing asked of the host.
#include "draw.cuh"

struct Memory {
  const uint4* weights;  // this thread's
  const float4* vectors;
  float4* state;
};

__device__ __forceinline__ const uint4* stream_at(const Memory& memory, int chunk) {
  return memory.weights + static_cast<long long>(chunk) * THREADS;
}

template <typename T>
__device__ __forceinline__ void run_block(Ring& ring, Mine<T>& mine, const Places& at) {
  if constexpr (T::KIND == S4)
    s4(ring, mine, at);
  else
    mamba(ring, mine, at);
}

// Pass x, the tier's frame at phase, through its blocks; `after` is what is read behind them.
template <typename T>
__device__ __forceinline__ void run_tier(Ring& ring, const Memory& memory, int phase,
                                         const uint4* after) {
  constexpr int COUNT = T::POOL > 0 ? 2 * T::BLOCKS : T::BLOCKS;
  constexpr bool EARLY = T::MODEL <= THREADS;
  float* frame = reinterpret_cast<float*>(memory.state + T::FRAME);
  const float* late = reinterpret_cast<const float*>(memory.state + T::LATE);
  const int here = T::POOL > 0 ? phase % (T::POOL > 0 ? T::POOL : 1) * T::MODEL : 0;
  float said = 0.0f;
  if (T::POOL > 0 && EARLY && threadIdx.x < T::MODEL) said = late[here + threadIdx.x];
  const uint4* weights = stream_at(memory, T::CHUNK_AT);
  const float4* vectors = memory.vectors + T::VECTORS_AT;
  float4* state = memory.state + T::STATE_AT;
  Mine<T> mine;
  fetch(mine, vectors, state);
#pragma unroll 1
  for (int i = 0; i < COUNT; ++i) {
    if (T::POOL > 0 && i == T::BLOCKS) {
      float* x = shared(X);
      for (int k = threadIdx.x; k < T::MODEL; k += THREADS) {
        frame[here + k] = x[k];
        x[k] += EARLY ? said : late[here + k];
      }
      __syncthreads();
    }
    const bool last = i + 1 == COUNT;
    const uint4* weights_after = last ? after : weights + T::CHUNKS * THREADS;
    const float4* vectors_after = last ? vectors : vectors + T::VECTORS_SIZE;
    float4* state_after = last ? state : state + T::STATE_SIZE;
    run_block(ring, mine, {weights, weights_after, vectors, vectors_after, state, state_after});
    weights = weights_after;
    vectors = vectors_after;
    state = state_after;
  }
}

// Whether the tier's frame at phase is the last of one of the tier inside it.
template <typename T>
__device__ __forceinline__ bool is_whole(int phase) {
  return T::POOL > 0 && phase % (T::POOL > 0 ? T::POOL : 1) == T::POOL - 1;
}

// Run the tiers inside T if its frame at phase made theirs whole. They speak to T's next frame.
template <typename T>
__device__ __forceinline__ void run_inside(Ring& ring, const Memory& memory, int phase,
                                           const uint4* after) {
  if constexpr (T::POOL > 0) {
    using I = typename T::Inner;
    if (is_whole<T>(phase)) {
      const int inner = phase / T::POOL;
      float* frame = reinterpret_cast<float*>(memory.state + T::FRAME);
      float* late = reinterpret_cast<float*>(memory.state + T::LATE);
      float* x = shared(X);
      const float* biases = reinterpret_cast<const float*>(memory.vectors + T::BIASES_AT);
      Segment<T::Pooling::CHUNKS> pooling{ring, stream_at(memory, T::POOLING),
                                          stream_at(memory, I::CHUNK_AT)};
      linear<typename T::Pooling, false>(pooling, 0, frame,
                                         [&](int o, float v) { x[o] = v + biases[o]; });
      pooling.finish();
      __syncthreads();
      run_tier<I>(ring, memory, inner, stream_at(memory, T::UNPOOLING));
      const uint4* next = is_whole<I>(inner) ? stream_at(memory, I::POOLING) : after;
      Segment<T::Unpooling::CHUNKS> unpooling{ring, stream_at(memory, T::UNPOOLING), next};
      biases += T::Pooling::OUTPUTS;
      linear<typename T::Unpooling, false>(unpooling, 0, x,
                                           [&](int o, float v) { late[o] = v + biases[o]; });
      unpooling.finish();
      __syncthreads();
      run_inside<I>(ring, memory, inner, after);
    }
  }
}

// tokens: (streams, samples); negative ones are drawn and filled in, and stay FAILED from the first
//   for which a logit is not finite; others are read.
// streams: (streams, 4): position, previous token, seed, number; the first two are moved on. The
//   previous token of a stream that failed is FAILED for ever.
// nats: (streams,), to which minus the log-likelihood of the tokens is added.
// all_logits: (streams, levels), of the last token.
// state: (streams, STATE); weights, vectors: as cuda_plan.py lays them out.
// options: temperature, top-k, top-p.
extern "C" __global__ void __launch_bounds__(THREADS)
    run(int* tokens, long long* streams, double* nats, float* all_logits, float4* state,
        const uint4* weights, const float4* vectors, const double* options, int samples) {
  const long long row = blockIdx.x;
  tokens += row * samples;
  streams += row * 4;
  const Memory memory{weights + threadIdx.x, vectors, state + row * STATE};
  const float* embedding = reinterpret_cast<const float*>(vectors + EMBEDDING);
  const float* head_bias = reinterpret_cast<const float*>(vectors + HEAD_BIAS);
  float* x = shared(X);
  float* logits = shared(LOGITS);
  const unsigned long long position = streams[0];
  int previous = streams[1];
  const Drawing how{static_cast<float>(options[0]), options[1], options[2],
                    static_cast<unsigned long long>(streams[2]),
                    static_cast<unsigned long long>(streams[3])};
  double spent = nats[row];
  int phase = position % PERIOD;
  const uint4* start = stream_at(memory, Tier0::CHUNK_AT);
  Ring ring;
  fill(ring, start);
#pragma unroll 1
  for (int i = 0; i < samples; ++i) {
    const int given = tokens[i];
    for (int k = threadIdx.x; k < Tier0::MODEL; k += THREADS)
      x[k] = embedding[static_cast<long long>(previous < 0 ? 0 : previous) * Tier0::MODEL + k];
    __syncthreads();
    run_tier<Tier0>(ring, memory, phase, stream_at(memory, HEAD));
    const uint4* next = is_whole<Tier0>(phase) ? stream_at(memory, Tier0::POOLING) : start;
    Segment<Head::CHUNKS> head{ring, stream_at(memory, HEAD), next};
    linear<Head, true>(head, 0, x, [&](int o, float v) { logits[o] = v + head_bias[o]; });
    head.finish();
    __syncthreads();
    const int token = choose(how, given, previous >= 0, position + i, spent);
    if (given < 0 && threadIdx.x == 0) tokens[i] = token;
    if (i == samples - 1)
      for (int k = threadIdx.x; k < LEVELS; k += THREADS) all_logits[row * LEVELS + k] = logits[k];
    run_inside<Tier0>(ring, memory, phase, start);
    previous = previous < 0 ? FAILED : token;
    phase = phase + 1 == PERIOD ? 0 : phase + 1;
  }
  if (threadIdx.x == 0) {
    streams[0] = position + samples;
    streams[1] = previous;
  }
  if (threadIdx.x == 32) nats[row] = spent;
}
