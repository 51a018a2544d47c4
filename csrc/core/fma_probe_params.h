// What the measurement of the FMA rate takes.
#pragma once

#include <cstdint>

namespace hashgrid {

struct FmaProbeParams {
  int64_t n_rounds;
  float factor, summand;
  float* sink;   // [n_units]
  double* flop;  // [n_units] done
};

}  // namespace hashgrid
