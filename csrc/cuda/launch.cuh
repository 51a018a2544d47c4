// What every kernel file starts from: the namespace of device code, launches, and the conversion of stored numbers.
// nvcc compiles these files; so does a C++ compiler behind tests/host/cuda_on_host.h, which emulates blocks and
// threads.
#pragma once

#define HASHGRID_ISA device

#if !defined(HASHGRID_ON_HOST)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

#include <cstdint>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "cuda/kernels.h"

// Kernel parameters stay in constant memory, also where they are indexed. HASHGRID_CALLED: code that is called, not
// copied to where it is used.
#if defined(HASHGRID_ON_HOST)
#define HASHGRID_PARAMS
#define HASHGRID_CALLED __attribute__((noinline)) inline
#else
#define HASHGRID_PARAMS const __grid_constant__
#define HASHGRID_CALLED __noinline__ inline
#endif

namespace hashgrid {
namespace HASHGRID_ISA {

constexpr int kWarpSize = 32;

struct LaunchShape {
  dim3 grid;
  dim3 block;
  size_t shared_bytes;
};

constexpr size_t kMaxParameterBytes = 4096;  // of a kernel, before CUDA 12.1

template <typename Kernel>
struct ParametersOf;
template <typename... Params>
struct ParametersOf<void(Params...)> {
  static constexpr size_t bytes = (sizeof(Params) + ... + 0);
};

inline void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  (void)cudaGetLastError();  // or the next launch would be blamed for it
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

// A number that never changes while a device is there: asked for once per device, as those of one machine may differ
// and a launch takes only microseconds. Several threads may come at once. Not a static variable of a function: those of
// kernels are shared memory where they are emulated (tests/host).
class PerDevice {
 public:
  // ask(device), of the current device.
  template <typename Ask>
  int get(Ask ask) {
    int device = 0;
    check_cuda(cudaGetDevice(&device), "cudaGetDevice");
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto known = known_.find(device);
    if (known != known_.end()) return known->second;
    const int answer = ask(device);
    known_[device] = answer;
    return answer;
  }

 private:
  std::mutex mutex_;
  std::map<int, int> known_;
};

template <cudaDeviceAttr kAttribute>
inline PerDevice known_attribute;

// Of the current device.
template <cudaDeviceAttr kAttribute>
int device_attribute() {
  return known_attribute<kAttribute>.get([](int device) {
    int value = 0;
    check_cuda(cudaDeviceGetAttribute(&value, kAttribute, device), "cudaDeviceGetAttribute");
    return value;
  });
}

template <auto kKernel>
inline PerDevice allowed_shared_memory;

// Allows a kernel all dynamic shared memory that a block of the current device can have. Not only what one launch
// needs: another thread may be launching it for more.
template <auto kKernel>
void allow_all_shared_memory() {
  (void)allowed_shared_memory<kKernel>.get([](int) {
    const int limit = device_attribute<cudaDevAttrMaxSharedMemoryPerBlockOptin>();
    check_cuda(cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, limit),
               "cudaFuncSetAttribute");
    return limit;
  });
}

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Blocks of `n_threads` over n units. Grids are at most 2^31 - 1 blocks wide: 2^38 units at 128 threads.
inline LaunchShape blocks_of(int64_t n, int n_threads, unsigned grid_y = 1, size_t shared_bytes = 0) {
  const int64_t n_blocks = divide_up(n, n_threads);
  if (n_blocks > 2147483647) throw std::runtime_error("a kernel would need " + std::to_string(n_blocks) + " blocks");
  return {dim3(static_cast<unsigned>(n_blocks), grid_y), dim3(static_cast<unsigned>(n_threads)), shared_bytes};
}

__device__ inline int64_t global_thread() { return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }

// ---- stored numbers ----------------------------------------------------------------------------------------------

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

__device__ inline float to_real(float x) { return x; }
__device__ inline double to_real(double x) { return x; }
__device__ inline float to_real(Float16 x) { return __half2float(__ushort_as_half(x.bits)); }
__device__ inline float to_real(BFloat16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }

// kF consecutive elements of any of these types, loaded as vectors of up to 16 bytes. Ops see to it that arrays read
// this way begin at a multiple of 16 bytes.
template <typename Element, int kF>
struct alignas(sizeof(Element) * kF < 16 ? sizeof(Element) * kF : 16) Row {
  Element values[kF];
};

template <typename Element, int kF, typename T>
__device__ inline void load_row(const Element* source, T* values) {
  const Row<Element, kF> row = *reinterpret_cast<const Row<Element, kF>*>(source);
#pragma unroll
  for (int f = 0; f < kF; ++f) values[f] = static_cast<T>(to_real(row.values[f]));
}

template <typename T, int kF>
__device__ inline void store_row(T* target, const T* values) {
  Row<T, kF> row;
#pragma unroll
  for (int f = 0; f < kF; ++f) row.values[f] = values[f];
  *reinterpret_cast<Row<T, kF>*>(target) = row;
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid

// The block's dynamic shared memory as `type* name`, aligned to 128 bytes.
#if defined(HASHGRID_ON_HOST)
#define HASHGRID_DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(hashgrid_on_host::dynamic_shared())
#else
#define HASHGRID_DYNAMIC_SHARED(type, name)                       \
  extern __shared__ __align__(128) unsigned char shared_bytes_[]; \
  type* name = reinterpret_cast<type*>(shared_bytes_)
#endif

#define HASHGRID_CHECK_PARAMETERS(kernel)                                                             \
  static_assert(ParametersOf<std::remove_reference_t<decltype(kernel)>>::bytes <= kMaxParameterBytes, \
                "a kernel's parameters must fit into 4096 bytes")

// Launches `kernel` (in brackets where it has template arguments) and checks that the launch was accepted. A shape
// without blocks launches nothing. HASHGRID_LAUNCH_TOGETHER is for kernels whose threads wait for each other or
// exchange values; only the host emulation tells them apart, as it runs the others one thread after the other.
#if defined(HASHGRID_ON_HOST)
#define HASHGRID_LAUNCH(kernel, shape, stream, ...)      \
  do {                                                   \
    HASHGRID_CHECK_PARAMETERS(kernel);                   \
    HASHGRID_EMULATE(kernel, shape, false, __VA_ARGS__); \
  } while (false)
#define HASHGRID_LAUNCH_TOGETHER(kernel, shape, stream, ...) \
  do {                                                       \
    HASHGRID_CHECK_PARAMETERS(kernel);                       \
    HASHGRID_EMULATE(kernel, shape, true, __VA_ARGS__);      \
  } while (false)
#else
#define HASHGRID_LAUNCH(kernel, shape, stream, ...)                                                      \
  do {                                                                                                   \
    HASHGRID_CHECK_PARAMETERS(kernel);                                                                   \
    const LaunchShape launch_shape = (shape);                                                            \
    if (launch_shape.grid.x == 0 || launch_shape.grid.y == 0) break;                                     \
    kernel<<<launch_shape.grid, launch_shape.block, launch_shape.shared_bytes, (stream)>>>(__VA_ARGS__); \
    check_cuda(cudaGetLastError(), #kernel);                                                             \
  } while (false)
#define HASHGRID_LAUNCH_TOGETHER HASHGRID_LAUNCH
#endif
