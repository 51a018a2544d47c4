// Sums over rays on CUDA.
#pragma once

#include <cstdint>

namespace hashgrid {

// Sums over rays on CUDA take this many rays per block. Their workspace holds a sum per block, then the total, then a
// word that is not 0 if some ray does not lie where it should.
constexpr int64_t kScanChunk = 1024;

}  // namespace hashgrid
