"""Surfaces from photos: seen as the radiance fields that they are trained as."""

from __future__ import annotations

from hashgrid.viewer.nerf import subject_of

__all__ = ["subject_of"]
