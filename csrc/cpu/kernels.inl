// Every range kernel, compiled once per instruction set. Standard headers are included by kernels_<isa>.cpp before
// the target pragma; nothing here may add a static initialiser.
#include "core/activation.h"
#include "core/activation_jet.h"
#include "core/adam.h"
#include "core/bfloat16.h"
#include "core/dual.h"
#include "core/frequency.h"
#include "core/grid.h"
#include "core/grid_jet.h"
#include "core/grid_point.h"
#include "core/interpolation.h"
#include "core/occupancy.h"
#include "core/pixel_loss.h"
#include "core/pixels.h"
#include "core/ray.h"
#include "core/rounding.h"
#include "core/sample_positions.h"
#include "core/sphere_trace.h"
#include "core/spherical_harmonics.h"
#include "core/volume.h"
#include "cpu/shuffle.h"
#include "cpu/simd.h"
#include "cpu/vector_math.h"

#include "cpu/hash_encode.inl"
#include "cpu/hash_encode_scalar.inl"
#include "cpu/hash_encode_second.inl"
#include "cpu/hash_encode_jet.inl"
#include "cpu/sh_encode.inl"
#include "cpu/frequency_encode.inl"
#include "cpu/ray_aabb.inl"
#include "cpu/sphere_trace.inl"
#include "cpu/march_rays.inl"
#include "cpu/composite.inl"
#include "cpu/visible_samples.inl"
#include "cpu/window_samples.inl"
#include "cpu/fma_probe.inl"
#include "cpu/counter_uniform.inl"
#include "cpu/pixel_loss.inl"
#include "cpu/sample_positions.inl"
#include "cpu/sample_rays.inl"
#include "cpu/occupancy_points.inl"
#include "cpu/occupancy_update.inl"
#include "cpu/occupancy_visible.inl"
#include "cpu/adam_step.inl"
#include "cpu/mlp_products.inl"
#include "cpu/mlp_factors.inl"
#include "cpu/mlp.inl"
#include "cpu/mlp_second.inl"
#include "cpu/mlp_jet.inl"

namespace hashgrid {
namespace HASHGRID_ISA {

static const KernelTable kTable = {
    &hash_encode_prepare_range,
    &hash_encode_forward_range,
    &hash_encode_finish_forward_range,
    &hash_encode_backward_table_range,
    &hash_encode_backward_positions_range,
    &hash_encode_finish_backward_positions_range,
    &hash_encode_backward_level_weights_range,
    &hash_encode_second_points_range,
    &hash_encode_second_level_range,
    &hash_encode_finish_second_range,
    &hash_encode_second_table_range,
    &sh_encode_forward_range,
    &sh_encode_backward_range,
    &frequency_encode_forward_range,
    &frequency_encode_backward_range,
    &adam_step_range,
    &ray_aabb_range,
    &sphere_trace_range,
    &march_rays_bricks_range,
    &march_rays_begin_range,
    &march_rays_range,
    &march_rays_write_range,
    &composite_forward_range,
    &composite_backward_range,
    &visible_samples_count_range,
    &visible_samples_write_range,
    &window_samples_count_range,
    &window_samples_write_range,
    &fma_probe_range,
    &counter_uniform_range,
    &sample_positions_range,
    &sample_rays_range,
    &pixel_loss_range,
    &pixel_loss_sum_range,
    &occupancy_points_range,
    &occupancy_visible_range,
    &occupancy_update_decay_range,
    &occupancy_update_raise_range,
    &occupancy_update_sum_range,
    &occupancy_update_pack_range,
    &mlp_pack_range,
    &mlp_forward_range,
    &mlp_backward_range,
    &mlp_second_range,
    &mlp_reduce_range,
    &mlp_jet_forward_range,
    &mlp_jet_backward_range,
    &hash_encode_jet_forward_range,
    &hash_encode_jet_backward_points_range,
    &hash_encode_jet_backward_table_range,
    kHasBFloat16Products,
};

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
