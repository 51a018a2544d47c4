"""The networks of a radiance field, the same by the op of one network, and gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from hashgrid import ops
from hashgrid.ops import _ngp


def networks(
    n: int, n_geometry: int = 16, n_ray_features: int = 16, width: int = 64, n_hidden: tuple[int, int] = (1, 2)
) -> dict:
    density = [28, *[width] * n_hidden[0], n_geometry]
    color = [n_geometry + n_ray_features, *[width] * n_hidden[1], 3]
    return {
        "x": torch.randn(n, 28),
        "ray_features": torch.randn(9, n_ray_features),
        "rays": torch.randint(9, (n,)),
        **{
            name: [torch.randn(o, i) / i**0.5 for i, o in zip(sizes, sizes[1:], strict=False)]
            for name, sizes in (("density_weights", density), ("color_weights", color))
        },
    }


def radiance_by_mlp(x, ray_features, rays, density_weights, color_weights, compute_dtype=None) -> tuple[Tensor, Tensor]:
    """The same by the op of one network, written out."""
    geometry = ops.mlp(x, density_weights, compute_dtype=compute_dtype)
    inputs = torch.cat((geometry, ray_features[rays]), dim=1)
    return _Exp.apply(geometry[:, 0]), ops.mlp(inputs, color_weights, None, "relu", "sigmoid", compute_dtype)


class _Exp(torch.autograd.Function):
    """exp(z) with the derivative exp(clamp(z, -15, 15))."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return z.exp()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0].clamp(-15, 15).exp()


def radiance_and_gradients(function, arguments: dict, grads: tuple[Tensor, Tensor], **options) -> list[Tensor]:
    """Densities, colours, gradients to x and all weights."""
    leaves = [arguments["x"], *arguments["density_weights"], *arguments["color_weights"]]
    for leaf in leaves:
        leaf.requires_grad_()
    outputs = function(**arguments, **options)
    grads = tuple(g.to(y.dtype) for g, y in zip(grads, outputs, strict=True))
    return [*(y.detach() for y in outputs), *torch.autograd.grad(outputs, leaves, grads)]


def check_rows_behind_the_last() -> None:
    """They add nothing to gradients. A tile has 16 rows: in those there are, geometry takes away what the ray puts into
    a hidden layer; in the others there is no geometry, and the ray alone is beyond float16."""
    arguments = networks(5, n_hidden=(0, 1))
    x, density, color = arguments["x"], arguments["density_weights"][0], arguments["color_weights"][0]
    for tensor in (density[1], color[0], arguments["ray_features"][:, 0], x[:, 0]):
        tensor.zero_()
    x[:, 0] = arguments["ray_features"][:, 0] = 256
    density[1, 0], color[0, 1], color[0, 16] = 1, -512, 512
    grads = torch.randn(5), torch.randn(5, 3)
    ours, theirs = (
        radiance_and_gradients(function, arguments, grads, compute_dtype=torch.float16)
        for function in (_ngp.radiance_mlp, radiance_by_mlp)
    )
    for a, b in zip(ours, theirs, strict=True):
        assert a.isfinite().all()
        torch.testing.assert_close(a, b, rtol=0, atol=2**-10 * b.abs().max().item())
