// What a CUDA kernel needs of its language, for a C++ compiler: the threads of a block take turns on
// one core, and each runs until it waits for others. Behind every buffer is memory that nobody may
// touch.
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
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
  bool progress, fault;
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

constexpr int BUFFERS = 8;
struct Launch {
  void* buffers[BUFFERS];
  long long bytes[BUFFERS];
  int samples, shared_bytes;
};
enum Status { FINE, WAITS_FOR_EVER, BEYOND_A_BUFFER, BEYOND_SHARED_MEMORY };
enum Order { FORWARD, REVERSED, SHUFFLED };  // the first two warp by warp

// A copy whose end is that of its last page; the next is nobody's.
struct Guarded {
  char *pages, *copy;
  size_t before, bytes;

  explicit Guarded(const void* from, size_t size) : bytes(size) {
    const size_t page = sysconf(_SC_PAGESIZE);
    before = (size + page - 1) / page * page;
    pages = static_cast<char*>(mmap(nullptr, before + page, PROT_READ | PROT_WRITE,
                                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (pages == MAP_FAILED || mprotect(pages + before, page, PROT_NONE)) abort();
    copy = pages + before - size;
    if (from) memcpy(copy, from, size);
    before += page;
  }
  Guarded(const Guarded&) = delete;
  ~Guarded() { munmap(pages, before); }
  template <typename T>
  T* as() const { return reinterpret_cast<T*>(copy); }
};

const Guarded* given[BUFFERS];
int samples;

void thread_main(int thread) {
  threadIdx.x = thread;
  run(given[0]->as<int>(), given[1]->as<long long>(), given[2]->as<double>(), given[3]->as<float>(),
      given[4]->as<float4>(), given[5]->as<uint4>(), given[6]->as<float4>(), given[7]->as<double>(),
      samples);
  machine.done[thread] = machine.progress = true;
}

void on_fault(int) {
  machine.fault = true;
  setcontext(&machine.host);
}

// Lets on_fault have the signals of wrong addresses while it lives.
struct Watch {
  struct sigaction before[2];
  stack_t stack_before;
  std::vector<char> stack = std::vector<char>(1 << 16);

  Watch() {
    stack_t own = {};
    own.ss_sp = stack.data();
    own.ss_size = stack.size();
    sigaltstack(&own, &stack_before);
    struct sigaction action = {};
    action.sa_handler = on_fault;
    action.sa_flags = SA_ONSTACK;
    sigaction(SIGSEGV, &action, &before[0]);
    sigaction(SIGBUS, &action, &before[1]);
  }
  ~Watch() {
    sigaction(SIGSEGV, &before[0], nullptr);
    sigaction(SIGBUS, &before[1], nullptr);
    sigaltstack(&stack_before, nullptr);
  }
};

Status take_turns(char* stacks, size_t stack, Order order, int shared_bytes) {
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
    thread.uc_stack.ss_sp = stacks + stack * i;
    thread.uc_stack.ss_size = stack;
    thread.uc_link = &machine.host;
    makecontext(&thread, (void (*)())thread_main, 1, i);
  }
  std::vector<int> turns(THREADS);
  std::iota(turns.begin(), turns.end(), 0);
  if (order == REVERSED) std::reverse(turns.begin(), turns.end());
  const int together = order == SHUFFLED ? THREADS : 32;  // else a warp runs as far as it can alone
  std::mt19937 random;
  bool any;
  do {
    any = false;
    if (order == SHUFFLED) std::shuffle(turns.begin(), turns.end(), random);
    for (int first = 0; first < THREADS; first += together) {
      do {
        machine.progress = false;
        for (int turn = first; turn < first + together; ++turn) {
          const int i = turns[turn];
          if (machine.done[i]) continue;
          threadIdx.x = i;
          swapcontext(&machine.host, &machine.threads[i]);
          if (machine.fault) return BEYOND_A_BUFFER;
        }
        any = any || machine.progress;
      } while (machine.progress && order != SHUFFLED);
    }
  } while (any);
  if (std::count(machine.done.begin(), machine.done.end(), false)) return WAITS_FOR_EVER;
  const auto* bytes = reinterpret_cast<const unsigned char*>(shared_memory);
  const bool clean = std::all_of(bytes + shared_bytes, bytes + sizeof shared_memory,
                                 [](unsigned char byte) { return byte == 0xFF; });
  return clean ? FINE : BEYOND_SHARED_MEMORY;
}

extern "C" int launch(int blocks, int order, Launch launch) {
  constexpr size_t STACK = 1 << 18;
  const Watch watch;
  const Guarded stacks(nullptr, STACK * THREADS);
  std::vector<Guarded*> copies;
  for (int i = 0; i < BUFFERS; ++i) {
    copies.push_back(new Guarded(launch.buffers[i], launch.bytes[i]));
    given[i] = copies[i];
  }
  samples = launch.samples;
  Status status = FINE;
  for (blockIdx.x = 0; blockIdx.x < blocks && status == FINE; ++blockIdx.x)
    status = take_turns(stacks.copy, STACK, static_cast<Order>(order), launch.shared_bytes);
  for (int i = 0; i < BUFFERS; ++i) {
    memcpy(launch.buffers[i], copies[i]->copy, copies[i]->bytes);
    delete copies[i];
  }
  return status;
}
