// Sums of values times lengths along rays on the CPU.
//
// Samples of a ray are neighbours in memory and each is read once: memory is the limit, and 0.8 ns per sample of one
// channel are about that of one core.
#include "core/line_integrals_params.h"

namespace hashgrid {
namespace HASHGRID_ISA {

// Channels whose sums stay in registers at a time.
constexpr int64_t kIntegralChannels = 8;

// sum values_i steps_i over n samples that lie side by side. Four vectors of sums, so that an addition need not wait
// for the one before; a sample's place in its ray alone says which of them it goes into.
static inline float sum_along(const float* values, const float* steps, int64_t n) {
  VecF sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    for (int k = 0; k < 4; ++k) sums[k] += load(values + i + k * kLanes) * load(steps + i + k * kLanes);
  }
  for (; i + kLanes <= n; i += kLanes) sums[0] += load(values + i) * load(steps + i);
  float rest = 0.0f;
  for (; i < n; ++i) rest += values[i] * steps[i];
  return sum((sums[0] + sums[1]) + (sums[2] + sums[3])) + rest;
}

// fp64 is for checks: in the order of the samples.
static inline double sum_along(const double* values, const double* steps, int64_t n) {
  double total = 0.0;
  for (int64_t i = 0; i < n; ++i) total += values[i] * steps[i];
  return total;
}

// The same of several channels, a few of them at a time; rows of values are read whole.
template <typename T>
static void sum_rows_along(const T* values, const T* steps, int64_t n, int64_t n_channels, T* out) {
  for (int64_t base = 0; base < n_channels; base += kIntegralChannels) {
    const int64_t n_here = min_count(kIntegralChannels, n_channels - base);
    T sums[kIntegralChannels] = {};
    for (int64_t i = 0; i < n; ++i) {
      const T* row = values + i * n_channels + base;
      for (int64_t c = 0; c < n_here; ++c) sums[c] += steps[i] * row[c];
    }
    for (int64_t c = 0; c < n_here; ++c) out[base + c] = sums[c];
  }
}

template <typename T>
static void line_integrals_forward_typed(const LineIntegralsParams& p, int64_t begin, int64_t end) {
  const int64_t n_channels = p.n_channels;
  for (int64_t ray = begin; ray < end; ++ray) {
    const int64_t first = p.packed_info[2 * ray], n = p.packed_info[2 * ray + 1];
    const T* values = static_cast<const T*>(p.values) + first * n_channels;
    const T* steps = static_cast<const T*>(p.steps) + first;
    T* out = static_cast<T*>(p.sums) + ray * n_channels;
    if (n_channels == 1) {
      *out = sum_along(values, steps, n);
    } else {
      sum_rows_along(values, steps, n, n_channels, out);
    }
  }
}

template <typename T>
static void line_integrals_backward_typed(const LineIntegralsParams& p, int64_t begin, int64_t end) {
  const int64_t n_channels = p.n_channels;
  for (int64_t ray = begin; ray < end; ++ray) {
    const int64_t first = p.packed_info[2 * ray], n = p.packed_info[2 * ray + 1];
    const T* grad = static_cast<const T*>(p.grad_sums) + ray * n_channels;
    if (p.grad_values != nullptr) {
      const T* steps = static_cast<const T*>(p.steps) + first;
      T* out = static_cast<T*>(p.grad_values) + first * n_channels;
      if (n_channels == 1) {  // vector code without the loop over channels
        const T g = *grad;
        for (int64_t i = 0; i < n; ++i) out[i] = g * steps[i];
      } else {
        for (int64_t i = 0; i < n; ++i) {
          for (int64_t c = 0; c < n_channels; ++c) out[i * n_channels + c] = grad[c] * steps[i];
        }
      }
    }
    if (p.grad_steps != nullptr) {
      const T* values = static_cast<const T*>(p.values) + first * n_channels;
      T* out = static_cast<T*>(p.grad_steps) + first;
      for (int64_t i = 0; i < n; ++i) {
        T total = T(0);
        for (int64_t c = 0; c < n_channels; ++c) total += grad[c] * values[i * n_channels + c];
        out[i] = total;
      }
    }
  }
}

// Work units: rays, which share nothing. A ray's samples lie side by side, [n_samples, n_channels] and [n_samples]; one
// channel is summed in vectors of neighbours, more channels in the order of the samples, all in T. Writes sums
// [n_rays, n_channels], zeros for a ray without samples.
static void line_integrals_forward_range(const LineIntegralsParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::kFloat64) return line_integrals_forward_typed<double>(p, begin, end);
  line_integrals_forward_typed<float>(p, begin, end);
}

// Work units: rays. Writes grad_values [n_samples, n_channels] and grad_steps [n_samples], each unless it is null; a
// sample belongs to one ray. A dot product over the channels runs in their order, in T.
static void line_integrals_backward_range(const LineIntegralsParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::kFloat64) return line_integrals_backward_typed<double>(p, begin, end);
  line_integrals_backward_typed<float>(p, begin, end);
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
