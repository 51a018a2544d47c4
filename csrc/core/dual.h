// Dual numbers: a value and its derivative along one direction. A kernel templated on its number type computes its own
// second order with them: the derivative of a gradient along a cotangent is what a double backward pulls back.
#pragma once

#include <cmath>

#include "core/elementary.h"
#include "core/macros.h"

namespace hashgrid {
namespace HASHGRID_ISA {

template <typename T>
struct Dual {
  T value;
  T tangent;

  Dual() = default;
  HASHGRID_HD_MEMBER Dual(T v) : value(v), tangent(T(0)) {}
  HASHGRID_HD_MEMBER Dual(T v, T d) : value(v), tangent(d) {}
  template <typename U>
  HASHGRID_HD_MEMBER explicit Dual(const Dual<U>& x)
      : value(static_cast<T>(x.value)), tangent(static_cast<T>(x.tangent)) {}

  friend HASHGRID_HD_MEMBER Dual operator+(const Dual& a, const Dual& b) {
    return {a.value + b.value, a.tangent + b.tangent};
  }
  friend HASHGRID_HD_MEMBER Dual operator-(const Dual& a, const Dual& b) {
    return {a.value - b.value, a.tangent - b.tangent};
  }
  friend HASHGRID_HD_MEMBER Dual operator-(const Dual& a) { return {-a.value, -a.tangent}; }
  friend HASHGRID_HD_MEMBER Dual operator*(const Dual& a, const Dual& b) {
    return {a.value * b.value, a.tangent * b.value + a.value * b.tangent};
  }
  HASHGRID_HD_MEMBER Dual& operator+=(const Dual& b) { return *this = *this + b; }
};

// The real type a number type is made of.
template <typename V>
struct RealOf {
  typedef V Type;
};
template <typename T>
struct RealOf<Dual<T>> {
  typedef T Type;
};

// What an output receives: the value, or the derivative of a dual number.
template <typename T>
HASHGRID_HD T written(T x) {
  return x;
}
template <typename T>
HASHGRID_HD T written(const Dual<T>& x) {
  return x.tangent;
}

HASHGRID_HD float primal(float x) { return x; }
HASHGRID_HD double primal(double x) { return x; }
template <typename T>
HASHGRID_HD T primal(const Dual<T>& x) {
  return x.value;
}

template <typename T>
HASHGRID_HD Dual<T> exponential(const Dual<T>& x) {
  const T e = exponential(x.value);
  return {e, e * x.tangent};
}

// exp(x) - 1 without cancellation
HASHGRID_HD float exponential_minus_one(float x) { return ::expm1f(x); }
HASHGRID_HD double exponential_minus_one(double x) { return ::expm1(x); }
template <typename T>
HASHGRID_HD Dual<T> exponential_minus_one(const Dual<T>& x) {
  return {exponential_minus_one(x.value), exponential(x.value) * x.tangent};
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
