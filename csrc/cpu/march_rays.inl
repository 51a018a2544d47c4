// Ray marching on the CPU.
//
// fp32: kLanes rays advance together, one visited cell each; a lane whose ray ends takes the next ray. A thread has two
// such groups: what one visit computes depends on the one before, and the other group fills the time. Every lane does
// exactly the arithmetic of march_ray in core/ray.h, so which rays share a vector does not show in the result.
// fp64, and rays of so many steps that a float cannot count them, use march_ray itself.
#include "core/march_rays_params.h"

namespace hashgrid {
namespace HASHGRID_ISA {

constexpr double kMaxVectorSteps = 8388608.0;  // 2^23: integers are exact in fp32 up to twice that
constexpr int kBrickShift = 2;
static_assert(1 << kBrickShift == kMarchBrick, "cells of a brick");
constexpr int kRefill = kLanes / 4;  // lanes whose rays have ended before they get new ones: that stalls the others

// GCC would split a vector that goes through __builtin_assoc_barrier into its lanes.
static inline VecF rounded_multiply(VecF a, VecF b) {
  VecF product = a * b;
#if defined(HASHGRID_HAS_AVX512)
  __asm__("" : "+v"(product));
#elif defined(HASHGRID_X86)
  __asm__("" : "+x"(product));
#elif defined(__aarch64__)
  __asm__("" : "+w"(product));
#endif
  return product;
}

static inline VecF minimum(VecF a, VecF b) { return a < b ? a : b; }
static inline VecI minimum(VecI a, VecI b) { return a < b ? a : b; }
static inline VecI maximum(VecI a, VecI b) { return a > b ? a : b; }

// One bit per lane.
static inline uint32_t lane_bits(VecI mask) {
#if defined(HASHGRID_HAS_AVX512)
  return _mm512_movepi32_mask(reinterpret_cast<__m512i>(mask));
#elif defined(HASHGRID_HAS_AVX2)
  return static_cast<uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(mask)));
#else
  uint32_t bits = 0;
  for (int lane = 0; lane < kLanes; ++lane) bits |= (mask[lane] != 0 ? 1u : 0u) << lane;
  return bits;
#endif
}

// 32-bit words by number, one to a lane.
static inline VecU gather_words(const void* words, VecU index) {
#if defined(HASHGRID_HAS_AVX512)
  return reinterpret_cast<VecU>(_mm512_i32gather_epi32(reinterpret_cast<__m512i>(index), words, 4));
#elif defined(HASHGRID_HAS_AVX2)
  return reinterpret_cast<VecU>(
      _mm256_i32gather_epi32(static_cast<const int*>(words), reinterpret_cast<__m256i>(index), 4));
#else
  VecU out;
  for (int lane = 0; lane < kLanes; ++lane) out[lane] = static_cast<const uint32_t*>(words)[index[lane]];
  return out;
#endif
}

// The step from t: one length, or in proportion to t between two bounds.
static inline VecF step_at(const MarchGrid<float>& grid, VecF t) {
  return clamp(t * grid.cone_angle, grid.step_size, grid.max_step);
}

// The rays of a vector, one to a lane.
struct RayLanes {
  VecF origin[3], direction[3];
  VecF t_begin, t_stop;
  VecF k;        // steps taken
  VecF t;        // start of the current step
  VecF t_empty;  // known to be empty up to here, used where steps grow
  VecI count;    // samples found
};

