// Rays through random pixels on CUDA: one thread per ray. Cameras stay in the caches; each pixel is a sector.
#include "cuda/launch.cuh"

#include "core/pixels.h"

namespace hashgrid {
namespace HASHGRID_ISA {

constexpr int kThreads = 128;

// Thread: one ray, the values of its pixel [4] and three random numbers, all drawn by (counter, ray) alone: what a ray
// is does not depend on how many there are. Threads share nothing. The same bits as on the CPU.
__global__ void sample_rays_kernel(HASHGRID_PARAMS SampleRaysParams p) {
  const int64_t ray = global_thread();
  if (ray >= p.n_rays) return;
  const uint32_t key = counter_key(p.counter);
  write_ray(p, key, ray, draw_pixel(p, key, ray));
}

}  // namespace HASHGRID_ISA

using namespace HASHGRID_ISA;

void launch_sample_rays(const SampleRaysParams& p, cudaStream_t stream) {
  HASHGRID_LAUNCH(sample_rays_kernel, blocks_of(p.n_rays, kThreads), stream, p);
}

}  // namespace hashgrid
