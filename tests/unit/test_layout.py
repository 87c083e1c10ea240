"""The repository has only its own files and folders: nothing that a test or a benchmark left was committed."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from support.paths import ROOT

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(
        not (ROOT / ".git").exists() or shutil.which("git") is None,
        reason="only git knows which files are committed",
    ),
]

FOLDERS = {".ci", "benchmarks", "docker", "docs", "examples", "tdmr1_cli", "tdmr1_core", "tdmr1_rewards", "tests"}
SUFFIXES = {"", ".cff", ".md", ".toml", ".txt", ".yml"}


def test_the_top_level_has_no_other_folders_and_kinds_of_files():
    command = ["git", "-c", f"safe.directory={ROOT}", "-c", "core.quotepath=off", "ls-files"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert {path.partition("/")[0] for path in listed if "/" in path} == FOLDERS
    assert {(ROOT / path).suffix for path in listed if "/" not in path} == SUFFIXES
