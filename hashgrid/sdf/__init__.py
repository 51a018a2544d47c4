"""Signed distance fields: from a mesh to a neural field and back to a mesh."""

from hashgrid.sdf.config import SdfConfig
from hashgrid.sdf.mesh import Mesh, MeshError, load_mesh
from hashgrid.sdf.model import Field, SdfField

__all__ = ["Mesh", "Field", "MeshError", "SdfConfig", "SdfField", "load_mesh"]
