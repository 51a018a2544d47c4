// Geometry of a grid's levels.
#pragma once

#include <cstdint>

namespace hashgrid {

constexpr int kMaxDims = 7;
constexpr int kMaxLevels = 64;
constexpr int kMaxAxes = 192;  // levels times dimensions, where axes differ: what fits a kernel's parameters

// How a raw 32-bit index becomes an entry of its level; all three equal `index % size`.
enum class IndexWrap : int32_t {
  kMask,  // size is a power of two
  kOnce,  // index < 2 * size is known: one conditional subtraction
  kModulo,
};

// A level with the same scale and resolution on every axis.
struct GridLevel {
  float scale;          // cells per unit length
  uint32_t resolution;  // vertices per axis
  uint32_t size;        // entries
  int64_t offset;       // first entry
  bool hashed;
  IndexWrap wrap;
};

// What of the levels may differ from axis to axis: [n_levels, n_dims].
struct GridAxes {
  float scales[kMaxAxes];
  uint32_t resolutions[kMaxAxes];
};

// A level of either kind. Dense indices are x + y rx + z rx ry + ...
struct AxisLevel {
  float scale[kMaxDims];
  uint32_t resolution[kMaxDims];
  uint32_t size;
  int64_t offset;
  bool hashed;
  IndexWrap wrap;
};

}  // namespace hashgrid
