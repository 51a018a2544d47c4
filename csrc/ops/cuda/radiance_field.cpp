// radiance_field: checks, allocation and launch. The Python side asks for it only where there is a kernel.
#include "ops/cuda/device.h"
#include "ops/hash_encode_mlp.h"
#include "ops/radiance_mlp.h"

#include <tuple>

namespace hashgrid {
namespace {

std::tuple<Tensor, Tensor> radiance_field_cuda(const Tensor& positions, const Tensor& any_table,
                                               const Tensor& any_ray_features, const Tensor& rays,
                                               const std::vector<double>& scales, const std::vector<int64_t>& geometry,
                                               int64_t interpolation, int64_t bounds,
                                               const std::vector<Tensor>& density_weights,
                                               const std::vector<Tensor>& color_weights, int64_t output_activation,
                                               int64_t factors) {
  const DeviceScope device(positions);
  device.check(any_table, "table");
  device.check(any_ray_features, "ray_features");
  device.check(rays, "rays");
  device.check(density_weights, "density_weights");
  device.check(color_weights, "color_weights");
  const Tensor table = aligned(any_table), ray_features = aligned(any_ray_features);
  const HashEncodeParams grid =
      make_hash_encode_params(positions, table, std::nullopt, {scales, geometry}, interpolation, bounds);
  const MlpParams density =
      make_mlp_params(grid, positions, density_weights, {}, static_cast<int64_t>(Activation::kReLU),
                      static_cast<int64_t>(Activation::kNone), factors);
  MlpParams p = join_networks(density, positions, ray_features, rays, color_weights, output_activation);
  STD_TORCH_CHECK(has_radiance_field(grid, p), "radiance_field has no kernel", missing_tensor_cores(),
                  " for `positions` ", shape_of(positions), ", `table` ", shape_of(table), ", `ray_features` ",
                  shape_of(ray_features), " and these networks; use hash_encode and radiance_mlp instead");
  Tensor sigmas = empty(positions, {p.n_rows}), colors = empty(positions, {p.n_rows, p.layers[p.n_layers - 1].n_out});
  if (p.n_rows == 0) return {sigmas, colors};
  p.sigmas = sigmas.mutable_data_ptr();
  p.y = colors.mutable_data_ptr();
  Workspace workspace;
  p.packed = workspace.add(positions, plan_mlp(p, false, false).packed);
  launch_radiance_field(grid, p, device.stream());
  return {sigmas, colors};
}

}  // namespace

HASHGRID_CUDA_LIBRARY(m) { m.impl("radiance_field", TORCH_BOX(&radiance_field_cuda)); }

}  // namespace hashgrid
