// Interpolation weight of the upper vertex along one axis, with its first and second derivative.
#pragma once

#include "core/macros.h"
#include "core/hash_encode_params.h"
#include "core/ray.h"

namespace hashgrid {
namespace HASHGRID_ISA {

template <typename T>
struct AxisWeight {
  T value;   // weight of the upper vertex; the lower one has 1 - value
  T first;   // d value / d fraction
  T second;  // d^2 value / d fraction^2
};

template <typename T>
HASHGRID_HD AxisWeight<T> axis_weight(T fraction, Interpolation interpolation) {
  if (interpolation == Interpolation::kSmoothstep) {
    // Rounded, as the lower vertex has 1 minus it; 2 f is exact.
    return {rounded_multiply(fraction * fraction, T(3) - T(2) * fraction), T(6) * fraction * (T(1) - fraction),
            T(6) - T(12) * fraction};
  }
  if (interpolation == Interpolation::kNearest) return {T(0), T(0), T(0)};
  return {fraction, T(1), T(0)};
}

// Weights of a cell's 2^n_dims corners. A product over axes; a derivative replaces the factor of its axis. kDims is the
// number of axes where it is known, else 0. Loops over axes have constant bounds, so that on a GPU, unrolled, what they
// index stays in registers.
template <typename T, int kDims = 0>
struct CellWeights {
  static constexpr int kSize = kDims > 0 ? kDims : kMaxDims;
  AxisWeight<T> axis[kSize];
  int n_dims;
};

// `skip_a`, `skip_b`: axes whose factor is left out, -1 for none.
template <typename T, int kDims>
HASHGRID_HD T corner_weight(const CellWeights<T, kDims>& cell, uint32_t corner, int skip_a, int skip_b) {
  T weight = T(1);
  HASHGRID_UNROLL
  for (int d = 0; d < CellWeights<T, kDims>::kSize; ++d) {
    if (d >= cell.n_dims || d == skip_a || d == skip_b) continue;
    const T upper = cell.axis[d].value;
    weight *= (corner >> d) & 1u ? upper : T(1) - upper;
  }
  return weight;
}

template <typename T>
HASHGRID_HD T corner_sign(uint32_t corner, int dim) {
  return (corner >> dim) & 1u ? T(1) : T(-1);
}

// d weight / d fraction[dim]
template <typename T, int kDims>
HASHGRID_HD T corner_weight_first(const CellWeights<T, kDims>& cell, uint32_t corner, int dim) {
  return corner_sign<T>(corner, dim) * cell.axis[dim].first * corner_weight(cell, corner, dim, -1);
}

// d^2 weight / d fraction[a] d fraction[b]
template <typename T, int kDims>
HASHGRID_HD T corner_weight_second(const CellWeights<T, kDims>& cell, uint32_t corner, int a, int b) {
  if (a == b) return corner_sign<T>(corner, a) * cell.axis[a].second * corner_weight(cell, corner, a, -1);
  return corner_sign<T>(corner, a) * cell.axis[a].first * corner_sign<T>(corner, b) * cell.axis[b].first *
         corner_weight(cell, corner, a, b);
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
