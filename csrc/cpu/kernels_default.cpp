// The CPU kernels for any machine.
#include "cpu/kernels.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#define HASHGRID_ISA default_isa
#define HASHGRID_LANES 4
#include "cpu/kernels.inl"

namespace hashgrid {
const KernelTable& kernels_default() { return default_isa::kTable; }
}  // namespace hashgrid
