"""Training in steps of fixed size, which a CUDA graph can hold: on the CPU, emulated, and with a GPU replayed."""

from __future__ import annotations

import math
from types import ModuleType

import pytest
import torch
from host.redirect import take_cuda_ops
from problems.nerf import TINY, nerf_trainer
from torch import Tensor

from hashgrid import composite
from hashgrid.data.scene import Scene
from hashgrid.geometry.rays import At, Rays
from hashgrid.tasks.nerf import Nerf, NerfConfig
from hashgrid.tasks.nerf_graph import FILL
from hashgrid.train.checkpoint import load_checkpoint
from hashgrid.train.loop import Trainer, TrainingError
from hashgrid.util.device import choose_device, why_not_cuda

FIXED = {**TINY, "fixed_size": True, "occupancy_interval": 4}


def trainer_of(scene: Scene, steps: int = 40, **changes) -> Trainer:
    return nerf_trainer(scene, steps, **{**FIXED, **changes})


def train(scene: Scene, steps: int, **changes) -> Trainer:
    trainer = trainer_of(scene, steps, **changes)
    trainer.train()
    return trainer


def test_fixed_step_has_the_gradient_of_its_rays(scene: Scene) -> None:
    """What a step computes from padded samples is the loss of the rays that fit, and nothing else."""
    trainer = trainer_of(scene, target_samples=900, max_rays=100)
    fixed, model = trainer.stepper, trainer.task.model
    fixed.n_rays.fill_(90)
    rays_o, rays_d, target, background = fixed.batch()
    samples, totals = trainer.task.sampler.grid.march_fixed(
        rays_o, rays_d, 900, fixed.n_rays, step_size=trainer.task.sampler.step_size, seed=0, step=0
    )
    n_complete = int(totals[1])
    assert 0 < n_complete < 90
    trainer.optimizer.step = lambda: None
    fixed.run(trainer.progress)
    gradients = [param.grad.clone() for param in model.parameters()]
    trainer.optimizer.zero_grad(set_to_none=True)

    rays_o, rays_d = rays_o[:n_complete], rays_d[:n_complete]
    alone = trainer.task.sampler.grid.march(rays_o, rays_d, step_size=trainer.task.sampler.step_size, seed=0, step=0)
    unit = alone.positions(model.unit(rays_o), model.unit_direction(rays_d))
    at = At(Rays(rays_o, rays_d), unit, alone.ray_indices)
    sigmas, geometry = model.density(at)
    colors = model.color(at, geometry)
    out = composite(sigmas, colors, alone, background=background[:n_complete])[0]
    loss = torch.nn.functional.huber_loss(out, target[:n_complete], delta=0.1) / 0.1
    loss.backward()
    assert math.isclose(fixed.read().loss, float(loss.detach()), rel_tol=1e-5)
    for param, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(gradient, param.grad, rtol=1e-3, atol=1e-6 * float(param.grad.abs().max()))


@pytest.mark.full
def test_fixed_steps_explain_the_images(scene: Scene) -> None:
    trainer = train(scene, 120, target_samples=16384, max_rays=2048)
    assert trainer.progress.step == 120 and trainer.progress.psnr > 17
    assert trainer.progress.samples < 120 * 16384
    # most of the room is used once the number of rays has settled
    trainer.read()
    trainer.stepper.run(trainer.progress)
    assert 0.5 * FILL < trainer.stepper.read().counts["samples"] / 16384 <= 1


def test_rays_and_backgrounds_differ_from_step_to_step_and_repeat_with_the_seed(scene: Scene) -> None:
    fixed, again = (trainer_of(scene).stepper for _ in range(2))
    first = fixed.batch()
    assert all(torch.equal(a, b) for a, b in zip(first, again.batch(), strict=True))
    fixed.step += 1
    assert all(float((a != b).any(-1).float().mean()) > 0.5 for a, b in zip(first[1:], fixed.batch()[1:], strict=True))
    views = (first[0][:, None] == scene.train.origins[None]).all(-1).float().mean(0)
    assert (views > 0.2 / len(scene.train)).all()


def test_resumed_run_of_fixed_steps_ends_where_an_uninterrupted_one_does(scene: Scene, tmp_path) -> None:
    whole = train(scene, 24)
    half = trainer_of(scene, 24)
    for _ in range(10):
        half.step()
    half.save(tmp_path / "checkpoint.safetensors")
    resumed = trainer_of(scene, 24)
    resumed.load(*load_checkpoint(tmp_path / "checkpoint.safetensors"))
    assert resumed.progress.step == 10
    resumed.train()
    for name, value in whole.task.model.state_dict().items():
        torch.testing.assert_close(resumed.task.model.state_dict()[name], value, rtol=0, atol=0, msg=name)


