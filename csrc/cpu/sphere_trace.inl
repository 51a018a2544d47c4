// One step of sphere tracing on the CPU.
#include "core/sphere_trace_params.h"

namespace hashgrid {
namespace HASHGRID_ISA {

// Work units: rows of positions [n_points, 3], each of a ray that no other row has. Nothing is shared.
static void sphere_trace_range(const SphereTraceParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::kFloat64) {
    for (int64_t unit = begin; unit < end; ++unit) trace_unit<double>(p, unit);
  } else {
    for (int64_t unit = begin; unit < end; ++unit) trace_unit<float>(p, unit);
  }
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
