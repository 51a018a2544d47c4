// Which fused ops have kernels on a GPU, by the functions that the ops check by.
#include "ops/supports.h"
#include "ops/cuda/device.h"

namespace hashgrid {

bool supports(const std::string& op, int64_t device, const FusedShape& shape) {
  const std::optional<MlpParams> networks = networks_of(shape);
  if (!networks.has_value() || (shape.n_density_layers > 0) == (op == "occupancy_values")) return false;
#if !defined(HASHGRID_ON_HOST)
  std::optional<torch::stable::accelerator::DeviceGuard> guard;
  if (device >= 0) guard.emplace(static_cast<int32_t>(device));
#endif
  if (op == "radiance_mlp") return has_radiance_mlp(*networks);
  const std::optional<GridParams> grid = grid_of(shape, *networks);
  if (!grid.has_value()) return false;
  if (op == "radiance_field") return has_radiance_field(*grid, *networks);
  if (op == "render_rays") return has_render_rays(*grid, *networks);
  if (op == "occupancy_values") return has_occupancy_values(*grid, *networks);
  return false;
}

}  // namespace hashgrid
