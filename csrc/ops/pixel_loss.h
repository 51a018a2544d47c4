// pixel_loss: what the CPU and the CUDA op check, allocate and fill in alike.
#pragma once

#include <tuple>

#include "core/pixel_loss_params.h"
#include "ops/rays.h"

namespace hashgrid {

struct PixelLoss {
  Tensor loss;            // []
  Tensor means;           // [2] loss, squared error, fp64
  Tensor grad_colors;     // [n_rays, n_channels]
  Tensor grad_opacities;  // [n_rays]

  std::tuple<Tensor, Tensor, Tensor, Tensor> all() const { return {loss, means, grad_colors, grad_opacities}; }
};

inline PixelLossParams make_pixel_loss_params(const Tensor& colors, const Tensor& opacities, const Tensor& background,
                                              const Tensor& targets, const std::optional<Tensor>& n_rays, double beta,
                                              PixelLoss* result) {
  PixelLossParams p = {};
  STD_TORCH_CHECK(colors.dim() == 2 && colors.size(1) >= 1, "`colors` must have shape [R, C], got ", shape_of(colors));
  p.dtype = real_dtype_of(colors, "colors");
  p.n_rays = colors.size(0);
  p.n_channels = colors.size(1);
  const auto data_of = [&](const Tensor& tensor, const char* name, const std::vector<int64_t>& shape) {
    return checked_data(tensor, name, shape, colors.scalar_type());
  };
  p.colors = data_of(colors, "colors", {p.n_rays, p.n_channels});
  p.opacities = data_of(opacities, "opacities", {p.n_rays});
  p.background = data_of(background, "background", {p.n_rays, p.n_channels});
  p.targets = data_of(targets, "targets", {p.n_rays, p.n_channels});
  STD_TORCH_CHECK(beta > 0.0, "`beta` must be positive, got ", beta);
  p.beta = beta;
  if (n_rays.has_value()) {
    check_shape(*n_rays, "n_rays", {1});
    check_dtype(*n_rays, "n_rays", ScalarType::Long);
    p.n_used = static_cast<const int64_t*>(n_rays->const_data_ptr());
  }
  result->loss = empty(colors, {});
  result->means = empty(colors, {2}, ScalarType::Double);
  result->grad_colors = empty(colors, {p.n_rays, p.n_channels});
  result->grad_opacities = empty(colors, {p.n_rays});
  p.loss = result->loss.mutable_data_ptr();
  p.means = static_cast<double*>(result->means.mutable_data_ptr());
  p.grad_colors = result->grad_colors.mutable_data_ptr();
  p.grad_opacities = result->grad_opacities.mutable_data_ptr();
  return p;
}

}  // namespace hashgrid
