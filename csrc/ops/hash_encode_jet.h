// hash_encode_jet: what the CPU and the CUDA ops check and fill in alike.
#pragma once

#include <tuple>

#include "core/hash_encode_jet_params.h"
#include "ops/hash_encode.h"
#include "ops/jets.h"

namespace hashgrid {

inline HashEncodeJetParams make_hash_encode_jet_params(const Tensor& positions, const Tensor& directions,
                                                       const Tensor& table, const Levels& levels, int64_t interpolation,
                                                       int64_t bounds) {
  HashEncodeJetParams p = {};
  p.grid = make_hash_encode_params(positions, table, std::nullopt, levels, interpolation, bounds);
  check_dtype(table, "table", positions.scalar_type());
  p.n_directions = count_directions(directions);
  p.directions = jet_rows(directions, "directions", positions, p.n_directions, p.grid.n_dims);
  return p;
}

inline void set_jet_gradients(const std::optional<Tensor>& grad_y, const std::optional<Tensor>& grad_first,
                              const std::optional<Tensor>& grad_second, const Tensor& positions,
                              HashEncodeJetParams& p) {
  const int64_t n_out = int64_t{p.grid.n_levels} * p.grid.n_features;
  if (grad_y.has_value()) {
    check_grad_y(*grad_y, positions, p.grid);
    p.grid.grad_y = grad_y->const_data_ptr();
  }
  p.grad_first = jet_rows(grad_first, "grad_first", positions, p.n_directions, n_out);
  p.grad_second = jet_rows(grad_second, "grad_second", positions, p.n_directions, n_out);
}

// Values [N, L * F], first and second derivatives [N, K, L * F].
inline std::tuple<Tensor, Tensor, Tensor> make_jet_results(const Tensor& positions, HashEncodeJetParams& p) {
  const int64_t n_out = int64_t{p.grid.n_levels} * p.grid.n_features;
  Tensor y = empty(positions, {p.grid.n_points, n_out});
  Tensor first = empty(positions, {p.grid.n_points, p.n_directions, n_out});
  Tensor second = empty(positions, {p.grid.n_points, p.n_directions, n_out});
  p.grid.y = y.mutable_data_ptr();
  p.first = first.mutable_data_ptr();
  p.second = second.mutable_data_ptr();
  return {y, first, second};
}

}  // namespace hashgrid
