// mlp_jet: what the CPU and the CUDA ops check and fill in alike.
#pragma once

#include <tuple>

#include "core/mlp_jet_params.h"
#include "ops/jets.h"
#include "ops/mlp.h"

namespace hashgrid {

inline MlpJetParams make_mlp_jet_params(const Tensor& x, const Tensor& directions,
                                        const std::optional<Tensor>& accelerations,
                                        const std::optional<Tensor>& operators, const std::vector<Tensor>& weights,
                                        const std::vector<Tensor>& biases, int64_t activation,
                                        int64_t output_activation) {
  MlpJetParams p = {};
  p.mlp = make_mlp_params(x, weights, biases, activation, output_activation, static_cast<int64_t>(MlpFactors::kReal));
  JetShape& shape = p.shape;
  shape.n_directions = shape.n_seconds = count_directions(directions);
  if (operators.has_value()) {
    shape.n_seconds = operators->dim() == 2 ? operators->size(0) : 0;
    STD_TORCH_CHECK(shape.n_seconds >= 1 && shape.n_seconds <= kMaxJetDirections,
                    "`operators` must have shape [M, K] with M in 1..", kMaxJetDirections, ", got ",
                    shape_of(*operators));
    shape.operators = checked_data(operators, "operators", {shape.n_seconds, shape.n_directions}, x.scalar_type());
  }
  shape.n_slabs = 1 + shape.n_directions + shape.n_seconds;
  p.directions = jet_rows(directions, "directions", x, shape.n_directions, x.size(1));
  p.accelerations = jet_rows(accelerations, "accelerations", x, shape.n_seconds, x.size(1));
  return p;
}

// Values [N, out], first derivatives [N, K, out] and second ones [N, M, out].
inline std::tuple<Tensor, Tensor, Tensor> make_jet_results(const Tensor& x, MlpJetParams& p) {
  const int64_t n_out = p.mlp.layers[p.mlp.n_layers - 1].n_out;
  Tensor y = empty(x, {p.mlp.n_rows, n_out});
  Tensor first = empty(x, {p.mlp.n_rows, p.shape.n_directions, n_out});
  Tensor second = empty(x, {p.mlp.n_rows, p.shape.n_seconds, n_out});
  p.mlp.y = y.mutable_data_ptr();
  p.first = first.mutable_data_ptr();
  p.second = second.mutable_data_ptr();
  return {y, first, second};
}

inline void set_jet_gradients(const std::optional<Tensor>& grad_y, const std::optional<Tensor>& grad_first,
                              const std::optional<Tensor>& grad_second, const Tensor& x, MlpJetParams& p) {
  const int64_t n_out = p.mlp.layers[p.mlp.n_layers - 1].n_out;
  if (grad_y.has_value()) set_grad_y(*grad_y, x, p.mlp);
  p.grad_first = jet_rows(grad_first, "grad_first", x, p.shape.n_directions, n_out);
  p.grad_second = jet_rows(grad_second, "grad_second", x, p.shape.n_seconds, n_out);
}

// Results of a backward; tensors that were not asked for have no rows.
struct MlpJetGradients {
  Tensor x, directions, accelerations, params;
};

inline MlpJetGradients make_jet_gradients(const Tensor& x, bool need_x, bool need_directions, bool need_accelerations,
                                          bool need_params, MlpJetParams& p) {
  const auto rows = [&](bool need, int64_t per_point) {
    return empty(x, {need ? x.size(0) : 0, per_point, x.size(1)});
  };
  MlpJetGradients grads = {empty(x, {need_x ? x.size(0) : 0, x.size(1)}), rows(need_directions, p.shape.n_directions),
                           rows(need_accelerations, p.shape.n_seconds),
                           empty(x, {need_params ? mlp_parameters(p.mlp) : 0})};
  if (need_x) p.mlp.grad_x = grads.x.mutable_data_ptr();
  if (need_directions) p.grad_directions = grads.directions.mutable_data_ptr();
  if (need_accelerations) p.grad_accelerations = grads.accelerations.mutable_data_ptr();
  if (need_params) p.mlp.grad_params = grads.params.mutable_data_ptr();
  return grads;
}

}  // namespace hashgrid
