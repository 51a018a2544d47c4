// Runs CUDA kernels on the CPU: enough of the language for a C++ compiler to take the .cu files as they are, and an
// emulation of grids, blocks, warps and threads. Written from the CUDA programming guide, not from our kernels.
//
// A kernel whose threads do not wait for each other runs as plain loops, one thread after the other (so sanitizers see
// ordinary code). One that uses barriers, shuffles or ballots runs each thread of a block as a fiber; a fiber that
// waits yields to the next. If every live thread waits and no barrier can open, the kernel is wrong and the run stops.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <ucontext.h>

#define HASHGRID_ON_HOST 1

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
// One block runs at a time on one thread of the machine, so a static variable is shared by the block.
#define __shared__ static

// ---- types -------------------------------------------------------------------------------------------------------

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct __half {
  uint16_t bits;
};

typedef struct CUstream_st* cudaStream_t;
enum cudaError_t { cudaSuccess = 0 };
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t) {
  std::memset(data, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor, cudaDevAttrMaxSharedMemoryPerBlockOptin };
// An H100, or one whose blocks get less shared memory, so that what kernels do then is run as well.
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const char* shared = std::getenv("HASHGRID_EMULATED_SHARED_BYTES");
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? 9 : shared != nullptr ? std::atoi(shared) : 227 * 1024;
  return cudaSuccess;
}
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
template <typename Kernel>
inline cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int) {
  return cudaSuccess;
}

// ---- emulation ---------------------------------------------------------------------------------------------------

namespace hashgrid_on_host {

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "cuda_on_host: %s\n", what);
  std::abort();
}

constexpr unsigned kWarp = 32;
constexpr size_t kStackBytes = 256 * 1024;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  bool finished = false;
};

// What the lanes of a warp that share a mask show each other. Two sets: a lane enters the next exchange while others still
// read this one; entering the one after that means that all of them have left.
struct MaskExchange {
  uint64_t values[2][kWarp][4];
  unsigned arrived[2] = {0, 0};
  unsigned departed[2] = {0, 0};
  uint64_t count[kWarp] = {};  // exchanges a lane has entered
};
typedef std::map<unsigned, MaskExchange> WarpExchange;

struct Block {
  std::vector<Fiber> fibers;
  std::vector<WarpExchange> warps;
  ucontext_t scheduler;
  unsigned current = 0;
  uint64_t barrier = 0;           // barriers opened
  unsigned waiting = 0;           // threads at the barrier
  unsigned live = 0;
  bool progressed = false;
  bool together = false;
  std::function<void()> body;
  std::vector<char> dynamic_shared;
};

inline Block*& block() {
  static thread_local Block* current = nullptr;
  return current;
}

inline std::map<std::string, int64_t>& launches() {
  static std::map<std::string, int64_t> counts;
  return counts;
}

inline dim3 thread_index, block_index, block_size, grid_size;

inline void yield_fiber() {
  Block& b = *block();
  const dim3 mine = thread_index;
  swapcontext(&b.fibers[b.current].context, &b.scheduler);
  thread_index = mine;
}

inline void run_fiber() {
  Block& b = *block();
  b.body();
  Fiber& fiber = b.fibers[b.current];
  fiber.finished = true;
  --b.live;
  b.progressed = true;
  swapcontext(&fiber.context, &b.scheduler);
}

inline void require_together(const char* what) {
  if (!block()->together) fail(what);
}

// Waits until every live thread of the block has arrived.
inline void sync_block() {
  require_together("__syncthreads in a kernel launched without HASHGRID_LAUNCH_TOGETHER");
  Block& b = *block();
  const uint64_t wanted = b.barrier + 1;
  ++b.waiting;
  b.progressed = true;
  while (b.barrier < wanted) {
    if (b.waiting == b.live) {
      b.waiting = 0;
      ++b.barrier;
      b.progressed = true;
      break;
    }
    yield_fiber();
  }
}

inline unsigned flat_thread() {
  return (thread_index.z * block_size.y + thread_index.y) * block_size.x + thread_index.x;
}
inline unsigned lane() { return flat_thread() % kWarp; }

// Lanes of the calling warp that have returned: nobody waits for them.
inline unsigned finished_lanes() {
  const Block& b = *block();
  const unsigned first = flat_thread() / kWarp * kWarp;
  const unsigned n_threads = block_size.x * block_size.y * block_size.z;
  unsigned finished = 0;
  for (unsigned l = 0; l < kWarp; ++l) {
    if (first + l >= n_threads || b.fibers[first + l].finished) finished |= 1u << l;
  }
  return finished;
}

