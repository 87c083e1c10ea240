"""Runs docs/adding_a_model.md: examples/model_plugin is installed, checked, trained, resumed, exported and removed."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from support.command_line import run_script, run_tdmr1, small
from support.packaging import Environment, build_wheel
from support.paths import ROOT

pytestmark = pytest.mark.integration

EXAMPLE = ROOT / "examples" / "model_plugin"
DISTRIBUTION = "tdmr1-dots 0.1.0"
SMALL = small("batch.group_size=2", "evaluation.images=2", "saving.samples_every=0", "generator.learning_rate=1e-2")
GUIDE = (ROOT / "docs" / "adding_a_model.md").read_text()


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)
    return [block for name, block in found if name == language]


INSTALL, *COMMANDS, REMOVE = [line for block in blocks("sh") for line in block.splitlines()]


class Installed:
    """The package in an environment of its own. Commands run in `folder`, with this source tree and its packages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = Environment(folder / "environment")
        assert INSTALL == "pip install ./examples/model_plugin"
        self.environment.install(build_wheel(EXAMPLE, folder / "dist"), "--no-deps")
        self.path = os.pathsep.join([str(self.environment.site_packages), str(ROOT)])
        (folder / "examples").symlink_to(ROOT / "examples")

    @property
    def run(self) -> Path:
        """The run folder of the guide."""
        return self.folder / "runs" / "dots"

    def tdmr1(self, *arguments: str | Path, **options) -> subprocess.CompletedProcess[str]:
        return run_tdmr1(*arguments, PYTHONPATH=self.path, cwd=self.folder, **options)

    def models(self, **options) -> dict[str, dict]:
        return {entry["name"]: entry for entry in json.loads(self.tdmr1("models", "list", "--json", **options).stdout)}


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Installed:
    """The installed package. The last test removes it."""
    return Installed(tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="module")
def printed(installed) -> dict[str, str]:
    """What each command of the guide prints to stdout, by its first words."""
    found = {}
    for line in COMMANDS:
        program, *arguments = shlex.split(line)
        assert program == "tdmr1"
        further = SMALL if "--reward" in arguments else []
        found[" ".join(arguments[:2])] = installed.tdmr1(*arguments, *further).stdout
    return found


def test_the_guide_quotes_the_example():
    files = [*(EXAMPLE / "src").glob("*/*.py"), EXAMPLE / "pyproject.toml"]
    sources = [path.read_text() for path in files]
    quoted = blocks("python") + blocks("toml")
    assert len(quoted) == 4
    for block in quoted:
        assert any(block.rstrip() in source for source in sources), block


def test_the_model_and_its_family_are_listed(installed):
    listed = installed.models()["dots"]
    assert (listed["family"], listed["pipeline"], listed["distribution"]) == ("dots", "DotsPipeline", DISTRIBUTION)
    plugins = json.loads(installed.tdmr1("plugins", "--json").stdout)["plugins"]
    (plugin,) = [each for each in plugins if each["distribution"] == "tdmr1-dots"]
    assert plugin["error"] is None
    assert "dots" not in installed.models(TDMR1_DISABLE_PLUGINS="dots")


def test_the_tests_of_the_package_pass(installed, tmp_path):
    script = tmp_path / "tests.py"
    options = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, str(EXAMPLE / "tests")]
    script.write_text(f"import sys, pytest\nsys.exit(pytest.main({options!r}))\n")
    assert "4 passed" in run_script(script, PYTHONPATH=installed.path).stdout


def test_the_family_passes_the_conformance_checks(printed):
    shown = printed["models check"]
    assert [shown.count(f"  {word}  ") for word in ("pass", "fail", "-   ")] == [6, 0, 2], shown


def test_a_run_trains_resumes_and_samples(installed, printed):
    rows = [json.loads(line) for line in (installed.run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(row["grad_norm/generator"] > 0 for row in rows)
    start = installed.folder / "start"
    installed.tdmr1("sample", installed.run, "--prompt", "two bright dots", "--role", "start", "--output", start)
    of_start, trained = (next(folder.glob("*.png")) for folder in (start, installed.folder / "runs" / "images"))
    assert Image.open(of_start).tobytes() != Image.open(trained).tobytes()


def test_an_export_is_loaded_by_the_script_of_its_card(installed, printed):
    exported = installed.run / "export"
    card = (exported / "README.md").read_text()
    assert "The export was checked: a new diffusers pipeline with this LoRA reproduced 8 images" in card
    script = card.split("```python\n")[1].split("```")[0]
    assert "from tdmr1_dots.pipeline import DotsPipeline" in script
    weights = installed.models()["dots"]["base"]
    assert "'path/to/weights'" in script  # a card has no path of this machine
    (installed.folder / "script.py").write_text(script.replace("path/to/weights", weights))
    run_script(installed.folder / "script.py", cwd=exported, PYTHONPATH=installed.path)
    assert Image.open(exported / "image.png").size == (32, 32)


def test_a_plan_counts_the_network_of_the_package(installed):
    planned = json.loads(installed.tdmr1("plan", "--model", "dots", "--gpu", "24GB", "--json").stdout)
    assert planned["parts"]["denoiser"] > 4 * 150_000


def test_without_the_package_its_run_names_it(installed, printed):
    run, weights = Path("runs/dots"), EXAMPLE / "src" / "tdmr1_dots" / "weights"
    assert shlex.split(REMOVE) == ["pip", "uninstall", "--yes", "tdmr1-dots"]
    installed.environment.uninstall("tdmr1-dots")
    assert "dots" not in installed.models()
    (shown,) = [block for block in blocks("") if block.startswith("error:")]
    for command in (["train", "--resume", run], ["sample", run, "--prompt", "a dot", "--output", run / "images"]):
        done = installed.tdmr1(*command, code=2)
        assert shown.split() == [word for word in done.stderr.split() if word != "[file-missing]"]
    stderr = installed.tdmr1("models", "info", weights, code=2).stderr
    assert "holds a DotsPipeline, which is not supported" in " ".join(stderr.split())
