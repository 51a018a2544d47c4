// Runs CUDA kernels on the CPU: enough of the language for a C++ compiler to take the .cu files as they are, and an
// emulation of grids, blocks, warps and threads. Written from the CUDA programming guide, not from our kernels.
//
// A kernel whose threads do not wait for each other runs as plain loops, one thread after the other (so sanitizers see
// ordinary code). One that uses barriers, shuffles or ballots runs each thread of a block as a fiber; a fiber that
// waits yields to the next. The run stops where a GPU would do anything: threads that wait for each other for ever,
// that meet in a barrier or an exchange from different lines, shapes no GPU accepts, writes beside the dynamic shared
// memory.
//
// What a kernel may not rely on is taken away: a block finds NaN in its shared memory, and every other block, and every
// other launch of a kernel, runs its threads from the last to the first (HASHGRID_EMULATED_ORDER=forward or reverse
// fixes the order). Within a statement threads do not mix: a sum that should be atomic and is not looks right here.
//
// More of the environment, read at every launch:
//
//     HASHGRID_EMULATED_CAPABILITY=7.5       the GPU's compute capability instead of 9.0
//     HASHGRID_EMULATED_SHARED_BYTES=N       shared memory of a block
//     HASHGRID_EMULATED_L2_BYTES=N           cache
//     HASHGRID_EMULATED_MMA=truncate         tensor cores add up as those of sm_80 do; see mma_on_host.h
//     HASHGRID_EMULATED_EXPF=ulp             expf is off by one unit in the last place, up or down
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <source_location>
#include <string>
#include <tuple>
#include <vector>

#include <setjmp.h>
#include <ucontext.h>
#include <unistd.h>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define HASHGRID_ON_HOST 1

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
// One block runs at a time on one thread of the machine, so a static variable is shared by the block. shared.ld
// collects those of all kernels in one section, where each block begins with them poisoned.
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
// A device for each setting of the environment's HASHGRID_EMULATED_*, so that what is kept of one is not taken for
// another's.
inline cudaError_t cudaGetDevice(int* device) {
  static std::map<std::string, int> numbers;
  std::string settings;
  for (char** text = environ; *text != nullptr; ++text) {
    if (std::strncmp(*text, "HASHGRID_EMULATED_", 18) == 0) settings += std::string(*text) + '\n';
  }
  *device = numbers.emplace(settings, static_cast<int>(numbers.size())).first->second;
  return cudaSuccess;
}
namespace hashgrid_on_host {
inline int64_t questions = 0;  // that the driver was asked about devices and kernels
}
enum cudaDeviceAttr {
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrL2CacheSize,
  cudaDevAttrMultiProcessorCount
};
// Ten times the emulated GPU's compute capability.
inline int emulated_capability() {
  const char* text = std::getenv("HASHGRID_EMULATED_CAPABILITY");
  return text != nullptr ? static_cast<int>(std::lround(10.0 * std::atof(text))) : 90;
}
// An H100, or one whose blocks get less shared memory, or with a smaller cache, so that what kernels do then is run as
// well. It has one multiprocessor: blocks that go on to the next piece of work have some left.
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  ++hashgrid_on_host::questions;
  const auto number = [](const char* name, int otherwise) {
    const char* text = std::getenv(name);
    return text != nullptr ? std::atoi(text) : otherwise;
  };
  if (attribute == cudaDevAttrComputeCapabilityMajor) {
    *value = emulated_capability() / 10;
  } else if (attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin) {
    *value = number("HASHGRID_EMULATED_SHARED_BYTES", 227 * 1024);
  } else if (attribute == cudaDevAttrMultiProcessorCount) {
    *value = 1;
  } else {
    *value = number("HASHGRID_EMULATED_L2_BYTES", 50 << 20);
  }
  return cudaSuccess;
}
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
struct cudaFuncAttributes {
  int ptxVersion;
};
template <typename... Arguments>
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, void (*)(Arguments...)) {
  ++hashgrid_on_host::questions;
  attributes->ptxVersion = emulated_capability();
  return cudaSuccess;
}

// ---- emulation ---------------------------------------------------------------------------------------------------

