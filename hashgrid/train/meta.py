"""Learned starts: parameters from which a few steps of gradient descent fit any signal of a family.

A *loss* here is a function of a function: ``loss(f)`` asks ``f`` for values where it wants them and returns a scalar.
It is of one signal, so that the gradient of its steps is the same whichever signals are learned beside it; the sum or
mean over signals is taken outside. Models may be any modules: their parameters are replaced by
`torch.func.functional_call`. Through the native kernels everything here is exact; they leave second derivatives of
weights to PyTorch's ops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

Params = dict[str, Tensor]
Loss = Callable[[Callable[..., Tensor]], Tensor]
Rate = float | Mapping[str, float | Tensor]


class AdaptationError(RuntimeError):
    """A loss or a value of the inner steps is not finite."""


@dataclass(frozen=True)
class Samples:
    """Values ``y`` [N, C] of a signal at points ``x`` [N, D]; as a loss, the mean squared error there.

    Example:
        >>> import torch
        >>> signal = Samples(torch.zeros(5, 2), torch.ones(5, 3))
        >>> signal(lambda x: torch.zeros(len(x), 3))
        tensor(1.)
    """

    x: Tensor
    y: Tensor

    def __call__(self, f: Callable[..., Tensor]) -> Tensor:
        return (f(self.x) - self.y).square().mean()


class Adapted(NamedTuple):
    params: Params  # after the steps
    losses: Tensor  # [steps], before each of them, without gradient


def bind(model: nn.Module, params: Params) -> Callable[..., Tensor]:
    """Returns ``model`` as a function with ``params`` in the place of its own parameters and buffers of these names."""
    return lambda *arguments: functional_call(model, params, arguments)


def adapt(
    model: nn.Module,
    loss: Loss,
    steps: int,
    rate: Rate,
    params: Params | None = None,
    create_graph: bool = False,
) -> Adapted:
    """Takes steps of gradient descent, ``p - rate * dloss/dp``, without touching ``model``.

    Args:
        model: any module; what the steps do not change is its own.
        loss: of one signal.
        steps: how many.
        rate: of all steps and parameters; or one per name of a parameter, a number or a tensor [K, ...] that broadcasts
            to [K, *shape], one per step, of which the last serves all further steps.
        params: where the steps begin, and which parameters they change; None for all of the model that require
            gradients.
        create_graph: whether the steps' gradients are differentiated, too. Without, the result depends on the start by
            the identity alone (first-order MAML); under `torch.no_grad` it does not depend on it at all.

    Raises:
        AdaptationError: a loss is NaN or infinite, as the steps are too large or the signal is not finite.
        ValueError: an argument is out of range.

    Example:
        >>> import torch
        >>> model, signal = torch.nn.Linear(1, 1), Samples(torch.rand(9, 1), torch.ones(9, 1))
        >>> params, losses = adapt(model, signal, steps=20, rate=0.5)
        >>> bool(losses[-1] < 0.1 * losses[0])
        True
        >>> bind(model, params)(torch.rand(4, 1)).shape
        torch.Size([4, 1])
    """
    if steps < 0:
        raise ValueError(f"`steps` must be at least 0, got {steps}")
    differentiable = torch.is_grad_enabled()
    if params is None:
        params = {name: param for name, param in model.named_parameters() if param.requires_grad}
    if not differentiable:
        params = {name: value.detach() for name, value in params.items()}
    losses = []
    with torch.enable_grad():
        params = {name: p if p.requires_grad else p.detach().requires_grad_() for name, p in params.items()}
        for step in range(steps):
            value = loss(bind(model, params))
            grads = torch.autograd.grad(value, list(params.values()), create_graph=create_graph, materialize_grads=True)
            losses.append(value.detach())
            params = {
                name: param - _rate_of(rate, name, step) * grad
                for (name, param), grad in zip(params.items(), grads, strict=True)
            }
            if not differentiable:
                params = {name: param.detach().requires_grad_() for name, param in params.items()}
    if not differentiable:
        params = {name: param.detach() for name, param in params.items()}
    found = torch.stack(losses) if losses else torch.empty(0)
    if not found.isfinite().all():
        first = int((~found.isfinite()).nonzero()[0])
        _refuse(found[first].item(), first, rate)
    return Adapted(params, found)


def _rate_of(rate: Rate, name: str, step: int) -> float | Tensor:
    value = rate[name] if isinstance(rate, Mapping) else rate
    return value[min(step, len(value) - 1)] if isinstance(value, Tensor) and value.dim() > 0 else value


def _refuse(loss: float, step: int, rate: Rate) -> None:
    given = "a learned one" if isinstance(rate, Mapping) else rate
    raise AdaptationError(
        f"the loss is {loss} after {step} inner steps; lower the inner rate ({given}) or check the data"
    )


class Learner(nn.Module):
    """What all ways of learning a start have in common: a model, and steps from where it starts.

    ``learner(signal, query)`` is the loss to be minimised over the signals of a family, `start` where the steps of one
    begin, `adapt` what they lead to.

    Args:
        model: whose parameters are learned.
        steps: inner steps of training.
        rate: of the inner steps; see :func:`adapt`.
        names: parameters or buffers of the model that the inner steps change; None for all parameters that require
            gradients.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, model: nn.Module, steps: int = 3, rate: Rate = 1e-2, names: Iterable[str] | None = None) -> None:
        super().__init__()
        if steps < 0 or (isinstance(rate, (int, float)) and not rate >= 0):
            raise ValueError(f"`steps` and `rate` must be at least 0, got {steps} and {rate}")
        known = dict(model.named_parameters()) | dict(model.named_buffers())
        self.trainable = [name for name, param in model.named_parameters() if param.requires_grad]
        self.names = self.trainable if names is None else list(names)
        if missing := set(self.names) - set(known):
            raise ValueError(f"`names` must be of parameters or buffers of the model, got {sorted(missing)}")
        self.model, self.steps, self._rate = model, steps, rate

    @property
    def rate(self) -> Rate:
        """Of the inner steps."""
        return self._rate

    def start(self, signal: Loss) -> Params:
        """Where the steps on a signal begin."""
        known = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        return {name: known[name] for name in self.names}

    def adapt(self, signal: Loss, steps: int | None = None, create_graph: bool = False) -> Adapted:
        """Takes ``steps`` from the start, by default as many as in training: :func:`adapt`."""
        steps = self.steps if steps is None else steps
        return adapt(self.model, signal, steps, self.rate, self.start(signal), create_graph)

    def forward(self, signal: Loss, query: Loss | None = None) -> Tensor:
        """The loss of one signal, scalar, whose gradient is what an optimiser takes. Steps are taken on ``signal``,
        their result is measured on ``query``, by default the same."""
        raise NotImplementedError

    def losses(self, signals: Sequence[Loss], queries: Sequence[Loss]) -> Tensor:
        """The losses [B] of some signals."""
        return torch.stack([self(signal, query) for signal, query in zip(signals, queries, strict=True)])

    def _measured(self, params: Params, query: Loss, steps: int) -> Tensor:
        value = query(bind(self.model, params))
        if not value.detach().isfinite():
            _refuse(value.item(), steps, self.rate)
        return value


