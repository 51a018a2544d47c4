// Counter-based random numbers on the CPU.
#include "core/counter_uniform_params.h"

namespace hashgrid {
namespace HASHGRID_ISA {

// Work units: numbers of u [n], each from index[i] and the counter alone.
static void counter_uniform_range(const CounterUniformParams& p, int64_t begin, int64_t end) {
  const uint32_t key = counter_key(p.counter);
  for (int64_t i = begin; i < end; ++i) p.u[i] = counter_uniform(key, static_cast<uint32_t>(p.index[i]));
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
