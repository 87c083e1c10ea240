"""The files of docker/: stages, user, and commands that the command line understands."""

from __future__ import annotations

import re
import shlex

import pytest
import yaml
from support.packaging import PIP, run
from support.paths import ROOT
from typer.main import get_command

from tdmr1_cli.app import build_app
from tdmr1_rewards.texts.documents import read_json

DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())


def parse(words):
    """Parse a command of tdmr1, without running it. Raises an error of the parser for one that is not understood."""
    command = get_command(build_app())
    context = command.make_context("tdmr1", list(words))
    while hasattr(command, "resolve_command"):
        name, command, words = command.resolve_command(context, words)
        context = command.make_context(name, list(words), parent=context)
    return context.params


@pytest.mark.unit
def test_the_services_have_commands_that_exist():
    services = COMPOSE["services"]
    served = parse(services["reward"]["command"])
    assert (served["source"], served["host"], served["port"]) == ("ocr_match", "0.0.0.0", 8000)
    trained = parse(services["trainer"]["command"])
    assert trained["reward"] == ["ocr=remote:http://reward:8000/ocr_match"]
    with pytest.raises(Exception, match="nosuch"):
        parse(["train", "--nosuch"])


@pytest.mark.unit
def test_the_server_is_reached_by_the_trainer_only():
    services = COMPOSE["services"]
    assert not any("ports" in service for service in services.values())
    tokens = {service["environment"]["TDMR1_REWARD_TOKEN"] for service in services.values()}
    assert len(tokens) == 1
    assert ":?" in tokens.pop(), "a token that is not set must be an error"
    assert services["trainer"]["depends_on"]["reward"]["condition"] == "service_healthy"
    named = {volume.partition(":")[0] for service in services.values() for volume in service["volumes"]}
    assert named == set(COMPOSE["volumes"])


@pytest.mark.unit
def test_the_image_has_two_stages_and_no_root_user():
    stages = re.findall(r"^FROM (\S+)(?: AS (\w+))?$", DOCKERFILE, re.MULTILINE)
    assert stages == [("nvidia/cuda:${CUDA}", "build"), ("nvidia/cuda:${CUDA}", "")]
    last = DOCKERFILE.rpartition("\nFROM ")[2]
    assert re.search(r"^USER tdmr1$", last, re.MULTILINE)
    assert "pip install" not in last
    copied = re.findall(
        r"^COPY ((?:[\w./-]+ )+)", DOCKERFILE.partition("\nFROM nvidia/cuda:${CUDA}\n")[0], re.MULTILINE
    )
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for name in " ".join(copied).split():
        assert (ROOT / name).exists(), name
        assert f"!{name}" in ignored, name


@pytest.mark.unit
def test_the_commands_of_the_page_are_understood():
    page = (ROOT / "docs" / "docker.md").read_text()
    lines = [line for block in re.findall(r"```\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    commands = [shlex.split(line.partition(" tdmr1 ")[2]) for line in lines if line.startswith("docker run")]
    commands += [shlex.split(line.partition(" trainer ")[2]) for line in lines if " run --rm trainer " in line]
    assert len(commands) == 5
    for command in commands:
        parse(command)


@pytest.mark.integration
@pytest.mark.long
def test_the_packages_of_the_image_are_resolved_and_pinned(tmp_path):
    """Packages that only PyTorch's builds with CUDA need are pinned by PyTorch itself."""
    (install,) = re.findall(r"pip install -c constraints\.txt '(.+)'", DOCKERFILE)
    report = tmp_path / "report.json"
    constraints = ROOT / "docker" / "constraints.txt"
    run(
        *PIP,
        "install",
        "--dry-run",
        "--ignore-installed",
        "-q",
        "-c",
        constraints,
        "--report",
        report,
        install,
        cwd=ROOT,
    )
    resolved = {each["metadata"]["name"].lower().replace("_", "-") for each in read_json(report)["install"]}
    pinned = {line.partition("==")[0] for line in constraints.read_text().splitlines()}
    assert len(pinned) > 80
    assert {name for name in resolved - pinned if not name.startswith(("nvidia-", "cuda-", "triton"))} == {"tdmr1"}
    assert pinned <= resolved
