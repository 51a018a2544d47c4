// What the kernels of occupancy_update take.
#pragma once

#include <cstdint>

namespace hashgrid {

// Cells whose densities are summed together: the mean must depend on neither threads nor blocks.
constexpr int64_t kOccupancyChunk = 16384;

struct OccupancyUpdateParams {
  int64_t n_cells;
  int64_t n_samples;
  float decay;
  float threshold;  // CPU
  double max_threshold;
  float* density;         // [n_cells]; negative: no camera sees the cell
  uint8_t* bits;          // [ceil(n_cells / 8)]
  const int64_t* cells;   // [n_samples], unique
  const float* values;    // [n_samples]
  double* chunk_sums;     // [n_chunks] sum over the visible cells of each kOccupancyChunk cells
  int64_t* chunk_counts;  // [n_chunks] number of visible cells
  int64_t* invalid_cell;  // [1] set to a member of `cells` that is no cell, if there is one
  float* mean_threshold;  // CUDA: [1] receives the threshold
};

}  // namespace hashgrid