// Every lane in `mask` deposits four words; afterwards each sees those of all.
inline const uint64_t (*exchange(unsigned mask, const uint64_t (&mine)[4]))[4] {
  require_together("a warp exchange in a kernel launched without HASHGRID_LAUNCH_TOGETHER");
  const unsigned thread = flat_thread(), l = thread % kWarp;
  if (!(mask >> l & 1u)) fail("a lane takes part in a warp exchange whose mask does not name it");
  MaskExchange& group = block()->warps[thread / kWarp][mask];
  const unsigned set = group.count[l]++ & 1u;
  std::memcpy(group.values[set][l], mine, sizeof(mine));
  group.arrived[set] |= 1u << l;
  block()->progressed = true;
  while (((group.arrived[set] | finished_lanes()) & mask) != mask) yield_fiber();
  static thread_local uint64_t seen[kWarp][4];
  std::memcpy(seen, group.values[set], sizeof(seen));
  group.departed[set] |= 1u << l;
  if (group.departed[set] == group.arrived[set]) group.arrived[set] = group.departed[set] = 0;
  return seen;
}

inline void run_block_together(const std::function<void()>& body, unsigned n_threads, size_t shared_bytes) {
  Block& b = *block();
  b.together = true;
  b.body = body;
  b.dynamic_shared.assign(shared_bytes + 128, 0);
  if (b.fibers.size() < n_threads) b.fibers.resize(n_threads);
  b.warps.assign((n_threads + kWarp - 1) / kWarp, WarpExchange());
  b.barrier = 0;
  b.waiting = 0;
  b.live = n_threads;
  for (unsigned t = 0; t < n_threads; ++t) {
    Fiber& fiber = b.fibers[t];
    if (!fiber.stack) fiber.stack.reset(new char[kStackBytes]);
    fiber.finished = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, &run_fiber, 0);
  }
  while (b.live > 0) {
    b.progressed = false;
    for (unsigned t = 0; t < n_threads; ++t) {
      if (b.fibers[t].finished) continue;
      b.current = t;
      thread_index = dim3(t % block_size.x, t / block_size.x % block_size.y, t / (block_size.x * block_size.y));
      swapcontext(&b.scheduler, &b.fibers[t].context);
      // A thread that returned may have been the last one a barrier waited for.
      if (b.live > 0 && b.waiting == b.live) {
        b.waiting = 0;
        ++b.barrier;
        b.progressed = true;
      }
    }
    if (!b.progressed) fail("deadlock: every thread of a block waits");
  }
  b.together = false;
}

inline void run_grid(const std::string& name, dim3 grid, dim3 block_shape, size_t shared_bytes, bool together,
                     const std::function<void()>& body) {
  static thread_local Block own;
  block() = &own;
  ++launches()[name];
  grid_size = grid;
  block_size = block_shape;
  const unsigned n_threads = block_shape.x * block_shape.y * block_shape.z;
  if (n_threads == 0 || n_threads > 1024) fail("a block must have 1 to 1024 threads");
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        block_index = dim3(x, y, z);
        if (together) {
          run_block_together(body, n_threads, shared_bytes);
          continue;
        }
        for (unsigned t = 0; t < n_threads; ++t) {
          thread_index = dim3(t % block_shape.x, t / block_shape.x % block_shape.y, t / (block_shape.x * block_shape.y));
          body();
        }
      }
    }
  }
}

// "(hash_encode_forward_kernel<float, 3>)" -> "hash_encode_forward_kernel"
inline std::string kernel_name(const char* text) {
  std::string name(text);
  const size_t begin = name.find_first_not_of("( ");
  const size_t end = name.find_first_of("<) ", begin);
  return name.substr(begin, end == std::string::npos ? end : end - begin);
}

inline char* dynamic_shared() {
  const uintptr_t address = reinterpret_cast<uintptr_t>(block()->dynamic_shared.data());
  return reinterpret_cast<char*>((address + 127) & ~static_cast<uintptr_t>(127));
}

template <typename To, typename From>
inline To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To out;
  std::memcpy(&out, &value, sizeof(out));
  return out;
}

template <typename T>
inline uint64_t to_word(T value) {
  uint64_t word = 0;
  static_assert(sizeof(T) <= 8);
  std::memcpy(&word, &value, sizeof(T));
  return word;
}
template <typename T>
inline T from_word(uint64_t word) {
  T value;
  std::memcpy(&value, &word, sizeof(T));
  return value;
}

}  // namespace hashgrid_on_host

