// One Adam update (Kingma & Ba 2015; eps on the uncorrected root as in tiny-cuda-nn) and the average of the weights.
// T is a scalar or a vector of scalars S.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/macros.h"

namespace hashgrid {
namespace HASHGRID_ISA {

template <typename S>
struct AdamConstants {
  S beta1, one_minus_beta1;
  S beta2, one_minus_beta2;
  S eps;
  S weight_decay;
  S ema_decay, one_minus_ema_decay;
};

template <typename S>
HASHGRID_HD AdamConstants<S> adam_constants(double beta1, double beta2, double eps, double weight_decay,
                                            double ema_decay) {
  return {
      static_cast<S>(beta1), static_cast<S>(1.0 - beta1),  static_cast<S>(beta2),     static_cast<S>(1.0 - beta2),
      static_cast<S>(eps),   static_cast<S>(weight_decay), static_cast<S>(ema_decay), static_cast<S>(1.0 - ema_decay)};
}

// Factor of the learning rate after `step` updates, from 1.
HASHGRID_HD double adam_bias_correction(double beta1, double beta2, int64_t step) {
  const double t = static_cast<double>(step);
  return ::sqrt(1.0 - ::pow(beta2, t)) / (1.0 - ::pow(beta1, t));
}

// The same in fp32, from the logarithms of the betas: within 4 roundings, for where pow would cost more than the
// update.
HASHGRID_HD float adam_bias_correction_from_logs(float log_beta1, float log_beta2, int32_t step) {
  const float t = static_cast<float>(step);
  return ::sqrtf(-::expm1f(t * log_beta2)) / -::expm1f(t * log_beta1);
}

// decay^n for the n steps a row was idle.
HASHGRID_HD float ema_keep(float log_decay, int32_t n) {
  return n > 0 ? ::expf(static_cast<float>(n) * log_decay) : n == 0 ? 1.0f : 0.0f;
}

template <typename S, typename T>
HASHGRID_HD void adam_moments(const AdamConstants<S>& c, T grad, T param, T* exp_avg, T* exp_avg_sq) {
  grad = grad + c.weight_decay * param;
  *exp_avg = c.beta1 * *exp_avg + c.one_minus_beta1 * grad;
  *exp_avg_sq = c.beta2 * *exp_avg_sq + c.one_minus_beta2 * grad * grad;
}

// `rate`: learning rate times bias correction; `root`: square root of exp_avg_sq.
template <typename S, typename T>
HASHGRID_HD T adam_apply(const AdamConstants<S>& c, T param, T rate, T exp_avg, T root) {
  return param - rate * exp_avg / (root + c.eps);
}

// The average after n steps in which `param` stayed as it is, keep = decay^n.
template <typename T>
HASHGRID_HD T ema_catch_up(T ema, T param, T keep) {
  return keep * ema + (1.0f - keep) * param;
}

template <typename S, typename T>
HASHGRID_HD T ema_update(const AdamConstants<S>& c, T ema, T param) {
  return c.ema_decay * ema + c.one_minus_ema_decay * param;
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
