// Kernels that break a rule of CUDA, and one that breaks none, to see that the emulation stops: `program NAME`.
#include "cuda/launch.cuh"

namespace hashgrid {
namespace device {

constexpr int kThreads = 96;

__global__ void sound_kernel(int* out) {
  __shared__ int values[kThreads];
  values[threadIdx.x] = static_cast<int>(threadIdx.x);
  __syncthreads();
  const int other = values[kThreads - 1 - threadIdx.x];
  out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, other, 1);
}

__global__ void barrier_of_some_kernel(int* out) {
  if (threadIdx.x < 40) __syncthreads();
  if (threadIdx.x >= 40) __syncthreads();
  *out = 1;
}

__global__ void exchange_of_some_kernel(int* out) {
  int value = static_cast<int>(threadIdx.x);
  if (threadIdx.x % 2 == 0) value = __shfl_down_sync(0xffffffffu, value, 1);
  value += __shfl_xor_sync(0xffffffffu, value, 1);
  out[threadIdx.x] = value;
}

__global__ void exchange_that_some_miss_kernel(int* out) {
  int value = static_cast<int>(threadIdx.x);
  if (threadIdx.x % 32 != 5) value = __shfl_xor_sync(0xffffffffu, value, 1);
  __syncthreads();
  out[threadIdx.x] = value;
}

__global__ void exchange_outside_its_mask_kernel(int* out) {
  out[threadIdx.x] = __shfl_xor_sync(0xffffu, static_cast<int>(threadIdx.x), 1);
}

__global__ void shared_overflow_kernel(int* out) {
  HASHGRID_DYNAMIC_SHARED(int, shared);
  shared[threadIdx.x] = 1;
  *out = shared[0];
}

__global__ void single_kernel(int* out) { *out = 1; }

__global__ void unannounced_barrier_kernel(int* out) {
  __syncthreads();
  *out = 1;
}

void run(const std::string& name, int* out) {
  const LaunchShape three_warps = {dim3(1), dim3(kThreads), 0};
  if (name == "sound") HASHGRID_LAUNCH_TOGETHER(sound_kernel, three_warps, nullptr, out);
  if (name == "barrier of some") HASHGRID_LAUNCH_TOGETHER(barrier_of_some_kernel, three_warps, nullptr, out);
  if (name == "exchange of some") HASHGRID_LAUNCH_TOGETHER(exchange_of_some_kernel, three_warps, nullptr, out);
  if (name == "exchange that some miss") {
    HASHGRID_LAUNCH_TOGETHER(exchange_that_some_miss_kernel, three_warps, nullptr, out);
  }
  if (name == "exchange outside its mask") {
    HASHGRID_LAUNCH_TOGETHER(exchange_outside_its_mask_kernel, three_warps, nullptr, out);
  }
  const LaunchShape too_little = {dim3(1), dim3(kThreads), (kThreads - 1) * sizeof(int)};
  if (name == "shared overflow") HASHGRID_LAUNCH_TOGETHER(shared_overflow_kernel, too_little, nullptr, out);
  const LaunchShape unasked = {dim3(1), dim3(kThreads), 48 * 1024 + 16};
  if (name == "shared memory unasked") HASHGRID_LAUNCH_TOGETHER(shared_overflow_kernel, unasked, nullptr, out);
  if (name == "unannounced barrier") HASHGRID_LAUNCH(unannounced_barrier_kernel, three_warps, nullptr, out);
  const LaunchShape flat = {dim3(1, 1, 0), dim3(1), 0}, high = {dim3(1, 65536), dim3(1), 0};
  const LaunchShape empty = {dim3(1), dim3(0), 0}, large = {dim3(1), dim3(1025), 0};
  if (name == "grid without depth") HASHGRID_LAUNCH(single_kernel, flat, nullptr, out);
  if (name == "grid too high") HASHGRID_LAUNCH(single_kernel, high, nullptr, out);
  if (name == "block without threads") HASHGRID_LAUNCH(single_kernel, empty, nullptr, out);
  if (name == "block too large") HASHGRID_LAUNCH(single_kernel, large, nullptr, out);
  if (name == "more shared memory than there is") {
    cudaFuncSetAttribute(single_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 228 * 1024);
  }
}

}  // namespace device
}  // namespace hashgrid

int main(int, char** arguments) {
  int out[hashgrid::device::kThreads] = {};
  for (int i = 0; i < 4; ++i) hashgrid::device::run(arguments[1], out);
  int wrong = 0;
  for (int i = 0; i < hashgrid::device::kThreads; ++i) wrong += out[i] != hashgrid::device::kThreads - 1 - (i ^ 1);
  std::printf("%d wrong\n", wrong);
}
