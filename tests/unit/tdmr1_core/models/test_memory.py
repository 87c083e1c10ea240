"""Gradient checkpointing and compilation do not change the result."""

from __future__ import annotations

import pytest
import torch
from support.product import make_backbone, make_engine
from support.role_updates import SECTIONS, largest_difference, updated
from torch import nn

from tdmr1_core.models.memory import compile_blocks, enable_gradient_checkpointing
from tdmr1_core.models.roles import FAKE, GENERATOR, SURROGATE, SURROGATE_EMA, TEACHER, Roles

pytestmark = pytest.mark.unit


def test_recomputed_blocks_use_the_role_of_the_forward_pass():
    engine, plain = make_engine(SECTIONS), updated(make_engine(SECTIONS))
    roles, network = engine.roles, engine.roles.backbone.network
    enable_gradient_checkpointing(roles)
    passes: list[str] = []
    network.transformer_blocks[0].register_forward_pre_hook(lambda *_: passes.append(roles._acting[roles.backbone]))
    assert largest_difference(updated(engine), plain) == 0
    assert passes.count(FAKE) > 2, "the blocks must be recomputed"
    assert passes[-1] == GENERATOR
    assert roles._acting == {roles.backbone: TEACHER}


def test_every_block_of_every_backbone_is_compiled(monkeypatch):
    roles = make_engine(SECTIONS).roles
    two = Roles(make_backbone(), roles.shape, (GENERATOR, FAKE), (), seed=0, teacher=make_backbone())
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda block: compiled.append(block))
    compile_blocks(two)
    assert compiled == [block for backbone in two.backbones for block in backbone.network.transformer_blocks]
    assert len(compiled) == 2 * len(roles.backbone.network.transformer_blocks)


def test_all_roles_share_the_graphs_of_compiled_blocks(monkeypatch):
    """The blocks have two kinds (the last one is shorter). Each needs one graph without LoRA, and two with a LoRA."""
    from torch._dynamo import reset
    from torch._dynamo.utils import counters

    compiled = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda block: compiled(block, backend="eager", dynamic=False))
    engine = make_engine(SECTIONS)
    compile_blocks(engine.roles)
    latents, level = torch.randn(3, *engine.roles.backbone.latent_shape(*engine.size)), torch.full((3,), 0.5)
    conditioning = engine.roles.backbone.unconditional.expand(3)

    def evaluate(role):
        with engine.roles.acting(role) as backbone:
            backbone.velocity(latents.to(backbone.dtype), level.to(backbone.dtype), conditioning)

    reset()
    counters.clear()
    graphs = []
    for role in (TEACHER, GENERATOR, FAKE, SURROGATE):
        evaluate(role)
        with torch.no_grad():
            evaluate(role)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[1] - graphs[0] == 4
    assert graphs[1:] == [graphs[1]] * 3
    with torch.no_grad():
        evaluate(SURROGATE_EMA)
    assert counters["stats"]["unique_graphs"] - graphs[-1] <= 2  # its weights need no gradient
