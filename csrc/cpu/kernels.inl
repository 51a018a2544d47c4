// Every range kernel, compiled once per instruction set. Standard headers are included by kernels_<isa>.cpp before
// the target pragma; nothing here may add a static initialiser.
#include "core/adam.h"
#include "core/grid.h"
#include "core/interpolation.h"
#include "cpu/simd.h"

#include "cpu/hash_encode.inl"

#include "cpu/adam_step.inl"

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
    &hash_encode_second_table_range,
    &adam_step_range,
};

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
