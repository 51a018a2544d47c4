// Adam on the CPU. The gradient is streamed; of rows without gradient nothing else is touched, so that a step over a
// sparsely used table costs little more than reading its gradient. Every element goes through the same vector code,
// tails included: results do not depend on how the rows are split over threads.
#include "core/adam_step_params.h"

namespace hashgrid {
namespace HASHGRID_ISA {

// All bits but the signs are 0.
static inline bool is_zero(VecF x) {
#if defined(HASHGRID_HAS_AVX512)
  return _mm512_test_epi32_mask(reinterpret_cast<__m512i>(x), _mm512_set1_epi32(0x7fffffff)) == 0;
#elif defined(HASHGRID_HAS_AVX2)
  return _mm256_testz_si256(reinterpret_cast<__m256i>(x), _mm256_set1_epi32(0x7fffffff)) != 0;
#else
  uint64_t words[kLanes / 2];
  std::memcpy(words, &x, sizeof(x));
  uint64_t any = 0;
  for (int i = 0; i < kLanes / 2; ++i) any |= words[i];
  return (any & 0x7fffffff7fffffffull) == 0;
#endif
}

// Lane by lane; compilers find the vector instruction.
static inline VecF square_root(VecF x) {
  for (int i = 0; i < kLanes; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
}

// Round to nearest, ties to even.
static inline uint16_t float_to_float16(float x) {
#if defined(HASHGRID_HAS_AVX2)
  return static_cast<uint16_t>(_cvtss_sh(x, 0));
#else
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x1ffu));
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds past 65504
  if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 leaves the rounded value in the low bits
    float value;
    std::memcpy(&value, &magnitude, 4);
    value += 0.5f;
    uint32_t rounded;
    std::memcpy(&rounded, &value, 4);
    return static_cast<uint16_t>(sign | (rounded - 0x3f000000u));
  }
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13));
#endif
}

