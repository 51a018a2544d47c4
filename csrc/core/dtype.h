// Numbers in memory.
#pragma once

#include <cstdint>

namespace hashgrid {

enum class DType : int32_t { kFloat32, kFloat64, kFloat16, kBFloat16 };

}  // namespace hashgrid