namespace hashgrid_on_host {

constexpr unsigned kWarp = 32;
constexpr size_t kStackBytes = 256 * 1024;
constexpr size_t kGuardBytes = 128;                // on either side of the dynamic shared memory
constexpr size_t kUnaskedSharedBytes = 48 * 1024;  // of dynamic shared memory, without cudaFuncSetAttribute
constexpr int kPoison = 0xff;                      // as any float: NaN; as an integer: -1
constexpr int kGuard = 0xa5;

inline const char*& running() {
  static const char* kernel = "no kernel";
  return kernel;
}

[[noreturn]] inline void fail(const std::string& what) {
  std::fprintf(stderr, "cuda_on_host: %s: %s\n", running(), what.c_str());
  std::abort();
}

// Whether this run is to show a fault; see build_with_faults.
inline bool planted(const char* fault) {
  static const char* chosen = std::getenv("HASHGRID_PLANTED");
  return chosen != nullptr && std::strcmp(chosen, fault) == 0;
}

// How the emulated GPU computes where real ones do not round to nearest.
struct Arithmetic {
  bool truncating_sums = false;
  bool rough_expf = false;
};

inline Arithmetic& arithmetic() {
  static Arithmetic current;
  return current;
}

inline void choose_arithmetic() {
  const auto is = [](const char* name, const char* value) {
    const char* text = std::getenv(name);
    if (text != nullptr && *text != 0 && std::strcmp(text, value) != 0) {
      fail(std::string(name) + " must be unset or " + value + ", got " + text);
    }
    return text != nullptr && *text != 0;
  };
  arithmetic().truncating_sums = is("HASHGRID_EMULATED_MMA", "truncate");
  arithmetic().rough_expf = is("HASHGRID_EMULATED_EXPF", "ulp");
}

// ---- kernels and their launches ----

struct Kernel {
  std::string name;  // with its template arguments
  int64_t launches = 0;
};

// Every kernel some line can launch, launched or not: each instance of HASHGRID_EMULATE adds its own when the module is
// loaded.
inline std::map<std::string, Kernel>& kernels() {
  static std::map<std::string, Kernel> all;
  return all;
}

// "std::string name_of() [with auto kKernel = hashgrid::device::f<float, 3>; std::string = ...]" -> "f<float, 3>"
template <auto kKernel>
std::string name_of() {
  std::string name = __PRETTY_FUNCTION__;
  name = name.substr(name.find("kKernel = ") + 10);
  name = name.substr(0, name.find_first_of(";]"));
  for (const std::string noise : {"&", "hashgrid::device::", "hashgrid::"}) {
    for (size_t at = name.find(noise); at != std::string::npos; at = name.find(noise)) name.erase(at, noise.size());
  }
  return name;
}

inline Kernel& add_kernel(const std::string& name) {
  Kernel& kernel = kernels()[name];
  kernel.name = name;
  return kernel;
}

template <auto kKernel>
struct Instance {
  static inline Kernel& record = add_kernel(name_of<kKernel>());
};

// Dynamic shared memory that a kernel has asked for on the current device.
inline size_t& asked_shared(const void* kernel) {
  static std::map<std::pair<int, const void*>, size_t> bytes;
  int device = 0;
  (void)cudaGetDevice(&device);
  return bytes.emplace(std::make_pair(device, kernel), kUnaskedSharedBytes).first->second;
}

// ---- blocks, warps, threads ----

// Where threads meet. A helper's line stands for all its callers.
typedef std::source_location Site;
inline bool same(const Site& a, const Site& b) {
  return a.line() == b.line() && a.column() == b.column() && std::strcmp(a.file_name(), b.file_name()) == 0;
}
inline std::string text_of(const Site& site) { return site.file_name() + (":" + std::to_string(site.line())); }

struct Fiber {
  ucontext_t start;  // swapcontext asks the kernel for the signal mask every time: it serves the first entry only
  jmp_buf state;
  std::unique_ptr<char[]> stack;
  dim3 thread;
  bool started = false;
  bool finished = false;
  uint64_t barrier = 0;  // waits until this one has opened
  void* sanitizer = nullptr;
};

// What the lanes of a warp that share a mask show each other. Two sets: a lane enters the next exchange while others
// still read this one; entering the one after that means that all of them have left.
struct MaskExchange {
  uint64_t values[2][kWarp][4];
  Site sites[2];
  unsigned arrived[2] = {0, 0};
  unsigned departed[2] = {0, 0};
  uint64_t count[kWarp] = {};  // exchanges a lane has entered
};

struct Warp {
  std::map<unsigned, MaskExchange> exchanges;  // by mask
  unsigned finished = 0;                       // lanes that have returned or never were: nobody waits for them
};

struct Block {
  std::deque<Fiber> fibers;  // contexts point into themselves: they must not move
  std::vector<Warp> warps;
  jmp_buf scheduler;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
  void* sanitizer = nullptr;
  unsigned current = 0;
  uint64_t barrier = 0;  // barriers opened
  unsigned waiting = 0;  // threads at the barrier
  Site barrier_site;
  unsigned live = 0;
  bool progressed = false;
  bool together = false;
  const std::function<void()>* body = nullptr;
  std::vector<char> dynamic_shared;
};

inline Block& block() {
  static Block one;
  return one;
}

inline dim3 thread_index, block_index, block_size, grid_size;

inline unsigned flat_thread() {
  return (thread_index.z * block_size.y + thread_index.y) * block_size.x + thread_index.x;
}
inline unsigned lane() { return flat_thread() % kWarp; }

// AddressSanitizer wants to know which stack is in use.
#if defined(__SANITIZE_ADDRESS__)
inline void leave_stack(void** saved, const void* next, size_t bytes) {
  __sanitizer_start_switch_fiber(saved, next, bytes);
}
inline void enter_stack(void* saved, const void** last, size_t* bytes) {
  __sanitizer_finish_switch_fiber(saved, last, bytes);
}
#else
inline void leave_stack(void**, const void*, size_t) {}
inline void enter_stack(void*, const void**, size_t*) {}
#endif

__attribute__((noinline)) inline void yield_fiber() {
  Block& b = block();
  Fiber& fiber = b.fibers[b.current];
  leave_stack(&fiber.sanitizer, b.scheduler_stack, b.scheduler_stack_bytes);
  if (_setjmp(fiber.state) == 0) _longjmp(b.scheduler, 1);
  enter_stack(fiber.sanitizer, &b.scheduler_stack, &b.scheduler_stack_bytes);
}

// A fiber runs one thread of block after block.
inline void run_fiber() {
  enter_stack(nullptr, &block().scheduler_stack, &block().scheduler_stack_bytes);
  for (;;) {
    Block& b = block();
    (*b.body)();
    b.fibers[b.current].finished = true;
    b.warps[b.current / kWarp].finished |= 1u << b.current % kWarp;
    --b.live;
    b.progressed = true;
    yield_fiber();
  }
}

__attribute__((noinline)) inline void resume(Fiber& fiber) {
  Block& b = block();
  leave_stack(&b.sanitizer, fiber.stack.get(), kStackBytes);
  if (_setjmp(b.scheduler) == 0) {
    if (fiber.started) _longjmp(fiber.state, 1);
    fiber.started = true;
    setcontext(&fiber.start);
  }
  enter_stack(b.sanitizer, nullptr, nullptr);
}

inline void require_together(const char* what) {
  if (!block().together) fail(std::string(what) + " in a kernel launched without HASHGRID_LAUNCH_TOGETHER");
}

// Every live thread has arrived, or has returned instead.
inline void open_barrier() {
  Block& b = block();
  b.waiting = 0;
  ++b.barrier;
  b.progressed = true;
}

inline void sync_block(Site site) {
  require_together("__syncthreads");
  Block& b = block();
  if (b.waiting > 0 && !same(site, b.barrier_site)) {
    fail("threads of a block wait at different barriers, " + text_of(b.barrier_site) + " and " + text_of(site));
  }
  b.barrier_site = site;
  b.fibers[b.current].barrier = b.barrier + 1;
  b.progressed = true;
  if (++b.waiting == b.live) {
    open_barrier();
  } else {
    yield_fiber();
  }
}

// Every lane in `mask` deposits four words; afterwards each sees those of all. What is returned holds until the thread
// waits again.
inline const uint64_t (*exchange(unsigned mask, const uint64_t (&mine)[4], Site site))[4] {
  require_together("a warp exchange");
  const unsigned thread = flat_thread(), l = thread % kWarp;
  if (!(mask >> l & 1u)) fail("a lane takes part in a warp exchange whose mask does not name it");
  Warp& warp = block().warps[thread / kWarp];
  MaskExchange& group = warp.exchanges[mask];
  const unsigned set = group.count[l]++ & 1u;
  if (group.arrived[set] != 0 && !same(site, group.sites[set])) {
    fail("lanes of a warp meet from different lines, " + text_of(group.sites[set]) + " and " + text_of(site));
  }
  group.sites[set] = site;
  std::memcpy(group.values[set][l], mine, sizeof(mine));
  group.arrived[set] |= 1u << l;
  block().progressed = true;
  while (((group.arrived[set] | warp.finished) & mask) != mask) yield_fiber();
  group.departed[set] |= 1u << l;
  if (group.departed[set] == group.arrived[set]) group.arrived[set] = group.departed[set] = 0;
  return group.values[set];
}

// ---- grids ----

// Of the kernels' __shared__ variables; see shared.ld.
extern "C" __attribute__((visibility("hidden"))) char hashgrid_shared_begin[], hashgrid_shared_end[];

inline void begin_shared(size_t bytes) {
#if !defined(__SANITIZE_ADDRESS__)  // which puts memory of its own between variables
  std::memset(hashgrid_shared_begin, kPoison, static_cast<size_t>(hashgrid_shared_end - hashgrid_shared_begin));
#endif
  std::vector<char>& memory = block().dynamic_shared;
  memory.assign(bytes + 3 * kGuardBytes, static_cast<char>(kGuard));
}

inline dim3 thread_of(unsigned t) {
  return dim3(t % block_size.x, t / block_size.x % block_size.y, t / (block_size.x * block_size.y));
}

inline char* dynamic_shared();

inline void run_block_together(const std::function<void()>& body, unsigned n_threads, size_t shared_bytes,
                               bool reverse) {
  Block& b = block();
  b.together = true;
  b.body = &body;
  begin_shared(shared_bytes);
  std::memset(dynamic_shared(), kPoison, shared_bytes);
  while (b.fibers.size() < n_threads) b.fibers.emplace_back();
  b.warps.assign((n_threads + kWarp - 1) / kWarp, Warp());
  if (n_threads % kWarp != 0) b.warps.back().finished = ~0u << n_threads % kWarp;
  b.barrier = 0;
  b.waiting = 0;
  b.live = n_threads;
  for (unsigned t = 0; t < n_threads; ++t) {
    Fiber& fiber = b.fibers[t];
    fiber.thread = thread_of(t);
    fiber.finished = false;
    fiber.barrier = 0;
    if (fiber.started) continue;
    fiber.stack.reset(new char[kStackBytes]);
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.get();
    fiber.start.uc_stack.ss_size = kStackBytes;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, &run_fiber, 0);
  }
  // A warp runs as far as it gets before the next one begins: the unfairest order finds the most missing barriers.
  const unsigned n_warps = static_cast<unsigned>(b.warps.size());
  while (b.live > 0) {
    bool any = false;
    for (unsigned w = 0; w < n_warps; ++w) {
      const unsigned first = (reverse ? n_warps - 1 - w : w) * kWarp, end = std::min(first + kWarp, n_threads);
      do {
        b.progressed = false;
        for (unsigned i = first; i < end; ++i) {
          const unsigned t = reverse ? first + end - 1 - i : i;
          Fiber& fiber = b.fibers[t];
          if (fiber.finished || fiber.barrier > b.barrier) continue;
          b.current = t;
          thread_index = fiber.thread;
          resume(fiber);
          if (b.live > 0 && b.waiting == b.live) open_barrier();
        }
        any = any || b.progressed;
      } while (b.progressed);
    }
    if (!any) fail("deadlock: every thread of a block waits");
  }
  const char* memory = dynamic_shared();
  for (size_t i = 0; i < kGuardBytes; ++i) {
    if (memory[-1 - static_cast<ptrdiff_t>(i)] != static_cast<char>(kGuard) ||
        memory[shared_bytes + i] != static_cast<char>(kGuard)) {
      fail("a thread writes beside the dynamic shared memory");
    }
  }
  b.together = false;
}

