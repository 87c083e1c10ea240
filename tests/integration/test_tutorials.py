"""Follows docs/tutorial_reward.md and docs/tutorial_model.md to the letter, in an environment layered over this one."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from support.packaging import Environment
from support.paths import ROOT
from support.programs import find_program

pytestmark = [pytest.mark.integration, pytest.mark.long]

OTHERS = ("tdmr1 probe --reward warm_light", "tdmr1 train --reward warm_light")
"""Lines that take longer than this test: only their arguments are checked, by tests/unit/docs/test_doc_commands.py."""


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [block for name, block in found if name == language]


class Reader:
    """Types the lines of a page into a shell, in a folder of its own and with the environment activated."""

    def __init__(self, environment: Environment, folder: Path) -> None:
        self.folder = folder
        kept = {name: text for name, text in os.environ.items() if not name.startswith(("TDMR1_", "PYTHONPATH"))}
        scripts = f"{environment.python.parent}:{kept['PATH']}"
        offline = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_NO_DEPS": "1"}
        self._environment = kept | {"PATH": scripts, "VIRTUAL_ENV": str(environment.python.parents[1]), **offline}

    def write(self, path: str, text: str) -> None:
        (self.folder / path).write_text(text)

    def type(self, line: str) -> str:
        """The output of a line, which must succeed."""
        line = re.sub(r"^(pip|pytest) ", r"python -m \1 ", line)  # their scripts belong to the environment below
        line = line.replace("python -m build warm-light", "python -m build --no-isolation warm-light")
        done = subprocess.run(
            [find_program("bash"), "-c", line],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def type_all(self, text: str) -> dict[str, str]:
        """The output of each line of the shell blocks, in their order."""
        lines = [line for block in blocks(text, "sh") for line in block.splitlines() if line not in OTHERS]
        return {line: self.type(line) for line in lines}


@pytest.fixture
def reader(environment, tmp_path) -> Reader:
    (tmp_path / "reader").mkdir()
    return Reader(environment, tmp_path / "reader")


def test_a_reward_becomes_a_package(reader, environment):
    text = page("tutorial_reward.md")
    files = dict(re.findall(r"^```python\n# (\S+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    assert sorted(files) == [f"warm-light/src/warm_light/{name}.py" for name in ("__init__", "examples")]
    first, *rest = re.split(r"^## 4", text, maxsplit=1, flags=re.MULTILINE)
    reader.type_all(first)
    for path, content in files.items():
        assert (reader.folder / path).is_file(), "`rewards new` writes another file"
        reader.write(path, content)
    try:
        printed = reader.type_all(rest[0])
    finally:
        environment.uninstall("warm-light")
    assert "suitable for training" in printed["tdmr1 rewards check warm_light"]
    assert "1 passed" in printed["pytest warm-light"]
    rows = [json.loads(line) for line in (reader.folder / "runs/warm/metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    assert all(0 <= row["reward/warm_light/mean"] <= 1 for row in rows)
    assert (reader.folder / "runs/warm/report.html").is_file()
    assert list((reader.folder / "warm-light/dist").glob("*.whl"))


def test_a_model_is_distilled_trained_and_exported(reader):
    text = page("tutorial_model.md")
    (prompts,) = blocks(text, "text")
    reader.write("prompts.txt", prompts)
    reader.type_all(text)
    assert (reader.folder / "runs/mine/export/pytorch_lora_weights.safetensors").stat().st_size > 1e5
    assert list((reader.folder / "images/mine").glob("*.png"))
