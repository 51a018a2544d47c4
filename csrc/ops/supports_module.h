// The function `supports` of a Python module with kernels.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "ops/supports.h"

namespace hashgrid {

inline void define_supports(pybind11::module_& m) {
  m.def(
      "supports",
      [](const std::string& op, int64_t device, std::vector<int64_t> dtypes, int64_t width, std::vector<int64_t> sizes,
         int64_t n_density_layers, int64_t n_ray_features, int64_t output_activation, int64_t factors,
         std::vector<int64_t> grid) {
        return supports(op, device,
                        {std::move(dtypes), width, std::move(sizes), n_density_layers, n_ray_features,
                         output_activation, factors, std::move(grid)});
      },
      "Whether a fused op takes networks and a grid of these numbers, see csrc/ops/supports.h.");
}

}  // namespace hashgrid