// CUDA programming guide, "Technical Specifications per Compute Capability".
inline void check_shape(dim3 grid, dim3 block_shape, size_t shared_bytes, const void* function) {
  const auto refuse = [](const char* what, uint64_t value) {
    fail(what + std::string(", got ") + std::to_string(value));
  };
  if (grid.x < 1 || grid.x > 2147483647u) refuse("a grid must be 1 to 2^31 - 1 blocks wide", grid.x);
  if (grid.y < 1 || grid.y > 65535u) refuse("a grid must be 1 to 65535 blocks high", grid.y);
  if (grid.z < 1 || grid.z > 65535u) refuse("a grid must be 1 to 65535 blocks deep", grid.z);
  if (block_shape.x < 1 || block_shape.y < 1 || block_shape.z < 1 || block_shape.z > 64) {
    refuse("a block must be 1 to 64 threads deep", block_shape.z);
  }
  const uint64_t n_threads = uint64_t{block_shape.x} * block_shape.y * block_shape.z;
  if (n_threads > 1024) refuse("a block must have 1 to 1024 threads", n_threads);
  if (shared_bytes > asked_shared(function))
    refuse("more dynamic shared memory than asked for with cudaFuncSetAttribute", shared_bytes);
}

// Whether a launch runs its first block from the last thread to the first.
inline bool begins_in_reverse(const Kernel& kernel) {
  const char* order = std::getenv("HASHGRID_EMULATED_ORDER");
  return order != nullptr ? std::strcmp(order, "reverse") == 0 : kernel.launches % 2 != 0;
}

