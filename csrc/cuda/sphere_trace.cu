// One step of sphere tracing on CUDA: one thread per live ray.
#include "cuda/launch.cuh"

#include "core/sphere_trace.h"

namespace hashgrid {
namespace HASHGRID_ISA {

constexpr int kThreads = 256;

// Thread: one row of positions [n_points, 3] and distances [n_points], of ray rays[unit], which no other thread has:
// one step of its `state`, `status` and `n_evaluations` [n_rays], unless it has ended, and its next point. The numbers
// of rays rise, so that neighbours read neighbouring rows while few rays have ended. Nothing is shared or added up.
template <typename T>
__global__ void sphere_trace_kernel(HASHGRID_PARAMS SphereTraceParams p) {
  const int64_t unit = global_thread();
  if (unit < p.n_points) trace_unit<T>(p, unit);
}

}  // namespace HASHGRID_ISA

using namespace HASHGRID_ISA;

void launch_sphere_trace(const SphereTraceParams& p, cudaStream_t stream) {
  const LaunchShape shape = blocks_of(p.n_points, kThreads);
  if (p.dtype == DType::kFloat64) {
    HASHGRID_LAUNCH((sphere_trace_kernel<double>), shape, stream, p);
  } else {
    HASHGRID_LAUNCH((sphere_trace_kernel<float>), shape, stream, p);
  }
}

}  // namespace hashgrid
