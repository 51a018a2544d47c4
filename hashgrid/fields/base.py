"""What every field can do, of radiance or of a signal; see `docs/extending.md` for one of one page."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hashgrid.geometry.cameras import Cameras
from hashgrid.geometry.contraction import Contraction, contract, shrinking
from hashgrid.geometry.rays import At
from hashgrid.nn import jets
from hashgrid.ops._ngp.gather_rows import gather_rows
from hashgrid.ops._tensors import keeping_dtype
from hashgrid.util.config import Config


class Kept:
    """What a field has said of samples that turned out to be seen, to go on from: rows of what
    :meth:`RadianceField.sketch` returned, in several windows.

    Args:
        windows: the tensors of each window, [K_i, ...].
        rows: [S] int64, the row of each seen sample in the windows one after the other.
        sigmas: [S], their densities.
        to_train: whether gradients are wanted now.
    """

    def __init__(self, windows: Sequence[tuple[Tensor, ...]], rows: Tensor, sigmas: Tensor, to_train: bool) -> None:
        self._windows, self._rows, self.sigmas, self.to_train = windows, rows, sigmas, to_train

    def column(self, i: int, beside: Tensor | None = None, beside_rows: Tensor | None = None) -> Tensor:
        """Tensor number ``i`` of the sketch at the seen samples [S, n], then rows ``beside_rows`` [S] of ``beside``."""
        return gather_rows([window[i] for window in self._windows], self._rows, beside=beside, beside_rows=beside_rows)


@dataclass(frozen=True)
class FusedRadiance:
    """What the kernels take of a hash grid and two networks; see :func:`hashgrid.ops._ngp.render_rays`."""

    table: dict[str, Any]  # arguments of the hash grid
    networks: dict[str, Any]  # weights and options of the density and the colour network
    encode_directions: Callable[[Tensor], Tensor]  # [R, 3] -> [R, E]


class RadianceField(nn.Module):
    """Density, and colour of what the density said, of points in a box. A method is a subclass with ``density`` and
    ``color``; everything else has a default.

    Args:
        aabb: [6] box the field covers, in the scene's coordinates.
    """

    Config: ClassVar[type[Config]]  # the class of its options
    recipe: ClassVar[dict[str, Any]] = {}  # options of training that differ from the task's
    sampler: ClassVar[str] = "occupancy"  # name of where along a ray it is asked
    n_coarse: int = 64  # samples per ray of a sampler that knows of no empty space,
    n_fine: int = 64  # and further ones of a finer look
    # what it asks of rays it is trained on (``at.rays``), "camera", "time" and "coverage"; others may know none, and a
    # grid of occupancy asks for densities at no time at all
    needs: Collection[str] = ()
    # whether colours depend on what the density carried on, a tensor [S, G], and on the ray alone, so that neighbours
    # can be asked for one together
    colors_follow_carry: ClassVar[bool] = False
    boxed: ClassVar[bool] = False  # whether it is for things in a box: where a scene has no end another is around it
    coarse_weight: ClassVar[float] = 1.0  # of the loss of what was seen at a first look, beside the second
    coarse: RadianceField | None  # another field, asked before to find where to ask this one; None for none
    proposals: nn.ModuleList  # fields of density alone, asked one after the other before all others
    contraction: Contraction = "none"  # whether all of space is in the cube, and the box in the middle half of it
    calm_distance: float = 0.0  # from a camera, up to which gradients are scaled down; 0 for none
    initial_density: float = 1.0  # per unit of length, of fields whose densities are exponentials
    level_weights: Tensor | None = None  # [n_levels] of its levels of detail, where they come one after the other
    capture: Any  # what is learned of the pictures beside the scene, hashgrid.rendering.refinement.Capture; or None
    labeler: Any  # what is seen, of classes, hashgrid.rendering.labels.LabelHead; or None
    aabb: Tensor
    inverse_extent: Tensor

    def __init__(self, aabb: Tensor) -> None:
        super().__init__()
        self.capture = None
        self.labeler = None
        self.coarse = None  # of the class it would hide a module of that name
        self.proposals = nn.ModuleList()
        self.register_buffer("aabb", aabb.float().clone())
        self.register_buffer("inverse_extent", torch.empty(3, dtype=torch.float32), persistent=False)
        _set_inverse_extent(self)
        self.register_load_state_dict_post_hook(_set_inverse_extent)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RadianceField:
        super()._apply(keeping_dtype(fn, (self.aabb, self.inverse_extent)), recurse)
        return self

    def unit(self, positions: Tensor) -> Tensor:
        """Scene positions [S, 3] in the unit cube of the box."""
        return (positions - self.aabb[:3]) * self.inverse_extent

    def inside(self, unit: Tensor) -> Tensor:
        """What :meth:`unit` says [S, 3] where all of space is contracted into the cube; the same where not."""
        if self.contraction == "none":
            return unit
        return contract(2 * unit - 1, self.contraction) / 4 + 0.5

    def shrinking(self, unit: Tensor) -> Tensor | float:
        """By how much :meth:`inside` shrinks lengths around what :meth:`unit` says [..., 3]: [...]."""
        return 1.0 if self.contraction == "none" else shrinking(2 * unit - 1, self.contraction) / 2

    def thinned(self, sigmas: Tensor) -> Tensor:
        """Densities [S] that are exponentials, and so 1 before anything is learned, times ``initial_density``."""
        return sigmas if self.initial_density == 1 else sigmas * self.initial_density

    def unit_direction(self, directions: Tensor) -> Tensor:
        """Scene directions [R, 3] in the unit cube: a point moves along them as :meth:`unit` moves it."""
        return directions * self.inverse_extent

    def density(self, at: At) -> tuple[Tensor, Any]:
        """Densities [S] per unit of length of the scene, and whatever ``color`` wants to know."""
        raise NotImplementedError

    def color(self, at: At, carry: Any) -> Tensor:
        """sRGB colours, and further channels after them, [S, C] of what ``density`` carried on."""
        raise NotImplementedError

    def radiance(self, at: At, kept: Kept | None = None) -> tuple[Tensor, Tensor]:
        """Densities [S] and colours [S, C]; ``kept`` is what :meth:`sketch` said of these samples."""
        sigmas, carry = self.density(at)
        return sigmas, self.color(at, carry)

    def grow(self, progress: float) -> bool:
        """Called before each step, with the progress of training in 0..1: where a field becomes finer in steps. Returns
        whether its parameters are other tensors now; loading a state has to make those of its sizes."""
        return False

    def fade(self, progress: float | None = None) -> None:
        """Shows as many levels of detail as there are at ``progress`` in 0..1 where cameras are learned, too; without
        it as many as there were when training ended."""
        if self.capture is not None:
            self.capture.fade(self, progress)

    def penalty(self) -> Tensor | float:
        """What is added to the loss because of the parameters alone, such as total variation."""
        return 0.0

    def see_codes(self, n: int) -> None:
        """Called once, before training: colours are to depend on ``n`` numbers, ``capture.code(rays)`` [R, n], too.

        Raises:
            ValueError: they cannot.
        """
        name = self.Config.name
        raise ValueError(f"`appearance` must be none, exposure or affine with the field {name!r}: it sees no codes")

    def see_views(self, cameras: Cameras, picture: Callable[[int], Tensor]) -> None:
        """Called once, before training, with the training views in the field's coordinates; ``picture(view)``
        [H, W, 3] is what one of them shows, before white where there is nothing. For fields that look at them."""

    def sketch(self, at: At, to_train: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Densities [K] without gradients, to find out what is seen, and tensors [K, ...] that :meth:`radiance` can go
        on from; the first one is ``at.unit``."""
        return self.density(at)[0], (at.unit,)

    def fused(self) -> FusedRadiance | None:
        """What kernels need that know this field as a whole; None for the general path."""
        return None

    def kernels(self) -> FusedRadiance | None:
        """What :meth:`fused` says, unless space is contracted or levels fade, of which kernels know nothing."""
        return self.fused() if self.contraction == "none" and self.level_weights is None else None


