"""Output that cannot be written never stops the work, and results that are lost are an error unless nobody reads them.

The commands run in forks or in real processes, with broken pipes, full devices, closed descriptors and ASCII streams.
"""

import json
import os
import shlex
import subprocess

import pytest
from support.command_line import command, environment, small, start_tdmr1

pytestmark = pytest.mark.integration

SETTINGS = ("batch.group_size=2", "evaluation.images=1", "iterations=1", "rollout.steps=1", "prompts.evaluate=count")
TINY = small(*SETTINGS)


@pytest.fixture
def full():
    """A device that is full."""
    descriptor = os.open("/dev/full", os.O_WRONLY)
    yield descriptor
    os.close(descriptor)


def shell(line: str, **changes) -> subprocess.CompletedProcess:
    """Run a line of bash in which `tdmr1` is the command line."""
    function = f'set -o pipefail; tdmr1() {{ {shlex.join(command())} "$@"; }}; {line}'
    done = subprocess.run(["bash", "-c", function], env=environment(**changes), capture_output=True, timeout=600)
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    return done


def lost(folder) -> list[str]:
    """The lines of the record of lost output, without the time."""
    return [line.split(" ", 2)[2] for line in (folder / "output_lost.txt").read_text().splitlines()]


def saved(folder) -> str:
    return (folder / "checkpoints" / "latest").read_text().strip()


def test_a_reader_that_leaves_and_a_full_disk_do_not_stop_a_run(packaged_model, full, tmp_path):
    arguments = [*small(*SETTINGS, "saving.tensorboard=true"), "--output", tmp_path / "run"]
    process = start_tdmr1("train", *arguments, stdout=full, stderr=subprocess.PIPE)
    assert process.stderr.readline()
    process.stderr.close()
    assert process.wait(600) == 0
    assert saved(tmp_path / "run") == "step-000001"
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    assert lost(tmp_path / "run") == [
        "stderr: output was lost: Broken pipe",
        "stdout: output was lost: No space left on device",
    ]


def test_processes_with_closed_descriptors_finish_their_run(packaged_model, tmp_path):
    process = start_tdmr1("train", *TINY, "--processes", 2, "--output", tmp_path / "run", closed=(0, 1, 2))
    assert process.wait(600) == 0
    assert saved(tmp_path / "run") == "step-000001"
    for path in (tmp_path / "run").rglob("*.json*"):  # no file got the number of a standard stream
        for line in path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
            json.loads(line)


def test_an_ascii_terminal_and_a_folder_that_is_not_utf8(packaged_model, tmp_path):
    folder = os.path.join(tmp_path, os.fsdecode(b"r\xff\xc3\xa9"))
    prompts = tmp_path / "grün\x1b[31m.txt"
    prompts.write_text("ein grünes Rechteck\n")
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "PYTHONIOENCODING": "ascii"}
    arguments = ["--prompts", prompts, "--reward", "jpeg_size", "--output", folder]
    process = start_tdmr1("train", *TINY, *arguments, **streams)
    stdout, stderr = process.communicate(600)
    assert process.returncode == 0, stderr
    assert (stdout + stderr).isascii()
    assert "\x1b" not in stdout + stderr
    assert "gr\\xfcn\\x1b[31m.txt" in stderr
    assert "r\\udcff\\xe9" in stderr
    assert "output_lost.txt" not in os.listdir(folder)

    process = start_tdmr1("report", folder, "--json", **streams)
    stdout, _ = process.communicate(600)
    assert process.returncode == 0
    assert json.loads(stdout)["evaluations"][0]["prompts"] == prompts.name
    process = start_tdmr1("report", folder, **streams)
    assert process.communicate(600)[0].splitlines()[-1].endswith("r\\udcff\\xe9/report.html")
    assert process.returncode == 0


@pytest.mark.parametrize("flags", ["", "--json"])
def test_a_reader_that_leaves_is_no_error_of_a_result(flags):
    done = shell(f"tdmr1 rewards list {flags} | head -n 1 >/dev/null; tdmr1 rewards list {flags} >&-")
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("arguments", ["rewards list", "rewards list --json", "--help"])
def test_a_result_on_a_full_disk_is_an_error(arguments):
    done = shell(f"tdmr1 {arguments} >/dev/full")
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: the result cannot be written to stdout: No space left on device [not-writ")


@pytest.mark.parametrize("stderr", ["2>/dev/full", "2>&-", "2>&- >&- <&-"])
def test_an_error_that_nobody_reads_keeps_its_exit_code(stderr):
    assert shell(f"tdmr1 rewards info nope --json {stderr}").returncode == 2


def test_an_error_on_an_ascii_terminal_escapes_what_it_quotes():
    name = b"n\xff\xc3\xa9\x1b[31m\n\xe2\x80\xae"
    done = shell(f"tdmr1 report {shlex.quote(os.fsdecode(name))} --json", PYTHONIOENCODING="ascii")
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert os.fsencode(error["values"]["folder"]) == name
    assert done.stderr.startswith(b"error: ")
    assert b"n\\udcff\\xe9\\x1b[31m\\n\\u202e" in done.stderr