class Maml(Learner):
    """Model-agnostic meta-learning (Finn et al. 2017): the loss after the steps, differentiated through the steps.

    Args:
        model, steps, rate, names: see `Learner`.
        first_order: takes the steps' gradients for constants (section 5.2 there).

    Example:
        The linear model f = w x with one step: dL/dw = 2 x (w' x - y) (1 - 2 a x^2) for w' = w - 2 a x (w x - y).

        >>> import torch
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.constant_(model.weight, 1.0)
        >>> maml = Maml(model, steps=1, rate=0.1)
        >>> maml(Samples(torch.tensor([[1.0]]), torch.tensor([[3.0]]))).backward()
        >>> model.weight.grad  # w' = 1.4
        tensor([[-2.5600]])
    """

    def __init__(
        self,
        model: nn.Module,
        steps: int = 3,
        rate: Rate = 1e-2,
        names: Iterable[str] | None = None,
        first_order: bool = False,
    ) -> None:
        super().__init__(model, steps, rate, names)
        self.first_order = first_order

    def forward(self, signal: Loss, query: Loss | None = None) -> Tensor:
        params = self.adapt(signal, create_graph=not self.first_order).params
        return self._measured(params, query or signal, self.steps)


class Reptile(Learner):
    """Moves the start towards where the steps lead (Nichol et al. 2018). The value is the loss after the steps; its
    gradient is ``start - result``, for any optimiser to take."""

    def forward(self, signal: Loss, query: Loss | None = None) -> Tensor:
        start = self.start(signal)
        with torch.no_grad():
            params = self.adapt(signal).params
            value = self._measured(params, query or signal, self.steps)
        pull = torch.stack([(param * (param.detach() - params[name])).sum() for name, param in start.items()]).sum()
        return value + (pull - pull.detach())