// A vector in half precision, rounded to nearest, ties to even; NaN stays NaN.
static inline void store_shadow(uint16_t* out, VecF x, bool bfloat16) {
  if (bfloat16) {
    const VecU bits = reinterpret_cast<VecU>(x);
    const VecU rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const VecU nan = (bits >> 16) | 0x40u;
    const VecU value = (bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded;
    typedef uint16_t VecU16 __attribute__((vector_size(2 * kLanes)));
    const VecU16 narrow = __builtin_convertvector(value, VecU16);
    std::memcpy(out, &narrow, sizeof(narrow));
    return;
  }
#if defined(HASHGRID_HAS_AVX512)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_cvtps_ph(reinterpret_cast<__m512>(x), 0));
#elif defined(HASHGRID_HAS_AVX2)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm256_cvtps_ph(reinterpret_cast<__m256>(x), 0));
#else
  for (int i = 0; i < kLanes; ++i) out[i] = float_to_float16(x[i]);
#endif
}

// The arrays from one element on.
struct AdamPointers {
  float* param;
  float* grad;
  float* exp_avg;
  float* exp_avg_sq;
  float* ema;        // null: no average
  uint16_t* shadow;  // null: no shadow
};

static inline AdamPointers adam_pointers(const AdamStepParams& p, int64_t first) {
  const auto at = [&](void* data) { return static_cast<float*>(data) + first; };
  return {at(p.param),
          at(p.grad),
          at(p.exp_avg),
          at(p.exp_avg_sq),
          p.ema != nullptr ? at(p.ema) : nullptr,
          p.shadow != nullptr ? p.shadow + first : nullptr};
}

// A vector's worth of copies for the last, incomplete vector of a range.
struct AdamTail {
  float values[5][kLanes];
  uint16_t shadow[kLanes];
};

// Pointers to copies of `count` elements; the lanes behind them hold zeros.
static inline AdamPointers load_tail(const AdamPointers& a, int64_t count, AdamTail* tail) {
  std::memset(tail, 0, sizeof(*tail));
  const float* sources[5] = {a.param, a.grad, a.exp_avg, a.exp_avg_sq, a.ema};
  for (int k = 0; k < 5; ++k) {
    if (sources[k] != nullptr) std::memcpy(tail->values[k], sources[k], count * sizeof(float));
  }
  return {tail->values[0],
          tail->values[1],
          tail->values[2],
          tail->values[3],
          a.ema != nullptr ? tail->values[4] : nullptr,
          a.shadow != nullptr ? tail->shadow : nullptr};
}

// Back from the copies: memory behind the range is not written.
static inline void store_tail(const AdamTail& tail, int64_t count, const AdamPointers& a) {
  float* targets[5] = {a.param, a.grad, a.exp_avg, a.exp_avg_sq, a.ema};
  for (int k = 0; k < 5; ++k) {
    if (targets[k] != nullptr) std::memcpy(targets[k], tail.values[k], count * sizeof(float));
  }
  if (a.shadow != nullptr) std::memcpy(a.shadow, tail.shadow, count * sizeof(uint16_t));
}

// kLanes elements; lanes whose mask is 0 keep their values.
template <bool kMasked>
static inline void adam_vector(const AdamStepParams& p, const AdamConstants<float>& constants, const AdamPointers& a,
                               VecF grad, VecI mask, VecF rate, VecF keep) {
  const VecF old_param = load(a.param), old_avg = load(a.exp_avg), old_sq = load(a.exp_avg_sq);
  VecF avg = old_avg, sq = old_sq;
  adam_moments(constants, grad, old_param, &avg, &sq);
  VecF param = adam_apply(constants, old_param, rate, avg, square_root(sq));
  if (kMasked) {
    param = mask ? param : old_param;
    avg = mask ? avg : old_avg;
    sq = mask ? sq : old_sq;
  }
  store(a.param, param);
  store(a.exp_avg, avg);
  store(a.exp_avg_sq, sq);
  if (a.ema != nullptr) {
    // The average catches up with the value that the row had while it was idle, before the new one joins.
    const VecF old_ema = load(a.ema);
    const VecF ema = ema_update(constants, ema_catch_up(old_ema, old_param, keep), param);
    store(a.ema, kMasked ? (mask ? ema : old_ema) : ema);
  }
  if (a.shadow != nullptr) store_shadow(a.shadow, param, p.shadow_dtype == DType::kBFloat16);
  if (p.zero_grad) store(a.grad, VecF{});
}

// `count` elements that share one step count.
static void adam_span(const AdamStepParams& p, const AdamConstants<float>& constants, int64_t first, int64_t count,
                      float rate, float keep) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const AdamPointers a = adam_pointers(p, first + i);
    if (count - i >= kLanes) {
      adam_vector<false>(p, constants, a, load(a.grad), VecI{}, splat(rate), splat(keep));
    } else {
      AdamTail tail;
      const AdamPointers copy = load_tail(a, count - i, &tail);
      adam_vector<false>(p, constants, copy, load(copy.grad), VecI{}, splat(rate), splat(keep));
      store_tail(tail, count - i, a);
    }
  }
}

// Learning rate times bias correction of a step; steps behind the end of the table have its last correction.
static inline float next_rate(const AdamStepParams& p, int32_t step) {
  return static_cast<float>(p.lr) * p.bias_corrections[step < p.n_bias_corrections ? step : p.n_bias_corrections - 1];
}

// What is left of the average of a row after the steps that it was idle.
static inline float next_keep(const AdamStepParams& p, int32_t last) {
  const int32_t idle = p.global_step - 1 - last;
  return p.ema_keeps[idle < p.n_ema_keeps ? idle : p.n_ema_keeps - 1];
}

// Maps of `permute` between lanes of elements and lanes of rows: the lane kDistance away, the row of an element, the
// first element of a row.
template <int kDistance>
struct Neighbour {
  static constexpr int source(int lane) { return lane ^ kDistance; }
};
template <int kF>
struct RowOfLane {
  static constexpr int source(int lane) { return lane / kF; }
};
template <int kF>
struct FirstLaneOfRow {
  static constexpr int source(int lane) { return lane * kF % kLanes; }
};