// look_up_cell for one ray per lane; all bits of the result set where the cell is occupied.
template <bool kCascades, bool kBricks>
static inline VecI look_up_cells(const MarchRaysParams& p, const MarchGrid<float>& grid, const RayLanes& rays, VecF t,
                                 VecF step, VecF* t_exit) {
  VecF point[3];
  for (int axis = 0; axis < 3; ++axis) {
    point[axis] = rays.origin[axis] + rounded_multiply(rays.direction[axis], t);
  }
  // The finest cascade that holds the point and whose cells are not shorter than the step.
  VecI index = {};
  VecF growth = splat(1.0f);
  if (kCascades) {
    for (int c = 0; c < grid.n_cascades - 1; ++c) {
      VecI outside = step > grid.min_cell * growth;
      for (int axis = 0; axis < 3; ++axis) {
        const VecF half = grid.half[axis] * growth;
        outside |= (point[axis] < grid.centre[axis] - half) | (point[axis] > grid.centre[axis] + half);
      }
      if (lane_bits(outside) == 0) break;
      index -= outside;
      growth = select(outside, growth * 2.0f, growth);
    }
  }
  // The cell's number, and that of its brick.
  VecF low[3], side[3];
  VecI cell[3], brick = index;
  for (int axis = 0; axis < 3; ++axis) {
    low[axis] = kCascades ? grid.centre[axis] - grid.half[axis] * growth : splat(grid.centre[axis] - grid.half[axis]);
    side[axis] = kCascades ? grid.cell[axis] * growth : splat(grid.cell[axis]);
    const VecF zero = splat(0.0f), last = splat(static_cast<float>(grid.resolution[axis] - 1));
    VecF position = (point[axis] - low[axis]) / side[axis];
    position = position >= zero ? position : zero;  // also where it is NaN
    position = position > last ? last : position;
    cell[axis] = __builtin_convertvector(position, VecI);
    index = index * grid.resolution[axis] + cell[axis];
    if (kBricks) brick = brick * (grid.resolution[axis] >> kBrickShift) + (cell[axis] >> kBrickShift);
  }
  VecI distance = {};
  if (kBricks) {
    const VecU words = gather_words(p.bricks, reinterpret_cast<VecU>(brick >> 2));
    distance = reinterpret_cast<VecI>(words >> reinterpret_cast<VecU>((brick & 3) << 3)) & 0xff;
  }
  // Where the ray leaves the cell or, in empty bricks, the box that they make.
  VecF exit = splat(std::numeric_limits<float>::infinity());
  for (int axis = 0; axis < 3; ++axis) {
    const VecF zero = splat(0.0f), margin = splat(static_cast<float>(kCellMargin));
    const VecF direction = rays.direction[axis];
    const VecI up = direction > zero;
    VecI last_cell = cell[axis];
    if (kBricks) {
      const VecI own = cell[axis] >> kBrickShift, n = grid.resolution[axis] - VecI{};
      const VecI first = maximum((own - distance + 1) << kBrickShift, VecI{});
      const VecI end = minimum((own + distance) << kBrickShift, n);
      last_cell = select(distance > 0, select(up, end - 1, first), last_cell);
    }
    const VecF far_vertex = __builtin_convertvector(last_cell, VecF) + select(up, 1.0f - margin, margin);
    const VecF far_side = low[axis] + rounded_multiply(far_vertex, side[axis]);
    const VecF t_side = (far_side - rays.origin[axis]) / direction;
    exit = minimum(select(direction == zero, exit, t_side), exit);
  }
  *t_exit = exit;
  const VecI look = distance == 0;
  if (kBricks && lane_bits(look) == 0) return VecI{};
  const VecU words = gather_words(p.bits, reinterpret_cast<VecU>(index >> 5));
  return look & -reinterpret_cast<VecI>((words >> reinterpret_cast<VecU>(index & 31)) & 1u);
}

// A lane takes its next ray from here.
class RayQueue {
 public:
  RayQueue(const MarchRaysParams& p, int64_t begin, int64_t end)
      : p_(p), next_(begin), end_(end), out_(static_cast<float*>(p.samples)) {}

  // The ray given to `lane`, or -1 when none is left: the lane idles.
  int64_t load(const MarchGrid<float>& grid, int lane, RayLanes* lanes) {
    for (; next_ < end_; ++next_) {
      const int64_t ray = next_;
      const float t_begin = static_cast<const float*>(p_.t_begin)[ray];
      const float t_stop = static_cast<const float*>(p_.t_stop)[ray];
      if (!(t_stop < std::numeric_limits<float>::infinity())) {
        finish(ray, out_, 0);
        continue;
      }
      if ((static_cast<double>(t_stop) - t_begin) / grid.step_size > kMaxVectorSteps) {
        int64_t count = 0;
        march_ray(p_, grid, ray, t_begin, t_stop, p_.max_samples_per_ray, [&](float t) { out_[count++] = t; });
        finish(ray, out_, count);
        out_ += count;
        continue;
      }
      for (int axis = 0; axis < 3; ++axis) {
        lanes->origin[axis][lane] = static_cast<const float*>(p_.rays_o)[3 * ray + axis];
        lanes->direction[axis][lane] = static_cast<const float*>(p_.rays_d)[3 * ray + axis];
      }
      lanes->t_begin[lane] = t_begin;
      lanes->t_stop[lane] = t_stop;
      lanes->k[lane] = 0.0f;
      lanes->t[lane] = t_begin;
      lanes->t_empty[lane] = -std::numeric_limits<float>::infinity();
      lanes->count[lane] = 0;
      ++next_;
      return ray;
    }
    lanes->t_stop[lane] = -std::numeric_limits<float>::infinity();
    lanes->t[lane] = 0.0f;
    return -1;
  }

