// radiance_mlp: what the CPU and the CUDA op check and fill in alike.
#pragma once

#include "ops/mlp.h"

namespace hashgrid {

// The network of geometry features, `density`, and behind it that of colours. Hidden layers are ReLU, none has biases.
// `like` has the dtype of all tensors.
inline MlpParams join_networks(const MlpParams& density, const Tensor& like, const Tensor& ray_features,
                               const Tensor& rays, const std::vector<Tensor>& color_weights,
                               int64_t output_activation) {
  STD_TORCH_CHECK(ray_features.dim() == 2, "`ray_features` must have shape [n_rays, n], got ", shape_of(ray_features));
  const int64_t n_geometry = density.layers[density.n_layers - 1].n_out;
  const MlpParams color = make_mlp_params(density.n_rows, n_geometry + ray_features.size(1), like.scalar_type(),
                                          density.dtype, color_weights, {}, static_cast<int64_t>(Activation::kReLU),
                                          output_activation, static_cast<int64_t>(density.factors), "color_weights");
  MlpParams p = density;
  p.n_density_layers = density.n_layers;
  p.n_layers += color.n_layers;
  STD_TORCH_CHECK(takes_layers(p.n_layers), "`density_weights` and `color_weights` must have at most ", kMaxMlpLayers,
                  " layers together, got ", p.n_layers);
  for (int l = 0; l < color.n_layers; ++l) p.layers[density.n_layers + l] = color.layers[l];
  p.output_activation = color.output_activation;
  p.n_rays = ray_features.size(0);
  p.n_ray_features = ray_features.size(1);
  p.ray_features = checked_data(ray_features, "ray_features", {p.n_rays, p.n_ray_features}, like.scalar_type());
  p.rays = static_cast<const int64_t*>(checked_data(rays, "rays", {density.n_rows}, ScalarType::Long));
  return p;
}

inline MlpParams make_radiance_mlp_params(const Tensor& x, const Tensor& ray_features, const Tensor& rays,
                                          const std::vector<Tensor>& density_weights,
                                          const std::vector<Tensor>& color_weights, int64_t output_activation,
                                          int64_t factors) {
  const MlpParams density = make_mlp_params(x, density_weights, {}, static_cast<int64_t>(Activation::kReLU),
                                            static_cast<int64_t>(Activation::kNone), factors, "density_weights");
  return join_networks(density, x, ray_features, rays, color_weights, output_activation);
}

inline void set_radiance_gradients(const Tensor& grad_sigmas, const Tensor& grad_colors, const Tensor& x,
                                   MlpParams& p) {
  set_grad_y(grad_colors, x, p, "grad_colors");
  p.grad_sigmas = checked_data(grad_sigmas, "grad_sigmas", {p.n_rows}, x.scalar_type());
}

}  // namespace hashgrid
