// What compute-sanitizer has to find, or its silence about the kernels means nothing: a write behind an array, two
// warps that exchange shared memory without a barrier, and a barrier that not all threads reach. The namespace is that
// of the kernels, by which they are selected.
//
//     nvcc -arch=sm_90 -o planted_faults tests/cuda/planted_faults.cu; compute-sanitizer --tool racecheck
//     ./planted_faults
#include <cstdio>

namespace hashgrid {

__global__ void planted_out_of_bounds_kernel(float* values, int n) {
  if (threadIdx.x <= static_cast<unsigned>(n)) values[threadIdx.x] = 1.0f;  // one too many
}

__global__ void planted_race_kernel(float* values, int n) {
  __shared__ float shared[64];
  shared[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (threadIdx.x < static_cast<unsigned>(n)) values[threadIdx.x] = shared[63 - threadIdx.x];  // no __syncthreads
}

__global__ void planted_divergence_kernel(float* values, int n) {
  if (threadIdx.x < static_cast<unsigned>(n)) {
    values[threadIdx.x] = 1.0f;
    __syncthreads();  // the other threads have ended, on which the card goes on
    values[threadIdx.x] += values[n - 1 - threadIdx.x];
  }
}

}  // namespace hashgrid

int main() {
  float* values = nullptr;
  if (cudaMalloc(reinterpret_cast<void**>(&values), 64 * sizeof(float)) != cudaSuccess) return 3;
  hashgrid::planted_race_kernel<<<1, 64>>>(values, 64);
  cudaDeviceSynchronize();
  hashgrid::planted_divergence_kernel<<<1, 64>>>(values, 48);
  cudaDeviceSynchronize();
  hashgrid::planted_out_of_bounds_kernel<<<1, 128>>>(values, 64);
  cudaDeviceSynchronize();
  std::puts("done");
}
