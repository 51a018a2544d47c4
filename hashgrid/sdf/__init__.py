"""Signed distance fields: from a mesh or points to a neural field and back to a mesh."""

from hashgrid.sdf.checkpoint import load_field, save_field
from hashgrid.sdf.config import SdfConfig
from hashgrid.sdf.mesh import Mesh, MeshError, load_mesh
from hashgrid.sdf.model import Field, SdfField
from hashgrid.sdf.points import PointCloud, load_points
from hashgrid.sdf.siren import SirenField

__all__ = [
    "Field",
    "Mesh",
    "MeshError",
    "PointCloud",
    "SdfConfig",
    "SdfField",
    "SirenField",
    "load_field",
    "load_mesh",
    "load_points",
    "save_field",
]
