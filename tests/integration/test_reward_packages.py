"""Reward packages, the example and one from `tdmr1 rewards new`: wheel, own tests, training, uninstallation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.command_line import run_tdmr1
from support.packaging import SMALL, Environment, build_wheel
from support.paths import ROOT

pytestmark = pytest.mark.integration

BROKEN = {
    "broken_import": "import no_such_module_40\n",
    "wrong_hook": (
        "from tdmr1_rewards import hookimpl\n\n\n@hookimpl\ndef tdmr1_register_rewards(registry, more):\n    pass\n"
    ),
    "same_name": (
        "from tdmr1_rewards import RewardSpec, hookimpl\n\n\n@hookimpl\ndef tdmr1_register_rewards(register):\n"
        "    register(RewardSpec(name='red_share', summary='', factory='a:b', default_prompts='count'))\n"
    ),
}
"""Plugins by module: one cannot be imported, one has a hook with wrong arguments, one registers a used name."""


@dataclass(frozen=True)
class Package:
    """A reward package: its source, and the names of its distribution and reward."""

    source: Path
    distribution: str
    reward: str


@pytest.fixture(params=[pytest.param("the example", marks=pytest.mark.long), "a new one"])
def package(request, environment, tmp_path) -> Package:
    """The example package of this repository, and a package that `tdmr1 rewards new` writes."""
    if request.param == "the example":
        return Package(ROOT / "examples" / "reward_plugin", "tdmr1-red-share", "red_share")
    environment.tdmr1("rewards", "new", "my-reward", "--output", tmp_path / "made")
    return Package(tmp_path / "made", "my-reward", "my_reward")


@pytest.fixture
def installed(package, environment, tmp_path) -> Iterator[Environment]:
    """The environment with the package's wheel, which is uninstalled after the test."""
    environment.install(build_wheel(package.source, tmp_path / "dist"))
    yield environment
    environment.uninstall(package.distribution)
    assert package.reward not in rewards(environment)


def rewards(environment: Environment) -> dict[str, dict]:
    """The listed rewards by name."""
    return {
        entry["name"]: entry for entry in json.loads(environment.tdmr1("rewards", "list", "--json").stdout)["rewards"]
    }


def test_the_environment_has_the_wheel_and_not_the_source_tree(environment):
    done = environment.run("-c", "import tdmr1_rewards; print(tdmr1_rewards.__file__)")
    assert done.stdout.startswith(str(environment.python.parents[1]))


def test_a_package_is_found_passes_its_own_tests_and_trains(package, installed, tmp_path):
    listed = rewards(installed)[package.reward]
    assert (listed["distribution"], listed["version"], listed["usable"]) == (package.distribution, "0.1.0", True)
    assert package.reward in installed.tdmr1("rewards", "list").stdout

    tests = installed.run("-m", "pytest", "-q", "-p", "no:cacheprovider", package.source / "tests")
    assert " passed" in tests.stdout
    assert "suitable for training" in installed.tdmr1("rewards", "check", package.reward).stdout

    arguments = ["--reward", f"{package.reward}:0.3", "--reward", "object_count:0.7", "--iterations", "2"]
    installed.tdmr1("train", *arguments, "--output", tmp_path / "r", *SMALL)
    rows = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert 0 < row[f"reward/{package.reward}/mean"] < 1
        expected = 0.3 * row[f"reward/{package.reward}/mean"] + 0.7 * row["reward/object_count/mean"]
        assert row["reward/mean"] == pytest.approx(expected)


@pytest.mark.long
def test_the_wheel_evaluates_and_exports_a_run(environment, tmp_path):
    run = tmp_path / "r"
    run_tdmr1("train", "--iterations", "1", "--output", run, *SMALL)
    shown = environment.tdmr1("evaluate", run, "--images", "2", "--teacher-steps", "1", "--json")
    assert json.loads(shown.stdout)["iteration"] == 1
    environment.tdmr1("export", run)
    assert (run / "export" / "pytorch_lora_weights.safetensors").stat().st_size > 1e6


def test_broken_plugins_do_not_break_the_commands(environment, tmp_path):
    environment.install(build_wheel(ROOT / "examples" / "reward_plugin", tmp_path / "dist"))
    try:
        entry_points = "".join(f'{module} = "{module}"\n' for module in BROKEN)
        for module, source in BROKEN.items():
            (tmp_path / f"{module}.py").write_text(source)
        (tmp_path / "pyproject.toml").write_text(
            '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
            f'[project]\nname = "broken"\nversion = "1.0"\n[project.entry-points.tdmr1]\n{entry_points}'
            '[tool.hatch.build.targets.wheel]\ninclude = ["*.py"]\n'
        )
        environment.install(build_wheel(tmp_path, tmp_path / "broken_dist"))
        listed = environment.tdmr1("rewards", "list")
        assert "object_count" in listed.stdout
        assert "registers the same name" in " ".join(listed.stdout.split())
        assert "No module named 'no_such_module_40'" in listed.stderr
        assert "plugin wrong_hook (from broken 1.0)" in listed.stderr
        environment.tdmr1("config", "show")
        claimed = environment.tdmr1("train", "--reward", "red_share", "--dry-run", code=2).stderr
        assert "[reward-name-conflict]" in claimed
        assert "TDMR1_DISABLE_PLUGINS=" in claimed
    finally:
        for distribution in ("tdmr1-red-share", "broken"):
            environment.uninstall(distribution)
    assert {entry["distribution"] for entry in rewards(environment).values()} == {"tdmr1"}
