// Loss of composited pixels on the CPU.
#include "core/pixel_loss_params.h"

namespace hashgrid {
namespace HASHGRID_ISA {

template <typename T>
static void pixel_loss_typed(const PixelLossParams& p, int64_t begin, int64_t end) {
  const int64_t n_used = rays_that_count(p);
  const T weight = static_cast<T>(pixel_weight(p, n_used));
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t first = chunk * kLossChunk, last = min_count(first + kLossChunk, p.n_rays);
    double loss = 0.0, error = 0.0;
    for (int64_t ray = first; ray < last; ++ray) {
      if (ray < n_used) {
        add_pixel<T>(p, ray, weight, &loss, &error);
      } else {
        skip_pixel<T>(p, ray);
      }
    }
    p.chunk_losses[chunk] = loss;
    p.chunk_errors[chunk] = error;
  }
}

// Work units: chunks of kLossChunk rays. Writes the gradients of each ray, and the chunk's sums of loss and squared
// error over its rays in order, in fp64.
static void pixel_loss_range(const PixelLossParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::kFloat64) return pixel_loss_typed<double>(p, begin, end);
  pixel_loss_typed<float>(p, begin, end);
}

// Unit: the only one; adds the chunks in order.
static void pixel_loss_sum_range(const PixelLossParams& p, int64_t, int64_t) {
  double loss = 0.0, error = 0.0;
  for (int64_t chunk = 0; chunk * kLossChunk < p.n_rays; ++chunk) {
    loss += p.chunk_losses[chunk];
    error += p.chunk_errors[chunk];
  }
  write_pixel_means(p, loss, error);
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
