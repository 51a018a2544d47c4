"""Neural fields by name: one method, one file."""

from hashgrid.fields.base import RadianceField
from hashgrid.fields.classic import Classic, ClassicPaper
from hashgrid.fields.conv_occupancy import ConvOccupancy
from hashgrid.fields.deepsdf import DeepSdf, DeepSdfPaper
from hashgrid.fields.distance import DistanceField, GridDistance
from hashgrid.fields.latent import LatentField
from hashgrid.fields.local_grid import LocalGrid
from hashgrid.fields.ngp import Ngp
from hashgrid.fields.occupancy import Occupancy, OccupancyPoints
from hashgrid.fields.planes import PlanesField
from hashgrid.fields.siren import SirenDistance
from hashgrid.fields.udf import UnsignedDistance

RADIANCE_FIELDS: dict[str, type[RadianceField]] = {
    "ngp": Ngp,
    "classic": Classic,
    "classic_paper": ClassicPaper,
    "planes": PlanesField,
}
DISTANCE_FIELDS: dict[str, type[DistanceField]] = {"grid": GridDistance, "siren": SirenDistance}
LATENT_FIELDS: dict[str, type[LatentField]] = {
    "deepsdf": DeepSdf,
    "deepsdf_paper": DeepSdfPaper,
    "occupancy": Occupancy,
    "occupancy_points": OccupancyPoints,
    "conv_occupancy": ConvOccupancy,
    "local_grid": LocalGrid,
    "udf": UnsignedDistance,
}
