// Matrices of a block of rows: how factors are kept, passes over them, and what becomes of the sums of a product.
#include "core/mlp_params.h"

namespace hashgrid {
namespace HASHGRID_ISA {

// ---- activations of vectors --------------------------------------------------------------------------------------

// The vector form of core/activation.h; its exp, tanh and the like are those of cpu/vector_math.h.
template <Activation kActivation>
HASHGRID_INLINE VecF activate_vector(VecF z) {
  switch (kActivation) {
    case Activation::kReLU:
      return maximum(VecF{}, z);
    case Activation::kLeakyReLU:
      return z < 0.0f ? z * static_cast<float>(kLeakySlope) : z;
    case Activation::kSiLU:
      return z * vector_sigmoid(z);
    case Activation::kSoftplus:
      return vector_softplus(z);
    case Activation::kSigmoid:
      return vector_sigmoid(z);
    case Activation::kTanh:
      return vector_tanh(z);
    case Activation::kExp:
      return vector_exp(z);
    case Activation::kSine:
      return vector_sine(z, 0);
    default:
      return z;
  }
}

// Derivatives, from the input or the output: derivative_reads_input() says which.
template <Activation kActivation>
HASHGRID_INLINE VecF derivative_vector(VecF source) {
  switch (kActivation) {
    case Activation::kReLU:
      return source <= 0.0f ? VecF{} : splat(1.0f);
    case Activation::kLeakyReLU:
      return source > 0.0f ? splat(1.0f) : splat(static_cast<float>(kLeakySlope));
    case Activation::kSiLU: {
      const VecF s = vector_sigmoid(source);
      return s * (1.0f + source * (1.0f - s));
    }
    case Activation::kSoftplus:
      return vector_sigmoid(source);
    case Activation::kSigmoid:
      return source * (1.0f - source);
    case Activation::kTanh:
      return 1.0f - source * source;
    case Activation::kExp:
      return clamp(source, 3.05902321e-7f, 3269017.37f);  // exp(-15), exp(15)
    case Activation::kSine:
      return vector_sine(source, 1);
    default:
      return splat(1.0f);
  }
}

// fp64 is there to be exact: lane by lane, by the scalar functions.
typedef typename Lane<double>::Vec VecDouble;

template <Activation kActivation>
HASHGRID_INLINE VecDouble activate_vector(VecDouble z) {
  for (int i = 0; i < Lane<double>::kWidth; ++i) z[i] = activate<double>(z[i], kActivation);
  return z;
}

template <Activation kActivation>
HASHGRID_INLINE VecDouble derivative_vector(VecDouble source) {
  for (int i = 0; i < Lane<double>::kWidth; ++i) source[i] = activation_derivative<double>(source[i], kActivation);
  return source;
}

// ---- how a block's factors are kept ------------------------------------------------------------------------------

// Factors are fp32 or fp64 values.
template <typename T>
struct RealFactors {
  typedef T Real;
  typedef RealProduct<T> Product;
  typedef typename Lane<T>::Vec Vec;
  typedef T Stored;
  typedef T Pair;                  // unused
  static constexpr int kPack = 1;  // stored values per element of a product
  static constexpr int kWidth = Lane<T>::kWidth;
  static constexpr bool kInPlace = true;  // sums and factors have the same form

  // Two neighbouring rows. `stride`: between rows, in stored values.
  HASHGRID_INLINE void put(Rounding rounding, Stored* rows, Pair*, int64_t stride, Vec a, Vec b) {
    store_vector(rows, round_factor(a, rounding));
    store_vector(rows + stride, round_factor(b, rounding));
  }
  HASHGRID_INLINE Vec get(const Stored* rows) { return load_vector<Vec>(rows); }

  // As `put`, with zeros where the ReLU outputs `y` of the same two rows are zero.
  HASHGRID_INLINE void put_masked(Rounding rounding, Stored* rows, Pair* pairs, int64_t stride, Vec a, Vec b,
                                  const Stored* y, int64_t y_stride) {
    put(rounding, rows, pairs, stride, get(y) <= 0 ? Vec{} : a, get(y + y_stride) <= 0 ? Vec{} : b);
  }
};

#if defined(HASHGRID_HAS_AVX512_BF16)
// Factors are bfloat16, in rows and, for the weight gradient, with two rows interleaved.
struct BFloat16Factors {
  typedef float Real;
  typedef BFloat16Product Product;
  typedef VecF Vec;
  typedef uint16_t Stored;
  typedef uint32_t Pair;
  static constexpr int kPack = 2;
  static constexpr int kWidth = kLanes;
  static constexpr bool kInPlace = false;

