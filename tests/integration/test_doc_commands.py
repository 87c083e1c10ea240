"""Runs the commands of README.md and docs/*.md: those of `RUN` as they are, and those of `DRY_RUN` with --dry-run."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
from support.command_line import SMALL, run_tdmr1
from support.doc_commands import DRY_RUN, DRY_RUN_LONG, RUN, RUN_LONG
from support.paths import ROOT

pytestmark = pytest.mark.integration

ERRORS = {"errors.md": 2}
"""The exit code of the commands of a page, if it is not 0."""
QUICK_START = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A folder with warm.py of the quick start and a small run in its place of the first run."""
    folder = tmp_path_factory.mktemp("docs")
    (block,) = [part for part in QUICK_START.split("```python\n")[1:] if part.startswith("# warm.py")]
    (folder / "warm.py").write_text(block.partition("```")[0])
    run_tdmr1("train", "--iterations", "1", "--output", "runs/first", *SMALL, cwd=folder)
    return folder


@pytest.fixture
def folder(prepared, tmp_path) -> Path:
    """A copy of the prepared folder, in which the commands of one page run."""
    shutil.copytree(prepared, tmp_path / "docs")
    return tmp_path / "docs"


@pytest.mark.parametrize("page", RUN)
def test_the_commands_of_a_page_run(page, folder):
    for line in RUN[page]:
        done = run_tdmr1(*shlex.split(line)[1:], cwd=folder, code=ERRORS.get(page, 0))
        assert done.stdout.strip() or done.stderr.strip(), line
    if page == "errors.md":
        shown = (ROOT / "docs" / page).read_text(encoding="utf-8").partition(line + "\n")[2].partition("```")[0]
        assert done.stderr.split() == shown.split()


@pytest.mark.long
@pytest.mark.parametrize("page", RUN_LONG)
def test_the_long_commands_of_a_page_run(page, folder):
    for line in RUN_LONG[page]:
        assert run_tdmr1(*shlex.split(line)[1:], cwd=folder).stdout.strip(), line


def lines(commands):
    return dict.fromkeys(line for of_page in commands.values() for line in of_page)


@pytest.mark.parametrize(
    "line", [*lines(DRY_RUN), *(pytest.param(line, marks=pytest.mark.long) for line in lines(DRY_RUN_LONG))]
)
def test_a_training_of_the_docs_is_accepted(line, tmp_path):
    done = run_tdmr1(*shlex.split(line)[1:], "--dry-run", cwd=tmp_path)
    assert "name:" in done.stdout
    assert list(tmp_path.iterdir()) == []
