// Middles of samples in space, on the CPU.
#include "core/sample_positions_params.h"

namespace hashgrid {
namespace HASHGRID_ISA {

template <typename T>
static void sample_positions_typed(const SamplePositionsParams& p, int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end; ++n) write_position<T>(p, n);
}

// Work units: samples, each on its own; positions [n_samples, 3].
static void sample_positions_range(const SamplePositionsParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::kFloat64) return sample_positions_typed<double>(p, begin, end);
  sample_positions_typed<float>(p, begin, end);
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
