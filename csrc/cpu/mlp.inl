// Multilayer perceptron on the CPU, fused over blocks of rows.
//
// A block's activations and gradients stay in the cache while it passes through all layers. Every product is
//
//     sums[row][column] += sum over depth of a(row, depth) * b[depth][column]
//
// with columns along vectors, `a` broadcast and a tile of sums in registers:
//
//                 rows           columns      depth     a              b
//     forward     rows           outputs      inputs    activations    weight, transposed and packed
//     back        rows           inputs       outputs   gradients      weight, packed
//     weights     outputs        inputs       rows      gradients      activations
//
// bfloat16 instructions multiply pairs along the depth. For the first two products these are neighbours in a row; for
// the third they are neighbours in a column, so that each block is also kept with two rows interleaved (`pairs`).
//
// The backward runs the forward again, block by block, rather than reading activations from memory.
namespace hashgrid {
namespace HASHGRID_ISA {

// Tile of sums in registers: kTileRows x kTileVectors, with a vector for `a` and kTileVectors for `b` beside it.
#if defined(HASHGRID_HAS_AVX512) || defined(__aarch64__)
constexpr int kTileRows = 8;
constexpr int kTileVectors = 2;
#elif defined(HASHGRID_HAS_AVX2)
constexpr int kTileRows = 4;
constexpr int kTileVectors = 3;
#else
constexpr int kTileRows = 4;
constexpr int kTileVectors = 2;
#endif
constexpr int kTileUnroll = 2;
static_assert(kMlpRowPad % kTileRows == 0, "blocks hold whole tiles");

#define HASHGRID_INLINE static inline __attribute__((always_inline))
#define HASHGRID_INLINE_METHOD inline __attribute__((always_inline))

template <typename T>
struct Lane;
template <>
struct Lane<float> {
  typedef VecF Vec;
  typedef VecI Mask;
  static constexpr int kWidth = kLanes;
};
template <>
struct Lane<double> {
  typedef double Vec __attribute__((vector_size(4 * HASHGRID_LANES)));
  typedef int64_t Mask __attribute__((vector_size(4 * HASHGRID_LANES)));
  static constexpr int kWidth = kLanes / 2;
};

template <typename V, typename T>
HASHGRID_INLINE V load_vector(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
template <typename V, typename T>
HASHGRID_INLINE void store_vector(T* p, V v) {
  std::memcpy(p, &v, sizeof(v));
}

// ---- rounding ----------------------------------------------------------------------------------------------------

// The default instruction set has no conversion to float16: it came with F16C, beside AVX.
HASHGRID_INLINE VecF nearest_float16(VecF x) {
#if defined(HASHGRID_HAS_AVX512)
  return reinterpret_cast<VecF>(_mm512_cvtph_ps(_mm512_cvtps_ph(reinterpret_cast<__m512>(x), 0)));
#elif defined(HASHGRID_HAS_AVX2)
  return reinterpret_cast<VecF>(_mm256_cvtph_ps(_mm256_cvtps_ph(reinterpret_cast<__m256>(x), 0)));
#else
  return round_to_float16<VecU>(x);
#endif
}

// Chosen at run time, for a whole call: as a template argument it would compile every loop four times, and it costs
// nothing measurable (fp32, 32-64-64-16, forward + backward: 239 ns per row without, 240 with).
HASHGRID_INLINE VecF round_factor(VecF x, Rounding rounding) {
  switch (rounding) {
    case Rounding::kBFloat16:
      return round_mantissa<16, VecU>(x);
    case Rounding::kFloat16:
      return nearest_float16(x);
    case Rounding::kElevenBits:
      return round_mantissa<13, VecU>(x);
    default:
      return x;
  }
}
HASHGRID_INLINE Lane<double>::Vec round_factor(Lane<double>::Vec x, Rounding) { return x; }

// ---- products ----------------------------------------------------------------------------------------------------

template <typename T>
struct RealProduct {
  typedef T Element;  // what `a` and `b` hold
  typedef T Sum;
  typedef typename Lane<T>::Vec Factor;
  typedef typename Lane<T>::Vec Vec;
  static constexpr int kWidth = Lane<T>::kWidth;
  HASHGRID_INLINE Vec add_product(T a, Factor b, Vec sum) { return (a - Vec{}) * b + sum; }
};

#if defined(HASHGRID_HAS_AVX512_BF16)
struct BFloat16Product {
  typedef uint32_t Element;  // a pair
  typedef float Sum;
  typedef VecU Factor;
  typedef VecF Vec;
  static constexpr int kWidth = kLanes;
  HASHGRID_INLINE Vec add_product(uint32_t a, Factor b, Vec sum) {
    return reinterpret_cast<Vec>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), (__m512bh)(a - VecU{}), (__m512bh)b));
  }
};
#endif

