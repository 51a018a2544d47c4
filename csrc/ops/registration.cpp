// Every schema. Arguments that take part in autograd have no defaults: torch drops defaulted ones from
// needs_input_grad.
#include <torch/csrc/stable/library.h>

// The library of the emulated CUDA ops has another name; see tests/host.
#if !defined(HASHGRID_LIBRARY)
#define HASHGRID_LIBRARY hashgrid
#endif
// Torch makes a string of its argument; that of 2.10 does so before the argument is expanded.
#define HASHGRID_EXPANDED_LIBRARY(name, m) STABLE_TORCH_LIBRARY(name, m)

// The levels of a grid, as hashgrid.levels.LevelTable.arguments holds them; ops/levels.h reads them.
#define HASHGRID_LEVELS_SCHEMA "float[] scales, int[] geometry, "

// `sigmas` of composite are densities, or alphas.
#define HASHGRID_COMPOSITE_SCHEMA                                                        \
  "Tensor sigmas, Tensor features, Tensor t_starts, Tensor t_ends, Tensor packed_info, " \
  "float early_stop_eps, bool are_alphas"
#define HASHGRID_COMPOSITE_GRADIENTS_SCHEMA                                                        \
  "Tensor? grad_ray_features, Tensor? grad_opacities, Tensor? grad_depths, Tensor? grad_weights, " \
  "Tensor? grad_distortion, Tensor? grad_transmittances, "

