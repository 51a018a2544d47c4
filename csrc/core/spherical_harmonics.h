// Real spherical harmonics as polynomials of the direction, orthonormal on the sphere, in tiny-cuda-nn's order and
// signs (degree 1: -y, z, -x). Y_lm = Q_lm(z) Re (x + iy)^m, Y_l,-m = Q_lm(z) Im (x + iy)^m with normalised associated
// Legendre polynomials Q (DLMF 14.10.3, the powers of the sine left out). T is a scalar or a vector of scalars S.
#pragma once

#include <cmath>

#include "core/macros.h"
#include "core/sh_encode_params.h"

namespace hashgrid {
namespace HASHGRID_ISA {

// Q_mm = first[m] and Q_lm = rise[k] z Q_(l-1)m - fall[k] Q_(l-2)m with k = l (l + 1) / 2 + m.
template <typename S>
struct ShConstants {
  S first[kMaxShDegree];
  S rise[kMaxShDegree * (kMaxShDegree + 1) / 2];
  S fall[kMaxShDegree * (kMaxShDegree + 1) / 2];
};

HASHGRID_HD int sh_index(int l, int m) { return l * (l + 1) / 2 + m; }

// sqrt((2l + 1) / 4pi (l - m)! / (l + m)!), times sqrt(2) where m > 0, with the phase (-1)^m.
HASHGRID_HD double sh_norm(int l, int m) {
  double ratio = (2 * l + 1) / 12.566370614359172;
  for (int i = l - m + 1; i <= l + m; ++i) ratio /= i;
  const double norm = ::sqrt(m > 0 ? 2.0 * ratio : ratio);
  return m % 2 == 1 ? -norm : norm;
}

template <typename S>
HASHGRID_HD ShConstants<S> sh_constants(int degree) {
  ShConstants<S> c = {};
  double odd_factorial = 1.0;  // (2m - 1)!!
  for (int m = 0; m < degree; ++m) {
    c.first[m] = static_cast<S>(sh_norm(m, m) * odd_factorial);
    odd_factorial *= 2 * m + 1;
    for (int l = m + 1; l < degree; ++l) {
      c.rise[sh_index(l, m)] = static_cast<S>((2 * l - 1) * sh_norm(l, m) / (sh_norm(l - 1, m) * (l - m)));
      if (l == m + 1) continue;
      c.fall[sh_index(l, m)] = static_cast<S>((l + m - 1) * sh_norm(l, m) / (sh_norm(l - 2, m) * (l - m)));
    }
  }
  return c;
}

// values [degree^2]
template <int kDegree, typename S, typename T>
HASHGRID_HD void sh_values(const ShConstants<S>& c, T x, T y, T z, T* values) {
  T re = T{} + S(1), im = T{};  // (x + iy)^m
  HASHGRID_UNROLL
  for (int m = 0; m < kDegree; ++m) {
    T q = T{} + c.first[m], before = T{};
    HASHGRID_UNROLL
    for (int l = m; l < kDegree; ++l) {
      if (l > m) {
        const T next = c.rise[sh_index(l, m)] * z * q - c.fall[sh_index(l, m)] * before;
        before = q;
        q = next;
      }
      values[l * l + l + m] = q * re;
      if (m > 0) values[l * l + l - m] = q * im;
    }
    const T turned = x * re - y * im;
    im = x * im + y * re;
    re = turned;
  }
}

// grad_values [degree^2] -> gradient to x, y, z
template <int kDegree, typename S, typename T>
HASHGRID_HD void sh_gradient(const ShConstants<S>& c, T x, T y, T z, const T* grad_values, T* grad_x, T* grad_y,
                             T* grad_z) {
  const T zero = T{};
  *grad_x = *grad_y = *grad_z = zero;
  T re = zero + S(1), im = zero;
  T re_before = zero, im_before = zero;  // (x + iy)^(m-1)
  HASHGRID_UNROLL
  for (int m = 0; m < kDegree; ++m) {
    T q = zero + c.first[m], q_before = zero;
    T slope = zero, slope_before = zero;  // d Q / d z
    T sum_re = zero, sum_im = zero;       // of Q times the gradient of the channel with Re, Im
    T slope_re = zero, slope_im = zero;
    HASHGRID_UNROLL
    for (int l = m; l < kDegree; ++l) {
      if (l > m) {
        const S rise = c.rise[sh_index(l, m)], fall = c.fall[sh_index(l, m)];
        const T next_slope = rise * (q + z * slope) - fall * slope_before;
        const T next = rise * z * q - fall * q_before;
        slope_before = slope;
        slope = next_slope;
        q_before = q;
        q = next;
      }
      const T g_re = grad_values[l * l + l + m];
      sum_re += q * g_re;
      slope_re += slope * g_re;
      if (m > 0) {
        const T g_im = grad_values[l * l + l - m];
        sum_im += q * g_im;
        slope_im += slope * g_im;
      }
    }
    // d (x + iy)^m / dx = m (x + iy)^(m-1), and i times that to y
    if (m > 0) {
      *grad_x += S(m) * (sum_re * re_before + sum_im * im_before);
      *grad_y += S(m) * (sum_im * re_before - sum_re * im_before);
    }
    *grad_z += slope_re * re + slope_im * im;
    re_before = re;
    im_before = im;
    const T turned = x * re - y * im;
    im = x * im + y * re;
    re = turned;
  }
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
