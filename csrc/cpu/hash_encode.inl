// Multiresolution hash encoding on the CPU.
//
// fp32: kLanes points advance together. `compute_corners` finds the indices and weights of their cells' corners with
// vector arithmetic and writes them to a small ring buffer; the rows they name are prefetched kAhead groups before
// `interpolate`, `scatter` or `dot_rows` touches them. All passes walk level by level over all points, so that one
// level's rows (4 MB at T = 19, F = 2) stay in the cache; positions are transposed to [n_dims, n_points] and features
// to [n_levels, n_points, F] for that. fp64 and what is rare of the second order are in hash_encode_scalar.inl,
// the second order of position gradients in hash_encode_second.inl.
#include "core/hash_encode_params.h"

namespace hashgrid {
namespace HASHGRID_ISA {

constexpr int64_t kBlock = 64;  // points transposed at a time
constexpr int kAhead = 2;       // groups between a prefetch and its use
constexpr int kRing = 4;        // power of two > kAhead

// Corners of kLanes cells at one level.
struct CornerGroup {
  float fraction[kMaxDims][kLanes];
  // Index and weight side by side: in arrays of their own, kMaxCorners apart, they and the rows prefetched meet in few
  // sets of the L1 cache.
  struct Corner {
    uint32_t index[kLanes];  // entry within the level
    float weight[kLanes];
  } corner[kMaxCorners];
};

static inline int64_t min_count(int64_t a, int64_t b) { return a < b ? a : b; }

// One axis: each of the first 2^kDim corners splits into its lower and its upper neighbour. Recursive, not a loop, so
// that corners stay in registers.
template <int kDim, int kDims>
static inline void split_corners(const HashEncodeParams& p, const AxisLevel& level, int64_t i, uint32_t dense_stride,
                                 CornerGroup* group, VecU* index, VecF* weight) {
  if constexpr (kDim < kDims) {
    const VecF scaled =
        multiply_add(splat(level.scale[kDim]), load(p.soa_positions + kDim * p.soa_stride + i), splat(p.shift));
    // The limit keeps the conversion defined and the fraction in [0, 1); positions inside [0, 1] never reach it.
    const VecF position = clamp(scaled, -1073741824.0f, 1073741824.0f);
    VecI cell;
    const VecF whole = round_down(position, &cell);
    const VecF fraction = position - whole;
    store(group->fraction[kDim], fraction);
    VecF upper = fraction;
    if (p.interpolation == Interpolation::kSmoothstep) upper = fraction * fraction * (3.0f - 2.0f * fraction);
    const VecF lower = 1.0f - upper;
    const uint32_t factor = level.hashed ? hash_prime(kDim) : dense_stride;
    const VecU low = reinterpret_cast<VecU>(cell) * factor;
    const VecU high = low + factor;
    constexpr int kHalf = 1 << kDim;
    if (level.hashed) {
#pragma GCC unroll 64
      for (int c = 0; c < kHalf; ++c) {
        index[c + kHalf] = index[c] ^ high;
        index[c] = index[c] ^ low;
      }
    } else {
#pragma GCC unroll 64
      for (int c = 0; c < kHalf; ++c) {
        index[c + kHalf] = index[c] + high;
        index[c] = index[c] + low;
      }
    }
#pragma GCC unroll 64
    for (int c = 0; c < kHalf; ++c) {
      weight[c + kHalf] = weight[c] * upper;
      weight[c] = weight[c] * lower;
    }
    split_corners<kDim + 1, kDims>(p, level, i, dense_stride * level.resolution[kDim], group, index, weight);
  }
}

// Corners of points [i, i + kLanes).
template <int kDims>
static void compute_corners(const HashEncodeParams& p, const AxisLevel& level, int64_t i, CornerGroup* group) {
  constexpr int kCorners = 1 << kDims;
  VecU index[kCorners];
  VecF weight[kCorners];
  index[0] = VecU{};
  weight[0] = splat(1.0f);
  split_corners<0, kDims>(p, level, i, 1, group, index, weight);
  if (p.interpolation == Interpolation::kNearest) {
    index[0] = level.wrap == IndexWrap::kMask ? index[0] & (level.size - 1u) : index[0] % splat(level.size);
    store(group->corner[0].index, index[0]);
    store(group->corner[0].weight, splat(1.0f));
    return;
  }
  const VecU size = splat(level.size);
  if (level.wrap == IndexWrap::kMask) {
#pragma GCC unroll 16
    for (int c = 0; c < kCorners; ++c) store(group->corner[c].index, index[c] & (size - 1u));
  } else if (level.wrap == IndexWrap::kOnce) {
#pragma GCC unroll 16
    for (int c = 0; c < kCorners; ++c) {
      store(group->corner[c].index, index[c] - (reinterpret_cast<VecU>(index[c] >= size) & size));
    }
  } else {
    for (int c = 0; c < kCorners; ++c) store(group->corner[c].index, index[c] % size);
  }
#pragma GCC unroll 16
  for (int c = 0; c < kCorners; ++c) store(group->corner[c].weight, weight[c]);
}

// The instance for a number of dimensions, chosen once per range.
using ComputeCorners = void (*)(const HashEncodeParams&, const AxisLevel&, int64_t, CornerGroup*);

static ComputeCorners pick_compute_corners(int n_dims) {
  constexpr ComputeCorners kByDims[kMaxDims] = {&compute_corners<1>, &compute_corners<2>, &compute_corners<3>,
                                                &compute_corners<4>, &compute_corners<5>, &compute_corners<6>,
                                                &compute_corners<7>};
  return kByDims[n_dims - 1];
}

// ---- rows of the table -------------------------------------------------------------------------------------------

// Exact: the bits of a bfloat16 are the upper half of a float's.
static inline float bfloat16_to_float(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

// Exact, subnormals included.
static inline float float16_to_float(uint16_t bits) {
#if defined(HASHGRID_HAS_AVX2)
  return _cvtsh_ss(bits);
#else
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t magnitude = bits & 0x7fffu;
  uint32_t wide;
  if (magnitude >= 0x7c00u) {  // inf, nan
    wide = sign | 0x7f800000u | (magnitude & 0x3ffu) << 13;
  } else if (magnitude >= 0x400u) {
    wide = sign | ((magnitude << 13) + 0x38000000u);
  } else {  // subnormal: magnitude * 2^-24
    const float value = static_cast<float>(magnitude) * 5.9604644775390625e-8f;
    std::memcpy(&wide, &value, 4);
    wide |= sign;
  }
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
#endif
}

// How the table holds its elements.
struct Float32Table {
  typedef float Element;
  static inline float to_float(float x) { return x; }
};
struct Float16Table {
  typedef uint16_t Element;
  static inline float to_float(uint16_t x) { return float16_to_float(x); }
};
struct BFloat16Table {
  typedef uint16_t Element;
  static inline float to_float(uint16_t x) { return bfloat16_to_float(x); }
};

// kF consecutive floats as one vector.
template <int kF>
struct RowOf {
  typedef float Type __attribute__((vector_size(4 * kF)));
  typedef float InMemory __attribute__((vector_size(4 * kF), aligned(4), may_alias));
};
template <>
struct RowOf<1> {
  typedef float Type;
  typedef float InMemory;
};

// Rows of the table begin anywhere: vectors of them are not aligned.
template <int kF>
static inline typename RowOf<kF>::Type load_row(const float* p) {
  return *reinterpret_cast<const typename RowOf<kF>::InMemory*>(p);
}

template <int kF>
static inline void store_row(float* p, typename RowOf<kF>::Type row) {
  *reinterpret_cast<typename RowOf<kF>::InMemory*>(p) = row;
}

#if defined(HASHGRID_X86)
// Two floats lie in the low half of a register of four: vectors of two take the compiler through integer registers and
// cost a shuffle per weight.
template <>
struct RowOf<2> {
  typedef float Type __attribute__((vector_size(16)));
  typedef double Pair __attribute__((vector_size(16)));
  typedef double InMemory __attribute__((aligned(4), may_alias));
};

template <>
inline RowOf<2>::Type load_row<2>(const float* p) {
  return reinterpret_cast<RowOf<2>::Type>(RowOf<2>::Pair{*reinterpret_cast<const RowOf<2>::InMemory*>(p), 0.0});
}

template <>
inline void store_row<2>(float* p, RowOf<2>::Type row) {
  *reinterpret_cast<RowOf<2>::InMemory*>(p) = reinterpret_cast<RowOf<2>::Pair>(row)[0];
}
#endif

#if defined(HASHGRID_HAS_AVX2)
// Eight 16-bit values as floats.
static inline RowOf<8>::Type widen(BFloat16Table, __m128i halves) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}
static inline RowOf<8>::Type widen(Float16Table, __m128i halves) { return _mm256_cvtph_ps(halves); }
#endif

// A row of kF features as floats.
template <typename Table, int kF>
static inline typename RowOf<kF>::Type load_table_row(const typename Table::Element* p) {
  if constexpr (sizeof(typename Table::Element) == 4) {
    return load_row<kF>(p);
#if defined(HASHGRID_HAS_AVX2)
  } else if constexpr (kF == 8) {
    return widen(Table(), _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  } else if constexpr (kF == 4) {
    return _mm256_castps256_ps128(widen(Table(), _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#endif
  } else {
    float values[kF];
    for (int f = 0; f < kF; ++f) values[f] = Table::to_float(p[f]);
    return load_row<kF>(values);
  }
}

// kPoints pairs of floats as one vector.
template <int kPoints>
using PairsOf = typename RowOf<2 * kPoints>::Type;

// One `Word` per point, two floats or two 16-bit values, in one vector.
template <typename Word, int... kPoint, typename At>
static inline auto gather_words(std::integer_sequence<int, kPoint...>, At at) {
  typedef Word Words __attribute__((vector_size(sizeof(Word) * sizeof...(kPoint))));
  return Words{at(kPoint)...};
}

// The bits at `p`, which is aligned to halves of a word at least.
template <typename Word>
static inline Word load_word(const void* p) {
  typedef Word InMemory __attribute__((aligned(sizeof(Word) / 2), may_alias));
  return *static_cast<const InMemory*>(p);
}

// Rows of two features of kPoints entries, side by side.
template <typename Table, int kPoints>
static inline PairsOf<kPoints> load_pairs(const typename Table::Element* rows, const uint32_t* entries) {
  constexpr std::make_integer_sequence<int, kPoints> kEach;
  const auto row = [&](int i) { return rows + static_cast<int64_t>(entries[i]) * 2; };
  if constexpr (sizeof(typename Table::Element) == 4) {
    return reinterpret_cast<PairsOf<kPoints>>(
        gather_words<double>(kEach, [&](int i) { return load_word<double>(row(i)); }));
#if defined(HASHGRID_HAS_AVX2)
  } else if constexpr (kPoints == 4) {
    const auto words = gather_words<uint32_t>(kEach, [&](int i) { return load_word<uint32_t>(row(i)); });
    return widen(Table(), reinterpret_cast<__m128i>(words));
#endif
  } else {
    return reinterpret_cast<PairsOf<kPoints>>(gather_words<double>(kEach, [&](int i) {
      const float values[2] = {Table::to_float(row(i)[0]), Table::to_float(row(i)[1])};
      return load_word<double>(values);
    }));
  }
}

// w0 w0 w1 w1 ...
template <int kPoints>
static inline PairsOf<kPoints> twice_each(const float* weights) {
#if defined(HASHGRID_HAS_AVX2)
  if constexpr (kPoints == 4) {
    const __m256i order = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
    return _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(weights)), order);
  }
#endif
  return reinterpret_cast<PairsOf<kPoints>>(
      gather_words<double>(std::make_integer_sequence<int, kPoints>(), [&](int i) {
        const float twice[2] = {weights[i], weights[i]};
        return load_word<double>(twice);
      }));
}

// The corners of the group's lanes from `lane` on. The compiler may not look through it: it would keep an address per
// corner, in vector registers for want of others.
static inline const CornerGroup::Corner* shift_lanes(const CornerGroup& group, int lane) {
  const CornerGroup::Corner* corner =
      reinterpret_cast<const CornerGroup::Corner*>(reinterpret_cast<const float*>(group.corner) + lane);
  asm("" : "+r"(corner));
  return corner;
}

// Its elements added up in order.
static inline float row_sum(float row) { return row; }
template <typename Row>
static inline float row_sum(Row row) {
  float total = 0.0f;
  for (unsigned f = 0; f < sizeof(Row) / 4; ++f) total += row[f];
  return total;
}

// Asks for the rows of a group, corner by corner.
template <int kRowBytes>
static void prefetch_rows(const CornerGroup& group, int n_corners, const char* rows) {
  for (int c = 0; c < n_corners; ++c) {
#pragma GCC unroll 16
    for (int lane = 0; lane < kLanes; ++lane) {
      __builtin_prefetch(rows + static_cast<int64_t>(group.corner[c].index[lane]) * kRowBytes, 0, 2);
    }
  }
}

using PrefetchRows = void (*)(const CornerGroup&, int, const char*);

static PrefetchRows pick_prefetch_rows(int row_bytes) {
  switch (row_bytes) {
    case 2:
      return &prefetch_rows<2>;
    case 4:
      return &prefetch_rows<4>;
    case 8:
      return &prefetch_rows<8>;
    case 16:
      return &prefetch_rows<16>;
    default:
      return &prefetch_rows<32>;
  }
}

// ---- forward -----------------------------------------------------------------------------------------------------

// The kernels below take the number of corners at compile time where it is common, kCorners = 0 for all others.

// Weighted sum of the corner rows for `count` lanes; out [count, F].
template <typename Table, int kF, int kCorners>
static void interpolate(const CornerGroup& group, int n_corners, const void* level_rows, int count, float* out) {
  const typename Table::Element* rows = static_cast<const typename Table::Element*>(level_rows);
  if (kCorners != 0) n_corners = kCorners;
  int lane = 0;
  if constexpr (kF == 2) {
    constexpr int kPoints = kLanes < 8 ? 2 : 4;
    for (; lane + kPoints <= count; lane += kPoints) {
      const CornerGroup::Corner* corner = shift_lanes(group, lane);
      PairsOf<kPoints> total{};
#pragma GCC unroll 16
      for (int c = 0; c < n_corners; ++c) {
        total += twice_each<kPoints>(corner[c].weight) * load_pairs<Table, kPoints>(rows, corner[c].index);
      }
      store_row<2 * kPoints>(out + lane * 2, total);
    }
  }
  for (; lane < count; ++lane) {
    typename RowOf<kF>::Type total{};
#pragma GCC unroll 16
    for (int c = 0; c < n_corners; ++c) {
      const int64_t entry = group.corner[c].index[lane];
      total += group.corner[c].weight[lane] * load_table_row<Table, kF>(rows + entry * kF);
    }
    store_row<kF>(out + lane * kF, total);
  }
}

// Dot product of every corner row with its point's grad_y [count, F]; dots [n_corners][kLanes].
template <typename Table, int kF, int kCorners>
static void dot_rows(const CornerGroup& group, int n_corners, const void* level_rows, const float* grad_y, int count,
                     float (*dots)[kLanes]) {
  const typename Table::Element* rows = static_cast<const typename Table::Element*>(level_rows);
  if (kCorners != 0) n_corners = kCorners;
  int lane = 0;
  if constexpr (kF == 2) {  // four lanes at a time: sums of pairs take two shuffles for all of them
    for (; lane + 4 <= count; lane += 4) {
      const CornerGroup::Corner* corner = shift_lanes(group, lane);
      const auto low = load_row<4>(grad_y + lane * 2), high = load_row<4>(grad_y + lane * 2 + 4);
#pragma GCC unroll 16
      for (int c = 0; c < n_corners; ++c) {
        const auto x = low * load_pairs<Table, 2>(rows, corner[c].index);
        const auto y = high * load_pairs<Table, 2>(rows, corner[c].index + 2);
        store_row<4>(dots[c] + lane, permute<EvenLanes>(x, y) + permute<OddLanes>(x, y));
      }
    }
  }
  for (; lane < count; ++lane) {
    const typename RowOf<kF>::Type grad = load_row<kF>(grad_y + lane * kF);
#pragma GCC unroll 16
    for (int c = 0; c < n_corners; ++c) {
      const int64_t entry = group.corner[c].index[lane];
      dots[c][lane] = row_sum(grad * load_table_row<Table, kF>(rows + entry * kF));
    }
  }
}

// The instances for a table's dtype, its features and the number of corners, chosen once per range.
struct RowKernels {
  void (*interpolate)(const CornerGroup&, int, const void*, int, float*);
  void (*dot_rows)(const CornerGroup&, int, const void*, const float*, int, float (*)[kLanes]);
};

// 4, 8 and 16 corners are those of 2, 3 and 4 dimensions.
template <typename Table, int kF>
static RowKernels row_kernels(int n_corners) {
  switch (n_corners) {
    case 4:
      return {&interpolate<Table, kF, 4>, &dot_rows<Table, kF, 4>};
    case 8:
      return {&interpolate<Table, kF, 8>, &dot_rows<Table, kF, 8>};
    case 16:
      return {&interpolate<Table, kF, 16>, &dot_rows<Table, kF, 16>};
    default:
      return {&interpolate<Table, kF, 0>, &dot_rows<Table, kF, 0>};
  }
}

template <typename Table>
static RowKernels row_kernels_of(const HashEncodeParams& p) {
  const int n_corners = static_cast<int>(n_corners_of(p, p.n_dims));
  switch (p.n_features) {
    case 1:
      return row_kernels<Table, 1>(n_corners);
    case 2:
      return row_kernels<Table, 2>(n_corners);
    case 4:
      return row_kernels<Table, 4>(n_corners);
    default:
      return row_kernels<Table, 8>(n_corners);
  }
}

static RowKernels pick_row_kernels(const HashEncodeParams& p) {
  switch (p.table_dtype) {
    case DType::kFloat16:
      return row_kernels_of<Float16Table>(p);
    case DType::kBFloat16:
      return row_kernels_of<BFloat16Table>(p);
    default:
      return row_kernels_of<Float32Table>(p);
  }
}

static inline int64_t element_size(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

// Where the rows of a level begin.
static inline const char* level_rows(const HashEncodeParams& p, const AxisLevel& level) {
  return static_cast<const char*>(p.table) + level.offset * p.n_features * element_size(p.table_dtype);
}

// Points [begin, end) of one level; calls `use(group, i, count)` for each group of kLanes points whose rows are on
// their way to the cache; it may write to the group.
template <typename Use>
static inline void for_each_group(const HashEncodeParams& p, const AxisLevel& level, ComputeCorners compute,
                                  int64_t begin, int64_t end, const char* rows, int row_bytes, Use use) {
  CornerGroup ring[kRing];
  const int n_corners = static_cast<int>(n_corners_of(p, p.n_dims));
  // Rows of a level this small stay in the L2 cache or near it, and a prefetch costs as much as it saves.
  const bool prefetch = static_cast<int64_t>(level.size) * row_bytes > 1024 * 1024;
  const PrefetchRows prefetch_rows = pick_prefetch_rows(row_bytes);
  const int64_t n_groups = (end - begin + kLanes - 1) / kLanes;
  for (int64_t g = 0; g < n_groups + kAhead; ++g) {
    if (g < n_groups) {
      CornerGroup& next = ring[g % kRing];
      compute(p, level, begin + g * kLanes, &next);
      if (prefetch) prefetch_rows(next, n_corners, rows);
    }
    if (g >= kAhead) {
      const int64_t i = begin + (g - kAhead) * kLanes;
      use(ring[(g - kAhead) % kRing], i, static_cast<int>(min_count(kLanes, end - i)));
    }
  }
}

// ---- transposition -----------------------------------------------------------------------------------------------

// One step of transposing a square of pairs of floats: lanes of `x` and `y` that lie kPairs pairs apart change places.
template <int kPairs>
struct SwapLow {
  static constexpr int source(int lane) { return lane / 2 & kPairs ? kLanes + lane - 2 * kPairs : lane; }
};
template <int kPairs>
struct SwapHigh {
  static constexpr int source(int lane) { return lane / 2 & kPairs ? kLanes + lane : lane + 2 * kPairs; }
};

// Pairs of floats in a vector: a square of kPairs vectors is transposed in registers.
constexpr int kPairs = kLanes / 2;

// Vector i receives pair i of all kPairs vectors, in log2(kPairs) steps.
template <int kStep = 1>
static inline void transpose_pairs(VecF* rows) {
  if constexpr (kStep < kPairs) {
#pragma GCC unroll 8
    for (int i = 0; i < kPairs; ++i) {
      if (i & kStep) continue;
      const VecF x = rows[i], y = rows[i | kStep];
      rows[i] = permute<SwapLow<kStep>>(x, y);
      rows[i | kStep] = permute<SwapHigh<kStep>>(x, y);
    }
    transpose_pairs<2 * kStep>(rows);
  }
}

// The level's factor, kPairs of them from level l on.
static inline void load_level_weights(const float* level_weights, int l, VecF* weights) {
#pragma GCC unroll 8
  for (int i = 0; i < kPairs; ++i) weights[i] = splat(level_weights != nullptr ? level_weights[l + i] : 1.0f);
}

// Rows of known length are one vector each.
template <int kF>
static inline void copy_rows_of(int64_t count, float weight, const float* in, int64_t in_stride, float* out,
                                int64_t out_stride) {
  for (int64_t i = 0; i < count; ++i) store_row<kF>(out + i * out_stride, load_row<kF>(in + i * in_stride) * weight);
}

// out[i] = weight * in[i] for `count` rows of F features.
static void copy_rows(int n_features, int64_t count, float weight, const float* in, int64_t in_stride, float* out,
                      int64_t out_stride) {
  switch (n_features) {
    case 1:
      return copy_rows_of<1>(count, weight, in, in_stride, out, out_stride);
    case 2:
      return copy_rows_of<2>(count, weight, in, in_stride, out, out_stride);
    case 4:
      return copy_rows_of<4>(count, weight, in, in_stride, out, out_stride);
    default:
      return copy_rows_of<8>(count, weight, in, in_stride, out, out_stride);
  }
}

// Features of `count` points, level by level, to rows of all levels, times the level weights.
static inline void levels_to_points(const HashEncodeParams& p, int64_t count, const float* levels, float* points) {
  const int64_t row = static_cast<int64_t>(p.n_levels) * p.n_features;
  const float* level_weights = static_cast<const float*>(p.level_weights);
  int l = 0;
  if (p.n_features == 2 && count % kPairs == 0) {
    for (; l + kPairs <= p.n_levels; l += kPairs) {
      VecF weights[kPairs], square[kPairs];
      load_level_weights(level_weights, l, weights);
      for (int64_t i = 0; i < count; i += kPairs) {
#pragma GCC unroll 8
        for (int k = 0; k < kPairs; ++k) square[k] = load(levels + (l + k) * p.level_stride + i * 2) * weights[k];
        transpose_pairs(square);
#pragma GCC unroll 8
        for (int k = 0; k < kPairs; ++k) store(points + (i + k) * row + l * 2, square[k]);
      }
    }
  }
  for (; l < p.n_levels; ++l) {
    const float weight = level_weights != nullptr ? level_weights[l] : 1.0f;
    copy_rows(p.n_features, count, weight, levels + l * p.level_stride, p.n_features, points + l * p.n_features, row);
  }
}

// The way back.
static inline void points_to_levels(const HashEncodeParams& p, int64_t count, const float* points, float* levels) {
  const int64_t row = static_cast<int64_t>(p.n_levels) * p.n_features;
  const float* level_weights = static_cast<const float*>(p.level_weights);
  int l = 0;
  if (p.n_features == 2 && count % kPairs == 0) {
    for (; l + kPairs <= p.n_levels; l += kPairs) {
      VecF weights[kPairs], square[kPairs];
      load_level_weights(level_weights, l, weights);
      for (int64_t i = 0; i < count; i += kPairs) {
#pragma GCC unroll 8
        for (int k = 0; k < kPairs; ++k) square[k] = load(points + (i + k) * row + l * 2);
        transpose_pairs(square);
#pragma GCC unroll 8
        for (int k = 0; k < kPairs; ++k) store(levels + (l + k) * p.level_stride + i * 2, square[k] * weights[k]);
      }
    }
  }
  for (; l < p.n_levels; ++l) {
    const float weight = level_weights != nullptr ? level_weights[l] : 1.0f;
    copy_rows(p.n_features, count, weight, points + l * p.n_features, row, levels + l * p.level_stride, p.n_features);
  }
}

// Whether `apply_bounds` would leave `count` coordinates as they are, as it nearly always does.
static inline bool within_bounds(const float* x, int64_t count, Bounds bounds) {
  const float low = bounds == Bounds::kNone ? -std::numeric_limits<float>::max() : 0.0f;
  const float high = bounds == Bounds::kNone ? std::numeric_limits<float>::max() : 1.0f;
  int outside = 0;
  for (int64_t i = 0; i < count; ++i) outside |= !(x[i] >= low && x[i] <= high);  // as is NaN
  return outside == 0;
}

// positions [count, n_dims] to [n_dims, soa_stride].
template <int kDims>
static inline void transpose_positions(const float* positions, int64_t count, float* soa, int64_t soa_stride) {
  for (int d = 0; d < kDims; ++d) {
    for (int64_t i = 0; i < count; ++i) soa[d * soa_stride + i] = positions[i * kDims + d];
  }
}

// Work units: points. One thread takes kBlock of them at a time and transposes their positions to soa_positions
// [n_dims, soa_stride] and, if there is one, grad_y to level_features [n_levels, n_points, F] with the level weights
// applied. Points that take no part get position 0 and gradient 0. No two units write the same place, and nothing is
// added up.
static void hash_encode_prepare_range(const HashEncodeParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::kFloat64) return;
  const int64_t row = static_cast<int64_t>(p.n_levels) * p.n_features;
  const float* positions = static_cast<const float*>(p.positions);
  for (int64_t start = begin; start < end; start += kBlock) {
    const int64_t count = min_count(kBlock, end - start);
    // Nearly all blocks are inside, where positions are copied as they are.
    const bool plain = within_bounds(positions + start * p.n_dims, count * p.n_dims, p.bounds);
    bool inside[kBlock];
    if (plain && p.n_dims == 3) {
      transpose_positions<3>(positions + start * 3, count, p.soa_positions + start, p.soa_stride);
      std::memset(inside, 1, sizeof(inside));
    } else {
      for (int64_t i = 0; i < count; ++i) {
        float bounded[kMaxDims];
        const PointState state = apply_bounds(positions + (start + i) * p.n_dims, p.n_dims, p.bounds, bounded);
        inside[i] = state == PointState::kInside;
        for (int d = 0; d < p.n_dims; ++d) {
          p.soa_positions[d * p.soa_stride + start + i] = state == PointState::kNotFinite ? 0.0f : bounded[d];
        }
      }
    }
    if (p.soa_cotangents != nullptr) {
      const float* cotangents = static_cast<const float*>(p.grad_grad_positions) + start * p.n_dims;
      for (int64_t i = 0; i < count; ++i) {
        for (int d = 0; d < p.n_dims; ++d) {
          const float x = positions[(start + i) * p.n_dims + d];
          const bool stopped = p.bounds != Bounds::kNone && !(x >= 0.0f && x <= 1.0f);
          p.soa_cotangents[d * p.soa_stride + start + i] = inside[i] && !stopped ? cotangents[i * p.n_dims + d] : 0.0f;
        }
      }
    }
    if (p.grad_y == nullptr) continue;
    const float* grad_y = static_cast<const float*>(p.grad_y) + start * row;
    points_to_levels(p, count, grad_y, p.level_features + start * p.n_features);
    for (int64_t i = 0; !plain && i < count; ++i) {
      for (int l = 0; !inside[i] && l < p.n_levels; ++l) {
        std::memset(p.level_features + l * p.level_stride + (start + i) * p.n_features, 0,
                    p.n_features * sizeof(float));
      }
    }
  }
}

template <typename T>
static void scalar_forward(const HashEncodeParams& p, int64_t begin, int64_t end);
template <typename T>
static void scalar_backward_table(const HashEncodeParams& p, int64_t begin, int64_t end);
template <typename T>
static void scalar_backward_positions(const HashEncodeParams& p, int64_t begin, int64_t end);

// Work units: (level, chunk of kLevelChunk points), level by level, so that the threads are at few levels at a time and
// share their rows in the outer caches. One thread takes kLanes points at a time, and of each the 2^D rows of its cell;
// the sum over corners is fp32, in their order, whatever vectors the points share. Fills level_features [n_levels,
// n_points, F].
static void hash_encode_forward_range(const HashEncodeParams& p, int64_t begin, int64_t end) {
  const ComputeCorners compute = pick_compute_corners(p.n_dims);
  const RowKernels rows_of = pick_row_kernels(p);
  const int row_bytes = static_cast<int>(p.n_features * element_size(p.table_dtype));
  const int n_corners = static_cast<int>(n_corners_of(p, p.n_dims));
  const int64_t n_chunks = (p.n_points + kLevelChunk - 1) / kLevelChunk;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t l = unit / n_chunks;
    const int64_t first = unit % n_chunks * kLevelChunk;
    const AxisLevel level = axis_level(p, l);
    const char* rows = level_rows(p, level);
    float* out = p.level_features + l * p.level_stride;
    for_each_group(p, level, compute, first, min_count(first + kLevelChunk, p.n_points), rows, row_bytes,
                   [&](const CornerGroup& group, int64_t i, int count) {
                     rows_of.interpolate(group, n_corners, rows, count, out + i * p.n_features);
                   });
  }
}

// `features` to y [n_points, n_levels * n_features], level weights applied; `not_finite` for points that are not.
static void write_features(const HashEncodeParams& p, const float* features, float not_finite, void* out, int64_t begin,
                           int64_t end) {
  const int64_t row = static_cast<int64_t>(p.n_levels) * p.n_features;
  const float* positions = static_cast<const float*>(p.positions);
  for (int64_t start = begin; start < end; start += kBlock) {
    const int64_t count = min_count(kBlock, end - start);
    float* y = static_cast<float*>(out) + start * row;
    levels_to_points(p, count, features + start * p.n_features, y);
    if (within_bounds(positions + start * p.n_dims, count * p.n_dims, p.bounds)) continue;
    for (int64_t i = 0; i < count; ++i) {
      float bounded[kMaxDims];
      const PointState state = apply_bounds(positions + (start + i) * p.n_dims, p.n_dims, p.bounds, bounded);
      if (state == PointState::kInside) continue;
      const float value = state == PointState::kOutside ? 0.0f : not_finite;
      for (int64_t k = 0; k < row; ++k) y[i * row + k] = value;
    }
  }
}

// Work units: points: level_features to y [n_points, n_levels * F], a transposition of squares of vectors. In fp64 the
// whole forward pass.
static void hash_encode_finish_forward_range(const HashEncodeParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::kFloat64) return scalar_forward<double>(p, begin, end);
  write_features(p, p.level_features, std::numeric_limits<float>::quiet_NaN(), p.y, begin, end);
}

// ---- backward ----------------------------------------------------------------------------------------------------

// Adds weight * grad to the corner rows of each point, in point order.
template <int kF, int kCorners>
static void scatter(const CornerGroup& group, int n_corners, float* rows, const float* grad_y, int count) {
  if (kCorners != 0) n_corners = kCorners;
  for (int lane = 0; lane < count; ++lane) {
    const typename RowOf<kF>::Type grad = load_row<kF>(grad_y + lane * kF);
#pragma GCC unroll 16
    for (int c = 0; c < n_corners; ++c) {
      float* target = rows + static_cast<int64_t>(group.corner[c].index[lane]) * kF;
      store_row<kF>(target, load_row<kF>(target) + group.corner[c].weight[lane] * grad);
    }
  }
}

// The same for entries [low, high) only. They are picked first, without branches: whether an entry falls into the
// shard is unpredictable.
template <int kF>
static void scatter_shard(const CornerGroup& group, int n_corners, float* rows, const float* grad_y, int count,
                          uint32_t low, uint32_t high) {
  uint16_t picked[kMaxCorners * kLanes];  // lane + kLanes * corner
  int n_picked = 0;
  for (int c = 0; c < n_corners; ++c) {
    for (int lane = 0; lane < count; ++lane) {
      picked[n_picked] = static_cast<uint16_t>(lane + kLanes * c);
      n_picked += group.corner[c].index[lane] - low < high - low ? 1 : 0;
    }
  }
  for (int i = 0; i < n_picked; ++i) {
    const int c = picked[i] / kLanes, lane = picked[i] % kLanes;
    float* target = rows + static_cast<int64_t>(group.corner[c].index[lane]) * kF;
    store_row<kF>(target, load_row<kF>(target) + group.corner[c].weight[lane] * load_row<kF>(grad_y + lane * kF));
  }
}

// As RowKernels: for a whole level, and for a shard of it.
struct ScatterKernels {
  void (*level)(const CornerGroup&, int, float*, const float*, int);
  void (*shard)(const CornerGroup&, int, float*, const float*, int, uint32_t, uint32_t);
};

template <int kF>
static ScatterKernels scatter_kernels(int n_corners) {
  switch (n_corners) {
    case 4:
      return {&scatter<kF, 4>, &scatter_shard<kF>};
    case 8:
      return {&scatter<kF, 8>, &scatter_shard<kF>};
    case 16:
      return {&scatter<kF, 16>, &scatter_shard<kF>};
    default:
      return {&scatter<kF, 0>, &scatter_shard<kF>};
  }
}

static ScatterKernels pick_scatter(const HashEncodeParams& p) {
  const int n_corners = static_cast<int>(n_corners_of(p, p.n_dims));
  switch (p.n_features) {
    case 1:
      return scatter_kernels<1>(n_corners);
    case 2:
      return scatter_kernels<2>(n_corners);
    case 4:
      return scatter_kernels<4>(n_corners);
    default:
      return scatter_kernels<8>(n_corners);
  }
}

// What a work unit of the table gradient owns.
struct Shard {
  int level;
  uint32_t low, high;  // entries [low, high) of the level
};

// Entries of a level are split evenly, and the split does not depend on the number of threads.
static inline Shard shard_of(const HashEncodeParams& p, int64_t unit) {
  const int level = static_cast<int>(unit / p.n_shards);
  const int64_t shard = unit % p.n_shards;
  const int64_t size = p.levels[level].size;
  return {level, static_cast<uint32_t>(size * shard / p.n_shards),
          static_cast<uint32_t>(size * (shard + 1) / p.n_shards)};
}

// Units [begin, end) of the table gradient: `weigh(level, i, group)` may put other weights into a group before its rows
// are scattered. What joins with the weights of values is scattered before, so that rows are found once for both.
template <typename Weigh>
static inline void scatter_units(const HashEncodeParams& p, int64_t begin, int64_t end, Weigh weigh) {
  const ComputeCorners compute = pick_compute_corners(p.n_dims);
  const ScatterKernels scatter_rows = pick_scatter(p);
  const int n_corners = static_cast<int>(n_corners_of(p, p.n_dims));
  const int row_bytes = static_cast<int>(p.n_features * sizeof(float));
  for (int64_t unit = begin; unit < end; ++unit) {
    const Shard shard = shard_of(p, unit);
    const AxisLevel level = axis_level(p, shard.level);
    float* rows = static_cast<float*>(p.grad_table) + level.offset * p.n_features;
    if (!p.accumulate) {
      std::memset(rows + static_cast<int64_t>(shard.low) * p.n_features, 0,
                  static_cast<int64_t>(shard.high - shard.low) * row_bytes);
    }
    const float* grad = p.level_features + shard.level * p.level_stride;
    const float* first = p.first_features == nullptr ? nullptr : p.first_features + shard.level * p.level_stride;
    const auto add = [&](const CornerGroup& group, const float* grad_y, int count) {
      if (p.n_shards == 1) {
        scatter_rows.level(group, n_corners, rows, grad_y, count);
      } else {
        scatter_rows.shard(group, n_corners, rows, grad_y, count, shard.low, shard.high);
      }
    };
    for_each_group(p, level, compute, 0, p.n_points, reinterpret_cast<const char*>(rows), row_bytes,
                   [&](CornerGroup& group, int64_t i, int count) {
                     if (first != nullptr) add(group, first + i * p.n_features, count);
                     weigh(level, i, &group);
                     add(group, grad + i * p.n_features, count);
                   });
  }
}

// Work units: (level, shard of its entries). One thread owns the shard's rows of grad_table and walks over all points,
// kLanes at a time, adding only what falls into them: no atomics, and each row adds up its points in their order, for
// any number of threads. The number of shards follows from the problem (p.n_shards); with one, rows need no comparison.
static void hash_encode_backward_table_range(const HashEncodeParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::kFloat64) return scalar_backward_table<double>(p, begin, end);
  scatter_units(p, begin, end, [](const AxisLevel&, int64_t, CornerGroup*) {});
}

