// Derivatives of the MLP's activations up to the third, for values carried along directions. Each follows from the
// output and, for some, a companion: what the output alone does not say. Formulas hold for numbers and for vectors V of
// them, T being the type of one.
#pragma once

#include "core/activation.h"

namespace hashgrid {
namespace HASHGRID_ISA {

// The companion: the cosine of a sine, the sigmoid of what is made with one.
HASHGRID_HD bool has_companion(Activation activation) { return derivative_reads_input(activation); }

template <typename V>
struct Derivatives {
  V first;
  V second;
  V third;
};

// Of `activation` at the pre-activation whose output is `a`; `c` is the companion.
template <typename T, typename V>
HASHGRID_HD Derivatives<V> activation_derivatives(V a, V c, Activation activation) {
  const V zero = {}, one = zero + T(1);
  switch (activation) {
    case Activation::kReLU:
      return {a <= zero ? zero : one, zero, zero};
    case Activation::kLeakyReLU:
      return {a > zero ? one : zero + T(kLeakySlope), zero, zero};
    case Activation::kSiLU: {
      // With s the sigmoid: a = z s, s' = s (1 - s).
      const V rest = one - c, odd = one - T(2) * c;
      const V first = c + a * rest, inner = T(2) * c + a * odd;
      return {first, rest * inner, rest * (T(2) * c * rest + first * odd - T(2) * a * c * rest - c * inner)};
    }
    case Activation::kSoftplus: {
      const V second = c * (one - c);
      return {c, second, second * (one - T(2) * c)};
    }
    case Activation::kSigmoid: {
      const V first = a * (one - a), odd = one - T(2) * a;
      return {first, first * odd, first * (odd * odd - T(2) * first)};
    }
    case Activation::kTanh: {
      const V first = one - a * a;
      return {first, T(-2) * a * first, T(-2) * first * (one - T(3) * a * a)};
    }
    case Activation::kExp: {
      // exp(-15), exp(15): between them the derivative is the output.
      const V low = zero + T(3.0590232050182579e-7), high = zero + T(3269017.3724721106);
      const V inside = a < low ? zero : a > high ? zero : a;
      return {a < low ? low : a > high ? high : a, inside, inside};
    }
    case Activation::kSine:
      return {c, zero - a, zero - c};
    default:
      return {one, zero, zero};
  }
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
