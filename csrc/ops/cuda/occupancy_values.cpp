// occupancy_values: checks, allocation and launch. The Python side asks for it only where there is a kernel.
#include "core/occupancy_values_params.h"
#include "ops/cuda/device.h"
#include "ops/hash_encode_mlp.h"
#include "ops/occupancy_points.h"

namespace hashgrid {
namespace {

Tensor occupancy_values_cuda(const Tensor& cells, const Tensor& aabb, const std::vector<int64_t>& resolution,
                             int64_t n_cascades, const std::optional<Tensor>& counter, const Tensor& field_aabb,
                             const Tensor& any_table, const std::vector<double>& scales,
                             const std::vector<int64_t>& geometry, int64_t interpolation, int64_t bounds,
                             const std::vector<Tensor>& weights, int64_t factors, double step_size) {
  const DeviceScope device(aabb);
  device.check(cells, "cells");
  device.check(counter, "counter");
  device.check(field_aabb, "field_aabb");
  device.check(any_table, "table");
  device.check(weights, "weights");
  const Tensor table = aligned(any_table);
  check_dtype(aabb, "aabb", ScalarType::Float);
  OccupancyValuesParams p = {};
  p.points = make_occupancy_points_params(cells, aabb, resolution, n_cascades, counter);
  p.field_aabb = static_cast<const float*>(checked_data(field_aabb, "field_aabb", {6}, ScalarType::Float));
  p.step_size = static_cast<float>(step_size);

  Tensor positions = empty(aabb, {0, 3});  // the kernel makes them
  const HashEncodeParams grid =
      make_hash_encode_params(positions, table, std::nullopt, {scales, geometry}, interpolation, bounds);
  MlpParams network = make_mlp_params(grid, positions, weights, {}, static_cast<int64_t>(Activation::kReLU),
                                      static_cast<int64_t>(Activation::kNone), factors);
  STD_TORCH_CHECK(has_occupancy_values(grid, network), "occupancy_values has no kernel", missing_tensor_cores(),
                  " for `table` ", shape_of(table),
                  " and this network; use occupancy_points and hash_encode_mlp instead");
  Tensor values = empty(aabb, {p.points.n_points});
  if (p.points.n_points == 0) return values;
  p.values = static_cast<float*>(values.mutable_data_ptr());
  Workspace workspace;
  network.packed = workspace.add(aabb, plan_mlp(network, false, false).packed);
  launch_occupancy_values(grid, network, p, device.stream());
  return values;
}

}  // namespace

HASHGRID_CUDA_LIBRARY(m) { m.impl("occupancy_values", TORCH_BOX(&occupancy_values_cuda)); }

}  // namespace hashgrid
