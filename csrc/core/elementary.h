// Elementary functions under one name for fp32 and fp64, so that templates can call them.
#pragma once

#include <cmath>

#include "core/macros.h"

namespace hashgrid {
namespace HASHGRID_ISA {

HASHGRID_HD float exponential(float x) { return ::expf(x); }
HASHGRID_HD double exponential(double x) { return ::exp(x); }
HASHGRID_HD float log_one_plus(float x) { return ::log1pf(x); }
HASHGRID_HD double log_one_plus(double x) { return ::log1p(x); }
HASHGRID_HD float hyperbolic_tangent(float x) { return ::tanhf(x); }
HASHGRID_HD double hyperbolic_tangent(double x) { return ::tanh(x); }
HASHGRID_HD float sine(float x) { return ::sinf(x); }
HASHGRID_HD double sine(double x) { return ::sin(x); }
HASHGRID_HD float cosine(float x) { return ::cosf(x); }
HASHGRID_HD double cosine(double x) { return ::cos(x); }

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