// Element (row, depth) at data[row * row_stride + depth * depth_stride].
template <typename T>
struct Broadcast {
  const T* data;
  int64_t row_stride;
  int64_t depth_stride;
};

// Element (depth, column): panels of kTileVectors vectors follow each other, `panel_stride` apart. depth_stride 0:
// rows of a panel are as long as the panel is wide.
template <typename T>
struct Columns {
  const T* data;
  int64_t panel_stride;
  int64_t depth_stride;
};

template <class P, int kVectors>
HASHGRID_INLINE void add_products(const typename P::Element* a, int64_t a_row, const typename P::Element* b,
                                  typename P::Vec (&sum)[kTileRows][kVectors]) {
  typename P::Factor factor[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) factor[v] = load_vector<typename P::Factor>(b + v * P::kWidth);
#pragma GCC unroll 8
  for (int r = 0; r < kTileRows; ++r) {
    const typename P::Element x = a[r * a_row];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[r][v] = P::add_product(x, factor[v], sum[r][v]);
  }
}

// A tile's sums, then what `finish` makes of them: finish.store<kVectors>(row, column, sums).
template <class P, int kVectors, bool kBias, class Finish>
HASHGRID_INLINE void multiply_tile(int64_t row, int64_t column, int64_t depth, const typename P::Element* a,
                                   int64_t a_row, int64_t a_step, const typename P::Element* b, int64_t b_step,
                                   const typename P::Sum* bias, Finish finish) {
  typename P::Vec sum[kTileRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      sum[r][v] = kBias ? load_vector<typename P::Vec>(bias + column + v * P::kWidth) : typename P::Vec{};
    }
  }
  // Unrolled so that the loop's exit is predicted even for narrow layers.
  int64_t d = 0;
  for (; d + kTileUnroll <= depth; d += kTileUnroll) {
#pragma GCC unroll 8
    for (int k = 0; k < kTileUnroll; ++k) {
      add_products<P, kVectors>(a, a_row, b, sum);
      a += a_step;
      b += b_step;
    }
  }
  for (; d < depth; ++d) {
    add_products<P, kVectors>(a, a_row, b, sum);
    a += a_step;
    b += b_step;
  }
  finish.template store<kVectors>(row, column, sum);
}

// Memory a block will want later, brought nearer a few lines per tile: blocks are too short for the hardware to learn
// their streams.
struct Prefetch {
  static constexpr int kRanges = 3;
  static constexpr int kLinesPerTile = 4;
  const char* next[kRanges] = {};
  const char* end[kRanges] = {};
  int range = 0;

  void add(int i, const void* data, int64_t bytes) {
    next[i] = static_cast<const char*>(data);
    end[i] = next[i] + bytes;
  }
  HASHGRID_INLINE_METHOD void step() {
    if (range == kRanges) return;
    for (int i = 0; i < kLinesPerTile; ++i) __builtin_prefetch(next[range] + 64 * i);
    next[range] += 64 * kLinesPerTile;
    while (range < kRanges && next[range] >= end[range]) ++range;
  }
};

