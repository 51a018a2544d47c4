"""Neural radiance fields: data, model, training, reports."""

from hashgrid.nerf.config import NerfConfig

__all__ = ["NerfConfig"]
