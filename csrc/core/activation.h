// Activation functions of the MLP: value, first and second derivative.
#pragma once

#include <cmath>

#include "core/elementary.h"
#include "core/macros.h"
#include "core/mlp_params.h"

namespace hashgrid {

// Largest |x| at which the exponential's derivative still follows it: keeps density gradients finite.
constexpr double kExpGradientClamp = 15.0;
constexpr double kLeakySlope = 0.01;

namespace HASHGRID_ISA {

// Whether the derivative is computed from the pre-activation z; otherwise from the output, which needs no second copy.
HASHGRID_HD bool derivative_reads_input(Activation activation) {
  return activation == Activation::kSiLU || activation == Activation::kSoftplus || activation == Activation::kSine;
}

// Whether the derivative depends on the output's sign alone, which survives rounding.
HASHGRID_HD bool derivative_reads_sign(Activation activation) {
  return activation == Activation::kNone || activation == Activation::kReLU || activation == Activation::kLeakyReLU;
}

template <typename T>
HASHGRID_HD T sigmoid(T z) {
  const T e = exponential(z < T(0) ? z : -z);
  return (z < T(0) ? e : T(1)) / (T(1) + e);
}

// NaN goes through every one of them.
template <typename T>
HASHGRID_HD T activate(T z, Activation activation) {
  switch (activation) {
    case Activation::kReLU:
      return z < T(0) ? T(0) : z;
    case Activation::kLeakyReLU:
      return z < T(0) ? T(kLeakySlope) * z : z;
    case Activation::kSiLU:
      return z * sigmoid(z);
    case Activation::kSoftplus:
      return (z < T(0) ? T(0) : z) + log_one_plus(exponential(z < T(0) ? z : -z));
    case Activation::kSigmoid:
      return sigmoid(z);
    case Activation::kTanh:
      return hyperbolic_tangent(z);
    case Activation::kExp:
      return exponential(z);
    case Activation::kSine:
      return sine(z);
    default:
      return z;
  }
}

// d activation / dz from `source`: z where derivative_reads_input, else the output.
template <typename T>
HASHGRID_HD T activation_derivative(T source, Activation activation) {
  switch (activation) {
    case Activation::kReLU:
      return source <= T(0) ? T(0) : T(1);
    case Activation::kLeakyReLU:
      return source > T(0) ? T(1) : T(kLeakySlope);
    case Activation::kSiLU: {
      const T s = sigmoid(source);
      return s * (T(1) + source * (T(1) - s));
    }
    case Activation::kSoftplus:
      return sigmoid(source);
    case Activation::kSigmoid:
      return source * (T(1) - source);
    case Activation::kTanh:
      return T(1) - source * source;
    case Activation::kExp: {
      const T low = exponential(T(-kExpGradientClamp)), high = exponential(T(kExpGradientClamp));
      return source < low ? low : source > high ? high : source;
    }
    case Activation::kSine:
      return cosine(source);
    default:
      return T(1);
  }
}

// d^2 activation / dz^2 from the same `source`; zero where derivative_reads_sign.
template <typename T>
HASHGRID_HD T activation_second_derivative(T source, Activation activation) {
  switch (activation) {
    case Activation::kSiLU: {
      const T s = sigmoid(source);
      return s * (T(1) - s) * (T(2) + source * (T(1) - T(2) * s));
    }
    case Activation::kSoftplus: {
      const T s = sigmoid(source);
      return s * (T(1) - s);
    }
    case Activation::kSigmoid:
      return source * (T(1) - source) * (T(1) - T(2) * source);
    case Activation::kTanh:
      return T(-2) * source * (T(1) - source * source);
    case Activation::kExp: {
      const T low = exponential(T(-kExpGradientClamp)), high = exponential(T(kExpGradientClamp));
      return source < low || source > high ? T(0) : source;
    }
    case Activation::kSine:
      return -sine(source);
    default:
      return T(0);
  }
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