template <class P, int kVectors, bool kBias, class Finish>
static void multiply_panel(int64_t rows, int64_t column, int64_t depth, Broadcast<typename P::Element> a,
                           const typename P::Element* b, int64_t b_step, const typename P::Sum* bias, Finish finish,
                           Prefetch* prefetch) {
  for (int64_t r = 0; r < rows; r += kTileRows) {
    prefetch->step();
    multiply_tile<P, kVectors, kBias>(r, column, depth, a.data + r * a.row_stride, a.row_stride, a.depth_stride, b,
                                      b_step, bias, finish);
  }
}

// `rows` a multiple of kTileRows; `columns` rounded up to whole vectors.
template <class P, bool kBias, class Finish>
static void multiply(int64_t rows, int64_t columns, int64_t depth, Broadcast<typename P::Element> a,
                     Columns<typename P::Element> b, const typename P::Sum* bias, Finish finish, Prefetch* prefetch) {
  constexpr int64_t kPanel = kTileVectors * P::kWidth;
  const typename P::Element* panel = b.data;
  for (int64_t c = 0; c < columns; c += kPanel) {
    const int64_t left = (columns - c + P::kWidth - 1) / P::kWidth;
    const int64_t vectors = left < kTileVectors ? left : kTileVectors;
    const int64_t step = b.depth_stride > 0 ? b.depth_stride : vectors * P::kWidth;
    if (vectors == kTileVectors) {
      multiply_panel<P, kTileVectors, kBias>(rows, c, depth, a, panel, step, bias, finish, prefetch);
    } else if (kTileVectors > 2 && vectors == 2) {
      multiply_panel<P, 2, kBias>(rows, c, depth, a, panel, step, bias, finish, prefetch);
    } else {
      multiply_panel<P, 1, kBias>(rows, c, depth, a, panel, step, bias, finish, prefetch);
    }
    panel += b.panel_stride;
  }
}

// Where sums stay as they are: user memory, or matrices that a pass over whole rows goes on with.
template <class P>
struct StoreSums {
  typename P::Sum* sums;
  int64_t stride;

  template <int kVectors>
  HASHGRID_INLINE_METHOD void store(int64_t row, int64_t column,
                                    const typename P::Vec (&sum)[kTileRows][kVectors]) const {
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) store_vector(sums + (row + r) * stride + column + v * P::kWidth, sum[r][v]);
    }
  }
};

// Weight gradients: a block's sums join those of the blocks before it, in block order, so that the bits are the same
// for any number of threads.
template <class P>
struct AddSums {
  typename P::Sum* sums;
  int64_t stride;

  template <int kVectors>
  HASHGRID_INLINE_METHOD void store(int64_t row, int64_t column,
                                    const typename P::Vec (&sum)[kTileRows][kVectors]) const {
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        typename P::Sum* at = sums + (row + r) * stride + column + v * P::kWidth;
        store_vector(at, load_vector<typename P::Vec>(at) + sum[r][v]);
      }
    }
  }
};

// ---- activations of vectors --------------------------------------------------------------------------------------

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

  HASHGRID_INLINE __m512i round_rows(Vec a, Vec b) {
    return reinterpret_cast<__m512i>(
        (VecU)_mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(a)));
  }
  HASHGRID_INLINE void put_bits(Stored* rows, Pair* pairs, int64_t stride, __m512i bits) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(rows), _mm512_castsi512_si256(bits));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(rows + stride), _mm512_extracti64x4_epi64(bits, 1));
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
      Vec total_a = {}, total_b = {};
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

// ---- layers ------------------------------------------------------------------------------------------------------

template <class F, bool kBias = true, class Finish>
static void forward_product(const MlpParams& p, int layer, const BlockRows& block, const Factors<F>& in, Finish finish,
                            Prefetch* prefetch) {
  typedef typename F::Product Product;
  typedef typename Product::Element Element;
  const MlpLayer& l = p.layers[layer];
  const int64_t depth = (l.n_in + F::kPack - 1) / F::kPack;
  const Columns<Element> weight = {at<const Element>(p.packed, l.packed_weight), depth * kTileVectors * Product::kWidth,
                                   0};
  // Without biases these are zeros.
  multiply<Product, kBias>(block.padded, l.n_out, depth, broadcast_rows(in), weight,
                           at<const typename F::Real>(p.packed, l.packed_bias), finish, prefetch);
}