def _set_inverse_extent(field: RadianceField, *_: object) -> None:
    field.inverse_extent.copy_(1.0 / (field.aabb[3:] - field.aabb[:3]))


class SignalField(nn.Module):
    """Values of points in the unit cube, of whatever is sampled there: a picture, a sound, a volume, distances to a
    surface. A method is a subclass with ``forward``.

    Args:
        config: sizes of the field.
        n_input_dims: D.
        n_output_dims: C.
        backend: ``"native"`` or ``"reference"``.
    """

    Config: ClassVar[type[Config]]  # the class of its options
    recipe: ClassVar[dict[str, Any]] = {}  # options of training that differ from the task's
    size: ClassVar[str] = "n_neurons"  # the option that says how large it is
    n_levels: int = 0  # levels of detail that ``level_weights`` [n_levels] are for; 0 without

    def __init__(self, config: Any, n_input_dims: int, n_output_dims: int, backend: str = "native") -> None:
        super().__init__()
        self.n_input_dims, self.n_output_dims = n_input_dims, n_output_dims

    @classmethod
    def configured(cls, config: Any, shape: Sequence[int]) -> Any:
        """The options for a signal of so many samples along each axis, where they depend on that."""
        return config

    def forward(self, x: Tensor, level_weights: Tensor | None = None) -> Tensor:
        """Values [..., C] of points [..., D]."""
        raise NotImplementedError

    def outputs(self, x: Tensor) -> Sequence[Tensor]:
        """What is compared with the signal at points [..., D]: its values [..., C], the last, and what else should be
        like them."""
        return [self(x)]


class NetworkField(SignalField):
    """A ``network`` that sees the unit cube around the origin, and says -1 for a value of 0 and 1 for 1."""

    network: nn.Module
    side: float = 2.0  # of the cube, as the network sees it

    def forward(self, x: Tensor, level_weights: Tensor | None = None) -> Tensor:
        return 0.5 + 0.5 * self.network(self.side * (x - 0.5))

    def jet(
        self, x: Tensor, directions: Tensor, accelerations: Tensor | None = None, operators: Tensor | None = None
    ) -> jets.Jet:
        """Values with first and second derivatives; see `derivatives_along`."""
        inputs = jets.mapped((x - 0.5, directions, accelerations), lambda part: self.side * part)
        values, first, second = jets.through([self.network], *inputs, operators)
        return 0.5 + 0.5 * values, 0.5 * first, 0.5 * second
