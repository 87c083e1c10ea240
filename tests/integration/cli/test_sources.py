"""A reward in a file, in the convention of flow_grpo: training, and a resume from another folder."""

import json
import re

import pytest
from support.command_line import SMALL

pytestmark = pytest.mark.integration

REWARD = """
import helper


def bright(images, prompts, metadata, scale=1.0):
    assert len(metadata) == len(images) and "include" in metadata[0]
    return helper.SIGN * scale * images.mean((1, 2, 3)), {}
"""


def test_a_run_with_a_reward_in_a_file_is_resumed_from_another_folder(packaged_model, tdmr1, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "mine.py").write_text(REWARD)
    (tmp_path / "work" / "helper.py").write_text("SIGN = -1\n")
    folder = tmp_path / "run"
    settings = [
        *SMALL,
        "--set",
        "rewards.0.options.scale=2.0",
        "--set",
        "optimizer.final_lr=1.0",
        "--iterations",
        2,
        "--output",
        folder,
    ]
    done = tdmr1("train", "--reward", "glow=mine.py:bright:0.5", *settings, cwd=tmp_path / "work")
    assert re.search(r"reward glow .*: used as a flow_grpo-style function, bright\(", done.stderr)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(-2 < row["reward/glow/mean"] < 0 for row in rows)
    assert rows[0]["reward/mean"] == pytest.approx(0.5 * rows[0]["reward/glow/mean"])

    config = (folder / "config.yaml").read_text()
    assert f"source: {tmp_path}/work/mine.py:bright" in config
    (folder / "config.yaml").write_text(config.replace("iterations: 2\n", "iterations: 3\n", 1))
    done = tdmr1("train", "--resume", folder, cwd=tmp_path)
    assert "resuming after iteration 2" in done.stderr
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 3
