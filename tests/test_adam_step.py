"""The fused Adam step against its reference: values, skipped rows, averages, half-precision copies, threads."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems.adam_step import State, check_state, sparse_gradient

from hashgrid import ops, reference
from hashgrid.ops import adam_step

pytestmark = pytest.mark.every_kernel

SHAPES = [(), (5,), (0, 2), (1, 2), (7, 1), (1000, 1), (1001, 2), (999, 4), (333, 8), (65, 3), (40, 37), (3, 5, 2)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("skip_zero", [False, True])
@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matches_reference(shape: tuple[int, ...], skip_zero: bool, ema: bool, dtype: torch.dtype) -> None:
    grad = sparse_gradient(shape, 0.3, dtype)
    states = [State(shape, dtype, skip_zero, ema) for _ in range(2)] + [State(shape, torch.float64, skip_zero, ema)]
    for name in ("param", "exp_avg", "exp_avg_sq", "ema"):  # the truth starts from the rounded values
        if getattr(states[0], name) is not None:
            setattr(states[2], name, getattr(states[0], name).double().clone())
    states[0].step(adam_step, grad.clone(), skip_zero)
    states[1].step(reference.adam_step, grad.clone(), skip_zero)
    states[2].step(reference.adam_step, grad.double(), skip_zero)
    check_state(*states)


@pytest.mark.parametrize("half_copy", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(777, 2), (333, 8), (65, 3)], ids=str)
@pytest.mark.parametrize("skip_zero", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_half_copy_is_the_rounded_parameter(shape, skip_zero: bool, dtype: torch.dtype, half_copy: torch.dtype) -> None:
    state = State(shape, dtype, skip_zero, ema=False, half_copy=half_copy)
    ties = [1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-8, 1 + 3 * 2**-8]
    special = [
        0.0,
        -0.0,
        1e-8,
        -6e-8,
        2.0**-25,
        3 * 2.0**-25,
        3e-5,
        65519.0,
        65520.0,
        1e9,
        -3.4e38,
        torch.inf,
        torch.nan,
    ]
    state.param.view(-1)[: len(special + ties)] = torch.tensor(special + ties, dtype=dtype)
    state.half_copy.zero_()
    adam_step(
        state.param, torch.ones(shape, dtype=dtype), state.exp_avg, state.exp_avg_sq, state.steps, 0.0, 0.9, 0.99,
        1e-15, 0.0, skip_zero, half_copy=state.half_copy,
    )  # fmt: skip
    expected = state.param.float().to(half_copy)
    torch.testing.assert_close(state.half_copy, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(state.half_copy.signbit() & ~expected.isnan(), expected.signbit() & ~expected.isnan())


@pytest.mark.parametrize("width", [1, 2, 3, 4, 8, 37])
def test_rows_without_gradient_keep_every_bit(width: int) -> None:
    state, before = (State((500, width), torch.float32, True, ema=True, half_copy=torch.bfloat16) for _ in range(2))
    grad = torch.zeros(500, width)
    grad[::7, width - 1] = 1.0
    grad[3::7] = -0.0  # a negative zero is no gradient
    state.step(adam_step, grad, True)
    touched = grad.ne(0).any(-1)
    for name, tensor in state.tensors().items():
        same = tensor == getattr(before, name)
        same = same.view(500, -1).all(-1)
        assert same[~touched].all(), name
        assert not same[touched].all(), name
    assert torch.equal(state.steps, before.steps + touched.int())


def test_nan_gradient_counts_as_gradient() -> None:
    state = State((64, 2), torch.float32, True, ema=False)
    grad = torch.zeros(64, 2)
    grad[5, 1] = torch.nan
    state.step(adam_step, grad, True)
    assert state.param.isnan().any(-1).nonzero().tolist() == [[5]]


@pytest.mark.parametrize("skip_zero", [False, True])
@pytest.mark.parametrize("shape", [(1001, 2), (65, 3), (333, 8)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_grad_clears_the_gradient_and_changes_nothing_else(shape, skip_zero: bool, dtype: torch.dtype) -> None:
    grad = sparse_gradient(shape, 0.4, dtype)
    kept, cleared = grad.clone(), grad.clone()
    first, second = (State(shape, dtype, skip_zero, ema=True) for _ in range(2))
    first.step(adam_step, kept, skip_zero)
    second.step(adam_step, cleared, skip_zero, zero_grad=True)
    assert torch.equal(kept, grad) and not cleared.any()
    for name, tensor in first.tensors().items():
        assert torch.equal(tensor, getattr(second, name)), name


@pytest.mark.cpu_only
@pytest.mark.parametrize("width", [2, 5])
@pytest.mark.parametrize("skip_zero", [False, True])
def test_bits_do_not_depend_on_threads(width: int, skip_zero: bool) -> None:
    grad = sparse_gradient((50_001, width), 0.3, torch.float32)
    results = []
    threads = torch.get_num_threads()
    try:
        for n_threads in (1, 2, 16):
            torch.set_num_threads(n_threads)
            results.append(State(tuple(grad.shape), torch.float32, skip_zero, ema=True))
            results[-1].step(adam_step, grad.clone(), skip_zero)
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for name, tensor in results[0].tensors().items():
            assert torch.equal(tensor, getattr(other, name)), name


def test_closed_form_average_equals_averaging_every_step() -> None:
    state = State((40, 2), torch.float64, True, ema=True)
    state.steps.zero_()
    state.ema_last.zero_()
    state.ema.copy_(state.param)
    average = state.param.clone()
    for step in range(1, 30):
        grad = sparse_gradient((40, 2), 0.2, torch.float64)
        grad[:, 0] += grad[:, 1]
        if step == 29:
            grad = torch.ones(40, 2, dtype=torch.float64)  # everything catches up
        state.step(adam_step, grad, True, global_step=step)
        average = 0.95 * average + 0.05 * state.param
    torch.testing.assert_close(state.ema, average, rtol=1e-12, atol=1e-14)


@given(
    n_rows=st.integers(0, 70),
    width=st.integers(1, 20),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    skip_zero=st.booleans(),
    ema=st.booleans(),
    half_copy=st.sampled_from([None, torch.float16, torch.bfloat16]),
)
@settings(max_examples=60, deadline=None)
def test_any_shape_and_option(n_rows, width, density, skip_zero, ema, half_copy) -> None:
    grad = sparse_gradient((n_rows, width), density, torch.float32)
    actual, expected = (State((n_rows, width), torch.float32, skip_zero, ema, half_copy) for _ in range(2))
    actual.step(adam_step, grad.clone(), skip_zero)
    expected.step(reference.adam_step, grad.clone(), skip_zero)
    for name, tensor in actual.tensors().items():
        if name != "half_copy":
            torch.testing.assert_close(tensor, getattr(expected, name), rtol=2e-5, atol=1e-6, msg=name)
    if half_copy is not None:
        assert torch.equal(actual.half_copy, actual.param.to(half_copy))


def test_step_bumps_versions() -> None:
    state = State((8, 2), torch.float32, True, ema=True, half_copy=torch.bfloat16)
    versions = {name: tensor._version for name, tensor in state.tensors().items()}
    state.step(adam_step, torch.ones(8, 2), True)
    for name, tensor in state.tensors().items():
        assert tensor._version > versions[name], name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grad": torch.zeros(4, 3)}, r"`grad` must have shape \[4, 2\], got \[4, 3\]"),
        ({"grad": torch.zeros(4, 2).double()}, r"`grad` must be float32, got float64"),
        ({"steps": torch.zeros(1, dtype=torch.int32)}, r"`steps` must have shape \[4\], got \[1\]"),
        ({"steps": torch.zeros(4)}, r"`steps` must be int32, got float32"),
        ({"exp_avg": torch.zeros(2, 4).T}, r"`exp_avg` must be contiguous"),
        ({"beta2": 1.0}, r"`beta2` must be in \[0, 1\), got 1"),
        ({"half_copy": torch.zeros(4, 2)}, r"`half_copy` must be float16 or bfloat16, got float32"),
        ({"ema": torch.zeros(4, 2)}, r"`ema` and `ema_last` must be given together"),
        ({"lr": torch.zeros(2)}, r"`lr` must have one element, got shape \[2\]"),
    ],
)
def test_errors_name_contract_and_actual(changes: dict, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        adam_step(**zeros() | changes)


@pytest.mark.cpu_only
def test_step_on_the_cpu_refuses_betas_beyond_its_table() -> None:
    with pytest.raises(RuntimeError, match="must be below 0.999995 with `skip_zero`"):
        adam_step(**zeros() | {"beta2": 0.9999999})


def zeros() -> dict:
    return {
        "param": torch.zeros(4, 2), "grad": torch.zeros(4, 2), "exp_avg": torch.zeros(4, 2),
        "exp_avg_sq": torch.zeros(4, 2), "steps": torch.zeros(4, dtype=torch.int32), "lr": 0.01, "beta1": 0.9,
        "beta2": 0.99, "eps": 1e-15, "weight_decay": 0.0, "skip_zero": True,
    }  # fmt: skip


MANY = [(5,), (7, 1), (1001, 2), (0, 2), (333, 8), (3, 5, 2), (), *((n, 2) for n in range(12))]  # in two calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ema", [False, True])
def test_many_at_once_are_the_same_as_one_by_one(ema: bool, dtype: torch.dtype) -> None:
    """Bits; parameters of several sizes, each with its own number of steps."""
    together, alone = ([State(shape, dtype, False, ema) for shape in MANY] for _ in range(2))
    grads = [torch.randn(shape, dtype=dtype) for shape in MANY]
    kept = [grad.clone() for grad in grads]
    names = ("param", "exp_avg", "exp_avg_sq", "steps")
    param, *rest = ([getattr(state, name) for state in together] for name in names)
    averages = ([state.ema for state in together], [state.ema_last for state in together]) if ema else ((), ())
    adam_step(
        param, grads, *rest, torch.tensor(0.01), 0.9, 0.99, 1e-15, 1e-3, False, *averages, 0.95, 100, zero_grad=True
    )
    for state, other, grad in zip(together, alone, kept, strict=True):
        other.step(adam_step, grad, False, zero_grad=True)
        for name, tensor in other.tensors().items():
            assert torch.equal(tensor, getattr(state, name)), name
    assert not any(grad.any() for grad in grads)


def test_many_at_once_refuse_what_does_not_fit_and_write_nothing() -> None:
    def lists(n: int = 2) -> dict:
        states = [State((4, 2), torch.float32, False, False) for _ in range(n)]
        return {
            "param": [state.param for state in states],
            "grad": [torch.ones(4, 2) for _ in states],
            "exp_avg": [state.exp_avg for state in states],
            "exp_avg_sq": [state.exp_avg_sq for state in states],
            "steps": [state.steps for state in states],
        }

    options = {"lr": 0.01, "beta1": 0.9, "beta2": 0.99, "eps": 1e-15, "weight_decay": 0.0, "skip_zero": False}
    for changed, message in (
        ({"grad": [torch.ones(4, 2)]}, "`grads` must have 2 tensors, one per parameter, got 1"),
        ({"grad": [torch.ones(4, 2), torch.ones(4)]}, r"`grad` must have shape \[4, 2\], got \[4\]"),
        ({"ema": [torch.ones(4, 2)] * 2}, "`emas` and `ema_lasts` must be given together"),
    ):
        arguments = lists() | changed
        before = [param.clone() for param in arguments["param"]]
        with pytest.raises(RuntimeError, match=message):
            adam_step(**arguments, **options)
        assert all(torch.equal(a, b) for a, b in zip(before, arguments["param"], strict=True))
    for library in (ops, reference):
        for changed in ({"skip_zero": True}, {"half_copy": torch.ones(4, 2).half()}):
            with pytest.raises(ValueError, match="`skip_zero` and `half_copy` must not come with lists"):
                library.adam_step(**lists(), **options | changed)
    adam_step([], [], [], [], [], **options)
