// The field of Instant-NGP (Müller et al. 2022, section 5.4) as one kernel, without gradients: hash grid, density
// network, and the colour network, whose inputs are the 16 outputs of the former and what is known of the point's ray.
// Values are rounded where the ops on their own would round them.
#include "cuda/hash_encode_tiles.cuh"

namespace hashgrid {
namespace HASHGRID_ISA {

constexpr int kFieldTiles = 4;  // networks up to 64 wide

// Densities of rows `first` and on: exp of column 0, which every fourth lane holds.
__device__ inline void store_densities(const RadianceFieldParams& p, int64_t first, const Sums<kRowTiles>& geometry) {
  if (lane_index() % 4 == 0) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int64_t row = first + m * kTile + row_of(2 * h);
        if (row < p.density.n_rows) p.sigmas[row] = activate(geometry.values[m][2 * h], Activation::kExp);
      }
    }
  }
  __syncwarp();
}

// The colour network's inputs from column 16 on: row rays[n] of `ray_features` for point n, NaN where there is none,
// zeros behind its last column.
template <class Half>
__device__ inline void load_ray_factors(const RadianceFieldParams& p, int64_t first,
                                        Factors<Half, kFieldTiles, kRowTiles>* factors) {
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int64_t n = first + m * kTile + row_of(2 * h);
      const int64_t ray = p.rays[n < p.density.n_rows ? n : first];
      const bool exists = ray >= 0 && ray < p.n_rays;
      const float* features = p.ray_features + (exists ? ray : 0) * p.n_ray_features;
#pragma unroll
      for (int k = 1; k < kFieldTiles; ++k) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int column = (k - 1) * kTile + 8 * half + lane_index() % 4 * 2;
          float pair[2] = {};
          if (column < p.n_ray_features) {
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

template <typename Element, class Half>
__device__ inline void evaluate_field(const RadianceFieldParams& p) {
  const GridLevel* levels = share_levels(p.grid);
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kForwardWarps + warp_index()) * (kRowTiles * kTile);
  if (first >= p.density.n_rows) return;
  Factors<Half, kFieldTiles, kRowTiles> factors;
  encode_factors<Element, Half, 3>(p.grid, levels, first, &factors);
  pass_hidden_layers<Half, kFieldTiles, kRowTiles, true>(p.density, &factors);
  Sums<kRowTiles> geometry;
  forward_tile(p.density, p.density.layers[p.density.n_layers - 1], 0, factors, &geometry);
  store_densities(p, first, geometry);
  pack_sums<Half>(geometry, factors.words[0]);
  load_ray_factors(p, first, &factors);
  pass_hidden_layers<Half, kFieldTiles, kRowTiles, true>(p.color, &factors);
  write_last_layer(p.color, first, factors);
}

// Warp: 32 points through grid and both networks; hidden layers are ReLU.
template <typename Element, class Half>
__global__ void __launch_bounds__(kForwardWarps* kWarpSize, 2)
    radiance_field_kernel(HASHGRID_PARAMS RadianceFieldParams p) {
  if constexpr (kHasMma) evaluate_field<Element, Half>(p);
}

template <class Half>
void launch_of_factors(const RadianceFieldParams& p, cudaStream_t stream) {
  const LaunchShape shape = blocks_of_warps(p.density.n_rows, kRowTiles);
  if (p.grid.table_dtype == DType::kFloat32) {
    HASHGRID_LAUNCH_TOGETHER((radiance_field_kernel<float, Half>), shape, stream, p);
  } else {
    HASHGRID_LAUNCH_TOGETHER((radiance_field_kernel<Half, Half>), shape, stream, p);
  }
}

}  // namespace HASHGRID_ISA

using namespace HASHGRID_ISA;

bool has_radiance_field(const RadianceFieldParams& p) {
  constexpr int kWidest = kFieldTiles * kTile;
  return p.grid.n_dims == 3 && has_tiles(p.grid, p.density.factors) && has_fused_layers(p.density) &&
         widest_of(p.density) <= kWidest && widest_of(p.color) <= kWidest &&
         p.density.layers[p.density.n_layers - 1].n_out == kTile && p.n_ray_features % 2 == 0;
}

void launch_radiance_field(const RadianceFieldParams& p, cudaStream_t stream) {
  launch_pack(p.density, stream);
  launch_pack(p.color, stream);
  if (p.density.factors == MlpFactors::kFloat16) return launch_of_factors<Float16>(p, stream);
  launch_of_factors<BFloat16>(p, stream);
}

}  // namespace hashgrid