  // Two rows of floats as one vector of bfloat16, nearest, ties to even.
  HASHGRID_INLINE __m512i round_rows(Vec a, Vec b) {
    return reinterpret_cast<__m512i>(
        (VecU)_mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(a)));
  }
  // Such a vector to its two rows and, where it is asked for, to the interleaved copy.
  HASHGRID_INLINE void put_bits(Stored* rows, Pair* pairs, int64_t stride, __m512i bits) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(rows), _mm512_castsi512_si256(bits));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(rows + stride), _mm512_extracti64x4_epi64(bits, 1));
    // The low halves of the lanes are the first row, the high halves the second.
    if (pairs != nullptr) {
      const __m512i interleave = reinterpret_cast<__m512i>(
          VecU{0x100000, 0x110001, 0x120002, 0x130003, 0x140004, 0x150005, 0x160006, 0x170007, 0x180008, 0x190009,
               0x1a000a, 0x1b000b, 0x1c000c, 0x1d000d, 0x1e000e, 0x1f000f});
      store_vector(pairs, _mm512_permutexvar_epi16(interleave, bits));
    }
  }
  HASHGRID_INLINE void put(Rounding, Stored* rows, Pair* pairs, int64_t stride, Vec a, Vec b) {
    put_bits(rows, pairs, stride, round_rows(a, b));
  }
  HASHGRID_INLINE void put_masked(Rounding, Stored* rows, Pair* pairs, int64_t stride, Vec a, Vec b, const Stored* y,
                                  int64_t y_stride) {
    const __m512i both =
        _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(y))),
                           _mm256_loadu_si256(reinterpret_cast<const __m256i*>(y + y_stride)), 1);
    const __mmask32 positive = _mm512_test_epi16_mask(both, _mm512_set1_epi16(0x7fff));
    put_bits(rows, pairs, stride, _mm512_maskz_mov_epi16(positive, round_rows(a, b)));
  }
  HASHGRID_INLINE Vec get(const Stored* rows) {
    typedef uint16_t VecH __attribute__((vector_size(2 * HASHGRID_LANES)));
    return reinterpret_cast<Vec>(__builtin_convertvector(load_vector<VecH>(rows), VecU) << 16);
  }
};
#endif

static inline int64_t round_up(int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; }
static inline int64_t column_pad(int64_t columns) { return round_up(columns, kMlpColumnPad); }

// A matrix of a workspace; null where there is none, which the offset -1 stands for.
template <typename T>
static inline T* at(void* base, int64_t offset) {
  return offset < 0 ? nullptr : reinterpret_cast<T*>(static_cast<char*>(base) + offset);
}

// A block's matrix of factors [rows, columns].
template <class F>
struct Factors {
  typename F::Stored* rows;
  typename F::Pair* pairs;  // [rows / 2, columns], same stride; null unless needed
  int64_t stride;
};

// Such a matrix as the factor `a` of a product over its columns.
template <class F>
HASHGRID_INLINE Broadcast<typename F::Product::Element> broadcast_rows(const Factors<F>& m) {
  return {reinterpret_cast<const typename F::Product::Element*>(m.rows), m.stride / F::kPack, 1};
}

// A block of rows under way.
struct BlockRows {
  int64_t first;  // in the batch
  int64_t count;
  int64_t padded;  // to kMlpRowPad
};

// Lane i holds i.
template <typename T>
HASHGRID_INLINE typename Lane<T>::Mask lane_numbers() {
  typename Lane<T>::Mask lanes;
  for (int i = 0; i < Lane<T>::kWidth; ++i) lanes[i] = i;
  return lanes;
}

// Zeroes lanes `count` and more.
template <typename T>
HASHGRID_INLINE typename Lane<T>::Vec first_lanes(typename Lane<T>::Vec v, int64_t count) {
  typedef typename Lane<T>::Mask Mask;
  const Mask inside = lane_numbers<T>() < (count < Lane<T>::kWidth ? static_cast<int>(count) : Lane<T>::kWidth);
  return reinterpret_cast<typename Lane<T>::Vec>(reinterpret_cast<Mask>(v) & inside);
}

// Zeroes the lanes of `columns` and more, which would otherwise turn 0 * inf into NaN where depth runs over pairs.
template <class F>
HASHGRID_INLINE typename F::Vec mask_columns(typename F::Vec v, int64_t column, int64_t columns) {
  if (F::kPack == 1 || column + F::kWidth <= columns) return v;
  return first_lanes<typename F::Real>(v, columns - column);
}

