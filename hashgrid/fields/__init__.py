"""Neural fields by name: one method, one file."""

from hashgrid.fields.base import RadianceField, SignalField
from hashgrid.fields.classic import Classic, ClassicPaper
from hashgrid.fields.conv_occupancy import ConvOccupancy
from hashgrid.fields.coordinate import CoordinateField
from hashgrid.fields.coordx import CoordXField
from hashgrid.fields.deepsdf import DeepSdf, DeepSdfPaper
from hashgrid.fields.distance import DistanceField, GridDistance, distance_field
from hashgrid.fields.dnerf import Dnerf
from hashgrid.fields.encoded import CpField, DenseField, FourierField, FrequencyField, MlpField, PlanesSignal, VmField
from hashgrid.fields.filters import BaconField, FiltersField
from hashgrid.fields.hexplane import Hexplane
from hashgrid.fields.hypernerf import Hypernerf
from hashgrid.fields.ibrnet import Ibrnet
from hashgrid.fields.idr import Idr
from hashgrid.fields.latent import LatentField
from hashgrid.fields.local_grid import LocalGrid
from hashgrid.fields.mip import Mip, Mip360, MipPaper
from hashgrid.fields.modulated import ModulatedSiren
from hashgrid.fields.neus import Neus
from hashgrid.fields.neus_mlp import NeusMlp
from hashgrid.fields.ngp import Ngp
from hashgrid.fields.ngp_time import NgpTime
from hashgrid.fields.occupancy import Occupancy, OccupancyPoints
from hashgrid.fields.pixelnerf import PixelNerf
from hashgrid.fields.planes import PlanesExplicit, PlanesField, PlanesTime
from hashgrid.fields.plenoxels import Plenoxels
from hashgrid.fields.siren import SirenDistance, SirenField
from hashgrid.fields.tensorf import Tensorf, TensorfCp, TensorfPaper
from hashgrid.fields.triplane import Triplane
from hashgrid.fields.udf import UnsignedDistance
from hashgrid.fields.volsdf import Volsdf
from hashgrid.fields.wire import WireField
from hashgrid.fields.zip import Zip

RADIANCE_FIELDS: dict[str, type[RadianceField]] = {
    "ngp": Ngp,
    "classic": Classic,
    "classic_paper": ClassicPaper,
    "planes": PlanesField,
    "planes_explicit": PlanesExplicit,
    "planes_time": PlanesTime,
    "hexplane": Hexplane,
    "ngp_time": NgpTime,
    "dnerf": Dnerf,
    "hypernerf": Hypernerf,
    "zip": Zip,
    "mip": Mip,
    "mip_paper": MipPaper,
    "mip360": Mip360,
    "plenoxels": Plenoxels,
    "tensorf": Tensorf,
    "tensorf_cp": TensorfCp,
    "tensorf_paper": TensorfPaper,
    "triplane": Triplane,
    "neus": Neus,
    "neus_mlp": NeusMlp,
    "volsdf": Volsdf,
    "idr": Idr,
    "pixelnerf": PixelNerf,
    "ibrnet": Ibrnet,
}
SIGNAL_FIELDS: dict[str, type[SignalField]] = {
    "hash": CoordinateField,
    "dense": DenseField,
    "planes": PlanesSignal,
    "vm": VmField,
    "cp": CpField,
    "mlp": MlpField,
    "frequency": FrequencyField,
    "fourier": FourierField,
    "siren": SirenField,
    "modulated": ModulatedSiren,
    "wire": WireField,
    "mfn": FiltersField,
    "bacon": BaconField,
    "coordx": CoordXField,
}
DISTANCE_FIELDS: dict[str, type[DistanceField]] = {
    "grid": GridDistance,
    "siren": SirenDistance,
    **{name: distance_field(kind) for name, kind in SIGNAL_FIELDS.items() if name not in ("hash", "siren")},
}
LATENT_FIELDS: dict[str, type[LatentField]] = {
    "deepsdf": DeepSdf,
    "deepsdf_paper": DeepSdfPaper,
    "occupancy": Occupancy,
    "occupancy_points": OccupancyPoints,
    "conv_occupancy": ConvOccupancy,
    "local_grid": LocalGrid,
    "udf": UnsignedDistance,
}
