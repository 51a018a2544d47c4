// What both paths of the MLP on CUDA share: activations, the layout of workspaces, the sum of partial sums.
#pragma once

#include "cuda/warp.cuh"

#include <algorithm>

#include "core/activation.h"

namespace hashgrid {
namespace HASHGRID_ISA {

constexpr int kMaxPartials = 256;                       // sums of parameter gradients
constexpr int64_t kMaxPartialBytes = int64_t{1} << 26;  // of all of them together
constexpr int kReduceGroups = 8;                        // warps that sum up side by side

// ---- activations -------------------------------------------------------------------------------------------------

// The gradient before an activation from the one behind it. A ReLU selects: where it is zero an infinite gradient ends.
template <typename T>
__device__ inline T pull_back(T grad, T source, Activation activation) {
  if (activation == Activation::kReLU) return source <= T(0) ? T(0) : grad;
  return activation == Activation::kNone ? grad : grad * activation_derivative(source, activation);
}

// The same from the value `z` before the activation.
template <typename T>
__device__ inline T pull_back_from(T z, T grad, Activation activation) {
  return pull_back(grad, derivative_reads_input(activation) ? z : activate(z, activation), activation);
}

// ---- layout of workspaces ----------------------------------------------------------------------------------------

// Lays matrices out one after the other, each aligned for vectors and whole sectors.
struct MlpLayout {
  int64_t size = 0;

  int64_t add(int64_t bytes) {
    const int64_t offset = size;
    size += divide_up(bytes, 256) * 256;
    return offset;
  }
};

// The largest number of inputs or outputs.
inline int widest_of(const MlpParams& p) {
  int widest = 0;
  for (int l = 0; l < p.n_layers; ++l) widest = std::max({widest, p.layers[l].n_in, p.layers[l].n_out});
  return widest;
}

// Zeroes the gradients of all weights and biases, if asked for.
inline void clear_parameter_gradients(const MlpParams& p, cudaStream_t stream) {
  if (p.grad_params == nullptr) return;
  int64_t bytes = 0;
  for (int l = 0; l < p.n_layers; ++l) {
    bytes += int64_t{p.layers[l].n_out} * (p.layers[l].n_in + (p.layers[l].bias != nullptr ? 1 : 0)) *
             (p.dtype == DType::kFloat64 ? 8 : 4);
  }
  check_cuda(cudaMemsetAsync(p.grad_params, 0, static_cast<size_t>(bytes), stream), "cudaMemsetAsync");
}

// ---- sum of partial sums -----------------------------------------------------------------------------------------

// Block: 32 elements of the partial sums [n_partials, partial_size], a lane for each. Warp g of kReduceGroups adds up
// every kReduceGroups-th partial sum from the g-th on, in order; the first warp then adds the sums of the warps, from
// shared memory, in order. Target::of(p, i): where element i belongs among the parameters; -1: nowhere.
template <typename T, class Target>
__global__ void mlp_reduce_kernel(HASHGRID_PARAMS MlpParams p) {
  __shared__ T sums[kReduceGroups][kWarpSize];
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kWarpSize + lane_index();
  const T* partials = static_cast<const T*>(p.partials);
  T total = T(0);
  if (i < p.partial_size) {
#pragma unroll 4
    for (int64_t k = warp_index(); k < p.n_partials; k += kReduceGroups) total += partials[k * p.partial_size + i];
  }
  sums[warp_index()][lane_index()] = total;
  __syncthreads();
  if (warp_index() != 0 || i >= p.partial_size) return;
  for (int group = 1; group < kReduceGroups; ++group) total += sums[group][lane_index()];
  const int64_t target = Target::of(p, i);
  if (target >= 0) static_cast<T*>(p.grad_params)[target] = total;
}

template <typename T, class Target>
void launch_reduce(const MlpParams& p, cudaStream_t stream) {
  LaunchShape shape = blocks_of(p.partial_size, kWarpSize);
  shape.block = dim3(kReduceGroups * kWarpSize);
  HASHGRID_LAUNCH_TOGETHER((mlp_reduce_kernel<T, Target>), shape, stream, p);
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