// Two rows of vectors to column `c` of rows `r` and `r + 1`.
template <class F>
HASHGRID_INLINE void put_whole_rows(Rounding rounding, const Factors<F>& out, int64_t r, int64_t c, typename F::Vec a,
                                    typename F::Vec b) {
  F::put(rounding, out.rows + r * out.stride + c, out.pairs == nullptr ? nullptr : out.pairs + (r / 2) * out.stride + c,
         out.stride, a, b);
}

// The same; zeros beyond the `count` rows of the block where depth runs over pairs.
template <class F>
HASHGRID_INLINE void put_rows(Rounding rounding, const Factors<F>& out, int64_t r, int64_t c, int64_t count,
                              typename F::Vec a, typename F::Vec b) {
  if (F::kPack == 2 && r + 1 >= count) {
    b = typename F::Vec{};
    if (r >= count) a = typename F::Vec{};
  }
  put_whole_rows<F>(rounding, out, r, c, a, b);
}

// A tile of sums to rows `row` and columns `column` on; what is padding becomes zero where depth runs over pairs.
template <class F, int kVectors>
HASHGRID_INLINE void put_tile(Rounding rounding, const Factors<F>& out, int64_t row, int64_t column, int64_t count,
                              int64_t columns, typename F::Vec (&sum)[kTileRows][kVectors]) {
  const bool whole = row + kTileRows <= count && column + kVectors * F::kWidth <= columns;
#pragma GCC unroll 8
  for (int r = 0; r < kTileRows; r += 2) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const int64_t c = column + v * F::kWidth;
      if (F::kPack == 1 || whole) {
        put_whole_rows<F>(rounding, out, row + r, c, sum[r][v], sum[r + 1][v]);
      } else {
        put_rows<F>(rounding, out, row + r, c, count, mask_columns<F>(sum[r][v], c, columns),
                    mask_columns<F>(sum[r + 1][v], c, columns));
      }
    }
  }
}

// Row `r` of user memory [count, columns], zeros beyond its end. Reads whole vectors, into the next row, wherever the
// block holds them.
template <class F>
HASHGRID_INLINE typename F::Vec load_row(const typename F::Real* data, int64_t columns, int64_t r, int64_t c,
                                         const BlockRows& block) {
  typename F::Vec v = {};
  if (r >= block.count) return v;
  const typename F::Real* row = data + r * columns + c;
  if (c + F::kWidth <= columns) return load_vector<typename F::Vec>(row);
  if (r * columns + c + F::kWidth <= block.count * columns) {
    return first_lanes<typename F::Real>(load_vector<typename F::Vec>(row), columns - c);
  }
  std::memcpy(&v, row, (columns - c) * sizeof(typename F::Real));
  return v;
}

// User memory [count, columns] to factors.
template <class F>
static void import_factors(Rounding rounding, const typename F::Real* data, int64_t columns, const BlockRows& block,
                           const Factors<F>& out) {
  typedef typename F::Vec Vec;
  for (int64_t r = 0; r < block.padded; r += 2) {
    int64_t c = 0;
    if (r + 1 < block.count) {
      const typename F::Real* row = data + r * columns;
      for (; c + F::kWidth <= columns; c += F::kWidth) {
        put_whole_rows<F>(rounding, out, r, c, load_vector<Vec>(row + c), load_vector<Vec>(row + columns + c));
      }
    }
    for (; c < columns; c += F::kWidth) {
      put_rows<F>(rounding, out, r, c, block.count, load_row<F>(data, columns, r, c, block),
                  load_row<F>(data, columns, r + 1, c, block));
    }
  }
}

// A padded matrix to user memory [count, columns], in whole vectors: what runs into the next row is overwritten there.
template <class F>
static void export_rows(const typename F::Real* in, int64_t stride, int64_t columns, const BlockRows& block,
                        typename F::Real* data) {
  for (int64_t r = 0; r < block.count; ++r) {
    for (int64_t c = 0; c < columns; c += F::kWidth) {
      const typename F::Real* from = in + r * stride + c;
      typename F::Real* to = data + r * columns + c;
      if (r * columns + c + F::kWidth <= block.count * columns) {
        store_vector(to, load_vector<typename F::Vec>(from));
      } else {
        std::memcpy(to, from, (columns - c < F::kWidth ? columns - c : F::kWidth) * sizeof(typename F::Real));
      }
    }
  }
}

// Whether the block's rows can be used where they lie in user memory: whole vectors and whole tiles, so that nothing is
// read or written beyond them.
template <class F>
static bool fits_tiles(int64_t columns, const BlockRows& block) {
  return columns % F::kWidth == 0 && block.count == block.padded;
}

// ---- elementwise passes ------------------------------------------------------------------------------------------

