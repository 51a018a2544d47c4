// Update of the occupancy grid on the CPU (Müller et al. 2022, appendix E.2).
#include "core/occupancy_update_params.h"

namespace hashgrid {
namespace HASHGRID_ISA {

// Work units: cells of density [n_cells]; negative ones, where no camera looks, stay.
static void occupancy_update_decay_range(const OccupancyUpdateParams& p, int64_t begin, int64_t end) {
  float* density = p.density;
  const float decay = p.decay;
  for (int64_t i = begin; i < end; ++i) density[i] = density[i] >= 0.0f ? density[i] * decay : density[i];
}

// Work units: samples, in cells that are unique: no two write the same density. A cell that does not exist is reported.
static void occupancy_update_raise_range(const OccupancyUpdateParams& p, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const int64_t cell = p.cells[i];
    if (static_cast<uint64_t>(cell) >= static_cast<uint64_t>(p.n_cells)) {
      __atomic_store_n(p.invalid_cell, cell, __ATOMIC_RELAXED);
      continue;
    }
    p.density[cell] = raised_density(p.density[cell], p.values[i]);
  }
}

// Work units: chunks of kOccupancyChunk cells; writes the sum of the densities of a chunk's visible cells, and their
// number. Every kSums-th cell joins one of kSums sums in fp64, which are added in order; the op adds the chunks in
// order.
static void occupancy_update_sum_range(const OccupancyUpdateParams& p, int64_t begin, int64_t end) {
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t first = chunk * kOccupancyChunk;
    const int64_t last = min_count(first + kOccupancyChunk, p.n_cells);
    constexpr int kSums = 16;  // fixed, so that every instruction set adds in the same order
    double sums[kSums] = {};
    int32_t counts[kSums] = {};
    int64_t i = first;
    for (; i + kSums <= last; i += kSums) {
      for (int k = 0; k < kSums; ++k) {
        const float d = p.density[i + k];
        sums[k] += static_cast<double>(d >= 0.0f ? d : 0.0f);
        counts[k] += d >= 0.0f ? 1 : 0;
      }
    }
    for (; i < last; ++i) {
      const float d = p.density[i];
      sums[0] += static_cast<double>(d >= 0.0f ? d : 0.0f);
      counts[0] += d >= 0.0f ? 1 : 0;
    }
    double sum = 0.0;
    int64_t count = 0;
    for (int k = 0; k < kSums; ++k) {
      sum += sums[k];
      count += counts[k];
    }
    p.chunk_sums[chunk] = sum;
    p.chunk_counts[chunk] = count;
  }
}

// Work units: bytes of the bits, from eight cells each, the first in the lowest bit. Spare bits are 0.
static void occupancy_update_pack_range(const OccupancyUpdateParams& p, int64_t begin, int64_t end) {
  for (int64_t byte = begin; byte < end; ++byte) {
    const float* density = p.density + 8 * byte;
    const int64_t n = min_count(8, p.n_cells - 8 * byte);
    uint32_t bits = 0;
#if defined(HASHGRID_HAS_AVX2)
    if (n == 8) {
      const __m256 above = _mm256_cmp_ps(_mm256_loadu_ps(density), _mm256_set1_ps(p.threshold), _CMP_GT_OQ);
      p.bits[byte] = static_cast<uint8_t>(_mm256_movemask_ps(above));
      continue;
    }
#endif
    for (int64_t i = 0; i < n; ++i) bits |= (density[i] > p.threshold ? 1u : 0u) << i;
    p.bits[byte] = static_cast<uint8_t>(bits);
  }
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
