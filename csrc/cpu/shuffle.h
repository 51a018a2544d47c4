// Permutations of vector lanes that are known at compile time, for GCC and Clang.
#pragma once

#include <utility>

#include "cpu/simd.h"

namespace hashgrid {
namespace HASHGRID_ISA {

// Lane i of the result is lane Map::source(i) of x, or of y counted from the number of lanes on.
template <typename Map, typename Vec, int... kLane>
static inline Vec permute(Vec x, Vec y, std::integer_sequence<int, kLane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(x, y, Map::source(kLane)...);
#else
  return __builtin_shuffle(x, y, decltype(x < y){Map::source(kLane)...});
#endif
}
template <typename Map, typename Vec>
static inline Vec permute(Vec x, Vec y) {
  return permute<Map>(x, y, std::make_integer_sequence<int, sizeof(Vec) / 4>());
}
template <typename Map, typename Vec>
static inline Vec permute(Vec x) {
  return permute<Map>(x, x);
}

// x0 y0 x1 y1 ... , its low and its high half
struct InterleaveLow {
  static constexpr int source(int lane) { return lane / 2 + lane % 2 * kLanes; }
};
struct InterleaveHigh {
  static constexpr int source(int lane) { return (lane + kLanes) / 2 + lane % 2 * kLanes; }
};
// The inverse: even and odd lanes of x followed by y
struct EvenLanes {
  static constexpr int source(int lane) { return 2 * lane; }
};
struct OddLanes {
  static constexpr int source(int lane) { return 2 * lane + 1; }
};

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
