// Second order of the multilayer perceptron on the CPU: a cotangent v of grad_x pulled back to grad_y, x and the
// parameters, what an eikonal loss needs. Blocks, products and partial sums are those of mlp.inl and its parts; factors
// are reals.
//
// v . grad_x = grad_y . (J v): a forward carries values a and their derivatives along v, the tangents t,
//
//     z = W a + b      u = W t      a' = s(z)      t' = s'(z) u
//
// and a backward carries the gradients of both. That of the tangents is the gradient the first backward has. That of
// the values is zero until a curved activation adds s''(z) u to it, so that a network of ReLUs has but one:
//
//     dW = du t^T + dz a^T      db = dz      dt = W^T du      da = W^T dz
//     du = s'(z) dt'            dz = s''(z) u dt' + s'(z) da'
//
// A gradient of y itself (grad_values) begins as that of the last values: both orders in one pass.
//
// One block's matrices, twice the first order's, stay in L2: 32-64-64-1 with ReLU, two cores (Zen 5), 117 ns per row.
#include "core/mlp_params.h"

namespace hashgrid {
namespace HASHGRID_ISA {

// s'' of activations from what their first derivative reads too: the input, or the output.
template <Activation kActivation>
HASHGRID_INLINE VecF second_derivative_vector(VecF source) {
  switch (kActivation) {
    case Activation::kSiLU: {
      const VecF s = vector_sigmoid(source);
      return s * (1.0f - s) * (2.0f + source * (1.0f - 2.0f * s));
    }
    case Activation::kSoftplus: {
      const VecF s = vector_sigmoid(source);
      return s * (1.0f - s);
    }
    case Activation::kSigmoid:
      return source * (1.0f - source) * (1.0f - 2.0f * source);
    case Activation::kTanh:
      return -2.0f * source * (1.0f - source * source);
    case Activation::kExp:
      return derivative_vector<Activation::kExp>(source) == source ? source : VecF{};
    case Activation::kSine:
      return -vector_sine(source, 0);
    default:
      return VecF{};
  }
}

template <Activation kActivation>
HASHGRID_INLINE VecDouble second_derivative_vector(VecDouble source) {
  for (int i = 0; i < Lane<double>::kWidth; ++i) {
    source[i] = activation_second_derivative<double>(source[i], kActivation);
  }
  return source;
}

// A block's matrix of reals; stride 0: user memory, unpadded.
template <typename T>
struct Matrix {
  T* data;
  int64_t stride;
};

// An activation on the way back: gradients of its outputs' tangents and values to those of its pre-activations.
// Matrices may be the same; sums the gradient of values over rows for the bias.
template <typename T>
struct SecondPass {
  typedef typename Lane<T>::Vec Vec;
  BlockRows block;
  int64_t columns;
  Matrix<const T> source;    // that the derivatives are computed from
  Matrix<const T> tangents;  // of the pre-activations
  Matrix<const T> from_tangents;
  Matrix<const T> from_values;  // null: zero
  Matrix<T> to_tangents;
  Matrix<T> to_values;  // null: zero
  T* grad_bias;         // or null

  Vec load(const Matrix<const T>& from, int64_t r, int64_t c) const {
    if (from.stride == 0) return load_row<RealFactors<T>>(from.data, columns, r, c, block);
    return load_vector<Vec>(from.data + r * from.stride + c);
  }

