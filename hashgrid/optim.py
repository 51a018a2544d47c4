"""Optimisers for grids: Adam that skips untouched entries, averages weights and rewrites half-precision copies."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from hashgrid.ops._backend import backend_ops
from hashgrid.ops._half_table import is_current, mark_current
from hashgrid.ops._tensors import HALF_DTYPES
from hashgrid.util.choices import BACKENDS, check_option

MOMENTS = ("exp_avg", "exp_avg_sq")
STATE = ("step", *MOMENTS, "ema", "ema_last")
# of torch.optim.Adam: what would be another update, and what only says how it is computed
OTHER_UPDATES = ("amsgrad", "maximize", "decoupled_weight_decay")
IMPLEMENTATION = ("foreach", "capturable", "differentiable", "fused")


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015) in one pass over the gradient, with the options neural graphics needs.

    The update is ``p -= lr * sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + eps)``. Every option below except the
    last three may be set per parameter group.

    Args:
        params: parameters or groups of them; fp32 or fp64, contiguous.
        lr: learning rate: a float, or a tensor with one element that a schedule may overwrite in place. PyTorch's
            ``lr_scheduler`` classes work with both. `step` can be captured in a CUDA graph; only a tensor on the
            parameters' device is followed there.
        betas: decay of the two moments.
        eps: added to the uncorrected root of the second moment.
        weight_decay: coupled L2, added to the gradient.
        skip_zero: rows (along the last dimension) whose gradient is entirely zero stay as they are, moments included,
            and every row counts its own updates. For the tables of hash grids: most entries see no sample in a step,
            and such a step costs little more than reading the gradient.
        ema_decay: keeps an exponential average of the weights, see `ema_parameters` and `swap_ema`. Skipped rows are
            averaged in closed form, so they cost nothing either.
        zero_grad_in_step: ``step`` overwrites the gradients it consumes with zeros, and `zero_grad` keeps the buffers:
            a persistent ``.grad`` then needs no separate memset. Not for code that reads ``.grad`` after the step.
        backend: ``"native"`` or ``"reference"`` (plain PyTorch, any device).

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-15,
        weight_decay: float = 0.0,
        skip_zero: bool = False,
        ema_decay: float | None = None,
        zero_grad_in_step: bool = False,
        backend: str = "native",
    ) -> None:
        check_option("backend", backend, BACKENDS)
        if ema_decay is not None and not 0.0 <= ema_decay < 1.0:
            raise ValueError(f"`ema_decay` must be in [0, 1) or None, got {ema_decay}")
        self.backend = backend
        self.ema_decay = ema_decay
        self.zero_grad_in_step = zero_grad_in_step
        self._global_steps: dict[torch.device, Tensor] = {}  # [1] int32 each: a captured CUDA graph counts on
        self._half_copies: dict[Tensor, Tensor] = {}
        self._zeroed: dict[Tensor, tuple[Tensor, int]] = {}  # gradients left at zero, with their version
        self._swapped = False
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "skip_zero": skip_zero}
        # that of the last `state_dict`: tools that copy states know the groups alone
        defaults["global_step"] = 0
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        group = {**self.defaults, **param_group}
        lr, (beta1, beta2) = group["lr"], group["betas"]
        if isinstance(lr, Tensor):
            if lr.numel() != 1:
                raise ValueError(f"`lr` must be a float or a tensor with one element, got shape {list(lr.shape)}")
        elif not lr >= 0.0:
            raise ValueError(f"`lr` must not be negative, got {lr}")
        if not (0.0 <= beta1 < 1.0 and 0.0 <= beta2 < 1.0):
            raise ValueError(f"`betas` must be in [0, 1), got {(beta1, beta2)}")
        for name in ("eps", "weight_decay"):
            if not group[name] >= 0.0:
                raise ValueError(f"`{name}` must not be negative, got {group[name]}")
        super().add_param_group(param_group)

    @property
    def global_step(self) -> int:
        """Number of steps taken. Reading it waits for the device."""
        return next((int(counter) for counter in self._global_steps.values()), 0)

    def _set_global_step(self, value: int) -> None:
        for device in {param.device for group in self.param_groups for param in group["params"]}:
            self._counter(device).fill_(value)

    def _counter(self, device: torch.device) -> Tensor:
        """The number of steps as a tensor on ``device``."""
        if device not in self._global_steps:
            self._global_steps[device] = torch.full((1,), self.global_step, dtype=torch.int32, device=device)
        return self._global_steps[device]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for name, value in (("_half_copies", {}), ("_zeroed", {}), ("_swapped", False), ("_global_steps", {})):
            self.__dict__.setdefault(name, value)

    def __getstate__(self) -> dict[str, Any]:
        options = ("backend", "ema_decay", "zero_grad_in_step", "_global_steps", "_half_copies")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in options}}

    def register_half_copy(self, param: Tensor, half_copy: Tensor) -> None:
        """Keeps ``half_copy``, a half-precision copy of ``param`` of the same shape, up to date in every step.

        Raises:
            ValueError: ``param`` is not optimised here, or ``half_copy`` does not fit it.
        """
        if not any(param is known for group in self.param_groups for known in group["params"]):
            raise ValueError("`param` must be one of the optimiser's parameters; add it before its half-precision copy")
        if half_copy.shape != param.shape or half_copy.dtype not in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"`half_copy` must be float16 or bfloat16 with shape {list(param.shape)},"
                f" got {half_copy.dtype} with shape {list(half_copy.shape)}"
            )
        if not half_copy.is_contiguous() or half_copy.device != param.device:
            raise ValueError("`half_copy` must be contiguous and on the device of `param`")
        self._half_copies[param] = half_copy
        self._write_half_copy(param)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One update of every parameter that has a gradient.

        Raises:
            RuntimeError: called inside `swap_ema`, or a gradient is sparse.
            ValueError: a parameter is of half precision.
        """
        if self._swapped:
            raise RuntimeError("`step` must not be called inside `swap_ema`: the parameters hold their averages")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for device in {param.device for group in self.param_groups for param in group["params"]}:
            self._counter(device).add_(1)
        for group in self.param_groups:
            lr = group["lr"]
            lr = lr if isinstance(lr, Tensor) else torch.tensor(lr, dtype=torch.float64)
            rates = lr, *group["betas"], group["eps"], group["weight_decay"]
            alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}  # what can be updated together
            for param in group["params"]:
                if param.grad is None:
                    continue
                if param.grad.is_sparse:
                    raise RuntimeError("gradients must be dense; a table's zero rows are skipped with `skip_zero=True`")
                if group["skip_zero"] or param in self._half_copies:
                    self._step_alone(param, rates, group["skip_zero"])
                else:
                    alike.setdefault((param.device, param.dtype), []).append(param)
            for params in alike.values():
                self._step_together(params, rates)
        return loss

    def _step_alone(self, param: Tensor, rates: tuple[Any, ...], skip_zero: bool) -> None:
        state, half_copy = self._state_of(param, skip_zero), self._half_copies.get(param)
        grad = param.grad.contiguous()  # type: ignore[union-attr]
        was_fresh = half_copy is not None and is_current(half_copy, param)
        backend_ops(self.backend).adam_step(
            *(param, grad, state["exp_avg"], state["exp_avg_sq"], state["step"]),
            *rates,
            skip_zero,
            *(state.get("ema"), state.get("ema_last"), self.ema_decay or 0.0, self._counter(param.device)),
            *(half_copy, self.zero_grad_in_step),
        )
        self._note_zeroed(param, grad)
        if half_copy is not None and was_fresh:
            mark_current(half_copy, param)
        elif half_copy is not None:  # written to by others since the last step, also where this one changes nothing
            self._write_half_copy(param)

    def _step_together(self, params: list[Tensor], rates: tuple[Any, ...]) -> None:
        states = [self._state_of(param, skip_zero=False) for param in params]
        grads = [param.grad.contiguous() for param in params]  # type: ignore[union-attr]
        averages = ("ema", "ema_last") if self.ema_decay is not None else ()
        backend_ops(self.backend).adam_step(
            *(params, grads, *([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step"))),
            *rates,
            False,
            *([state[name] for state in states] for name in averages),
            ema_decay=self.ema_decay or 0.0,
            global_step=self._counter(params[0].device),
            zero_grad=self.zero_grad_in_step,
        )
        for param, grad in zip(params, grads, strict=True):
            self._note_zeroed(param, grad)

    def _note_zeroed(self, param: Tensor, grad: Tensor) -> None:
        """After a step that took ``grad``, the gradient of ``param`` in contiguous memory."""
        if not self.zero_grad_in_step or param.grad is None:
            return
        if grad is not param.grad:
            param.grad.zero_()
        self._zeroed[param] = (param.grad, param.grad._version)

    def zero_grad(self, set_to_none: bool | None = None) -> None:
        """Clears the gradients. ``set_to_none`` defaults to True, but to False with ``zero_grad_in_step``: the buffers
        stay, and those that ``step`` has left at zero are not written again."""
        if set_to_none is None:
            set_to_none = not self.zero_grad_in_step
        if set_to_none:
            self._zeroed.clear()
            return super().zero_grad(set_to_none=True)
        for group in self.param_groups:
            for param in group["params"]:
                grad = param.grad
                if grad is None:
                    continue
                known, version = self._zeroed.get(param, (None, 0))
                if known is not None and known is grad and version == grad._version:
                    continue
                grad.requires_grad_(False) if grad.grad_fn is None else grad.detach_()
                grad.zero_()

    def _state_of(self, param: Tensor, skip_zero: bool) -> dict[str, Any]:
        state = self.state[param]
        if param.dtype in HALF_DTYPES:
            raise ValueError(
                f"`params` must be float32 or float64, got {param.dtype}, in which small updates vanish: keep float32"
                " parameters and give the modules `compute_dtype`, or use torch.autocast"
            )
        if not state:
            # "step" is the one name whose dtype torch leaves alone when it loads a state
            state["step"] = torch.zeros(_n_counters(param, skip_zero), dtype=torch.int32, device=param.device)
            for name in MOMENTS:
                state[name] = torch.zeros_like(param, memory_format=torch.contiguous_format)
        if self.ema_decay is not None and "ema" not in state:
            # the average starts at the weights before the first step that it sees, and has stood still since
            state["ema"] = param.detach().clone(memory_format=torch.contiguous_format)
            state["ema_last"] = (self._counter(param.device) - 1).expand_as(state["step"]).clone()
        return state

    @torch.no_grad()
    def _average(self, param: Tensor) -> Tensor:
        """The average of ``param`` as of now; the parameter itself before its first step."""
        if self.ema_decay is None:
            raise RuntimeError("no average is kept; construct the optimiser with `ema_decay`, for example 0.95")
        state = self.state.get(param)
        if not state or "ema" not in state:
            return param.detach().clone()
        idle = (self._counter(param.device) - state["ema_last"]).to(param.dtype)
        keep = torch.pow(torch.tensor(self.ema_decay, dtype=param.dtype, device=param.device), idle)
        if keep.numel() != 1:
            keep = keep.view(*param.shape[:-1], 1)
        # a sum of two products, not a lerp: exact where nothing has happened since the last update
        return torch.where(keep == 1, state["ema"], keep * state["ema"] + (1 - keep) * param)

    def ema_parameters(self) -> list[Tensor]:
        """The averaged weights as new tensors, in the order of the parameters of all groups.

        Raises:
            RuntimeError: no average is kept.
        """
        return [self._average(param) for group in self.param_groups for param in group["params"]]

    @contextmanager
    def swap_ema(self) -> Iterator[None]:
        """Inside, the parameters (and their half copies) hold their averages; afterwards exactly what they held before.

        Raises:
            RuntimeError: no average is kept, or the averages are in place already.
        """
        if self._swapped:
            raise RuntimeError("`swap_ema` must not be nested: the parameters hold their averages already")
        params = [param for group in self.param_groups for param in group["params"]]
        averages = self.ema_parameters()
        kept = [param.detach().clone() for param in params]
        self._overwrite(params, averages)
        self._swapped = True
        try:
            yield
        finally:
            self._swapped = False
            self._overwrite(params, kept)

    @torch.no_grad()
    def _overwrite(self, params: Iterable[Tensor], values: Iterable[Tensor]) -> None:
        for param, value in zip(params, values, strict=True):
            param.copy_(value)
            if param in self._half_copies:
                self._write_half_copy(param)

    @torch.no_grad()
    def _write_half_copy(self, param: Tensor) -> None:
        self._half_copies[param].copy_(param)
        mark_current(self._half_copies[param], param)

    def state_dict(self) -> dict[str, Any]:
        """torch's ``state`` and ``param_groups``, and ``global_step``, which is in the groups, too."""
        global_step = self.global_step
        for group in self.param_groups:
            group["global_step"] = global_step
        return {**super().state_dict(), "global_step": global_step}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores ``state_dict()``; training goes on with the same bits. A learning rate kept as a tensor stays the
        same tensor, with the loaded value.

        Takes what the tools of `torch.distributed.checkpoint.state_dict` made of it, and the state of
        `torch.optim.Adam`: options that it has not stay as they are, all rows get its number of steps, averages begin
        with the next step. ``eps`` is added to another root there, which matters while ``1 - beta2^t`` is small.
        `torch.optim.Adam` in turn takes a state made without ``skip_zero``.

        Raises:
            ValueError: the state is of another kind of optimiser, or for other parameters; this one is as it was.
        """
        if self._swapped:
            raise RuntimeError("`load_state_dict` must not be called inside `swap_ema`")
        self._check_loadable(state_dict)
        before = [dict(group) for group in self.param_groups]
        super().load_state_dict(state_dict)
        for own, group in zip(before, self.param_groups, strict=True):
            for name in (*OTHER_UPDATES, *IMPLEMENTATION):
                group.pop(name, None)
            for name, value in own.items():
                group.setdefault(name, value)
            if isinstance(own["lr"], Tensor):
                own["lr"].fill_(group["lr"].item() if isinstance(group["lr"], Tensor) else group["lr"])
                group["lr"] = own["lr"]
        self._set_global_step(_saved_global_step(state_dict))
        for param, skip_zero, saved in self._saved_states(state_dict):
            kept = {name: value for name, value in saved.items() if self.ema_decay is not None or "ema" not in name}
            # torch casts counters to the dtype of the parameter and shares tensors with the caller's dict
            state = {
                name: torch.as_tensor(value).to(param.device, param.dtype).clone(memory_format=torch.contiguous_format)
                for name, value in kept.items()
                if name not in ("step", "ema_last")
            }
            for name in kept.keys() - state.keys():
                counter = torch.as_tensor(kept[name]).to(param.device, torch.int32).reshape(-1)
                state[name] = counter.expand(_n_counters(param, skip_zero)).clone()
            self.state[param] = state
        self._zeroed.clear()
        for param in self._half_copies:
            self._write_half_copy(param)

    def _saved_states(self, state_dict: dict[str, Any]) -> Iterator[tuple[Tensor, bool, dict[str, Any]]]:
        """Parameters, whether their group skips zeros, and what ``state_dict`` holds of them."""
        for group, saved_group in zip(self.param_groups, state_dict["param_groups"], strict=True):
            skip_zero = saved_group.get("skip_zero", group["skip_zero"])
            for param, index in zip(group["params"], saved_group["params"], strict=True):
                if state_dict["state"].get(index):
                    yield param, skip_zero, state_dict["state"][index]

    def _check_loadable(self, state_dict: dict[str, Any]) -> None:
        if [len(group["params"]) for group in self.param_groups] != [
            len(group["params"]) for group in state_dict["param_groups"]
        ]:
            return  # torch has a message for that
        for group in state_dict["param_groups"]:
            for name in OTHER_UPDATES:
                if group.get(name) and (name != "decoupled_weight_decay" or group["weight_decay"] != 0):
                    raise ValueError(f"`state_dict` must be of plain Adam, got a group with `{name}`")
        has_average = False
        for number, (param, skip_zero, saved) in enumerate(self._saved_states(state_dict)):
            if not {"step", *MOMENTS} <= saved.keys() <= set(STATE):
                raise ValueError(
                    f"`state_dict` must hold {('step', *MOMENTS)} of each parameter, got {tuple(saved)}:"
                    " it is of another optimiser"
                )
            n_counters = _n_counters(param, skip_zero)
            for name, value in saved.items():
                value = torch.as_tensor(value)
                if name in ("step", "ema_last"):
                    fits, wanted = value.numel() in (1, n_counters), f"1 or {n_counters} elements"
                else:
                    fits, wanted = value.shape == param.shape, f"shape {list(param.shape)}"
                if not fits:
                    raise ValueError(
                        f"`{name}` of parameter {number} must have {wanted}, as the parameter asks for, got"
                        f" {list(value.shape)}: the state is for other parameters"
                    )
            has_average |= "ema" in saved
        if has_average and self.ema_decay is None:
            warnings.warn(
                "the state holds averages of the weights and this optimiser keeps none: they are dropped;"
                " construct it with `ema_decay` to go on with them",
                stacklevel=4,
            )


def _n_counters(param: Tensor, skip_zero: bool) -> int:
    """How many steps are counted: each row's own, or the parameter's."""
    return param.shape[:-1].numel() if skip_zero and param.dim() > 0 else 1


def _saved_global_step(state_dict: dict[str, Any]) -> int:
    """The number of steps behind ``state_dict``; of torch's Adam it is that of the parameter with most of them."""
    groups = (group["global_step"] for group in state_dict["param_groups"] if "global_step" in group)
    known = state_dict.get("global_step", next(groups, None))
    if known is not None:
        return int(known)
    steps = (torch.as_tensor(state["step"]) for state in state_dict["state"].values() if "step" in state)
    return max((int(step.max()) for step in steps if step.numel() > 0), default=0)
