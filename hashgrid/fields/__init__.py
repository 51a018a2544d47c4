"""Neural fields by name: one method, one file."""

from hashgrid.fields.base import RadianceField, SignalField
from hashgrid.fields.classic import Classic, ClassicPaper
from hashgrid.fields.coordinate import CoordinateField
from hashgrid.fields.distance import DistanceField, GridDistance
from hashgrid.fields.modulated import ModulatedSiren
from hashgrid.fields.ngp import Ngp
from hashgrid.fields.planes import PlanesField
from hashgrid.fields.siren import SirenDistance

RADIANCE_FIELDS: dict[str, type[RadianceField]] = {
    "ngp": Ngp,
    "classic": Classic,
    "classic_paper": ClassicPaper,
    "planes": PlanesField,
}
DISTANCE_FIELDS: dict[str, type[DistanceField]] = {"grid": GridDistance, "siren": SirenDistance}
SIGNAL_FIELDS: dict[str, type[SignalField]] = {
    "hash": CoordinateField,
    "modulated": ModulatedSiren,
}
