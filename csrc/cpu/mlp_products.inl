// Matrix products of the MLP on the CPU. Every product is
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
#include "core/mlp_params.h"

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

// Vectors of the instruction set by their element.
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

// One step along the depth: kTileRows elements of `a`, each broadcast, times kVectors vectors of `b`.
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

// All tiles of a panel, from the first rows to the last: the panel of `b` stays in the L1 cache.
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

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