HASHGRID_EXPANDED_LIBRARY(HASHGRID_LIBRARY, m) {
  m.def("hash_encode(Tensor positions, Tensor table, Tensor? level_weights, " HASHGRID_LEVELS_SCHEMA
        "int interpolation, int bounds) -> Tensor");
  m.def(
      "hash_encode_backward(Tensor grad_y, Tensor positions, Tensor table, Tensor? "
      "level_weights, " HASHGRID_LEVELS_SCHEMA
      "int interpolation, int bounds, bool need_positions, bool need_table, bool need_level_weights, "
      "bool deterministic) "
      "-> (Tensor, Tensor, Tensor)");
  m.def(
      "hash_encode_accumulate_table_gradient(Tensor(a!) grad_table, Tensor? grad_grad_positions, "
      "Tensor? grad_features, Tensor grad_y, Tensor positions, Tensor? level_weights, " HASHGRID_LEVELS_SCHEMA
      "int interpolation, int bounds, bool deterministic) -> ()");
  m.def(
      "hash_encode_backward_backward(Tensor? grad_grad_positions, Tensor? grad_grad_table, "
      "Tensor? grad_grad_level_weights, Tensor grad_y, Tensor positions, Tensor table, Tensor? "
      "level_weights, " HASHGRID_LEVELS_SCHEMA
      "int interpolation, int bounds, bool need_positions, bool need_table, bool need_level_weights, "
      "bool deterministic) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("hash_encode_jet(Tensor positions, Tensor directions, Tensor table, " HASHGRID_LEVELS_SCHEMA
        "int interpolation, int bounds) -> (Tensor, Tensor, Tensor)");
  m.def(
      "hash_encode_jet_backward(Tensor? grad_y, Tensor? grad_first, Tensor? grad_second, Tensor positions, "
      "Tensor directions, Tensor table, " HASHGRID_LEVELS_SCHEMA
      "int interpolation, int bounds, bool need_positions, bool need_directions, bool need_table, bool deterministic) "
      "-> (Tensor, Tensor, Tensor)");
  m.def("sh_encode(Tensor directions, int degree) -> Tensor");
  m.def("sh_encode_backward(Tensor grad_y, Tensor directions, int degree) -> Tensor");
  m.def("frequency_encode(Tensor x, int n_frequencies, bool pi) -> Tensor");
  m.def("frequency_encode_backward(Tensor grad_y, Tensor x, int n_frequencies, bool pi) -> Tensor");
  m.def(
      "adam_step(Tensor(a!) param, Tensor(b!) grad, Tensor(c!) exp_avg, Tensor(d!) exp_avg_sq, Tensor(e!) steps, "
      "Tensor lr, float beta1, float beta2, float eps, float weight_decay, bool skip_zero, Tensor(f!)? ema, "
      "Tensor(g!)? ema_last, float ema_decay, Tensor? global_step, Tensor(h!)? shadow, bool zero_grad) -> ()");
  m.def(
      "adam_step_foreach(Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] exp_avgs, Tensor(d!)[] exp_avg_sqs, "
      "Tensor(e!)[] steps, Tensor lr, float beta1, float beta2, float eps, float weight_decay, Tensor(f!)[] emas, "
      "Tensor(g!)[] ema_lasts, float ema_decay, Tensor? global_step, bool zero_grad) -> ()");
  m.def("ray_aabb(Tensor rays_o, Tensor rays_d, Tensor aabb, float near, float far) -> (Tensor, Tensor)");
  m.def(
      "sphere_trace(Tensor distances, Tensor rays, Tensor rays_o, Tensor rays_d, Tensor speed, Tensor t_max, "
      "Tensor(a!) state, Tensor(b!) status, Tensor(c!) n_evaluations, float epsilon, float step_scale) -> Tensor");
  m.def(
      "march_rays(Tensor rays_o, Tensor rays_d, Tensor aabb, Tensor bits, int[] resolution, int n_cascades, "
      "float step_size, float cone_angle, float near, float far, Tensor? limits, Tensor? counter, Tensor? n_rays, "
      "int max_samples_per_ray, int? n_samples) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("composite(" HASHGRID_COMPOSITE_SCHEMA
        ", bool need_transmittances) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("composite_backward(" HASHGRID_COMPOSITE_GRADIENTS_SCHEMA HASHGRID_COMPOSITE_SCHEMA ") -> (Tensor, Tensor)");
  m.def(
      "composite_backward_backward(Tensor? grad_grad_sigmas, Tensor? "
      "grad_grad_features, " HASHGRID_COMPOSITE_GRADIENTS_SCHEMA HASHGRID_COMPOSITE_SCHEMA
      ") -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("line_integrals(Tensor values, Tensor steps, Tensor packed_info) -> Tensor");
  m.def(
      "line_integrals_backward(Tensor grad_sums, Tensor values, Tensor steps, Tensor packed_info, bool need_values, "
      "bool need_steps) -> (Tensor, Tensor)");
  m.def(
      "visible_samples(Tensor sigmas, Tensor t_starts, Tensor t_ends, Tensor packed_info, float early_stop_eps) "
      "-> (Tensor, Tensor)");
  m.def(
      "window_samples(Tensor rays_o, Tensor rays_d, Tensor sigmas, Tensor t_starts, Tensor t_ends, Tensor packed_info, "
      "int begin, int end, float early_stop_eps) -> (Tensor, Tensor)");
  m.def(
      "pixel_loss(Tensor colors, Tensor opacities, Tensor background, Tensor targets, Tensor? n_rays, float beta) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  m.def("sample_positions(Tensor rays_o, Tensor rays_d, Tensor ray_indices, Tensor t_starts, Tensor t_ends) -> Tensor");
  m.def("gather_rows(Tensor[] blocks, Tensor rows, Tensor? beside, Tensor? beside_rows) -> Tensor");
  m.def("visible_cells(Tensor density, Tensor? chosen) -> Tensor");
  m.def("counter_uniform(Tensor counter, Tensor index) -> Tensor");
  m.def(
      "sample_rays(Tensor counter, int n_rays, Tensor data, Tensor offsets, Tensor sizes, Tensor c2w, "
      "Tensor intrinsics, Tensor? plane_points, Tensor? plane_rows) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("occupancy_points(Tensor cells, Tensor aabb, int[] resolution, int n_cascades, Tensor? counter) -> Tensor");
  m.def("occupancy_visible(Tensor planes, Tensor aabb, int[] resolution, int n_cascades) -> Tensor");
  m.def(
      "occupancy_update(Tensor(a!) density, Tensor(b!) bits, Tensor cells, Tensor values, float decay, "
      "float max_threshold) -> ()");
  m.def(
      "mlp(Tensor x, Tensor[] weights, Tensor[] biases, int activation, int output_activation, int factors) "
      "-> Tensor");
  m.def(
      "mlp_backward(Tensor grad_y, Tensor x, Tensor[] weights, Tensor[] biases, int activation, "
      "int output_activation, int factors, bool need_x, bool need_params) -> (Tensor, Tensor)");
  m.def(
      "mlp_with_gradient(Tensor grad_y, Tensor x, Tensor[] weights, Tensor[] biases, int activation, "
      "int output_activation) -> (Tensor, Tensor)");
  m.def(
      "mlp_backward_backward(Tensor cotangent, Tensor? grad_values, Tensor grad_y, Tensor x, Tensor[] weights, "
      "Tensor[] biases, "
      "int activation, int output_activation, bool need_grad_y, bool need_x, bool need_params) "
      "-> (Tensor, Tensor, Tensor)");
  m.def(
      "mlp_jet(Tensor x, Tensor directions, Tensor? accelerations, Tensor? operators, Tensor[] weights, Tensor[] "
      "biases, int activation, "
      "int output_activation) -> (Tensor, Tensor, Tensor)");
  m.def(
      "mlp_jet_backward(Tensor? grad_y, Tensor? grad_first, Tensor? grad_second, Tensor x, Tensor directions, "
      "Tensor? accelerations, Tensor? operators, Tensor[] weights, Tensor[] biases, int activation, int "
      "output_activation, bool need_x, "
      "bool need_directions, bool need_accelerations, bool need_params) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("hash_encode_mlp(Tensor positions, Tensor table, Tensor? level_weights, " HASHGRID_LEVELS_SCHEMA
        "int interpolation, int bounds, Tensor[] weights, Tensor[] biases, int activation, int output_activation, "
        "int factors) -> Tensor");
  m.def(
      "radiance_mlp(Tensor x, Tensor ray_features, Tensor rays, Tensor[] density_weights, Tensor[] color_weights, "
      "int output_activation, int factors) -> (Tensor, Tensor)");
  m.def(
      "radiance_mlp_backward(Tensor grad_sigmas, Tensor grad_colors, Tensor x, Tensor ray_features, Tensor rays, "
      "Tensor[] density_weights, Tensor[] color_weights, int output_activation, int factors, bool need_x, "
      "bool need_params) -> (Tensor, Tensor)");
  // CUDA only: elsewhere colours of what turns out to be hidden cost more than they save.
  m.def("radiance_field(Tensor positions, Tensor table, Tensor ray_features, Tensor rays, " HASHGRID_LEVELS_SCHEMA
        "int interpolation, int bounds, Tensor[] density_weights, Tensor[] color_weights, int output_activation, "
        "int factors) -> (Tensor, Tensor)");
  m.def(
      "render_rays(Tensor rays_o, Tensor rays_d, Tensor ray_features, Tensor aabb, Tensor bits, int[] resolution, "
      "int n_cascades, Tensor field_aabb, Tensor table, " HASHGRID_LEVELS_SCHEMA
      "int interpolation, int bounds, Tensor[] density_weights, Tensor[] color_weights, int output_activation, "
      "int factors, float step_size, float cone_angle, float near, float far, int max_samples_per_ray, "
      "float early_stop_eps) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "occupancy_values(Tensor cells, Tensor aabb, int[] resolution, int n_cascades, Tensor? counter, "
      "Tensor field_aabb, Tensor table, " HASHGRID_LEVELS_SCHEMA
      "int interpolation, int bounds, Tensor[] weights, int factors, float step_size) -> Tensor");
}