  void store(int64_t ray, const float* samples, int64_t count) {
    std::memcpy(out_, samples, count * sizeof(float));
    finish(ray, out_, count);
    out_ += count;
  }

 private:
  void finish(int64_t ray, const float* samples, int64_t count) {
    p_.ray_samples[ray] = samples;
    p_.packed_info[2 * ray + 1] = count;
  }

  const MarchRaysParams& p_;
  int64_t next_, end_;
  float* out_;
};

// kLanes rays under way.
struct RayGroup {
  RayLanes lanes;
  int64_t ray_of[kLanes];
  float* samples;   // [kLanes, lane_capacity]
  uint32_t active;  // lanes that have a ray
};

// Gives the free lanes their next rays.
static void load_rays(const MarchGrid<float>& grid, uint32_t free_lanes, RayQueue* queue, RayGroup* group) {
  for (uint32_t left = free_lanes; left != 0; left &= left - 1) {
    const int lane = __builtin_ctz(left);
    group->ray_of[lane] = queue->load(grid, lane, &group->lanes);
    group->active &= ~(1u << lane);
    group->active |= (group->ray_of[lane] >= 0 ? 1u : 0u) << lane;
  }
}

// Each lane visits one cell. Lanes whose rays have ended wait until there are kRefill of them, or all.
template <bool kEqualSteps, bool kCascades, bool kBricks>
static inline void visit_cells(const MarchRaysParams& p, const MarchGrid<float>& grid, VecI lane_offset, VecI max_count,
                               RayQueue* queue, RayGroup* group) {
  RayLanes& lanes = group->lanes;
  VecF step = step_at(grid, lanes.t);
  VecF middle = lanes.t + step * 0.5f;
  VecF t_end = lanes.t + step;
  VecI looked_up = ~VecI{};
  if (!kEqualSteps) {
    const VecF bound = minimum(lanes.t_empty, lanes.t_stop);
    VecI behind = (middle < bound) & (t_end > lanes.t);
    // A step costs a fraction of a look-up: lanes wait for each other, up to the last few.
    while (__builtin_popcount(lane_bits(behind)) > kLanes / 4) {
      lanes.t = select(behind, t_end, lanes.t);
      step = step_at(grid, lanes.t);
      middle = lanes.t + step * 0.5f;
      t_end = lanes.t + step;
      behind = (middle < bound) & (t_end > lanes.t);
    }
    looked_up = middle >= bound;
  }
  const VecI going = (middle < lanes.t_stop) & (lanes.count < max_count) & (t_end > lanes.t);
  const uint32_t ended = group->active & ~lane_bits(going);
  if (__builtin_popcount(ended) >= kRefill || ended == group->active) {
    for (uint32_t left = ended; left != 0; left &= left - 1) {
      const int lane = __builtin_ctz(left);
      queue->store(group->ray_of[lane], group->samples + lane * p.lane_capacity, lanes.count[lane]);
    }
    load_rays(grid, ended, queue, group);
    return;
  }
  VecF t_exit;
  const VecI occupied = look_up_cells<kCascades, kBricks>(p, grid, lanes, middle, step, &t_exit);
  const VecI emit = occupied & going & looked_up;
  const uint32_t emitted = lane_bits(emit);
  if (emitted != 0) {
#if defined(HASHGRID_HAS_AVX512)
    _mm512_mask_i32scatter_ps(group->samples, static_cast<__mmask16>(emitted),
                              reinterpret_cast<__m512i>(lane_offset + lanes.count), lanes.t, 4);
#else
    for (uint32_t left = emitted; left != 0; left &= left - 1) {
      const int lane = __builtin_ctz(left);
      group->samples[lane_offset[lane] + lanes.count[lane]] = lanes.t[lane];
    }
#endif
    lanes.count -= emit;
  }
  if (kEqualSteps) {
    const VecF zero = splat(0.0f), one = splat(1.0f);
    VecF skip = (minimum(t_exit, lanes.t_stop) - middle) / step;
    skip = skip > zero ? skip : zero;
    VecI whole;
    const VecF steps = select(occupied, one, round_down(skip, &whole) + one);
    lanes.k += select(going, steps, zero);
    lanes.t = lanes.t_begin + rounded_multiply(lanes.k, splat(grid.step_size));
  } else {
    lanes.t_empty = select(looked_up & ~occupied, t_exit, lanes.t_empty);
    lanes.t = select(going, t_end, lanes.t);
  }
}

