"""Multiplicative filter networks and BACON: against plain formulas, and the spectrum of what comes out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hashgrid import Bacon, MultiplicativeFilterNetwork


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_bacon_has_no_energy_beyond_its_bands(backend: str, dtype: torch.dtype) -> None:
    """One period of 256 samples, 4 outputs of 8, 16, 24 and 32 periods. In 1/pi of them, or trained frequencies, there
    would be energy everywhere."""
    bacon = Bacon(1, 2, 64, 3, resolution=64, scales=[0.25] * 4, output_layers=(0, 1, 2), backend=backend).to(dtype)
    assert bacon.bands == [8, 16, 24, 32]
    x = torch.arange(256, dtype=dtype)[:, None] / 256 - 0.5
    with torch.no_grad():
        outputs = bacon.outputs(x)
    for band, output in zip(bacon.bands, outputs, strict=True):
        power = np.abs(np.fft.rfft(output.double().numpy(), axis=0)) ** 2
        assert power[band + 1 :].sum() / power.sum() <= (2e-30 if dtype == torch.float64 else 1e-11)
        assert power[1 : band + 1].sum() / power.sum() > 0.2 and power[band // 2 + 1 : band + 1].max() > 0
    torch.testing.assert_close(bacon(x + 1), outputs[-1], rtol=0, atol=1e-4)
    assert torch.equal(bacon(x), outputs[-1])


def test_products_keep_their_size_with_the_right_variance() -> None:
    """Rms of states: .70 to .74 of BACON's after any number of products; the first networks' lose a factor of 6 in
    power each, .707, .29, .12, until biases are all that is left."""
    x = torch.rand(500, 1) - 0.5

    def sizes(network: torch.nn.Module) -> list[float]:
        z, result = None, []
        for layer, g in enumerate(network.filters(x)):
            z = g if z is None else g * (z @ network.weights[layer - 1].T + network.biases[layer - 1])
            result.append(float(z.detach().square().mean().sqrt()))
        return result

    networks = [Bacon(1, 1, 256, 7, resolution=512, scales=[1 / 8] * 8) for _ in range(4)]
    mean = np.mean([sizes(network) for network in networks], axis=0)
    assert (0.70 < mean).all() and (mean < 0.74).all()
    first = sizes(MultiplicativeFilterNetwork(1, 1, 256, 3))
    np.testing.assert_allclose(first[:3], [0.707, 0.29, 0.12], rtol=0.05)


@pytest.mark.parametrize("filters", ["fourier", "gabor"])
def test_filters_by_numpy(filters: str) -> None:
    network = MultiplicativeFilterNetwork(3, 2, 8, 2, filters, input_scale=5.0).double()
    x = torch.rand(6, 3, dtype=torch.float64) * 2 - 1
    p = {name: value.numpy() for name, value in network.state_dict().items()}
    g = np.sin(x.numpy() @ p["frequencies"].T + p["phases"])
    if filters == "gabor":
        g *= np.exp(-0.5 * p["gamma"] * np.square(x.numpy()[:, None] - p["mu"]).sum(-1))
    g = g.reshape(6, 3, 8)
    z = g[:, 0]
    for i in range(2):
        z = g[:, i + 1] * (z @ p[f"weights.{i}"].T + p[f"biases.{i}"])
    expected = z @ p["heads.2.weight"].T + p["heads.2.bias"]
    np.testing.assert_allclose(network(x).detach().numpy(), expected, atol=1e-12)


def test_frequencies_of_bacon_are_frozen_and_saved() -> None:
    bacon = Bacon(2, 1, 16, resolution=64)
    assert "frequencies" not in dict(bacon.named_parameters()) and "phases" in dict(bacon.named_parameters())
    largest = bacon.frequencies.view(5, 16, 2).abs().amax((1, 2))
    assert (
        torch.equal(bacon.frequencies, bacon.frequencies.round()) and (largest <= torch.tensor([4, 4, 8, 8, 8])).all()
    )
    other = Bacon(2, 1, 16, resolution=64)
    other.load_state_dict(bacon.state_dict())
    x = torch.rand(5, 2)
    assert torch.equal(other(x), bacon(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Bacon(2, 1, scales=(0.5, 0.5)), r"`scales` must be 5 non-negative numbers, got \(0.5, 0.5\)"),
        (lambda: Bacon(2, 1, output_layers=(5,)), r"`output_layers` must be in 0..4, got \(5,\)"),
        (lambda: Bacon(2, 1, resolution=math.inf), "`resolution` must be positive and finite, got inf"),
        (lambda: MultiplicativeFilterNetwork(2, 1, filters="wave"), "`filters` must be one of"),
        (lambda: MultiplicativeFilterNetwork(0, 1), "inputs, outputs, neurons and hidden layers must be positive"),
        (lambda: MultiplicativeFilterNetwork(2, 1, 8)(torch.rand(5, 3)), r"`x` must have shape \[..., 2\]"),
    ],
)
def test_bad_input(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
