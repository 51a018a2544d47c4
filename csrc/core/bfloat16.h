// Rounding to bfloat16, to nearest with ties to even.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/macros.h"

namespace hashgrid {
namespace HASHGRID_ISA {

HASHGRID_HD uint16_t float_to_bfloat16(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);  // quiet NaN
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
