// What a CUDA kernel needs of its language, for a C++ compiler: the threads of a block take turns on
// one core, and each runs until it waits for others.
#include <ucontext.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#define __device__
#define __global__
#define __shared__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct Index { int x; };
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }

template <typename To, typename From>
To bits_as(From from) {
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
inline float __uint_as_float(unsigned x) { return bits_as<float>(x); }
inline int __float_as_int(float x) { return bits_as<int>(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned long long)a * b >> 32; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __fdividef(float a, float b) { return a / b; }

Index threadIdx, blockIdx;
extern float4 shared_memory[];
float4 shared_memory[1 << 16];

struct Meeting {  // of `size` threads
  int size = 0, here = 0, count[2] = {};
  long long round = 0;
};
struct Machine {
  std::vector<ucontext_t> threads;
  std::vector<bool> done;
  std::vector<Meeting> warps;
  std::vector<unsigned long long> held[2];
  Meeting block;
  ucontext_t host;
  bool progress;
} machine;

inline void wait_at(Meeting& meeting) {
  const int me = threadIdx.x;
  const long long round = meeting.round;
  machine.progress = true;
  if (++meeting.here == meeting.size) {
    meeting.here = 0;
    meeting.count[++meeting.round % 2] = 0;
  }
  while (meeting.round == round) swapcontext(&machine.threads[me], &machine.host);
  threadIdx.x = me;
  machine.progress = true;
}

inline int __syncthreads_count(bool yes) {
  Meeting& block = machine.block;
  int& count = block.count[block.round % 2];
  count += yes;
  wait_at(block);
  return count;
}
inline void __syncthreads() { __syncthreads_count(false); }
inline void __syncwarp() { wait_at(machine.warps[threadIdx.x / 32]); }

template <typename T>
T exchange(T value, int source) {
  const int warp = threadIdx.x / 32;
  auto& held = machine.held[machine.warps[warp].round % 2];
  memcpy(&held[threadIdx.x], &value, sizeof value);
  wait_at(machine.warps[warp]);
  memcpy(&value, &held[warp * 32 + source], sizeof value);
  return value;
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) { return exchange(value, (threadIdx.x ^ mask) % 32); }
template <typename T>
T __shfl_sync(unsigned, T value, int lane) { return exchange(value, lane); }
template <typename T>
T __shfl_up_sync(unsigned, T value, int delta) {
  const int lane = threadIdx.x % 32;
  return exchange(value, lane >= delta ? lane - delta : lane);
}

#include "run.cu"

struct Launch {
  int* tokens; long long* streams; double* nats; float* logits; float4* state;
  const uint4* weights; const float4* vectors; const double* options; int samples;
} given;

void thread_main(int thread) {
  threadIdx.x = thread;
  run(given.tokens, given.streams, given.nats, given.logits, given.state, given.weights,
      given.vectors, given.options, given.samples);
  machine.done[thread] = machine.progress = true;
}

extern "C" int launch(int blocks, Launch launch) {
  constexpr size_t STACK = 1 << 18;
  std::vector<char> stacks(STACK * THREADS);
  given = launch;
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
    memset(shared_memory, 0xFF, sizeof shared_memory);  // no numbers
    machine = {};
    machine.threads.resize(THREADS);
    machine.done.assign(THREADS, false);
    machine.warps.resize(THREADS / 32);
    for (auto& warp : machine.warps) warp.size = 32;
    for (auto& held : machine.held) held.resize(THREADS);
    machine.block.size = THREADS;
    for (int i = 0; i < THREADS; ++i) {
      ucontext_t& thread = machine.threads[i];
      getcontext(&thread);
      thread.uc_stack.ss_sp = &stacks[STACK * i];
      thread.uc_stack.ss_size = STACK;
      thread.uc_link = &machine.host;
      makecontext(&thread, (void (*)())thread_main, 1, i);
    }
    do {
      machine.progress = false;
      for (int i = 0; i < THREADS; ++i)
        if (!machine.done[i]) {
          threadIdx.x = i;
          swapcontext(&machine.host, &machine.threads[i]);
        }
    } while (machine.progress);
    for (int i = 0; i < THREADS; ++i)
      if (!machine.done[i]) return 1;  // it waits for ever
  }
  return 0;
}
