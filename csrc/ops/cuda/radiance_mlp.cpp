// radiance_mlp on CUDA: checks, allocation and launch. The Python side asks for it only where there is a kernel.
#include "ops/radiance_mlp.h"
#include "ops/cuda/device.h"

#include <tuple>

namespace hashgrid {
namespace {

MlpParams make_checked_params(const DeviceScope& device, const Tensor& x, const Tensor& ray_features,
                              const Tensor& rays, const std::vector<Tensor>& density_weights,
                              const std::vector<Tensor>& color_weights, int64_t output_activation, int64_t factors) {
  device.check(ray_features, "ray_features");
  device.check(rays, "rays");
  device.check(density_weights, "density_weights");
  device.check(color_weights, "color_weights");
  const MlpParams p =
      make_radiance_mlp_params(x, ray_features, rays, density_weights, color_weights, output_activation, factors);
  STD_TORCH_CHECK(has_radiance_mlp(p), "radiance_mlp has no kernel", missing_tensor_cores(), " for `x` ", shape_of(x),
                  ", `ray_features` ", shape_of(ray_features), " and these networks; use mlp instead");
  return p;
}

std::tuple<Tensor, Tensor> radiance_mlp_cuda(const Tensor& x, const Tensor& any_ray_features, const Tensor& rays,
                                             const std::vector<Tensor>& density_weights,
                                             const std::vector<Tensor>& color_weights, int64_t output_activation,
                                             int64_t factors) {
  const DeviceScope device(x);
  const Tensor ray_features = aligned(any_ray_features);
  MlpParams p =
      make_checked_params(device, x, ray_features, rays, density_weights, color_weights, output_activation, factors);
  Tensor sigmas = empty(x, {p.n_rows}), colors = empty(x, {p.n_rows, p.layers[p.n_layers - 1].n_out});
  if (p.n_rows == 0) return {sigmas, colors};
  p.sigmas = sigmas.mutable_data_ptr();
  p.y = colors.mutable_data_ptr();
  Workspace workspace;
  p.packed = workspace.add(x, plan_mlp(p, false, false).packed);
  launch_radiance_mlp_forward(p, device.stream());
  return {sigmas, colors};
}

// As mlp_backward: density weights, then colour weights.
std::tuple<Tensor, Tensor> radiance_mlp_backward_cuda(const Tensor& grad_sigmas, const Tensor& grad_colors,
                                                      const Tensor& x, const Tensor& any_ray_features,
                                                      const Tensor& rays, const std::vector<Tensor>& density_weights,
                                                      const std::vector<Tensor>& color_weights,
                                                      int64_t output_activation, int64_t factors, bool need_x,
                                                      bool need_params) {
  const DeviceScope device(x);
  device.check(grad_sigmas, "grad_sigmas");
  device.check(grad_colors, "grad_colors");
  const Tensor ray_features = aligned(any_ray_features);
  MlpParams p =
      make_checked_params(device, x, ray_features, rays, density_weights, color_weights, output_activation, factors);
  set_radiance_gradients(grad_sigmas, grad_colors, x, p);
  Tensor grad_x = empty(x, {need_x ? p.n_rows : 0, x.size(1)});
  Tensor grad_params = empty(x, {need_params ? mlp_parameters(p) : 0});
  if (need_x) p.grad_x = grad_x.mutable_data_ptr();
  if (need_params) p.grad_params = grad_params.mutable_data_ptr();
  const MlpWorkspace sizes = plan_mlp(p, true, need_params);
  Workspace workspace;
  p.packed = workspace.add(x, sizes.packed);
  p.partials = workspace.add(x, sizes.partials);
  launch_radiance_mlp_backward(p, device.stream());
  return {grad_x, grad_params};
}

}  // namespace

HASHGRID_CUDA_LIBRARY(m) {
  m.impl("radiance_mlp", TORCH_BOX(&radiance_mlp_cuda));
  m.impl("radiance_mlp_backward", TORCH_BOX(&radiance_mlp_backward_cuda));
}

}  // namespace hashgrid
