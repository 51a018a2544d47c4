// Smooth L1 loss (Girshick 2015) of rays over their backgrounds, and its gradient.
#pragma once

#include "core/macros.h"
#include "core/pixel_loss_params.h"

namespace hashgrid {
namespace HASHGRID_ISA {

HASHGRID_HD int64_t rays_that_count(const PixelLossParams& p) {
  const int64_t n = p.n_used != nullptr ? *p.n_used : p.n_rays;
  return n < 0 ? 0 : n < p.n_rays ? n : p.n_rays;
}

// Of one value in the mean over `n_used` rays.
HASHGRID_HD double pixel_weight(const PixelLossParams& p, int64_t n_used) {
  return 1.0 / static_cast<double>(p.n_channels * (n_used > 0 ? n_used : 1));
}

// Writes the gradients of a ray and adds its terms, without their weight. NaN goes through.
template <typename T>
HASHGRID_HD void add_pixel(const PixelLossParams& p, int64_t ray, T weight, double* loss, double* error) {
  const T beta = static_cast<T>(p.beta);
  const T through = T(1) - static_cast<const T*>(p.opacities)[ray];
  T grad_opacity = T(0);
  for (int64_t i = ray * p.n_channels; i < (ray + 1) * p.n_channels; ++i) {
    const T behind = static_cast<const T*>(p.background)[i];
    const T difference = static_cast<const T*>(p.colors)[i] + through * behind - static_cast<const T*>(p.targets)[i];
    const T size = difference < T(0) ? -difference : difference;
    const T sign = difference < T(0) ? T(-1) : difference > T(0) ? T(1) : difference;
    const T slope = size < beta ? difference / beta : sign;
    *loss += static_cast<double>(size < beta ? T(0.5) * difference * slope : size - T(0.5) * beta);
    *error += static_cast<double>(difference) * static_cast<double>(difference);
    static_cast<T*>(p.grad_colors)[i] = weight * slope;
    grad_opacity -= weight * slope * behind;
  }
  static_cast<T*>(p.grad_opacities)[ray] = grad_opacity;
}

template <typename T>
HASHGRID_HD void skip_pixel(const PixelLossParams& p, int64_t ray) {
  for (int64_t i = ray * p.n_channels; i < (ray + 1) * p.n_channels; ++i) static_cast<T*>(p.grad_colors)[i] = T(0);
  static_cast<T*>(p.grad_opacities)[ray] = T(0);
}

HASHGRID_HD void write_pixel_means(const PixelLossParams& p, double loss, double error) {
  const double weight = pixel_weight(p, rays_that_count(p));
  p.means[0] = loss * weight;
  p.means[1] = error * weight;
  if (p.dtype == DType::kFloat64) {
    *static_cast<double*>(p.loss) = p.means[0];
  } else {
    *static_cast<float*>(p.loss) = static_cast<float>(p.means[0]);
  }
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
