"""A command in a fork of the warm process behaves as in a new process."""

import json
import signal
import subprocess
import sys

import pytest
import torch
from support.command_line import environment, run_script, run_tdmr1, start_tdmr1, warm
from support.feedback_server import draw_folder
from support.warm_cli import WarmProcess

from tdmr1_cli.main import main

pytestmark = pytest.mark.integration

SCRIPT = """
import json, os, random, signal, sys, threading, warnings
handler = signal.getsignal(signal.SIGTERM)
print(json.dumps({
    "arguments": sys.argv, "path": sys.path, "environment": dict(os.environ), "directory": os.getcwd(),
    "stdin": sys.stdin.read(), "threads": threading.active_count(),
    "handler": getattr(handler, "__qualname__", str(handler)),
}))
print("to stderr", file=sys.stderr)
sys.exit(int(sys.argv[1]))
"""


def test_a_script_sees_the_same_in_a_fork_and_in_a_new_process(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    variables = environment(TDMR1_TEST="é", PYTHONPATH=f"{tmp_path}/one:{tmp_path}/two")
    forked = warm.run([3], variables, cwd=tmp_path, script=path, timeout=300)
    new = subprocess.run(
        [sys.executable, path, "3"],
        env=variables,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    seen, expected = json.loads(forked.stdout), json.loads(new.stdout)
    set_by_the_server = {"OMP_WAIT_POLICY", "TOKENIZERS_PARALLELISM", "TORCHINDUCTOR_CACHE_DIR"}
    for each in (seen, expected):
        each["environment"] = {k: v for k, v in each["environment"].items() if k not in set_by_the_server}
    assert seen == expected
    assert forked.stderr == new.stderr == "to stderr\n"
    assert forked.returncode == new.returncode == 3


def test_commands_are_forked_even_if_libraries_set_variables_in_this_process():
    assert torch is not None
    assert main(["--version"]) == 0
    assert warm.can_run(environment())
    assert not warm.can_run(environment(HF_ENDPOINT="http://127.0.0.1:1"))
    assert run_tdmr1("--version").stdout == run_tdmr1("--version", fresh=True).stdout


def test_a_forked_command_can_be_killed(tmp_path):
    folder = draw_folder(tmp_path / "images", 1)  # so that the command runs until it is killed
    process = start_tdmr1("label", folder, "--no-open", stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    assert isinstance(process, WarmProcess)
    process.send_signal(signal.SIGKILL)
    process.communicate(60)
    assert process.returncode == -signal.SIGKILL


def test_a_failing_script_is_reported(tmp_path):
    (tmp_path / "script.py").write_text("raise ValueError('of the script')")
    with pytest.raises(AssertionError, match="of the script"):
        run_script(tmp_path / "script.py")
