// Points in the cells of an occupancy grid, on the CPU.
namespace hashgrid {
namespace HASHGRID_ISA {

template <typename T>
static void occupancy_points_typed(const OccupancyPointsParams& p, int64_t begin, int64_t end) {
  const T* aabb = static_cast<const T*>(p.aabb);
  T centre[3], half[3], side[3];
  for (int axis = 0; axis < 3; ++axis) {
    centre[axis] = (aabb[axis] + aabb[3 + axis]) / T(2);
    half[axis] = (aabb[3 + axis] - aabb[axis]) / T(2);
    side[axis] = T(2) * half[axis] / static_cast<T>(p.resolution[axis]);
  }
  const uint32_t key = counter_key(p.seed, p.step);
  T* points = static_cast<T*>(p.points);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t cell = p.cells[i];
    if (static_cast<uint64_t>(cell) >= static_cast<uint64_t>(p.n_cells)) {
      __atomic_store_n(p.invalid_cell, cell, __ATOMIC_RELAXED);
      continue;
    }
    uint32_t rest = static_cast<uint32_t>(cell);
    uint32_t coordinates[3];
    for (int axis = 2; axis >= 0; --axis) {
      const uint32_t n = static_cast<uint32_t>(p.resolution[axis]);
      coordinates[axis] = rest % n;
      rest /= n;
    }
    const T growth = static_cast<T>(1 << rest);
    for (int axis = 0; axis < 3; ++axis) {
      const T u = p.jitter ? static_cast<T>(counter_uniform(key, static_cast<uint32_t>(3 * cell + axis))) : T(0.5);
      const T low = centre[axis] - half[axis] * growth;
      points[3 * i + axis] = low + rounded_multiply(static_cast<T>(coordinates[axis]) + u, side[axis] * growth);
    }
  }
}

static void occupancy_points_range(const OccupancyPointsParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::kFloat64) return occupancy_points_typed<double>(p, begin, end);
  occupancy_points_typed<float>(p, begin, end);
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
