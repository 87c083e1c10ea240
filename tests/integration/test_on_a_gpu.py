"""What must also hold on a GPU (Ampere or newer): `pytest -m gpu`. The same tests run on the CPU in the other suites.

On a GPU nothing is expected to be equal to the last bit unless the test selects kernels that are deterministic.
"""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file
from support.errors import raises
from support.runs import Silent, rows, small_config
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tdmr1_core.engine import Engine
from tdmr1_core.models.attention import KERNELS
from tdmr1_core.models.roles import FAKE, GENERATOR, SURROGATE
from tdmr1_core.runs.run import Run

pytestmark = pytest.mark.integration

GPU = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here")],
)
on_each_device = pytest.mark.parametrize("device", ["cpu", GPU])
on_each_device_long = pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.long), GPU])
"""The ordinary suite has other tests that show the same on the CPU."""
SHORT = (
    "timesteps.per_iteration=1",
    "batch.groups=1",
    "batch.group_size=4",
    "evaluation.images=2",
    "batch.micro_batch=4",  # nothing is left for a run to choose, which would take seconds
    "memory.gradient_checkpointing=false",
    "memory.decoder=none",
    "memory.trajectories=device",
)
COMPARED = ("loss/", "grad_norm/", "reward/")
OPERATIONS = {
    ("cuda", "flash"): "_scaled_dot_product_flash_attention.",
    ("cuda", "cudnn"): "_scaled_dot_product_cudnn_attention.",
    ("cuda", "efficient"): "_scaled_dot_product_efficient_attention.",
    ("cpu", "flash"): "_scaled_dot_product_flash_attention_for_cpu.",
}
"""The operations of torch that compute attention with a kernel. The math kernel consists of several."""
USABLE = {
    ("cpu", "fp32"): {"flash", "math"},
    ("cpu", "bf16"): {"flash", "math"},
    ("cuda", "fp32"): {"efficient", "math"},
    ("cuda", "bf16"): {"flash", "cudnn", "efficient", "math"},
}


def engine_on(device: str, *settings: str) -> Engine:
    return Engine.from_config(small_config(*SHORT, f"model.device={device}", *settings))


def metrics_of(engine: Engine) -> dict[str, float]:
    """Losses, gradient norms and rewards of one iteration."""
    report = engine.iteration()
    engine.close()
    return {name: value for name, value in report.metrics.items() if name.startswith(COMPARED)}


def assert_close(found: dict[str, float], expected: dict[str, float], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    differing = {
        name: (value, expected[name])
        for name, value in found.items()
        if not math.isclose(value, expected[name], rel_tol=tolerance, abs_tol=tolerance * 1e-2)
    }
    assert not differing


@pytest.fixture(scope="module")
def exact() -> dict[str, float]:
    """The metrics of one iteration on the CPU in fp64."""
    return metrics_of(engine_on("cpu", "model.precision=fp64"))


@on_each_device
def test_an_iteration_in_fp32_equals_that_in_fp64_up_to_rounding(device, exact):
    found = metrics_of(engine_on(device))
    assert_close(found, exact, 2e-3)
    assert found != exact


@on_each_device
def test_a_run_in_bf16_trains_every_role(device):
    engine = engine_on(device, "model.precision=bf16")
    before = {role: engine.roles.weights(role) for role in (GENERATOR, FAKE, SURROGATE)}
    for _ in range(2):
        assert all(map(math.isfinite, engine.iteration().metrics.values()))
    for role, weights in before.items():
        now = engine.roles.weights(role)
        assert {weight.dtype for weight in now.values()} == {torch.float32}
        assert max((now[name] - weight).abs().max() for name, weight in weights.items()) > 1e-6, role
    engine.close()


@on_each_device_long
def test_a_compiled_iteration_equals_an_ordinary_one(device, exact, monkeypatch):
    """On the CPU, torch's compiler only traces the blocks, because compiling them takes minutes."""
    import torch._dynamo

    if device == "cpu":
        compile_one = nn.Module.compile
        monkeypatch.setattr(nn.Module, "compile", lambda block: compile_one(block, backend="eager"))
    torch._dynamo.reset()
    try:
        assert_close(metrics_of(engine_on(device, "memory.compile=true")), exact, 2e-3)
    finally:
        torch._dynamo.reset()


@pytest.mark.parametrize("weights", ["8bit", "nf4"])
@on_each_device
def test_quantized_weights_and_moments_train(device, weights, exact):
    pytest.importorskip("bitsandbytes")
    engine = engine_on(device, f"memory.weights={weights}", "memory.optimizer=8bit")
    assert {type(role.optimizer).__name__ for role in engine.trained.values()} == {"AdamW8bit"}
    found = metrics_of(engine)
    assert all(map(math.isfinite, found.values()))
    assert found["loss/fake"] == pytest.approx(exact["loss/fake"], rel=0.5)
    assert found["grad_norm/generator"] > 0


@on_each_device_long
def test_the_placement_of_text_encoders_changes_no_bit(device, tmp_path):
    weights = {}
    for placement in ("device", "cpu", "auto"):
        settings = (f"memory.text_encoders={placement}", "iterations=1", "guard.enabled=false")
        run = Run.create(small_config(*SHORT, *settings, f"model.device={device}"), tmp_path / placement)
        run.execute(Silent())
        weights[placement] = saved_weights(tmp_path / placement)
    for placement in ("cpu", "auto"):
        assert differing(weights[placement], weights["device"]) == []


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@on_each_device
def test_each_attention_kernel_is_used_or_refused(device, precision):
    for attention in KERNELS:
        settings = (f"memory.attention={attention}", f"model.precision={precision}")
        if attention not in USABLE[device, precision]:
            with raises("attention-unavailable", attention=attention, device=device):
                engine_on(device, *settings)
            continue
        engine = engine_on(device, *settings)
        trajectory = engine.rollout(engine.next_groups())  # decodes images too, with any kernel
        with Names() as used:
            engine.update_fake(trajectory)
        found = {name for name in used.names if "scaled_dot_product" in name and "backward" not in name}
        expected = OPERATIONS.get((device, attention))
        assert all(expected is not None and expected in name for name in found), (attention, found)
        assert bool(found) == (expected is not None)
        engine.close()


class Names(TorchDispatchMode):
    """The names of the operations that torch runs."""

    def __init__(self):
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(str(function))
        return function(*args, **(kwargs or {}))


@on_each_device_long
def test_a_resumed_run_equals_one_without_a_stop(device, tmp_path):
    """The math kernel is deterministic; the backward passes of the others are not on a GPU."""
    settings = (*SHORT, f"model.device={device}", "memory.attention=math", "guard.enabled=false")
    Run.create(small_config(*settings, "iterations=2"), tmp_path / "whole").execute(Silent())
    run = Run.create(small_config(*settings, "iterations=2"), tmp_path / "stopped")

    class StopAfterOne(Silent):
        def iteration(self, report):
            run.request_stop()

    assert not run.execute(StopAfterOne()).finished
    Run.resume(tmp_path / "stopped").execute(Silent())
    assert differing(saved_weights(tmp_path / "stopped"), saved_weights(tmp_path / "whole")) == []
    assert rows(tmp_path / "stopped" / "metrics.jsonl") == rows(tmp_path / "whole" / "metrics.jsonl")


def saved_weights(folder) -> dict[str, torch.Tensor]:
    latest = (folder / "checkpoints" / "latest").read_text().strip()
    return load_file(folder / "checkpoints" / latest / "weights.safetensors")


def differing(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> list[str]:
    assert one.keys() == two.keys()
    return [name for name, weight in one.items() if not torch.equal(weight, two[name])]
