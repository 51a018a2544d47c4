// Sums of values times lengths along rays on CUDA: one warp per ray, one lane per sample, 32 samples at a time.
//
// Bandwidth is the limit: each value is read once, and no thread adds to what another wrote. A ray that does not start
// where the one in front ends is not followed: its sums and the gradients of the samples it claims are NaN (see
// composite.cu).
#include "cuda/launch.cuh"

#include <limits>

#include "core/line_integrals_params.h"
#include "cuda/samples.cuh"

namespace hashgrid {
namespace HASHGRID_ISA {

constexpr int kThreads = 128;
constexpr int kManyChannels = 4;  // summed at a time where there are several

// Warp: one ray; lane: every 32nd of its samples, in their order, then the lanes are added by halves, all in T. values
// are [n_samples, n_channels], steps [n_samples]: with one channel a warp reads whole lines; with several a lane reads
// kC neighbours of its row, and the next round finds the rest of it in the cache. Writes sums [n_rays, n_channels].
template <typename T, int kC>
__global__ void line_integrals_forward_kernel(HASHGRID_PARAMS LineIntegralsParams p) {
  const int64_t ray = global_thread() / kWarpSize;
  if (ray >= p.n_rays) return;
  const int lane = lane_index();
  const RayRange range = ray_range(p.packed_info, p.n_samples, ray);
  const int64_t count = range.valid ? range.count : 0;
  const T* steps = static_cast<const T*>(p.steps) + range.first;
  const T* values = static_cast<const T*>(p.values) + range.first * p.n_channels;
  T* row = static_cast<T*>(p.sums) + ray * p.n_channels;
  // Lanes behind the end of a ray stay with sums of zero: all of them take part in the exchange.
  for (int64_t base = 0; base < p.n_channels; base += kC) {
    T sums[kC] = {};
    for (int64_t i = lane; i < count; i += kWarpSize) {
      const T step = steps[i];
#pragma unroll
      for (int c = 0; c < kC; ++c) {
        if (base + c < p.n_channels) sums[c] += step * values[i * p.n_channels + base + c];
      }
    }
#pragma unroll
    for (int c = 0; c < kC; ++c) {
      const T total = sum_of_lanes(sums[c]);
      if (lane == 0 && base + c < p.n_channels) {
        row[base + c] = range.valid ? total : std::numeric_limits<T>::quiet_NaN();
      }
    }
  }
}

// Warp: one ray; lane: every 32nd of its samples, each by itself, so that nothing is exchanged. grad_sums [n_rays,
// n_channels] is read by all lanes at once. Writes grad_values [n_samples, n_channels] and grad_steps [n_samples], each
// unless it is null; a dot product over the channels runs in their order, in T.
template <typename T>
__global__ void line_integrals_backward_kernel(HASHGRID_PARAMS LineIntegralsParams p) {
  const int64_t ray = global_thread() / kWarpSize;
  if (ray >= p.n_rays) return;
  const RayRange range = ray_range(p.packed_info, p.n_samples, ray);
  const T nan = std::numeric_limits<T>::quiet_NaN();
  const T* grad = static_cast<const T*>(p.grad_sums) + ray * p.n_channels;
  for (int64_t i = range.first + lane_index(); i < range.first + range.count; i += kWarpSize) {
    // NaN in place of the gradient marks the samples of a ray that is not where it should be.
    const T step = static_cast<const T*>(p.steps)[i];
    T of_step = T(0);
    for (int64_t c = 0; c < p.n_channels; ++c) {
      const int64_t k = i * p.n_channels + c;
      const T g = range.valid ? grad[c] : nan;
      if (p.grad_values != nullptr) {
        HASHGRID_IN_GLOBAL(p.grad_values);
        static_cast<T*>(p.grad_values)[k] = g * step;
      }
      if (p.grad_steps != nullptr) of_step += g * static_cast<const T*>(p.values)[k];
    }
    if (p.grad_steps != nullptr) {
      HASHGRID_IN_GLOBAL(p.grad_steps);
      static_cast<T*>(p.grad_steps)[i] = of_step;
    }
  }
}

}  // namespace HASHGRID_ISA

using namespace HASHGRID_ISA;

void launch_line_integrals_forward(const LineIntegralsParams& p, cudaStream_t stream) {
  const LaunchShape shape = blocks_of(p.n_rays * kWarpSize, kThreads);
  if (p.dtype == DType::kFloat64) {
    HASHGRID_LAUNCH_TOGETHER((line_integrals_forward_kernel<double, kManyChannels>), shape, stream, p);
  } else if (p.n_channels == 1) {
    HASHGRID_LAUNCH_TOGETHER((line_integrals_forward_kernel<float, 1>), shape, stream, p);
  } else {
    HASHGRID_LAUNCH_TOGETHER((line_integrals_forward_kernel<float, kManyChannels>), shape, stream, p);
  }
}

void launch_line_integrals_backward(const LineIntegralsParams& p, cudaStream_t stream) {
  const LaunchShape shape = blocks_of(p.n_rays * kWarpSize, kThreads);
  if (p.dtype == DType::kFloat64) {
    HASHGRID_LAUNCH((line_integrals_backward_kernel<double>), shape, stream, p);
  } else {
    HASHGRID_LAUNCH((line_integrals_backward_kernel<float>), shape, stream, p);
  }
}

}  // namespace hashgrid