// body.run(ActivationTag<activation>()): passes have loops of their own for every activation.
template <Activation kActivation>
struct ActivationTag {
  static constexpr Activation kValue = kActivation;
};

template <class Body>
HASHGRID_INLINE void with_activation(Activation activation, const Body& body) {
  switch (activation) {
    case Activation::kReLU:
      return body.run(ActivationTag<Activation::kReLU>());
    case Activation::kLeakyReLU:
      return body.run(ActivationTag<Activation::kLeakyReLU>());
    case Activation::kSiLU:
      return body.run(ActivationTag<Activation::kSiLU>());
    case Activation::kSoftplus:
      return body.run(ActivationTag<Activation::kSoftplus>());
    case Activation::kSigmoid:
      return body.run(ActivationTag<Activation::kSigmoid>());
    case Activation::kTanh:
      return body.run(ActivationTag<Activation::kTanh>());
    case Activation::kExp:
      return body.run(ActivationTag<Activation::kExp>());
    case Activation::kSine:
      return body.run(ActivationTag<Activation::kSine>());
    default:
      return body.run(ActivationTag<Activation::kNone>());
  }
}

// Pre-activations to the factors of the next layer, and to `kept` (may be `z`) the outputs, if not null.
template <class F>
struct ActivatePass {
  Rounding rounding;
  BlockRows block;
  typename F::Real* z;
  int64_t stride;
  int64_t columns;
  Factors<F> out;
  typename F::Real* kept;

  template <class Tag>
  void run(Tag) const {
    for (int64_t r = 0; r < block.padded; r += 2) {
      for (int64_t c = 0; c < columns; c += F::kWidth) {
        const int64_t i = r * stride + c;
        const auto a = mask_columns<F>(activate_vector<Tag::kValue>(load_vector<typename F::Vec>(z + i)), c, columns);
        const auto b =
            mask_columns<F>(activate_vector<Tag::kValue>(load_vector<typename F::Vec>(z + i + stride)), c, columns);
        if (kept != nullptr) {
          store_vector(kept + i, a);
          store_vector(kept + i + stride, b);
        }
        put_rows<F>(rounding, out, r, c, block.count, a, b);
      }
    }
  }
};

// Pre-activations of the last layer to outputs, in place.
template <class F>
struct OutputPass {
  typename F::Real* z;
  int64_t rows;
  int64_t stride;
  int64_t columns;

  template <class Tag>
  void run(Tag) const {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; c += F::kWidth) {
        typename F::Real* at = z + r * stride + c;
        store_vector(at, activate_vector<Tag::kValue>(load_vector<typename F::Vec>(at)));
      }
    }
  }
};

enum class DerivativeFrom {
  kNowhere,        // there is no activation
  kPreActivation,  // of the last layer: pre-activations, whatever the derivative reads
  kSource,         // MlpLayer::source
  kFactors,        // factors of the next layer
};

// Gradient of a layer's outputs to the factors of its pre-activations' gradient; sums them over rows for the bias.
template <class F>
struct GradientPass {
  Rounding rounding;
  BlockRows block;
  const typename F::Real* gradient;
  int64_t stride;  // 0: user memory, unpadded
  int64_t columns;
  DerivativeFrom from;
  const typename F::Real* source;
  int64_t source_stride;
  Factors<F> factors;  // of the next layer
  Factors<F> out;
  typename F::Real* grad_bias;  // or null

  template <class Tag>
  HASHGRID_INLINE typename F::Vec derivative(const GradientPass& pass, int64_t r, int64_t c) {
    constexpr Activation kActivation = Tag::kValue;
    if (pass.from == DerivativeFrom::kFactors) {
      return derivative_vector<kActivation>(F::get(pass.factors.rows + r * pass.factors.stride + c));
    }
    typename F::Vec s = load_vector<typename F::Vec>(pass.source + r * pass.source_stride + c);
    if (pass.from == DerivativeFrom::kPreActivation && !derivative_reads_input(kActivation)) {
      s = activate_vector<kActivation>(s);
    }
    return derivative_vector<kActivation>(s);
  }