inline void run_grid(Kernel& kernel, const void* function, dim3 grid, dim3 block_shape, size_t shared_bytes,
                     bool together, const std::function<void()>& body) {
  running() = kernel.name.c_str();
  check_shape(grid, block_shape, shared_bytes, function);
  choose_arithmetic();
  ++kernel.launches;
  grid_size = grid;
  block_size = block_shape;
  const unsigned n_threads = block_shape.x * block_shape.y * block_shape.z;
  const bool alternate = std::getenv("HASHGRID_EMULATED_ORDER") == nullptr;
  bool reverse = begins_in_reverse(kernel);
  const uint64_t n_blocks = uint64_t{grid.x} * grid.y * grid.z;
  for (uint64_t i = 0; i < n_blocks; ++i, reverse = reverse != alternate) {
    block_index = dim3(static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
                       static_cast<unsigned>(i / grid.x / grid.y));
    if (together) {
      run_block_together(body, n_threads, shared_bytes, reverse);
      continue;
    }
    for (unsigned t = 0; t < n_threads; ++t) {
      thread_index = thread_of(reverse ? n_threads - 1 - t : t);
      body();
    }
  }
  running() = "no kernel";
}

inline char* dynamic_shared() {
  const uintptr_t address = reinterpret_cast<uintptr_t>(block().dynamic_shared.data());
  return reinterpret_cast<char*>((address + 2 * kGuardBytes - 1) & ~static_cast<uintptr_t>(kGuardBytes - 1));
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

// Arguments are evaluated once, as by a launch.
#define HASHGRID_EMULATE(kernel, shape, together, ...)                                                              \
  do {                                                                                                              \
    const auto launch_shape = (shape);                                                                              \
    if (launch_shape.grid.x == 0 || launch_shape.grid.y == 0) break;                                                \
    hashgrid_on_host::run_grid(hashgrid_on_host::Instance<(kernel)>::record, reinterpret_cast<const void*>(kernel), \
                               launch_shape.grid, launch_shape.block, launch_shape.shared_bytes, together,          \
                               [&, arguments = std::make_tuple(__VA_ARGS__)] { std::apply((kernel), arguments); }); \
  } while (false)

template <typename... Arguments>
inline cudaError_t cudaFuncSetAttribute(void (*kernel)(Arguments...), cudaFuncAttribute, int bytes) {
  int limit = 0;
  cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0);
  if (bytes > limit) hashgrid_on_host::fail("more shared memory than a block can have");
  hashgrid_on_host::asked_shared(reinterpret_cast<const void*>(kernel)) = static_cast<size_t>(bytes);
  return cudaSuccess;
}

