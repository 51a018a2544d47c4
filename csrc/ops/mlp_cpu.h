// What the CPU ops on multilayer perceptrons share: the layout of a block's matrices, packed weights, and launches.
#pragma once

#include <algorithm>
#include <tuple>

#include "core/activation.h"
#include "cpu/capability.h"
#include "cpu/kernels.h"
#include "ops/memory.h"
#include "ops/mlp.h"

namespace hashgrid {

constexpr int64_t kBlockBytes = 192 * 1024;  // of a block's matrices: well inside L2
constexpr int64_t kMaxBlock = 128;
constexpr int64_t kForwardGrain = 8;                    // blocks per unit
constexpr int64_t kRowsPerPartial = 2048;               // at least, so that adding up the partial sums costs little
constexpr int64_t kMaxPartials = 32;                    // work units of a backward
constexpr int64_t kMaxPartialBytes = int64_t{1} << 26;  // of all partial sums together
constexpr int64_t kReduceGrain = 64;                    // output rows per unit

inline int64_t round_up(int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; }
inline int64_t padded(int64_t columns) { return round_up(columns, kMlpColumnPad); }

// Lays matrices out one after the other, each on a cache line.
struct MlpLayout {
  int64_t size = 0;

  int64_t add(int64_t bytes) {
    const int64_t offset = size;
    size += round_up(bytes, 64);
    return offset;
  }
};

inline void* allocate(const Tensor& like, int64_t elements, std::vector<Tensor>& keep) {
  keep.push_back(empty(like, {elements}));
  return keep.back().mutable_data_ptr();
}

enum class MlpPass { kForward, kBackward, kSecond };

struct Mlp {
  MlpParams p = {};
  int64_t element = 4;  // bytes
  int64_t scratch_bytes = 0;
  std::vector<Tensor> keep;  // workspace

  int64_t width_in(int l) const { return padded(p.layers[l].n_in); }
  int64_t width_out(int l) const { return padded(p.layers[l].n_out); }
};

inline Mlp make_mlp(const MlpParams& p) {
  Mlp mlp;
  mlp.p = p;
  mlp.element = mlp.p.dtype == DType::kFloat64 ? 8 : 4;
  mlp.p.halves = mlp.p.factors == MlpFactors::kBFloat16 && kernels().has_bfloat16_products;
  return mlp;
}

// Matrices of a block of `n_block` rows. Returns their size in bytes.
inline int64_t lay_out_block(Mlp& mlp, int64_t n_block, MlpPass pass, bool need_params) {
  MlpParams& p = mlp.p;
  const bool backward = pass != MlpPass::kForward, second = pass == MlpPass::kSecond;
  const int64_t stored = p.halves ? 2 : mlp.element;
  MlpLayout scratch;
  int64_t widest = 0;
  for (int l = 0; l < p.n_layers; ++l) widest = std::max({widest, mlp.width_in(l), mlp.width_out(l)});
  // A forward alternates between two inputs; a backward keeps all.
  int64_t alternate[2] = {-1, -1};
  for (int l = 0; l < p.n_layers; ++l) {
    MlpLayer& layer = p.layers[l];
    if (backward) {
      layer.input = scratch.add(n_block * mlp.width_in(l) * stored);
    } else {
      int64_t& slot = alternate[l % 2];
      if (slot < 0) slot = scratch.add(n_block * widest * stored);
      layer.input = slot;
    }
    if (p.halves && backward && need_params) layer.input_pairs = scratch.add(n_block * mlp.width_in(l) * 2);
    const bool hidden = l + 1 < p.n_layers;
    const bool separate = core::derivative_reads_input(p.activation) ||
                          (p.factors != MlpFactors::kReal && !core::derivative_reads_sign(p.activation));
    const bool output = second && !hidden && p.output_activation != Activation::kNone;
    if ((backward && hidden && separate) || output) {
      layer.source = scratch.add(n_block * mlp.width_out(l) * mlp.element);
    }
    if (!second) continue;
    layer.tangent = scratch.add(n_block * mlp.width_in(l) * mlp.element);
    if (hidden && core::derivative_reads_sign(p.activation)) continue;
    layer.tangent_source = scratch.add(n_block * mlp.width_out(l) * mlp.element);
  }
  for (int64_t& staging : p.staging) staging = scratch.add(n_block * widest * mlp.element);
  for (int i = 0; i < 2; ++i) {
    p.gradient[i] = p.halves && backward ? scratch.add(n_block * widest * 2) : -1;
    p.gradient_pairs[i] = p.halves && backward && need_params ? scratch.add(n_block * widest * 2) : -1;
  }
  p.log_sigmas = p.n_density_layers > 0 ? scratch.add(round_up(n_block, kMlpColumnPad) * mlp.element) : -1;
  for (int64_t& gradient : p.value_gradient) gradient = second ? scratch.add(n_block * widest * mlp.element) : -1;
  p.n_block = static_cast<int32_t>(n_block);
  p.n_blocks = (p.n_rows + n_block - 1) / n_block;
  mlp.scratch_bytes = scratch.size;
  return scratch.size;
}

inline void choose_block(Mlp& mlp, MlpPass pass, bool need_params) {
  const int64_t per_row = lay_out_block(mlp, kMlpRowPad, pass, need_params) / kMlpRowPad;
  const int64_t rows = std::min(kMaxBlock, std::max<int64_t>(2 * kMlpRowPad, kBlockBytes / per_row));
  lay_out_block(mlp, rows / kMlpRowPad * kMlpRowPad, pass, need_params);
}

inline void pack_weights(Mlp& mlp, const Tensor& like, bool forward, bool transposed) {
  MlpParams& p = mlp.p;
  MlpLayout packed;
  for (int l = 0; l < p.n_layers; ++l) {
    MlpLayer& layer = p.layers[l];
    // Sizes for whole vectors of any width; bfloat16 pairs take as much as floats when the depth is odd.
    const int64_t depth_in = layer.n_in + (layer.n_in & 1), depth_out = layer.n_out + (layer.n_out & 1);
    layer.packed_weight = forward ? packed.add(depth_in * mlp.width_out(l) * mlp.element) : -1;
    layer.packed_transposed = transposed ? packed.add(depth_out * mlp.width_in(l) * mlp.element) : -1;
    layer.packed_bias = packed.add(mlp.width_out(l) * mlp.element);
  }
  void* memory = allocate(like, packed.size / mlp.element + 64 / mlp.element, mlp.keep);
  p.packed = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(memory) + 63) & ~uintptr_t{63});
  parallel_units(p.n_layers, p.n_layers, [&](int64_t begin, int64_t end) { kernels().mlp_pack(p, begin, end); });
}

