// Where the density network of a radiance field ends and the colour network begins, in a warp's registers: the 16
// outputs of the one are a tile of the other's factors as they are, and what is known of the points' rays, which few
// rays share, is read beside them.
#pragma once

#include "cuda/mlp_tiles.cuh"

#include <limits>

namespace hashgrid {
namespace HASHGRID_ISA {

constexpr int kRadianceTiles = 4;  // networks up to 64 wide

// use(row, m, v): of a warp's rows from `first` on, those whose column 0 is value v of this lane's sums m; every fourth
// lane holds some.
template <int kM, typename Use>
__device__ inline void with_first_column(const MlpParams& p, int64_t first, Use use) {
  if (lane_index() % 4 == 0) {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int v = 0; v < 4; v += 2) {
        const int64_t row = first + m * kTile + row_of(v);
        if (row < p.n_rows) use(row, m, v);
      }
    }
  }
  __syncwarp();
}

// The ray of a warp's row, of rows `first` and on. Rows behind the last are given the ray of `first`.
struct RayOfRow {
  const MlpParams& p;
  int64_t first;

  __device__ int64_t operator()(int row) const { return p.rays[first + row < p.n_rows ? first + row : first]; }
};

// The colour network's inputs from column 16 on: row ray_of(row) of `ray_features`, NaN where there is none, zeros
// behind its last column and in rows from n_rows on. All lanes ask together, each for its rows.
template <class Half, int kM, typename RayOf>
__device__ inline void load_ray_factors(const MlpParams& p, RayOf ray_of, int64_t n_rows,
                                        Factors<Half, kRadianceTiles, kM>* factors) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = m * kTile + row_of(2 * h);
      const int64_t ray = ray_of(row);
      const bool inside = row < n_rows, exists = ray >= 0 && ray < p.n_rays;
      const float* features = static_cast<const float*>(p.ray_features) + (exists ? ray : 0) * p.n_ray_features;
#pragma unroll
      for (int k = 1; k < kRadianceTiles; ++k) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int column = (k - 1) * kTile + 8 * half + lane_index() % 4 * 2;
          float pair[2] = {};
          if (inside && column < p.n_ray_features) {
            pair[0] = pair[1] = std::numeric_limits<float>::quiet_NaN();
            if (exists) load_row<float, 2>(features + column, pair);
          }
          factors->words[k][m][2 * half + h] = pack_pair<Half>(pair[0], pair[1]);
        }
      }
    }
  }
  __syncwarp();
}

// From the density network's last hidden layer to the colour network's. use(geometry): what the former makes.
template <class Half, int kM, typename RayOf, typename Use>
__device__ inline void pass_to_colors(const MlpParams& p, RayOf ray_of, Factors<Half, kRadianceTiles, kM>* factors,
                                      Use use) {
  Sums<kM> geometry;
  forward_tile(p, p.layers[p.n_density_layers - 1], 0, *factors, &geometry);
  use(geometry);
  pack_sums<Half>(geometry, factors->words[0]);
  load_ray_factors(p, ray_of, kM * kTile, factors);  // nobody reads what becomes of rows behind the last
  pass_hidden_layers<Half, kRadianceTiles, kM, true>(p, p.n_density_layers, p.n_layers - 1, factors);
}

// From there to densities and colours of rows `first` and on.
template <class Half, int kM>
__device__ inline void write_radiance(const MlpParams& p, int64_t first, Factors<Half, kRadianceTiles, kM>* factors) {
  pass_to_colors(p, RayOfRow{p, first}, factors, [&](const Sums<kM>& geometry) {
    with_first_column<kM>(p, first, [&](int64_t row, int m, int v) {
      static_cast<float*>(p.sigmas)[row] = activate(geometry.values[m][v], Activation::kExp);
    });
  });
  write_last_layer(p, first, *factors);
}

// Whether kernels take these networks: 16 geometry features, layers up to 64 wide, whole pairs of ray features.
inline bool has_radiance_tiles(const MlpParams& p) {
  return has_fused_layers(p) && widest_of(p) <= kRadianceTiles * kTile &&
         p.layers[p.n_density_layers - 1].n_out == kTile && p.n_ray_features % 2 == 0;
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
