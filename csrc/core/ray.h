// Rays: intersection with a box (slab method, Kay & Kajiya 1986), steps, occupancy cells, counter-based random numbers.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "core/macros.h"
#include "core/march_rays_params.h"

namespace hashgrid {
namespace HASHGRID_ISA {

// a * b, rounded: the compiler must not fuse it with a later addition. Which cell a step falls into depends on the
// last bit, and every instruction set, device and the reference have to agree on it. Divisions and roots are correctly
// rounded on every device.
//
// sum + a * power_of_two, as by the size of a cascade: the product is exact, so that fusing it changes nothing. On a
// GPU it always is, as tests/cuda/check.py holds kernels to the same machine code with and without contraction.
#if defined(__CUDA_ARCH__)
HASHGRID_HD float add_scaled(float sum, float a, float power_of_two) { return __fmaf_rn(a, power_of_two, sum); }
HASHGRID_HD double add_scaled(double sum, double a, double power_of_two) { return __fma_rn(a, power_of_two, sum); }
HASHGRID_HD float rounded_multiply(float a, float b) { return __fmul_rn(a, b); }
HASHGRID_HD double rounded_multiply(double a, double b) { return __dmul_rn(a, b); }
#else
template <typename T>
HASHGRID_HD T add_scaled(T sum, T a, T power_of_two) {
  return sum + a * power_of_two;
}
template <typename V>
HASHGRID_HD V rounded_multiply(V a, V b) {
  V product = a * b;
#if defined(__clang__)
  // Clang fuses within one expression only, and this one ends here.
#elif defined(__x86_64__)  // an association barrier does not survive GCC's vectoriser
  __asm__("" : "+x"(product));
#elif defined(__aarch64__)
  __asm__("" : "+w"(product));
#elif defined(__GNUC__) && __GNUC__ >= 12
  product = __builtin_assoc_barrier(product);
#endif
  return product;
}
#endif

// ---- counter-based random numbers ("lowbias32", Wellons 2018) ----------------------------------------------------

HASHGRID_HD uint32_t mix_bits(uint32_t h) {
  h ^= h >> 16;
  h *= 0x7feb352du;
  h ^= h >> 15;
  h *= 0x846ca68bu;
  return h ^ (h >> 16);
}

// The part of the hash that is common to all indices.
HASHGRID_HD uint32_t counter_key(uint64_t seed, uint32_t step) {
  uint32_t h = mix_bits(static_cast<uint32_t>(seed) ^ 0x9e3779b9u);
  h = mix_bits(h ^ static_cast<uint32_t>(seed >> 32));
  return mix_bits(h ^ step);
}

// The same for a `counter` [2], seed and step, that lies in memory: a captured graph follows it.
HASHGRID_HD uint32_t counter_key(const int64_t* counter) {
  return counter_key(static_cast<uint64_t>(counter[0]), static_cast<uint32_t>(counter[1]));
}

// 24 random bits in [0, 1).
HASHGRID_HD float counter_uniform(uint32_t key, uint32_t index) {
  return static_cast<float>(mix_bits(key ^ index) >> 8) * 5.9604644775390625e-8f;
}

// ---- box ---------------------------------------------------------------------------------------------------------

template <typename T>
struct RaySpan {
  T begin, end;  // both inf for a miss
};

// An axis with direction zero does not constrain a ray inside its slab. NaN anywhere is a miss.
template <typename T>
HASHGRID_HD RaySpan<T> intersect_box(const T* origin, const T* direction, const T* low, const T* high, T near_limit,
                                     T far_limit) {
  const T inf = std::numeric_limits<T>::infinity();
  T enter = -inf, leave = inf;
  bool hit = true;
  for (int axis = 0; axis < 3; ++axis) {
    const T o = origin[axis], d = direction[axis];
    if (d == T(0)) {
      hit = hit && o >= low[axis] && o <= high[axis];
      continue;
    }
    const T a = (low[axis] - o) / d, b = (high[axis] - o) / d;
    hit = hit && a == a && b == b;
    const T first = a < b ? a : b, last = a < b ? b : a;
    enter = first > enter ? first : enter;
    leave = last < leave ? last : leave;
  }
  enter = enter >= near_limit ? enter : near_limit;
  leave = leave <= far_limit ? leave : far_limit;
  hit = hit && enter <= leave;
  return {hit ? enter : inf, hit ? leave : inf};
}

// ---- marching ----------------------------------------------------------------------------------------------------

// Nested boxes around one centre; cascade c is 2^c times cascade 0. Scaling by 2^c is exact.
template <typename T>
struct MarchGrid {
  int32_t resolution[3];
  int32_t n_cascades;
  T centre[3];
  T half[3];   // half extents of cascade 0
  T cell[3];   // cell sides of cascade 0
  T min_cell;  // smallest of them
  T step_size, cone_angle, max_step;
};

template <typename T>
HASHGRID_HD MarchGrid<T> make_march_grid(const MarchRaysParams& p) {
  const T* aabb = static_cast<const T*>(p.aabb);
  MarchGrid<T> grid;
  grid.n_cascades = p.n_cascades;
  const T outermost = static_cast<T>(1 << (p.n_cascades - 1));
  double diagonal = 0.0;
  for (int axis = 0; axis < 3; ++axis) {
    const T low = aabb[axis], high = aabb[3 + axis];
    grid.resolution[axis] = p.resolution[axis];
    grid.centre[axis] = (low + high) / T(2);
    grid.half[axis] = (high - low) / T(2);
    grid.cell[axis] = (high - low) / static_cast<T>(p.resolution[axis]);
    const double side = static_cast<double>(grid.cell[axis] * outermost);
    diagonal += rounded_multiply(side, side);
  }
  const T* cell = grid.cell;
  grid.min_cell = cell[0] < cell[1] ? (cell[0] < cell[2] ? cell[0] : cell[2]) : (cell[1] < cell[2] ? cell[1] : cell[2]);
  grid.step_size = static_cast<T>(p.step_size);
  grid.cone_angle = static_cast<T>(p.cone_angle);
  grid.max_step = grid.step_size;
  if (p.cone_angle == 0.0) return grid;
  const T max_step = static_cast<T>(::sqrt(diagonal));
  grid.max_step = max_step < grid.step_size ? grid.step_size : max_step;
  return grid;
}

template <typename T>
HASHGRID_HD T step_at(const MarchGrid<T>& grid, T t) {
  T step = rounded_multiply(t, grid.cone_angle);
  step = step < grid.step_size ? grid.step_size : step;
  return step > grid.max_step ? grid.max_step : step;
}

template <typename T>
HASHGRID_HD RaySpan<T> begin_march(const MarchRaysParams& p, const MarchGrid<T>& grid, uint32_t key, int64_t ray) {
  const T* origin = static_cast<const T*>(p.rays_o) + 3 * ray;
  const T* direction = static_cast<const T*>(p.rays_d) + 3 * ray;
  const T growth = static_cast<T>(1 << (p.n_cascades - 1));
  T low[3], high[3];
  for (int axis = 0; axis < 3; ++axis) {
    low[axis] = add_scaled(grid.centre[axis], -grid.half[axis], growth);
    high[axis] = add_scaled(grid.centre[axis], grid.half[axis], growth);
  }
  const T* limits = static_cast<const T*>(p.limits);
  const T near = limits != nullptr ? limits[2 * ray] : static_cast<T>(p.near);
  const T far = limits != nullptr ? limits[2 * ray + 1] : static_cast<T>(p.far);
  RaySpan<T> span = intersect_box(origin, direction, low, high, near, far);
  if (p.counter != nullptr && span.begin < std::numeric_limits<T>::infinity()) {
    const T u = static_cast<T>(counter_uniform(key, static_cast<uint32_t>(ray)));
    span.begin += rounded_multiply(u, step_at(grid, span.begin));
  }
  return span;
}

// A ray is taken to leave a cell this part of a side early. The rounding of distances and positions is smaller: a
// middle in front of there is in the cell for certain, and one behind is looked up. So whether a step is a sample
// depends on its own middle alone, however many empty ones were left out in front of it.
constexpr double kCellMargin = 1.0 / 1024.0;

// Cells are gathered in bricks of kMarchBrick^3. For each brick `bricks` has the distance, in bricks, to the nearest
// one that has to be looked into: the largest of the differences along the axes, so that distance q stands for an empty
// box of 2 q - 1 bricks around it, and 0 for a brick to look into. Those that a finer cascade covers count among them:
// a box may not reach into its cells.

// Whether the next finer cascade covers brick `brick` [3] of a cascade.
HASHGRID_HD bool is_covered(const MarchRaysParams& p, int32_t cascade, const int32_t* brick) {
  bool inside = cascade > 0;
  for (int axis = 0; axis < 3; ++axis) {
    const int32_t quarter = p.resolution[axis] / (4 * kMarchBrick);
    inside = inside && brick[axis] >= quarter && brick[axis] < 3 * quarter;
  }
  return inside;
}

// Whether the cell at distance t is occupied, and where the ray leaves it, or the empty box around it. The cascade is
// the smallest one that contains the point and has no cell side below `step`.
template <typename T>
HASHGRID_HD bool look_up_cell(const MarchRaysParams& p, const MarchGrid<T>& grid, const T* origin, const T* direction,
                              T t, T step, T* t_exit) {
  T point[3];
  for (int axis = 0; axis < 3; ++axis) point[axis] = origin[axis] + rounded_multiply(direction[axis], t);
  int32_t index = 0;
  T growth = T(1);
  for (; index < grid.n_cascades - 1; ++index, growth *= T(2)) {
    bool inside = !(step > grid.min_cell * growth);
    for (int axis = 0; axis < 3; ++axis) {
      const T centre = grid.centre[axis], half = grid.half[axis];
      inside = inside && !(point[axis] < add_scaled(centre, -half, growth)) &&
               !(point[axis] > add_scaled(centre, half, growth));
    }
    if (inside) break;
  }
  T low[3], side[3];
  int32_t cell[3], brick = index;
  for (int axis = 0; axis < 3; ++axis) {
    low[axis] = add_scaled(grid.centre[axis], -grid.half[axis], growth);
    side[axis] = grid.cell[axis] * growth;
    const T last = static_cast<T>(grid.resolution[axis] - 1);
    T position = (point[axis] - low[axis]) / side[axis];
    position = position >= T(0) ? position : T(0);
    position = position > last ? last : position;
    cell[axis] = static_cast<int32_t>(position);
    index = index * grid.resolution[axis] + cell[axis];
    brick = brick * (grid.resolution[axis] / kMarchBrick) + cell[axis] / kMarchBrick;
  }
  const int32_t distance = p.bricks != nullptr ? p.bricks[brick] : 0;
  *t_exit = std::numeric_limits<T>::infinity();
  for (int axis = 0; axis < 3; ++axis) {
    if (direction[axis] == T(0)) continue;
    const bool up = direction[axis] > T(0);
    int32_t last_cell = cell[axis];
    if (distance > 0) {
      const int32_t own = cell[axis] / kMarchBrick, n = grid.resolution[axis];
      const int32_t first = (own - distance + 1) * kMarchBrick, end = (own + distance) * kMarchBrick;
      last_cell = up ? (end < n ? end : n) - 1 : (first > 0 ? first : 0);
    }
    const T margin = static_cast<T>(kCellMargin);
    const T far_vertex = static_cast<T>(last_cell) + (up ? T(1) - margin : margin);
    const T far_side = low[axis] + rounded_multiply(far_vertex, side[axis]);
    const T t_side = (far_side - origin[axis]) / direction[axis];
    *t_exit = t_side < *t_exit ? t_side : *t_exit;
  }
  return distance == 0 && ((p.bits[index >> 3] >> (index & 7)) & 1u) != 0;
}

// Where the march of a ray has come to.
template <typename T>
struct MarchState {
  T t_begin, t_stop;
  T t;        // the next step to look at
  T t_empty;  // growing steps: no cell in front of here is occupied
  int64_t k;  // equal steps: t = t_begin + k * step_size
};

// A ray that hits nothing has no steps.
template <typename T>
HASHGRID_HD MarchState<T> begin_steps(T t_begin, T t_stop) {
  const T inf = std::numeric_limits<T>::infinity();
  return {t_begin, t_stop < inf ? t_stop : -inf, t_begin, -inf, 0};
}

// Moves on behind the ray's next sample, which begins at *t_start; false where there is none.
//
// With equal steps, distances are t_begin + k * step with an integer k: rounding does not build up, and empty cells are
// left in one go. With growing ones every step is taken, and those within a cell known to be empty are not looked up.
template <typename T>
HASHGRID_HD bool next_sample(const MarchRaysParams& p, const MarchGrid<T>& grid, int64_t ray, MarchState<T>* state,
                             T* t_start) {
  const T* origin = static_cast<const T*>(p.rays_o) + 3 * ray;
  const T* direction = static_cast<const T*>(p.rays_d) + 3 * ray;
  const bool equal_steps = grid.cone_angle == T(0);
  for (;;) {
    const T t = state->t, step = step_at(grid, t);
    const T middle = add_scaled(t, step, T(0.5));
    if (!(middle < state->t_stop) || !(t + step > t)) return false;  // a step too small to change t would never end
    if (middle < state->t_empty) {
      state->t = t + step;
      continue;
    }
    T t_exit;
    const bool occupied = look_up_cell(p, grid, origin, direction, middle, step, &t_exit);
    if (!equal_steps) {
      if (!occupied) state->t_empty = t_exit;
      state->t = t + step;
    } else {
      int64_t n = 1;
      if (!occupied) {
        const T limit = t_exit < state->t_stop ? t_exit : state->t_stop;
        const T skip = ::floor((limit - middle) / step);
        if (skip > T(0)) n = static_cast<int64_t>(skip) + 1;
      }
      state->k += n;
      state->t = state->t_begin + rounded_multiply(static_cast<T>(state->k), grid.step_size);
    }
    if (!occupied) continue;
    *t_start = t;
    return true;
  }
}

// The march of one ray up to its max_samples-th sample; emit(t_start) is called for each. Returns their number.
template <typename T, typename Emit>
HASHGRID_HD int64_t march_ray(const MarchRaysParams& p, const MarchGrid<T>& grid, int64_t ray, T t_begin, T t_stop,
                              int64_t max_samples, Emit emit) {
  MarchState<T> state = begin_steps(t_begin, t_stop);
  T t_start;
  int64_t count = 0;
  for (; count < max_samples && next_sample(p, grid, ray, &state, &t_start); ++count) emit(t_start);
  return count;
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
