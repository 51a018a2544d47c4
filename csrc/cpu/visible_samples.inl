// Which samples compositing will count, on the CPU. Transmittances are the bits composite.inl computes.
#include "core/visible_samples_params.h"

namespace hashgrid {
namespace HASHGRID_ISA {

// exp(-thickness), the bits that compositing has.
static inline VecF transmittance_of(VecF thickness) {
  VecF transmittance, unused;
  exponentials(-thickness, &transmittance, &unused);
  return transmittance;
}

// Number of samples of the ray in front of the first one below eps.
static int64_t count_visible(const float* sigmas, const float* t_starts, const float* t_ends, int64_t n, float eps) {
  double in_front = 0.0;
  float thickness[kLanes], transmittance[kLanes];
  for (int64_t start = 0; start < n; start += kLanes) {
    const int64_t count = min_count(kLanes, n - start);
    for (int64_t i = 0; i < kLanes; ++i) {
      thickness[i] = static_cast<float>(in_front);
      if (i < count) in_front += sigmas[start + i] * (t_ends[start + i] - t_starts[start + i]);
    }
    store(transmittance, transmittance_of(load(thickness)));
    for (int64_t i = 0; i < count; ++i) {
      if (!(transmittance[i] >= eps)) return start + i;
    }
  }
  return n;
}

static int64_t count_visible(const double* sigmas, const double* t_starts, const double* t_ends, int64_t n,
                             double eps) {
  double in_front = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    if (!(exponential(-in_front) >= eps)) return i;
    in_front += sigmas[i] * (t_ends[i] - t_starts[i]);
  }
  return n;
}

template <typename T>
static void visible_samples_count_typed(const VisibleSamplesParams& p, int64_t begin, int64_t end) {
  const T* sigmas = static_cast<const T*>(p.sigmas);
  const T* t_starts = static_cast<const T*>(p.t_starts);
  const T* t_ends = static_cast<const T*>(p.t_ends);
  for (int64_t ray = begin; ray < end; ++ray) {
    const int64_t first = p.packed_info[2 * ray], n = p.packed_info[2 * ray + 1];
    p.kept_info[2 * ray + 1] =
        count_visible(sigmas + first, t_starts + first, t_ends + first, n, static_cast<T>(p.early_stop_eps));
  }
}

// Work units: rays; the second column of kept_info [n_rays, 2]. Thickness is added up front to back in fp64, one sample
// after the other; its exponentials are taken of kLanes samples together.
static void visible_samples_count_range(const VisibleSamplesParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::kFloat64) return visible_samples_count_typed<double>(p, begin, end);
  visible_samples_count_typed<float>(p, begin, end);
}

// Work units: rays, once the op knows where each one's samples go: consecutive numbers in `index` [n_kept].
static void visible_samples_write_range(const VisibleSamplesParams& p, int64_t begin, int64_t end) {
  for (int64_t ray = begin; ray < end; ++ray) {
    int64_t* index = p.index + p.kept_info[2 * ray];
    for (int64_t i = 0; i < p.kept_info[2 * ray + 1]; ++i) index[i] = p.packed_info[2 * ray] + i;
  }
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
