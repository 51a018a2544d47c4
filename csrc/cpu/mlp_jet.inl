// The multilayer perceptron along directions on the CPU: values, first and second derivatives in one pass, and the
// gradients of a loss that holds any of them.
//
// An input that moves as x(s) has x' and x'' at s = 0; a layer z = W a + b takes its inputs' to
//
//     z' = W a'      z'' = W a''      f(z)' = f'(z) z'      f(z)'' = f''(z) z'^2 + f'(z) z''
//
// and a loss pulls the gradients (g, g', g'') of these three back to
//
//     of z'': f' g''      of z': f' g' + 2 f'' z' g''      of z: f' g + f'' (z' g' + z'' g'') + f''' z'^2 g''
//
// summed over directions where they meet in z. All of this is linear in the second derivatives, so that sums of them
// over directions are carried in their place where only sums are wanted (Li et al. 2024, "forward Laplacian"); z'^2 is
// then such a sum. One thread takes a block of points through all layers: their slabs lie below each other, so that a
// layer is one product of all of them with the same weights, and an activation one pass over the block. A block's
// matrices stay in L2. Parameter gradients are summed over the points of a block in the order of slabs, over the blocks
// of a partial sum, over partial sums; each order follows from the problem alone.
#include "core/mlp_jet_params.h"

namespace hashgrid {
namespace HASHGRID_ISA {

// ---- activations -------------------------------------------------------------------------------------------------

// The output of an activation; `companion` receives what activation_derivatives() needs besides.
template <Activation kActivation>
HASHGRID_INLINE VecF activate_with_companion(VecF z, VecF* companion) {
  switch (kActivation) {
    case Activation::kSiLU:
      *companion = vector_sigmoid(z);
      return z * *companion;
    case Activation::kSoftplus:
      *companion = vector_sigmoid(z);
      return vector_softplus(z);
    case Activation::kSine:
      *companion = vector_sine(z, 1);
      return vector_sine(z, 0);
    default:
      return activate_vector<kActivation>(z);
  }
}

template <Activation kActivation>
HASHGRID_INLINE VecDouble activate_with_companion(VecDouble z, VecDouble* companion) {
  if (has_companion(kActivation)) {
    for (int i = 0; i < Lane<double>::kWidth; ++i) {
      (*companion)[i] = kActivation == Activation::kSine ? cosine(double(z[i])) : sigmoid(double(z[i]));
    }
  }
  return activate_vector<kActivation>(z);
}

// Slabs of a block, `stride` from row to row.
template <typename T>
struct Slabs {
  T* data;
  int64_t stride;
  int64_t points;  // rows of a slab

  HASHGRID_INLINE_METHOD T* slab(int64_t i) const { return data + i * points * stride; }
};

// What the second derivatives of a shape sum up, at one place of a block's slabs.
template <typename T>
struct JetSums {
  typedef typename Lane<T>::Vec Vec;
  JetShape shape;
  int64_t slab;  // elements

  // Second derivative m of the squares of first derivatives, which begin at `first`.
  HASHGRID_INLINE_METHOD Vec squares(const T* first, int64_t m) const {
    if (shape.operators == nullptr) {
      const Vec slope = load_vector<Vec>(first + m * slab);
      return slope * slope;
    }
    const T* weights = static_cast<const T*>(shape.operators) + m * shape.n_directions;
    Vec total = {};
    for (int64_t k = 0; k < shape.n_directions; ++k) {
      const Vec slope = load_vector<Vec>(first + k * slab);
      total += weights[k] * slope * slope;
    }
    return total;
  }

  // The gradients of all second derivatives, which begin at `second`, as far as they concern direction k.
  HASHGRID_INLINE_METHOD Vec gradient(const T* second, int64_t k) const {
    if (shape.operators == nullptr) return load_vector<Vec>(second + k * slab);
    const T* weights = static_cast<const T*>(shape.operators) + k;
    Vec total = {};
    for (int64_t m = 0; m < shape.n_seconds; ++m) {
      total += weights[m * shape.n_directions] * load_vector<Vec>(second + m * slab);
    }
    return total;
  }
};

// Pre-activations to outputs; the companion takes the place of their values.
template <typename T>
struct JetPass {
  typedef typename Lane<T>::Vec Vec;
  JetShape shape;
  int64_t columns;
  Slabs<T> sums;
  Slabs<T> out;

