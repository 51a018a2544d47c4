// mlp: checks, block sizes, allocation and launch. Inputs are [n_rows, n_in] here; the Python side flattens batches.
#include "core/activation.h"
#include "cpu/capability.h"
#include "cpu/kernels.h"
#include "ops/memory.h"
#include "ops/mlp.h"

#include <algorithm>
#include <tuple>

namespace hashgrid {
namespace {

constexpr int64_t kBlockBytes = 192 * 1024;  // of a block's matrices: well inside L2
constexpr int64_t kMaxBlock = 128;
constexpr int64_t kForwardGrain = 8;                    // blocks per unit
constexpr int64_t kRowsPerPartial = 2048;               // at least, so that adding up the partial sums costs little
constexpr int64_t kMaxPartials = 32;                    // work units of a backward
constexpr int64_t kMaxPartialBytes = int64_t{1} << 26;  // of all partial sums together
constexpr int64_t kReduceGrain = 64;                    // output rows per unit

int64_t round_up(int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; }
int64_t padded(int64_t columns) { return round_up(columns, kMlpColumnPad); }

// Lays matrices out one after the other, each on a cache line.
struct Layout {
  int64_t size = 0;

  int64_t add(int64_t bytes) {
    const int64_t offset = size;
    size += round_up(bytes, 64);
    return offset;
  }
};

Tensor empty(const Tensor& like, std::vector<int64_t> shape) { return torch::stable::new_empty(like, shape); }

void* allocate(const Tensor& like, int64_t elements, std::vector<Tensor>& keep) {
  keep.push_back(empty(like, {elements}));
  return keep.back().mutable_data_ptr();
}

enum class Pass { kForward, kBackward, kSecond };

struct Mlp {
  MlpParams p = {};
  int64_t element = 4;  // bytes
  int64_t scratch_bytes = 0;
  std::vector<Tensor> keep;  // workspace

