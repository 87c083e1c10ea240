"""Gradient checkpointing and compilation do not change the result."""

from __future__ import annotations

import pytest
from support.product import make_backbone, make_engine
from support.role_updates import SECTIONS, largest_difference, updated
from torch import nn

from tdmr1_core.models.memory import compile_blocks, enable_gradient_checkpointing
from tdmr1_core.models.roles import FAKE, GENERATOR, TEACHER, Roles

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
