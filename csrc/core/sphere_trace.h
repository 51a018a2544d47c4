// One step of a ray towards the zero level set of a distance field (Hart 1996), and between two signs.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "core/macros.h"
#include "core/sphere_trace_params.h"
#include "core/ray.h"

namespace hashgrid {
namespace HASHGRID_ISA {

// Between two points of one sign, or of two signs of which the one outside or inside was found last; those below kHit
// are live. The numbers are those of hashgrid/reference/sphere_trace.py.
enum TraceStatus : uint8_t { kMarching = 0, kOutsideMoved = 1, kInsideMoved = 2, kHit = 3, kMiss = 4 };

// "Outside" is the side the ray comes from; d_outside is zero before the field was first asked.
template <typename T>
struct TraceState {
  T t;  // of the next point
  T t_outside, d_outside;
  T t_inside, d_inside;
};

// Where the line through the last two distances has its zero: their fall tells the angle, so that a plane is met
// exactly. At most 16 distances on (3.6 degrees off the surface): two nearly equal ones say nothing.
template <typename T>
HASHGRID_HD T extrapolate_hit(const TraceState<T>& s, T d, T size, T speed, T t_max) {
  const T shift = rounded_multiply(s.t - s.t_outside, d / (s.d_outside - d));
  const T length = shift < T(0) ? -shift : shift;
  const bool trusted = s.d_outside != T(0) && length * speed <= T(16) * size;
  const T t = trusted ? s.t + shift : s.t;
  return t < t_max ? t : t_max;
}

// False position: an end that stays twice counts less (Pegasus, Dowell & Jarratt 1972), or the other one would creep.
template <typename T>
HASHGRID_HD uint8_t narrow_bracket(TraceState<T>* s, uint8_t status, T d, bool crossed) {
  if (crossed) {
    if (status == kInsideMoved) s->d_outside *= s->d_inside / (s->d_inside + d);
    s->t_inside = s->t;
    s->d_inside = d;
  } else {
    if (status == kOutsideMoved) s->d_inside *= s->d_outside / (s->d_outside + d);
    s->t_outside = s->t;
    s->d_outside = d;
  }
  const T width = s->t_inside - s->t_outside;
  s->t = s->t_outside + rounded_multiply(width, s->d_outside / (s->d_outside - s->d_inside));
  if (!(s->t > s->t_outside && s->t < s->t_inside)) s->t = add_scaled(s->t_outside, width, T(0.5));
  if (s->t > s->t_outside && s->t < s->t_inside) return crossed ? kInsideMoved : kOutsideMoved;
  s->t = s->t_outside;  // neighbouring numbers
  return kHit;
}

// The field is `d` at s->t: the new status, and the next t or that of the hit. `speed` is the length of the direction.
template <typename T>
HASHGRID_HD uint8_t step_trace(TraceState<T>* s, uint8_t status, T d, T speed, T t_max, T epsilon, T step_scale) {
  const T inf = std::numeric_limits<T>::infinity();
  const T size = d < T(0) ? -d : d;
  if (!(size < inf)) return kMiss;
  if (size <= epsilon) {
    if (status == kMarching) s->t = extrapolate_hit(*s, d, size, speed, t_max);
    return kHit;
  }
  const bool crossed = s->d_outside != T(0) && (d < T(0)) != (s->d_outside < T(0));
  if (status != kMarching || crossed) return narrow_bracket(s, status, d, crossed);

  // Beyond t_max the field need not be asked, unless it is steeper than 2.
  const T step = size * step_scale / speed;
  const T t = s->t, next = t + step < t_max ? t + step : t_max;
  if (!(add_scaled(t, step, T(0.5)) <= t_max) || !(next < inf)) return kMiss;
  s->t_outside = t;
  s->d_outside = d;
  s->t = next;
  return next == t ? kHit : kMarching;  // nearer than t is rounded
}

// Work unit `unit`: the ray it belongs to, one step on, and its next point. A ray that has ended stays where it is; a
// ray that does not exist has NaN coordinates.
template <typename T>
HASHGRID_HD void trace_unit(const SphereTraceParams& p, int64_t unit) {
  T* position = static_cast<T*>(p.positions) + 3 * unit;
  const int64_t ray = p.rays[unit];
  if (ray < 0 || ray >= p.n_rays) {
    position[0] = position[1] = position[2] = std::numeric_limits<T>::quiet_NaN();
    return;
  }
  TraceState<T>* state = static_cast<TraceState<T>*>(p.state) + ray;
  if (p.status[ray] < kHit) {
    p.status[ray] =
        step_trace(state, p.status[ray], static_cast<const T*>(p.distances)[unit], static_cast<const T*>(p.speed)[ray],
                   static_cast<const T*>(p.t_max)[ray], static_cast<T>(p.epsilon), static_cast<T>(p.step_scale));
    p.n_evaluations[ray] += 1;
  }
  const T* origin = static_cast<const T*>(p.rays_o) + 3 * ray;
  const T* direction = static_cast<const T*>(p.rays_d) + 3 * ray;
  for (int axis = 0; axis < 3; ++axis) position[axis] = origin[axis] + rounded_multiply(direction[axis], state->t);
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
