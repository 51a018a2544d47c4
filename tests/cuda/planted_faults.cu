// What compute-sanitizer has to find, or its silence about the kernels means nothing: a write behind an array and two
// warps that exchange shared memory without a barrier. The namespace is that of the kernels, by which they are
// selected.
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

}  // namespace hashgrid

int main() {
  float* values = nullptr;
  if (cudaMalloc(reinterpret_cast<void**>(&values), 64 * sizeof(float)) != cudaSuccess) return 3;
  hashgrid::planted_race_kernel<<<1, 64>>>(values, 64);
  cudaDeviceSynchronize();
  hashgrid::planted_out_of_bounds_kernel<<<1, 128>>>(values, 64);
  cudaDeviceSynchronize();
  std::puts("done");
}