// kRows counters in the low lanes. The intrinsics keep the compiler from going through the stack.
template <int kRows>
static inline VecI load_counters(const int32_t* p) {
#if defined(HASHGRID_HAS_AVX512)
  return reinterpret_cast<VecI>(_mm512_maskz_loadu_epi32((1u << kRows) - 1, p));
#elif defined(HASHGRID_HAS_AVX2)
  if constexpr (kRows == 4) {
    return reinterpret_cast<VecI>(_mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
#endif
  VecI v = {};
  std::memcpy(&v, p, kRows * sizeof(int32_t));
  return v;
}

template <int kRows>
static inline void store_counters(int32_t* p, VecI v) {
  std::memcpy(p, &v, kRows * sizeof(int32_t));
}

// table[min(index, last)] for the low kRows lanes. A negative index counts as large.
template <int kRows>
static inline VecF look_up(const float* table, int32_t last, VecI index) {
#if defined(HASHGRID_HAS_AVX512)
  const __m512i clipped = _mm512_min_epu32(reinterpret_cast<__m512i>(index), _mm512_set1_epi32(last));
  if constexpr (kRows == 16) return reinterpret_cast<VecF>(_mm512_i32gather_ps(clipped, table, 4));
  if constexpr (kRows == 8) {
    const __m256 found = _mm256_i32gather_ps(table, _mm512_castsi512_si256(clipped), 4);
    return reinterpret_cast<VecF>(_mm512_castps256_ps512(found));
  }
  const __m128 found = _mm_i32gather_ps(table, _mm512_castsi512_si128(clipped), 4);  // unused lanes read entry 0
  return reinterpret_cast<VecF>(_mm512_castps128_ps512(found));
#elif defined(HASHGRID_HAS_AVX2)
  const __m256i clipped = _mm256_min_epu32(reinterpret_cast<__m256i>(index), _mm256_set1_epi32(last));
  if constexpr (kRows == 8) return reinterpret_cast<VecF>(_mm256_i32gather_ps(table, clipped, 4));
  const __m128 found = _mm_i32gather_ps(table, _mm256_castsi256_si128(clipped), 4);
  return reinterpret_cast<VecF>(_mm256_castps128_ps256(found));
#else
  VecF values = {};
  for (int r = 0; r < kRows; ++r) {
    const uint32_t i = static_cast<uint32_t>(index[r]);
    values[r] = table[i < static_cast<uint32_t>(last) ? i : last];
  }
  return values;
#endif
}

// Rows of kF elements, kLanes / kF to a vector.
template <int kF>
static inline void adam_row_vector(const AdamStepParams& p, const AdamConstants<float>& constants,
                                   const AdamPointers& a, int32_t* steps, int32_t* ema_last) {
  constexpr int kRows = kLanes / kF;
  const VecF grad = load(a.grad);
  // A row's lanes are all set where any of them has a gradient.
  VecI mask = grad != VecF{};
  if constexpr (kF >= 2) mask |= permute<Neighbour<1>>(mask);
  if constexpr (kF >= 4) mask |= permute<Neighbour<2>>(mask);
  if constexpr (kF >= 8) mask |= permute<Neighbour<4>>(mask);
  const VecI row_mask = permute<FirstLaneOfRow<kF>>(mask);
  // By the count before this step, one entry further on: rows the mask leaves out may read what they like.
  const VecI count = load_counters<kRows>(steps);
  VecF rate = look_up<kRows>(p.bias_corrections + 1, p.n_bias_corrections - 2, count);
  rate = reinterpret_cast<VecF>(permute<RowOfLane<kF>>(reinterpret_cast<VecI>(rate)));
  store_counters<kRows>(steps, count - row_mask);
  VecF keep = {};
  if (a.ema != nullptr) {
    const VecI last = load_counters<kRows>(ema_last);
    keep = look_up<kRows>(p.ema_keeps, p.n_ema_keeps - 1, (p.global_step - 1) - last);
    keep = reinterpret_cast<VecF>(permute<RowOfLane<kF>>(reinterpret_cast<VecI>(keep)));
    store_counters<kRows>(ema_last, row_mask != 0 ? p.global_step - VecI{} : last);
  }
  adam_vector<true>(p, constants, a, grad, mask, rate * static_cast<float>(p.lr), keep);
}

// Rows of kF elements: a chunk of kChunk vectors is scanned for gradients while the chunk before it is updated.
template <int kF>
static void adam_narrow_rows(const AdamStepParams& p, int64_t begin, int64_t end) {
  const AdamConstants<float> constants = adam_constants<float>(p.beta1, p.beta2, p.eps, p.weight_decay, p.ema_decay);
  constexpr int kRows = kLanes / kF;
  constexpr int kChunk = 64;  // vectors scanned ahead of their update
  const float* grad = static_cast<const float*>(p.grad);
  // First without a branch per vector, which would be mispredicted at every other one.
  const auto scan = [&](int64_t first, int32_t* touched) {
    const int64_t n_vectors = min_count(kChunk, (end - first) / kRows);
    int n_touched = 0;
    for (int k = 0; k < n_vectors; ++k) {
      touched[n_touched] = k;
      n_touched += !is_zero(load(grad + (first + k * kRows) * kF));
    }
    return n_touched;
  };
  // Only touched vectors are read and written. Streams with gaps defeat the hardware's prefetcher, and a burst of
  // prefetches the memory: each vector asks for one of the chunk behind (docs/kernels.md).
  int32_t lists[2][kChunk];
  int64_t row = begin;
  int n_touched = scan(row, lists[0]), current = 0;
  while (row + kRows <= end) {
    const int64_t next_row = row + kChunk * kRows;
    int32_t* next = lists[1 - current];
    const int n_next = next_row < end ? scan(next_row, next) : 0;
    const AdamPointers ahead = adam_pointers(p, next_row * kF);
    for (int k = 0; k < n_touched || k < n_next; ++k) {
      if (k < n_next) {
        const int64_t at = next[k] * static_cast<int64_t>(kLanes);
        __builtin_prefetch(ahead.param + at, 1);
        __builtin_prefetch(ahead.exp_avg + at, 1);
        __builtin_prefetch(ahead.exp_avg_sq + at, 1);
        __builtin_prefetch(p.steps + next_row + next[k] * kRows, 1);
      }
      if (k < n_touched) {
        const int64_t at = row + lists[current][k] * kRows;
        adam_row_vector<kF>(p, constants, adam_pointers(p, at * kF), p.steps + at,
                            p.ema_last != nullptr ? p.ema_last + at : nullptr);
      }
    }
    row = min_count(next_row, row + (end - row) / kRows * kRows);
    n_touched = n_next;
    current = 1 - current;
  }
  if (row == end) return;
  // The last rows, fewer than a vector holds.
  AdamTail tail;
  int32_t steps[kRows] = {}, ema_last[kRows] = {};
  const int64_t n_rows = end - row;
  const AdamPointers a = adam_pointers(p, row * kF);
  const AdamPointers copy = load_tail(a, n_rows * kF, &tail);
  std::memcpy(steps, p.steps + row, n_rows * sizeof(int32_t));
  if (p.ema_last != nullptr) std::memcpy(ema_last, p.ema_last + row, n_rows * sizeof(int32_t));
  adam_row_vector<kF>(p, constants, copy, steps, ema_last);
  store_tail(tail, n_rows * kF, a);
  std::memcpy(p.steps + row, steps, n_rows * sizeof(int32_t));
  if (p.ema_last != nullptr) std::memcpy(p.ema_last + row, ema_last, n_rows * sizeof(int32_t));
}

// Whether any is not zero; NaN is not.
template <typename T>
static inline bool has_gradient(const T* grad, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (grad[i] != T(0)) return true;
  }
  return false;
}

// Rows of any length, one after the other.
static void adam_wide_rows(const AdamStepParams& p, int64_t begin, int64_t end) {
  const AdamConstants<float> constants = adam_constants<float>(p.beta1, p.beta2, p.eps, p.weight_decay, p.ema_decay);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t first = row * p.row_size;
    if (!has_gradient(static_cast<const float*>(p.grad) + first, p.row_size)) continue;
    const float keep = p.ema != nullptr ? next_keep(p, p.ema_last[row]) : 1.0f;
    adam_span(p, constants, first, p.row_size, next_rate(p, ++p.steps[row]), keep);
    if (p.ema != nullptr) p.ema_last[row] = p.global_step;
  }
}

