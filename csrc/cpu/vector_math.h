// Elementary functions of fp32 vectors, within 3 ulp (sine: 1e-7 absolute); NaN and infinities go through as in the
// scalar library.
//
// Polynomials interpolate at Chebyshev nodes of the reduced range. Reduction constants are split so that their leading
// parts have trailing zeros: products with them are exact with or without FMA.
#pragma once

#include <cmath>

#include "cpu/simd.h"

namespace hashgrid {
namespace HASHGRID_ISA {

// a > b ? a : b, in one instruction where there is one: b if either is NaN.
static inline VecF maximum(VecF a, VecF b) {
#if defined(HASHGRID_HAS_AVX512)
  return reinterpret_cast<VecF>(_mm512_max_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#elif defined(HASHGRID_HAS_AVX2)
  return reinterpret_cast<VecF>(_mm256_max_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b)));
#else
  return a > b ? a : b;
#endif
}

static inline VecF absolute(VecF x) { return reinterpret_cast<VecF>(reinterpret_cast<VecI>(x) & 0x7fffffff); }
static inline VecF copy_sign(VecF magnitude, VecF sign) {
  return reinterpret_cast<VecF>(reinterpret_cast<VecU>(magnitude) | (reinterpret_cast<VecU>(sign) & 0x80000000u));
}

// Nearest integer of |x| < 2^22, also as an integer: adding 1.5 * 2^23 leaves it in the low mantissa bits.
static inline VecF round_nearest(VecF x, VecI* whole) {
  const VecF shifted = x + 12582912.0f;
  *whole = reinterpret_cast<VecI>(shifted) - 0x4b400000;
  return shifted - 12582912.0f;
}

static inline VecF vector_exp(VecF x) {
  // Beyond these the result is infinite, or rounds to zero.
  x = clamp(x, -104.0f, 89.0f);
  VecI n;
  const VecF whole = round_nearest(x * 1.44269504f, &n);
  const VecF r = (x - whole * 0.693359375f) + whole * 2.12194442e-4f;
  VecF q = r * 1.3926181709393859e-3f + 8.363177999854088e-3f;
  q = q * r + 4.1666556149721146e-2f;
  q = q * r + 1.6666576266288757e-1f;
  q = q * r + 0.5f;
  const VecF p = q * (r * r) + r + 1.0f;
  // 2^n in two factors: n runs from -150 to 128, past what one exponent field holds.
  const VecI half = n >> 1;
  const VecF low = reinterpret_cast<VecF>((half + 127) << 23);
  const VecF high = reinterpret_cast<VecF>((n - half + 127) << 23);
  return p * low * high;
}

static inline VecF vector_sigmoid(VecF x) {
  const VecF e = vector_exp(-absolute(x));
  return select(x < 0.0f, e, splat(1.0f)) / (1.0f + e);
}

// log(1 + t) for t in [0, 1]: 2 atanh(s) with s = t / (2 + t).
static inline VecF vector_log_one_plus(VecF t) {
  const VecF s = t / (2.0f + t);
  const VecF z = s * s;
  VecF q = z * 0.2079349011182785f + 0.17463237047195435f;
  q = q * z + 0.22264836728572845f;
  q = q * z + 0.28570300340652466f;
  q = q * z + 0.40000009536743164f;
  q = q * z + 0.6666666865348816f;
  return q * z * s + 2.0f * s;
}

static inline VecF vector_softplus(VecF x) {
  return select(x > 0.0f, x, VecF{}) + vector_log_one_plus(vector_exp(-absolute(x)));
}

static inline VecF vector_tanh(VecF x) {
  const VecF magnitude = absolute(x);
  const VecF z = x * x;
  VecF q = z * -6.0903532430529594e-3f + 2.099164016544819e-2f;
  q = q * z - 5.3849298506975174e-2f;
  q = q * z + 1.3332752883434296e-1f;
  q = q * z - 3.33333283662796e-1f;
  const VecF small = q * z * x + x;
  const VecF large = 1.0f - 2.0f / (vector_exp(2.0f * magnitude) + 1.0f);
  return select(magnitude < 0.625f, small, copy_sign(large, x));
}

// sin(x + quarter_turns * pi / 2), quarter_turns 0 or 1.
static inline VecF vector_sine(VecF x, int quarter_turns) {
  constexpr float kLimit = 12000.0f;  // the reduction below is exact up to 2^13 quarter turns
  const VecI outside = ~(absolute(x) <= kLimit);
  const VecF inside = select(outside, VecF{}, x);
  VecI n;
  const VecF whole = round_nearest(inside * 0.636619772f, &n);
  const VecF r = ((inside - whole * 1.5703125f) - whole * 4.837512969970703e-4f) - whole * 7.549790126404332e-8f;
  const VecF z = r * r;
  VecF s = z * 2.724985051827389e-6f - 1.9840085587929934e-4f;
  s = s * z + 8.333331905305386e-3f;
  s = s * z - 1.666666716337204e-1f;
  const VecF sine = s * z * r + r;
  VecF c = z * -2.730089647684508e-7f + 2.480059993104078e-5f;
  c = c * z - 1.38888880610466e-3f;
  c = c * z + 4.16666679084301e-2f;
  const VecF cosine = c * (z * z) - 0.5f * z + 1.0f;
  n += quarter_turns;
  VecF result = select((n & 1) != 0, cosine, sine);
  result = reinterpret_cast<VecF>(reinterpret_cast<VecI>(result) ^ ((n & 2) << 30));
  int any = 0;
  for (int i = 0; i < kLanes; ++i) any |= outside[i];
  if (any) {
    for (int i = 0; i < kLanes; ++i) {
      if (outside[i]) result[i] = static_cast<float>(quarter_turns ? ::cos(double(x[i])) : ::sin(double(x[i])));
    }
  }
  return result;
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
