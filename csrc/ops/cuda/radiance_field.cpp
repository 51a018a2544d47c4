// radiance_field: checks, allocation and launch. The Python side asks for it only where there is a kernel.
#include "ops/cuda/device.h"
#include "ops/hash_encode_mlp.h"

#include <tuple>

namespace hashgrid {
namespace {

std::tuple<Tensor, Tensor> radiance_field_cuda(
    const Tensor& positions, const Tensor& any_table, const Tensor& any_ray_features, const Tensor& rays,
    const std::vector<double>& scales, const std::vector<int64_t>& resolutions, double shift,
    const std::vector<int64_t>& offsets, const std::vector<int64_t>& sizes, const std::vector<int64_t>& hashed,
    int64_t interpolation, int64_t bounds, const std::vector<Tensor>& density_weights,
    const std::vector<Tensor>& color_weights, int64_t output_activation, int64_t factors) {
  const DeviceScope device(positions);
  device.check(any_table, "table");
  device.check(any_ray_features, "ray_features");
  device.check(rays, "rays");
  for (const Tensor& weight : density_weights) device.check(weight, "density_weights");
  for (const Tensor& weight : color_weights) device.check(weight, "color_weights");
  const Tensor table = aligned(any_table), ray_features = aligned(any_ray_features);
  RadianceFieldParams p = {};
  p.grid = make_hash_encode_params(positions, table, std::nullopt, {scales, resolutions, shift, offsets, sizes, hashed},
                                   interpolation, bounds);
  const int64_t relu = static_cast<int64_t>(Activation::kReLU), none = static_cast<int64_t>(Activation::kNone);
  p.density = make_mlp_params(p.grid, positions, density_weights, {}, relu, none, factors);
  STD_TORCH_CHECK(ray_features.dim() == 2 && ray_features.is_contiguous(),
                  "`ray_features` must be contiguous, of shape [n_rays, n], got ", shape_of(ray_features));
  check_dtype(ray_features, "ray_features", positions.scalar_type());
  check_shape(rays, "rays", {p.grid.n_points});
  check_dtype(rays, "rays", ScalarType::Long);
  STD_TORCH_CHECK(rays.is_contiguous(), "`rays` must be contiguous");
  p.n_rays = ray_features.size(0);
  p.n_ray_features = ray_features.size(1);
  const int64_t n_geometry = p.density.layers[p.density.n_layers - 1].n_out;
  p.color = make_mlp_params(p.grid.n_points, n_geometry + p.n_ray_features, positions.scalar_type(), p.grid.dtype,
                            color_weights, {}, relu, output_activation, factors);
  STD_TORCH_CHECK(has_radiance_field(p), "radiance_field has no kernel for `positions` ", shape_of(positions),
                  ", `table` ", shape_of(table), ", `ray_features` ", shape_of(ray_features),
                  " and these networks; use hash_encode_mlp and mlp instead");
  const int64_t n_out = p.color.layers[p.color.n_layers - 1].n_out;
  Tensor sigmas = empty(positions, {p.grid.n_points}), colors = empty(positions, {p.grid.n_points, n_out});
  if (p.grid.n_points == 0) return {sigmas, colors};
  p.ray_features = static_cast<const float*>(ray_features.const_data_ptr());
  p.rays = static_cast<const int64_t*>(rays.const_data_ptr());
  p.sigmas = static_cast<float*>(sigmas.mutable_data_ptr());
  p.color.y = colors.mutable_data_ptr();
  Workspace workspace;
  p.density.packed = workspace.add(positions, plan_mlp(p.density, false, false).packed);
  p.color.packed = workspace.add(positions, plan_mlp(p.color, false, false).packed);
  launch_radiance_field(p, device.stream());
  return {sigmas, colors};
}

}  // namespace

HASHGRID_CUDA_LIBRARY(m) { m.impl("radiance_field", TORCH_BOX(&radiance_field_cuda)); }

}  // namespace hashgrid
