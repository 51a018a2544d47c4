// Rays through random pixels on the CPU.
#include "core/sample_rays_params.h"

namespace hashgrid {
namespace HASHGRID_ISA {

constexpr int64_t kDrawnRays = 64;  // whose pixels are on their way at a time

// Work units: rays, each by (counter, ray) alone. kDrawnRays pixels are drawn before the first is read, so that their
// cache lines arrive meanwhile; writes rays_o, rays_d, rgba and noise.
static void sample_rays_range(const SampleRaysParams& p, int64_t begin, int64_t end) {
  const uint32_t key = counter_key(p.counter);
  int64_t rows[kDrawnRays];
  for (int64_t first = begin; first < end; first += kDrawnRays) {
    const int64_t count = end - first < kDrawnRays ? end - first : kDrawnRays;
    for (int64_t i = 0; i < count; ++i) {
      rows[i] = draw_pixel(p, key, first + i);
      __builtin_prefetch(p.data + rows[i] * p.n_channels);
    }
    for (int64_t i = 0; i < count; ++i) write_ray(p, key, first + i, rows[i]);
  }
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
