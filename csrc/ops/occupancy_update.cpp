// occupancy_update: checks and launch. Writes `density` and `bits` in place.
#include <limits>

#include "cpu/capability.h"
#include "cpu/kernels.h"
#include "ops/occupancy_update.h"

namespace hashgrid {
namespace {

void occupancy_update_cpu(Tensor density, Tensor bits, const Tensor& cells, const Tensor& values, double decay,
                          double max_threshold) {
  OccupancyUpdateParams p = make_occupancy_update_params(density, bits, cells, values, decay, max_threshold);
  const int64_t n_chunks = (p.n_cells + kOccupancyChunk - 1) / kOccupancyChunk;
  std::vector<double> sums(n_chunks);
  std::vector<int64_t> counts(n_chunks);
  constexpr int64_t kNone = std::numeric_limits<int64_t>::min();
  int64_t invalid_cell = kNone;
  p.chunk_sums = sums.data();
  p.chunk_counts = counts.data();
  p.invalid_cell = &invalid_cell;

  const KernelTable& kernel = kernels();
  const auto each = [&](RangeKernel<OccupancyUpdateParams> range, int64_t n, int64_t grain) {
    parallel_units(n, grain, [&](int64_t begin, int64_t end) { range(p, begin, end); });
  };
  each(kernel.occupancy_update_decay, p.n_cells, 4 * kOccupancyChunk);
  each(kernel.occupancy_update_raise, p.n_samples, 4 * kOccupancyChunk);
  STD_TORCH_CHECK(invalid_cell == kNone, "`cells` must lie in 0..", p.n_cells - 1, ", got ", invalid_cell);
  each(kernel.occupancy_update_sum, n_chunks, 4);
  double sum = 0.0, count = 0.0;
  for (int64_t chunk = 0; chunk < n_chunks; ++chunk) {
    sum += sums[chunk];
    count += static_cast<double>(counts[chunk]);
  }
  // NaN when no cell is visible: nothing is above it.
  const double mean = sum / count;
  p.threshold = static_cast<float>(mean > max_threshold ? max_threshold : mean);
  each(kernel.occupancy_update_pack, bits.size(0), 8192);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hashgrid, CPU, m) { m.impl("occupancy_update", TORCH_BOX(&occupancy_update_cpu)); }

}  // namespace hashgrid
