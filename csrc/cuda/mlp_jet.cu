// The multilayer perceptron along directions on CUDA: the plain path's products (mlp_plain.cuh) over the slabs of a
// chunk of points, and a launch per activation; the formulas are those of core/activation_jet.h, derived in
// cpu/mlp_jet.inl.
//
// A chunk's slabs lie in global memory, [n_slabs, points, columns] unpadded, in the order of JetShape. A
// layer is one product of all slabs with the same weights. Partial sums of parameter gradients run over slices of the
// slabs' rows, are added to chunk by chunk in stream order, and are reduced in a fixed order: the same bits in every
// run.
//
// The second order of the input gradient is a case of it: v . grad_x = grad_y . (J v), so that its gradients are those
// of a value and one first derivative, along v, without second ones (cpu/mlp_second.inl).
#include "cuda/mlp_plain.cuh"

#include "core/activation_jet.h"
#include "core/mlp_jet_params.h"

namespace hashgrid {
namespace HASHGRID_ISA {

// Rows of user memory: values [points, columns], first derivatives [points, n_directions, columns], second ones
// [points, n_seconds, columns]; null: zeros to read, nothing to write.
template <typename T>
struct JetRows {
  T* values;
  T* first;
  T* second;
};

// Those of points `begin` and on.
template <typename T>
JetRows<T> jet_rows(void* values, void* first, void* second, int64_t begin, const JetShape& shape, int64_t columns) {
  const auto advance = [&](void* rows, int64_t per_point) {
    return rows == nullptr ? nullptr : static_cast<T*>(rows) + begin * per_point * columns;
  };
  return {advance(values, 1), advance(first, shape.n_directions), advance(second, shape.n_seconds)};
}

// Address of element i of slabs [n_slabs, n_points, columns] in user memory, or null.
template <typename T>
__device__ inline T* jet_element(const JetRows<T>& rows, int64_t n_points, const JetShape& shape, int64_t columns,
                                 int64_t i) {
  const int64_t column = i % columns, point = i / columns % n_points, slab = i / columns / n_points;
  if (slab == 0) return rows.values == nullptr ? nullptr : rows.values + point * columns + column;
  const bool second = slab > shape.n_directions;
  T* derivatives = second ? rows.second : rows.first;
  if (derivatives == nullptr) return nullptr;
  const int64_t k = slab - 1 - (second ? shape.n_directions : 0);
  return derivatives + (point * (second ? shape.n_seconds : shape.n_directions) + k) * columns + column;
}

// Thread: element i of slabs [n_slabs, n_points, columns], from the place in user memory that jet_element finds;
// neighbours write, and mostly read, neighbouring addresses. Nothing is shared.
template <typename T>
__global__ void mlp_jet_import_kernel(JetRows<T> rows, int64_t n_points, JetShape shape, int64_t columns, T* slabs) {
  const int64_t i = global_thread();
  if (i >= shape.n_slabs * n_points * columns) return;
  const T* from = jet_element(rows, n_points, shape, columns, i);
  slabs[i] = from == nullptr ? T(0) : *from;
}

// Thread: element i of the slabs, to that place; results that nobody asked for are left out.
template <typename T>
__global__ void mlp_jet_export_kernel(const T* slabs, int64_t n_points, JetShape shape, int64_t columns,
                                      JetRows<T> rows) {
  const int64_t i = global_thread();
  if (i >= shape.n_slabs * n_points * columns) return;
  T* to = jet_element(rows, n_points, shape, columns, i);
  if (to != nullptr) *to = slabs[i];
}

// What second derivative m sums up of the squares of first derivatives, `slab` apart from `first` on.
template <typename T>
__device__ inline T jet_squares(const JetShape& shape, const T* first, int64_t slab, int64_t m) {
  if (shape.operators == nullptr) return first[m * slab] * first[m * slab];
  const T* weights = static_cast<const T*>(shape.operators) + m * shape.n_directions;
  T total = T(0);
#pragma unroll 1  // directions are few
  for (int64_t k = 0; k < shape.n_directions; ++k) total += weights[k] * first[k * slab] * first[k * slab];
  return total;
}

// What of the gradients of second derivatives, `slab` apart from `second` on, concerns direction k.
template <typename T>
__device__ inline T jet_gradient(const JetShape& shape, const T* second, int64_t slab, int64_t k) {
  if (shape.n_seconds == 0) return T(0);
  if (shape.operators == nullptr) return second[k * slab];
  const T* weights = static_cast<const T*>(shape.operators) + k;
  T total = T(0);
#pragma unroll 1
  for (int64_t m = 0; m < shape.n_seconds; ++m) total += weights[m * shape.n_directions] * second[m * slab];
  return total;
}

// Thread: value i of a slab [n_points, columns] and all its derivatives, which lie `slab` elements apart: `sums`,
// pre-activations, to `outputs`. The companion takes the value's place among the pre-activations. Threads share
// nothing; sums over directions, where operators ask for them, run in order, in T.
template <typename T>
__global__ void mlp_jet_activate_kernel(T* sums, T* outputs, int64_t slab, JetShape shape, Activation activation) {
  const int64_t i = global_thread();
  if (i >= slab) return;
  const T z = sums[i], value = activate(z, activation);
  const T companion = activation == Activation::kSine ? cosine(z) : has_companion(activation) ? sigmoid(z) : T(0);
  const Derivatives<T> f = activation_derivatives<T>(value, companion, activation);
  outputs[i] = value;
  sums[i] = companion;
  for (int64_t k = 1; k <= shape.n_directions; ++k) outputs[i + k * slab] = f.first * sums[i + k * slab];
#pragma unroll 1
  for (int64_t m = 0; m < shape.n_seconds; ++m) {
    const int64_t at = i + (1 + shape.n_directions + m) * slab;
    outputs[at] = f.second * jet_squares(shape, sums + i + slab, slab, m) + f.first * sums[at];
  }
}

// Thread: the same on the way back, gradients of outputs to those of pre-activations, in place. What the value receives
// is a sum over first derivatives, then over second ones, in order, in T.
template <typename T>
__global__ void mlp_jet_derivative_kernel(const T* sums, const T* values, T* gradient, int64_t slab, JetShape shape,
                                          Activation activation) {
  const int64_t i = global_thread();
  if (i >= slab) return;
  const Derivatives<T> f = activation_derivatives<T>(values[i], sums[i], activation);
  const int64_t seconds = i + (1 + shape.n_directions) * slab;
  T total = f.first * gradient[i];
#pragma unroll 1
  for (int64_t k = 0; k < shape.n_directions; ++k) {
    const int64_t at = i + (1 + k) * slab;
    const T turned = f.second * sums[at], of_slope = gradient[at];
    total += turned * of_slope;
    gradient[at] = f.first * of_slope + T(2) * turned * jet_gradient<T>(shape, gradient + seconds, slab, k);
  }
#pragma unroll 1
  for (int64_t m = 0; m < shape.n_seconds; ++m) {
    const int64_t at = seconds + m * slab;
    const T of_bend = gradient[at];
    total += (f.third * jet_squares(shape, sums + i + slab, slab, m) + f.second * sums[at]) * of_bend;
    gradient[at] = f.first * of_bend;
  }
  gradient[i] = total;
}

// ---- plan and launch ---------------------------------------------------------------------------------------------

// Slabs of a chunk of n_points. Returns their size in bytes.
inline int64_t lay_out_jets(MlpJetParams& p, int64_t n_points, bool backward) {
  const int64_t column = p.shape.n_slabs * n_points * (p.mlp.dtype == DType::kFloat64 ? 8 : 4);
  const int64_t widest = widest_of(p.mlp);
  MlpLayout scratch;
  // A forward alternates between two inputs and overwrites the sums; a backward keeps all.
  int64_t alternate[3] = {-1, -1, -1};
  for (int64_t& matrix : alternate) {
    if (!backward) matrix = scratch.add(widest * column);
  }
  for (int l = 0; l < p.mlp.n_layers; ++l) {
    p.input[l] = backward ? scratch.add(p.mlp.layers[l].n_in * column) : alternate[l % 2];
    p.sums[l] = backward ? scratch.add(p.mlp.layers[l].n_out * column) : alternate[2];
  }
  for (int i = 0; i < 2; ++i) p.staging[i] = backward ? scratch.add(widest * column) : alternate[p.mlp.n_layers % 2];
  return scratch.size;
}

// Pre-activations of layer l from its inputs: two products with the same weights, of the values, where biases enter,
// and of all derivatives as rows of one matrix.
template <typename T>
void launch_jet_product(const MlpJetParams& p, int l, int64_t n_points, const T* in, T* sums, cudaStream_t stream) {
  const MlpLayer& layer = p.mlp.layers[l];
  Product<T> q = {};
  q.n_rows = n_points;
  q.n_columns = layer.n_out;
  q.n_depth = layer.n_in;
  q.a = in;
  q.b = static_cast<const T*>(layer.weight);
  q.bias = static_cast<const T*>(layer.bias);
  q.result = sums;
  q.round_a = q.round_b = Rounding::kNone;
  q.activation = Activation::kNone;
  launch_product<ProductKind::kForward>(q, 1, stream);
  q.n_rows = (p.shape.n_slabs - 1) * n_points;
  q.a += n_points * layer.n_in;
  q.result += n_points * layer.n_out;
  q.bias = nullptr;
  launch_product<ProductKind::kForward>(q, 1, stream);
}

// All layers of a chunk; returns the slabs of results.
template <typename T>
T* launch_jet_layers(const MlpJetParams& p, int64_t first, int64_t n_points, cudaStream_t stream) {
  const MlpParams& mlp = p.mlp;
  const JetShape& shape = p.shape;
  const int64_t n_in = mlp.layers[0].n_in, rows = shape.n_slabs * n_points;
  T* in = in_scratch<T>(mlp, p.input[0]);
  const JetRows<T> user = jet_rows<T>(const_cast<void*>(mlp.x), const_cast<void*>(p.directions),
                                      const_cast<void*>(p.accelerations), first, shape, n_in);
  HASHGRID_LAUNCH(mlp_jet_import_kernel<T>, blocks_of(rows * n_in, kThreads), stream, user, n_points, shape, n_in, in);
  for (int l = 0; l < mlp.n_layers; ++l) {
    const bool last = l + 1 == mlp.n_layers;
    const int64_t slab = n_points * mlp.layers[l].n_out;
    T* sums = in_scratch<T>(mlp, p.sums[l]);
    launch_jet_product(p, l, n_points, in, sums, stream);
    const Activation activation = last ? mlp.output_activation : mlp.activation;
    if (last && activation == Activation::kNone) return sums;
    T* outputs = in_scratch<T>(mlp, last ? p.staging[0] : p.input[l + 1]);
    HASHGRID_LAUNCH(mlp_jet_activate_kernel<T>, blocks_of(slab, kThreads), stream, sums, outputs, slab, shape,
                    activation);
    in = outputs;
  }
  return in;
}

// Chunk by chunk: all layers, then the slabs of results to user memory.
template <typename T>
void launch_jet_forward(const MlpJetParams& p, cudaStream_t stream) {
  const JetShape& shape = p.shape;
  const int64_t n_out = p.mlp.layers[p.mlp.n_layers - 1].n_out;
  for (int64_t first = 0; first < p.mlp.n_rows; first += p.mlp.n_block) {
    const int64_t n_points = std::min<int64_t>(p.mlp.n_block, p.mlp.n_rows - first);
    const T* results = launch_jet_layers<T>(p, first, n_points, stream);
    const JetRows<T> user = jet_rows<T>(p.mlp.y, p.first, p.second, first, shape, n_out);
    HASHGRID_LAUNCH(mlp_jet_export_kernel<T>, blocks_of(shape.n_slabs * n_points * n_out, kThreads), stream, results,
                    n_points, shape, n_out, user);
  }
}

// Adds a layer's parameter gradients to the partial sums, or begins them: weights from all slabs, biases from values.
template <typename T>
void launch_jet_parameter_gradient(const MlpJetParams& p, int l, int64_t n_points, const T* gradient, const T* input,
                                   bool accumulate, cudaStream_t stream) {
  const MlpLayer& layer = p.mlp.layers[l];
  T* partials = static_cast<T*>(p.mlp.partials);
  Product<T> q = {};
  q.n_rows = layer.n_out;
  q.n_columns = layer.n_in;
  q.n_depth = p.shape.n_slabs * n_points;
  q.a = gradient;
  q.b = input;
  q.result = partials + layer.grad_weight;
  q.round_a = q.round_b = Rounding::kNone;
  q.n_slice = p.mlp.n_slice;
  q.slice_size = p.mlp.partial_size;
  q.accumulate = accumulate;
  launch_product<ProductKind::kWeights>(q, p.mlp.n_partials, stream);
  if (layer.bias == nullptr) return;
  LaunchShape shape = blocks_of(layer.n_out, kWarpSize, static_cast<unsigned>(p.mlp.n_partials));
  shape.block = dim3(kReduceGroups * kWarpSize);
  HASHGRID_LAUNCH_TOGETHER(mlp_bias_gradient_kernel<T>, shape, stream, gradient, n_points, int64_t{layer.n_out},
                           p.mlp.n_slice, partials + layer.grad_bias, p.mlp.partial_size, accumulate);
}

// Chunk by chunk: all layers again, then from the last to the first. Writes `first`, too, unless it is null.
template <typename T>
void launch_jet_backward(const MlpJetParams& p, cudaStream_t stream) {
  const MlpParams& mlp = p.mlp;
  const JetShape& shape = p.shape;
  const int64_t n_in = mlp.layers[0].n_in;
  const int last = mlp.n_layers - 1;
  const int64_t n_out = mlp.layers[last].n_out;
  const bool need_inputs = mlp.grad_x != nullptr || p.grad_directions != nullptr || p.grad_accelerations != nullptr;
  for (int64_t first = 0; first < mlp.n_rows; first += mlp.n_block) {
    const int64_t n_points = std::min<int64_t>(mlp.n_block, mlp.n_rows - first), rows = shape.n_slabs * n_points;
    const T* results = launch_jet_layers<T>(p, first, n_points, stream);
    if (p.first != nullptr) {
      const JetRows<T> known = jet_rows<T>(nullptr, p.first, nullptr, first, shape, n_out);
      HASHGRID_LAUNCH(mlp_jet_export_kernel<T>, blocks_of(rows * n_out, kThreads), stream, results, n_points, shape,
                      n_out, known);
    }
    if (!need_inputs && mlp.partials == nullptr) continue;
    int slot = 1;
    T* gradient = in_scratch<T>(mlp, p.staging[slot]);
    const JetRows<T> given = jet_rows<T>(const_cast<void*>(mlp.grad_y), const_cast<void*>(p.grad_first),
                                         const_cast<void*>(p.grad_second), first, shape, n_out);
    HASHGRID_LAUNCH(mlp_jet_import_kernel<T>, blocks_of(rows * n_out, kThreads), stream, given, n_points, shape, n_out,
                    gradient);
    if (mlp.output_activation != Activation::kNone) {
      HASHGRID_LAUNCH(mlp_jet_derivative_kernel<T>, blocks_of(n_points * n_out, kThreads), stream,
                      in_scratch<T>(mlp, p.sums[last]), results, gradient, n_points * n_out, shape,
                      mlp.output_activation);
    }
    for (int l = last; l >= 0; --l) {
      const MlpLayer& layer = mlp.layers[l];
      const T* in = in_scratch<T>(mlp, p.input[l]);
      if (mlp.partials != nullptr) {
        launch_jet_parameter_gradient(p, l, n_points, gradient, in, first > 0, stream);
      }
      if (l == 0 && !need_inputs) break;
      slot ^= 1;
      Product<T> q = {};
      q.n_rows = rows;
      q.n_columns = layer.n_in;
      q.n_depth = layer.n_out;
      q.a = gradient;
      q.b = static_cast<const T*>(layer.weight);
      q.result = in_scratch<T>(mlp, p.staging[slot]);
      q.round_a = q.round_b = Rounding::kNone;
      q.activation = Activation::kNone;
      launch_product<ProductKind::kBack>(q, 1, stream);
      gradient = q.result;
      if (l == 0) break;
      const int64_t slab = n_points * layer.n_in;
      HASHGRID_LAUNCH(mlp_jet_derivative_kernel<T>, blocks_of(slab, kThreads), stream,
                      in_scratch<T>(mlp, p.sums[l - 1]), in, gradient, slab, shape, mlp.activation);
    }
    if (!need_inputs) continue;
    const JetRows<T> user = jet_rows<T>(mlp.grad_x, p.grad_directions, p.grad_accelerations, first, shape, n_in);
    HASHGRID_LAUNCH(mlp_jet_export_kernel<T>, blocks_of(rows * n_in, kThreads), stream, gradient, n_points, shape, n_in,
                    user);
  }
  if (mlp.grad_params != nullptr) launch_reduce<T, PlainTarget>(mlp, stream);
}

}  // namespace HASHGRID_ISA

using namespace HASHGRID_ISA;

// As many points to a chunk, in whole tiles of a product, as kMaxChunkBytes of slabs have room for.
MlpWorkspace plan_mlp_jet(MlpJetParams& p, bool backward, bool need_params) {
  const int64_t per_tile = std::max<int64_t>(1, lay_out_jets(p, kProductTile, backward));
  const int64_t tiles =
      std::max<int64_t>(1, std::min(divide_up(p.mlp.n_rows, kProductTile), kMaxChunkBytes / per_tile));
  p.mlp.n_block = static_cast<int32_t>(tiles * kProductTile);
  p.mlp.n_blocks = divide_up(p.mlp.n_rows, p.mlp.n_block);
  MlpWorkspace workspace = {0, lay_out_jets(p, p.mlp.n_block, backward), 0};
  if (backward && need_params) workspace.partials = plan_plain_partials(p.mlp, p.shape.n_slabs * p.mlp.n_block);
  return workspace;
}

void launch_mlp_jet_forward(const MlpJetParams& p, cudaStream_t stream) {
  if (p.mlp.dtype == DType::kFloat64) return launch_jet_forward<double>(p, stream);
  launch_jet_forward<float>(p, stream);
}

// Without points, gradients of parameters are zero.
void launch_mlp_jet_backward(const MlpJetParams& p, cudaStream_t stream) {
  if (p.mlp.n_rows == 0) return clear_parameter_gradients(p.mlp, stream);
  if (p.mlp.dtype == DType::kFloat64) return launch_jet_backward<double>(p, stream);
  launch_jet_backward<float>(p, stream);
}

}  // namespace hashgrid