def test_images_that_do_not_fit_are_fed_from_the_host(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same rays, hence the same bits, as those that do."""
    trainer, other = trainer_of(scene), trainer_of(scene)
    trainer.stepper.views = None
    trainer.stepper.fed = [torch.zeros(trainer.task.config.max_rays, width) for width in (3, 3, 4, 3)]
    for _ in range(5):
        trainer.step()
        other.step()
    assert trainer.stepper.fed[0].any() and trainer.progress.loss > 0
    assert all(
        torch.equal(a, b) for a, b in zip(trainer.task.model.parameters(), other.task.model.parameters(), strict=True)
    )


def test_no_ray_is_used_that_was_not_fed(scene: Scene) -> None:
    """The host knows late how many rays the device wants."""
    trainer = trainer_of(scene)
    fixed = trainer.stepper
    fixed.views, fixed.fed = None, [torch.zeros(fixed.config.max_rays, width) for width in (3, 3, 4, 3)]
    fixed.n_rays.fill_(700)
    trainer.task.n_rays.fill_(50)  # what the host knows: it feeds twice as many
    fixed.run(trainer.progress)
    assert 0 < fixed.read().counts["rays"] <= 100 and int(fixed.n_rays) <= 200


def test_loaded_state_replaces_what_was_not_read(scene: Scene, tmp_path) -> None:
    trainer = trainer_of(scene)
    trainer.step()
    trainer.save(tmp_path / "checkpoint.safetensors")
    weights = [param.clone() for param in trainer.task.model.parameters()]
    for _ in range(2):
        trainer.step()
    trainer.load(*load_checkpoint(tmp_path / "checkpoint.safetensors"))
    trainer.read()
    assert trainer.progress.step == int(trainer.stepper.step) == 1 and not trainer.stepper.sums.any()
    assert all(torch.equal(a, b) for a, b in zip(trainer.task.model.parameters(), weights, strict=True))


def test_fixed_steps_stop_at_a_loss_that_is_not_finite(scene: Scene, tmp_path) -> None:
    trainer = trainer_of(scene)
    for _ in range(5):
        trainer.step()
    with torch.no_grad():
        trainer.task.model.color_mlp.weights[0].fill_(math.nan)
    trainer.step()
    with pytest.raises(TrainingError, match="the loss is nan"):
        trainer.save(tmp_path / "checkpoint.safetensors")
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match='`device` must be "auto", "cpu", "cuda" or "cuda:N", got \'tpu\''):
        choose_device("tpu")
    if why_not_cuda():
        with pytest.raises(ValueError, match="`device` is 'cuda', but .*; choose `cpu`"):
            choose_device("cuda")
        assert choose_device("auto").type == "cpu"


@pytest.mark.full
@pytest.mark.usefixtures("cuda_on_host")
def test_emulated_kernels_take_the_step_of_the_cpu(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def steps() -> Trainer:
        trainer = trainer_of(scene, target_samples=300, max_rays=40, log2_hashmap_size=10, occupancy_resolution=16)
        for _ in range(3):
            trainer.step()
        trainer.read()
        return trainer

    expected = steps()
    take_cuda_ops(torch.ops.hashgrid_on_host, monkeypatch.setattr)
    actual = steps()
    assert actual.task.n_rays == expected.task.n_rays and actual.progress.samples == expected.progress.samples
    assert math.isclose(actual.progress.loss, expected.progress.loss, rel_tol=1e-4)
    for (name, a), b in zip(actual.task.model.named_parameters(), expected.task.model.parameters(), strict=True):
        # Adam's step has the size of the learning rate where a gradient is zero up to rounding, too
        assert float(((a - b).abs() > 1e-4).float().mean()) < 0.01, name


SMALL = {"target_samples": 300, "max_rays": 40, "log2_hashmap_size": 10, "occupancy_resolution": 16}
HALF = ("float16", "bfloat16")


@pytest.mark.full
@pytest.mark.parametrize("half", HALF)
def test_emulated_half_precision_has_the_gradient_of_the_step(
    scene: Scene, half: str, cuda_on_host: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the kernels training uses, with 16-bit products and table: as far from fp32 as the CPU's are, at most twice,
    and one rounding."""

    def gradients(dtype: str) -> list[Tensor]:
        trainer = trainer_of(scene, **SMALL, compute_dtype=dtype, table_dtype=dtype)
        trainer.optimizer.step = lambda: None
        trainer.stepper.run(trainer.progress)
        assert trainer.stepper.read().counts["samples"] > 100
        return [param.grad.clone() for param in trainer.task.model.parameters()]

    exact, theirs = gradients("float32"), gradients(half)
    take_cuda_ops(torch.ops.hashgrid_on_host, monkeypatch.setattr)
    before = cuda_on_host.launches()
    ours = gradients(half)
    for kernel in ("radiance_mlp_forward_kernel", "radiance_mlp_backward_kernel"):
        assert cuda_on_host.launches()[kernel] > before[kernel]
    unit = {"float16": 2**-12, "bfloat16": 2**-9}[half]
    for a, b, truth in zip(ours, theirs, exact, strict=True):
        scale = truth.abs().max()
        assert scale > 0 and (a - truth).abs().max() <= 2 * (b - truth).abs().max() + unit * scale


@pytest.mark.full
@pytest.mark.usefixtures("cuda_on_host")
@pytest.mark.parametrize("half", HALF)
def test_emulated_steps_in_half_precision_repeat(scene: Scene, half: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, with threads that take turns in another order: what a replay is compared with on a GPU."""

    def steps(order: str) -> list[Tensor]:
        monkeypatch.setenv("HASHGRID_EMULATED_ORDER", order)
        trainer = trainer_of(scene, **SMALL, compute_dtype=half, table_dtype=half)
        for _ in range(3):
            trainer.stepper.run(trainer.progress)
        assert math.isfinite(trainer.stepper.sums[0]) and trainer.stepper.sums[0] > 0
        return [*trainer.task.model.state_dict().values(), trainer.stepper.sums, trainer.stepper.n_rays]

    take_cuda_ops(torch.ops.hashgrid_on_host, monkeypatch.setattr)
    torch.use_deterministic_algorithms(True)
    try:
        results = [steps(order) for order in ("forward", "reverse")]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# ---- with a GPU ------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.asynchronous
@pytest.mark.parametrize("dtype", ["float32", *HALF])
def test_a_hundred_replays_equal_a_hundred_eager_steps(scene: Scene, dtype: str) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        sizes = {"target_samples": 1 << 14, "max_rays": 2048, "device": "cuda"}
        sizes |= {"compute_dtype": dtype, "table_dtype": dtype}
        replayed, eager = (trainer_of(scene, 200, cuda_graph=graph, **sizes) for graph in (True, False))
        rays = []
        for _ in range(104):
            for trainer in (replayed, eager):
                trainer.stepper.run(trainer.progress)
            rays.append(int(replayed.stepper.n_rays))
        assert replayed.stepper._graph is not None and eager.stepper._graph is None
        assert int(replayed.stepper.step) == int(eager.stepper.step) == 104
        for (name, a), b in zip(replayed.task.model.named_parameters(), eager.task.model.parameters(), strict=True):
            assert torch.equal(a, b), name
        assert replayed.stepper.sums.tolist() == eager.stepper.sums.tolist()
        assert len(set(rays)) > 1  # the number of rays follows
        shifts = []
        for _ in range(2):
            samples, _ = replayed.task.sampler.grid.march_fixed(
                *(x[:100] for x in replayed.stepper.batch()[:2]), 1 << 14, step_size=replayed.task.sampler.step_size,
                seed=replayed.stepper.seed, step=replayed.stepper.step,
            )  # fmt: skip
            shifts.append(samples.t_starts)
            replayed.stepper.run(trainer.progress)
        assert not torch.equal(*shifts)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.gpu
@pytest.mark.asynchronous
@pytest.mark.parametrize("half", HALF)
def test_a_graph_is_recorded_anew_when_a_checkpoint_is_loaded_or_gradients_are_dropped(
    scene: Scene, tmp_path, half: str
) -> None:
    sizes = {"target_samples": 1 << 14, "max_rays": 2048, "compute_dtype": half, "table_dtype": half}
    trainer = trainer_of(scene, 200, device="cuda", **sizes)
    for _ in range(6):
        trainer.step()
    first = trainer.stepper._graph
    trainer.save(tmp_path / "checkpoint.safetensors")
    trainer.load(*load_checkpoint(tmp_path / "checkpoint.safetensors"))
    for _ in range(6):
        trainer.step()
    second = trainer.stepper._graph
    trainer.optimizer.zero_grad(set_to_none=True)
    for _ in range(6):
        trainer.step()
    graphs = [first, second, trainer.stepper._graph]
    assert None not in graphs and len({id(graph) for graph in graphs}) == 3
    trainer.read()
    assert trainer.progress.step == 18 and math.isfinite(trainer.progress.loss)


@pytest.mark.gpu
@pytest.mark.asynchronous
def test_training_on_a_gpu_explains_the_images(scene: Scene) -> None:
    config = NerfConfig.for_device(torch.device("cuda")).replace(
        steps=300, log2_hashmap_size=16, target_samples=1 << 16, max_rays=1 << 13, occupancy_resolution=64
    )
    trainer = Trainer(Nerf(config, scene))
    trainer.train()
    assert trainer.progress.step == 300 and trainer.progress.psnr > 17
