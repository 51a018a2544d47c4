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
#include "cpu/line_integrals.inl"
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
#define HASHGRID_ENTRY(Params, name) &name##_range,
    HASHGRID_CPU_KERNELS(HASHGRID_ENTRY)
#undef HASHGRID_ENTRY
        kHasBFloat16Products,
};

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
