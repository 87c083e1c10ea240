"""Only results reach stdout: what a reward prints, also from C, goes to stderr, and a reward cannot move the run."""

import json

import pytest
from support.command_line import SMALL

pytestmark = pytest.mark.integration

NOISY = """
import os

print("imported")

def score(images, prompts, metadata):
    print("scored")
    os.write(1, b"written by C\\n")
    return [float(index) for index in range(len(prompts))]
"""
MOVING = """
import os

def score(images, prompts, metadata):
    os.chdir("/")
    return [float(image.mean()) for image in images]
"""


@pytest.fixture
def noisy(tmp_path):
    path = tmp_path / "noisy.py"
    path.write_text(NOISY)
    return f"{path}:score"


@pytest.mark.parametrize("verb", ["check", "info"])
def test_the_output_of_a_reward_is_not_in_the_document(tdmr1, noisy, verb):
    done = tdmr1("rewards", verb, noisy, "--json", code=None)
    json.loads(done.stdout)
    assert "imported" in done.stderr


def test_a_run_of_several_processes_prints_its_result_on_stdout(tdmr1, noisy, tmp_path):
    arguments = ["--reward", noisy, "--prompts", "count", "--processes", 2, "--iterations", 1]
    done = tdmr1("train", *SMALL, *arguments, "--output", tmp_path / "run", "--quiet")
    assert "mean ± standard error" in done.stdout
    assert "scored" not in done.stdout
    assert "written by C" not in done.stdout
    assert "written by C" in done.stderr


def test_the_run_folder_does_not_move_with_the_current_directory(tdmr1, tmp_path):
    (tmp_path / "moving.py").write_text(MOVING)
    arguments = ["--reward", "moving.py:score", "--prompts", "count", "--iterations", 1, "--output", "run"]
    tdmr1("train", *SMALL, *arguments, "--quiet", cwd=tmp_path)
    assert (tmp_path / "run" / "checkpoints" / "latest").is_file()