  template <class Tag>
  void run(Tag) const {
    typedef typename F::Vec Vec;
    for (int64_t c = 0; c < columns; c += F::kWidth) {
      Vec total_a = {}, total_b = {};  // of even and of odd rows
      for (int64_t r = 0; r < block.padded; r += 2) {
        Vec a, b;
        if (stride == 0) {
          a = load_row<F>(gradient, columns, r, c, block);
          b = load_row<F>(gradient, columns, r + 1, c, block);
        } else {
          a = load_vector<Vec>(gradient + r * stride + c);
          b = load_vector<Vec>(gradient + (r + 1) * stride + c);
        }
        if (from != DerivativeFrom::kNowhere) {
          a *= derivative<Tag>(*this, r, c);
          b *= derivative<Tag>(*this, r + 1, c);
        }
        a = mask_columns<F>(a, c, columns);
        b = mask_columns<F>(b, c, columns);
        if (grad_bias != nullptr) {
          if (r < block.count) total_a += a;
          if (r + 1 < block.count) total_b += b;
        }
        put_rows<F>(rounding, out, r, c, block.count, a, b);
      }
      if (grad_bias != nullptr) store_vector(grad_bias + c, load_vector<Vec>(grad_bias + c) + (total_a + total_b));
    }
  }
};

// ---- what becomes of a tile's sums -------------------------------------------------------------------------------

// Pre-activations to the factors of the next layer, for the activations that cost no more than a comparison.
template <class F>
struct StoreActivated {
  typedef typename F::Vec Vec;
  Activation activation;
  Rounding rounding;
  int64_t count;  // rows of the block
  int64_t columns;
  Factors<F> out;

  template <int kVectors>
  HASHGRID_INLINE_METHOD void store(int64_t row, int64_t column, Vec (&sum)[kTileRows][kVectors]) const {
    if (activation == Activation::kReLU) {
      apply<Activation::kReLU>(sum);
    } else if (activation == Activation::kLeakyReLU) {
      apply<Activation::kLeakyReLU>(sum);
    }
    put_tile<F>(rounding, out, row, column, count, columns, sum);
  }

  template <Activation kActivation, int kVectors>
  HASHGRID_INLINE void apply(Vec (&sum)[kTileRows][kVectors]) {
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[r][v] = activate_vector<kActivation>(sum[r][v]);
    }
  }
};

// Gradient of a layer's outputs to the factors of its pre-activations' gradient, for the same activations; sums them
// over rows for the bias.
template <class F>
struct StoreGradient {
  typedef typename F::Vec Vec;
  Activation activation;
  Rounding rounding;
  int64_t count;  // rows of the block
  int64_t columns;
  Factors<F> outputs;  // of the layer
  Factors<F> out;
  typename F::Real* grad_bias;  // or null

  template <int kVectors>
  HASHGRID_INLINE_METHOD void store(int64_t row, int64_t column, Vec (&sum)[kTileRows][kVectors]) const {
    // Most tiles: a ReLU without a bias is a mask on the way to memory.
    const bool whole = row + kTileRows <= count && column + kVectors * F::kWidth <= columns;
    if (activation == Activation::kReLU && grad_bias == nullptr && whole) return put_masked_tile(row, column, sum);
    if (activation == Activation::kReLU) {
      apply<Activation::kReLU>(row, column, sum);
    } else if (activation == Activation::kLeakyReLU) {
      apply<Activation::kLeakyReLU>(row, column, sum);
    }
    if (grad_bias != nullptr) add_to_bias(row, column, sum);
    put_tile<F>(rounding, out, row, column, count, columns, sum);
  }

  template <int kVectors>
  HASHGRID_INLINE_METHOD void put_masked_tile(int64_t row, int64_t column, Vec (&sum)[kTileRows][kVectors]) const {
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; r += 2) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const int64_t c = column + v * F::kWidth;
        F::put_masked(rounding, out.rows + (row + r) * out.stride + c,
                      out.pairs == nullptr ? nullptr : out.pairs + (row + r) / 2 * out.stride + c, out.stride,
                      sum[r][v], sum[r + 1][v], outputs.rows + (row + r) * outputs.stride + c, outputs.stride);
      }
    }
  }

  template <Activation kActivation, int kVectors>
  HASHGRID_INLINE_METHOD void apply(int64_t row, int64_t column, Vec (&sum)[kTileRows][kVectors]) const {
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const Vec y = F::get(outputs.rows + (row + r) * outputs.stride + column + v * F::kWidth);
        if (kActivation == Activation::kReLU) {
          sum[r][v] = y <= 0 ? Vec{} : sum[r][v];
        } else {
          sum[r][v] *= derivative_vector<kActivation>(y);
        }
      }
    }
  }

  template <int kVectors>
  HASHGRID_INLINE_METHOD void add_to_bias(int64_t row, int64_t column, Vec (&sum)[kTileRows][kVectors]) const {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      Vec total = {};
#pragma GCC unroll 8
      for (int r = 0; r < kTileRows; ++r) {
        if (row + r < count) total += sum[r][v];
      }
      typename F::Real* at = grad_bias + column + v * F::kWidth;
      store_vector(at, load_vector<Vec>(at) + total);
    }
  }
};

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
