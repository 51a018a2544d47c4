// Samples of a window along rays that are not opaque yet, on the CPU.
#include "core/window_samples_params.h"

namespace hashgrid {
namespace HASHGRID_ISA {

template <typename T>
static void window_samples_count_typed(const WindowSamplesParams& p, int64_t begin, int64_t end) {
  const T* sigmas = static_cast<const T*>(p.sigmas);
  const T* t_starts = static_cast<const T*>(p.t_starts);
  const T* t_ends = static_cast<const T*>(p.t_ends);
  const T eps = static_cast<T>(p.early_stop_eps);
  for (int64_t ray = begin; ray < end; ++ray) {
    const int64_t first = p.packed_info[2 * ray], n = p.packed_info[2 * ray + 1];
    // Whether a sample is visible depends on those in front of it: its own density need not be known.
    const bool open = p.begin < n && (p.begin == 0 || count_visible(sigmas + first, t_starts + first, t_ends + first,
                                                                    p.begin + 1, eps) > p.begin);
    p.kept_info[2 * ray + 1] = open ? min_count(p.end, n) - p.begin : 0;
  }
}

// Work units: rays; the second column of kept_info [n_rays, 2]. Samples in front of the window are added up as those of
// visible_samples.
static void window_samples_count_range(const WindowSamplesParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::kFloat64) return window_samples_count_typed<double>(p, begin, end);
  window_samples_count_typed<float>(p, begin, end);
}

template <typename T>
static void window_samples_write_typed(const WindowSamplesParams& p, int64_t begin, int64_t end) {
  const T* t_starts = static_cast<const T*>(p.t_starts);
  const T* t_ends = static_cast<const T*>(p.t_ends);
  for (int64_t ray = begin; ray < end; ++ray) {
    const T* origin = static_cast<const T*>(p.rays_o) + 3 * ray;
    const T* direction = static_cast<const T*>(p.rays_d) + 3 * ray;
    const int64_t source = p.packed_info[2 * ray] + p.begin, target = p.kept_info[2 * ray];
    for (int64_t i = 0; i < p.kept_info[2 * ray + 1]; ++i) {
      p.index[target + i] = source + i;
      write_middle(origin, direction, t_starts[source + i], t_ends[source + i],
                   static_cast<T*>(p.positions) + 3 * (target + i));
    }
  }
}

// Work units: rays, once the op knows where each one's samples go: `index` [n_kept] and positions [n_kept, 3].
static void window_samples_write_range(const WindowSamplesParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::kFloat64) return window_samples_write_typed<double>(p, begin, end);
  window_samples_write_typed<float>(p, begin, end);
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