// d y / dx of kLanes points at one level from the corner dots, added to soa_grad_positions.
template <int kDims>
static void add_position_gradient(const HashEncodeParams& p, const AxisLevel& level, const CornerGroup& group,
                                  const float (*dots)[kLanes], int64_t i) {
  const bool smooth = p.interpolation == Interpolation::kSmoothstep;
  // Along an axis the derivatives of two weights differ in sign alone: the dots of such a pair are subtracted, and
  // weighted by the other axes.
  VecF upper[kDims], lower[kDims];
#pragma GCC unroll 8
  for (int d = 0; d < kDims; ++d) {
    const VecF f = load(group.fraction[d]);
    upper[d] = smooth ? f * f * (3.0f - 2.0f * f) : f;
    lower[d] = 1.0f - upper[d];
  }
#pragma GCC unroll 8
  for (int e = 0; e < kDims; ++e) {
    VecF total = splat(0.0f);
#pragma GCC unroll 8
    for (int c = 0; c < 1 << kDims; ++c) {
      if ((c >> e) & 1) continue;
      VecF difference = load(dots[c | 1 << e]) - load(dots[c]);
#pragma GCC unroll 8
      for (int d = 0; d < kDims; ++d) {
        if (d != e) difference *= (c >> d) & 1 ? upper[d] : lower[d];
      }
      total += difference;
    }
    const VecF f = load(group.fraction[e]);
    const VecF first = smooth ? 6.0f * f * (1.0f - f) * level.scale[e] : splat(level.scale[e]);
    float* out = p.soa_grad_positions + e * p.soa_stride + i;
    store(out, load(out) + total * first);
  }
}

