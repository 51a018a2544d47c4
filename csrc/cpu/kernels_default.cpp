// The CPU kernels for any machine.
#include "cpu/kernels.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#define HASHGRID_ISA default_isa
#define HASHGRID_LANES 4
#if defined(__aarch64__)
#define HASHGRID_HAS_FMA 1
#endif
#include "cpu/kernels.inl"

namespace hashgrid {
const KernelTable& kernels_default() { return default_isa::kTable; }
}  // namespace hashgrid
