"""The reference frequency encoding against plain Python."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from hashgrid.reference import frequency_encode


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 5e-7)])
def test_matches_plain_python_at_every_frequency(dtype: torch.dtype, tolerance: float) -> None:
    x = torch.rand(7, 2, dtype=dtype) * 6 - 3
    expected = []
    for row in x.tolist():
        expected.append([])
        for value in row:
            for k in range(12):
                angle = math.pi * float(Fraction(value) * 2**k % 2)  # exact whole turns
                expected[-1] += [math.sin(angle), math.cos(angle)]
    y = frequency_encode(x)
    assert y.shape == (7, 48) and y.dtype == dtype
    torch.testing.assert_close(y.double(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=tolerance)


def test_gradients_match_finite_differences() -> None:
    x = torch.rand(3, 2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: frequency_encode(x, 4), (x,))
    assert gradgradcheck(lambda x: frequency_encode(x, 4), (x,))


def test_shapes_and_nonfinite_values() -> None:
    assert frequency_encode(torch.zeros(2, 5, 3), 4).shape == (2, 5, 24)
    assert frequency_encode(torch.zeros(0, 3)).shape == (0, 72)
    assert frequency_encode(torch.tensor([math.nan, math.inf]), 2).isnan().all()


def test_errors_name_contract_and_actual() -> None:
    with pytest.raises(ValueError, match=r"`x` must have shape \[\.\.\., D\], got \[\]"):
        frequency_encode(torch.tensor(1.0))
    with pytest.raises(ValueError, match="`n_frequencies` must be at least 1, got 0"):
        frequency_encode(torch.zeros(2), 0)
