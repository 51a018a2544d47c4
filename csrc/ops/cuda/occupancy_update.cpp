// occupancy_update on CUDA: checks, allocation and launch. Writes `density` and `bits` in place.
//
// Whether a cell does not exist is read back once all is done, which is every 16 steps or so; the other cells are up to
// date then. Cell 0 does exist: it stands for "none".
#include "ops/occupancy_update.h"
#include "ops/cuda/device.h"

namespace hashgrid {
namespace {

void occupancy_update_cuda(Tensor density, Tensor bits, const Tensor& cells, const Tensor& values, double decay,
                           double max_threshold) {
  const DeviceScope device(density);
  device.check(bits, "bits");
  device.check(cells, "cells");
  device.check(values, "values");
  OccupancyUpdateParams p = make_occupancy_update_params(density, bits, cells, values, decay, max_threshold);
  STD_TORCH_CHECK(p.n_cells > 0 || p.n_samples == 0, "`cells` must be empty where `density` is, got ", p.n_samples);
  const int64_t n_chunks = (p.n_cells + kOccupancyChunk - 1) / kOccupancyChunk;
  Tensor sums = torch::stable::new_empty(density, {n_chunks}, ScalarType::Double);
  Tensor counts = torch::stable::new_empty(cells, {n_chunks});
  Tensor threshold = torch::stable::new_empty(density, {1});
  Tensor invalid = torch::stable::new_zeros(cells, {1});
  p.chunk_sums = static_cast<double*>(sums.mutable_data_ptr());
  p.chunk_counts = static_cast<int64_t*>(counts.mutable_data_ptr());
  p.mean_threshold = static_cast<float*>(threshold.mutable_data_ptr());
  p.invalid_cell = static_cast<int64_t*>(invalid.mutable_data_ptr());
  launch_occupancy_update(p, device.stream());
  int64_t invalid_cell = 0;
  device.read_back(&invalid_cell, p.invalid_cell, sizeof(invalid_cell));
  STD_TORCH_CHECK(invalid_cell == 0, "`cells` must lie in 0..", p.n_cells - 1, ", got ", invalid_cell);
}

}  // namespace

HASHGRID_CUDA_LIBRARY(m) { m.impl("occupancy_update", TORCH_BOX(&occupancy_update_cuda)); }

}  // namespace hashgrid
