"""A hash grid inside an ordinary PyTorch model: learn a signed distance and its normals with torch.optim.

python examples/drop_in.py [STEPS]
"""

import sys

import torch
from torch import nn

import hashgrid


class DistanceField(nn.Module):
    """Signed distance [N] of points [N, 3] in the unit cube."""

    def __init__(self) -> None:
        super().__init__()
        self.encoding = hashgrid.HashGrid(n_input_dims=3, n_levels=8, log2_hashmap_size=15, max_resolution=128)
        self.head = nn.Sequential(nn.Linear(self.encoding.n_output_dims, 64), nn.Softplus(beta=100), nn.Linear(64, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoding(x)).squeeze(-1)


def torus(x: torch.Tensor) -> torch.Tensor:
    """Exact signed distance to a torus around the centre of the cube."""
    x = x - 0.5
    ring = torch.stack((x[:, :2].norm(dim=1) - 0.28, x[:, 2]), dim=1)
    return ring.norm(dim=1) - 0.1


def main() -> None:
    torch.manual_seed(0)
    n_steps = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    model = DistanceField()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, eps=1e-15)
    for step in range(n_steps + 1):
        x = torch.rand(8192, 3, requires_grad=True)
        distance = model(x)
        # The gradient of the field is part of the loss: second derivatives run through the encoding.
        (gradient,) = torch.autograd.grad(distance.sum(), x, create_graph=True)
        eikonal = (gradient.norm(dim=1) - 1).square().mean()
        error = (distance - torus(x.detach())).abs().mean()
        loss = error + 0.01 * eikonal
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step:4d}  mean error {error.item():.5f}  | gradient - 1 |^2 {eikonal.item():.4f}")


if __name__ == "__main__":
    main()