  template <class Tag>
  void run(Tag) const {
    constexpr Activation kActivation = Tag::kValue;
    const int64_t slab = sums.points * sums.stride, seconds = (1 + shape.n_directions) * slab;
    const JetSums<T> jets = {shape, slab};
    for (int64_t r = 0; r < sums.points; ++r) {
      for (int64_t c = 0; c < columns; c += Lane<T>::kWidth) {
        T* z = sums.data + r * sums.stride + c;
        T* a = out.data + r * sums.stride + c;
        Vec companion = {};
        const Vec value = activate_with_companion<kActivation>(load_vector<Vec>(z), &companion);
        const Derivatives<Vec> f = activation_derivatives<T>(value, companion, kActivation);
        store_vector(a, value);
        if (has_companion(kActivation)) store_vector(z, companion);
        for (int64_t at = slab; at < seconds; at += slab) store_vector(a + at, f.first * load_vector<Vec>(z + at));
        for (int64_t m = 0; m < shape.n_seconds; ++m) {
          const int64_t at = seconds + m * slab;
          store_vector(a + at, f.second * jets.squares(z + slab, m) + f.first * load_vector<Vec>(z + at));
        }
      }
    }
  }
};

// Gradients of an activation's outputs to those of its pre-activations, in place.
template <typename T>
struct JetGradientPass {
  typedef typename Lane<T>::Vec Vec;
  JetShape shape;
  int64_t columns;
  Slabs<T> sums;     // as JetPass left them
  Slabs<T> outputs;  // values alone are read
  Slabs<T> gradient;

