// Multiply-adds that touch no memory: what the units of this instruction set can do, for benchmarks to compare with.
#include "core/fma_probe_params.h"

namespace hashgrid {
namespace HASHGRID_ISA {

// Enough chains to cover the latency of two units, few enough for sixteen registers.
constexpr int kProbeChains = 12;

// Units are repetitions. Each ends with a sum in p.sink, so that the compiler keeps the work.
static void fma_probe_range(const FmaProbeParams& p, int64_t begin, int64_t end) {
  for (int64_t unit = begin; unit < end; ++unit) {
    VecF chains[kProbeChains];
#pragma GCC unroll 16
    for (int i = 0; i < kProbeChains; ++i) chains[i] = splat(static_cast<float>(unit + i));
    const VecF factor = splat(p.factor), summand = splat(p.summand);
    for (int64_t round = 0; round < p.n_rounds; ++round) {
#pragma GCC unroll 16
      for (int i = 0; i < kProbeChains; ++i) chains[i] = chains[i] * factor + summand;
    }
    float total = 0.0f;
    for (int i = 0; i < kProbeChains; ++i) total += sum(chains[i]);
    p.sink[unit] = total;
    p.flop[unit] = 2.0 * kProbeChains * kLanes * static_cast<double>(p.n_rounds);
  }
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
