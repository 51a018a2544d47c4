// Middles of samples in space, on CUDA: one thread per sample. Samples of a ray lie side by side, so that a warp reads
// few rays.
#include "cuda/launch.cuh"

#include "core/sample_positions.h"

namespace hashgrid {
namespace HASHGRID_ISA {

constexpr int kThreads = 256;

// Thread: one sample of positions [n_samples, 3], from its ray's rows of rays_o and rays_d and its own interval; NaN
// where the ray does not exist. Threads share nothing. The same bits as on the CPU.
template <typename T>
__global__ void sample_positions_kernel(HASHGRID_PARAMS SamplePositionsParams p) {
  const int64_t n = global_thread();
  if (n < p.n_samples) write_position<T>(p, n);
}

}  // namespace HASHGRID_ISA

using namespace HASHGRID_ISA;

void launch_sample_positions(const SamplePositionsParams& p, cudaStream_t stream) {
  const LaunchShape shape = blocks_of(p.n_samples, kThreads);
  if (p.dtype == DType::kFloat64) {
    HASHGRID_LAUNCH((sample_positions_kernel<double>), shape, stream, p);
  } else {
    HASHGRID_LAUNCH((sample_positions_kernel<float>), shape, stream, p);
  }
}

}  // namespace hashgrid
