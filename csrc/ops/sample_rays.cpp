// sample_rays: checks, allocation and launch.
#include "ops/sample_rays.h"

#include <tuple>

#include "cpu/capability.h"
#include "cpu/kernels.h"

namespace hashgrid {
namespace {

constexpr int64_t kRayGrain = 1024;

// Whether the views lie back to back in the data.
void check_views(const SampleRaysParams& p) {
  bool valid = p.offsets[0] == 0 && p.offsets[p.n_views] == p.n_pixels;
  for (int64_t view = 0; view < p.n_views; ++view) {
    const int64_t width = p.sizes[2 * view], height = p.sizes[2 * view + 1];
    valid = valid && width > 0 && height > 0 && p.offsets[view + 1] - p.offsets[view] == width * height;
  }
  STD_TORCH_CHECK(valid, "`offsets` must be sums of width times height in `sizes`, from 0 to the ", p.n_pixels,
                  " rows of `data`");
}

std::tuple<Tensor, Tensor, Tensor, Tensor> sample_rays_cpu(const Tensor& counter, int64_t n_rays, const Tensor& data,
                                                           const Tensor& offsets, const Tensor& sizes,
                                                           const Tensor& c2w, const Tensor& intrinsics,
                                                           const std::optional<Tensor>& plane_points,
                                                           const std::optional<Tensor>& plane_rows) {
  SampledRays rays;
  const SampleRaysParams p =
      make_sample_rays_params(counter, n_rays, data, offsets, sizes, c2w, intrinsics, plane_points, plane_rows, &rays);
  if (n_rays > 0) check_views(p);
  parallel_units(n_rays, kRayGrain, [&](int64_t begin, int64_t end) { kernels().sample_rays(p, begin, end); });
  return {rays.rays_o, rays.rays_d, rays.rgba, rays.noise};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hashgrid, CPU, m) { m.impl("sample_rays", TORCH_BOX(&sample_rays_cpu)); }

}  // namespace hashgrid