#define HASHGRID_EMULATE(kernel, shape, together, ...)                                                        \
  do {                                                                                                        \
    const auto launch_shape = (shape);                                                                        \
    if (launch_shape.grid.x == 0 || launch_shape.grid.y == 0) break;                                          \
    hashgrid_on_host::run_grid(hashgrid_on_host::kernel_name(#kernel), launch_shape.grid, launch_shape.block, \
                               launch_shape.shared_bytes, together, [&] { (kernel)(__VA_ARGS__); });          \
  } while (false)

#define threadIdx hashgrid_on_host::thread_index
#define blockIdx hashgrid_on_host::block_index
#define blockDim hashgrid_on_host::block_size
#define gridDim hashgrid_on_host::grid_size

// ---- device functions --------------------------------------------------------------------------------------------

inline void __syncthreads() { hashgrid_on_host::sync_block(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { hashgrid_on_host::exchange(mask, {0, 0, 0, 0}); }

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const auto* all = hashgrid_on_host::exchange(mask, {predicate != 0 ? 1u : 0u, 0, 0, 0});
  unsigned votes = 0;
  for (unsigned l = 0; l < hashgrid_on_host::kWarp; ++l) {
    if (mask >> l & 1u && all[l][0] != 0) votes |= 1u << l;
  }
  return votes;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }

template <typename T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const unsigned l = hashgrid_on_host::lane();
  const auto* all = hashgrid_on_host::exchange(mask, {hashgrid_on_host::to_word(value), 0, 0, 0});
  const unsigned first = l / width * width;
  return hashgrid_on_host::from_word<T>(all[first + static_cast<unsigned>(source) % width][0]);
}
template <typename T>
inline T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
  const unsigned l = hashgrid_on_host::lane();
  const auto* all = hashgrid_on_host::exchange(mask, {hashgrid_on_host::to_word(value), 0, 0, 0});
  const unsigned other = l ^ static_cast<unsigned>(lane_mask);
  return other / width == l / width ? hashgrid_on_host::from_word<T>(all[other][0]) : value;
}
template <typename T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const unsigned l = hashgrid_on_host::lane();
  const auto* all = hashgrid_on_host::exchange(mask, {hashgrid_on_host::to_word(value), 0, 0, 0});
  return l % width + delta < static_cast<unsigned>(width) ? hashgrid_on_host::from_word<T>(all[l + delta][0]) : value;
}
template <typename T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const unsigned l = hashgrid_on_host::lane();
  const auto* all = hashgrid_on_host::exchange(mask, {hashgrid_on_host::to_word(value), 0, 0, 0});
  return l % width >= delta ? hashgrid_on_host::from_word<T>(all[l - delta][0]) : value;
}

// Threads run one at a time, so a read-modify-write is atomic as it is.
template <typename T, typename V>
inline T atomicAdd(T* target, V value) {
  const T before = *target;
  *target = static_cast<T>(before + static_cast<T>(value));
  return before;
}
template <typename T, typename V>
inline T atomicMax(T* target, V value) {
  const T before = *target;
  *target = std::max(before, static_cast<T>(value));
  return before;
}
template <typename T, typename V>
inline T atomicMin(T* target, V value) {
  const T before = *target;
  *target = std::min(before, static_cast<T>(value));
  return before;
}
template <typename T, typename V>
inline T atomicOr(T* target, V value) {
  const T before = *target;
  *target = before | static_cast<T>(value);
  return before;
}
template <typename T, typename V>
inline T atomicExch(T* target, V value) {
  const T before = *target;
  *target = static_cast<T>(value);
  return before;
}

inline float __uint_as_float(unsigned x) { return hashgrid_on_host::bits_as<float>(x); }
inline unsigned __float_as_uint(float x) { return hashgrid_on_host::bits_as<unsigned>(x); }
inline float __int_as_float(int x) { return hashgrid_on_host::bits_as<float>(x); }
inline int __float_as_int(float x) { return hashgrid_on_host::bits_as<int>(x); }
inline __half __ushort_as_half(unsigned short x) { return {x}; }
inline unsigned short __half_as_ushort(__half x) { return x.bits; }
inline float __half2float(__half x) { return static_cast<float>(hashgrid_on_host::bits_as<_Float16>(x.bits)); }
inline __half __float2half_rn(float x) {
  return {hashgrid_on_host::bits_as<uint16_t>(static_cast<_Float16>(x))};
}
inline float __double2float_ru(double x) {
  const float nearest = static_cast<float>(x);
  return static_cast<double>(nearest) < x ? std::nextafter(nearest, std::numeric_limits<float>::infinity()) : nearest;
}
inline float __fmul_rn(float a, float b) { return a * b; }
inline double __dmul_rn(double a, double b) { return a * b; }
template <typename T>
inline T __ldg(const T* p) {
  return *p;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline void __threadfence() {}
inline void __threadfence_block() {}
