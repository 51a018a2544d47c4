// The MLP on CUDA without tensor cores: fp32, fp64, widths beyond 128, cards before sm_80. One tiled product per layer
// over a chunk of rows, in global memory; 16-bit factors are rounded as they are read and multiplied in fp32.
#pragma once

#include "cuda/mlp.cuh"

#include "core/rounding.h"

namespace hashgrid {
namespace HASHGRID_ISA {

constexpr int kThreads = 256;
constexpr int kProductTile = 64;   // rows and columns of a product per block
constexpr int kProductDepth = 16;  // of both factors in shared memory at a time
constexpr int kSliceRows = 256;    // at least, of a partial sum
constexpr int64_t kMaxChunkBytes = int64_t{1} << 26;

enum class ProductKind { kForward, kBack, kWeights };

// result [n_rows, n_columns] = sum over n_depth of a * b:
//
//                  rows      columns   depth        a                           b
//     kForward     rows      outputs   inputs       [rows, depth] activations   [columns, depth] weight
//     kBack        rows      inputs    outputs      [rows, depth] gradient      [depth, columns] weight
//     kWeights     outputs   inputs    rows         [depth, rows] gradient      [depth, columns] activations
template <typename T>
struct Product {
  int64_t n_rows, n_columns, n_depth;
  const T* a;
  const T* b;
  T* result;
  Rounding round_a;  // both apply to factors as they are read: matrices in memory stay as they are
  Rounding round_b;
  Activation activation;  // kForward: applied; kBack: pulled back through. Its derivative reads a sign.
  const T* bias;          // kForward: [n_columns] or null
  const T* outputs;       // kBack: [n_rows, n_columns], of the activation
  int64_t n_slice;        // kWeights: depth per slice blockIdx.z
  int64_t slice_size;     // kWeights: from the result of a slice to that of the next
  bool accumulate;        // kWeights: adds to the result
};

__device__ inline float round_factor(float x, Rounding rounding) {
  switch (rounding) {
    case Rounding::kBFloat16:
      return round_mantissa<16, uint32_t>(x);
    case Rounding::kFloat16:
      return __half2float(__float2half_rn(x));
    case Rounding::kElevenBits:
      return round_mantissa<13, uint32_t>(x);
    default:
      return x;
  }
}
__device__ inline double round_factor(double x, Rounding) { return x; }

// Block: a square of kProductTile rows and columns of the result, 4 x 4 to a thread, and of slice blockIdx.z with
// kWeights. Both factors pass through shared memory, [kProductDepth, kProductTile] at a time, transposed so that a
// thread reads its four in one vector; two barriers part the turns. Each sum is one thread's, in T, in the order of
// depth; the bias, or what the result held, comes last.
template <typename T, ProductKind kKind>
__global__ void __launch_bounds__(kThreads) mlp_product_kernel(HASHGRID_PARAMS Product<T> q) {
  constexpr int kStride = kProductTile + 4, kSide = 4, kPerSide = kProductTile / kSide;
  alignas(32) __shared__ T a_tile[kProductDepth][kStride];
  alignas(32) __shared__ T b_tile[kProductDepth][kStride];
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kProductTile;
  const int64_t first_column = static_cast<int64_t>(blockIdx.y) * kProductTile;
  int64_t begin = 0, end = q.n_depth;
  if (kKind == ProductKind::kWeights) {
    begin = static_cast<int64_t>(blockIdx.z) * q.n_slice;
    end = begin + q.n_slice < q.n_depth ? begin + q.n_slice : q.n_depth;
  }
  const int row = static_cast<int>(threadIdx.x) / kPerSide * kSide;
  const int column = static_cast<int>(threadIdx.x) % kPerSide * kSide;
  T sum[kSide][kSide] = {};
  for (int64_t depth = begin; depth < end; depth += kProductDepth) {
#pragma unroll
    for (int i = 0; i < kProductTile * kProductDepth / kThreads; ++i) {
      // Neighbouring threads read neighbouring values.
      const int e = i * kThreads + static_cast<int>(threadIdx.x);
      const int by_depth[2] = {e % kProductDepth, e / kProductDepth};
      const int by_column[2] = {e / kProductTile, e % kProductTile};
      const int* of_a = kKind == ProductKind::kWeights ? by_column : by_depth;
      const int* of_b = kKind == ProductKind::kForward ? by_depth : by_column;
      const int64_t a_depth = depth + of_a[0], a_row = first_row + of_a[1];
      const int64_t b_depth = depth + of_b[0], b_column = first_column + of_b[1];
      T a = T(0), b = T(0);
      if (a_depth < end && a_row < q.n_rows) {
        a = q.a[kKind == ProductKind::kWeights ? a_depth * q.n_rows + a_row : a_row * q.n_depth + a_depth];
      }
      if (b_depth < end && b_column < q.n_columns) {
        b = q.b[kKind == ProductKind::kForward ? b_column * q.n_depth + b_depth : b_depth * q.n_columns + b_column];
      }
      a_tile[of_a[0]][of_a[1]] = round_factor(a, q.round_a);
      b_tile[of_b[0]][of_b[1]] = round_factor(b, q.round_b);
    }
    __syncthreads();
#pragma unroll
    for (int d = 0; d < kProductDepth; ++d) {
      T a[kSide], b[kSide];
      load_row<T, kSide>(&a_tile[d][row], a);
      load_row<T, kSide>(&b_tile[d][column], b);
#pragma unroll
      for (int i = 0; i < kSide; ++i) {
#pragma unroll
        for (int j = 0; j < kSide; ++j) sum[i][j] += a[i] * b[j];
      }
    }
    __syncthreads();
  }
  T* result = q.result + (kKind == ProductKind::kWeights ? blockIdx.z * q.slice_size : 0);
#pragma unroll
  for (int i = 0; i < kSide; ++i) {
#pragma unroll
    for (int j = 0; j < kSide; ++j) {
      const int64_t r = first_row + row + i, c = first_column + column + j, at = r * q.n_columns + c;
      if (r >= q.n_rows || c >= q.n_columns) continue;
      T value = sum[i][j];
      if (kKind == ProductKind::kForward) {
        if (q.bias != nullptr) {
          HASHGRID_IN_GLOBAL(q.bias);
          value += q.bias[c];
        }
        if (q.activation == Activation::kReLU) value = activate(value, Activation::kReLU);
        if (q.activation == Activation::kLeakyReLU) value = activate(value, Activation::kLeakyReLU);
      } else if (kKind == ProductKind::kBack) {
        if (q.activation == Activation::kReLU) value = pull_back(value, q.outputs[at], Activation::kReLU);
        if (q.activation == Activation::kLeakyReLU) value = pull_back(value, q.outputs[at], Activation::kLeakyReLU);
      } else if (q.accumulate) {
        value += result[at];
      }
      result[at] = value;
    }
  }
}

// Thread: value i of y [n], from z; the two may be the same. Nothing is shared.
template <typename T>
__global__ void mlp_activate_kernel(const T* z, T* y, int64_t n, Activation activation) {
  const int64_t i = global_thread();
  if (i < n) y[i] = activate(z[i], activation);
}

// Thread: value i of `result` [n]; arrays may be the same. Nothing is shared. `source` holds what comes before the
// activation if `from_input`, else what its derivative reads.
template <typename T>
__global__ void mlp_derivative_kernel(const T* grad, const T* source, T* result, int64_t n, Activation activation,
                                      bool from_input) {
  const int64_t i = global_thread();
  if (i >= n) return;
  result[i] = from_input ? pull_back_from(source[i], grad[i], activation) : pull_back(grad[i], source[i], activation);
}

// Block: 32 columns of slice blockIdx.y of a gradient [n_rows, n_columns], summed over the slice's rows: every
// kReduceGroups-th row by a warp, then these sums in order.
template <typename T>
__global__ void mlp_bias_gradient_kernel(const T* gradient, int64_t n_rows, int64_t n_columns, int64_t n_slice,
                                         T* result, int64_t slice_size, bool accumulate) {
  __shared__ T sums[kReduceGroups][kWarpSize];
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kWarpSize + lane_index();
  const int64_t begin = blockIdx.y * n_slice, end = begin + n_slice < n_rows ? begin + n_slice : n_rows;
  T total = T(0);
  if (column < n_columns) {
#pragma unroll 4
    for (int64_t row = begin + warp_index(); row < end; row += kReduceGroups) {
      total += gradient[row * n_columns + column];
    }
  }
  sums[warp_index()][lane_index()] = total;
  __syncthreads();
  if (warp_index() != 0 || column >= n_columns) return;
  for (int group = 1; group < kReduceGroups; ++group) total += sums[group][lane_index()];
  T* to = result + blockIdx.y * slice_size + column;
  *to = accumulate ? *to + total : total;
}

// ---- plan and launch ---------------------------------------------------------------------------------------------

// Matrices of a chunk of n_block rows in global memory. Returns their size in bytes.
inline int64_t lay_out_chunk(MlpParams& p, int64_t n_block, bool backward) {
  const int64_t column = n_block * (p.dtype == DType::kFloat64 ? 8 : 4);
  MlpLayout scratch;
  int64_t widest = 0, alternate[2] = {-1, -1};
  for (int l = 0; l + 1 < p.n_layers; ++l) widest = std::max<int64_t>(widest, p.layers[l].n_out);
  for (int l = 0; l + 1 < p.n_layers; ++l) {
    // A forward alternates between two inputs; a backward keeps all.
    if (!backward && alternate[l % 2] < 0) alternate[l % 2] = scratch.add(widest * column);
    p.layers[l + 1].input = backward ? scratch.add(p.layers[l].n_out * column) : alternate[l % 2];
    const bool separate = backward && derivative_reads_input(p.activation);
    p.layers[l].source = separate ? scratch.add(p.layers[l].n_out * column) : -1;
  }
  widest = std::max<int64_t>(widest, p.layers[p.n_layers - 1].n_out);
  for (int64_t& staging : p.staging) staging = backward ? scratch.add(widest * column) : -1;
  return scratch.size;
}

// Partial sums of the parameter gradients over `n_rows` rows of a chunk. Returns their size in bytes. Slices follow
// from the problem alone, hence the bits too.
inline int64_t plan_plain_partials(MlpParams& p, int64_t n_rows) {
  int64_t n_weights = 0, n_biases = 0;
  for (int l = 0; l < p.n_layers; ++l) {
    p.layers[l].grad_weight = n_weights;
    n_weights += int64_t{p.layers[l].n_in} * p.layers[l].n_out;
  }
  for (int l = 0; l < p.n_layers; ++l) {
    p.layers[l].grad_bias = n_weights + n_biases;
    if (p.layers[l].bias != nullptr) n_biases += p.layers[l].n_out;
  }
  p.partial_size = n_weights + n_biases;
  const int64_t bytes = p.partial_size * (p.dtype == DType::kFloat64 ? 8 : 4);
  const int64_t fitting = std::max<int64_t>(1, kMaxPartialBytes / bytes);
  p.n_partials = std::min({divide_up(n_rows, kSliceRows), fitting, int64_t{kMaxPartials}});
  p.n_slice = divide_up(n_rows, p.n_partials);
  return p.n_partials * bytes;
}

// Workspace: a chunk's matrices and partial sums. Chunks follow from the problem alone, too.
inline MlpWorkspace plan_plain(MlpParams& p, bool backward, bool need_params) {
  const int64_t per_tile = std::max<int64_t>(1, lay_out_chunk(p, kProductTile, backward));
  const int64_t tiles = std::max<int64_t>(1, std::min(divide_up(p.n_rows, kProductTile), kMaxChunkBytes / per_tile));
  const int64_t n_block = std::min<int64_t>(tiles * kProductTile, int64_t{1} << 30);
  p.n_block = static_cast<int32_t>(n_block);
  p.n_blocks = divide_up(p.n_rows, n_block);
  MlpWorkspace workspace = {0, lay_out_chunk(p, n_block, backward), 0};
  if (backward && need_params) workspace.partials = plan_plain_partials(p, n_block);
  return workspace;
}

template <typename T>
T* in_scratch(const MlpParams& p, int64_t offset) {
  return reinterpret_cast<T*>(static_cast<char*>(p.scratch) + offset);
}

// n_slices: of kWeights, else 1.
template <ProductKind kKind, typename T>
void launch_product(const Product<T>& q, int64_t n_slices, cudaStream_t stream) {
  LaunchShape shape = blocks_of(q.n_rows, kProductTile, static_cast<unsigned>(divide_up(q.n_columns, kProductTile)));
  shape.grid.z = static_cast<unsigned>(n_slices);
  shape.block = dim3(kThreads);
  HASHGRID_LAUNCH_TOGETHER((mlp_product_kernel<T, kKind>), shape, stream, q);
}

template <typename T>
void launch_activate(const T* z, T* y, int64_t n, Activation activation, cudaStream_t stream) {
  HASHGRID_LAUNCH(mlp_activate_kernel<T>, blocks_of(n, kThreads), stream, z, y, n, activation);
}

template <typename T>
void launch_derivative(const T* grad, const T* source, T* result, int64_t n, Activation activation, bool from_input,
                       cudaStream_t stream) {
  HASHGRID_LAUNCH(mlp_derivative_kernel<T>, blocks_of(n, kThreads), stream, grad, source, result, n, activation,
                  from_input);
}

// A layer's sums or, where that costs no more than a comparison, its outputs. Other activations are a launch of their
// own, so that one product serves all of them.
template <typename T>
void launch_layer(const MlpParams& p, int l, int64_t n_rows, const T* input, Activation activation, T* result,
                  cudaStream_t stream) {
  const MlpLayer& layer = p.layers[l];
  Product<T> q = {};
  q.n_rows = n_rows;
  q.n_columns = layer.n_out;
  q.n_depth = layer.n_in;
  q.a = input;
  q.b = static_cast<const T*>(layer.weight);
  q.bias = static_cast<const T*>(layer.bias);
  q.result = result;
  q.round_a = q.round_b = value_rounding(p.factors);
  q.activation = derivative_reads_sign(activation) ? activation : Activation::kNone;
  launch_product<ProductKind::kForward>(q, 1, stream);
}

// Hidden layers of a chunk; inputs[l] receives those of layer l.
template <typename T>
void launch_hidden_layers(const MlpParams& p, int64_t first, int64_t n_rows, const T** inputs, cudaStream_t stream) {
  inputs[0] = static_cast<const T*>(p.x) + first * p.layers[0].n_in;
  for (int l = 0; l + 1 < p.n_layers; ++l) {
    T* y = in_scratch<T>(p, p.layers[l + 1].input);
    T* z = p.layers[l].source >= 0 ? in_scratch<T>(p, p.layers[l].source) : y;
    launch_layer(p, l, n_rows, inputs[l], p.activation, z, stream);
    if (!derivative_reads_sign(p.activation)) launch_activate(z, y, n_rows * p.layers[l].n_out, p.activation, stream);
    inputs[l + 1] = y;
  }
}

// y of a chunk from what its last layer takes.
template <typename T>
void launch_last_layer(const MlpParams& p, int64_t first, int64_t n_rows, const T* input, cudaStream_t stream) {
  const int64_t n_out = p.layers[p.n_layers - 1].n_out;
  T* y = static_cast<T*>(p.y) + first * n_out;
  launch_layer(p, p.n_layers - 1, n_rows, input, p.output_activation, y, stream);
  if (!derivative_reads_sign(p.output_activation)) {
    launch_activate(y, y, n_rows * n_out, p.output_activation, stream);
  }
}

template <typename T>
void launch_plain_forward(const MlpParams& p, cudaStream_t stream) {
  const T* inputs[kMaxMlpLayers];
  const int last = p.n_layers - 1;
  for (int64_t first = 0; first < p.n_rows; first += p.n_block) {
    const int64_t n_rows = std::min<int64_t>(p.n_block, p.n_rows - first);
    launch_hidden_layers(p, first, n_rows, inputs, stream);
    launch_last_layer(p, first, n_rows, inputs[last], stream);
  }
}

// Adds a layer's parameter gradients to the partial sums, or begins them.
template <typename T>
void launch_parameter_gradient(const MlpParams& p, int l, int64_t n_rows, const T* gradient, const T* input,
                               bool accumulate, cudaStream_t stream) {
  const MlpLayer& layer = p.layers[l];
  T* partials = static_cast<T*>(p.partials);
  Product<T> q = {};
  q.n_rows = layer.n_out;
  q.n_columns = layer.n_in;
  q.n_depth = n_rows;
  q.a = gradient;
  q.b = input;
  q.result = partials + layer.grad_weight;
  q.round_a = gradient_rounding(p.factors);
  q.round_b = value_rounding(p.factors);
  q.n_slice = p.n_slice;
  q.slice_size = p.partial_size;
  q.accumulate = accumulate;
  launch_product<ProductKind::kWeights>(q, p.n_partials, stream);
  if (layer.bias == nullptr) return;
  LaunchShape shape = blocks_of(layer.n_out, kWarpSize, static_cast<unsigned>(p.n_partials));
  shape.block = dim3(kReduceGroups * kWarpSize);
  HASHGRID_LAUNCH_TOGETHER(mlp_bias_gradient_kernel<T>, shape, stream, gradient, n_rows, int64_t{layer.n_out},
                           p.n_slice, partials + layer.grad_bias, p.partial_size, accumulate);
}

// Partial sums lie as the parameters do.
struct PlainTarget {
  __device__ static int64_t of(const MlpParams&, int64_t i) { return i; }
};

// Chunk by chunk: hidden layers again, then layers from last to first. Each chunk's launches add to the partial sums in
// stream order. Fills y, too, unless it is null.
template <typename T>
void launch_plain_backward(const MlpParams& p, cudaStream_t stream) {
  const T* inputs[kMaxMlpLayers];
  const int last = p.n_layers - 1;
  const int64_t n_out = p.layers[last].n_out;
  for (int64_t first = 0; first < p.n_rows; first += p.n_block) {
    const int64_t n_rows = std::min<int64_t>(p.n_block, p.n_rows - first);
    launch_hidden_layers(p, first, n_rows, inputs, stream);
    if (p.y != nullptr) launch_last_layer(p, first, n_rows, inputs[last], stream);
    const T* gradient = static_cast<const T*>(p.grad_y) + first * n_out;
    int slot = 0;
    if (p.output_activation != Activation::kNone) {
      T* z = in_scratch<T>(p, p.staging[slot]);
      launch_layer(p, last, n_rows, inputs[last], Activation::kNone, z, stream);
      launch_derivative(gradient, z, z, n_rows * n_out, p.output_activation, true, stream);
      gradient = z;
      slot = 1 - slot;
    }
    for (int l = last; l >= 0; --l) {
      const MlpLayer& layer = p.layers[l];
      if (p.partials != nullptr) launch_parameter_gradient(p, l, n_rows, gradient, inputs[l], first > 0, stream);
      if (l == 0 && p.grad_x == nullptr) break;
      Product<T> q = {};
      q.n_rows = n_rows;
      q.n_columns = layer.n_in;
      q.n_depth = layer.n_out;
      q.a = gradient;
      q.b = static_cast<const T*>(layer.weight);
      q.result = l > 0 ? in_scratch<T>(p, p.staging[slot]) : static_cast<T*>(p.grad_x) + first * layer.n_in;
      q.round_a = gradient_rounding(p.factors);
      q.round_b = value_rounding(p.factors);
      q.activation = l > 0 && derivative_reads_sign(p.activation) ? p.activation : Activation::kNone;
      q.outputs = inputs[l];
      launch_product<ProductKind::kBack>(q, 1, stream);
      if (l > 0 && !derivative_reads_sign(p.activation)) {
        const int64_t source = p.layers[l - 1].source;
        launch_derivative<T>(q.result, source >= 0 ? in_scratch<T>(p, source) : inputs[l], q.result,
                             n_rows * layer.n_in, p.activation, false, stream);
      }
      gradient = q.result;
      slot = 1 - slot;
    }
  }
  if (p.grad_params != nullptr) launch_reduce<T, PlainTarget>(p, stream);
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