#define threadIdx hashgrid_on_host::thread_index
#define blockIdx hashgrid_on_host::block_index
#define blockDim hashgrid_on_host::block_size
#define gridDim hashgrid_on_host::grid_size

// ---- device functions --------------------------------------------------------------------------------------------

// As a default argument: the caller's line. Nested in another expression GCC takes it for the function's own.
#define HASHGRID_HERE std::source_location::current()

inline void __syncthreads(hashgrid_on_host::Site site = HASHGRID_HERE) { hashgrid_on_host::sync_block(site); }
inline void __syncwarp(unsigned mask = 0xffffffffu, hashgrid_on_host::Site site = HASHGRID_HERE) {
  hashgrid_on_host::exchange(mask, {0, 0, 0, 0}, site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, hashgrid_on_host::Site site = HASHGRID_HERE) {
  const auto* all = hashgrid_on_host::exchange(mask, {predicate != 0 ? 1u : 0u, 0, 0, 0}, site);
  unsigned votes = 0;
  for (unsigned l = 0; l < hashgrid_on_host::kWarp; ++l) {
    if (mask >> l & 1u && all[l][0] != 0) votes |= 1u << l;
  }
  return votes;
}
inline int __any_sync(unsigned mask, int predicate, hashgrid_on_host::Site site = HASHGRID_HERE) {
  return __ballot_sync(mask, predicate, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, hashgrid_on_host::Site site = HASHGRID_HERE) {
  return __ballot_sync(mask, predicate, site) == mask;
}

template <typename T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, hashgrid_on_host::Site site = HASHGRID_HERE) {
  const unsigned l = hashgrid_on_host::lane();
  const auto* all = hashgrid_on_host::exchange(mask, {hashgrid_on_host::to_word(value), 0, 0, 0}, site);
  const unsigned first = l / width * width;
  return hashgrid_on_host::from_word<T>(all[first + static_cast<unsigned>(source) % width][0]);
}
template <typename T>
inline T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                         hashgrid_on_host::Site site = HASHGRID_HERE) {
  const unsigned l = hashgrid_on_host::lane();
  const auto* all = hashgrid_on_host::exchange(mask, {hashgrid_on_host::to_word(value), 0, 0, 0}, site);
  const unsigned other = l ^ static_cast<unsigned>(lane_mask);
  return other / width == l / width ? hashgrid_on_host::from_word<T>(all[other][0]) : value;
}
template <typename T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                          hashgrid_on_host::Site site = HASHGRID_HERE) {
  const unsigned l = hashgrid_on_host::lane();
  const auto* all = hashgrid_on_host::exchange(mask, {hashgrid_on_host::to_word(value), 0, 0, 0}, site);
  return l % width + delta < static_cast<unsigned>(width) ? hashgrid_on_host::from_word<T>(all[l + delta][0]) : value;
}
template <typename T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                        hashgrid_on_host::Site site = HASHGRID_HERE) {
  const unsigned l = hashgrid_on_host::lane();
  const auto* all = hashgrid_on_host::exchange(mask, {hashgrid_on_host::to_word(value), 0, 0, 0}, site);
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
inline __half __float2half_rn(float x) { return {hashgrid_on_host::bits_as<uint16_t>(static_cast<_Float16>(x))}; }
inline float __double2float_ru(double x) {
  const float nearest = static_cast<float>(x);
  return static_cast<double>(nearest) < x ? std::nextafter(nearest, std::numeric_limits<float>::infinity()) : nearest;
}
// Other products may be fused with the sum they go into, as nvcc does by default; these may not.
template <typename T>
inline T rounded_product(T a, T b) {
  volatile T product = a * b;
  return product;
}
inline float __fmul_rn(float a, float b) { return rounded_product(a, b); }
inline double __dmul_rn(double a, double b) { return rounded_product(a, b); }
// CUDA's expf may be wrong by a unit in the last place; that of 0 is exact.
inline float expf_of_a_gpu(float x) {
  const float nearest = std::exp(x);
  if (!hashgrid_on_host::arithmetic().rough_expf || x == 0.0f || nearest == 0.0f || !std::isfinite(nearest)) {
    return nearest;
  }
  const bool up = __float_as_uint(x) * 2654435761u >> 31 != 0;
  return std::nextafter(nearest, up ? std::numeric_limits<float>::infinity() : 0.0f);
}
#define expf expf_of_a_gpu
template <typename T>
inline T __ldg(const T* p) {
  return *p;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline void __threadfence() {}
inline void __threadfence_block() {}
