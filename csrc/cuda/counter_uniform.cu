// Counter-based random numbers on CUDA: one thread per number.
#include "cuda/launch.cuh"

#include "core/counter_uniform_params.h"
#include "core/ray.h"

namespace hashgrid {
namespace HASHGRID_ISA {

constexpr int kThreads = 256;

// Thread: number i of u [n] from index[i] and the counter, which all threads read from the cache; they share nothing
// else. The part of the hash that depends on the counter alone costs each thread a dozen integer instructions.
__global__ void counter_uniform_kernel(HASHGRID_PARAMS CounterUniformParams p) {
  const int64_t i = global_thread();
  if (i >= p.n) return;
  p.u[i] = counter_uniform(counter_key(p.counter), static_cast<uint32_t>(p.index[i]));
}

}  // namespace HASHGRID_ISA

using namespace HASHGRID_ISA;

void launch_counter_uniform(const CounterUniformParams& p, cudaStream_t stream) {
  HASHGRID_LAUNCH(counter_uniform_kernel, blocks_of(p.n, kThreads), stream, p);
}

}  // namespace hashgrid
