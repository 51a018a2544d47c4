// Multilayer perceptron on the CPU, fused over blocks of rows: a block's activations and gradients stay in the cache
// while it passes through all layers. The backward runs the forward again, block by block, rather than reading
// activations from memory.
#include "core/mlp_params.h"

namespace hashgrid {
namespace HASHGRID_ISA {

// ---- layers ------------------------------------------------------------------------------------------------------

// Columns of a layer's inputs that gradients go back to: what is known of rays has none.
static inline int64_t columns_with_gradient(const MlpParams& p, int layer) {
  return layer > 0 && layer == p.n_density_layers ? p.layers[layer - 1].n_out : p.layers[layer].n_in;
}

// A layer's sums from the factors of its inputs; `finish` takes them tile by tile.
template <class F, bool kBias = true, class Finish>
static void forward_product(const MlpParams& p, int layer, const BlockRows& block, const Factors<F>& in, Finish finish,
                            Prefetch* prefetch) {
  typedef typename F::Product Product;
  typedef typename Product::Element Element;
  const MlpLayer& l = p.layers[layer];
  const int64_t depth = (l.n_in + F::kPack - 1) / F::kPack;
  const Columns<Element> weight = {at<const Element>(p.packed, l.packed_weight), depth * kTileVectors * Product::kWidth,
                                   0};
  // Without biases these are zeros; sums begin with them, so that the order of additions is the same.
  multiply<Product, kBias>(block.padded, l.n_out, depth, broadcast_rows(in), weight,
                           at<const typename F::Real>(p.packed, l.packed_bias), finish, prefetch);
}

// The gradient of its inputs from that of its sums.
template <class F, class Finish>
static void backward_product(const MlpParams& p, int layer, const BlockRows& block, const Factors<F>& gradient,
                             Finish finish, Prefetch* prefetch) {
  typedef typename F::Product Product;
  typedef typename Product::Element Element;
  const MlpLayer& l = p.layers[layer];
  const int64_t depth = (l.n_out + F::kPack - 1) / F::kPack;
  const Columns<Element> weight = {at<const Element>(p.packed, l.packed_transposed),
                                   depth * kTileVectors * Product::kWidth, 0};
  multiply<Product, false>(block.padded, columns_with_gradient(p, layer), depth, broadcast_rows(gradient), weight,
                           nullptr, finish, prefetch);
}

// The gradient of its weight over the block's rows, added to `partial`.
template <class F>
static void weight_product(const MlpParams& p, int layer, const BlockRows& block, const Factors<F>& gradient,
                           const Factors<F>& in, typename F::Real* partial, Prefetch* prefetch) {
  typedef typename F::Product Product;
  typedef typename Product::Element Element;
  const MlpLayer& l = p.layers[layer];
  const Element* a = F::kPack == 1 ? reinterpret_cast<const Element*>(gradient.rows)
                                   : reinterpret_cast<const Element*>(gradient.pairs);
  const Element* b =
      F::kPack == 1 ? reinterpret_cast<const Element*>(in.rows) : reinterpret_cast<const Element*>(in.pairs);
  multiply<Product, false>(round_up(l.n_out, kTileRows), l.n_in, (block.count + F::kPack - 1) / F::kPack,
                           Broadcast<Element>{a, 1, gradient.stride},
                           Columns<Element>{b, kTileVectors * Product::kWidth, in.stride}, nullptr,
                           AddSums<Product>{partial + l.grad_weight, column_pad(l.n_in)}, prefetch);
}

// Factors of layer 0 from user memory [n_rows, n_in]; `rows` and `pairs` are where to put what cannot stay there.
template <class F>
static Factors<F> block_inputs(const MlpParams& p, const void* x, const BlockRows& block, int64_t rows, int64_t pairs) {
  typedef typename F::Real Real;
  const int64_t n_in = p.layers[0].n_in;
  const Real* first = static_cast<const Real*>(x) + block.first * n_in;
  if constexpr (F::kInPlace) {
    if (p.factors == MlpFactors::kReal && fits_tiles<F>(n_in, block)) return {const_cast<Real*>(first), nullptr, n_in};
  }
  const Factors<F> in = {at<typename F::Stored>(p.scratch, rows), at<typename F::Pair>(p.scratch, pairs),
                         column_pad(n_in)};
  import_factors<F>(value_rounding(p.factors), first, n_in, block, in);
  return in;
}

// ---- density and colour ------------------------------------------------------------------------------------------

// Where the density network ends: its sums, in `rows`, to densities, and beside what is known of their rays to factors
// of the colour network.
template <class F>
static void join_networks(const MlpParams& p, const BlockRows& block, typename F::Real* rows, int64_t stride,
                          const Factors<F>& out) {
  typedef typename F::Real Real;
  typedef typename F::Vec Vec;
  const int64_t n_geometry = p.layers[p.n_density_layers - 1].n_out, n_columns = p.layers[p.n_density_layers].n_in;
  // Features of a row's ray go beside its geometry, unrounded.
  Real* log_sigmas = at<Real>(p.scratch, p.log_sigmas);
  for (int64_t r = 0; r < block.count; ++r) {
    const Real* features = static_cast<const Real*>(p.ray_features) + p.rays[block.first + r] * p.n_ray_features;
    std::memcpy(rows + r * stride + n_geometry, features, p.n_ray_features * sizeof(Real));
    log_sigmas[r] = rows[r * stride];
  }
  if (p.sigmas != nullptr) {
    Real* sigmas = static_cast<Real*>(p.sigmas) + block.first;
    for (int64_t r = 0; r < block.count; r += F::kWidth) {
      const Vec sigma = activate_vector<Activation::kExp>(load_vector<Vec>(log_sigmas + r));
      std::memcpy(sigmas + r, &sigma, (block.count - r < F::kWidth ? block.count - r : F::kWidth) * sizeof(Real));
    }
  }
  for (int64_t r = 0; r < block.padded; r += 2) {
    for (int64_t c = 0; c < n_columns; c += F::kWidth) {
      const Real* pair = rows + r * stride + c;
      put_rows<F>(value_rounding(p.factors), out, r, c, block.count,
                  mask_columns<F>(load_vector<Vec>(pair), c, n_columns),
                  mask_columns<F>(load_vector<Vec>(pair + stride), c, n_columns));
    }
  }
}

// Adds what the gradient of the densities gives the density network's first output.
template <class F>
static void add_density_gradient(const MlpParams& p, const BlockRows& block, typename F::Real* sums, int64_t stride) {
  typedef typename F::Real Real;
  const Real* grad_sigmas = static_cast<const Real*>(p.grad_sigmas) + block.first;
  const Real* log_sigmas = at<const Real>(p.scratch, p.log_sigmas);
  for (int64_t r = 0; r < block.count; r += F::kWidth) {
    const auto sigma = activate_vector<Activation::kExp>(load_vector<typename F::Vec>(log_sigmas + r));
    const auto derivative = derivative_vector<Activation::kExp>(sigma);
    for (int64_t i = 0; i < F::kWidth && r + i < block.count; ++i) {
      sums[(r + i) * stride] += grad_sigmas[r + i] * derivative[i];
    }
  }
}

// ---- blocks ------------------------------------------------------------------------------------------------------

// Runs the hidden layers; inputs[l] are the factors of layer l. Activations that cost a comparison are part of the
// product, which still has the sums in registers; the others run as a pass over the block, in the L1 or L2 cache.
template <class F>
static void run_hidden_layers(const MlpParams& p, const BlockRows& block, Factors<F>* inputs, Prefetch* prefetch) {
  typedef typename F::Real Real;
  const Rounding rounding = value_rounding(p.factors);
  inputs[0] = block_inputs<F>(p, p.x, block, p.layers[0].input, p.layers[0].input_pairs);
  for (int l = 0; l + 1 < p.n_layers; ++l) {
    const MlpLayer& layer = p.layers[l];
    const MlpLayer& next = p.layers[l + 1];
    const int64_t stride = column_pad(layer.n_out);
    inputs[l + 1] = {at<typename F::Stored>(p.scratch, next.input), at<typename F::Pair>(p.scratch, next.input_pairs),
                     stride};
    if (l + 1 == p.n_density_layers) {
      inputs[l + 1].stride = column_pad(next.n_in);
      Real* sums = at<Real>(p.scratch, p.staging[0]);
      const StoreSums<typename F::Product> finish = {sums, inputs[l + 1].stride};
      forward_product<F>(p, l, block, inputs[l], finish, prefetch);
      join_networks<F>(p, block, sums, inputs[l + 1].stride, inputs[l + 1]);
      continue;
    }
    if (derivative_reads_sign(p.activation)) {
      const StoreActivated<F> finish = {p.activation, rounding, block.count, layer.n_out, inputs[l + 1]};
      forward_product<F>(p, l, block, inputs[l], finish, prefetch);
      continue;
    }
    Real* source = at<Real>(p.scratch, layer.source);
    Real* z = source;
    if (z == nullptr) z = F::kInPlace ? reinterpret_cast<Real*>(inputs[l + 1].rows) : at<Real>(p.scratch, p.staging[0]);
    forward_product<F>(p, l, block, inputs[l], StoreSums<typename F::Product>{z, stride}, prefetch);
    Real* kept = source != nullptr && !derivative_reads_input(p.activation) ? source : nullptr;
    with_activation(p.activation, ActivatePass<F>{rounding, block, z, stride, layer.n_out, inputs[l + 1], kept});
  }
}

// Rows of block `block`; the last one may have fewer, and is padded.
static inline BlockRows block_rows(const MlpParams& p, int64_t block) {
  BlockRows rows;
  rows.first = block * p.n_block;
  rows.count = p.n_rows - rows.first < p.n_block ? p.n_rows - rows.first : p.n_block;
  rows.padded = round_up(rows.count, kMlpRowPad);
  return rows;
}

// What block b reads and writes of user memory, for the products of the block before it to ask for.
template <class F>
static void prefetch_inputs(const MlpParams& p, int64_t b, Prefetch* prefetch) {
  typedef typename F::Real Real;
  if (b >= p.n_blocks) {
    prefetch->range = Prefetch::kRanges;
    return;
  }
  const BlockRows block = block_rows(p, b);
  const int64_t n_in = p.layers[0].n_in, n_out = p.layers[p.n_layers - 1].n_out;
  const int64_t rows = block.count * static_cast<int64_t>(sizeof(Real));
  prefetch->add(0, static_cast<const Real*>(p.x) + block.first * n_in, rows * n_in);
  if (p.grad_y != nullptr) prefetch->add(1, static_cast<const Real*>(p.grad_y) + block.first * n_out, rows * n_out);
  if (p.grad_x != nullptr) prefetch->add(2, static_cast<const Real*>(p.grad_x) + block.first * n_in, rows * n_in);
}

// The last layer of a block, to y directly where it holds whole tiles.
template <class F>
static void write_outputs(const MlpParams& p, const BlockRows& block, const Factors<F>* inputs, Prefetch* prefetch) {
  typedef typename F::Real Real;
  const int last = p.n_layers - 1;
  const int64_t n_out = p.layers[last].n_out;
  Real* y = static_cast<Real*>(p.y) + block.first * n_out;
  const bool direct = fits_tiles<F>(n_out, block);
  Real* sums = direct ? y : at<Real>(p.scratch, p.staging[0]);
  const int64_t stride = direct ? n_out : column_pad(n_out);
  forward_product<F>(p, last, block, inputs[last], StoreSums<typename F::Product>{sums, stride}, prefetch);
  if (p.output_activation != Activation::kNone) {
    with_activation(p.output_activation, OutputPass<F>{sums, block.count, stride, n_out});
  }
  if (!direct) export_rows<F>(sums, stride, n_out, block, y);
}

// Blocks [begin, end): hidden layers, then the last one.
template <class F>
static void mlp_forward_blocks(const MlpParams& p, int64_t begin, int64_t end) {
  Factors<F> inputs[kMaxMlpLayers];
  for (int64_t b = begin; b < end; ++b) {
    const BlockRows block = block_rows(p, b);
    Prefetch next;  // a few lines per tile of this block's products
    prefetch_inputs<F>(p, b + 1, &next);
    Prefetch* prefetch = &next;
    run_hidden_layers<F>(p, block, inputs, prefetch);
    write_outputs<F>(p, block, inputs, prefetch);
  }
}

// Adds the block's parameter gradients to `partial` unless that is null. Gradients alternate between two matrices; in
// place, where sums and factors have the same form, these are the two of `staging`.
template <class F>
static void mlp_backward_block(const MlpParams& p, int64_t b, typename F::Real* partial) {
  typedef typename F::Real Real;
  Factors<F> inputs[kMaxMlpLayers];
  const BlockRows block = block_rows(p, b);
  Prefetch next_block;
  prefetch_inputs<F>(p, b + 1, &next_block);
  Prefetch* prefetch = &next_block;
  run_hidden_layers<F>(p, block, inputs, prefetch);
  if (p.y != nullptr) write_outputs<F>(p, block, inputs, prefetch);

  // From grad_y to the gradient of the last layer's sums.
  const Rounding rounding = gradient_rounding(p.factors);
  const int last = p.n_layers - 1;
  const MlpLayer& out = p.layers[last];
  const Real* grad_y = static_cast<const Real*>(p.grad_y) + block.first * out.n_out;
  int64_t stride = column_pad(out.n_out);
  Real* staging = at<Real>(p.scratch, p.staging[0]);
  Real* other = at<Real>(p.scratch, p.staging[1]);
  int slot = 0;
  Factors<F> gradient = {at<typename F::Stored>(p.scratch, p.gradient[slot]),
                         at<typename F::Pair>(p.scratch, p.gradient_pairs[slot]), stride};
  if constexpr (F::kInPlace) gradient.rows = staging;
  DerivativeFrom from = DerivativeFrom::kNowhere;
  if (p.output_activation != Activation::kNone) {
    from = DerivativeFrom::kPreActivation;
    forward_product<F>(p, last, block, inputs[last], StoreSums<typename F::Product>{other, stride}, prefetch);
  }
  with_activation(p.output_activation,
                  GradientPass<F>{rounding, block, grad_y, 0, out.n_out, from, other, stride, inputs[last], gradient,
                                  partial != nullptr && out.bias != nullptr ? partial + out.grad_bias : nullptr});
  for (int l = last; l >= 0; --l) {
    const MlpLayer& layer = p.layers[l];
    if (partial != nullptr) weight_product<F>(p, l, block, gradient, inputs[l], partial, prefetch);
    if (l == 0) break;
    // Back through the weight, then through the activation below or, between two networks, to the density.
    stride = column_pad(layer.n_in);
    const MlpLayer& below = p.layers[l - 1];
    Real* grad_bias = partial != nullptr && below.bias != nullptr ? partial + below.grad_bias : nullptr;
    Factors<F> next = {F::kInPlace ? reinterpret_cast<typename F::Stored*>(other) : nullptr, nullptr, stride};
    if constexpr (!F::kInPlace) {
      slot ^= 1;
      next = {at<typename F::Stored>(p.scratch, p.gradient[slot]),
              at<typename F::Pair>(p.scratch, p.gradient_pairs[slot]), stride};
    }
    if (l == p.n_density_layers) {
      Real* sums = F::kInPlace ? other : staging;
      backward_product<F>(p, l, block, gradient, StoreSums<typename F::Product>{sums, stride}, prefetch);
      add_density_gradient<F>(p, block, sums, stride);
      with_activation(Activation::kNone,
                      GradientPass<F>{rounding, block, sums, stride, below.n_out, DerivativeFrom::kNowhere, nullptr,
                                      stride, inputs[l], next, grad_bias});
    } else if (derivative_reads_sign(p.activation)) {
      const StoreGradient<F> finish = {p.activation, rounding, block.count, below.n_out, inputs[l], next, grad_bias};
      backward_product<F>(p, l, block, gradient, finish, prefetch);
    } else {
      Real* sums = F::kInPlace ? other : staging;
      backward_product<F>(p, l, block, gradient, StoreSums<typename F::Product>{sums, stride}, prefetch);
      const Real* source = at<const Real>(p.scratch, below.source);
      from = source == nullptr ? DerivativeFrom::kFactors : DerivativeFrom::kSource;
      with_activation(p.activation, GradientPass<F>{rounding, block, sums, stride, below.n_out, from, source, stride,
                                                    inputs[l], next, grad_bias});
    }
    gradient = next;
    Real* swapped = staging;
    staging = other;
    other = swapped;
  }
  // The last product, to grad_x directly where it holds whole tiles.
  if (p.grad_x == nullptr) return;
  const int64_t n_in = p.layers[0].n_in;
  Real* grad_x = static_cast<Real*>(p.grad_x) + block.first * n_in;
  const bool direct = fits_tiles<F>(n_in, block);
  Real* sums = direct ? grad_x : (F::kInPlace ? other : staging);
  stride = direct ? n_in : column_pad(n_in);
  backward_product<F>(p, 0, block, gradient, StoreSums<typename F::Product>{sums, stride}, prefetch);
  if (!direct) export_rows<F>(sums, stride, n_in, block, grad_x);
}

// Runs `run_block`(p, block, partial) over the blocks of each partial sum.
template <typename Real>
static void run_partials(const MlpParams& p, int64_t begin, int64_t end,
                         void (*run_block)(const MlpParams&, int64_t, Real*)) {
  for (int64_t i = begin; i < end; ++i) {
    Real* partial = p.partials == nullptr ? nullptr : static_cast<Real*>(p.partials) + i * p.partial_size;
    if (partial != nullptr) std::memset(partial, 0, p.partial_size * sizeof(Real));
    const int64_t first = i * p.n_blocks / p.n_partials, last = (i + 1) * p.n_blocks / p.n_partials;
    for (int64_t b = first; b < last; ++b) run_block(p, b, partial);
  }
}

// ---- weights -----------------------------------------------------------------------------------------------------

// b(depth, column) = data[depth * depth_stride + column * column_stride] to panels.
template <class F>
static void pack_columns(const MlpParams& p, const typename F::Real* data, int64_t depth, int64_t columns,
                         int64_t depth_stride, int64_t column_stride, void* packed) {
  typedef typename F::Real Real;
  typedef typename F::Vec Vec;
  constexpr int64_t kPanel = kTileVectors * F::kWidth;
  typename F::Product::Element* out = static_cast<typename F::Product::Element*>(packed);
  for (int64_t panel = 0; panel < columns; panel += kPanel) {
    // The last panel is as narrow as whole vectors allow.
    const int64_t width = round_up(columns - panel < kPanel ? columns - panel : kPanel, F::kWidth);
    for (int64_t d = 0; d < depth; d += F::kPack) {
      for (int64_t c = panel; c < panel + width; c += F::kWidth) {
        Real values[F::kPack][F::kWidth];
        for (int k = 0; k < F::kPack; ++k) {
          for (int i = 0; i < F::kWidth; ++i) {
            const bool inside = d + k < depth && c + i < columns;
            values[k][i] = inside ? data[(d + k) * depth_stride + (c + i) * column_stride] : Real(0);
          }
        }
        typename F::Stored rows[F::kPack * F::kWidth];
        if constexpr (F::kPack == 1) {
          store_vector(rows, round_factor(load_vector<Vec>(values[0]), value_rounding(p.factors)));
          std::memcpy(out, rows, sizeof(rows));
        } else {
          F::put(Rounding::kNone, rows, out, F::kWidth, load_vector<Vec>(values[0]), load_vector<Vec>(values[1]));
        }
        out += F::kWidth;
      }
    }
  }
}

// Layers [begin, end).
template <class F>
static void mlp_pack_layers(const MlpParams& p, int64_t begin, int64_t end) {
  typedef typename F::Real Real;
  for (int64_t i = begin; i < end; ++i) {
    const MlpLayer& l = p.layers[i];
    const Real* weight = static_cast<const Real*>(l.weight);
    if (l.packed_weight >= 0) {
      pack_columns<F>(p, weight, l.n_in, l.n_out, 1, l.n_in, at<void>(p.packed, l.packed_weight));
    }
    if (l.packed_transposed >= 0) {
      pack_columns<F>(p, weight, l.n_out, columns_with_gradient(p, static_cast<int>(i)), l.n_in, 1,
                      at<void>(p.packed, l.packed_transposed));
    }
    Real* bias = at<Real>(p.packed, l.packed_bias);
    std::memset(bias, 0, column_pad(l.n_out) * sizeof(Real));
    if (l.bias != nullptr) std::memcpy(bias, l.bias, l.n_out * sizeof(Real));
  }
}

// Adds the partial sums in order, which fixes the bits. Units: output rows of all layers.
template <typename T>
static void mlp_reduce_rows(const MlpParams& p, int64_t begin, int64_t end) {
  int64_t weights = 0, n_weights = 0, rows = 0;
  for (int l = 0; l < p.n_layers; ++l) n_weights += int64_t{p.layers[l].n_in} * p.layers[l].n_out;
  T* grad = static_cast<T*>(p.grad_params);
  for (int i = 0, biases = 0; i < p.n_layers; ++i) {
    const MlpLayer& l = p.layers[i];
    for (int64_t o = begin > rows ? begin - rows : 0; o < l.n_out && rows + o < end; ++o) {
      const T* row = static_cast<const T*>(p.partials) + l.grad_weight + o * column_pad(l.n_in);
      T* out = grad + weights + o * l.n_in;
      std::memset(out, 0, l.n_in * sizeof(T));
      for (int64_t k = 0; k < p.n_partials; ++k, row += p.partial_size) {
        for (int64_t c = 0; c < l.n_in; ++c) out[c] += row[c];
      }
      if (l.bias != nullptr) {
        T total = 0;
        const T* partial = static_cast<const T*>(p.partials) + l.grad_bias + o;
        for (int64_t k = 0; k < p.n_partials; ++k) total += partial[k * p.partial_size];
        grad[n_weights + biases + o] = total;
      }
    }
    weights += int64_t{l.n_in} * l.n_out;
    biases += l.bias != nullptr ? l.n_out : 0;
    rows += l.n_out;
  }
}

// ---- range kernels -----------------------------------------------------------------------------------------------

// Work units: layers. Lays a weight [n_out, n_in] out as the products read it: panels of kTileVectors vectors of
// columns, each [depth, columns of the panel], for the forward product and transposed for the one that pulls gradients
// back; biases are padded with zeros. Factors are rounded here, once per call.
static void mlp_pack_range(const MlpParams& p, int64_t begin, int64_t end) {
#if defined(HASHGRID_HAS_AVX512_BF16)
  if (p.halves) return mlp_pack_layers<BFloat16Factors>(p, begin, end);
#endif
  if (p.dtype == DType::kFloat64) return mlp_pack_layers<RealFactors<double>>(p, begin, end);
  mlp_pack_layers<RealFactors<float>>(p, begin, end);
}

// Work units: blocks of n_block rows. One thread takes a block through all layers, in a scratch of its own; threads
// share the packed weights. Sums are tiles in registers, each over a layer's inputs in order, in fp32 or fp64. x and y
// are [n_rows, columns], read and written in place where they hold whole vectors.
static void mlp_forward_range(const MlpParams& p, int64_t begin, int64_t end) {
#if defined(HASHGRID_HAS_AVX512_BF16)
  if (p.halves) return mlp_forward_blocks<BFloat16Factors>(p, begin, end);
#endif
  if (p.dtype == DType::kFloat64) return mlp_forward_blocks<RealFactors<double>>(p, begin, end);
  mlp_forward_blocks<RealFactors<float>>(p, begin, end);
}

// Work units: partial sums. One thread takes the blocks of a partial sum in order: forward again, then from the last
// layer to the first, where a weight's gradient is a product over the block's rows that joins the partial sum. Which
// blocks a partial sum has follows from the problem, so that the bits do not depend on the number of threads. grad_x
// [n_rows, n_in] is written block by block.
static void mlp_backward_range(const MlpParams& p, int64_t begin, int64_t end) {
#if defined(HASHGRID_HAS_AVX512_BF16)
  if (p.halves) return run_partials<float>(p, begin, end, &mlp_backward_block<BFloat16Factors>);
#endif
  if (p.dtype == DType::kFloat64) return run_partials<double>(p, begin, end, &mlp_backward_block<RealFactors<double>>);
  run_partials<float>(p, begin, end, &mlp_backward_block<RealFactors<float>>);
}

// Work units: output rows of all layers, one below the other. A row of a weight's gradient is the sum of its rows in
// the partial sums [n_partials, partial_size], in order, which drops their padding; its bias likewise.
static void mlp_reduce_range(const MlpParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::kFloat64) return mlp_reduce_rows<double>(p, begin, end);
  mlp_reduce_rows<float>(p, begin, end);
}

// Whether mlp_* take MlpParams::halves.
#if defined(HASHGRID_HAS_AVX512_BF16)
constexpr bool kHasBFloat16Products = true;
#else
constexpr bool kHasBFloat16Products = false;
#endif

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
