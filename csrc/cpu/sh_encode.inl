// Spherical harmonics on the CPU: kLanes directions advance together, their channels are transposed on the way out.
#include "core/sh_encode_params.h"

namespace hashgrid {
namespace HASHGRID_ISA {

// Loads directions [begin, begin + count) as three vectors; the lanes after them repeat the last one.
static inline void load_directions(const float* directions, int64_t begin, int count, VecF xyz[3]) {
  for (int lane = 0; lane < kLanes; ++lane) {
    const float* direction = directions + (begin + (lane < count ? lane : count - 1)) * 3;
    for (int d = 0; d < 3; ++d) xyz[d][lane] = direction[d];
  }
}

// Of a known degree, so that the recurrence is unrolled.
template <int kDegree>
static void sh_forward(const ShEncodeParams& p, int64_t begin, int64_t end) {
  constexpr int kChannels = kDegree * kDegree;
  if (p.dtype == DType::kFloat64) {
    const ShConstants<double> constants = sh_constants<double>(kDegree);
    const double* directions = static_cast<const double*>(p.directions);
    for (int64_t n = begin; n < end; ++n) {
      const double* d = directions + n * 3;
      sh_values<kDegree>(constants, d[0], d[1], d[2], static_cast<double*>(p.y) + n * kChannels);
    }
    return;
  }
  const ShConstants<float> constants = sh_constants<float>(kDegree);
  for (int64_t n = begin; n < end; n += kLanes) {
    const int count = static_cast<int>(min_count(kLanes, end - n));
    VecF xyz[3], values[kChannels];
    load_directions(static_cast<const float*>(p.directions), n, count, xyz);
    sh_values<kDegree>(constants, xyz[0], xyz[1], xyz[2], values);
    float* y = static_cast<float*>(p.y) + n * kChannels;
    for (int lane = 0; lane < count; ++lane) {
      for (int c = 0; c < kChannels; ++c) y[lane * kChannels + c] = values[c][lane];
    }
  }
}

// The same of the gradient; lanes behind the last direction have gradients of zero.
template <int kDegree>
static void sh_backward(const ShEncodeParams& p, int64_t begin, int64_t end) {
  constexpr int kChannels = kDegree * kDegree;
  if (p.dtype == DType::kFloat64) {
    const ShConstants<double> constants = sh_constants<double>(kDegree);
    for (int64_t n = begin; n < end; ++n) {
      const double* d = static_cast<const double*>(p.directions) + n * 3;
      double* grad = static_cast<double*>(p.grad_directions) + n * 3;
      sh_gradient<kDegree>(constants, d[0], d[1], d[2], static_cast<const double*>(p.grad_y) + n * kChannels, &grad[0],
                           &grad[1], &grad[2]);
    }
    return;
  }
  const ShConstants<float> constants = sh_constants<float>(kDegree);
  for (int64_t n = begin; n < end; n += kLanes) {
    const int count = static_cast<int>(min_count(kLanes, end - n));
    VecF xyz[3], grad[3], grad_values[kChannels] = {};
    load_directions(static_cast<const float*>(p.directions), n, count, xyz);
    const float* grad_y = static_cast<const float*>(p.grad_y) + n * kChannels;
    for (int lane = 0; lane < count; ++lane) {
      for (int c = 0; c < kChannels; ++c) grad_values[c][lane] = grad_y[lane * kChannels + c];
    }
    sh_gradient<kDegree>(constants, xyz[0], xyz[1], xyz[2], grad_values, &grad[0], &grad[1], &grad[2]);
    float* out = static_cast<float*>(p.grad_directions) + n * 3;
    for (int lane = 0; lane < count; ++lane) {
      for (int d = 0; d < 3; ++d) out[lane * 3 + d] = grad[d][lane];
    }
  }
}

// Work units: directions [n_points, 3], kLanes to a vector; y [n_points, degree^2]. Values of a vector stay in
// registers, or on the stack where the degree has too many. fp64 goes one by one.
static void sh_encode_forward_range(const ShEncodeParams& p, int64_t begin, int64_t end) {
  constexpr RangeKernel<ShEncodeParams> kByDegree[kMaxShDegree] = {&sh_forward<1>, &sh_forward<2>, &sh_forward<3>,
                                                                   &sh_forward<4>, &sh_forward<5>, &sh_forward<6>,
                                                                   &sh_forward<7>, &sh_forward<8>};
  kByDegree[p.degree - 1](p, begin, end);
}

// Work units: directions, in the same vectors; grad_directions [n_points, 3]. A direction's sum runs over its channels
// in the order of the recurrence, in T.
static void sh_encode_backward_range(const ShEncodeParams& p, int64_t begin, int64_t end) {
  constexpr RangeKernel<ShEncodeParams> kByDegree[kMaxShDegree] = {&sh_backward<1>, &sh_backward<2>, &sh_backward<3>,
                                                                   &sh_backward<4>, &sh_backward<5>, &sh_backward<6>,
                                                                   &sh_backward<7>, &sh_backward<8>};
  kByDegree[p.degree - 1](p, begin, end);
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