// fp64, `count` elements that share one step count: the exactness path, element by element.
static void adam_span_double(const AdamStepParams& p, int64_t first, int64_t count, int32_t step, int32_t ema_last) {
  const AdamConstants<double> constants = adam_constants<double>(p.beta1, p.beta2, p.eps, p.weight_decay, p.ema_decay);
  const double rate = p.lr * adam_bias_correction(p.beta1, p.beta2, step);
  const double keep = ::pow(p.ema_decay, static_cast<double>(p.global_step - 1 - ema_last));
  double* param = static_cast<double*>(p.param);
  double* grad = static_cast<double*>(p.grad);
  double* exp_avg = static_cast<double*>(p.exp_avg);
  double* exp_avg_sq = static_cast<double*>(p.exp_avg_sq);
  double* ema = static_cast<double*>(p.ema);
  for (int64_t i = first; i < first + count; ++i) {
    const double old_param = param[i];
    adam_moments(constants, grad[i], old_param, &exp_avg[i], &exp_avg_sq[i]);
    param[i] = adam_apply(constants, old_param, rate, exp_avg[i], ::sqrt(exp_avg_sq[i]));
    if (ema != nullptr) ema[i] = ema_update(constants, ema_catch_up(ema[i], old_param, keep), param[i]);
    if (p.zero_grad) grad[i] = 0.0;
    if (p.shadow == nullptr) continue;
    const float narrow = static_cast<float>(param[i]);
    p.shadow[i] = p.shadow_dtype == DType::kBFloat16 ? float_to_bfloat16(narrow) : float_to_float16(narrow);
  }
}

