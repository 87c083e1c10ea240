"""A model family as a package: examples/model_plugin is installed, trained, resumed, exported, sampled and removed."""

from __future__ import annotations

import json
import os
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


class Installed:
    """The environment with the package, until it is removed. Commands run in this source tree with its packages."""

    def __init__(self, folder: Path) -> None:
        self.environment = Environment(folder / "environment")
        self.environment.install(build_wheel(EXAMPLE, folder / "dist"), "--no-deps")
        self.path = os.pathsep.join([str(self.environment.site_packages), str(ROOT)])

    def tdmr1(self, *arguments: str | Path, **options):
        return run_tdmr1(*arguments, PYTHONPATH=self.path, **options)

    def models(self, **options) -> dict[str, dict]:
        return {entry["name"]: entry for entry in json.loads(self.tdmr1("models", "list", "--json", **options).stdout)}


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Installed:
    """The installed package. The last test removes it."""
    return Installed(tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="module")
def run(installed, tmp_path_factory) -> Path:
    """A run of two iterations with the package, which was then continued for a third."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    prompts = ["--prompts", EXAMPLE / "prompts.txt"]
    start = ["train", "--model", "dots", "--reward", "jpeg_size", *prompts, "--iterations", "2", *SMALL]
    installed.tdmr1(*start, "--output", folder)
    installed.tdmr1("train", "--resume", folder, "--iterations", "3")
    return folder


def test_the_model_and_its_family_are_listed(installed):
    listed = installed.models()["dots"]
    assert (listed["family"], listed["pipeline"], listed["distribution"]) == ("dots", "DotsPipeline", DISTRIBUTION)
    plugins = json.loads(installed.tdmr1("plugins", "--json").stdout)["plugins"]
    assert [(each["distribution"], each["error"]) for each in plugins if each["plugin"] == "dots"] == [
        ("tdmr1-dots", None)
    ]
    assert "dots" not in installed.models(TDMR1_DISABLE_PLUGINS="dots")


def test_the_tests_of_the_package_pass(installed, tmp_path):
    script = tmp_path / "tests.py"
    options = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, str(EXAMPLE / "tests")]
    script.write_text(f"import sys, pytest\nsys.exit(pytest.main({options!r}))\n")
    assert "4 passed" in run_script(script, PYTHONPATH=installed.path).stdout


def test_a_run_trains_resumes_and_samples(installed, run, tmp_path):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(row["grad_norm/generator"] > 0 for row in rows)
    for name, role in (("trained", "generator"), ("start", "start")):
        installed.tdmr1("sample", run, "--prompt", "two bright dots", "--role", role, "--output", tmp_path / name)
    trained, start = (next((tmp_path / name).glob("*.png")).read_bytes() for name in ("trained", "start"))
    assert trained != start


def test_an_export_is_loaded_by_the_script_of_its_card(installed, run):
    exported = json.loads(installed.tdmr1("export", run, "--json").stdout)
    assert exported["largest_difference"] <= 1
    card = (run / "export" / "README.md").read_text()
    script = card.split("```python\n")[1].split("```")[0]
    assert "from tdmr1_dots.pipeline import DotsPipeline" in script
    (run / "script.py").write_text(script)
    run_script(run / "script.py", cwd=run / "export", PYTHONPATH=installed.path)
    assert Image.open(run / "export" / "image.png").size == (32, 32)


def test_a_plan_counts_the_network_of_the_package(installed):
    planned = json.loads(installed.tdmr1("plan", "--model", "dots", "--gpu", "24GB", "--json").stdout)
    assert planned


def test_without_the_package_its_run_names_it(installed, run):
    weights = EXAMPLE / "src" / "tdmr1_dots" / "weights"
    installed.environment.uninstall("tdmr1-dots")
    assert "dots" not in installed.models()
    for command in (["train", "--resume", run], ["sample", run, "--prompt", "a dot", "--output", run / "images"]):
        stderr = " ".join(installed.tdmr1(*command, code=2).stderr.split())
        assert "the registered model dots (model.name)" in stderr
        assert f"install the package that registers the model dots ({DISTRIBUTION})" in stderr
    stderr = installed.tdmr1("models", "info", weights, code=2).stderr
    assert "holds a DotsPipeline, which is not supported" in " ".join(stderr.split())