// Rays [begin, end), the groups in turns until all lanes idle. kEqualSteps: steps do not grow, and empty cells are left
// by whole numbers of them.
template <bool kEqualSteps, bool kCascades, bool kBricks>
static void march_lanes(const MarchRaysParams& p, const MarchGrid<float>& grid, int64_t begin, int64_t end) {
  RayQueue queue(p, begin, end);
  RayGroup groups[kMarchGroups] = {};
  VecI lane_offset;
  for (int lane = 0; lane < kLanes; ++lane) lane_offset[lane] = static_cast<int32_t>(lane * p.lane_capacity);
  for (int g = 0; g < kMarchGroups; ++g) {
    groups[g].samples = static_cast<float*>(p.lane_samples) + g * kLanes * p.lane_capacity;
    load_rays(grid, static_cast<uint32_t>((uint64_t{1} << kLanes) - 1), &queue, &groups[g]);
  }
  const int64_t limit = p.max_samples_per_ray < (1 << 30) ? p.max_samples_per_ray : (1 << 30);
  const VecI max_count = static_cast<int32_t>(limit) - VecI{};
  for (uint32_t active = 1; active != 0;) {
    active = 0;
    for (RayGroup& group : groups) {
      if (group.active == 0) continue;
      visit_cells<kEqualSteps, kCascades, kBricks>(p, grid, lane_offset, max_count, &queue, &group);
      active |= group.active;
    }
  }
}

// ---- bricks, see core/ray.h --------------------------------------------------------------------------------------

// A row of bricks along z: 0 for those to look into. `any` is workspace for kMarchBrick rows of bits.
static void mark_bricks(const MarchRaysParams& p, int32_t cascade, int32_t x, int32_t y, uint8_t* __restrict any,
                        uint8_t* __restrict row) {
  const int64_t n_bytes = p.resolution[2] / 8;  // two bricks each
  const int64_t plane = p.resolution[1] * n_bytes;
  const uint8_t* bits = p.bits + (int64_t{cascade} * p.resolution[0] + x * kMarchBrick) * plane;
  bits += y * kMarchBrick * n_bytes;
  for (int64_t k = 0; k < kMarchBrick * n_bytes; ++k) {
    any[k] = bits[k] | bits[k + plane] | bits[k + 2 * plane] | bits[k + 3 * plane];
  }
  for (int64_t k = 0; k < n_bytes; ++k) {
    const uint8_t both = any[k] | any[k + n_bytes] | any[k + 2 * n_bytes] | any[k + 3 * n_bytes];
    row[2 * k] = (both & 0x0f) != 0 ? 0 : kMaxBrickDistance;
    row[2 * k + 1] = (both & 0xf0) != 0 ? 0 : kMaxBrickDistance;
  }
  int32_t brick[3] = {x, y, 0};
  for (; cascade > 0 && brick[2] < 2 * n_bytes; ++brick[2]) {
    if (is_covered(p, cascade, brick)) row[brick[2]] = 0;
  }
}
static_assert(kMarchBrick == 4, "rows and planes of a brick");

// Along an axis of `count` bricks, `stride` bytes apart: the smallest over the neighbours of the larger of their
// distance and the way there.
static void spread_distances(uint8_t* __restrict to, uint8_t* __restrict copy, int64_t count, int64_t stride) {
  std::memcpy(copy, to, count * stride);
  for (int64_t way = 1; way < kMaxBrickDistance && way < count; ++way) {
    const uint8_t least = static_cast<uint8_t>(way);
    const int64_t n = (count - way) * stride, shift = way * stride;
    for (int64_t i = 0; i < n; ++i) {
      const uint8_t over = copy[i + shift] > least ? copy[i + shift] : least;
      to[i] = to[i] < over ? to[i] : over;
    }
    for (int64_t i = 0; i < n; ++i) {
      const uint8_t over = copy[i] > least ? copy[i] : least;
      to[i + shift] = to[i + shift] < over ? to[i + shift] : over;
    }
  }
}

