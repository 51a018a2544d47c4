// Volume compositing (Max 1995) with the distortion of mip-NeRF 360 (Barron et al. 2022, eq. 15): one sample at a time,
// front to back for the values, back to front for the gradients.
//
// V: number type of a sample, T: of distances, A: of the running sums of a ray.
#pragma once

#include <cstdint>

#include "core/dual.h"
#include "core/macros.h"

namespace hashgrid {
namespace HASHGRID_ISA {

// Sums of a ray are kept in double: a handful of additions per sample.
template <typename V>
struct SumOf {
  typedef double Type;
};
template <typename T>
struct SumOf<Dual<T>> {
  typedef Dual<double> Type;
};

template <typename T>
HASHGRID_HD T read_value(const void* values, const void*, int64_t i, T*) {
  return static_cast<const T*>(values)[i];
}
template <typename T>
HASHGRID_HD Dual<T> read_value(const void* values, const void* tangents, int64_t i, Dual<T>*) {
  Dual<T> value = {static_cast<const T*>(values)[i], T(0)};
  if (tangents != nullptr) {
    HASHGRID_IN_GLOBAL(tangents);
    value.tangent = static_cast<const T*>(tangents)[i];
  }
  return value;
}

// Element i of `values`, with its tangent (null: zero) where V is a dual number.
template <typename V>
HASHGRID_HD V read_value(const void* values, const void* tangents, int64_t i) {
  return read_value(values, tangents, i, static_cast<V*>(nullptr));
}

template <typename T>
HASHGRID_HD T read_or_zero(const void* values, int64_t i) {
  if (values == nullptr) return T(0);
  HASHGRID_IN_GLOBAL(values);
  return static_cast<const T*>(values)[i];
}

// What a sample of weight w adds to the distortion; `spread` is sum w_j (m - m_j) over the samples in front of it.
template <typename T, typename A>
HASHGRID_HD A sample_distortion(A w, A spread, T step) {
  return w * (w * A(static_cast<double>(step) / 3.0) + A(2.0) * spread);
}

// What one ray has gathered from the samples in front of the current one.
template <typename A>
struct RaySums {
  A weight = A(0.0);      // sum w_j
  A depth = A(0.0);       // sum w_j m_j
  A spread = A(0.0);      // sum w_j (m - m_j), m the middle of the latest sample
  A distortion = A(0.0);  // 1/3 sum w_j^2 dt_j + 2 sum_j w_j sum_{k<j} w_k (m_j - m_k)
  double middle = 0.0;    // m
};

// Adds one sample and returns its weight. sums->spread is then that of the samples in front of it.
template <typename V, typename T, typename A>
HASHGRID_HD V composite_step(V transmittance, V alpha, T step, T middle, RaySums<A>* sums) {
  // Moving m by one gap moves every difference by it: no difference of two large sums.
  const double m = static_cast<double>(middle);
  sums->spread += sums->weight * A(m - sums->middle);
  sums->middle = m;
  const V weight = transmittance * alpha;
  const A w = A(weight);
  sums->distortion += sample_distortion(w, sums->spread, step);
  sums->depth += w * A(m);
  sums->weight += w;
  return weight;
}

// What the samples behind the current one contribute to its gradient.
template <typename A>
struct RaySuffix {
  A weight = A(0.0);    // sum w_j
  A spread = A(0.0);    // sum w_j (m_j - m)
  A gradient = A(0.0);  // what thickness_gradient or alpha_gradient carries
  double middle = 0.0;
};

// Gradients of the outputs of one ray.
template <typename T>
struct RayGradients {
  T opacity, depth, distortion;
};

// dL/dw of a sample: grad_weight, that through the features and the weight itself, and what comes through the sums of
// its ray. `spread` is sum w_j |m - m_j| over the other samples.
template <typename T, typename A>
HASHGRID_HD A weight_gradient(A grad_weight, A w, A spread, T step, double middle, const RayGradients<T>& grads) {
  const A both = A(2.0) * spread + w * A(static_cast<double>(step) * (2.0 / 3.0));
  return grad_weight + A(static_cast<double>(grads.opacity) + static_cast<double>(grads.depth) * middle) +
         A(static_cast<double>(grads.distortion)) * both;
}

// dL / d(sigma dt) of a sample, of which `grad` is dL/dw and `passed` 1 - alpha. `*behind` is sum (w_j dL/dw_j +
// T_j dL/dT_j) over the samples behind it, and receives that of the sample in front but for this one's T dL/dT, which
// the caller adds where there is any.
template <typename V, typename A>
HASHGRID_HD A thickness_gradient(V transmittance, V passed, V weight, A grad, A* behind) {
  const A result = grad * A(transmittance * passed) - *behind;
  *behind += grad * A(weight);
  return result;
}

// dL / d alpha likewise. Here `*behind` is V, dL/dT in front of the next sample, which receives, but for the caller's
// dL/dT_i, that in front of this one:
//   V_i = dL/dT_i + alpha_i dL/dw_i + (1 - alpha_i) V_{i+1},   dL/d alpha_i = T_i (dL/dw_i - V_{i+1}).
// Nothing is divided by 1 - alpha: an alpha of 1 has the gradient of its limit.
template <typename V, typename A>
HASHGRID_HD A alpha_gradient(V transmittance, V alpha, V passed, A grad, A* behind) {
  const A result = A(transmittance) * (grad - *behind);
  *behind = A(alpha) * grad + A(passed) * *behind;
  return result;
}

// dL/dw of a sample, back to front; `spread` as composite_step left it, `grad_weight` is dL/dw through the features and
// the weight itself.
template <typename V, typename T, typename A>
HASHGRID_HD A weight_gradient_reverse(V weight, V spread, V grad_weight, T step, T middle, const RayGradients<T>& grads,
                                      RaySuffix<A>* suffix) {
  const double m = static_cast<double>(middle);
  suffix->spread += suffix->weight * A(suffix->middle - m);
  suffix->middle = m;
  const A w = A(weight);
  suffix->weight += w;
  return weight_gradient(A(grad_weight), w, A(spread) + suffix->spread, step, m, grads);
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
