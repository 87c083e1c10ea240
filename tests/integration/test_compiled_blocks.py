"""Updates with compiled transformer blocks give the same weights as without compilation."""

from __future__ import annotations

import json
import shutil

import pytest
from support.command_line import SMALL, run_tdmr1
from support.product import make_engine
from support.role_updates import SECTIONS, largest_difference, updated
from torch import nn

from tdmr1_core.models.memory import compile_blocks
from tdmr1_core.models.roles import FAKE, GENERATOR, SURROGATE

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    "roles",
    [(FAKE,), pytest.param((FAKE, SURROGATE, GENERATOR), marks=pytest.mark.long)],
    ids=["fake score", "every role"],
)
def test_compiled_blocks_give_the_same_updates(monkeypatch, roles):
    import torch._dynamo

    plain = updated(make_engine(SECTIONS), roles)
    engine, compile_one = make_engine(SECTIONS), nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda block: compile_one(block, backend="eager"))
    torch._dynamo.reset()
    limits = {"recompile_limit": 8, "accumulated_recompile_limit": 8, "fail_on_recompile_limit_hit": True}
    with torch._dynamo.config.patch(limits):
        compile_blocks(engine.roles)
        try:
            assert largest_difference(updated(engine, roles), plain) <= 1e-12
        finally:
            torch._dynamo.reset()


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for the CPU with g++")
def test_the_command_line_trains_with_compiled_blocks(tmp_path):
    """With torch's own compiler, and everything that the command line imports."""
    rows = {}
    for compiled in ("false", "true"):
        options = ["--iterations", 1, "--set", f"memory.compile={compiled}", "--output", tmp_path / compiled]
        run_tdmr1("train", *SMALL, *options, TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"))
        (line,) = (tmp_path / compiled / "metrics.jsonl").read_text().splitlines()
        rows[compiled] = json.loads(line)
    assert (tmp_path / "cache").is_dir()
    for name in ("loss/fake", "loss/preference", "loss/kl"):
        assert rows["true"][name] == pytest.approx(rows["false"][name], rel=1e-4)
