// The levels of a grid as they cross the boundary from Python.
#pragma once

#include "core/hash_encode_params.h"
#include "ops/checks.h"

namespace hashgrid {

// `scales`: one per level and axis, then the shift. `geometry`: a row per level, of a resolution per axis, offset, size
// and hashed.
struct Levels {
  const std::vector<double>& scales;
  const std::vector<int64_t>& geometry;
};

// `resolutions` [n_dims] are those of the level.
inline IndexWrap wrap_of(const GridLevel& level, const int64_t* resolutions, int64_t n_dims, Bounds bounds) {
  if ((level.size & (level.size - 1)) == 0) return IndexWrap::kMask;
  if (level.hashed || bounds == Bounds::kNone) return IndexWrap::kModulo;
  // Vertices run to the resolution when bounds hold, one past the last row.
  double largest = 0.0, stride = 1.0;
  for (int64_t d = 0; d < n_dims; ++d) {
    largest += resolutions[d] * stride;
    stride *= resolutions[d];
  }
  return largest < 2.0 * level.size ? IndexWrap::kOnce : IndexWrap::kModulo;
}

// Into `p`, whose dimensions, entries and bounds are known.
inline void set_levels(const Levels& levels, HashEncodeParams& p) {
  const int64_t n_dims = p.n_dims, row = n_dims + 3;
  const int64_t n_levels = static_cast<int64_t>(levels.geometry.size()) / row;
  STD_TORCH_CHECK(
      n_levels >= 1 && n_levels <= kMaxLevels && static_cast<int64_t>(levels.geometry.size()) == n_levels * row,
      "`geometry` must have 1..", kMaxLevels, " rows of ", row,
      " values (a resolution per axis, offset, size, hashed), got ", levels.geometry.size(), " values");
  STD_TORCH_CHECK(static_cast<int64_t>(levels.scales.size()) == n_levels * n_dims + 1, "`scales` must have ", n_dims,
                  " values for each of the ", n_levels, " levels and the shift, got ", levels.scales.size());
  p.n_levels = static_cast<int32_t>(n_levels);
  p.shift = static_cast<float>(levels.scales.back());
  for (int64_t l = 0; l < n_levels; ++l) {
    const double* scales = levels.scales.data() + l * n_dims;
    const int64_t* resolutions = levels.geometry.data() + l * row;
    const int64_t offset = resolutions[n_dims], size = resolutions[n_dims + 1];
    STD_TORCH_CHECK(offset >= 0 && size >= 1 && size < (int64_t{1} << 31) && offset + size <= p.n_entries, "level ", l,
                    " covers entries [", offset, ", ", offset + size, "), `table` has ", p.n_entries);
    GridLevel& level = p.levels[l];
    level.scale = static_cast<float>(scales[0]);
    level.resolution = static_cast<uint32_t>(resolutions[0]);
    level.offset = offset;
    level.size = static_cast<uint32_t>(size);
    level.hashed = resolutions[n_dims + 2] != 0;
    level.wrap = wrap_of(level, resolutions, n_dims, p.bounds);
    for (int64_t d = 1; d < n_dims; ++d) {
      p.per_axis = p.per_axis || scales[d] != scales[0] || resolutions[d] != resolutions[0];
    }
  }
  if (!p.per_axis) return;
  STD_TORCH_CHECK(n_levels * n_dims <= kMaxAxes, "axes may differ in grids of up to ", kMaxAxes,
                  " levels times dimensions, got ", n_levels, " levels of ", n_dims, " dimensions");
  for (int64_t i = 0; i < n_levels * n_dims; ++i) {
    p.axes.scales[i] = static_cast<float>(levels.scales[i]);
    p.axes.resolutions[i] = static_cast<uint32_t>(levels.geometry[i / n_dims * row + i % n_dims]);
  }
}

}  // namespace hashgrid
