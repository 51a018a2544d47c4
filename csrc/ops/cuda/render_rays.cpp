// render_rays: checks, allocation and launch. The Python side asks for it only where there is a kernel.
#include "core/render_rays_params.h"
#include "ops/cuda/device.h"
#include "ops/hash_encode_mlp.h"
#include "ops/march_rays.h"
#include "ops/radiance_mlp.h"

#include <tuple>

namespace hashgrid {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> render_rays_cuda(
    const Tensor& rays_o, const Tensor& rays_d, const Tensor& any_ray_features, const Tensor& aabb, const Tensor& bits,
    const std::vector<int64_t>& resolution, int64_t n_cascades, const Tensor& field_aabb, const Tensor& any_table,
    const std::vector<double>& scales, const std::vector<int64_t>& geometry, int64_t interpolation, int64_t bounds,
    const std::vector<Tensor>& density_weights, const std::vector<Tensor>& color_weights, int64_t output_activation,
    int64_t factors, double step_size, double cone_angle, double near, double far, int64_t max_samples_per_ray,
    double early_stop_eps) {
  const DeviceScope device(rays_o);
  device.check(rays_d, "rays_d");
  device.check(any_ray_features, "ray_features");
  device.check(aabb, "aabb");
  device.check(bits, "bits");
  device.check(field_aabb, "field_aabb");
  device.check(any_table, "table");
  device.check(density_weights, "density_weights");
  device.check(color_weights, "color_weights");
  const Tensor table = aligned(any_table), ray_features = aligned(any_ray_features);
  check_dtype(rays_o, "rays_o", ScalarType::Float);
  RenderRaysParams p = {};
  p.march = make_march_rays_params(rays_o, rays_d, aabb, bits, resolution, n_cascades, step_size, cone_angle, near, far,
                                   std::nullopt, std::nullopt, std::nullopt, max_samples_per_ray, std::nullopt);
  p.early_stop_eps = static_cast<float>(early_stop_eps);
  p.field_aabb = static_cast<const float*>(checked_data(field_aabb, "field_aabb", {6}, ScalarType::Float));
  const int64_t n_rays = p.march.n_rays;
  STD_TORCH_CHECK(ray_features.dim() == 2 && ray_features.size(0) == n_rays, "`ray_features` must have shape [", n_rays,
                  ", n], got ", shape_of(ray_features));

  // The kernel makes positions and knows the rays they belong to: no point is in memory.
  Tensor positions = empty(rays_o, {0, 3}), rays = empty(rays_o, {0}, ScalarType::Long);
  const HashEncodeParams grid =
      make_hash_encode_params(positions, table, std::nullopt, {scales, geometry}, interpolation, bounds);
  const MlpParams density =
      make_mlp_params(grid, positions, density_weights, {}, static_cast<int64_t>(Activation::kReLU),
                      static_cast<int64_t>(Activation::kNone), factors);
  MlpParams networks = join_networks(density, positions, ray_features, rays, color_weights, output_activation);
  STD_TORCH_CHECK(has_render_rays(grid, networks), "render_rays has no kernel", missing_tensor_cores(), " for `table` ",
                  shape_of(table), ", `ray_features` ", shape_of(ray_features),
                  " and these networks; use march_rays, radiance_field ", "and composite instead");

  Tensor colors = empty(rays_o, {n_rays, 3}), opacities = empty(rays_o, {n_rays}), depths = empty(rays_o, {n_rays});
  Tensor counts = torch::stable::new_zeros(rays_o, {2}, ScalarType::Long);
  Tensor n_evaluated = torch::stable::narrow(counts, 0, 0, 1);
  p.colors = static_cast<float*>(colors.mutable_data_ptr());
  p.opacities = static_cast<float*>(opacities.mutable_data_ptr());
  p.depths = static_cast<float*>(depths.mutable_data_ptr());
  p.n_evaluated = static_cast<uint64_t*>(counts.mutable_data_ptr());
  p.next_ray = p.n_evaluated + 1;
  if (n_rays == 0) return {colors, opacities, depths, n_evaluated};
  Workspace workspace;
  const int64_t n_bricks = bricks_fit(p.march) ? n_bricks_of(p.march) : 0;
  p.march.bricks = static_cast<uint8_t*>(workspace.add(rays_o, 2 * n_bricks));
  if (n_bricks > 0) p.march.brick_copies = p.march.bricks + n_bricks;
  networks.packed = workspace.add(rays_o, plan_mlp(networks, false, false).packed);
  launch_render_rays(grid, networks, p, device.stream());
  return {colors, opacities, depths, n_evaluated};
}

}  // namespace

HASHGRID_CUDA_LIBRARY(m) { m.impl("render_rays", TORCH_BOX(&render_rays_cuda)); }

}  // namespace hashgrid
