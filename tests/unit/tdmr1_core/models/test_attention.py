"""The kernel of torch that computes attention: it is used, also where blocks are recomputed, and refused if missing."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
import torch
from support.errors import raises
from support.product import make_engine, network_inputs
from support.role_updates import SECTIONS, largest_difference, updated
from torch.nn import functional
from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends
from torch.utils._python_dispatch import TorchDispatchMode

from tdmr1_core.build.parts import apply_memory_settings
from tdmr1_core.config import MemoryConfig, RunConfig
from tdmr1_core.models.attention import KERNELS, attention_kernel, check_attention
from tdmr1_core.models.families import FAMILIES
from tdmr1_core.preflight.machine import check_machine
from tdmr1_core.preflight.resolved import resolve_run

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
CPU_FLASH = "aten._scaled_dot_product_flash_attention_for_cpu.default"


class Operations(TorchDispatchMode):
    """Counts the operations of torch by name."""

    def __init__(self):
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[str(function)] += 1
        return function(*args, **(kwargs or {}))


def engine_with(**memory):
    engine = make_engine(SECTIONS)
    apply_memory_settings(MemoryConfig(**memory), engine.roles)
    return engine


def operations(action) -> Counter[str]:
    with Operations() as found:
        action()
    return found.counts


@pytest.mark.parametrize(("attention", "is_flash"), [("auto", True), ("flash", True), ("math", False)])
def test_the_selected_kernel_is_used(attention, is_flash):
    backbone = engine_with(attention=attention).roles.backbone
    found = operations(lambda: backbone.velocity(*network_inputs()))
    assert (found[CPU_FLASH] > 0) == is_flash
    assert (found["aten._softmax.default"] + found["aten._safe_softmax.default"] > 0) == (not is_flash)


@pytest.mark.parametrize("recomputes", [False, True])
def test_kernels_give_equal_updates(recomputes):
    plain = updated(make_engine(SECTIONS))
    found = updated(engine_with(attention="math", gradient_checkpointing=recomputes))
    assert 0 < largest_difference(found, plain) < 1e-11, "the same up to rounding, but computed by another kernel"


def test_a_recomputed_block_uses_the_kernel_of_the_forward_pass(monkeypatch):
    engine = engine_with(attention="math", gradient_checkpointing=True)
    original, kernels = functional.scaled_dot_product_attention, []

    def spy(*given, **named):
        kernels.append((torch._C._current_graph_task_id() != -1, _cur_sdpa_kernel_backends()))
        return original(*given, **named)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", spy)
    updated(engine)
    assert {kernel for _, selected in kernels for kernel in selected} == {SDPBackend.MATH}
    assert {in_backward for in_backward, _ in kernels} == {False, True}, "blocks must be recomputed"


def test_a_former_selection_is_restored():
    before = _cur_sdpa_kernel_backends(with_priority=True)
    with attention_kernel("math"):
        assert _cur_sdpa_kernel_backends() == [SDPBackend.MATH]
    assert _cur_sdpa_kernel_backends(with_priority=True) == before


@pytest.mark.parametrize("attention", KERNELS)
def test_another_thread_can_compute_attention_meanwhile(attention):
    """A reward may run with inputs that the selected kernel does not support."""
    query, results = torch.randn(1, 1, 4, 8), []
    with attention_kernel(attention):
        thread = threading.Thread(target=lambda: results.append(functional.scaled_dot_product_attention(*3 * [query])))
        thread.start()
        thread.join()
    torch.testing.assert_close(results[0], functional.scaled_dot_product_attention(query, query, query))


def test_the_selected_kernel_has_priority_over_the_math_kernel():
    with attention_kernel("efficient"):
        assert _cur_sdpa_kernel_backends(with_priority=True)[0] == SDPBackend.EFFICIENT_ATTENTION


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("attention", ["efficient", "cudnn"])
def test_a_kernel_that_the_device_does_not_have_is_refused(attention, precision):
    values = {"attention": attention, "device": "cpu", "masked": False, "usable": ["auto", "flash", "math"]}
    with raises("attention-unavailable", **values):
        check_attention(attention, CPU, precision, FAMILIES["sd3"])


def test_a_kernel_without_masks_is_refused_for_a_family_with_masks(monkeypatch):
    """Flash attention on a GPU takes no mask; here a replacement refuses it as torch does."""
    original = functional.scaled_dot_product_attention

    def like_a_gpu(*given, attn_mask=None, **named):
        if attn_mask is not None and SDPBackend.FLASH_ATTENTION in _cur_sdpa_kernel_backends():
            raise RuntimeError("No available kernel. Aborting execution.")
        return original(*given, attn_mask=attn_mask, **named)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", like_a_gpu)
    meanwhile = torch.device("cpu", 0)  # another key of the cache
    check_attention("flash", meanwhile, torch.bfloat16, FAMILIES["sd3"])
    with raises("attention-unavailable", family="krea2", masked=True, usable=["auto", "math"]):
        check_attention("flash", meanwhile, torch.bfloat16, FAMILIES["krea2"])


def test_a_dry_run_and_a_run_refuse_it_before_weights_are_loaded(monkeypatch):
    from tdmr1_core.build import parts

    monkeypatch.setattr(parts, "fetch_model", lambda *_, **__: pytest.fail("the model is loaded"))
    rewards = ({"name": "object_count"},)
    config = RunConfig.model_validate(
        {"rewards": rewards, "memory": {"attention": "cudnn"}, "model": {"device": "cpu"}}
    )
    resolved = resolve_run(config)
    with raises("attention-unavailable", attention="cudnn"):
        check_machine(resolved)
    with raises("attention-unavailable", attention="cudnn"):
        parts.load_parts(resolved, None, CPU)