  int64_t width_in(int l) const { return padded(p.layers[l].n_in); }
  int64_t width_out(int l) const { return padded(p.layers[l].n_out); }
};

Mlp make_mlp(const Tensor& x, const std::vector<Tensor>& weights, const std::vector<Tensor>& biases, int64_t activation,
             int64_t output_activation, int64_t factors) {
  Mlp mlp;
  mlp.p = make_mlp_params(x, weights, biases, activation, output_activation, factors);
  mlp.element = mlp.p.dtype == DType::kFloat64 ? 8 : 4;
  mlp.p.halves = mlp.p.factors == MlpFactors::kBFloat16 && kernels().has_bfloat16_products;
  return mlp;
}

// Matrices of a block of `n_block` rows. Returns their size in bytes.
int64_t lay_out_block(Mlp& mlp, int64_t n_block, Pass pass, bool need_params) {
  MlpParams& p = mlp.p;
  const bool backward = pass != Pass::kForward, second = pass == Pass::kSecond;
  const int64_t stored = p.halves ? 2 : mlp.element;
  Layout scratch;
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
  for (int64_t& gradient : p.value_gradient) gradient = second ? scratch.add(n_block * widest * mlp.element) : -1;
  p.n_block = static_cast<int32_t>(n_block);
  p.n_blocks = (p.n_rows + n_block - 1) / n_block;
  mlp.scratch_bytes = scratch.size;
  return scratch.size;
}

void choose_block(Mlp& mlp, Pass pass, bool need_params) {
  const int64_t per_row = lay_out_block(mlp, kMlpRowPad, pass, need_params) / kMlpRowPad;
  const int64_t rows = std::min(kMaxBlock, std::max<int64_t>(2 * kMlpRowPad, kBlockBytes / per_row));
  lay_out_block(mlp, rows / kMlpRowPad * kMlpRowPad, pass, need_params);
}

void pack(Mlp& mlp, const Tensor& like, bool forward, bool transposed) {
  MlpParams& p = mlp.p;
  Layout packed;
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
void run_with_scratch(RangeKernel<MlpParams> kernel, const Mlp& mlp, int64_t units, int64_t grain) {
  parallel_units(units, grain, [&](int64_t begin, int64_t end) {
    MlpParams p = mlp.p;
    thread_local Scratch scratch;
    p.scratch = scratch.at_least(mlp.scratch_bytes);
    kernel(p, begin, end);
  });
}

Tensor mlp_cpu(const Tensor& x, const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
               int64_t activation, int64_t output_activation, int64_t factors) {
  Mlp mlp = make_mlp(x, weights, biases, activation, output_activation, factors);
  MlpParams& p = mlp.p;
  Tensor y = empty(x, {p.n_rows, p.layers[p.n_layers - 1].n_out});
  if (p.n_rows == 0) return y;
  advise_huge_pages(y.mutable_data_ptr(), y.numel() * mlp.element);
  p.y = y.mutable_data_ptr();
  choose_block(mlp, Pass::kForward, false);
  pack(mlp, x, true, false);
  run_with_scratch(kernels().mlp_forward, mlp, p.n_blocks, kForwardGrain);
  return y;
}

// Runs a kernel over partial sums of the parameter gradients; grad_x [N, in] (or [0, in]) and all parameter gradients
// in one buffer: weights, then biases, in layer order.
std::tuple<Tensor, Tensor> run_backward(RangeKernel<MlpParams> kernel, Pass pass, Mlp& mlp, const Tensor& x,
                                        bool need_x, bool need_params) {
  MlpParams& p = mlp.p;
  Layout partial;
  int64_t n_outputs = 0;
  for (int l = 0; l < p.n_layers; ++l) {
    MlpLayer& layer = p.layers[l];
    layer.grad_weight = partial.add(round_up(layer.n_out, kMlpRowPad) * mlp.width_in(l) * mlp.element) / mlp.element;
    if (layer.bias != nullptr) layer.grad_bias = partial.add(mlp.width_out(l) * mlp.element) / mlp.element;
    n_outputs += layer.n_out;
  }
  Tensor grad_x = empty(x, {need_x ? p.n_rows : 0, x.size(1)});
  Tensor grad_params = empty(x, {need_params ? mlp_parameters(p) : 0});
  if (need_x) {
    advise_huge_pages(grad_x.mutable_data_ptr(), grad_x.numel() * mlp.element);
    p.grad_x = grad_x.mutable_data_ptr();
  }
  choose_block(mlp, pass, need_params);
  // Derived from the problem alone, like everything else that fixes the order of sums.
  p.n_partials = std::min({kMaxPartials, (p.n_rows + kRowsPerPartial - 1) / kRowsPerPartial, p.n_blocks});
  p.n_partials = std::max<int64_t>(1, std::min(p.n_partials, std::max<int64_t>(4, kMaxPartialBytes / partial.size)));
  if (need_params) {
    p.partial_size = partial.size / mlp.element;
    p.partials = allocate(x, p.partial_size * p.n_partials, mlp.keep);
    p.grad_params = grad_params.mutable_data_ptr();
  }
  const bool needed = need_x || need_params || p.grad_grad_y != nullptr;
  if (p.n_rows > 0 && needed) pack(mlp, x, true, true);
  run_with_scratch(kernel, mlp, needed ? p.n_partials : 0, 1);
  if (need_params) {
    parallel_units(n_outputs, kReduceGrain, [&](int64_t begin, int64_t end) { kernels().mlp_reduce(p, begin, end); });
  }
  return {grad_x, grad_params};
}

std::tuple<Tensor, Tensor> mlp_backward_cpu(const Tensor& grad_y, const Tensor& x, const std::vector<Tensor>& weights,
                                            const std::vector<Tensor>& biases, int64_t activation,
                                            int64_t output_activation, int64_t factors, bool need_x, bool need_params) {
  Mlp mlp = make_mlp(x, weights, biases, activation, output_activation, factors);
  set_grad_y(grad_y, x, mlp.p);
  return run_backward(kernels().mlp_backward, Pass::kBackward, mlp, x, need_x, need_params);
}

// The cotangent [N, in] of grad_x pulled back to grad_y [N, out] (or [0, out]), x and parameters as above.
std::tuple<Tensor, Tensor, Tensor> mlp_backward_backward_cpu(const Tensor& cotangent, const Tensor& grad_y,
                                                             const Tensor& x, const std::vector<Tensor>& weights,
                                                             const std::vector<Tensor>& biases, int64_t activation,
                                                             int64_t output_activation, bool need_grad_y, bool need_x,
                                                             bool need_params) {
  Mlp mlp = make_mlp(x, weights, biases, activation, output_activation, static_cast<int64_t>(MlpFactors::kReal));
  MlpParams& p = mlp.p;
  set_grad_y(grad_y, x, p);
  check_shape(cotangent, "cotangent", {p.n_rows, x.size(1)});
  check_dtype(cotangent, "cotangent", x.scalar_type());
  STD_TORCH_CHECK(cotangent.is_contiguous(), "`cotangent` must be contiguous");
  p.cotangent = cotangent.const_data_ptr();
  Tensor grad_grad_y = empty(x, {need_grad_y ? p.n_rows : 0, grad_y.size(1)});
  if (need_grad_y) p.grad_grad_y = grad_grad_y.mutable_data_ptr();
  auto [grad_x, grad_params] = run_backward(kernels().mlp_second, Pass::kSecond, mlp, x, need_x, need_params);
  return {grad_grad_y, grad_x, grad_params};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hashgrid, CPU, m) {
  m.impl("mlp", TORCH_BOX(&mlp_cpu));
  m.impl("mlp_backward", TORCH_BOX(&mlp_backward_cpu));
  m.impl("mlp_backward_backward", TORCH_BOX(&mlp_backward_backward_cpu));
}

}  // namespace hashgrid