using AddPositionGradient = void (*)(const HashEncodeParams&, const AxisLevel&, const CornerGroup&,
                                     const float (*)[kLanes], int64_t);

static AddPositionGradient pick_add_position_gradient(int n_dims) {
  constexpr AddPositionGradient kByDims[kMaxDims] = {
      &add_position_gradient<1>, &add_position_gradient<2>, &add_position_gradient<3>, &add_position_gradient<4>,
      &add_position_gradient<5>, &add_position_gradient<6>, &add_position_gradient<7>};
  return kByDims[n_dims - 1];
}

// Work units: chunks of kLevelChunk points of level p.current_level; the caller goes from level to level and waits in
// between. One thread adds kLanes points at a time to soa_grad_positions [n_dims, soa_stride]: sums over features, then
// corners, then levels, each in a fixed order, in fp32.
static void hash_encode_backward_positions_range(const HashEncodeParams& p, int64_t begin, int64_t end) {
  const ComputeCorners compute = pick_compute_corners(p.n_dims);
  const RowKernels rows_of = pick_row_kernels(p);
  const int row_bytes = static_cast<int>(p.n_features * element_size(p.table_dtype));
  const int n_corners = static_cast<int>(n_corners_of(p, p.n_dims));
  const AxisLevel level = axis_level(p, p.current_level);
  const char* rows = level_rows(p, level);
  const AddPositionGradient add_gradient = pick_add_position_gradient(p.n_dims);
  const float* grad = p.level_features + p.current_level * p.level_stride;
  float dots[kMaxCorners][kLanes] = {};
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t first = chunk * kLevelChunk;
    for_each_group(p, level, compute, first, min_count(first + kLevelChunk, p.n_points), rows, row_bytes,
                   [&](const CornerGroup& group, int64_t i, int count) {
                     rows_of.dot_rows(group, n_corners, rows, grad + i * p.n_features, count, dots);
                     add_gradient(p, level, group, dots, i);
                   });
  }
}

// Work units: points: soa_grad_positions to [n_points, n_dims]; zero where the bounds policy cuts the gradient. In fp64
// the whole pass.
static void hash_encode_finish_backward_positions_range(const HashEncodeParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::kFloat64) return scalar_backward_positions<double>(p, begin, end);
  const float* positions = static_cast<const float*>(p.positions);
  float* grad_positions = static_cast<float*>(p.grad_positions);
  for (int64_t i = begin; i < end; ++i) {
    for (int d = 0; d < p.n_dims; ++d) {
      const float x = positions[i * p.n_dims + d];
      const bool stopped = p.bounds != Bounds::kNone && !(x >= 0.0f && x <= 1.0f);
      grad_positions[i * p.n_dims + d] = stopped ? 0.0f : p.soa_grad_positions[d * p.soa_stride + i];
    }
  }
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
