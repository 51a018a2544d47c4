// What the ops along directions check alike.
#pragma once

#include "ops/checks.h"

namespace hashgrid {

constexpr int kMaxJetDirections = 64;

inline int32_t count_directions(const Tensor& directions) {
  STD_TORCH_CHECK(directions.dim() == 3, "`directions` must have shape [N, K, D], got ", shape_of(directions));
  STD_TORCH_CHECK(directions.size(1) >= 1 && directions.size(1) <= kMaxJetDirections, "`directions` must be 1..",
                  kMaxJetDirections, " per point, got ", directions.size(1));
  return static_cast<int32_t>(directions.size(1));
}

// Data of an optional tensor [N, K, columns] beside the points `x` [N, ...], null without one.
inline const void* jet_rows(const std::optional<Tensor>& rows, const char* name, const Tensor& x, int64_t n_directions,
                            int64_t columns) {
  return checked_data(rows, name, {x.size(0), n_directions, columns}, x.scalar_type());
}

}  // namespace hashgrid
