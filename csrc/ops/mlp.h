// mlp: what the CPU and the CUDA ops check and fill in alike.
#pragma once

#include "core/mlp_params.h"
#include "ops/checks.h"

namespace hashgrid {

// What kernels take on every device; `supports` asks the same.
constexpr int64_t kMaxMlpWidth = (1 << 20) - 1;
inline bool takes_layers(int64_t n_layers) { return n_layers >= 1 && n_layers <= kMaxMlpLayers; }
inline bool takes_width(int64_t width) { return width >= 1 && width <= kMaxMlpWidth; }
inline bool takes_activation(int64_t value) { return value >= 0 && value <= static_cast<int64_t>(Activation::kSine); }
inline bool takes_factors(int64_t value) { return value >= 0 && value <= static_cast<int64_t>(MlpFactors::kFloat16); }
inline bool takes_products(DType dtype, MlpFactors factors) {
  return factors == MlpFactors::kReal || dtype == DType::kFloat32;
}

inline Activation activation_of(int64_t value, const char* name) {
  STD_TORCH_CHECK(takes_activation(value), "`", name, "` must be in 0..", static_cast<int64_t>(Activation::kSine),
                  ", got ", value);
  return static_cast<Activation>(value);
}

inline MlpFactors factors_of(int64_t value) {
  STD_TORCH_CHECK(takes_factors(value), "`factors` must be 0 (as the tensors), 1 (bfloat16) or 2 (float16), got ",
                  value);
  return static_cast<MlpFactors>(value);
}

// Everything that does not depend on the device, for n_rows inputs of `width` columns; `x_type` is theirs. Offsets into
// a workspace stay -1 where not every device has one. `list` is what messages call the weights.
inline MlpParams make_mlp_params(int64_t n_rows, int64_t width, ScalarType x_type, DType dtype,
                                 const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
                                 int64_t activation, int64_t output_activation, int64_t factors,
                                 const char* list = "weights") {
  MlpParams p = {};
  const int64_t n_layers = static_cast<int64_t>(weights.size());
  STD_TORCH_CHECK(takes_layers(n_layers), "`", list, "` must have 1..", kMaxMlpLayers, " layers, got ", n_layers);
  STD_TORCH_CHECK(biases.empty() || biases.size() == weights.size(), "`biases` must have ", n_layers,
                  " tensors, one per layer, or none, got ", biases.size());
  p.dtype = dtype;
  p.n_rows = n_rows;
  p.n_layers = static_cast<int32_t>(n_layers);
  p.activation = activation_of(activation, "activation");
  p.output_activation = activation_of(output_activation, "output_activation");
  p.factors = factors_of(factors);
  STD_TORCH_CHECK(takes_products(p.dtype, p.factors), p.factors == MlpFactors::kFloat16 ? "float16" : "bfloat16",
                  " products need float32 tensors, got ", name_of(x_type));
  for (int l = 0; l < p.n_layers; ++l) {
    const Tensor& weight = weights[l];
    const std::string name = std::string(list) + "[" + std::to_string(l) + "]";
    STD_TORCH_CHECK(weight.dim() == 2 && weight.size(1) == width && weight.size(0) >= 1, "`", name,
                    "` must have shape [out, ", width, "], got ", shape_of(weight));
    check_dtype(weight, name.c_str(), x_type);
    check_contiguous(weight, name.c_str());
    STD_TORCH_CHECK(takes_width(weight.size(0)) && takes_width(width), "`", name, "` must be at most ", kMaxMlpWidth,
                    " wide, got ", shape_of(weight));
    MlpLayer& layer = p.layers[l];
    layer.n_in = static_cast<int32_t>(width);
    layer.n_out = static_cast<int32_t>(weight.size(0));
    layer.weight = weight.const_data_ptr();
    layer.input_pairs = layer.source = layer.packed_transposed = layer.tangent_source = -1;
    if (!biases.empty()) {
      const std::string bias_name = "biases[" + std::to_string(l) + "]";
      layer.bias = checked_data(biases[l], bias_name.c_str(), {layer.n_out}, x_type);
    }
    width = layer.n_out;
  }
  return p;
}

inline MlpParams make_mlp_params(const Tensor& x, const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
                                 int64_t activation, int64_t output_activation, int64_t factors,
                                 const char* list = "weights") {
  STD_TORCH_CHECK(x.dim() == 2, "`x` must have shape [N, in], got ", shape_of(x));
  check_contiguous(x, "x");
  STD_TORCH_CHECK(x.size(1) >= 1, "`x` must have at least one column, got ", shape_of(x));
  MlpParams p = make_mlp_params(x.size(0), x.size(1), x.scalar_type(), real_dtype_of(x, "x"), weights, biases,
                                activation, output_activation, factors, list);
  p.x = x.const_data_ptr();
  return p;
}

inline void set_grad_y(const Tensor& grad_y, const Tensor& x, MlpParams& p, const char* name = "grad_y") {
  p.grad_y = checked_data(grad_y, name, {p.n_rows, p.layers[p.n_layers - 1].n_out}, x.scalar_type());
}

// Weights and biases of all layers.
inline int64_t mlp_parameters(const MlpParams& p) {
  int64_t n = 0;
  for (int l = 0; l < p.n_layers; ++l) {
    const MlpLayer& layer = p.layers[l];
    n += int64_t{layer.n_in} * layer.n_out + (layer.bias != nullptr ? layer.n_out : 0);
  }
  return n;
}

}  // namespace hashgrid
