// Real spherical harmonics on CUDA: one thread per direction. The recurrence is that of core/spherical_harmonics.h, its
// constants come with the params; values [degree^2] stay in registers and leave as vectors of four.
#include "cuda/launch.cuh"

#include "core/spherical_harmonics.h"

namespace hashgrid {
namespace HASHGRID_ISA {

constexpr int kThreads = 128;

// Thread: one direction [3], on its own; writes its row of y [n_points, degree^2], four values at a time where rows are
// whole vectors. Values come from a recurrence, each from one or two before it, in T.
template <typename T, int kDegree>
__global__ void sh_encode_forward_kernel(HASHGRID_PARAMS ShEncodeParams p, HASHGRID_PARAMS ShConstants<T> constants) {
  constexpr int kChannels = kDegree * kDegree, kWidth = kChannels % 4 == 0 ? 4 : 1;
  const int64_t n = global_thread();
  if (n >= p.n_points) return;
  const T* d = static_cast<const T*>(p.directions) + n * 3;
  T values[kChannels];
  sh_values<kDegree>(constants, d[0], d[1], d[2], values);
  T* y = static_cast<T*>(p.y) + n * kChannels;
#pragma unroll
  for (int c = 0; c < kChannels; c += kWidth) store_row<T, kWidth>(y + c, values + c);
}

// Thread: one direction, on its own; reads its row of grad_y [n_points, degree^2] and writes grad_directions [n_points,
// 3]. The sum over channels runs in the order of the recurrence, in T.
template <typename T, int kDegree>
__global__ void sh_encode_backward_kernel(HASHGRID_PARAMS ShEncodeParams p, HASHGRID_PARAMS ShConstants<T> constants) {
  constexpr int kChannels = kDegree * kDegree, kWidth = kChannels % 4 == 0 ? 4 : 1;
  const int64_t n = global_thread();
  if (n >= p.n_points) return;
  const T* d = static_cast<const T*>(p.directions) + n * 3;
  const T* grad_y = static_cast<const T*>(p.grad_y) + n * kChannels;
  T grad_values[kChannels];
#pragma unroll
  for (int c = 0; c < kChannels; c += kWidth) load_row<T, kWidth>(grad_y + c, grad_values + c);
  T x, y, z;
  sh_gradient<kDegree>(constants, d[0], d[1], d[2], grad_values, &x, &y, &z);
  T* out = static_cast<T*>(p.grad_directions) + n * 3;
  out[0] = x;
  out[1] = y;
  out[2] = z;
}

// The instance of p.degree, found by counting down from kDegree.
template <typename T, int kDegree>
void launch_forward(const ShEncodeParams& p, cudaStream_t stream) {
  if (p.degree != kDegree) {
    if constexpr (kDegree > 1) return launch_forward<T, kDegree - 1>(p, stream);
    throw std::runtime_error("`degree` must be in 1..8, got " + std::to_string(p.degree));
  }
  HASHGRID_LAUNCH((sh_encode_forward_kernel<T, kDegree>), blocks_of(p.n_points, kThreads), stream, p,
                  sh_constants<T>(kDegree));
}

template <typename T, int kDegree>
void launch_backward(const ShEncodeParams& p, cudaStream_t stream) {
  if (p.degree != kDegree) {
    if constexpr (kDegree > 1) return launch_backward<T, kDegree - 1>(p, stream);
    throw std::runtime_error("`degree` must be in 1..8, got " + std::to_string(p.degree));
  }
  HASHGRID_LAUNCH((sh_encode_backward_kernel<T, kDegree>), blocks_of(p.n_points, kThreads), stream, p,
                  sh_constants<T>(kDegree));
}

}  // namespace HASHGRID_ISA

using namespace HASHGRID_ISA;

void launch_sh_encode_forward(const ShEncodeParams& p, cudaStream_t stream) {
  if (p.dtype == DType::kFloat64) return launch_forward<double, kMaxShDegree>(p, stream);
  launch_forward<float, kMaxShDegree>(p, stream);
}

void launch_sh_encode_backward(const ShEncodeParams& p, cudaStream_t stream) {
  if (p.dtype == DType::kFloat64) return launch_backward<double, kMaxShDegree>(p, stream);
  launch_backward<float, kMaxShDegree>(p, stream);
}

}  // namespace hashgrid