class MetaSdf(Maml):
    """MAML that learns the rates of its steps as well, one per parameter and step (MetaSDF, Sitzmann et al. 2020; the
    rates are those of Meta-SGD, Li et al. 2017).

    Args:
        model, steps, names: see `Learner`.
        rate: what all rates begin with; or one per name.

    Attributes:
        rates: ParameterList of [steps, *shape], in the order of ``names``.
    """

    def __init__(self, model: nn.Module, steps: int = 3, rate: Rate = 1e-1, names: Iterable[str] | None = None) -> None:
        super().__init__(model, steps, rate, names)
        if steps < 1:
            raise ValueError(f"`steps` must be at least 1 for rates to be learned, got {steps}")
        self.rates = nn.ParameterList()
        for name, value in super().start(_no_loss).items():
            first = torch.as_tensor(_rate_of(rate, name, 0), dtype=value.dtype, device=value.device)
            self.rates.append(nn.Parameter(first.expand(steps, *value.shape).clone()))

    @property
    def rate(self) -> Rate:
        return dict(zip(self.names, self.rates, strict=True))


def _no_loss(f: Any) -> Tensor:
    raise NotImplementedError


class Hyper(Learner):
    """A start of its own for each signal, made by a network that looks at samples of it, and trained without steps
    (Sitzmann et al. 2020, SIREN, section 4.4).

    Args:
        model: what the parameters are for; its own are not used.
        network: makes parameters [B, *shape] by name, and terms of regularisation [B], of samples ``(x [B, N, D], y [B,
            N, C])``, like `hashgrid.nn.hypernetwork.HyperNetwork`.
        steps, rate: of steps from there, which training does not take.
    """

    def __init__(
        self,
        model: nn.Module,
        network: nn.Module,
        steps: int = 3,
        rate: Rate = 1e-2,
        names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(model, steps, rate, names)
        self.model.requires_grad_(False)
        self.network = network

    def start(self, signal: Loss) -> Params:
        """The parameters that the network makes of a signal, which has to be of `Samples`."""
        return self._made([signal])[0][0]

    def forward(self, signal: Loss, query: Loss | None = None) -> Tensor:
        return self.losses([signal], [query or signal])[0]

    def losses(self, signals: Sequence[Loss], queries: Sequence[Loss]) -> Tensor:
        """The losses [B] of signals with equally many samples, of which the network is asked at once."""
        starts, penalties = self._made(signals)
        pairs = zip(starts, queries, strict=True)
        return torch.stack([self._measured(params, query, 0) for params, query in pairs]) + penalties

    def _made(self, signals: Sequence[Loss]) -> tuple[list[Params], Tensor]:
        samples = [signal for signal in signals if isinstance(signal, Samples)]
        if len(samples) < len(signals):
            got = next(type(signal).__name__ for signal in signals if not isinstance(signal, Samples))
            raise TypeError(f"`signal` must be Samples for a hypernetwork to look at, got {got}")
        x, y = (torch.stack(parts) for parts in zip(*((one.x, one.y) for one in samples), strict=True))
        params, penalties = self.network(x, y)
        return [{name: value[i] for name, value in params.items()} for i in range(len(samples))], penalties