  template <class Tag>
  void run(Tag) const {
    constexpr Activation kActivation = Tag::kValue;
    for (int64_t c = 0; c < columns; c += Lane<T>::kWidth) {
      Vec total = {};
      for (int64_t r = 0; r < block.padded; ++r) {
        const Vec s = load_vector<Vec>(source.data + r * source.stride + c);
        const Vec first = derivative_vector<kActivation>(s);
        const Vec gradient = load(from_tangents, r, c);
        if (to_values.data != nullptr) {
          const Vec u = load_vector<Vec>(tangents.data + r * tangents.stride + c);
          Vec value = second_derivative_vector<kActivation>(s) * u * gradient;
          if (from_values.data != nullptr) value += first * load(from_values, r, c);
          if (r < block.count) total += value;
          store_vector(to_values.data + r * to_values.stride + c, value);
        }
        store_vector(to_tangents.data + r * to_tangents.stride + c, first * gradient);
      }
      if (grad_bias != nullptr) store_vector(grad_bias + c, load_vector<Vec>(grad_bias + c) + total);
    }
  }
};

// What the derivatives of hidden layer `l` are computed from.
template <typename T>
static Matrix<const T> hidden_source(const MlpParams& p, int l, const Factors<RealFactors<T>>* inputs) {
  const T* source = at<const T>(p.scratch, p.layers[l].source);
  if (source != nullptr) return {source, column_pad(p.layers[l].n_out)};
  return {inputs[l + 1].rows, inputs[l + 1].stride};
}

// Tangents of all layers' inputs, and of the pre-activations where the way back reads them.
template <typename T>
static void run_tangents(const MlpParams& p, const BlockRows& block, const Factors<RealFactors<T>>* inputs,
                         Factors<RealFactors<T>>* tangents, Prefetch* prefetch) {
  typedef RealFactors<T> F;
  typedef StoreSums<typename F::Product> Store;
  const int last = p.n_layers - 1;
  tangents[0] = block_inputs<F>(p, p.cotangent, block, p.layers[0].tangent, -1);
  for (int l = 0; l < last; ++l) {
    const MlpLayer& layer = p.layers[l];
    const int64_t stride = column_pad(layer.n_out);
    tangents[l + 1] = {at<T>(p.scratch, p.layers[l + 1].tangent), nullptr, stride};
    if (derivative_reads_sign(p.activation)) {
      const StoreGradient<F> finish = {p.activation,  Rounding::kNone, block.count, layer.n_out,
                                       inputs[l + 1], tangents[l + 1], nullptr};
      forward_product<F, false>(p, l, block, tangents[l], finish, prefetch);
      continue;
    }
    T* u = at<T>(p.scratch, layer.tangent_source);
    forward_product<F, false>(p, l, block, tangents[l], Store{u, stride}, prefetch);
    const Matrix<const T> source = hidden_source<T>(p, l, inputs);
    with_activation(p.activation,
                    GradientPass<F>{Rounding::kNone, block, u, stride, layer.n_out, DerivativeFrom::kSource,
                                    source.data, source.stride, inputs[l + 1], tangents[l + 1], nullptr});
  }
  const MlpLayer& out = p.layers[last];
  const int64_t stride = column_pad(out.n_out);
  forward_product<F, false>(p, last, block, tangents[last], Store{at<T>(p.scratch, out.tangent_source), stride},
                            prefetch);
  if (p.output_activation == Activation::kNone) return;
  T* source = at<T>(p.scratch, out.source);
  forward_product<F>(p, last, block, inputs[last], Store{source, stride}, prefetch);
  if (!derivative_reads_input(p.output_activation)) {
    with_activation(p.output_activation, OutputPass<F>{source, block.padded, stride, out.n_out});
  }
}

// Adds the block's parameter gradients to `partial` unless that is null.
template <typename T>
static void mlp_second_block(const MlpParams& p, int64_t b, T* partial) {
  typedef RealFactors<T> F;
  typedef StoreSums<typename F::Product> Store;
  Factors<F> inputs[kMaxMlpLayers], tangents[kMaxMlpLayers];
  const BlockRows block = block_rows(p, b);
  Prefetch next_block;
  prefetch_inputs<F>(p, b + 1, &next_block);
  Prefetch* prefetch = &next_block;
  run_hidden_layers<F>(p, block, inputs, prefetch);
  run_tangents<T>(p, block, inputs, tangents, prefetch);

  const int last = p.n_layers - 1;
  const MlpLayer& out = p.layers[last];
  int64_t stride = column_pad(out.n_out);
  // Gradients of tangents and of values; each alternates between two matrices.
  T* of_tangents[2] = {at<T>(p.scratch, p.staging[0]), at<T>(p.scratch, p.staging[1])};
  T* of_values[2] = {at<T>(p.scratch, p.value_gradient[0]), at<T>(p.scratch, p.value_gradient[1])};
  int now = 0;
  bool values = false;  // whether those of values are anything but zero

  const T* u = at<const T>(p.scratch, out.tangent_source);
  const T* source = at<const T>(p.scratch, out.source);
  const DerivativeFrom from = source == nullptr ? DerivativeFrom::kNowhere : DerivativeFrom::kSource;
  if (p.grad_grad_y != nullptr) {
    const Factors<F> staged = {of_tangents[1], nullptr, stride};
    with_activation(p.output_activation, GradientPass<F>{Rounding::kNone, block, u, stride, out.n_out, from, source,
                                                         stride, inputs[last], staged, nullptr});
    export_rows<F>(of_tangents[1], stride, out.n_out, block, static_cast<T*>(p.grad_grad_y) + block.first * out.n_out);
  }
  const T* grad_y = static_cast<const T*>(p.grad_y) + block.first * out.n_out;
  const T* grad_values = static_cast<const T*>(p.grad_values);
  if (grad_values != nullptr) grad_values += block.first * out.n_out;
  T* grad_bias = partial != nullptr && out.bias != nullptr ? partial + out.grad_bias : nullptr;
  if (derivative_reads_sign(p.output_activation)) {
    const Factors<F> staged = {of_tangents[0], nullptr, stride}, staged_values = {of_values[0], nullptr, stride};
    with_activation(p.output_activation, GradientPass<F>{Rounding::kNone, block, grad_y, 0, out.n_out, from, source,
                                                         stride, inputs[last], staged, nullptr});
    values = grad_values != nullptr;
    if (values) {
      with_activation(p.output_activation, GradientPass<F>{Rounding::kNone, block, grad_values, 0, out.n_out, from,
                                                           source, stride, inputs[last], staged_values, grad_bias});
    }
  } else {
    with_activation(p.output_activation, SecondPass<T>{block,
                                                       out.n_out,
                                                       {source, stride},
                                                       {u, stride},
                                                       {grad_y, 0},
                                                       {grad_values, 0},
                                                       {of_tangents[0], stride},
                                                       {of_values[0], stride},
                                                       grad_bias});
    values = true;
  }

  for (int l = last; l >= 0; --l) {
    const Factors<F> of_tangent = {of_tangents[now], nullptr, stride};
    const Factors<F> of_value = {of_values[now], nullptr, stride};
    if (partial != nullptr) {
      weight_product<F>(p, l, block, of_tangent, tangents[l], partial, prefetch);
      if (values) weight_product<F>(p, l, block, of_value, inputs[l], partial, prefetch);
    }
    if (l == 0) break;
    const MlpLayer& below = p.layers[l - 1];
    stride = column_pad(below.n_out);
    now ^= 1;
    T* grad_bias = partial != nullptr && below.bias != nullptr ? partial + below.grad_bias : nullptr;
    if (derivative_reads_sign(p.activation)) {
      const Factors<F> to_tangent = {of_tangents[now], nullptr, stride}, to_value = {of_values[now], nullptr, stride};
      const StoreGradient<F> finish = {p.activation, Rounding::kNone, block.count, below.n_out,
                                       inputs[l],    to_tangent,      nullptr};
      backward_product<F>(p, l, block, of_tangent, finish, prefetch);
      const StoreGradient<F> finish_values = {p.activation, Rounding::kNone, block.count, below.n_out,
                                              inputs[l],    to_value,        grad_bias};
      if (values) backward_product<F>(p, l, block, of_value, finish_values, prefetch);
      continue;
    }
    backward_product<F>(p, l, block, of_tangent, Store{of_tangents[now], stride}, prefetch);
    if (values) backward_product<F>(p, l, block, of_value, Store{of_values[now], stride}, prefetch);
    with_activation(p.activation, SecondPass<T>{block,
                                                below.n_out,
                                                hidden_source<T>(p, l - 1, inputs),
                                                {at<const T>(p.scratch, below.tangent_source), stride},
                                                {of_tangents[now], stride},
                                                {values ? of_values[now] : nullptr, stride},
                                                {of_tangents[now], stride},
                                                {of_values[now], stride},
                                                grad_bias});
    values = true;
  }
  if (p.grad_x == nullptr) return;
  const int64_t n_in = p.layers[0].n_in;
  T* grad_x = static_cast<T*>(p.grad_x) + block.first * n_in;
  if (!values) {
    std::memset(grad_x, 0, block.count * n_in * sizeof(T));
    return;
  }
  const bool direct = fits_tiles<F>(n_in, block);
  T* sums = direct ? grad_x : of_values[now ^ 1];
  const int64_t sums_stride = direct ? n_in : column_pad(n_in);
  backward_product<F>(p, 0, block, Factors<F>{of_values[now], nullptr, stride}, Store{sums, sums_stride}, prefetch);
  if (!direct) export_rows<F>(sums, sums_stride, n_in, block, grad_x);
}

// Work units: partial sums, as of mlp_backward. One thread takes a block forward with its tangents, then back with the
// gradients of both; writes grad_grad_y [n_rows, n_out] and grad_x [n_rows, n_in] block by block. The gradient of a
// weight joins the partial sum in two products, that of tangents first.
static void mlp_second_range(const MlpParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::kFloat64) return run_partials<double>(p, begin, end, &mlp_second_block<double>);
  run_partials<float>(p, begin, end, &mlp_second_block<float>);
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
