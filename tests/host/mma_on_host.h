// Warp-wide matrix instructions on the host. Fragment maps transcribed from the PTX ISA manual, sections "Matrix
// Fragments for mma.m16n8k16 with floating point type" and "ldmatrix", not from our kernels.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace hashgrid_on_host {

// sum + a[0] b[0] + .. + a[7] b[7] as tensor cores of sm_80 add them up: every term is cut off 2^-24 below the leading
// bit of the largest, what is left is added exactly, and the total cut off to fp32 (Fasi et al. 2021; Khattak &
// Mikaitis 2025). sm_90 takes 16 products at a time and keeps a bit more of each.
inline float truncating_sum(float sum, const float* a, const float* b, size_t stride_b) {
  double terms[9] = {static_cast<double>(sum)}, largest = std::fabs(terms[0]);
  for (unsigned k = 0; k < 8; ++k) {
    terms[k + 1] = static_cast<double>(a[k]) * static_cast<double>(b[k * stride_b]);
    largest = std::fabs(terms[k + 1]) <= largest ? largest : std::fabs(terms[k + 1]);  // NaN counts as the largest
  }
  double total = 0.0;
  const bool finite = largest < std::numeric_limits<double>::infinity();
  const double unit = finite && largest > 0.0 ? std::ldexp(1.0, std::ilogb(largest) - 24) : 0.0;
  for (const double term : terms) total += unit > 0.0 ? std::trunc(term / unit) * unit : term;
  const float nearest = static_cast<float>(total);
  return finite && std::fabs(static_cast<double>(nearest)) > std::fabs(total) ? std::nextafter(nearest, 0.0f) : nearest;
}

// d [16, 8] += a [16, 16] b [16, 8] of 16-bit values; `real` reads one. Products are exact in fp32 (11 bits each at
// most); the sum runs over k in order, in fp32, unless tensor cores' own is asked for.
template <typename Real>
inline void mma_m16n8k16(float* d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Real real,
                         Site site = HASHGRID_HERE) {
  const uint64_t (*all)[4] = exchange(0xffffffffu,
                                      {static_cast<uint64_t>(a[0]) | static_cast<uint64_t>(a[1]) << 32,
                                       static_cast<uint64_t>(a[2]) | static_cast<uint64_t>(a[3]) << 32,
                                       static_cast<uint64_t>(b0) | static_cast<uint64_t>(b1) << 32, 0},
                                      site);
  // Each lane unpacks the rows and columns it needs: those its own sums are in.
  float matrix_a[16][16], matrix_b[16][8];
  const unsigned mine = lane();
  for (unsigned source = 0; source < kWarp; ++source) {
    const unsigned group = source >> 2, in_group = source % 4;
    // a_i of .f16/.bf16, i = 0..7: row = group for 0 <= i < 2 || 4 <= i < 6, else group + 8;
    // col = in_group * 2 + (i & 1) for i < 4, else in_group * 2 + (i & 1) + 8.
    for (unsigned i = 0; group == mine >> 2 && i < 8; ++i) {
      const unsigned row = i < 2 || (i >= 4 && i < 6) ? group : group + 8;
      const unsigned col = in_group * 2 + (i & 1) + (i < 4 ? 0 : 8);
      matrix_a[row][col] = real(static_cast<uint16_t>(all[source][i / 4] >> (16 * (i % 4))));
    }
    // b_i, i = 0..3: row = in_group * 2 + (i & 1) for i < 2, else + 8; col = group.
    for (unsigned i = 0; group / 2 == mine % 4 && i < 4; ++i) {
      const unsigned row = in_group * 2 + (i & 1) + (i < 2 ? 0 : 8);
      matrix_b[row][group] = real(static_cast<uint16_t>(all[source][2] >> (16 * i)));
    }
  }
  // c_i, i = 0..3: row = group for i < 2, else group + 8; col = in_group * 2 + (i & 1).
  const unsigned group = mine >> 2, in_group = mine % 4;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = i < 2 ? group : group + 8, col = in_group * 2 + (i & 1);
    float sum = d[i];
    if (arithmetic().truncating_sums) {
      for (unsigned k = 0; k < 16; k += 8) sum = truncating_sum(sum, &matrix_a[row][k], &matrix_b[k][col], 8);
    } else {
      for (unsigned k = 0; k < 16; ++k) sum += matrix_a[row][k] * matrix_b[k][col];
    }
    d[i] = sum;
  }
}

// Lane 8 i + j gives the address of row j (8 values of 16 bits) of matrix i. Without .trans, register i of a lane holds
// the values (row = lane / 4, columns lane % 4 * 2 + {0, 1}) of matrix i; with it, of the transposed matrix.
inline void ldmatrix_x4_trans(uint32_t (&registers)[4], const void* row, Site site = HASHGRID_HERE) {
  const uint64_t address = static_cast<uint64_t>(reinterpret_cast<uintptr_t>(row));
  const uint64_t (*all)[4] = exchange(0xffffffffu, {address, 0, 0, 0}, site);
  const unsigned mine = lane();
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) fail("ldmatrix from an address that is no multiple of 16");
  for (unsigned i = 0; i < 4; ++i) {
    uint16_t pair[2];
    for (unsigned e = 0; e < 2; ++e) {
      const unsigned source_row = mine % 4 * 2 + e, source_column = mine / 4;
      const uint16_t* values = reinterpret_cast<const uint16_t*>(static_cast<uintptr_t>(all[8 * i + source_row][0]));
      std::memcpy(&pair[e], values + source_column, sizeof(uint16_t));
    }
    registers[i] = static_cast<uint32_t>(pair[0]) | static_cast<uint32_t>(pair[1]) << 16;
  }
}

}  // namespace hashgrid_on_host