// Runs a kernel on scratch memory of the thread it lands on.
inline void run_with_scratch(RangeKernel<MlpParams> kernel, const Mlp& mlp, int64_t units, int64_t grain) {
  parallel_units(units, grain, [&](int64_t begin, int64_t end) {
    MlpParams p = mlp.p;
    thread_local Scratch scratch;
    p.scratch = scratch.at_least(mlp.scratch_bytes);
    kernel(p, begin, end);
  });
}

// Lays out a partial sum of the parameter gradients and fixes their number from the rows that products run over; like
// everything that fixes the order of sums it derives from the problem alone. Returns the output rows of all layers.
inline int64_t lay_out_partials(Mlp& mlp, int64_t n_rows) {
  MlpParams& p = mlp.p;
  MlpLayout partial;
  int64_t n_outputs = 0;
  for (int l = 0; l < p.n_layers; ++l) {
    MlpLayer& layer = p.layers[l];
    layer.grad_weight = partial.add(round_up(layer.n_out, kMlpRowPad) * mlp.width_in(l) * mlp.element) / mlp.element;
    if (layer.bias != nullptr) layer.grad_bias = partial.add(mlp.width_out(l) * mlp.element) / mlp.element;
    n_outputs += layer.n_out;
  }
  p.n_partials = std::min({kMaxPartials, (n_rows + kRowsPerPartial - 1) / kRowsPerPartial, p.n_blocks});
  p.n_partials = std::max<int64_t>(1, std::min(p.n_partials, std::max<int64_t>(4, kMaxPartialBytes / partial.size)));
  p.partial_size = partial.size / mlp.element;
  return n_outputs;
}

// Runs a kernel over partial sums of the parameter gradients; grad_x [N, in] (or [0, in]) and all parameter gradients
// in one buffer: weights, then biases, in layer order.
inline std::tuple<Tensor, Tensor> run_backward(RangeKernel<MlpParams> kernel, MlpPass pass, Mlp& mlp, const Tensor& x,
                                               bool need_x, bool need_params) {
  MlpParams& p = mlp.p;
  Tensor grad_x = empty(x, {need_x ? p.n_rows : 0, x.size(1)});
  Tensor grad_params = empty(x, {need_params ? mlp_parameters(p) : 0});
  if (need_x) {
    advise_huge_pages(grad_x.mutable_data_ptr(), grad_x.numel() * mlp.element);
    p.grad_x = grad_x.mutable_data_ptr();
  }
  choose_block(mlp, pass, need_params);
  const int64_t n_outputs = lay_out_partials(mlp, p.n_rows);
  if (need_params) {
    p.partials = allocate(x, p.partial_size * p.n_partials, mlp.keep);
    p.grad_params = grad_params.mutable_data_ptr();
  }
  const bool needed = need_x || need_params || p.grad_grad_y != nullptr;
  if (p.n_rows > 0 && needed) pack_weights(mlp, x, true, true);
  run_with_scratch(kernel, mlp, needed ? p.n_partials : 0, 1);
  if (need_params) {
    parallel_units(n_outputs, kReduceGrain, [&](int64_t begin, int64_t end) { kernels().mlp_reduce(p, begin, end); });
  }
  return {grad_x, grad_params};
}

}  // namespace hashgrid