// The same in fp64.
static void adam_rows_double(const AdamStepParams& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t first = row * p.row_size;
    if (!has_gradient(static_cast<const double*>(p.grad) + first, p.row_size)) continue;
    adam_span_double(p, first, p.row_size, ++p.steps[row], p.ema_last != nullptr ? p.ema_last[row] : 0);
    if (p.ema_last != nullptr) p.ema_last[row] = p.global_step;
  }
}

// Work units: rows [n_rows, row_size] with skip_zero, which have counters of their own, else elements, which share one.
// One thread takes a range of them in vectors of kLanes elements: a vector holds kLanes / row_size rows of 1, 2, 4 or 8
// elements, or part of a longer row. Threads share nothing but the rates, which they look up in tables by a row's
// count. All arrays of fp32 have one layout, so that one offset serves param, grad, exp_avg, exp_avg_sq, ema and
// shadow. Nothing is added up over elements.
static void adam_step_range(const AdamStepParams& p, int64_t begin, int64_t end) {
  if (!p.skip_zero) {  // the caller advances the shared counters once all ranges are done
    const int32_t step = *p.steps + 1;
    const int32_t ema_last = p.ema_last != nullptr ? *p.ema_last : p.global_step - 1;
    if (p.dtype == DType::kFloat64) return adam_span_double(p, begin, end - begin, step, ema_last);
    const double rate = p.lr * adam_bias_correction(p.beta1, p.beta2, step);
    const double keep = ::pow(p.ema_decay, static_cast<double>(p.global_step - 1 - ema_last));
    return adam_span(p, adam_constants<float>(p.beta1, p.beta2, p.eps, p.weight_decay, p.ema_decay), begin, end - begin,
                     static_cast<float>(rate), static_cast<float>(keep));
  }
  if (p.dtype == DType::kFloat64) return adam_rows_double(p, begin, end);
  switch (p.row_size) {
    case 1:
      return adam_narrow_rows<1>(p, begin, end);
    case 2:
      return adam_narrow_rows<2>(p, begin, end);
    case 4:
      return adam_narrow_rows<4>(p, begin, end);
    case 8:
      if constexpr (kLanes >= 8) return adam_narrow_rows<8>(p, begin, end);
  }
  adam_wide_rows(p, begin, end);
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
