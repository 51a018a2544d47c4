"""A differential equation of one's own: Fisher's ``u_t = u_xx + 6 u (1 - u)``, a population that spreads at speed 5.

    hashgrid pde examples/pde_own.py --time-limit 20

or, as here, from Python: python examples/pde_own.py [SECONDS]
"""

import sys
from pathlib import Path

import torch

from hashgrid.data.conditions import Condition
from hashgrid.data.equations import Equation
from hashgrid.tasks.pde import Pde, PdeConfig
from hashgrid.train.run import Options, run


class Fisher(Equation):
    """u_t = u_xx + 6 u (1 - u)"""

    axes, box = ("x", "t"), ((-5.0, 10.0), (0.0, 1.0))
    operators = ((1.0, 0.0),)  # which second derivatives: u_xx

    def residual(self, x, u, first, second):
        return first[:, 1] - second[:, 0] - 6 * u * (1 - u)

    def conditions(self):
        ends = [Condition({"x": x}, self.truth) for x in (-5.0, 10.0)]
        return [Condition({"t": 0.0}, self.truth), *ends]

    def truth(self, x):  # to compare with; leave it out where none is known
        return (1 + torch.exp(x[:, 0] - 5 * x[:, 1])) ** -2


if __name__ == "__main__":
    config = PdeConfig(time_limit=float(sys.argv[1]) if len(sys.argv) > 1 else 20.0)
    run(Pde, Options(source=Path(__file__), out=Path("fisher")), config)
