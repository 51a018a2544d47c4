"""Signed distance fields: from a mesh or points to a neural field and back to a mesh."""

from hashgrid.data.mesh import Mesh, MeshError, load_mesh
from hashgrid.data.points import PointCloud, load_points
from hashgrid.fields.distance import Field, SdfField
from hashgrid.fields.siren import SirenField
from hashgrid.sdf.checkpoint import load_field, save_field
from hashgrid.sdf.config import SdfConfig

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
