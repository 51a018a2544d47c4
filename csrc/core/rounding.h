// Rounding of the factors of matrix products, to nearest with ties to even; for fp32 and for vectors of it.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/macros.h"
#include "core/mlp_params.h"

namespace hashgrid {
namespace HASHGRID_ISA {

// What becomes of a factor. kElevenBits: the mantissa of float16 with the exponent of fp32.
enum class Rounding { kNone, kBFloat16, kFloat16, kElevenBits };

// Of activations and weights.
HASHGRID_HD Rounding value_rounding(MlpFactors factors) {
  return factors == MlpFactors::kReal       ? Rounding::kNone
         : factors == MlpFactors::kBFloat16 ? Rounding::kBFloat16
                                            : Rounding::kFloat16;
}

// Of gradients, which are often below the 6e-8 where float16 ends. Training in float16 multiplies them by a loss scale
// and divides again; an exponent of their own makes that needless, and no scale can be wrong.
HASHGRID_HD Rounding gradient_rounding(MlpFactors factors) {
  return factors == MlpFactors::kFloat16 ? Rounding::kElevenBits : value_rounding(factors);
}

// x without its last kDropped mantissa bits. The carry of a mantissa runs into the exponent; NaN stays NaN.
template <int kDropped, typename Bits, typename Real>
HASHGRID_HD Real round_mantissa(Real x) {
  constexpr uint32_t kMask = ~uint32_t{0} << kDropped;
  Bits bits;
  memcpy(&bits, &x, sizeof(bits));
  const Bits rounded = (bits + (~kMask / 2 + ((bits >> kDropped) & 1u))) & kMask;
  bits = x == x ? rounded : (bits | 0x400000u) & kMask;
  memcpy(&x, &bits, sizeof(bits));
  return x;
}

// The float16 nearest to x, as fp32: infinite from 65520 on, multiples of 2^-24 below 2^-14.
template <typename Bits, typename Real>
HASHGRID_HD Real round_to_float16(Real x) {
  Bits bits;
  memcpy(&bits, &x, sizeof(bits));
  const Bits sign = bits & 0x80000000u;
  bits ^= sign;
  Real magnitude;
  memcpy(&magnitude, &bits, sizeof(bits));
  const Real subnormal = (magnitude + 0.5f) - 0.5f;  // the last bit of 0.5 is worth 2^-24
  const Real normal = round_mantissa<13, Bits>(magnitude);
  const Real finite = magnitude < 6.103515625e-5f ? subnormal : normal;
  const Real result = finite >= 65536.0f ? finite + __builtin_inff() : finite;
  memcpy(&bits, &result, sizeof(bits));
  bits |= sign;
  memcpy(&x, &bits, sizeof(bits));
  return x;
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
