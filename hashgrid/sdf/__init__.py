"""Signed distance fields: from a mesh to a neural field and back to a mesh."""

from hashgrid.sdf.config import SdfConfig
from hashgrid.sdf.mesh import Mesh, MeshError, load_mesh
from hashgrid.sdf.model import SdfField

__all__ = ["Mesh", "MeshError", "SdfConfig", "SdfField", "load_mesh"]