// Work units: cascades of `bricks` [n_cascades, x, y, z]; `copy` is workspace of the cascade. Rows along z are marked
// and spread, then planes along y, then the cascade along x: the nearest brick by the largest difference of the axes
// comes out of one axis after the other. Bytes are compared in vectors.
static void march_rays_bricks_range(const MarchRaysParams& p, int64_t begin, int64_t end) {
  const int64_t n_x = p.resolution[0] / kMarchBrick, n_y = p.resolution[1] / kMarchBrick;
  const int64_t n_z = p.resolution[2] / kMarchBrick, plane = n_y * n_z;
  for (int64_t cascade = begin; cascade < end; ++cascade) {
    uint8_t* bricks = p.bricks + cascade * n_x * plane;
    uint8_t* copy = p.brick_copies + cascade * (n_x * plane + kMarchBrick * n_z);
    for (int64_t x = 0; x < n_x; ++x) {
      for (int64_t y = 0; y < n_y; ++y) {
        uint8_t* row = bricks + x * plane + y * n_z;
        mark_bricks(p, static_cast<int32_t>(cascade), static_cast<int32_t>(x), static_cast<int32_t>(y), copy, row);
        spread_distances(row, copy, n_z, 1);
      }
      spread_distances(bricks + x * plane, copy, n_y, n_z);
    }
    spread_distances(bricks, copy, n_x, plane);
  }
}

// ---- ranges ------------------------------------------------------------------------------------------------------

template <typename T>
static void march_rays_begin_typed(const MarchRaysParams& p, int64_t begin, int64_t end) {
  const MarchGrid<T> grid = make_march_grid<T>(p);
  const uint32_t key = p.counter != nullptr ? counter_key(p.counter) : 0;
  for (int64_t ray = begin; ray < end; ++ray) {
    const RaySpan<T> span = begin_march(p, grid, key, ray);
    static_cast<T*>(p.t_begin)[ray] = span.begin;
    static_cast<T*>(p.t_stop)[ray] = span.end;
  }
}

// Work units: rays, each on its own: where it enters and leaves the box, t_begin and t_stop [n_rays].
static void march_rays_begin_range(const MarchRaysParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::kFloat64) return march_rays_begin_typed<double>(p, begin, end);
  march_rays_begin_typed<float>(p, begin, end);
}

// Work units: rays. One thread marches its range kMarchGroups * kLanes at a time. Each lane has a row of lane_samples
// [kMarchGroups, kLanes, lane_capacity]; when its ray ends, the samples move to the thread's part of `samples`, one ray
// after another in the order in which rays end. ray_samples and packed_info say where they are and how many.
static void march_rays_range(const MarchRaysParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::kFloat64) {
    const MarchGrid<double> grid = make_march_grid<double>(p);
    double* out = static_cast<double*>(p.samples);
    for (int64_t ray = begin; ray < end; ++ray) {
      const double t_begin = static_cast<const double*>(p.t_begin)[ray];
      const double t_stop = static_cast<const double*>(p.t_stop)[ray];
      int64_t count = 0;
      march_ray(p, grid, ray, t_begin, t_stop, p.max_samples_per_ray, [&](double t) { out[count++] = t; });
      p.ray_samples[ray] = out;
      p.packed_info[2 * ray + 1] = count;
      out += count;
    }
    return;
  }
  const MarchGrid<float> grid = make_march_grid<float>(p);
  const bool equal_steps = grid.cone_angle == 0.0f, cascades = grid.n_cascades > 1;
  if (p.bricks != nullptr && cascades) return march_lanes<true, true, true>(p, grid, begin, end);
  if (p.bricks != nullptr) return march_lanes<true, false, true>(p, grid, begin, end);
  if (equal_steps && cascades) return march_lanes<true, true, false>(p, grid, begin, end);
  if (equal_steps) return march_lanes<true, false, false>(p, grid, begin, end);
  if (cascades) return march_lanes<false, true, false>(p, grid, begin, end);
  march_lanes<false, false, false>(p, grid, begin, end);
}

template <typename T>
static void march_rays_write_typed(const MarchRaysParams& p, int64_t begin, int64_t end) {
  const MarchGrid<T> grid = make_march_grid<T>(p);
  for (int64_t ray = begin; ray < end; ++ray) {
    const int64_t start = p.packed_info[2 * ray], count = p.packed_info[2 * ray + 1];
    const T* samples = static_cast<const T*>(p.ray_samples[ray]);
    T* t_starts = static_cast<T*>(p.t_starts) + start;
    T* t_ends = static_cast<T*>(p.t_ends) + start;
    for (int64_t i = 0; i < count; ++i) {
      t_starts[i] = samples[i];
      t_ends[i] = samples[i] + step_at(grid, samples[i]);
      p.ray_indices[start + i] = ray;
    }
  }
}

// Work units: rays, once the op knows where each one's samples go: t_starts, t_ends and ray_indices [n_samples], in the
// order of rays whatever the order in which they ended.
static void march_rays_write_range(const MarchRaysParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::kFloat64) return march_rays_write_typed<double>(p, begin, end);
  march_rays_write_typed<float>(p, begin, end);
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