  template <class Tag>
  void run(Tag) const {
    constexpr Activation kActivation = Tag::kValue;
    const int64_t slab = sums.points * sums.stride, seconds = (1 + shape.n_directions) * slab;
    const JetSums<T> jets = {shape, slab};
    for (int64_t r = 0; r < sums.points; ++r) {
      for (int64_t c = 0; c < columns; c += Lane<T>::kWidth) {
        const T* z = sums.data + r * sums.stride + c;
        T* g = gradient.data + r * sums.stride + c;
        const Vec value = load_vector<Vec>(outputs.data + r * sums.stride + c);
        const Derivatives<Vec> f = activation_derivatives<T>(value, load_vector<Vec>(z), kActivation);
        Vec total = f.first * load_vector<Vec>(g);
        for (int64_t k = 0; k < shape.n_directions; ++k) {
          const int64_t at = (1 + k) * slab;
          const Vec turned = f.second * load_vector<Vec>(z + at), of_slope = load_vector<Vec>(g + at);
          total += turned * of_slope;
          store_vector(g + at, f.first * of_slope + T(2) * turned * jets.gradient(g + seconds, k));
        }
        for (int64_t m = 0; m < shape.n_seconds; ++m) {
          const int64_t at = seconds + m * slab;
          const Vec of_bend = load_vector<Vec>(g + at);
          total += (f.third * jets.squares(z + slab, m) + f.second * load_vector<Vec>(z + at)) * of_bend;
          store_vector(g + at, f.first * of_bend);
        }
        store_vector(g, total);
      }
    }
  }
};

// ---- user memory -------------------------------------------------------------------------------------------------

// Rows [points, per_point, columns] of user memory, null for zeros, to `per_point` slabs. Rows beyond the block's
// points repeat the last one, or are zero if `pad_zeros`: so they are finite where the points are, and count for
// nothing where their gradients are zero.
template <typename T>
static void import_slabs(const void* data, int64_t columns, const BlockRows& block, int64_t per_point, int64_t slab,
                         bool pad_zeros, const Slabs<T>& out) {
  for (int64_t k = 0; k < per_point; ++k) {
    T* to = out.slab(slab + k);
    if (data == nullptr || pad_zeros) std::memset(to, 0, out.points * out.stride * sizeof(T));
    if (data == nullptr) continue;
    const T* from = static_cast<const T*>(data) + (block.first * per_point + k) * columns;
    for (int64_t r = 0; r < (pad_zeros ? block.count : out.points); ++r) {
      const int64_t row = r < block.count ? r : block.count - 1;
      std::memcpy(to + r * out.stride, from + row * per_point * columns, columns * sizeof(T));
    }
  }
}

// The inverse; nothing where `data` is null.
template <typename T>
static void export_slabs(const Slabs<T>& in, int64_t slab, int64_t columns, const BlockRows& block, int64_t per_point,
                         void* data) {
  if (data == nullptr) return;
  for (int64_t k = 0; k < per_point; ++k) {
    const T* from = in.slab(slab + k);
    T* to = static_cast<T*>(data) + (block.first * per_point + k) * columns;
    for (int64_t r = 0; r < block.count; ++r) {
      std::memcpy(to + r * per_point * columns, from + r * in.stride, columns * sizeof(T));
    }
  }
}

// ---- blocks ------------------------------------------------------------------------------------------------------

template <typename T>
static Slabs<T> slabs_at(const MlpJetParams& p, int64_t offset, int64_t columns, const BlockRows& block) {
  return {at<T>(p.mlp.scratch, offset), column_pad(columns), block.padded};
}

// All slabs of a block as rows of one matrix.
template <typename T>
static Factors<RealFactors<T>> rows_of(const Slabs<T>& slabs) {
  return {slabs.data, nullptr, slabs.stride};
}

// Pre-activations of a layer: biases enter the values alone.
template <typename T>
static void jet_product(const MlpJetParams& p, int l, const BlockRows& block, const Slabs<T>& in, const Slabs<T>& out,
                        Prefetch* prefetch) {
  typedef RealFactors<T> F;
  typedef StoreSums<typename F::Product> Store;
  const BlockRows values = {0, block.padded, block.padded};
  const int64_t n_rows = (p.shape.n_slabs - 1) * block.padded;
  forward_product<F, true>(p.mlp, l, values, rows_of(in), Store{out.data, out.stride}, prefetch);
  forward_product<F, false>(p.mlp, l, BlockRows{0, n_rows, n_rows}, rows_of(Slabs<T>{in.slab(1), in.stride, 0}),
                            Store{out.slab(1), out.stride}, prefetch);
}

// Runs all layers up to the last one's pre-activations, or its outputs where it has an activation; returns them.
template <typename T>
static Slabs<T> run_jet_layers(const MlpJetParams& p, const BlockRows& block, Prefetch* prefetch) {
  const MlpParams& mlp = p.mlp;
  const int64_t n_in = mlp.layers[0].n_in;
  Slabs<T> in = slabs_at<T>(p, p.input[0], n_in, block);
  import_slabs<T>(mlp.x, n_in, block, 1, 0, false, in);
  import_slabs<T>(p.directions, n_in, block, p.shape.n_directions, 1, false, in);
  import_slabs<T>(p.accelerations, n_in, block, p.shape.n_seconds, 1 + p.shape.n_directions, false, in);
  for (int l = 0; l < mlp.n_layers; ++l) {
    const bool last = l + 1 == mlp.n_layers;
    const int64_t n_out = mlp.layers[l].n_out;
    const Slabs<T> sums = slabs_at<T>(p, p.sums[l], n_out, block);
    jet_product(p, l, block, in, sums, prefetch);
    if (last && mlp.output_activation == Activation::kNone) return sums;
    const Slabs<T> out = slabs_at<T>(p, last ? p.staging[0] : p.input[l + 1], n_out, block);
    with_activation(last ? mlp.output_activation : mlp.activation, JetPass<T>{p.shape, n_out, sums, out});
    in = out;
  }
  return in;
}

template <typename T>
static void mlp_jet_forward_blocks(const MlpJetParams& p, int64_t begin, int64_t end) {
  const int64_t n_out = p.mlp.layers[p.mlp.n_layers - 1].n_out;
  Prefetch none;
  none.range = Prefetch::kRanges;
  for (int64_t b = begin; b < end; ++b) {
    const BlockRows block = block_rows(p.mlp, b);
    const Slabs<T> out = run_jet_layers<T>(p, block, &none);
    export_slabs(out, 0, n_out, block, 1, p.mlp.y);
    export_slabs(out, 1, n_out, block, p.shape.n_directions, p.first);
    export_slabs(out, 1 + p.shape.n_directions, n_out, block, p.shape.n_seconds, p.second);
  }
}

template <typename T>
static void add_bias_gradient(const Slabs<T>& gradient, int64_t columns, T* grad_bias) {
  typedef typename Lane<T>::Vec Vec;
  for (int64_t c = 0; c < columns; c += Lane<T>::kWidth) {
    Vec total = {};
    for (int64_t r = 0; r < gradient.points; ++r) total += load_vector<Vec>(gradient.data + r * gradient.stride + c);
    store_vector(grad_bias + c, load_vector<Vec>(grad_bias + c) + total);
  }
}

// Adds the block's parameter gradients to `partial` unless that is null. Gradients alternate between the two matrices
// of `staging`; the first holds outputs where the last layer has an activation.
template <typename T>
static void mlp_jet_backward_block(const MlpJetParams& p, int64_t b, T* partial) {
  typedef RealFactors<T> F;
  typedef StoreSums<typename F::Product> Store;
  const MlpParams& mlp = p.mlp;
  const int64_t K = p.shape.n_directions, M = p.shape.n_seconds;
  const int last = mlp.n_layers - 1;
  const BlockRows block = block_rows(mlp, b);
  const int64_t n_rows = p.shape.n_slabs * block.padded;
  const BlockRows rows = {0, n_rows, n_rows};
  Prefetch none;
  none.range = Prefetch::kRanges;
  const Slabs<T> outputs = run_jet_layers<T>(p, block, &none);

  const int64_t n_out = mlp.layers[last].n_out;
  int slot = 1;
  Slabs<T> gradient = slabs_at<T>(p, p.staging[slot], n_out, block);
  import_slabs<T>(mlp.grad_y, n_out, block, 1, 0, true, gradient);
  import_slabs<T>(p.grad_first, n_out, block, K, 1, true, gradient);
  import_slabs<T>(p.grad_second, n_out, block, M, 1 + K, true, gradient);
  if (mlp.output_activation != Activation::kNone) {
    const Slabs<T> sums = slabs_at<T>(p, p.sums[last], n_out, block);
    with_activation(mlp.output_activation, JetGradientPass<T>{p.shape, n_out, sums, outputs, gradient});
  }
  for (int l = last; l >= 0; --l) {
    const MlpLayer& layer = mlp.layers[l];
    const Slabs<T> in = slabs_at<T>(p, p.input[l], layer.n_in, block);
    if (partial != nullptr) {
      if (layer.bias != nullptr) add_bias_gradient(gradient, layer.n_out, partial + layer.grad_bias);
      weight_product<F>(mlp, l, rows, rows_of(gradient), rows_of(in), partial, &none);
    }
    if (l == 0 && mlp.grad_x == nullptr && p.grad_directions == nullptr && p.grad_accelerations == nullptr) return;
    slot ^= 1;
    const Slabs<T> below = slabs_at<T>(p, p.staging[slot], layer.n_in, block);
    backward_product<F>(mlp, l, rows, rows_of(gradient), Store{below.data, below.stride}, &none);
    if (l > 0) {
      const Slabs<T> sums = slabs_at<T>(p, p.sums[l - 1], layer.n_in, block);
      with_activation(mlp.activation, JetGradientPass<T>{p.shape, layer.n_in, sums, in, below});
    }
    gradient = below;
  }
  const int64_t n_in = mlp.layers[0].n_in;
  export_slabs(gradient, 0, n_in, block, 1, mlp.grad_x);
  export_slabs(gradient, 1, n_in, block, K, p.grad_directions);
  export_slabs(gradient, 1 + K, n_in, block, M, p.grad_accelerations);
}

template <typename T>
static void mlp_jet_backward_partials(const MlpJetParams& p, int64_t begin, int64_t end) {
  const MlpParams& mlp = p.mlp;
  for (int64_t i = begin; i < end; ++i) {
    T* partial = mlp.partials == nullptr ? nullptr : static_cast<T*>(mlp.partials) + i * mlp.partial_size;
    if (partial != nullptr) std::memset(partial, 0, mlp.partial_size * sizeof(T));
    const int64_t first = i * mlp.n_blocks / mlp.n_partials, last = (i + 1) * mlp.n_blocks / mlp.n_partials;
    for (int64_t b = first; b < last; ++b) mlp_jet_backward_block<T>(p, b, partial);
  }
}

// Work units: blocks of n_block points. One thread takes a block's slabs, [n_slabs, points, padded columns], through
// all layers in a scratch of its own; threads share the packed weights. Writes y [n_rows, n_out], `first` [n_rows, K,
// n_out] and `second` [n_rows, M, n_out].
static void mlp_jet_forward_range(const MlpJetParams& p, int64_t begin, int64_t end) {
  if (p.mlp.dtype == DType::kFloat64) return mlp_jet_forward_blocks<double>(p, begin, end);
  mlp_jet_forward_blocks<float>(p, begin, end);
}

// Work units: partial sums, as of mlp_backward: their blocks in order, each forward again and then back. A weight's
// gradient is a product over the rows of all slabs, in their order; a bias has that of the values alone. Gradients of
// the inputs are written block by block.
static void mlp_jet_backward_range(const MlpJetParams& p, int64_t begin, int64_t end) {
  if (p.mlp.dtype == DType::kFloat64) return mlp_jet_backward_partials<double>(p, begin, end);
  mlp_jet_backward_partials<float>(p, begin, end);
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
