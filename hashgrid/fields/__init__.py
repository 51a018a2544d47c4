"""Neural fields by name: one method, one file."""

from hashgrid.fields.base import RadianceField
from hashgrid.fields.classic import Classic
from hashgrid.fields.ngp import Ngp
from hashgrid.fields.planes import PlanesField

RADIANCE_FIELDS: dict[str, type[RadianceField]] = {"ngp": Ngp, "classic": Classic, "planes": PlanesField}
