// occupancy_update: what the CPU and the CUDA op check and fill in alike.
#pragma once

#include "core/occupancy_update_params.h"
#include "ops/rays.h"

namespace hashgrid {

// Cells that do not exist are the kernels' business.
inline OccupancyUpdateParams make_occupancy_update_params(Tensor& density, Tensor& bits, const Tensor& cells,
                                                          const Tensor& values, double decay, double max_threshold) {
  STD_TORCH_CHECK(density.dim() == 1, "`density` must have shape [n_cells], got ", shape_of(density));
  OccupancyUpdateParams p = {};
  p.n_cells = density.size(0);
  const int64_t n_bytes = (p.n_cells + 7) / 8;
  check_dtype(density, "density", ScalarType::Float);
  check_dtype(bits, "bits", ScalarType::Byte);
  check_shape(bits, "bits", {n_bytes});
  STD_TORCH_CHECK(cells.dim() == 1 && values.dim() == 1 && cells.size(0) == values.size(0),
                  "`cells` and `values` must have the same shape [M], got ", shape_of(cells), " and ",
                  shape_of(values));
  check_dtype(cells, "cells", ScalarType::Long);
  check_dtype(values, "values", ScalarType::Float);
  check_contiguous(density, "density");
  check_contiguous(bits, "bits");
  check_contiguous(cells, "cells");
  check_contiguous(values, "values");
  STD_TORCH_CHECK(decay >= 0.0, "`decay` must not be negative, got ", decay);

  p.n_samples = cells.size(0);
  p.decay = static_cast<float>(decay);
  p.max_threshold = max_threshold;
  p.density = static_cast<float*>(density.mutable_data_ptr());
  p.bits = static_cast<uint8_t*>(bits.mutable_data_ptr());
  p.cells = static_cast<const int64_t*>(cells.const_data_ptr());
  p.values = static_cast<const float*>(values.const_data_ptr());
  return p;
}

}  // namespace hashgrid
