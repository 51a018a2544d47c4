// sin(pi x) and cos(pi x), exact in their argument: whole turns and quadrants come off before pi comes in, so that the
// error stays near one rounding however large x is. T is a scalar or a vector of scalars S. sin(x) and cos(x) are those
// of x / pi in two numbers: a quotient that is rounded once is off by ten octaves' 1e-4.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/macros.h"

namespace hashgrid {
namespace HASHGRID_ISA {

// sin(pi f) and cos(pi f) for |f| <= 1/4: Taylor, the first term left out is below half an ulp of fp32.
template <typename T>
HASHGRID_HD T sin_pi_octant(T f) {
  const T s = f * f;
  // pi = 3.14159274 - 8.74e-8 in two fp32 numbers
  const T tail = s * (s * (s * (s * 0.0821458866f - 0.599264529f) + 2.55016404f) - 5.16771278f) - 8.74227801e-8f;
  return f * tail + f * 3.14159274f;
}
template <typename T>
HASHGRID_HD T cos_pi_octant(T f) {
  const T s = f * f;
  return s * (s * (s * (s * (s * -0.0258068913f + 0.235330630f) - 1.33526277f) + 4.05871213f) - 4.93480220f) + 1.0f;
}

HASHGRID_HD void sin_cos_pi_octant(float f, float* sine, float* cosine) {
  *sine = sin_pi_octant(f);
  *cosine = cos_pi_octant(f);
}
HASHGRID_HD void sin_cos_pi_octant(double f, double* sine, double* cosine) {
  *sine = ::sin(3.141592653589793 * f);
  *cosine = ::cos(3.141592653589793 * f);
}

HASHGRID_HD float round_even(float x) { return ::rintf(x); }
HASHGRID_HD double round_even(double x) { return ::rint(x); }

// x / pi, to twice the digits of T.
HASHGRID_HD void divide_by_pi(float x, float* high, float* low) {
  *high = x * 0.318309886f;
  *low = (::fmaf(-*high, 3.14159274f, x) + *high * 8.74227801e-8f) * 0.318309886f;
}
HASHGRID_HD void divide_by_pi(double x, double* high, double* low) {
  *high = x * 0.3183098861837907;
  *low = (::fma(-*high, 3.141592653589793, x) - *high * 1.2246467991473532e-16) * 0.3183098861837907;
}

// high + low without the whole turns of high.
template <typename T>
HASHGRID_HD T without_turns(T high, T low) {
  return high - T(2) * round_even(high * T(0.5)) + low;
}

// NaN for infinite or NaN x.
template <typename T>
HASHGRID_HD void sin_cos_pi(T x, T* sine, T* cosine) {
  const T turn = x - T(2) * round_even(x * T(0.5));  // exact, in [-1, 1]
  const T quadrant = round_even(turn * T(2));        // -2..2
  T s, c;
  sin_cos_pi_octant(turn - quadrant * T(0.5), &s, &c);
  const int q = quadrant == quadrant ? static_cast<int>(quadrant) : 0;
  *sine = q & 1 ? c : s;
  *cosine = q & 1 ? s : c;
  if (q & 2) *sine = -*sine;
  if ((q + 1) & 2) *cosine = -*cosine;
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