template <class F, class Finish>
static void backward_product(const MlpParams& p, int layer, const BlockRows& block, const Factors<F>& gradient,
                             Finish finish, Prefetch* prefetch) {
  typedef typename F::Product Product;
  typedef typename Product::Element Element;
  const MlpLayer& l = p.layers[layer];
  const int64_t depth = (l.n_out + F::kPack - 1) / F::kPack;
  const Columns<Element> weight = {at<const Element>(p.packed, l.packed_transposed),
                                   depth * kTileVectors * Product::kWidth, 0};
  multiply<Product, false>(block.padded, l.n_in, depth, broadcast_rows(gradient), weight, nullptr, finish, prefetch);
}

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

static inline BlockRows block_rows(const MlpParams& p, int64_t block) {
  BlockRows rows;
  rows.first = block * p.n_block;
  rows.count = p.n_rows - rows.first < p.n_block ? p.n_rows - rows.first : p.n_block;
  rows.padded = round_up(rows.count, kMlpRowPad);
  return rows;
}

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

template <class F>
static void mlp_forward_blocks(const MlpParams& p, int64_t begin, int64_t end) {
  typedef typename F::Real Real;
  Factors<F> inputs[kMaxMlpLayers];
  const int last = p.n_layers - 1;
  const int64_t n_out = p.layers[last].n_out;
  for (int64_t b = begin; b < end; ++b) {
    const BlockRows block = block_rows(p, b);
    Prefetch next;
    prefetch_inputs<F>(p, b + 1, &next);
    Prefetch* prefetch = &next;
    run_hidden_layers<F>(p, block, inputs, prefetch);
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
    stride = column_pad(layer.n_in);
    const MlpLayer& below = p.layers[l - 1];
    Real* grad_bias = partial != nullptr && below.bias != nullptr ? partial + below.grad_bias : nullptr;
    Factors<F> next = {F::kInPlace ? reinterpret_cast<typename F::Stored*>(other) : nullptr, nullptr, stride};
    if constexpr (!F::kInPlace) {
      slot ^= 1;
      next = {at<typename F::Stored>(p.scratch, p.gradient[slot]),
              at<typename F::Pair>(p.scratch, p.gradient_pairs[slot]), stride};
    }
    if (derivative_reads_sign(p.activation)) {
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
      pack_columns<F>(p, weight, l.n_out, l.n_in, l.n_in, 1, at<void>(p.packed, l.packed_transposed));
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

static void mlp_pack_range(const MlpParams& p, int64_t begin, int64_t end) {
#if defined(HASHGRID_HAS_AVX512_BF16)
  if (p.halves) return mlp_pack_layers<BFloat16Factors>(p, begin, end);
#endif
  if (p.dtype == DType::kFloat64) return mlp_pack_layers<RealFactors<double>>(p, begin, end);
  mlp_pack_layers<RealFactors<float>>(p, begin, end);
}

static void mlp_forward_range(const MlpParams& p, int64_t begin, int64_t end) {
#if defined(HASHGRID_HAS_AVX512_BF16)
  if (p.halves) return mlp_forward_blocks<BFloat16Factors>(p, begin, end);
#endif
  if (p.dtype == DType::kFloat64) return mlp_forward_blocks<RealFactors<double>>(p, begin, end);
  mlp_forward_blocks<RealFactors<float>>(p, begin, end);
}

static void mlp_backward_range(const MlpParams& p, int64_t begin, int64_t end) {
#if defined(HASHGRID_HAS_AVX512_BF16)
  if (p.halves) return run_partials<float>(p, begin, end, &mlp_backward_block<BFloat16Factors>);
#endif
  if (p.dtype == DType::kFloat64) return run_partials<double>(p, begin, end, &mlp_backward_block<RealFactors<double>>);
  run_partials<float>(p, begin, end, &mlp_backward_block<RealFactors<float>>);
}

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
