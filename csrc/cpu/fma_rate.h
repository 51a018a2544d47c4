// The rate of multiply-adds in fp32 that the instruction set in use reaches, measured.
#pragma once

namespace hashgrid {

// FLOP/s of `n_threads` threads together, the best of some repetitions of a few milliseconds.
double measure_fma_rate(int n_threads);

}  // namespace hashgrid
